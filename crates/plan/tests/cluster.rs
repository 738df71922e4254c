//! Announcements over time: what follows is accepted at once, anything else when it has stood for a while.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use keyring::{NOISE, PerSlot, PrivateKey, Proof, Slot};
use plan::admission::{AdmissionPolicy, Ledger, SETTLE};
use plan::annotation::{Phase, SlotState, State};
use plan::cluster::Cluster;
use plan::node::{NodeName, NodeRecord, NodeUid};

fn private(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes(&[byte; 32]).unwrap()
}

fn node(number: u8, generation: u64, key: u8) -> NodeRecord {
    node_of(&format!("u{number}"), number, generation, key)
}

/// A node whose Node has this UID.
fn node_of(uid: &str, number: u8, generation: u64, key: u8) -> NodeRecord {
    let private = |slot| private(if slot == Slot::A { key } else { key + 1 });
    let slot = |slot, port| SlotState { key: private(slot).public(), generation: 1, port };
    let uid = NodeUid::new(uid);
    let state = State {
        uid: uid.clone(),
        generation,
        slots: PerSlot { a: slot(Slot::A, 51840), b: slot(Slot::B, 51841) },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    };
    let sign = |slot, statement: &[u8]| Some(Proof::sign(&private(slot), statement, &[1; NOISE]));
    NodeRecord {
        name: NodeName::new(format!("n{number}")),
        uid,
        created: format!("2026-01-01T00:00:{number:02}Z"),
        pod_cidrs: vec![format!("10.244.{number}.0/24")],
        addresses: vec![format!("192.0.2.{number}")],
        state: state.prove(sign).map(|state| state.render()),
        ..NodeRecord::default()
    }
}

fn list(records: &[NodeRecord]) -> BTreeMap<NodeName, NodeRecord> {
    records.iter().map(|record| (record.name.clone(), record.clone())).collect()
}

/// The cluster as n1 sees it.
struct Observer(Cluster);

impl Observer {
    fn new(ledger: Ledger) -> Self {
        Self(Cluster::remembered(NodeName::new("n1"), ledger, Some(NodeUid::new("u1"))))
    }

    /// A turn; returns the generation of n2 that is accepted, and why another one is not.
    fn turn(&mut self, now: Duration, connected: bool) -> (Option<u64>, Option<&'static str>) {
        self.0.settle(now, connected);
        let policy = AdmissionPolicy {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            ipv4: true,
            ..AdmissionPolicy::default()
        };
        let admission = self.0.admit(&policy);
        self.0.remember(&policy, &admission.ledger);
        let member = admission.world.peers.get(&NodeName::new("n2"));
        let refused = admission.rejected.first().map(|rejected| rejected.reason.code());
        (member.map(|member| member.state.generation), refused)
    }
}

/// What does not follow generation 5000 with keys 20 and 21.
const STRANGE: [(u64, u8, &str); 4] = [
    (4000, 20, "generation-went-back"),
    (1, 30, "generation-went-back"),
    (5000, 30, "generation-reused"),
    (1 << 53, 30, "generation-jumped"),
];

#[test]
fn the_moment_at_which_an_annotation_has_stood_for_long_enough_is_known() {
    let mut observer = Observer::new(Ledger::default());
    let at = Duration::from_secs;
    observer.0.relist(at(5), list(&[node(1, 1, 1), node(2, 1, 3)]));
    assert_eq!(observer.0.changes_at(), Some(at(5) + SETTLE));
    observer.0.apply(at(9), node(2, 7, 5));
    observer.turn(at(5) + SETTLE, true);
    assert_eq!(observer.0.changes_at(), Some(at(9) + SETTLE));
    // While changes are not noticed it does not stand.
    observer.turn(at(20), false);
    assert_eq!(observer.0.changes_at(), Some(at(20) + SETTLE));
    observer.turn(at(20) + SETTLE, true);
    assert_eq!(observer.0.changes_at(), None);
}

#[test]
fn an_annotation_that_stands_is_accepted_whatever_its_generation() {
    for (generation, key, code) in STRANGE {
        let mut observer = Observer::new(Ledger::default());
        let start = Duration::from_secs(100);
        observer.0.relist(start, list(&[node(1, 1, 10), node(2, 5000, 20)]));
        assert_eq!(observer.turn(start, true), (Some(5000), None));
        let strange = node(2, generation, key);
        let since = start + Duration::from_mins(1);
        assert!(observer.0.apply(since, strange.clone()));
        let nearly = since + SETTLE.checked_sub(Duration::from_millis(1)).unwrap();
        for now in [since, nearly] {
            assert_eq!(observer.turn(now, true), (Some(5000), Some(code)));
            // Neither a refreshed status nor another list starts it anew.
            let refreshed = NodeRecord { addresses: Vec::new(), ..strange.clone() };
            observer.0.apply(now, refreshed.clone());
            observer.0.relist(now, list(&[node(1, 1, 10), refreshed]));
        }
        assert_eq!(observer.turn(since + SETTLE, true), (Some(generation), None), "{code}");
        // The way back takes as long, and no longer.
        let back = since + SETTLE + SETTLE;
        observer.0.apply(back, node(2, 5000, 20));
        observer.turn(back, true);
        assert_eq!(observer.turn(back + SETTLE, true), (Some(5000), None), "{code}");
    }
}

#[test]
fn what_a_living_daemon_overwrites_never_counts() {
    let mut observer = Observer::new(Ledger::default());
    observer.0.relist(Duration::ZERO, list(&[node(1, 1, 10), node(2, 5000, 20)]));
    observer.turn(Duration::ZERO, true);
    for second in 1..100 {
        let now = Duration::from_secs(second);
        let (generation, key, code) = STRANGE[usize::try_from(second).unwrap() % STRANGE.len()];
        observer.0.apply(now, node(2, generation, key));
        assert_eq!(observer.turn(now, true), (Some(5000), Some(code)));
        let repaired = now + Duration::from_millis(500);
        observer.0.apply(repaired, node(2, 5000, 20));
        assert_eq!(observer.turn(repaired, true), (Some(5000), None));
    }
}

#[test]
fn time_without_the_api_server_does_not_count() {
    let mut observer = Observer::new(Ledger::default());
    observer.0.relist(Duration::ZERO, list(&[node(1, 1, 10), node(2, 5000, 20)]));
    observer.turn(Duration::ZERO, true);
    observer.0.apply(Duration::ZERO, node(2, 4000, 20));
    let last = Duration::from_mins(10);
    for second in 0..=600 {
        let (generation, _) = observer.turn(Duration::from_secs(second), false);
        assert_eq!(generation, Some(5000), "after {second} s");
    }
    assert_eq!(observer.turn(last + SETTLE, true), (Some(4000), None));
}

#[test]
fn a_restart_of_the_observer_forgets_neither_generations_nor_who_has_proved_its_keys() {
    let mut before = Observer::new(Ledger::default());
    let records = list(&[node(1, 1, 10), node(2, 5000, 20)]);
    before.0.relist(Duration::ZERO, records);
    before.turn(Duration::ZERO, true);
    let ledger = before.0.admit(&AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ipv4: true,
        ..AdmissionPolicy::default()
    });
    let text = serde_json::to_string(&ledger.ledger).unwrap();
    let mut after = Observer::new(serde_json::from_str(&text).unwrap());
    assert_eq!(after.turn(Duration::ZERO, true), (Some(5000), None), "before the first list");
    after.0.relist(Duration::ZERO, list(&[node(1, 1, 10), node(2, 1 << 53, 30)]));
    assert_eq!(after.turn(Duration::ZERO, true), (Some(5000), Some("generation-jumped")));
    assert_eq!(after.turn(SETTLE, true), (Some(1 << 53), None));
}

#[test]
fn what_nodes_outside_the_mesh_list_stays_closed_after_a_restart_until_there_is_a_list() {
    let policy = AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ipv4: true,
        ..AdmissionPolicy::default()
    };
    let pending = NodeRecord { state: None, ..node(3, 1, 40) };
    let mut liar = node(2, 1, 20);
    liar.addresses.extend(pending.addresses.clone());
    let place = "192.0.2.3".parse().unwrap();
    let all = [node(1, 1, 10), liar, pending];

    let mut cluster = Cluster::remembered(NodeName::new("n1"), Ledger::default(), None);
    cluster.relist(Duration::from_secs(1), list(&all));
    let before = cluster.admit(&policy);
    assert!(before.world.closed.contains(&place));
    cluster.remember(&policy, &before.ledger);

    // As on disk.
    let saved = serde_json::to_string(&before.ledger).unwrap();
    let mut restarted = Cluster::remembered(
        NodeName::new("n1"),
        serde_json::from_str(&saved).unwrap(),
        Some(NodeUid::new("u1")),
    );
    for _ in 0..2 {
        let admission = restarted.admit(&policy);
        let liar = &admission.world.peers[&NodeName::new("n2")];
        assert!(!liar.addresses.contains(&place), "{liar:?}");
        assert!(admission.world.closed.contains(&place));
        assert!(!restarted.remember(&policy, &admission.ledger), "the ledger stays as it was read");
    }
    restarted.relist(Duration::from_secs(2), list(&all[..2]));
    let after = restarted.admit(&policy);
    assert!(after.world.closed.is_empty(), "the Node is gone");
}

#[test]
fn a_restart_does_not_forget_that_a_node_outside_the_mesh_has_proved_its_keys() {
    let policy = AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        accept_unproven: true,
        ipv4: true,
        ..AdmissionPolicy::default()
    };
    let (own, proven) = (node(1, 1, 10), node(3, 1, 40));
    let mut cluster = Cluster::remembered(NodeName::new("n1"), Ledger::default(), None);
    for record in [proven.clone(), NodeRecord { state: None, ..proven.clone() }] {
        cluster.relist(Duration::from_secs(1), list(&[own.clone(), record]));
        cluster.release(Duration::from_hours(1));
        cluster.remember(&policy, &cluster.admit(&policy).ledger);
    }
    let ledger = cluster.admit(&policy).ledger;
    let mut restarted = Cluster::remembered(NodeName::new("n1"), ledger, Some(NodeUid::new("u1")));
    restarted.remember(&policy, &restarted.admit(&policy).ledger);
    let state = State::parse(proven.state.as_deref().unwrap()).unwrap();
    let unproven = NodeRecord { state: Some(state.unproven().render()), ..proven };
    restarted.relist(Duration::from_secs(2), list(&[own, unproven]));
    let rejected = restarted.admit(&policy).rejected;
    assert_eq!(rejected.iter().map(|one| one.reason.code()).collect::<Vec<_>>(), ["proof-missing"]);
}

/// A Node that is deleted and created again, with another UID, while lists are not trusted.
#[test]
fn a_recreated_node_joins_once_its_daemon_has_published_whatever_the_brake_thinks_of_lists() {
    let policy = AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ipv4: true,
        ..AdmissionPolicy::default()
    };
    let second = Duration::from_secs;
    for (keys, seed) in [("with its keys", 20), ("with new keys", 60)] {
        for by_event in [true, false] {
            let what = format!("{keys}, event: {by_event}");
            let all = [node(1, 1, 10), node(2, 1, 20), node(3, 1, 40)];
            let mut cluster = Cluster::remembered(NodeName::new("n1"), Ledger::default(), None);
            cluster.relist(second(1), list(&all));
            cluster.remember(&policy, &cluster.admit(&policy).ledger);
            // Our own Node has another UID: another store, whose lists don't count for five minutes.
            let own = node_of("v1", 1, 1, 10);
            let published = node_of("v2", 2, 1, seed);
            let pending = NodeRecord { state: None, ..published.clone() };
            assert_eq!(cluster.relist(second(2), list(&[own.clone(), pending.clone()])), None);
            let uids = |cluster: &mut Cluster| {
                cluster.settle(second(3), true);
                let admission = cluster.admit(&policy);
                cluster.remember(&policy, &admission.ledger);
                let uid =
                    |name: &str| admission.world.peers.get(&NodeName::new(name)).map(|peer| peer.uid.clone());
                (uid("n2"), uid("n3"))
            };
            let known = |uid: &str| Some(NodeUid::new(uid));
            assert_eq!(uids(&mut cluster), (known("u2"), known("u3")), "{what}: nothing published, so kept");
            if by_event {
                assert!(cluster.apply(second(3), published));
            } else {
                assert_eq!(cluster.relist(second(3), list(&[own, published])), None);
            }
            assert_eq!(uids(&mut cluster), (known("v2"), known("u3")), "{what}: the other one is still kept");
        }
    }
}
