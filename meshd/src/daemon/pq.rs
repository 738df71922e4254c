//! The preshared keys with every peer: one state machine each, driven by the loop, and its effects on disk,
//! network and plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::pq::{Effect, Entry, Input, Message, MlKem768, Mode, Note, Pairing, PqSettings, StaticKeys};
use keyring::rotation::{PeerId, Stance, drained_between};
use keyring::{KeyError, PerSlot, PublicKey, Slot};
use plan::admission::{Admission, Member};
use plan::desired::Setup;
use plan::node::NodeUid;
use plan::publication;
use plan::timers::Timers;
use tokio::time::Instant;
use tracing::{info, warn};

use super::keys::Keys;
use crate::status::pq::{PairStatus, PqSlotStatus};

/// How long the keys with a node that is gone are kept: it may come back.
const GONE_TTL: Duration = Duration::from_mins(10);

/// The shortest interval between two ticks of the state machines.
const MIN_TICK_INTERVAL: Duration = Duration::from_millis(10);

/// A peer's state in the device of each slot.
pub(super) type Entries = PerSlot<Option<Entry>>;

/// The state machines.
#[derive(Debug)]
pub(super) struct Pairs {
    settings: PqSettings,
    provider: MlKem768,
    started: Instant,
    machines: BTreeMap<PeerId, Pairing>,
    /// When each has its next tick. What one decides differs by time alone only while its hellos are not answered, and then it
    /// sends the next one within seconds.
    timers: Timers<PeerId>,
    /// Since when nodes with which there are keys are gone.
    gone: BTreeMap<PeerId, Duration>,
    messages: Vec<(PeerId, Slot, Message)>,
    /// State machines with a state to write to disk.
    unwritten: BTreeSet<PeerId>,
    turn: bool,
    ticked: Option<Instant>,
}

impl Pairs {
    /// Starts without peers.
    pub(super) fn new(settings: PqSettings) -> Self {
        Self {
            settings,
            provider: MlKem768,
            started: Instant::now(),
            machines: BTreeMap::new(),
            timers: Timers::default(),
            gone: BTreeMap::new(),
            messages: Vec::new(),
            unwritten: BTreeSet::new(),
            turn: false,
            ticked: None,
        }
    }

    /// Sets the peers, with their static keys and the slots being drained.
    pub(super) fn set_peers(&mut self, admission: &Admission, own: Option<Stance>, keys: &mut Keys) {
        let Some(own) = own else { return };
        let members: BTreeMap<PeerId, _> =
            admission.world.peers.values().map(|member| (PeerId::new(member.uid.as_str()), member)).collect();
        let public = keys.public();
        let statics = |member: &Member| {
            let of = |slot| StaticKeys { own: *public.get(slot), peer: member.state.slots.get(slot).key };
            PerSlot::from_fn(|slot| Some(of(slot)))
        };
        for (peer, member) in &members {
            self.move_to_new_uid(peer, &statics(member), |known| members.contains_key(known), keys);
        }
        self.machines.retain(|peer, _| members.contains_key(peer));
        self.timers.retain(|peer| members.contains_key(peer));
        self.delete_keys_of_gone_nodes(|peer| members.contains_key(peer), keys);
        for (peer, member) in &members {
            self.start(&own.id, peer, keys);
            self.handle(peer, Input::Ids { own: own.id.clone(), peer: peer.clone() });
            self.handle(peer, Input::StaticKeys(statics(member)));
            self.handle(peer, Input::Drained(drained_between(&own, &publication::stance(member))));
        }
        self.write(keys);
    }

    /// The recreated Node of a running node has another UID and the same static keys: the preshared keys stay
    /// in use, or every packet would be lost until both ends had agreed on new ones.
    fn move_to_new_uid(
        &mut self,
        peer: &PeerId,
        statics: &PerSlot<Option<StaticKeys>>,
        is_there: impl Fn(&PeerId) -> bool,
        keys: &mut Keys,
    ) {
        if self.machines.contains_key(peer) {
            return;
        }
        let former = self.machines.iter().find(|(known, pair)| !is_there(known) && pair.is_bound_to(statics));
        let Some(former) = former.map(|(known, _)| known.clone()) else { return };
        if let Some(pair) = self.machines.remove(&former) {
            info!(
                event = "PresharedKeysTransferred", peer_uid = %peer, former_uid = %former,
                "a Node was recreated; the preshared keys stay in use"
            );
            self.machines.insert(peer.clone(), pair);
            self.unwritten.remove(&former);
            self.unwritten.insert(peer.clone());
            self.write(keys);
            keys.forget_preshared(&former);
        }
    }

    fn start(&mut self, own: &PeerId, peer: &PeerId, keys: &Keys) {
        if self.machines.contains_key(peer) {
            return;
        }
        let jitter_seed = match getrandom::u64().map_err(KeyError::Random) {
            Ok(seed) => seed,
            Err(error) => {
                warn!(event = "RandomnessUnavailable", %error, "no randomness; retrying on the next turn");
                return;
            }
        };
        let stored = keys.ring().preshared_of(peer);
        let pairing =
            Pairing::resume(self.settings, own.clone(), peer.clone(), stored, jitter_seed, self.now());
        self.machines.insert(peer.clone(), pairing);
    }

    fn delete_keys_of_gone_nodes(&mut self, is_there: impl Fn(&PeerId) -> bool, keys: &mut Keys) {
        let now = self.now();
        let gone: Vec<PeerId> =
            keys.ring().preshared_peers().filter(|peer| !is_there(peer)).cloned().collect();
        self.gone.retain(|peer, _| gone.contains(peer));
        for peer in gone {
            let since = *self.gone.entry(peer.clone()).or_insert(now);
            if now >= since + GONE_TTL {
                info!(
                    event = "PresharedKeysForgotten", peer_uid = %peer,
                    "deleted the preshared keys with a node that is gone"
                );
                keys.forget_preshared(&peer);
                self.gone.remove(&peer);
            }
        }
    }

    /// Passes on the state of each peer in the devices.
    pub(super) fn observe(&mut self, entries: &BTreeMap<PeerId, Entries>, keys: &mut Keys) {
        for (peer, entries) in entries {
            self.handle(peer, Input::Engine(*entries));
        }
        self.write(keys);
    }

    /// Sets the slots that carry pod traffic, after a plan was performed.
    pub(super) fn set_carrying_slots(&mut self, carried: &BTreeMap<PeerId, Option<Slot>>, keys: &mut Keys) {
        for (peer, tx) in carried {
            self.handle(peer, Input::Tx(*tx));
        }
        self.write(keys);
    }

    /// Passes on a message from a peer.
    pub(super) fn receive(&mut self, peer: &PeerId, over: Slot, message: Message, keys: &mut Keys) {
        self.handle(peer, Input::Received { over, message });
        self.write(keys);
    }

    /// Ticks the state machines that are due.
    pub(super) fn tick(&mut self, keys: &mut Keys) {
        self.ticked = Some(Instant::now());
        let now = self.now();
        let due: Vec<PeerId> = self.timers.due(now).cloned().collect();
        for peer in due {
            self.handle(&peer, Input::Tick);
        }
        self.write(keys);
    }

    /// When the first tick is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.timers.first()?;
        // The state machines share the loop with everything else, however many there are.
        let soonest = self.ticked.map(|ticked| ticked + MIN_TICK_INTERVAL);
        self.started.checked_add(due).max(soonest)
    }

    /// Whether the loop should run a turn now; resets the flag.
    pub(super) const fn take_turn(&mut self) -> bool {
        std::mem::replace(&mut self.turn, false)
    }

    /// Takes the messages to send.
    pub(super) fn take_messages(&mut self) -> Vec<(PeerId, Slot, Message)> {
        std::mem::take(&mut self.messages)
    }

    /// The slot for packets to a peer: `wanted`, unless its key is about to change or the other slot is
    /// better protected.
    pub(super) fn steer(&self, peer: &PeerId, wanted: Slot) -> Slot {
        let avoided = self.machines.get(peer).and_then(|pair| pair.avoid(self.now()));
        if avoided == Some(wanted) { wanted.other() } else { wanted }
    }

    /// Adds to a setup the preshared keys, and the slots that must not carry pod traffic.
    pub(super) fn protect(&self, admission: &Admission, setup: &mut Setup) {
        for member in admission.world.peers.values() {
            let place = |slot| -> (NodeUid, Slot) { (member.uid.clone(), slot) };
            let pair = self.machines.get(&PeerId::new(member.uid.as_str()));
            for slot in Slot::ALL {
                if let Some(id) = pair.and_then(|pair| pair.preshared(slot)) {
                    setup.preshared.insert(place(slot), id);
                }
                // Without a state machine nothing is proven.
                let carries = pair.map_or(self.settings.mode != Mode::Require, |pair| pair.carries(slot));
                if !carries {
                    setup.barred.insert(place(slot));
                }
            }
        }
    }

    /// Whether a rotation may rely on a peer's answer over a slot.
    pub(super) fn protects(&self, peer: &PeerId, slot: Slot) -> bool {
        let pair = self.machines.get(peer);
        pair.map_or(self.settings.mode != Mode::Require, |pair| pair.protected(slot, self.now()))
    }

    /// Whether a slot has no preshared key with a peer although none of the two has turned them off.
    pub(super) fn lacks_key(&self, peer: &PeerId, slot: Slot) -> bool {
        self.settings.mode != Mode::Off
            && self.machines.get(peer).is_some_and(|pair| {
                pair.willing() != Some(false) && pair.carries(slot) && pair.preshared(slot).is_none()
            })
    }

    /// The status of a peer.
    pub(super) fn status(&self, peer: &PeerId) -> Option<(PairStatus, PerSlot<PqSlotStatus>)> {
        let pair = self.machines.get(peer)?;
        let barred = Slot::ALL.into_iter().all(|slot| !pair.carries(slot));
        let status = PairStatus { enabled: pair.willing(), blocked: barred, stripped_seconds: None };
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

    fn handle(&mut self, peer: &PeerId, input: Input) {
        let now = self.now();
        let Some(pair) = self.machines.get_mut(peer) else {
            self.timers.set(peer, None);
            return;
        };
        let effects = pair.handle(now, &self.provider, input);
        self.timers.set(peer, pair.poll_timeout(now));
        for effect in effects {
            match effect {
                Effect::Send { over, message } => self.messages.push((peer.clone(), over, message)),
                Effect::Persist => drop(self.unwritten.insert(peer.clone())),
                Effect::Apply => self.turn = true,
                Effect::Note(note) => log_note(peer, &note),
            }
        }
    }

    /// Writes the state of all state machines that need it, at once.
    fn write(&mut self, keys: &mut Keys) {
        while !self.unwritten.is_empty() {
            let waiting = std::mem::take(&mut self.unwritten);
            let stored =
                waiting.iter().filter_map(|peer| Some((peer.clone(), self.machines.get(peer)?.to_store())));
            let written = keys.store_preshared(stored.collect());
            for peer in waiting {
                self.handle(&peer, if written { Input::Persisted } else { Input::PersistFailed });
            }
            if !written {
                // A state machine that needs another write waits for the next input.
                return;
            }
        }
    }
}

/// The state of each peer in the devices. A device with another private key than expected shows nothing.
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

/// The slot that carries pod traffic to each peer under a setup.
pub(super) fn carried(admission: &Admission, setup: &Setup) -> BTreeMap<PeerId, Option<Slot>> {
    let members = admission.world.peers.values();
    members.map(|member| (PeerId::new(member.uid.as_str()), setup.carrying_slot(member))).collect()
}

fn log_note(peer: &PeerId, note: &Note) {
    match note {
        Note::Agreed(slot, epoch, id) => {
            info!(
                event = "PresharedKeyAgreed", peer_uid = %peer, %slot, epoch, key = %id,
                "preshared key: agreed"
            );
        }
        Note::Proven(slot, epoch, id) => {
            info!(
                event = "PresharedKeyProven", peer_uid = %peer, %slot, epoch, key = %id,
                "preshared key: proven"
            );
        }
        Note::StaticKeyReplaced(slot, epoch) => {
            info!(
                event = "PresharedKeyEnded", peer_uid = %peer, %slot, epoch,
                "preshared key: dropped because a static key was replaced"
            );
        }
        Note::GivenUp(slot, epoch) => {
            warn!(
                event = "PresharedKeyGivenUp", peer_uid = %peer, %slot, epoch,
                "PresharedKeyGivenUp: no answer over either slot; the peer may have lost its keys"
            );
        }
        Note::Refused(slot, epoch, why) => {
            info!(
                event = "PresharedKeyRejected", peer_uid = %peer, %slot, epoch, reason = ?why,
                "preshared key: refused by the peer"
            );
        }
        Note::Differs(slot) => {
            warn!(
                event = "PresharedKeyMismatch", peer_uid = %peer, %slot,
                "preshared key: the peer has a different one"
            );
        }
        Note::ConfirmationFailed(slot, epoch) => {
            warn!(
                event = "PresharedKeyRefused", peer_uid = %peer, %slot, epoch,
                "PresharedKeyRefused: key confirmation failed; a message was modified in transit"
            );
        }
        Note::Failed(slot, error) => {
            warn!(
                event = "PresharedKeyExchangeFailed", peer_uid = %peer, %slot, %error,
                "preshared key: exchange failed"
            );
        }
        Note::NotStored(slot, epoch) => {
            warn!(
                event = "PresharedKeyNotStored", peer_uid = %peer, %slot, epoch,
                "preshared key: can't be written to disk; not used"
            );
        }
    }
}
