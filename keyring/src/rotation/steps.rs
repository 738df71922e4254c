//! The steps of a rotation: what each waits for, and what follows on success or timeout.

use std::time::Duration;

use super::event::{Ask, Cause, Effect, Note, Now};
use super::journal::{Half, KeyRecord, Step};
use super::machine::{KeyRequest, MAX_TIMEOUTS, Rotation};
use super::pair::PeerId;
use super::peers::PeerProgress;
use crate::Slot;

impl Rotation {
    pub(super) fn begin(&mut self, now: Now, out: &mut Vec<Effect>) {
        let past = |due: Option<Duration>| due.is_some_and(|due| due.max(self.retry_at) <= now.elapsed);
        let cause = if past(self.renewal_at()) { Cause::Request } else { Cause::Age };
        if let Some(cause) = self.requested.or_else(|| past(self.due_at()).then_some(cause))
            && self.may_begin(now)
        {
            self.requested = Some(cause);
            self.generate(KeyRequest::Stage(Half::First), out);
        }
    }

    pub(super) fn drain(&mut self, now: Now, half: Half, staged: KeyRecord, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        self.ask(now, slot.other(), None, out);
        if self.published.is_some() && self.peers.all_settled() {
            // Once the key is replaced, peers must learn the new one: not while nothing can be announced.
            if self.connected
                && now.elapsed >= self.not_before
                && self.quiet_at().is_some_and(|at| at <= now.elapsed)
            {
                self.install(half, staged, out);
            }
        } else if self.step_deadline <= now.elapsed {
            let waiting = self.on_step_deadline(now, out);
            if half == Half::First && self.expired_deadlines > 1 && !waiting.is_empty() {
                self.withdraw(now, staged, waiting, out);
            }
        }
    }

    /// When the drained slot has been idle for long enough. No peer sends on it any more, but packets may
    /// still be in flight. Keepalives of others must not delay this for ever, so there is a limit.
    pub(super) fn quiet_at(&self) -> Option<Duration> {
        let published = self.published?;
        let followed = self.peers.last_followed().unwrap_or(published).max(published);
        let drain = self.policy.drain();
        let last = self.received.map_or(followed, |received| received.max(followed));
        Some((last + drain).min(followed + drain * 3))
    }

    fn install(&mut self, half: Half, staged: KeyRecord, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        let former = *self.journal.slots.get(slot);
        let next = self.journal.next(|next| {
            let record = KeyRecord { generation: next.generation, ..staged };
            *next.slots.get_mut(slot) = record;
            let former = (half == Half::First).then_some(former);
            next.step = Step::Verifying { half, former };
        });
        let destroy = if half == Half::Second { vec![(slot, former)] } else { Vec::new() };
        self.persist(next, vec![Note::Installed(slot, staged.key)], destroy, out);
    }

    pub(super) fn verify(&mut self, now: Now, half: Half, former: Option<KeyRecord>, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        self.ask(now, slot.other(), Some(slot), out);
        if self.published.is_none() || now.elapsed < self.not_before {
            return;
        }
        if self.peers.all_settled() {
            self.complete_half(half, former, out);
        } else if self.step_deadline <= now.elapsed {
            let waiting = self.on_step_deadline(now, out);
            if self.peers.all_settled() {
                self.complete_half(half, former, out);
            } else if let Some(former) = former
                && !self.sent_on_drained(&waiting)
            {
                self.roll_back(now, former, waiting, out);
            }
        }
    }

    /// Whether one of these peers still sends on the slot. That can happen: two nodes that both considered
    /// the other one dead may have replaced a key each, and then the one that goes first decides. The peer
    /// would lose what it sends if the key was removed now, and it answers once it is done.
    fn sent_on_drained(&self, waiting: &[PeerId]) -> bool {
        let drained = self.journal.drain();
        self.peers.iter().any(|(id, peer)| waiting.contains(id) && peer.tx.is_some() && peer.tx == drained)
    }

    /// Every peer has answered over the new key.
    fn complete_half(&mut self, half: Half, former: Option<KeyRecord>, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        let key = self.journal.slots.get(slot).key;
        match half {
            Half::First => {
                let next = self.journal.next(|next| {
                    next.prefer = slot;
                    next.step = Step::Between;
                });
                let destroy = former.map(|former| (slot, former)).into_iter().collect();
                self.persist(next, vec![Note::Active(slot, key)], destroy, out);
            }
            Half::Second => {
                let next = self.journal.next(|next| next.step = Step::Steady);
                self.persist(next, Vec::new(), Vec::new(), out);
            }
        }
    }

    /// Peers that are alive do not answer over the new key: the previous one is restored in its slot.
    fn roll_back(&mut self, now: Now, former: KeyRecord, peers: Vec<PeerId>, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        let failed = *self.journal.slots.get(slot);
        let next = self.journal.next(|next| {
            *next.slots.get_mut(slot) = former;
            next.step = Step::Restoring;
        });
        self.schedule_retry(now, slot, peers.clone());
        self.persist(next, vec![Note::RolledBack(slot, failed.key, peers)], vec![(slot, failed)], out);
    }

    /// The slot may be used again once every peer knows that it has its previous key. It need not work: that
    /// may be why the new key failed.
    pub(super) fn restore(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.ask(now, self.journal.prefer, None, out);
        if self.published.is_none() || now.elapsed < self.not_before {
            return;
        }
        if !self.peers.all_settled() && self.step_deadline <= now.elapsed {
            self.on_step_deadline(now, out);
        }
        if self.peers.all_settled() || self.expired_deadlines > MAX_TIMEOUTS {
            let next = self.journal.next(|next| next.step = Step::Steady);
            self.persist(next, Vec::new(), Vec::new(), out);
        }
    }

    /// Peers that are alive do not acknowledge: draining ends, and the new key was never used.
    fn withdraw(&mut self, now: Now, staged: KeyRecord, peers: Vec<PeerId>, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        let next = self.journal.next(|next| next.step = Step::Steady);
        self.schedule_retry(now, slot, peers.clone());
        self.persist(next, vec![Note::RolledBack(slot, staged.key, peers)], vec![(slot, staged)], out);
    }

    fn schedule_retry(&mut self, now: Now, slot: Slot, peers: Vec<PeerId>) {
        self.retry_at = now.elapsed + self.policy.timeout() * MAX_TIMEOUTS;
        self.blocked = Some((slot, peers));
    }

    /// The step's deadline has passed: silent peers are skipped, and so are those that do not follow if the
    /// keys are too old. Returns the peers that the rotation still waits for.
    fn on_step_deadline(&mut self, now: Now, out: &mut Vec<Effect>) -> Vec<PeerId> {
        self.step_deadline = now.elapsed + self.policy.timeout();
        self.expired_deadlines += 1;
        let overdue = self.overdue(now);
        let since = now.elapsed.saturating_sub(self.policy.timeout());
        let unsettled: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| !peer.settled()).map(|(id, _)| id.clone()).collect();
        let mut waiting = Vec::new();
        for id in unsettled {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let alive = peer.last_heard.is_some_and(|last_heard| last_heard >= since);
            if !alive {
                peer.passed_over = Some(PeerProgress::Skipped);
                out.push(Effect::Note(Note::Skipped(id)));
            } else if overdue {
                peer.passed_over = Some(PeerProgress::Forced);
                out.push(Effect::Note(Note::Forced(id)));
            } else {
                waiting.push(id);
            }
        }
        if !waiting.is_empty() {
            out.push(Effect::Note(Note::Blocked(self.journal.standby(), waiting.clone())));
        }
        waiting
    }

    fn ask(&mut self, now: Now, first: Slot, then: Option<Slot>, out: &mut Vec<Effect>) {
        // Before the own Node shows it, no peer can know it.
        if self.published.is_some() {
            let questions = self.peers.ask(now.elapsed, first, then);
            out.extend(
                questions.into_iter().map(|(peer, nonce, over)| Effect::Ask(Ask { peer, nonce, over })),
            );
        }
    }
}
