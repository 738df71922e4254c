//! Which slot a node uses to send to a peer: a pure function of what both announce.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{PerSlot, SharedText, Slot};

/// A node's unique and permanent identifier: the UID of its Node object.
///
/// A clone shares the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct PeerId(SharedText);

impl PeerId {
    /// Takes a UID.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(SharedText::new(name))
    }

    /// Takes a UID that is shared already.
    pub const fn shared(uid: SharedText) -> Self {
        Self(uid)
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl From<String> for PeerId {
    fn from(uid: String) -> Self {
        Self::new(uid)
    }
}

impl From<PeerId> for String {
    fn from(id: PeerId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node announces about its two slots, as far as peers must act on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stance {
    /// The node.
    pub id: PeerId,
    /// Number of the announcement.
    pub generation: u64,
    /// The slot that it wants to receive on.
    pub prefer: Slot,
    /// The slot that must not carry traffic to or from it.
    pub drain: Option<Slot>,
    /// Whether the drained slot already has its new key, so that packets sent there would be lost.
    pub installed: bool,
}

impl Stance {
    /// Whether both drain a slot, and not the same one: the pair would be left without a slot.
    pub fn conflicts(&self, peer: &Self) -> bool {
        matches!((self.drain, peer.drain), (Some(own), Some(other)) if own != other)
    }

    /// Of two nodes that conflict, whether this one goes first: the one that has already replaced its key,
    /// else the one with the lower generation, else the one with the lower UID. Both ends reach the same
    /// result.
    pub fn goes_before(&self, peer: &Self) -> bool {
        let rank = |stance: &Self| (!stance.installed, stance.generation, stance.id.clone());
        rank(self) < rank(peer)
    }
}

/// The slot that must not carry traffic between two nodes, because one of them is about to replace its key or
/// has just done so.
pub fn drained_between(own: &Stance, peer: &Stance) -> Option<Slot> {
    if own.conflicts(peer) {
        let first = if own.goes_before(peer) { own } else { peer };
        return first.drain;
    }
    own.drain.or(peer.drain)
}

/// The slot for packets from `own` to `peer`. `answers` are the slots on which the peer has answered with the
/// current keys.
///
/// A drained slot is never used. Otherwise the peer's preference is followed, unless only the other slot is
/// known to work.
pub fn slot_for(own: &Stance, peer: &Stance, answers: PerSlot<bool>) -> Slot {
    if let Some(drained) = drained_between(own, peer) {
        return drained.other();
    }
    let preferred = peer.prefer;
    if *answers.get(preferred) || !*answers.get(preferred.other()) { preferred } else { preferred.other() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stance(id: &str, generation: u64, prefer: Slot, drain: Option<Slot>) -> Stance {
        Stance { id: PeerId::new(id), generation, prefer, drain, installed: false }
    }

    const BOTH: PerSlot<bool> = PerSlot { a: true, b: true };

    #[test]
    fn the_peer_s_preference_is_followed_unless_only_the_other_slot_answers() {
        let own = stance("n1", 1, Slot::A, None);
        let peer = stance("n2", 1, Slot::B, None);
        assert_eq!(slot_for(&own, &peer, BOTH), Slot::B);
        assert_eq!(slot_for(&own, &peer, PerSlot { a: false, b: false }), Slot::B);
        assert_eq!(slot_for(&own, &peer, PerSlot { a: false, b: true }), Slot::B);
        assert_eq!(slot_for(&own, &peer, PerSlot { a: true, b: false }), Slot::A);
    }

    #[test]
    fn a_slot_that_either_end_drains_is_never_used() {
        for drained in Slot::ALL {
            let only = PerSlot::from_fn(|slot| slot == drained);
            let own = stance("n1", 1, Slot::A, Some(drained));
            let peer = stance("n2", 1, drained, None);
            assert_eq!(slot_for(&own, &peer, only), drained.other());
            assert_eq!(slot_for(&peer, &own, only), drained.other());
            let too = stance("n2", 1, drained, Some(drained));
            assert_eq!(slot_for(&own, &too, only), drained.other());
        }
    }

    #[test]
    fn if_two_nodes_drain_different_slots_both_ends_let_the_same_one_go_first() {
        let early = stance("n2", 3, Slot::A, Some(Slot::B));
        let late = stance("n1", 4, Slot::B, Some(Slot::A));
        assert_eq!(slot_for(&early, &late, BOTH), Slot::A);
        assert_eq!(slot_for(&late, &early, BOTH), Slot::A);
        let even = Stance { generation: 3, ..late.clone() };
        assert_eq!(slot_for(&early, &even, BOTH), Slot::B);
        assert_eq!(slot_for(&even, &early, BOTH), Slot::B);
        let there = Stance { installed: true, ..late };
        assert_eq!(slot_for(&early, &there, BOTH), Slot::B);
        assert_eq!(slot_for(&there, &early, BOTH), Slot::B);
    }
}
