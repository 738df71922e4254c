//! The preshared keys with every peer: one machine each, fed by the loop, and what they ask of disk, network and plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::pq::{Effect, Entry, Input, Message, MlKem768, Mode, Note, Pairing, Statics, Terms};
use keyring::rotation::{PeerId, Stance, drained_between};
use keyring::{KeyError, PerSlot, PublicKey, Slot};
use plan::admission::{Admission, Member};
use plan::desired::Setup;
use plan::node::NodeUid;
use plan::publication;
use tokio::time::Instant;
use tracing::{info, warn};

use super::keys::Keys;
use crate::status::pq::{PairStatus, PqSlotStatus};

/// How long the keys with a node that is gone are kept: it may only be missing.
const GONE: Duration = Duration::from_mins(10);

/// How often the machines are looked at, at most.
const PACE: Duration = Duration::from_millis(10);

/// What the devices show of one peer, on each slot.
pub(super) type Entries = PerSlot<Option<Entry>>;

/// The machines.
#[derive(Debug)]
pub(super) struct Pairs {
    terms: Terms,
    provider: MlKem768,
    started: Instant,
    machines: BTreeMap<PeerId, Pairing>,
    /// Since when nodes are gone with which there are keys.
    gone: BTreeMap<PeerId, Duration>,
    messages: Vec<(PeerId, Slot, Message)>,
    /// Machines that wait for the disk.
    unwritten: BTreeSet<PeerId>,
    turn: bool,
    ticked: Option<Instant>,
}

impl Pairs {
    /// No peers yet.
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            provider: MlKem768,
            started: Instant::now(),
            machines: BTreeMap::new(),
            gone: BTreeMap::new(),
            messages: Vec::new(),
            unwritten: BTreeSet::new(),
            turn: false,
            ticked: None,
        }
    }

    /// Takes who is there, with which static keys and which slot is being drained.
    pub(super) fn meet(&mut self, admission: &Admission, own: Option<Stance>, keys: &mut Keys) {
        let Some(own) = own else { return };
        let members: BTreeMap<PeerId, _> =
            admission.world.peers.values().map(|member| (PeerId::new(member.uid.as_str()), member)).collect();
        let public = keys.public();
        let statics = |member: &Member| {
            let of = |slot| Statics { own: *public.get(slot), peer: member.state.slots.get(slot).key };
            PerSlot::from_fn(|slot| Some(of(slot)))
        };
        for (peer, member) in &members {
            self.recognize(peer, &statics(member), |known| members.contains_key(known), keys);
        }
        self.machines.retain(|peer, _| members.contains_key(peer));
        self.forget_the_gone(|peer| members.contains_key(peer), keys);
        for (peer, member) in &members {
            self.begin(&own.id, peer, keys);
            self.tell(peer, Input::Names { own: own.id.clone(), peer: peer.clone() });
            self.tell(peer, Input::Statics(statics(member)));
            self.tell(peer, Input::Drained(drained_between(&own, &publication::stance(member))));
        }
        self.write(keys);
    }

    /// A Node that was made anew for a node that lives has another UID and the same static keys: what was agreed on with
    /// it stands, or every packet would be lost until both ends had agreed anew.
    fn recognize(
        &mut self,
        peer: &PeerId,
        statics: &PerSlot<Option<Statics>>,
        is_there: impl Fn(&PeerId) -> bool,
        keys: &mut Keys,
    ) {
        if self.machines.contains_key(peer) {
            return;
        }
        let former = self.machines.iter().find(|(known, pair)| !is_there(known) && pair.is_bound_to(statics));
        let Some(former) = former.map(|(known, _)| known.clone()) else { return };
        if let Some(pair) = self.machines.remove(&former) {
            info!(%peer, %former, "a Node was made anew; the preshared keys with its node stand");
            self.machines.insert(peer.clone(), pair);
            self.unwritten.remove(&former);
            self.unwritten.insert(peer.clone());
            self.write(keys);
            keys.forget_preshared(&former);
        }
    }

    fn begin(&mut self, own: &PeerId, peer: &PeerId, keys: &Keys) {
        if self.machines.contains_key(peer) {
            return;
        }
        let mut chance = [0; 8];
        if let Err(error) = getrandom::fill(&mut chance).map_err(KeyError::Random) {
            warn!(cause = %error, "no randomness; tried again at the next turn");
            return;
        }
        let kept = keys.ring().preshared_of(peer);
        let (own, chance) = (own.clone(), u64::from_be_bytes(chance));
        let pairing = Pairing::resume(self.terms, own, peer.clone(), kept, chance, self.now());
        self.machines.insert(peer.clone(), pairing);
    }

    fn forget_the_gone(&mut self, is_there: impl Fn(&PeerId) -> bool, keys: &mut Keys) {
        let now = self.now();
        let gone: Vec<PeerId> =
            keys.ring().preshared_peers().filter(|peer| !is_there(peer)).cloned().collect();
        self.gone.retain(|peer, _| gone.contains(peer));
        for peer in gone {
            let since = *self.gone.entry(peer.clone()).or_insert(now);
            if now >= since + GONE {
                info!(%peer, "forgot the preshared keys with a node that is gone");
                keys.forget_preshared(&peer);
                self.gone.remove(&peer);
            }
        }
    }

    /// Takes what the devices show of each peer.
    pub(super) fn observe(&mut self, entries: &BTreeMap<PeerId, Entries>, keys: &mut Keys) {
        for (peer, entries) in entries {
            self.tell(peer, Input::Engine(*entries));
        }
        self.write(keys);
    }

    /// Takes the slots that pods' packets take now that a plan has been performed.
    pub(super) fn settle(&mut self, carried: &BTreeMap<PeerId, Option<Slot>>, keys: &mut Keys) {
        for (peer, tx) in carried {
            self.tell(peer, Input::Tx(*tx));
        }
        self.write(keys);
    }

    /// Takes a message from a peer.
    pub(super) fn hear(&mut self, peer: &PeerId, over: Slot, message: Message, keys: &mut Keys) {
        self.tell(peer, Input::Heard { over, message });
        self.write(keys);
    }

    /// Lets those machines know that time has passed that wait for it.
    pub(super) fn tick(&mut self, keys: &mut Keys) {
        self.ticked = Some(Instant::now());
        let now = self.now();
        let due =
            self.machines.iter().filter(|(_, pair)| pair.poll_timeout(now).is_some_and(|due| due <= now));
        let due: Vec<PeerId> = due.map(|(peer, _)| peer.clone()).collect();
        for peer in due {
            self.tell(&peer, Input::Tick);
        }
        self.write(keys);
    }

    /// When the first machine wants to be told that time has passed.
    pub(super) fn due(&self) -> Option<Instant> {
        let now = self.now();
        let due = self.machines.values().filter_map(|pair| pair.poll_timeout(now)).min()?;
        // However many peers there are, their machines share the loop with everything else.
        let soonest = self.ticked.map(|ticked| ticked + PACE);
        self.started.checked_add(due).max(soonest)
    }

    /// Whether the loop should turn now; asked once.
    pub(super) const fn take_turn(&mut self) -> bool {
        std::mem::replace(&mut self.turn, false)
    }

    /// What is to be sent now.
    pub(super) fn take_messages(&mut self) -> Vec<(PeerId, Slot, Message)> {
        std::mem::take(&mut self.messages)
    }

    /// The slot for packets to a peer: the one that everything else asks for, unless its key is about to change or the
    /// other slot is better protected.
    pub(super) fn steer(&self, peer: &PeerId, wanted: Slot) -> Slot {
        let avoided = self.machines.get(peer).and_then(|pair| pair.avoid(self.now()));
        if avoided == Some(wanted) { wanted.other() } else { wanted }
    }

    /// Adds to a setup which keys there are and where pods' packets may not pass.
    pub(super) fn protect(&self, admission: &Admission, setup: &mut Setup) {
        for member in admission.world.peers.values() {
            let place = |slot| -> (NodeUid, Slot) { (member.uid.clone(), slot) };
            let pair = self.machines.get(&PeerId::new(member.uid.as_str()));
            for slot in Slot::ALL {
                if let Some(id) = pair.and_then(|pair| pair.preshared(slot)) {
                    setup.preshared.insert(place(slot), id);
                }
                // Before there is a machine nothing is proven.
                let carries = pair.map_or(self.terms.mode != Mode::Require, |pair| pair.carries(slot));
                if !carries {
                    setup.barred.insert(place(slot));
                }
            }
        }
    }

    /// Whether a rotation may count on what a peer says over a slot.
    pub(super) fn protects(&self, peer: &PeerId, slot: Slot) -> bool {
        let pair = self.machines.get(peer);
        pair.map_or(self.terms.mode != Mode::Require, |pair| pair.protected(slot, self.now()))
    }

    /// How it stands with a peer.
    pub(super) fn status(&self, peer: &PeerId) -> Option<(PairStatus, PerSlot<PqSlotStatus>)> {
        let pair = self.machines.get(peer)?;
        let barred = Slot::ALL.into_iter().all(|slot| !pair.carries(slot));
        let status = PairStatus { willing: pair.willing(), barred };
        let slots = pair.report(self.now()).map(|report| PqSlotStatus {
            protection: report.protection,
            key: report.id,
            epoch: report.epoch,
            age: report.age.as_ref().map(Duration::as_secs),
        });
        Some((status, slots))
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn tell(&mut self, peer: &PeerId, input: Input) {
        let now = self.now();
        let Some(pair) = self.machines.get_mut(peer) else { return };
        for effect in pair.handle(now, &self.provider, input) {
            match effect {
                Effect::Send { over, message } => self.messages.push((peer.clone(), over, message)),
                Effect::Persist => drop(self.unwritten.insert(peer.clone())),
                Effect::Apply => self.turn = true,
                Effect::Note(note) => tell_log(peer, &note),
            }
        }
    }

    /// One write for all machines that wait for one.
    fn write(&mut self, keys: &mut Keys) {
        while !self.unwritten.is_empty() {
            let waiting = std::mem::take(&mut self.unwritten);
            let kept =
                waiting.iter().filter_map(|peer| Some((peer.clone(), self.machines.get(peer)?.kept())));
            let written = keys.keep_preshared(kept.collect());
            for peer in waiting {
                self.tell(&peer, if written { Input::Persisted } else { Input::PersistFailed });
            }
            if !written {
                // Whoever wants to write once more waits for the next input.
                return;
            }
        }
    }
}

/// What the devices show of each peer. A device that has another key of its own than it should have shows nothing.
pub(super) fn entries(
    admission: &Admission,
    own: &PerSlot<PublicKey>,
    shown: impl Fn(Slot, &PublicKey, &PublicKey) -> Option<Entry>,
) -> BTreeMap<PeerId, Entries> {
    let members = admission.world.peers.values();
    members
        .map(|member| {
            let entry = |slot| shown(slot, own.get(slot), &member.state.slots.get(slot).key);
            (PeerId::new(member.uid.as_str()), PerSlot::from_fn(entry))
        })
        .collect()
}

/// The slot that pods' packets to each peer take under a setup.
pub(super) fn carried(admission: &Admission, setup: &Setup) -> BTreeMap<PeerId, Option<Slot>> {
    let members = admission.world.peers.values();
    members.map(|member| (PeerId::new(member.uid.as_str()), setup.carrying_slot(member))).collect()
}

fn tell_log(peer: &PeerId, note: &Note) {
    match note {
        Note::Agreed(slot, epoch, id) => info!(%peer, %slot, epoch, key = %id, "preshared key: agreed"),
        Note::Proven(slot, epoch, id) => info!(%peer, %slot, epoch, key = %id, "preshared key: proven"),
        Note::Outlived(slot, epoch) => {
            info!(%peer, %slot, epoch, "preshared key: ended with a static key");
        }
        Note::GivenUp(slot, epoch) => {
            warn!(%peer, %slot, epoch, "PresharedKeyGivenUp: no answer over either slot; the peer may have lost its keys");
        }
        Note::Refused(slot, epoch, why) => info!(%peer, %slot, epoch, ?why, "preshared key: refused"),
        Note::Differs(slot) => warn!(%peer, %slot, "preshared key: the peer holds another one"),
        Note::Forged(slot, epoch) => {
            warn!(%peer, %slot, epoch, "PresharedKeyRefused: what the peer sent does not fit; it was changed on its way");
        }
        Note::Failed(slot, error) => warn!(%peer, %slot, cause = %error, "preshared key: no exchange"),
        Note::NotKept(slot, epoch) => {
            warn!(%peer, %slot, epoch, "preshared key: not kept, so not used");
        }
    }
}
