//! The preshared keys with every peer: one state machine each, driven by the loop, and its effects on disk,
//! network and plan.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::pq::{
    Effect, Entry, Input, Message, MlKem768, Mode, Note, Pairing, PqSettings, StaticKeys, StoredPreshared,
};
use keyring::rotation::{PeerId, Stance, drained_between};
use keyring::{KeyError, PerSlot, PublicKey, Slot};
use plan::admission::{Admission, Member};
use plan::desired::Setup;
use plan::node::{NodeName, NodeUid};
use plan::publication;
use plan::timers::Timers;
use tokio::time::Instant;
use tracing::{info, warn};

use super::changes::Changes;
use super::keys::Keys;
use status::pq::{PairStatus, PqSlotStatus};

/// How long the keys with a node that is gone are kept: it may come back.
const GONE_TTL: Duration = Duration::from_mins(10);

/// The shortest interval between two ticks of the state machines.
const MIN_TICK_INTERVAL: Duration = Duration::from_millis(10);

/// A peer's state in the device of each slot.
pub(super) type Entries = PerSlot<Option<Entry>>;

/// The time between two scheduled renewals that this node begins. What nodes do at once for a new peer or a new static key
/// does not wait for it.
const RENEWAL_SPACING: Duration = Duration::from_secs(2);

/// The age at which keys are renewed: as configured, or longer, so that a node takes part in one renewal in two seconds at most
/// on average, two for each of its peers in an interval.
fn interval_for(configured: Duration, peers: usize) -> Duration {
    let least = RENEWAL_SPACING * 2 * u32::try_from(peers).unwrap_or(u32::MAX / 8);
    if configured.is_zero() { configured } else { configured.max(least) }
}

/// When this node begins scheduled renewals: one after the other.
#[derive(Debug, Default)]
struct Pace {
    free_at: Duration,
}

impl Pace {
    /// The time for another one.
    fn reserve(&mut self, now: Duration) -> Duration {
        let at = self.free_at.max(now);
        self.free_at = at + RENEWAL_SPACING;
        at
    }
}

/// The state machines.
#[derive(Debug)]
pub(super) struct Pairs {
    settings: PqSettings,
    /// The age at which keys are renewed as configured; that of `settings` grows with the number of peers.
    configured_interval: Duration,
    pace: Pace,
    provider: MlKem768,
    started: Instant,
    machines: BTreeMap<PeerId, Pairing>,
    /// When each has its next tick. What one decides differs by time alone only while its hellos are not answered, and then it
    /// sends the next one within seconds.
    timers: Timers<PeerId>,
    /// What the devices had of each peer, if that was the last that its state machine was told.
    shown: BTreeMap<PeerId, Entries>,
    /// Since when nodes with which there are keys are gone.
    gone: BTreeMap<PeerId, Duration>,
    messages: Vec<(PeerId, Slot, Message)>,
    /// State machines with a state to write to disk.
    unwritten: BTreeSet<PeerId>,
    /// Messages that this node refused, by reason.
    refused: BTreeMap<&'static str, u64>,
    turn: bool,
    ticked: Option<Instant>,
}

impl Pairs {
    /// Starts without peers.
    pub(super) fn new(settings: PqSettings) -> Self {
        Self {
            settings,
            configured_interval: settings.interval,
            pace: Pace::default(),
            provider: MlKem768,
            started: Instant::now(),
            machines: BTreeMap::new(),
            timers: Timers::default(),
            shown: BTreeMap::new(),
            gone: BTreeMap::new(),
            messages: Vec::new(),
            unwritten: BTreeSet::new(),
            refused: BTreeMap::new(),
            turn: false,
            ticked: None,
        }
    }

    /// Sets the peers, with their static keys and the slots being drained.
    pub(super) fn set_peers(&mut self, admission: &Admission, own: Option<Stance>, keys: &mut Keys) {
        let Some(own) = own else { return };
        let members: BTreeMap<PeerId, &Member> =
            admission.world.peers.values().map(|member| (member.uid.peer_id(), member)).collect();
        let is_there = |known: &PeerId| members.contains_key(known);
        let public = keys.public();
        for (peer, member) in &members {
            self.move_to_new_uid(&own.id, peer, &statics(&public, member), is_there, keys);
        }
        self.machines.retain(|peer, _| is_there(peer));
        self.timers.retain(is_there);
        self.shown.retain(|peer, _| is_there(peer));
        let gone: Vec<PeerId> =
            keys.ring().preshared_peers().filter(|peer| !is_there(peer)).cloned().collect();
        self.gone.retain(|peer, _| gone.contains(peer));
        self.pace_renewals(members.len());
        self.set_members(&own, &members, gone, keys);
    }

    /// The same for the members that are others than at the last time, when this node's keys and stance were as they are.
    pub(super) fn set_changed(&mut self, changes: &Changes<'_>, own: Option<Stance>, keys: &mut Keys) {
        let Some(own) = own else { return };
        let members: BTreeMap<PeerId, &Member> =
            changes.members.iter().map(|(_, member)| (member.uid.peer_id(), *member)).collect();
        // Before the changes there was one for each member.
        let there: BTreeSet<PeerId> = if members.keys().all(|peer| self.machines.contains_key(peer)) {
            BTreeSet::new()
        } else {
            self.machines.keys().filter(|peer| !changes.gone.contains(peer)).cloned().collect()
        };
        let is_there = |known: &PeerId| members.contains_key(known) || there.contains(known);
        let public = keys.public();
        for (peer, member) in &members {
            self.move_to_new_uid(&own.id, peer, &statics(&public, member), is_there, keys);
            self.gone.remove(peer);
        }
        for peer in &changes.gone {
            self.machines.remove(peer);
            self.timers.set(peer, None);
            self.shown.remove(peer);
        }
        let has_keys = |peer: &&PeerId| keys.ring().has_preshared(peer);
        let gone = changes.gone.iter().chain(self.gone.keys()).filter(has_keys).cloned().collect();
        self.gone.retain(|peer, _| keys.ring().has_preshared(peer));
        let new = members.keys().filter(|peer| !self.machines.contains_key(*peer)).count();
        self.pace_renewals(self.machines.len() + new);
        self.set_members(&own, &members, gone, keys);
    }

    /// Tells the state machines what is known of these members, after those of nodes that are `gone` were dropped.
    fn set_members(
        &mut self,
        own: &Stance,
        members: &BTreeMap<PeerId, &Member>,
        gone: Vec<PeerId>,
        keys: &mut Keys,
    ) {
        self.delete_keys_of_gone_nodes(gone, keys);
        keys.erase_superseded();
        let public = keys.public();
        for (peer, member) in members {
            self.start(&own.id, peer, keys);
            self.handle(peer, Input::Ids { own: own.id.clone(), peer: peer.clone() });
            self.handle(peer, Input::StaticKeys(statics(&public, member)));
            self.handle(peer, Input::Drained(drained_between(own, &publication::stance(member))));
        }
        self.write(keys);
    }

    /// The recreated Node of a running node has another UID and the same static keys: the preshared keys stay
    /// in use, or every packet would be lost until both ends had agreed on new ones. Between the two Nodes there may have
    /// been none for a while.
    fn move_to_new_uid(
        &mut self,
        own: &PeerId,
        peer: &PeerId,
        statics: &PerSlot<Option<StaticKeys>>,
        is_there: impl Fn(&PeerId) -> bool,
        keys: &mut Keys,
    ) {
        if self.machines.contains_key(peer) {
            return;
        }
        let left = self.machines.iter().find(|(known, pair)| !is_there(known) && pair.is_bound_to(statics));
        let kept = || {
            let mut gone = keys.ring().preshared_peers().filter(|known| !is_there(known));
            gone.find(|known| {
                keys.ring().preshared_of(known).iter().any(|(slot, kept)| is_bound(kept, statics, slot))
            })
        };
        let Some(former) = left.map(|(known, _)| known).or_else(kept).cloned() else { return };
        let moved = self.machines.remove(&former);
        let Some(pair) = moved.or_else(|| self.resume(own, peer, keys.ring().preshared_of(&former))) else {
            return;
        };
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

    /// Each pair renews two keys in an interval.
    fn pace_renewals(&mut self, peers: usize) {
        let interval = interval_for(self.configured_interval, peers);
        if interval != self.settings.interval {
            self.settings.interval = interval;
            self.machines.values_mut().for_each(|pair| pair.set_interval(interval));
        }
    }

    /// The age at which keys are renewed, where that is more than configured because of the number of peers.
    pub(super) fn stretched_interval(&self) -> Option<Duration> {
        Some(self.settings.interval).filter(|interval| *interval != self.configured_interval)
    }

    fn start(&mut self, own: &PeerId, peer: &PeerId, keys: &Keys) {
        if self.machines.contains_key(peer) {
            return;
        }
        if let Some(pairing) = self.resume(own, peer, keys.ring().preshared_of(peer)) {
            self.machines.insert(peer.clone(), pairing);
        }
    }

    /// The state machine of a peer with the keys that are stored; none without randomness.
    fn resume(&self, own: &PeerId, peer: &PeerId, stored: PerSlot<StoredPreshared>) -> Option<Pairing> {
        match getrandom::u64().map_err(KeyError::Random) {
            Ok(seed) => {
                Some(Pairing::resume(self.settings, own.clone(), peer.clone(), stored, seed, self.now()))
            }
            Err(error) => {
                warn!(event = "RandomnessUnavailable", %error, "no randomness; retrying on the next turn");
                None
            }
        }
    }

    fn delete_keys_of_gone_nodes(&mut self, gone: Vec<PeerId>, keys: &mut Keys) {
        let now = self.now();
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

    /// Passes on the state of each peer in the devices, unless that is as it was and nothing else has been passed on since.
    pub(super) fn observe(&mut self, entries: impl Iterator<Item = (PeerId, Entries)>, keys: &mut Keys) {
        for (peer, entries) in entries {
            if self.shown.get(&peer) != Some(&entries) {
                self.handle(&peer, Input::Engine(entries));
                self.shown.insert(peer, entries);
            }
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
            let pair = self.machines.get(&member.uid.peer_id());
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
        self.shown.remove(peer);
        let Some(pair) = self.machines.get_mut(peer) else {
            self.timers.set(peer, None);
            return;
        };
        if pair.renewal_is_due(now) {
            pair.put_off_renewal(self.pace.reserve(now));
        }
        let effects = pair.handle(now, &self.provider, input);
        self.timers.set(peer, pair.poll_timeout(now));
        for effect in effects {
            match effect {
                Effect::Send { over, message } => {
                    if let Message::Refuse { why, .. } = &message {
                        *self.refused.entry(why.as_str()).or_default() += 1;
                    }
                    self.messages.push((peer.clone(), over, message));
                }
                Effect::Persist => drop(self.unwritten.insert(peer.clone())),
                Effect::Apply => self.turn = true,
                Effect::Note(note) => log_note(peer, &note),
            }
        }
    }

    /// Peers' messages that this node refused, by reason.
    pub(super) fn refused(&self) -> BTreeMap<String, u64> {
        self.refused.iter().map(|(why, count)| ((*why).to_owned(), *count)).collect()
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

#[cfg(test)]
impl Pairs {
    /// The peers, with their static keys and whether a slot is drained, and those that are gone.
    pub(super) fn members(&self) -> (Vec<String>, Vec<&PeerId>) {
        let one = |(peer, pair): (&PeerId, &Pairing)| {
            let text = format!("{pair:?}");
            let keys = text.split(" statics: ").skip(1).map(|slot| {
                let key = slot.split("peer: PublicKey(").nth(1)?;
                key.split(')').next().map(ToOwned::to_owned)
            });
            let keys: Vec<Option<String>> = keys.collect();
            let drained = text.split(" drained: ").nth(1).and_then(|rest| rest.split(',').next());
            format!("{peer} {keys:?} {drained:?}")
        };
        (self.machines.iter().map(one).collect(), self.gone.keys().collect())
    }
}

/// The static keys with a member by slot, of which these are this node's.
fn statics(own: &PerSlot<PublicKey>, member: &Member) -> PerSlot<Option<StaticKeys>> {
    let of = |slot| StaticKeys { own: *own.get(slot), peer: member.state.slots.get(slot).key };
    PerSlot::from_fn(|slot| Some(of(slot)))
}

/// Whether a stored key is bound to these static keys.
fn is_bound(kept: &StoredPreshared, statics: &PerSlot<Option<StaticKeys>>, slot: Slot) -> bool {
    kept.key.as_ref().is_some_and(|(_, bound)| *statics.get(slot) == Some(*bound))
}

/// The state of each peer in the devices. A device with another private key than expected shows nothing.
pub(super) fn entries(
    admission: &Admission,
    own: &PerSlot<PublicKey>,
    shown: impl Fn(Slot, &PublicKey, &PublicKey) -> Option<Entry>,
) -> impl Iterator<Item = (PeerId, Entries)> {
    admission.world.peers.values().map(move |member| {
        let entry = |slot| shown(slot, own.get(slot), &member.state.slots.get(slot).key);
        (member.uid.peer_id(), PerSlot::from_fn(entry))
    })
}

/// The slot that carries pod traffic to each of these peers under a setup.
pub(super) fn carried(peers: &BTreeMap<NodeName, Member>, setup: &Setup) -> BTreeMap<PeerId, Option<Slot>> {
    peers.values().map(|member| (member.uid.peer_id(), setup.carrying_slot(member))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_begin_one_after_the_other_and_the_interval_grows_with_the_mesh() {
        let hour = Duration::from_hours(1);
        for (peers, expected) in [
            (0, hour),
            (900, hour),
            (1000, Duration::from_secs(4000)),
            (5000, 20_000 * Duration::from_secs(1)),
        ] {
            assert_eq!(interval_for(hour, peers), expected, "{peers}");
        }
        assert_eq!(interval_for(Duration::ZERO, 5000), Duration::ZERO, "turned off");
        let mut pace = Pace::default();
        let now = Duration::from_secs(100);
        let begun: Vec<Duration> = (0..1000).map(|_| pace.reserve(now)).collect();
        assert_eq!(begun[0], now, "the first one does not wait");
        assert!(begun.windows(2).all(|pair| pair[1] == pair[0] + RENEWAL_SPACING));
        assert_eq!(pace.reserve(now + hour), now + hour);
    }
}
