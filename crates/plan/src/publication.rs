//! What this node publishes: from its keys and addresses to the annotations on its Node.

use std::collections::BTreeMap;

use keyring::PerSlot;
use keyring::rotation::{Journal, MAX_GENERATION, Stance, Step};

use crate::admission::{GENERATION_STEP, Member};
use crate::annotation::{Endpoints, Phase, SlotState, State, names};
use crate::node::{NodeName, NodeRecord, NodeUid};
use crate::whereabouts::SEQUENCE_STEP;

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

/// What this node announces on `record`, its own Node, before its keys have signed it.
pub fn announcement(record: &NodeRecord, journal: &Journal, ports: &PerSlot<u16>) -> State {
    State {
        uid: record.uid.clone(),
        generation: journal.generation,
        slots: PerSlot::from_fn(|slot| SlotState {
            key: journal.slots.get(slot).key,
            generation: journal.slots.get(slot).generation,
            port: *ports.get(slot),
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
    }
}

/// The same announcement with the proofs that the Node shows already, if they are valid: signing it again would make
/// another one, which every node would have to verify.
pub fn published(record: &NodeRecord, announcement: &State) -> Option<State> {
    let state = State::parse(record.state.as_deref()?).ok()?;
    let same = state.proofs.is_some() && state.unproven() == *announcement;
    (same && state.invalid_proof().is_none()).then_some(state)
}

/// `endpoints` with the number that tells them from what `record`, this node's own Node, shows: the same if they are the
/// same, else a higher one. `last` is the list that peers were told last, while it may not be published yet. A number on the
/// Node that is far above it was written by another, and is not exceeded: that would use up all numbers.
pub fn numbered(record: &NodeRecord, endpoints: Endpoints, last: Option<&Endpoints>) -> Endpoints {
    let shown = record.endpoints.as_deref().and_then(|text| Endpoints::parse(text).ok());
    let bound = last.map_or(u64::MAX / 2, |last| last.sequence.saturating_add(SEQUENCE_STEP));
    let shown = shown.filter(|shown| shown.sequence <= bound);
    let latest = shown.iter().chain(last).max_by_key(|list| list.sequence);
    let Some(latest) = latest else { return Endpoints { sequence: 1, ..endpoints } };
    let same = Endpoints { sequence: latest.sequence, ..endpoints };
    if same == *latest && same.sequence > 0 {
        same
    } else {
        Endpoints { sequence: latest.sequence.saturating_add(1), ..same }
    }
}

/// The annotations that `record`, this node's own Node, should have.
pub fn wanted(record: &NodeRecord, state: &State, endpoints: &Endpoints) -> Publication {
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
        id: member.uid.peer_id(),
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

/// The generation on our own Node if it does not belong to these keys and ours has to exceed it, because peers that
/// accepted it take only a higher one at once. One that is too high is overwritten instead: what another wrote must not use
/// up all generations. `fresh` says that this daemon has not been in place yet: then what it finds may have stood for long.
pub fn foreign_generation(record: &NodeRecord, journal: &Journal, fresh: bool) -> Option<u64> {
    let state = State::parse(record.state.as_deref()?).ok()?;
    let ours = state.slots.iter().all(|(slot, found)| found.key == journal.slots.get(slot).key);
    let exceeded = state.generation < journal.generation;
    let same = ours && state.generation == journal.generation;
    let bound = if fresh { MAX_GENERATION / 2 } else { journal.generation.saturating_add(GENERATION_STEP) };
    (!exceeded && !same && state.generation < bound).then_some(state.generation)
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

    const PORTS: PerSlot<u16> = PerSlot { a: 51840, b: 51841 };

    fn endpoints() -> Endpoints {
        Endpoints { addresses: vec!["192.0.2.1".parse().unwrap()], ..Endpoints::default() }
    }

    fn announced(record: &NodeRecord, journal: &Journal, endpoints: &Endpoints) -> Publication {
        wanted(record, &announcement(record, journal, &PORTS), endpoints)
    }

    /// Our Node with what a daemon with this journal has published on it.
    fn shown(journal: &Journal) -> NodeRecord {
        let record =
            NodeRecord { name: NodeName::new("n1"), uid: NodeUid::new("u1"), ..NodeRecord::default() };
        let annotations = announced(&record, journal, &endpoints()).annotations;
        NodeRecord {
            state: annotations[names::STATE].clone(),
            endpoints: annotations[names::ENDPOINTS].clone(),
            ..record
        }
    }

    #[test]
    fn what_is_wanted_is_in_place_once_it_is_published_and_only_then() {
        let (ours, next) = (journal(3, 1), journal(4, 1));
        let record = shown(&ours);
        assert!(is_in_place(&record, &announced(&record, &ours, &endpoints())));
        assert!(!is_in_place(&record, &announced(&record, &next, &endpoints())));
        let elsewhere = Endpoints::default();
        assert!(!is_in_place(&record, &announced(&record, &ours, &elsewhere)));
        let recreated = NodeRecord { uid: NodeUid::new("u2"), ..record };
        assert!(
            !is_in_place(&recreated, &announced(&recreated, &ours, &endpoints())),
            "it names the former UID"
        );
    }

    #[test]
    fn endpoints_that_change_get_a_higher_number_and_those_that_stay_keep_theirs() {
        let new = NodeRecord::default();
        let first = numbered(&new, endpoints(), None);
        assert_eq!(first.sequence, 1);
        let shown = NodeRecord { endpoints: Some(first.render()), ..new };
        assert_eq!(numbered(&shown, endpoints(), None), first);
        let other = Endpoints { nat: true, ..endpoints() };
        let told = numbered(&shown, other.clone(), Some(&first));
        assert_eq!(told.sequence, 2);
        // The API server is away: peers were told of more changes than it.
        assert_eq!(numbered(&shown, other.clone(), Some(&told)), told);
        assert_eq!(numbered(&shown, endpoints(), Some(&told)).sequence, 3);
        // What another wrote must not use up all numbers.
        let far = Endpoints { sequence: u64::MAX, ..other.clone() };
        let written = NodeRecord { endpoints: Some(far.render()), ..shown };
        assert_eq!(numbered(&written, other, Some(&told)), told);
        assert_eq!(numbered(&written, endpoints(), Some(&told)).sequence, 3);
        assert_eq!(numbered(&written, endpoints(), None).sequence, 1);
    }

    #[test]
    fn a_generation_that_is_not_ours_has_to_be_exceeded() {
        let ours = journal(3, 1);
        let far = 3 + GENERATION_STEP;
        for (found, running, fresh) in [
            (journal(3, 1), None, None),
            (journal(2, 1), None, None),
            (journal(2, 7), None, None),
            (journal(3, 7), Some(3), Some(3)),
            (journal(9, 7), Some(9), Some(9)),
            (journal(9, 1), Some(9), Some(9)),
            (journal(far - 1, 7), Some(far - 1), Some(far - 1)),
            (journal(far, 7), None, Some(far)),
            (journal(MAX_GENERATION / 2, 7), None, None),
            (journal(MAX_GENERATION, 7), None, None),
        ] {
            let record = shown(&found);
            assert_eq!(foreign_generation(&record, &ours, false), running, "{found:?}");
            assert_eq!(foreign_generation(&record, &ours, true), fresh, "{found:?}, after a start");
        }
        let unreadable = NodeRecord { state: Some("{".to_owned()), ..shown(&ours) };
        assert_eq!(foreign_generation(&unreadable, &ours, true), None);
        assert_eq!(foreign_generation(&NodeRecord { state: None, ..unreadable }, &ours, true), None);
    }

    #[test]
    fn the_annotations_say_which_slot_is_drained() {
        let mut draining = journal(3, 1);
        draining.step = Step::Restoring;
        let state = State::parse(shown(&draining).state.as_deref().unwrap()).unwrap();
        assert_eq!((state.drain, state.phase), (Some(Slot::B), Phase::Verifying));
        let state = State::parse(shown(&journal(3, 1)).state.as_deref().unwrap()).unwrap();
        assert_eq!((state.drain, state.phase), (None, Phase::Cold));
    }

    #[test]
    fn valid_proofs_of_the_same_announcement_are_used_again() {
        let private = |byte| keyring::PrivateKey::from_bytes(&[byte; 32]).unwrap();
        let keys = PerSlot { a: private(1), b: private(2) };
        let ours = Journal::cold(3, PerSlot::from_fn(|slot| keys.get(slot).public()), 0);
        let record = shown(&ours);
        let state = announcement(&record, &ours, &PORTS);
        let sign = |slot, statement: &[u8]| Some(keyring::Proof::sign(keys.get(slot), statement, &[9; 64]));
        let signed = state.prove(sign).unwrap();
        assert_eq!(published(&record, &state), None, "it shows no proofs");
        let record = NodeRecord { state: Some(signed.render()), ..record };
        assert_eq!(published(&record, &state), Some(signed.clone()));
        assert_eq!(
            published(&record, &State { generation: 4, ..state.clone() }),
            None,
            "another announcement"
        );
        let mut forged = signed;
        forged.proofs.as_mut().unwrap().b = keyring::Proof::from_bytes([0; 64]);
        let record = NodeRecord { state: Some(forged.render()), ..record };
        assert_eq!(published(&record, &state), None, "a proof that is not valid");
    }
}
