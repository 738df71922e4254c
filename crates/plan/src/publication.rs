//! What this node publishes: from its keys and addresses to the annotations on its Node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use keyring::PerSlot;
use keyring::rotation::{Journal, PeerId, Stance, Step};

use crate::admission::Member;
use crate::annotation::{Endpoints, Phase, SlotState, State, names};
use crate::node::{NodeName, NodeRecord, NodeUid};

/// What a node wants its annotations to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The Node's name.
    pub node: NodeName,
    /// Its UID: a Node that was deleted and recreated is not patched by mistake.
    pub uid: NodeUid,
    /// Annotations by name. `None` removes one.
    pub annotations: BTreeMap<String, Option<String>>,
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// UDP port of each slot.
    pub ports: PerSlot<u16>,
    /// Addresses that peers reach it at.
    pub endpoints: Vec<IpAddr>,
    /// Whether it is behind NAT.
    pub nat: bool,
}

/// The annotations that `record`, this node's own Node, should have.
pub fn wanted(record: &NodeRecord, journal: &Journal, listening: Listening) -> Publication {
    let state = State {
        uid: record.uid.clone(),
        generation: journal.generation,
        slots: PerSlot::from_fn(|slot| SlotState {
            key: journal.slots.get(slot).key,
            generation: journal.slots.get(slot).generation,
            port: *listening.ports.get(slot),
        }),
        prefer: journal.prefer,
        drain: journal.drain(),
        phase: match journal.step {
            Step::Draining { .. } => Phase::Draining,
            Step::Verifying { .. } | Step::Restoring => Phase::Verifying,
            Step::Steady | Step::Between if journal.cold => Phase::Cold,
            Step::Steady | Step::Between => Phase::Steady,
        },
        proofs: None,
    };
    let endpoints = Endpoints { addresses: listening.endpoints, nat: listening.nat };
    let annotations = [(names::STATE, state.render()), (names::ENDPOINTS, endpoints.render())];
    Publication {
        node: record.name.clone(),
        uid: record.uid.clone(),
        annotations: annotations.into_iter().map(|(name, text)| (name.to_owned(), Some(text))).collect(),
    }
}

/// What a peer asks of others, from what it published.
pub fn stance(member: &Member) -> Stance {
    Stance {
        id: PeerId::new(member.uid.as_str()),
        generation: member.state.generation,
        prefer: member.state.prefer,
        drain: member.state.drain,
        installed: member.state.phase == Phase::Verifying,
    }
}

/// Whether the Node has these annotations already.
pub fn is_in_place(record: &NodeRecord, wanted: &Publication) -> bool {
    let found = |name: &str| match name {
        names::STATE => record.state.clone(),
        names::ENDPOINTS => record.endpoints.clone(),
        _ => None,
    };
    wanted.annotations.iter().all(|(name, text)| found(name) == *text)
}

/// The generation on our own Node if it does not belong to these keys: left by an earlier installation, or written by
/// somebody else. Peers that saw it accept only a higher one, so ours has to exceed it.
pub fn foreign_generation(record: &NodeRecord, journal: &Journal) -> Option<u64> {
    let state = State::parse(record.state.as_deref()?).ok()?;
    let ours = state.slots.iter().all(|(slot, found)| found.key == journal.slots.get(slot).key);
    let exceeded = state.generation < journal.generation;
    let same = ours && state.generation == journal.generation;
    (!exceeded && !same).then_some(state.generation)
}

#[cfg(test)]
mod tests {
    use keyring::{PublicKey, Slot};

    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn journal(generation: u64, first: u8) -> Journal {
        Journal::cold(generation, PerSlot { a: key(first), b: key(first + 1) }, 0)
    }

    fn listening() -> Listening {
        Listening {
            ports: PerSlot { a: 51840, b: 51841 },
            endpoints: vec!["192.0.2.1".parse().unwrap()],
            nat: false,
        }
    }

    /// Our Node with what a daemon with this journal has published on it.
    fn published(journal: &Journal) -> NodeRecord {
        let record =
            NodeRecord { name: NodeName::new("n1"), uid: NodeUid::new("u1"), ..NodeRecord::default() };
        let annotations = wanted(&record, journal, listening()).annotations;
        NodeRecord {
            state: annotations[names::STATE].clone(),
            endpoints: annotations[names::ENDPOINTS].clone(),
            ..record
        }
    }

    #[test]
    fn what_is_wanted_is_in_place_once_it_is_published_and_only_then() {
        let (ours, next) = (journal(3, 1), journal(4, 1));
        let record = published(&ours);
        assert!(is_in_place(&record, &wanted(&record, &ours, listening())));
        assert!(!is_in_place(&record, &wanted(&record, &next, listening())));
        let elsewhere = Listening { endpoints: Vec::new(), ..listening() };
        assert!(!is_in_place(&record, &wanted(&record, &ours, elsewhere)));
        let recreated = NodeRecord { uid: NodeUid::new("u2"), ..record };
        assert!(!is_in_place(&recreated, &wanted(&recreated, &ours, listening())), "it names the former UID");
    }

    #[test]
    fn a_generation_that_is_not_ours_has_to_be_exceeded() {
        let ours = journal(3, 1);
        for (found, expected) in [
            (journal(3, 1), None),
            (journal(2, 1), None),
            (journal(2, 7), None),
            (journal(3, 7), Some(3)),
            (journal(9, 7), Some(9)),
            (journal(9, 1), Some(9)),
        ] {
            assert_eq!(foreign_generation(&published(&found), &ours), expected, "{found:?}");
        }
        let unreadable = NodeRecord { state: Some("{".to_owned()), ..published(&ours) };
        assert_eq!(foreign_generation(&unreadable, &ours), None);
        assert_eq!(foreign_generation(&NodeRecord { state: None, ..unreadable }, &ours), None);
    }

    #[test]
    fn the_annotations_say_which_slot_is_drained() {
        let mut draining = journal(3, 1);
        draining.step = Step::Restoring;
        let state = State::parse(published(&draining).state.as_deref().unwrap()).unwrap();
        assert_eq!((state.drain, state.phase), (Some(Slot::B), Phase::Verifying));
        let state = State::parse(published(&journal(3, 1)).state.as_deref().unwrap()).unwrap();
        assert_eq!((state.drain, state.phase), (None, Phase::Cold));
    }
}
