//! The machine's state, and how each input changes it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::event::{Cause, Effect, Input, Note, Now};
use super::journal::{Half, Journal, KeyRecord, Step};
use super::pair::{PeerId, Stance};
use super::peers::{PeerProgress, Peers};
use super::policy::Policy;
use crate::{PerSlot, PublicKey, Slot};

/// How many timeouts pass before a rotation that was blocked is tried again, and before peers that never say that they
/// know of the former key's return are left to find out for themselves.
pub(super) const PATIENCE: u32 = 10;

/// What the machine waits for before it can do anything else.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// New keys.
    Keys(Wanted),
    /// The journal on disk.
    Disk { next: Box<Journal>, after: Vec<Note>, destroy: Vec<(Slot, KeyRecord)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Stage(Half),
    Both,
}

/// The rotation of one node's keys. See the module's picture.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub(super) policy: Policy,
    pub(super) own: PeerId,
    pub(super) journal: Journal,
    pub(super) pending: Option<Pending>,
    pub(super) applied: bool,
    /// Keys that are in no file any more, but still in a device.
    pub(super) destroying: Vec<(Slot, KeyRecord)>,
    pub(super) connected: bool,
    /// When our Node showed the present announcement.
    pub(super) published: Option<Duration>,
    /// When the present step may complain about a peer, and how often it did.
    pub(super) complain_at: Duration,
    pub(super) complaints: u32,
    pub(super) received: Option<Duration>,
    pub(super) peers: Peers,
    /// Number drawn by chance, for the time of the next rotation.
    pub(super) chance: u64,
    /// Unix time at elapsed zero.
    pub(super) epoch: u64,
    pub(super) wish: Option<Cause>,
    /// Unix time: older keys are wanted replaced.
    pub(super) renew_before: Option<u64>,
    pub(super) begun: Option<Duration>,
    /// After a write that failed: when to try again.
    pub(super) not_before: Duration,
    /// After a rotation that was blocked: when the next one may begin by itself.
    pub(super) again_at: Duration,
    pub(super) blocked: Option<(Slot, Vec<PeerId>)>,
}

impl Rotation {
    /// Goes on from a journal that is on disk. `chance` is a number that nobody can foretell. The effects say what
    /// the journal asks for: they are the same after a crash as before it.
    pub fn resume(
        policy: Policy,
        own: PeerId,
        journal: Journal,
        chance: u64,
        now: Now,
    ) -> (Self, Vec<Effect>) {
        let begun = (!matches!(journal.step, Step::Steady)).then_some(now.elapsed);
        let machine = Self {
            policy,
            own,
            journal,
            pending: None,
            applied: false,
            destroying: Vec::new(),
            connected: false,
            published: None,
            complain_at: Duration::MAX,
            complaints: 0,
            received: None,
            peers: Peers::default(),
            chance,
            epoch: now.unix.saturating_sub(now.elapsed.as_secs()),
            wish: None,
            renew_before: None,
            begun,
            not_before: now.elapsed,
            again_at: now.elapsed,
            blocked: None,
        };
        (machine, vec![Effect::Apply])
    }

    /// The journal as it is on disk.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What this node asks others to heed. Includes a step that is on its way to the disk, so that nothing is
    /// acknowledged to others that it would contradict.
    pub fn stance(&self) -> Stance {
        match &self.pending {
            Some(Pending::Disk { next, .. }) => next.stance(&self.own),
            _ => self.journal.stance(&self.own),
        }
    }

    /// How far each peer is in the present step; empty between rotations.
    pub fn progress(&self) -> impl Iterator<Item = (&PeerId, PeerProgress)> {
        let running = self.journal.drain().is_some();
        self.peers.iter().filter(move |_| running).map(|(id, peer)| (id, peer.progress()))
    }

    /// The peers that stopped the last rotation, and on which slot.
    pub const fn blocked(&self) -> Option<&(Slot, Vec<PeerId>)> {
        self.blocked.as_ref()
    }

    /// Age of the older key.
    pub fn oldest_key(&self, now: Now) -> Duration {
        self.age(now, self.oldest())
    }

    /// Why a rotation would not begin at this moment: peers that drain the other slot.
    pub fn waits_for(&self) -> Vec<PeerId> {
        self.in_the_way(self.journal.standby())
    }

    /// Whether a rotation is wanted or on its way.
    pub const fn busy(&self) -> bool {
        self.wish.is_some() || self.begun.is_some()
    }

    /// When [`Input::Tick`] is due, on the caller's clock, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.pending.is_some() || !self.applied || self.published.is_none() {
            return None;
        }
        match self.journal.step {
            // Whoever is in the way will announce when it is not.
            Step::Steady | Step::Between if !self.waits_for().is_empty() => None,
            Step::Steady if self.wish.is_some() => Some(self.not_before),
            Step::Steady => self.due_at().map(|due| due.max(self.not_before).max(self.again_at)),
            Step::Between => Some(self.not_before),
            Step::Draining { .. } if self.peers.all_settled() && !self.connected => None,
            Step::Draining { .. } if self.peers.all_settled() => {
                self.quiet_at().map(|at| at.max(self.not_before))
            }
            Step::Verifying { .. } | Step::Restoring if self.peers.all_settled() => Some(self.not_before),
            Step::Draining { .. } | Step::Verifying { .. } | Step::Restoring => {
                self.peers.next_ask().into_iter().chain([self.complain_at]).min()
            }
        }
    }

    /// Takes an input and says what to do about it.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Tick => {}
            Input::Rotate(cause) => {
                self.wish = Some(self.wish.map_or(cause, |wish| wish.graver(cause)));
            }
            Input::RenewBefore(before) => self.renew_before = before,
            Input::Connected(connected) => self.connected = connected,
            Input::Generated(keys) => self.take_keys(now, &keys, &mut out),
            Input::Persisted => self.take_disk(&mut out),
            Input::PersistFailed => self.give_up_pending(now, &mut out),
            Input::Applied(generation) => {
                if generation == self.journal.generation && !self.applied {
                    self.applied = true;
                    out.push(Effect::Announce);
                    // Only now has the device let go of them too.
                    for (slot, record) in std::mem::take(&mut self.destroying) {
                        out.push(Effect::Destroy(record));
                        let age = self.age(now, record.created);
                        out.push(Effect::Note(Note::Destroyed(slot, record.key, age)));
                    }
                    if self.journal.step == Step::Steady {
                        self.finish(now, &mut out);
                    }
                }
            }
            Input::Published(generation) => {
                if generation == self.journal.generation && self.applied && self.published.is_none() {
                    self.published = Some(now.elapsed);
                    self.complain_at = now.elapsed + self.policy.timeout();
                }
            }
            Input::Foreign(generation) => self.outgrow(generation, &mut out),
            Input::Peers(peers) => self.peers.set(peers),
            Input::Stance(stance) => self.take_stance(stance),
            Input::Answer { peer, nonce, seen, tx, over, protected } => {
                self.peers.hear(now.elapsed, &peer);
                if seen >= self.journal.generation && self.pending.is_none() {
                    self.take_answer(now, &peer, nonce, (tx, over, protected), &mut out);
                }
            }
            Input::Heard(peer) => self.peers.hear(now.elapsed, &peer),
            Input::Received(slot) => {
                if self.journal.drain() == Some(slot) {
                    self.received = Some(now.elapsed);
                }
            }
        }
        self.advance(now, &mut out);
        out
    }

    /// Takes whatever step is due.
    fn advance(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.pending.is_some() {
            return;
        }
        if self.wish == Some(Cause::Emergency) {
            self.generate(Wanted::Both, out);
            return;
        }
        if !self.applied {
            return;
        }
        match self.journal.step {
            Step::Steady => self.begin(now, out),
            Step::Between => {
                if self.may_begin(now) {
                    self.generate(Wanted::Stage(Half::Second), out);
                }
            }
            Step::Draining { half, staged } => self.drain(now, half, staged, out),
            Step::Verifying { half, former } => self.verify(now, half, former, out),
            Step::Restoring => self.restore(now, out),
        }
    }

    /// Whether the standby slot can be drained: our Node shows what stands, and nobody whom we know of drains the
    /// other slot. Whoever began before us goes first.
    pub(super) fn may_begin(&self, now: Now) -> bool {
        self.published.is_some() && now.elapsed >= self.not_before && self.waits_for().is_empty()
    }

    fn in_the_way(&self, slot: Slot) -> Vec<PeerId> {
        let drains = |stance: &Stance| stance.drain == Some(slot.other());
        let all = self.peers.iter().filter(|(_, peer)| peer.stance.as_ref().is_some_and(drains));
        all.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn generate(&mut self, wanted: Wanted, out: &mut Vec<Effect>) {
        self.pending = Some(Pending::Keys(wanted));
        out.push(Effect::Generate(if wanted == Wanted::Both { 2 } else { 1 }));
    }

    fn take_keys(&mut self, now: Now, keys: &[PublicKey], out: &mut Vec<Effect>) {
        let Some(Pending::Keys(wanted)) = self.pending.clone() else { return };
        self.pending = None;
        let record = |key, generation| KeyRecord { key, generation, created: self.unix(now) };
        match (wanted, keys) {
            // Another node may have begun while the key was made.
            (Wanted::Stage(_), [key]) if !self.may_begin(now) => {
                out.push(Effect::Destroy(record(*key, self.journal.generation)));
            }
            (Wanted::Stage(half), [key]) => {
                let slot = self.journal.standby();
                let staged = record(*key, self.journal.generation + 1);
                let next = self.journal.next(|next| next.step = Step::Draining { half, staged });
                let mut notes = vec![Note::Staged(slot, *key)];
                if half == Half::First {
                    notes.insert(0, Note::Begun(self.wish.take().unwrap_or(Cause::Age)));
                    self.begun = Some(now.elapsed);
                    self.blocked = None;
                }
                notes.push(Note::Draining(slot, self.journal.slots.get(slot).key));
                self.persist(next, notes, Vec::new(), out);
            }
            (Wanted::Both, [a, b]) => {
                let generation = self.journal.generation + 1;
                let next = self.journal.next(|next| {
                    next.slots = PerSlot { a: record(*a, generation), b: record(*b, generation) };
                    next.step = Step::Steady;
                    next.cold = true;
                });
                self.wish = None;
                self.begun = Some(now.elapsed);
                let notes = vec![
                    Note::Begun(Cause::Emergency),
                    Note::Installed(Slot::A, *a),
                    Note::Installed(Slot::B, *b),
                    Note::Active(next.prefer, next.slots.get(next.prefer).key),
                ];
                let destroy = self.all_records();
                self.persist(next, notes, destroy, out);
            }
            // Not what was asked for: asked again at the next turn.
            _ => {}
        }
    }

    pub(super) fn persist(
        &mut self,
        next: Journal,
        after: Vec<Note>,
        destroy: Vec<(Slot, KeyRecord)>,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::Persist(next.clone()));
        self.pending = Some(Pending::Disk { next: Box::new(next), after, destroy });
    }

    /// The step is on disk: from here on it is done, whatever happens.
    fn take_disk(&mut self, out: &mut Vec<Effect>) {
        let Some(Pending::Disk { next, after, destroy }) = self.pending.take() else { return };
        self.journal = *next;
        self.applied = false;
        self.published = None;
        self.complain_at = Duration::MAX;
        self.complaints = 0;
        self.received = None;
        self.peers.begin_step();
        if matches!(self.journal.step, Step::Draining { .. }) {
            self.peers.begin_drain();
        }
        out.extend(after.into_iter().map(Effect::Note));
        out.push(Effect::Apply);
        self.destroying.extend(destroy);
    }

    /// The node is as a journal without a rotation says.
    fn finish(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(begun) = self.begun.take() else { return };
        self.draw();
        if self.blocked.is_none() {
            out.push(Effect::Note(Note::Finished(now.elapsed.saturating_sub(begun))));
        }
    }

    /// The disk refused, or it can't be written now: what stood before stands, and a new key is not kept.
    fn give_up_pending(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(pending) = self.pending.take() else { return };
        if let Pending::Disk { next, after, .. } = pending {
            for note in after {
                if let Note::Begun(cause) = note {
                    self.wish = Some(self.wish.map_or(cause, |wish| wish.graver(cause)));
                }
            }
            let known: BTreeSet<PublicKey> = self.journal.keys().collect();
            for (_, record) in records(&next).into_iter().filter(|(_, record)| !known.contains(&record.key)) {
                out.push(Effect::Destroy(record));
            }
            if matches!(self.journal.step, Step::Steady) {
                self.begun = None;
            }
        }
        self.not_before = now.elapsed + self.policy.timeout();
        self.complain_at = self.complain_at.max(now.elapsed + self.policy.timeout());
    }

    fn take_stance(&mut self, stance: Stance) {
        let own = self.stance();
        let id = stance.id.clone();
        if let Some(peer) = self.peers.get_mut(&id) {
            let yields = own.conflicts(&stance) && stance.goes_before(&own);
            let changed = peer.stance.as_ref() != Some(&stance);
            peer.stance = Some(stance);
            // We are about to tell it that we use the slot that we wanted it to leave.
            if yields && changed {
                self.peers.revoke(&id);
            }
        }
    }

    fn take_answer(
        &mut self,
        now: Now,
        id: &PeerId,
        nonce: u64,
        (tx, over, protected): (Slot, Slot, bool),
        out: &mut Vec<Effect>,
    ) {
        let Some(drained) = self.journal.drain() else { return };
        let own = self.stance();
        let key = self.journal.slots.get(drained).key;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let yields = peer.stance.as_ref().is_some_and(|peer| own.conflicts(peer) && peer.goes_before(&own));
        if peer.counts(nonce) {
            peer.tx = Some(tx);
            peer.learns();
        }
        if !peer.counts(nonce) || tx == drained || yields || peer.followed.is_some() {
            return;
        }
        let verifying = matches!(self.journal.step, Step::Verifying { .. });
        if verifying && (over != drained || !protected) {
            return;
        }
        peer.followed = Some(now.elapsed);
        peer.passed_over = None;
        out.push(Effect::Note(if verifying {
            Note::Verified(id.clone(), drained, key)
        } else {
            Note::Acknowledged(id.clone(), drained)
        }));
    }

    fn outgrow(&mut self, seen: u64, out: &mut Vec<Effect>) {
        if self.pending.is_none() && seen >= self.journal.generation {
            let next = self.journal.next(|next| {
                next.generation = seen.saturating_add(1);
                next.cold = self.journal.cold;
            });
            let generation = next.generation;
            self.persist(next, vec![Note::Outgrown(generation)], Vec::new(), out);
        }
    }

    fn all_records(&self) -> Vec<(Slot, KeyRecord)> {
        records(&self.journal)
    }

    pub(super) fn overdue(&self, now: Now) -> bool {
        let created = self.all_records().into_iter().map(|(_, record)| record.created).min();
        self.age(now, created.unwrap_or_default()) > self.policy.max_age()
    }

    /// When the older key will have reached its age, on the caller's clock.
    pub fn due_at(&self) -> Option<Duration> {
        let created = self.oldest();
        let by_age =
            self.policy.due(self.chance).map(|age| self.elapsed_at(created.saturating_add(age.as_secs())));
        by_age.into_iter().chain(self.renewal_at()).min()
    }

    /// When keys are to be replaced because somebody wants all older ones gone.
    pub(super) fn renewal_at(&self) -> Option<Duration> {
        self.renew_before.filter(|before| self.oldest() < *before).map(|before| self.elapsed_at(before))
    }

    /// Unix time at which the older key was made.
    fn oldest(&self) -> u64 {
        let PerSlot { a, b } = &self.journal.slots;
        a.created.min(b.created)
    }

    /// A Unix time on the caller's clock; zero if it was before that began.
    fn elapsed_at(&self, unix: u64) -> Duration {
        Duration::from_secs(unix.saturating_sub(self.epoch))
    }

    /// By the clock that never goes back, from the one reading of the other clock at the start.
    fn unix(&self, now: Now) -> u64 {
        self.epoch + now.elapsed.as_secs()
    }

    fn age(&self, now: Now, created: u64) -> Duration {
        Duration::from_secs(self.unix(now).saturating_sub(created))
    }

    /// Draws the next number (the generator of Steele, Lea and Flood, "Fast splittable pseudorandom number
    /// generators", 2014, figure 17): it spreads rotations, no secret depends on it.
    fn draw(&mut self) {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.chance = mixed ^ (mixed >> 31);
    }
}

/// Every key that a journal speaks of, with its slot.
fn records(journal: &Journal) -> Vec<(Slot, KeyRecord)> {
    let spare = match &journal.step {
        Step::Draining { staged, .. } => Some(*staged),
        Step::Verifying { former, .. } => *former,
        Step::Steady | Step::Between | Step::Restoring => None,
    };
    let slots = journal.slots.iter().map(|(slot, record)| (slot, *record));
    slots.chain(spare.map(|record| (journal.standby(), record))).collect()
}
