//! The steps of a rotation: what each waits for, and what follows when it comes or does not come.

use std::time::Duration;

use super::event::{Ask, Cause, Effect, Note, Now};
use super::journal::{Half, KeyRecord, Step};
use super::machine::{PATIENCE, Rotation, Wanted};
use super::pair::PeerId;
use super::peers::PeerProgress;
use crate::Slot;

impl Rotation {
    pub(super) fn begin(&mut self, now: Now, out: &mut Vec<Effect>) {
        let past = |due: Option<Duration>| due.is_some_and(|due| due.max(self.again_at) <= now.elapsed);
        let cause = if past(self.renewal_at()) { Cause::Request } else { Cause::Age };
        if let Some(cause) = self.wish.or_else(|| past(self.due_at()).then_some(cause))
            && self.may_begin(now)
        {
            self.wish = Some(cause);
            self.generate(Wanted::Stage(Half::First), out);
        }
    }

    pub(super) fn drain(&mut self, now: Now, half: Half, staged: KeyRecord, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        self.ask(now, slot.other(), None, out);
        if self.published.is_some() && self.peers.all_settled() {
            // Once the key is replaced peers must learn the new one: not while nobody could tell them.
            if self.connected
                && now.elapsed >= self.not_before
                && self.quiet_at().is_some_and(|at| at <= now.elapsed)
            {
                self.install(half, staged, out);
            }
        } else if self.complain_at <= now.elapsed {
            let waiting = self.complain(now, out);
            if half == Half::First && self.complaints > 1 && !waiting.is_empty() {
                self.withdraw(now, staged, waiting, out);
            }
        }
    }

    /// When the drained slot will have been quiet for long enough. Nobody sends on it any more; packets that were
    /// under way may still come. Keepalives of others must not hold it up for ever, so there is an end to it.
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
            self.conclude(half, former, out);
        } else if self.complain_at <= now.elapsed {
            let waiting = self.complain(now, out);
            if self.peers.all_settled() {
                self.conclude(half, former, out);
            } else if let Some(former) = former
                && !self.sent_on_drained(&waiting)
            {
                self.roll_back(now, former, waiting, out);
            }
        }
    }

    /// Whether one of these peers sends on the slot all the same. It can: two nodes that took each other for dead
    /// may both have replaced a key, and then the one that goes first decides. It would lose what it sends if
    /// the key went away now, and it will answer when it is through.
    fn sent_on_drained(&self, waiting: &[PeerId]) -> bool {
        let drained = self.journal.drain();
        self.peers.iter().any(|(id, peer)| waiting.contains(id) && peer.tx.is_some() && peer.tx == drained)
    }

    /// Every peer has answered over the new key.
    fn conclude(&mut self, half: Half, former: Option<KeyRecord>, out: &mut Vec<Effect>) {
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

    /// Peers that are alive do not answer over the new key: the former one goes back into its slot.
    fn roll_back(&mut self, now: Now, former: KeyRecord, peers: Vec<PeerId>, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        let failed = *self.journal.slots.get(slot);
        let next = self.journal.next(|next| {
            *next.slots.get_mut(slot) = former;
            next.step = Step::Restoring;
        });
        self.retreat(now, slot, peers.clone());
        self.persist(next, vec![Note::RolledBack(slot, failed.key, peers)], vec![(slot, failed)], out);
    }

    /// The slot may be used again when every peer knows that it has its former key. It need not work: that may be why
    /// the new key failed.
    pub(super) fn restore(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.ask(now, self.journal.prefer, None, out);
        if self.published.is_none() || now.elapsed < self.not_before {
            return;
        }
        if !self.peers.all_settled() && self.complain_at <= now.elapsed {
            self.complain(now, out);
        }
        if self.peers.all_settled() || self.complaints > PATIENCE {
            let next = self.journal.next(|next| next.step = Step::Steady);
            self.persist(next, Vec::new(), Vec::new(), out);
        }
    }

    /// Peers that are alive do not acknowledge: the slot is given back, the new key was never used.
    fn withdraw(&mut self, now: Now, staged: KeyRecord, peers: Vec<PeerId>, out: &mut Vec<Effect>) {
        let slot = self.journal.standby();
        let next = self.journal.next(|next| next.step = Step::Steady);
        self.retreat(now, slot, peers.clone());
        self.persist(next, vec![Note::RolledBack(slot, staged.key, peers)], vec![(slot, staged)], out);
    }

    fn retreat(&mut self, now: Now, slot: Slot, peers: Vec<PeerId>) {
        self.again_at = now.elapsed + self.policy.timeout() * PATIENCE;
        self.blocked = Some((slot, peers));
    }

    /// The time for this step is over: who is silent is passed over, and if the keys are too old so is who does
    /// not follow. Returns those that are still waited for.
    fn complain(&mut self, now: Now, out: &mut Vec<Effect>) -> Vec<PeerId> {
        self.complain_at = now.elapsed + self.policy.timeout();
        self.complaints += 1;
        let overdue = self.overdue(now);
        let since = now.elapsed.saturating_sub(self.policy.timeout());
        let unsettled: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| !peer.settled()).map(|(id, _)| id.clone()).collect();
        let mut waiting = Vec::new();
        for id in unsettled {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let alive = peer.heard.is_some_and(|heard| heard >= since);
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
        // Before our Node shows it nobody can have seen it.
        if self.published.is_some() {
            let questions = self.peers.ask(now.elapsed, first, then);
            out.extend(
                questions.into_iter().map(|(peer, nonce, over)| Effect::Ask(Ask { peer, nonce, over })),
            );
        }
    }
}
