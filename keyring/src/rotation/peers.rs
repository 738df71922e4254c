//! What is known of each peer during one step of a rotation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pair::{PeerId, Stance};
use crate::Slot;

/// Retry intervals for a peer that has not answered: the first ones, and those after [`FAST_RETRIES`].
const RETRY_INTERVALS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// How many questions are sent at the shorter interval.
const FAST_RETRIES: u32 = 8;

/// A peer's progress in the current step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerProgress {
    /// It has not done what the step requires.
    Waiting,
    /// It has acknowledged that it sends on the other slot, or has answered over the new key.
    Done,
    /// It has been silent on both slots for so long that the rotation does not wait for it.
    Skipped,
    /// It is alive and does not follow, but the keys are too old to wait.
    Forced,
}

/// One peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Its last announcement.
    pub(super) stance: Option<Stance>,
    /// Answers to questions with a lower nonce are outdated.
    first_nonce: u64,
    asked: Option<Duration>,
    asks: u32,
    /// When an answer or traffic last arrived from it, during this rotation.
    pub(super) last_heard: Option<Duration>,
    /// Since when it has applied the current announcement.
    pub(super) followed: Option<Duration>,
    /// Whether it has confirmed that it knows the current announcement.
    informed: bool,
    /// The slot that it last reported to send on.
    pub(super) tx: Option<Slot>,
    /// Why the rotation does not wait for it.
    pub(super) passed_over: Option<PeerProgress>,
}

/// All peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    all: BTreeMap<PeerId, Peer>,
    nonce: u64,
}

impl Peers {
    /// Sets the current peers.
    pub(super) fn set(&mut self, now: BTreeSet<PeerId>) {
        self.all.retain(|id, _| now.contains(id));
        for id in now {
            let first_nonce = self.nonce + 1;
            self.all.entry(id).or_insert_with(|| Peer { first_nonce, ..Peer::default() });
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        self.all.iter()
    }

    pub(super) fn get_mut(&mut self, id: &PeerId) -> Option<&mut Peer> {
        self.all.get_mut(id)
    }

    /// Discards all acknowledgements: a new announcement needs new answers.
    pub(super) fn begin_step(&mut self) {
        for peer in self.all.values_mut() {
            peer.reset(self.nonce + 1);
        }
    }

    /// Waits for all peers again: those that were silent may be back before a slot is drained.
    pub(super) fn begin_drain(&mut self) {
        for peer in self.all.values_mut() {
            peer.passed_over = None;
            peer.last_heard = None;
        }
    }

    /// Discards a peer's acknowledgement, so that only an answer to a later question counts.
    pub(super) fn revoke(&mut self, id: &PeerId) {
        let from = self.nonce + 1;
        if let Some(peer) = self.all.get_mut(id) {
            peer.reset(from);
        }
    }

    /// Records that a peer is alive; the rotation waits for it again if it was silent.
    pub(super) fn mark_alive(&mut self, now: Duration, id: &PeerId) {
        if let Some(peer) = self.all.get_mut(id) {
            peer.last_heard = Some(now);
            if peer.passed_over == Some(PeerProgress::Skipped) {
                peer.passed_over = None;
            }
        }
    }

    /// The questions that are due, to peers that have not followed; silent ones are asked too. They go over
    /// `first` until a peer knows the current announcement, and then over `then` as well: a handshake with a
    /// key that the peer does not know yet fails, and WireGuard retries only after five seconds.
    pub(super) fn ask(&mut self, now: Duration, first: Slot, then: Option<Slot>) -> Vec<(PeerId, u64, Slot)> {
        let mut questions = Vec::new();
        for (id, peer) in &mut self.all {
            if peer.followed.is_some() || peer.next_ask() > now {
                continue;
            }
            peer.asked = Some(now);
            peer.asks += 1;
            for slot in [then.filter(|_| peer.informed), Some(first)].into_iter().flatten() {
                self.nonce += 1;
                questions.push((id.clone(), self.nonce, slot));
            }
        }
        questions
    }

    /// When the next question is due.
    pub(super) fn next_ask(&self) -> Option<Duration> {
        self.all.values().filter(|peer| peer.followed.is_none()).map(Peer::next_ask).min()
    }

    /// Whether no peer needs to be waited for.
    pub(super) fn all_settled(&self) -> bool {
        self.all.values().all(Peer::settled)
    }

    /// When the last peer followed.
    pub(super) fn last_followed(&self) -> Option<Duration> {
        self.all.values().filter_map(|peer| peer.followed).max()
    }
}

impl Peer {
    /// It knows the current announcement: questions that were held back for that are sent at once.
    pub(super) const fn mark_informed(&mut self) {
        if !self.informed {
            self.informed = true;
            self.asked = None;
        }
    }

    const fn reset(&mut self, first_nonce: u64) {
        self.first_nonce = first_nonce;
        self.informed = false;
        self.followed = None;
        self.asked = None;
        self.asks = 0;
    }

    /// Whether an answer with this nonce counts.
    pub(super) const fn is_current(&self, nonce: u64) -> bool {
        nonce >= self.first_nonce
    }

    pub(super) fn settled(&self) -> bool {
        self.followed.is_some() || self.passed_over.is_some()
    }

    pub(super) fn progress(&self) -> PeerProgress {
        match (self.followed, self.passed_over) {
            (Some(_), _) => PeerProgress::Done,
            (None, Some(why)) => why,
            (None, None) => PeerProgress::Waiting,
        }
    }

    fn next_ask(&self) -> Duration {
        let pause = if self.asks <= FAST_RETRIES { RETRY_INTERVALS.0 } else { RETRY_INTERVALS.1 };
        self.asked.map_or(Duration::ZERO, |asked| asked + pause)
    }
}
