//! A change of single Nodes decided apart from the others: the outcome is that of admissions of all, repeated until nothing
//! changes. Worlds in which almost everything is claimed by several Nodes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod network;
#[path = "../setup/mod.rs"]
mod setup;
mod turns;
mod world;

use std::time::Duration;

use plan::admission::{Admission, AdmissionPart, AdmissionPolicy, Ledger, SETTLE};
use plan::cluster::Cluster;
use plan::node::{NodeName, NodeUid};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use network::track;
use turns::turns;
use world::{Announced, Draft, Event, draft, event, list, policy, record};

/// A cluster and what was decided about it last.
pub(crate) struct Follower {
    pub(crate) cluster: Cluster,
    pub(crate) admission: Admission,
    /// What was decided last about some Nodes, and before that about the same; none if it was decided about all.
    pub(crate) spliced: Option<(AdmissionPart, AdmissionPart)>,
    parts: usize,
}

impl Follower {
    pub(crate) fn new() -> Self {
        let cluster = Cluster::remembered(NodeName::new("n1"), Ledger::default(), None);
        Self { cluster, admission: Admission::default(), spliced: None, parts: 0 }
    }

    pub(crate) fn happens(&mut self, now: Duration, event: &Event) {
        match event {
            Event::Changed(drafts) => {
                for draft in drafts {
                    self.cluster.apply(now, record(draft));
                }
            }
            Event::Deleted(number) => {
                for life in 0..2 {
                    let uid = NodeUid::new(format!("u{number}-{life}"));
                    self.cluster.delete(&NodeName::new(format!("n{number}")), &uid);
                }
            }
            Event::Listed(drafts) => drop(self.cluster.relist(now, list(drafts))),
            Event::Waited(_) | Event::Policy(_) => {}
        }
        self.cluster.release(now);
        self.cluster.settle(now, true);
    }

    /// Admits all until nothing changes; false if that does not end.
    fn admit_all(&mut self, policy: &AdmissionPolicy) -> bool {
        (0..16).any(|_| {
            self.admission = self.cluster.admit(policy);
            !self.cluster.remember(policy, &self.admission.ledger)
        })
    }

    pub(crate) fn admit_part(&mut self, policy: &AdmissionPolicy) -> bool {
        self.spliced = None;
        let Some(part) = self.cluster.admit_changed(policy) else { return self.admit_all(policy) };
        let former = self.admission.clone();
        let undo = self.admission.splice(&part);
        let mut undone = self.admission.clone();
        undone.splice(&undo);
        assert_eq!(undone, former);
        let changed = self.cluster.remember_part(&part);
        assert_eq!(changed, former.ledger != self.admission.ledger);
        assert!(!self.cluster.has_changed());
        self.spliced = Some((undo, part));
        self.parts += 1;
        true
    }
}

/// Runs a history; returns how many changes were decided apart from the others.
fn run(first: &[Draft], events: &[Event]) -> Result<usize, TestCaseError> {
    let (mut all, mut parts) = (Follower::new(), Follower::new());
    let (mut now, mut choice) = (Duration::from_secs(1), 0);
    let start = Event::Listed(first.to_vec());
    for event in std::iter::once(&start).chain(events) {
        now += match event {
            Event::Waited(seconds) => Duration::from_secs(u64::from(*seconds)),
            _ => Duration::from_millis(500),
        };
        if let Event::Policy(other) = event {
            choice = *other;
        }
        all.happens(now, event);
        parts.happens(now, event);
        let ends = all.admit_all(&policy(choice));
        prop_assert_eq!(parts.admit_part(&policy(choice)), ends);
        prop_assert_eq!(&parts.admission, &all.admission, "after {:?}", event);
        if !ends {
            break;
        }
        prop_assert_eq!(parts.cluster.changes_at(), all.cluster.changes_at());
    }
    Ok(parts.parts)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_change_decided_apart_is_as_if_all_had_been_decided_again(
        first in prop::collection::vec(draft(), 4..20),
        events in prop::collection::vec(event(), 1..24),
    ) {
        run(&first, &events)?;
    }

    #[test]
    fn nothing_is_pending_exactly_when_nothing_differs(
        first in prop::collection::vec(draft(), 4..20),
        events in prop::collection::vec((event(), any::<u8>(), any::<u8>()), 1..16),
    ) {
        track(&first, &events)?;
    }

    #[test]
    fn a_turn_that_goes_on_from_the_last_one_decides_as_one_of_everything(
        first in prop::collection::vec(draft(), 4..20),
        events in prop::collection::vec((event(), any::<u8>(), any::<u8>()), 1..16),
    ) {
        turns(&first, &events);
    }
}

/// How many histories: `PARTS_CASES` for more than usual.
#[expect(clippy::disallowed_methods, reason = "a test reads its own settings")]
fn cases() -> u32 {
    std::env::var("PARTS_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(32)
}

/// The property would hold as well if all were decided again every time.
#[test]
fn most_changes_are_decided_apart() {
    let mut runner = TestRunner::deterministic();
    let histories = (prop::collection::vec(draft(), 4..20), prop::collection::vec(event(), 30));
    let of_history = |_| {
        let (first, events) = histories.new_tree(&mut runner).unwrap().current();
        run(&first, &events).unwrap()
    };
    let parts: usize = (0..6).map(of_history).sum();
    assert!(parts > 6 * 15, "{parts} of {} changes", 6 * 30);
    let histories = (
        prop::collection::vec(draft(), 4..20),
        prop::collection::vec((event(), any::<u8>(), any::<u8>()), 30),
    );
    let of_history = |_| {
        let (first, events) = histories.new_tree(&mut runner).unwrap().current();
        track(&first, &events).unwrap()
    };
    let shares: usize = (0..6).map(of_history).sum();
    assert!(shares > 6 * 5, "{shares} of {} changes", 6 * 30);
    let of_history = |_| {
        let (first, events) = histories.new_tree(&mut runner).unwrap().current();
        turns(&first, &events)
    };
    let followed: usize = (0..6).map(of_history).sum();
    assert!(followed > 6 * 3, "{followed} of {} turns", 6 * 30);
}

fn announced(number: u8, generation: u8, proven: bool) -> Draft {
    let keys = (number, number);
    Draft {
        number,
        life: 0,
        age: number % 6,
        state: Some(Announced { keys, generation, proven, broken: false }),
        pods: 4 * number,
        addresses: vec![number],
        external: 1,
        nat: false,
    }
}

/// What waits for its time comes in time, and is a change of that Node alone.
#[test]
fn an_annotation_that_has_stood_for_long_enough_is_a_change_of_its_node() {
    let mut parts = Follower::new();
    let second = Duration::from_secs;
    let nodes: Vec<Draft> = (1..6).map(|number| announced(number, 3, true)).collect();
    parts.happens(second(1), &Event::Listed(nodes));
    assert!(parts.admit_part(&policy(1)) && parts.parts == 0);
    // A generation that goes back.
    let back = Draft { state: announced(9, 1, true).state, ..announced(2, 1, true) };
    parts.happens(second(2), &Event::Changed(vec![back]));
    let generation = |parts: &Follower| parts.admission.world.peers[&NodeName::new("n2")].state.generation;
    assert!(parts.admit_part(&policy(1)) && parts.parts == 1);
    assert_eq!(generation(&parts), 3);
    parts.happens(second(2) + SETTLE, &Event::Waited(1));
    assert!(parts.cluster.has_changed());
    let part = parts.cluster.admit_changed(&policy(1)).unwrap();
    assert_eq!(part.nodes().iter().map(NodeName::as_str).collect::<Vec<_>>(), ["n2"]);
    assert!(parts.admit_part(&policy(1)) && parts.parts == 2);
    assert_eq!(generation(&parts), 1);
}

/// Where all have to be decided again.
#[test]
fn this_node_the_policy_and_a_list_concern_all() {
    let mut parts = Follower::new();
    let second = Duration::from_secs;
    let nodes: Vec<Draft> = (1..6).map(|number| announced(number, 1, true)).collect();
    parts.happens(second(1), &Event::Listed(nodes.clone()));
    assert!(parts.cluster.admit_changed(&policy(1)).is_none(), "nothing is decided yet");
    assert!(parts.admit_part(&policy(1)));
    assert!(parts.cluster.admit_changed(&policy(1)).is_some());
    assert!(parts.cluster.admit_changed(&policy(2)).is_none(), "another policy");
    parts.happens(second(2), &Event::Changed(vec![announced(1, 2, true)]));
    assert!(parts.cluster.admit_changed(&policy(1)).is_none(), "this node");
    assert!(parts.admit_part(&policy(1)));
    parts.happens(second(3), &Event::Listed(nodes));
    assert!(parts.cluster.admit_changed(&policy(1)).is_none(), "a list");
}
