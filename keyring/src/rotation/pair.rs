//! Which slot one node sends to another on: a pure function of what both have announced.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{PerSlot, Slot};

/// Name of a node that nobody else has and that it keeps for life: the UID of its Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(String);

impl PeerId {
    /// Takes a name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node says of its two slots, as far as others must heed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stance {
    /// The node.
    pub id: PeerId,
    /// Counts its announcements.
    pub generation: u64,
    /// Slot that it would like to be sent to on.
    pub prefer: Slot,
    /// Slot that must not carry traffic from or to it.
    pub drain: Option<Slot>,
    /// Whether the drained slot has its new key already, so that nothing sent there would arrive.
    pub installed: bool,
}

impl Stance {
    /// Whether both drain, and not the same slot: the pair would be left without one.
    pub fn conflicts(&self, peer: &Self) -> bool {
        matches!((self.drain, peer.drain), (Some(own), Some(other)) if own != other)
    }

    /// Of two that conflict, whether this one goes first: who has replaced its key already, else who announced
    /// under the lower generation, else the lower name. Both ends come to the same answer.
    pub fn goes_before(&self, peer: &Self) -> bool {
        let rank = |stance: &Self| (!stance.installed, stance.generation, stance.id.clone());
        rank(self) < rank(peer)
    }
}

/// The slot that must not carry traffic between two, because one of them is about to replace its key or just has.
pub fn drained_between(own: &Stance, peer: &Stance) -> Option<Slot> {
    if own.conflicts(peer) {
        let first = if own.goes_before(peer) { own } else { peer };
        return first.drain;
    }
    own.drain.or(peer.drain)
}

/// The slot for packets from `own` to `peer`. `answers` says on which slots the peer has answered with the
/// present keys.
///
/// A drained slot is never used. Else the peer's wish is followed, unless only the other slot is known to work.
pub fn slot_for(own: &Stance, peer: &Stance, answers: PerSlot<bool>) -> Slot {
    if let Some(drained) = drained_between(own, peer) {
        return drained.other();
    }
    let wish = peer.prefer;
    if *answers.get(wish) || !*answers.get(wish.other()) { wish } else { wish.other() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stance(id: &str, generation: u64, prefer: Slot, drain: Option<Slot>) -> Stance {
        Stance { id: PeerId::new(id), generation, prefer, drain, installed: false }
    }

    const BOTH: PerSlot<bool> = PerSlot { a: true, b: true };

    #[test]
    fn the_peer_s_wish_is_followed_unless_only_the_other_slot_answers() {
        let own = stance("n1", 1, Slot::A, None);
        let peer = stance("n2", 1, Slot::B, None);
        assert_eq!(slot_for(&own, &peer, BOTH), Slot::B);
        assert_eq!(slot_for(&own, &peer, PerSlot { a: false, b: false }), Slot::B);
        assert_eq!(slot_for(&own, &peer, PerSlot { a: false, b: true }), Slot::B);
        assert_eq!(slot_for(&own, &peer, PerSlot { a: true, b: false }), Slot::A);
    }

    #[test]
    fn a_slot_that_either_end_drains_is_left_whatever_answers() {
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
    fn of_two_that_drain_different_slots_both_ends_let_the_same_one_go_first() {
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
