//! The state machine: its state, and how each input changes it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::event::{Cause, Effect, Input, Note, Now};
use super::journal::{Half, Journal, KeyRecord, MAX_GENERATION, Step};
use super::pair::{PeerId, Stance};
use super::peers::{PeerProgress, Peers};
use super::policy::RotationPolicy;
use crate::{PerSlot, PublicKey, Slot};

/// After how many timeouts a blocked rotation is tried again, and a rotation stops waiting for peers that do
/// not confirm that the previous key was restored.
pub(super) const MAX_TIMEOUTS: u32 = 10;

/// What the machine waits for before it can continue.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// New keys.
    Keys(KeyRequest),
    /// The journal on disk.
    Disk { next: Box<Journal>, after: Vec<Note>, destroy: Vec<(Slot, KeyRecord)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyRequest {
    Stage(Half),
    Both,
}

/// The rotation of one node's keys. See the diagram in the module's documentation.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub(super) policy: RotationPolicy,
    pub(super) own: PeerId,
    pub(super) journal: Journal,
    pub(super) pending: Option<Pending>,
    pub(super) applied: bool,
    /// Keys that are no longer in any file, but still in a device.
    pub(super) destroying: Vec<(Slot, KeyRecord)>,
    pub(super) connected: bool,
    /// When the own Node showed the current announcement.
    pub(super) published: Option<Duration>,
    /// When the current step stops waiting for peers that are silent, and how often that has happened.
    pub(super) step_deadline: Duration,
    pub(super) expired_deadlines: u32,
    pub(super) received: Option<Duration>,
    pub(super) peers: Peers,
    /// Random number that determines the time of the next rotation.
    pub(super) jitter_seed: u64,
    /// Unix time at elapsed zero.
    pub(super) epoch: u64,
    pub(super) requested: Option<Cause>,
    /// Unix time; keys generated before it are to be replaced.
    pub(super) renew_before: Option<u64>,
    pub(super) started_at: Option<Duration>,
    /// After a failed write: when to try again.
    pub(super) not_before: Duration,
    /// After a blocked rotation: when the next one may start by itself.
    pub(super) retry_at: Duration,
    pub(super) blocked: Option<(Slot, Vec<PeerId>)>,
}

impl Rotation {
    /// Continues from a journal that is on disk. `jitter_seed` is an unpredictable number. The effects bring
    /// the node in line with the journal; they are the same after a crash as before it.
    pub fn resume(
        policy: RotationPolicy,
        own: PeerId,
        journal: Journal,
        jitter_seed: u64,
        now: Now,
    ) -> (Self, Vec<Effect>) {
        let started_at = (!matches!(journal.step, Step::Steady)).then_some(now.elapsed);
        let machine = Self {
            policy,
            own,
            journal,
            pending: None,
            applied: false,
            destroying: Vec::new(),
            connected: false,
            published: None,
            step_deadline: Duration::MAX,
            expired_deadlines: 0,
            received: None,
            peers: Peers::default(),
            jitter_seed,
            epoch: now.unix.saturating_sub(now.elapsed.as_secs()),
            requested: None,
            renew_before: None,
            started_at,
            not_before: now.elapsed,
            retry_at: now.elapsed,
            blocked: None,
        };
        (machine, vec![Effect::Apply])
    }

    /// The journal as it is on disk.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What this node announces. Includes a step that is being written to disk, so that nothing is
    /// acknowledged to peers that would contradict it.
    pub fn stance(&self) -> Stance {
        match &self.pending {
            Some(Pending::Disk { next, .. }) => next.stance(&self.own),
            _ => self.journal.stance(&self.own),
        }
    }

    /// Each peer's progress in the current step; empty between rotations.
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

    /// The peers that keep a rotation from starting, because they drain the other slot.
    pub fn waits_for(&self) -> Vec<PeerId> {
        self.blockers(self.journal.standby())
    }

    /// Whether a rotation is requested or running.
    pub const fn busy(&self) -> bool {
        self.requested.is_some() || self.started_at.is_some()
    }

    /// When [`Input::Tick`] is due, on the caller's clock, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.pending.is_some() || !self.applied || self.published.is_none() {
            return None;
        }
        match self.journal.step {
            // Peers that block it will announce that they no longer do.
            Step::Steady | Step::Between if !self.waits_for().is_empty() => None,
            Step::Steady if self.requested.is_some() => Some(self.not_before),
            Step::Steady => self.due_at().map(|due| due.max(self.not_before).max(self.retry_at)),
            Step::Between => Some(self.not_before),
            Step::Draining { .. } if self.peers.all_settled() && !self.connected => None,
            Step::Draining { .. } if self.peers.all_settled() => {
                self.quiet_at().map(|at| at.max(self.not_before))
            }
            Step::Verifying { .. } | Step::Restoring if self.peers.all_settled() => Some(self.not_before),
            Step::Draining { .. } | Step::Verifying { .. } | Step::Restoring => {
                self.peers.next_ask().into_iter().chain([self.step_deadline]).min()
            }
        }
    }

    /// Processes an input and returns what to do.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Tick => {}
            Input::Rotate(cause) => {
                self.requested = Some(self.requested.map_or(cause, |requested| requested.more_urgent(cause)));
            }
            Input::RenewBefore(before) => self.renew_before = before,
            Input::Connected(connected) => self.connected = connected,
            Input::Generated(keys) => self.on_keys(now, &keys, &mut out),
            Input::Persisted => self.on_persisted(&mut out),
            Input::PersistFailed => self.on_persist_failed(now, &mut out),
            Input::Applied(generation) => {
                if generation == self.journal.generation && !self.applied {
                    self.applied = true;
                    out.push(Effect::Announce);
                    // Only now are they gone from the device too.
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
                    self.step_deadline = now.elapsed + self.policy.timeout();
                }
            }
            Input::ForeignGeneration(generation) => self.raise_generation(generation, &mut out),
            Input::Peers(peers) => self.peers.set(peers),
            Input::Stance(stance) => self.on_stance(stance),
            Input::Answer { peer, nonce, seen, tx, over, protected } => {
                self.peers.mark_alive(now.elapsed, &peer);
                // Not a higher one: that is what somebody else wrote, or was counted before a restart from 1.
                if seen == self.journal.generation && self.pending.is_none() {
                    self.on_answer(now, &peer, nonce, (tx, over, protected), &mut out);
                }
            }
            Input::PeerAlive(peer) => self.peers.mark_alive(now.elapsed, &peer),
            Input::SlotTraffic(slot) => {
                if self.journal.drain() == Some(slot) {
                    self.received = Some(now.elapsed);
                }
            }
        }
        self.advance(now, &mut out);
        out
    }

    /// Takes the step that is due.
    fn advance(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.pending.is_some() {
            return;
        }
        if self.requested == Some(Cause::Emergency) {
            self.generate(KeyRequest::Both, out);
            return;
        }
        if !self.applied {
            return;
        }
        match self.journal.step {
            Step::Steady => self.begin(now, out),
            Step::Between => {
                if self.may_begin(now) {
                    self.generate(KeyRequest::Stage(Half::Second), out);
                }
            }
            Step::Draining { half, staged } => self.drain(now, half, staged, out),
            Step::Verifying { half, former } => self.verify(now, half, former, out),
            Step::Restoring => self.restore(now, out),
        }
    }

    /// Whether the standby slot may be drained: the own Node shows the current announcement, and no peer is
    /// known to drain the other slot. A node that started earlier goes first.
    pub(super) fn may_begin(&self, now: Now) -> bool {
        self.published.is_some() && now.elapsed >= self.not_before && self.waits_for().is_empty()
    }

    fn blockers(&self, slot: Slot) -> Vec<PeerId> {
        let drains = |stance: &Stance| stance.drain == Some(slot.other());
        let all = self.peers.iter().filter(|(_, peer)| peer.stance.as_ref().is_some_and(drains));
        all.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn generate(&mut self, wanted: KeyRequest, out: &mut Vec<Effect>) {
        self.pending = Some(Pending::Keys(wanted));
        out.push(Effect::Generate(if wanted == KeyRequest::Both { 2 } else { 1 }));
    }

    fn on_keys(&mut self, now: Now, keys: &[PublicKey], out: &mut Vec<Effect>) {
        let Some(Pending::Keys(wanted)) = self.pending.clone() else { return };
        self.pending = None;
        let record = |key, generation| KeyRecord { key, generation, created: self.unix(now) };
        match (wanted, keys) {
            // Another node may have started while the key was generated.
            (KeyRequest::Stage(_), [key]) if !self.may_begin(now) => {
                out.push(Effect::Destroy(record(*key, self.journal.generation)));
            }
            (KeyRequest::Stage(half), [key]) => {
                let slot = self.journal.standby();
                let staged = record(*key, self.journal.generation + 1);
                let next = self.journal.next(|next| next.step = Step::Draining { half, staged });
                let mut notes = vec![Note::Staged(slot, *key)];
                if half == Half::First {
                    notes.insert(0, Note::Begun(self.requested.take().unwrap_or(Cause::Age)));
                    self.started_at = Some(now.elapsed);
                    self.blocked = None;
                }
                notes.push(Note::Draining(slot, self.journal.slots.get(slot).key));
                self.persist(next, notes, Vec::new(), out);
            }
            (KeyRequest::Both, [a, b]) => {
                let generation = self.journal.generation + 1;
                let next = self.journal.next(|next| {
                    next.slots = PerSlot { a: record(*a, generation), b: record(*b, generation) };
                    next.step = Step::Steady;
                    next.cold = true;
                });
                self.requested = None;
                self.started_at = Some(now.elapsed);
                let notes = vec![
                    Note::Begun(Cause::Emergency),
                    Note::Installed(Slot::A, *a),
                    Note::Installed(Slot::B, *b),
                    Note::Active(next.prefer, next.slots.get(next.prefer).key),
                ];
                let destroy = self.all_records();
                self.persist(next, notes, destroy, out);
            }
            // Not what was requested: requested again on the next input.
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

    /// The step is on disk: from here on it is done, even after a crash.
    fn on_persisted(&mut self, out: &mut Vec<Effect>) {
        let Some(Pending::Disk { next, after, destroy }) = self.pending.take() else { return };
        self.journal = *next;
        self.applied = false;
        self.published = None;
        self.step_deadline = Duration::MAX;
        self.expired_deadlines = 0;
        self.received = None;
        self.peers.begin_step();
        if matches!(self.journal.step, Step::Draining { .. }) {
            self.peers.begin_drain();
        }
        out.extend(after.into_iter().map(Effect::Note));
        out.push(Effect::Apply);
        self.destroying.extend(destroy);
    }

    /// The node matches a journal without a rotation.
    fn finish(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(started_at) = self.started_at.take() else { return };
        self.next_jitter_seed();
        if self.blocked.is_none() {
            out.push(Effect::Note(Note::Finished(now.elapsed.saturating_sub(started_at))));
        }
    }

    /// The journal could not be written: the previous state remains, and new keys are discarded.
    fn on_persist_failed(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(pending) = self.pending.take() else { return };
        if let Pending::Disk { next, after, .. } = pending {
            for note in after {
                if let Note::Begun(cause) = note {
                    self.requested =
                        Some(self.requested.map_or(cause, |requested| requested.more_urgent(cause)));
                }
            }
            let known: BTreeSet<PublicKey> = self.journal.keys().collect();
            for (_, record) in records(&next).into_iter().filter(|(_, record)| !known.contains(&record.key)) {
                out.push(Effect::Destroy(record));
            }
            if matches!(self.journal.step, Step::Steady) {
                self.started_at = None;
            }
        }
        self.not_before = now.elapsed + self.policy.timeout();
        self.step_deadline = self.step_deadline.max(now.elapsed + self.policy.timeout());
    }

    fn on_stance(&mut self, stance: Stance) {
        let own = self.stance();
        let id = stance.id.clone();
        if let Some(peer) = self.peers.get_mut(&id) {
            let yields = own.conflicts(&stance) && stance.goes_before(&own);
            let changed = peer.stance.as_ref() != Some(&stance);
            peer.stance = Some(stance);
            // This node is about to announce that it uses the slot that it asked the peer to leave.
            if yields && changed {
                self.peers.revoke(&id);
            }
        }
    }

    fn on_answer(
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
        if peer.is_current(nonce) {
            peer.tx = Some(tx);
            peer.mark_informed();
        }
        if !peer.is_current(nonce) || tx == drained || yields || peer.followed.is_some() {
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

    fn raise_generation(&mut self, seen: u64, out: &mut Vec<Effect>) {
        if self.pending.is_none() && seen >= self.journal.generation && seen < MAX_GENERATION {
            let next = self.journal.next(|next| {
                next.generation = seen + 1;
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

    /// When the older key reaches its age, on the caller's clock.
    pub fn due_at(&self) -> Option<Duration> {
        let created = self.oldest();
        let by_age = self
            .policy
            .due(self.jitter_seed)
            .map(|age| self.elapsed_at(created.saturating_add(age.as_secs())));
        by_age.into_iter().chain(self.renewal_at()).min()
    }

    /// When keys are to be replaced because an operator requested that older ones are.
    pub(super) fn renewal_at(&self) -> Option<Duration> {
        self.renew_before.filter(|before| self.oldest() < *before).map(|before| self.elapsed_at(before))
    }

    /// Unix time at which the older key was generated.
    fn oldest(&self) -> u64 {
        let PerSlot { a, b } = &self.journal.slots;
        a.created.min(b.created)
    }

    /// A Unix time on the caller's clock; zero if it is before that clock's origin.
    fn elapsed_at(&self, unix: u64) -> Duration {
        Duration::from_secs(unix.saturating_sub(self.epoch))
    }

    /// Unix time by the monotonic clock and the one reading of the wall clock at the start.
    fn unix(&self, now: Now) -> u64 {
        self.epoch + now.elapsed.as_secs()
    }

    fn age(&self, now: Now, created: u64) -> Duration {
        Duration::from_secs(self.unix(now).saturating_sub(created))
    }

    /// Draws the next number (`SplitMix64`: Steele, Lea and Flood, "Fast splittable pseudorandom number
    /// generators", 2014, figure 17). It spreads rotations over time; no secret depends on it.
    fn next_jitter_seed(&mut self) {
        self.jitter_seed = self.jitter_seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.jitter_seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.jitter_seed = mixed ^ (mixed >> 31);
    }
}

/// Every key in a journal, with its slot.
fn records(journal: &Journal) -> Vec<(Slot, KeyRecord)> {
    let spare = match &journal.step {
        Step::Draining { staged, .. } => Some(*staged),
        Step::Verifying { former, .. } => *former,
        Step::Steady | Step::Between | Step::Restoring => None,
    };
    let slots = journal.slots.iter().map(|(slot, record)| (slot, *record));
    slots.chain(spare.map(|record| (journal.standby(), record))).collect()
}
