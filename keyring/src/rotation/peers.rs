//! What is known of each peer during one step of a rotation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pair::{PeerId, Stance};
use crate::Slot;

/// How long until a peer that has not answered is asked again, at first and later.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// How many times it is asked at the faster pace.
const EAGER: u32 = 8;

/// How far a peer is in the present step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerProgress {
    /// It has not done what the step asks for.
    Waiting,
    /// It has acknowledged that it sends on the other slot, or has answered over the new key.
    Done,
    /// It has been silent on both slots for so long that nobody waits for it.
    Skipped,
    /// It is alive and does not follow, but the keys are too old to wait for it.
    Forced,
}

/// One peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// What it announced last.
    pub(super) stance: Option<Stance>,
    /// Answers to questions before this one are from another time.
    from_nonce: u64,
    asked: Option<Duration>,
    asks: u32,
    /// When it was last heard of, by an answer or by traffic, during this rotation.
    pub(super) heard: Option<Duration>,
    /// Since when it heeds the present announcement.
    pub(super) followed: Option<Duration>,
    /// Whether it has said that it knows the present announcement.
    knows: bool,
    /// The slot that it last said it sends on.
    pub(super) tx: Option<Slot>,
    /// Why nobody waits for it.
    pub(super) passed_over: Option<PeerProgress>,
}

/// All peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    all: BTreeMap<PeerId, Peer>,
    nonce: u64,
}

impl Peers {
    /// Takes the present set.
    pub(super) fn set(&mut self, now: BTreeSet<PeerId>) {
        self.all.retain(|id, _| now.contains(id));
        for id in now {
            let from_nonce = self.nonce + 1;
            self.all.entry(id).or_insert_with(|| Peer { from_nonce, ..Peer::default() });
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Peer)> {
        self.all.iter()
    }

    pub(super) fn get_mut(&mut self, id: &PeerId) -> Option<&mut Peer> {
        self.all.get_mut(id)
    }

    /// Forgets what was acknowledged: a new announcement needs new answers.
    pub(super) fn begin_step(&mut self) {
        for peer in self.all.values_mut() {
            peer.forget(self.nonce + 1);
        }
    }

    /// Waits for everybody again: before a slot is drained those who had been silent may be back.
    pub(super) fn begin_drain(&mut self) {
        for peer in self.all.values_mut() {
            peer.passed_over = None;
            peer.heard = None;
        }
    }

    /// Takes back what a peer acknowledged, so that only an answer to a later question counts.
    pub(super) fn revoke(&mut self, id: &PeerId) {
        let from = self.nonce + 1;
        if let Some(peer) = self.all.get_mut(id) {
            peer.forget(from);
        }
    }

    /// Notes that a peer was heard of; one that had been silent is waited for again.
    pub(super) fn hear(&mut self, now: Duration, id: &PeerId) {
        if let Some(peer) = self.all.get_mut(id) {
            peer.heard = Some(now);
            if peer.passed_over == Some(PeerProgress::Skipped) {
                peer.passed_over = None;
            }
        }
    }

    /// Questions that are due to those who have not followed; who is silent is asked too. Over `first` until a peer knows
    /// the present announcement, from then on over `then` as well: a handshake with a key that the peer does not
    /// know yet fails, and WireGuard tries again only five seconds later.
    pub(super) fn ask(&mut self, now: Duration, first: Slot, then: Option<Slot>) -> Vec<(PeerId, u64, Slot)> {
        let mut questions = Vec::new();
        for (id, peer) in &mut self.all {
            if peer.followed.is_some() || peer.next_ask() > now {
                continue;
            }
            peer.asked = Some(now);
            peer.asks += 1;
            for slot in [then.filter(|_| peer.knows), Some(first)].into_iter().flatten() {
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

    /// Whether nobody needs to be waited for.
    pub(super) fn all_settled(&self) -> bool {
        self.all.values().all(Peer::settled)
    }

    /// When the last of those who follow began to.
    pub(super) fn last_followed(&self) -> Option<Duration> {
        self.all.values().filter_map(|peer| peer.followed).max()
    }
}

impl Peer {
    /// It knows the present announcement: what was held back for that is asked at once.
    pub(super) const fn learns(&mut self) {
        if !self.knows {
            self.knows = true;
            self.asked = None;
        }
    }

    const fn forget(&mut self, from_nonce: u64) {
        self.from_nonce = from_nonce;
        self.knows = false;
        self.followed = None;
        self.asked = None;
        self.asks = 0;
    }

    /// Whether an answer to this question counts.
    pub(super) const fn counts(&self, nonce: u64) -> bool {
        nonce >= self.from_nonce
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
        let pause = if self.asks <= EAGER { AGAIN.0 } else { AGAIN.1 };
        self.asked.map_or(Duration::ZERO, |asked| asked + pause)
    }
}
