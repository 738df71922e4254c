//! Turns of the loop without a node: what the API server says and what is observed in, what is decided out.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use keyring::{PerSlot, PublicKey, Slot};
use plan::admission::{AdmissionPolicy, Endpoint, Ledger};
use plan::annotation::{Endpoints, Phase, SlotState, State};
use plan::backoff::{Attempt, Backoff};
use plan::brake::HOLD;
use plan::cluster::{Cluster, Lookup};
use plan::desired::{Setup, Underlay};
use plan::network::Network;
use plan::node::{NodeName, NodeRecord, NodeUid};
use plan::op::Op;
use plan::turn::{
    ApiServer, Known, Observed, Questions, Turn, answer_counts, decide, questions, renew_for_backend,
};

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes(&[byte; 32]).unwrap()
}

/// A Node of number `number`, in its `life`th life: each has a UID of its own.
fn node(number: u8, life: u8) -> NodeRecord {
    let uid = NodeUid::new(format!("u{number}-{life}"));
    let slot = |slot, port| SlotState { key: key(2 * number + slot), generation: 1, port };
    let state = State {
        uid: uid.clone(),
        generation: 1,
        slots: PerSlot { a: slot(0, 51840), b: slot(1, 51841) },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    };
    let address = format!("192.0.2.{number}");
    NodeRecord {
        name: NodeName::new(format!("n{number}")),
        uid,
        created: format!("2026-01-{:02}T00:00:{number:02}Z", life + 1),
        pod_cidrs: vec![format!("10.244.{number}.0/24")],
        addresses: vec![address.clone()],
        state: Some(state.render()),
        endpoints: Some(
            Endpoints { addresses: vec![address.parse().unwrap()], ..Endpoints::default() }.render(),
        ),
        ..NodeRecord::default()
    }
}

/// A Node that was recreated, and whose daemon has not published anything yet.
fn recreated(number: u8) -> NodeRecord {
    NodeRecord { state: None, endpoints: None, ..node(number, 1) }
}

fn list(records: impl IntoIterator<Item = NodeRecord>) -> BTreeMap<NodeName, NodeRecord> {
    records.into_iter().map(|record| (record.name.clone(), record)).collect()
}

/// The loop on node n1 without anything around it.
struct Node {
    cluster: Cluster,
    network: Network,
    backoff: Backoff,
    keys: PerSlot<PublicKey>,
    generation: u64,
    outdated: BTreeSet<Slot>,
    last: Option<Turn>,
    /// Endpoint of every peer, whatever it published.
    endpoint: Option<Endpoint>,
    /// Addresses of Nodes that no member holds.
    closed: BTreeSet<IpAddr>,
}

impl Node {
    /// A node that has listed nodes 1 to `count` and has taken a turn.
    fn of(count: u8) -> Self {
        let cluster = Cluster::remembered(NodeName::new("n1"), Ledger::default(), None);
        let mut node = Self {
            cluster,
            network: Network::default(),
            backoff: Backoff::default(),
            keys: PerSlot { a: key(2), b: key(3) },
            generation: 1,
            outdated: BTreeSet::new(),
            last: None,
            endpoint: None,
            closed: BTreeSet::new(),
        };
        assert_eq!(node.cluster.relist(at(0), list((1..=count).map(first_life))), None);
        node.turn(at(0), &[]);
        assert_eq!(node.peers().len(), usize::from(count) - 1);
        node
    }

    /// One turn, in which every step succeeds but those that are `failing`.
    fn turn(&mut self, now: Duration, failing: &[&str]) -> Vec<Op> {
        self.cluster.release(now);
        let policy = AdmissionPolicy {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            own_keys: [self.keys.a, self.keys.b].into(),
            accept_unproven: true,
            ipv4: true,
            ..AdmissionPolicy::default()
        };
        let mut admission = self.cluster.admit(&policy);
        for member in admission.world.peers.values_mut() {
            member.endpoint = self.endpoint.or(member.endpoint);
        }
        admission.world.closed.clone_from(&self.closed);
        let setup = Setup {
            open_node_cidrs: ["192.0.2.128/25".parse().unwrap()].into(),
            ..setup::setup(&policy.cluster_cidrs, &[], self.keys)
        };
        let underlay = Underlay { mtu: 1500, mtu_to: BTreeMap::new(), passes: BTreeMap::new() };
        let known = Known::new(admission, setup, underlay, self.generation, self.backoff.clone());
        let observed = Observed {
            network: self.network.clone(),
            outdated: self.outdated.clone(),
            ..Observed::default()
        };
        let turn = decide(known, observed, now);
        self.network = turn.observed.clone();
        self.backoff = turn.backoff.clone();
        for op in &turn.due {
            if failing.iter().any(|text| op.to_string().contains(text)) {
                self.backoff.failed(now, Attempt::step(op), "refused".to_owned());
            } else {
                self.network.apply(op).unwrap();
                self.backoff.succeeded(&Attempt::step(op));
            }
        }
        self.cluster.remember(&policy, &turn.admission.ledger);
        let due = turn.due.clone();
        self.last = Some(turn);
        due
    }

    fn peers(&self) -> BTreeSet<String> {
        let peers = self.last.as_ref().unwrap().admission.world.peers.keys();
        peers.map(ToString::to_string).collect()
    }
}

#[test]
fn a_plan_that_is_refused_still_restores_the_guard() {
    let mut node = Node::of(3);
    node.endpoint = Some(Endpoint { address: "10.244.2.9".parse().unwrap(), port: None });
    node.network.guard = None;
    let due = node.turn(at(1), &[]);
    let turn = node.last.as_ref().unwrap();
    assert!(
        !turn.violations.is_empty() && !turn.waiting.is_empty(),
        "the endpoint would be inside the tunnel"
    );
    assert!(matches!(due[..], [Op::SetGuard(_)]), "{due:?}");
    assert_eq!(turn.applied(&node.backoff), None);
}

#[test]
fn addresses_of_nodes_outside_the_mesh_are_closed_but_for_exceptions_and_the_node_s_own() {
    let mut node = Node::of(2);
    let own = node.last.as_ref().unwrap().admission.world.own.as_ref().unwrap().addresses[0];
    node.closed = [own, "192.0.2.9".parse().unwrap(), "192.0.2.200".parse().unwrap()].into();
    let due = node.turn(at(1), &[]);
    let [Op::SetGuard(guard)] = due.as_slice() else { panic!("{due:?}") };
    assert_eq!(guard.closed, ["192.0.2.9".parse().unwrap()].into(), "open: 192.0.2.128/25");
    assert_eq!(node.turn(at(2), &[]), [], "it is not written again");
    node.closed.clear();
    assert!(matches!(&node.turn(at(3), &[])[..], [Op::SetGuard(guard)] if guard.closed.is_empty()));
}

fn first_life(number: u8) -> NodeRecord {
    node(number, 0)
}

fn names(numbers: &[u8]) -> BTreeSet<NodeName> {
    numbers.iter().map(|number| NodeName::new(format!("n{number}"))).collect()
}

#[test]
fn a_relist_of_the_same_nodes_leads_to_no_step() {
    let mut node = Node::of(6);
    assert_eq!(node.cluster.relist(at(1), list((1..=6).map(first_life))), None);
    assert_eq!(node.turn(at(1), &[]), []);
}

#[test]
fn a_refreshed_record_with_the_same_contents_is_no_change() {
    let mut node = Node::of(6);
    assert!(!node.cluster.apply(at(1), first_life(2)));
    let other = NodeRecord { addresses: vec!["192.0.2.99".to_owned()], ..first_life(2) };
    assert!(node.cluster.apply(at(1), other));
}

#[test]
fn a_relist_without_one_of_many_nodes_removes_it_at_once() {
    let mut node = Node::of(7);
    assert_eq!(node.cluster.relist(at(1), list((1..=6).map(first_life))), None, "no need to ask");
    node.turn(at(1), &[]);
    assert!(!node.peers().contains("n7"));
    assert_eq!(node.network.devices[&Slot::A].peers.len(), 5);
}

#[test]
fn a_mass_loss_changes_nothing_until_it_is_confirmed() {
    let mut node = Node::of(6);
    let lookup =
        node.cluster.relist(at(1), list((1..=3).map(first_life))).expect("half of the nodes are missing");
    assert_eq!(lookup.missing, names(&[4, 5, 6]));
    assert_eq!(node.turn(at(1), &[]), [], "everything stays while the API server is asked");
    assert_eq!(node.cluster.brakes(), 0, "it is not known yet whether the brake is needed");

    // Each of them is really gone.
    let mut confirmed = Node { cluster: node.cluster.clone(), ..Node::of(6) };
    assert!(confirmed.cluster.confirm(at(2), lookup.list, &lookup.missing));
    confirmed.turn(at(2), &[]);
    assert_eq!(confirmed.peers().len(), 2);
    assert_eq!(confirmed.cluster.brakes(), 0);

    // One of them is not: the list is not believed about any of them.
    assert!(!node.cluster.confirm(at(2), lookup.list, &names(&[4, 5])));
    assert_eq!(node.turn(at(2), &[]), []);
    assert_eq!(node.cluster.brakes(), 1);
    assert_eq!(node.turn(at(1) + HOLD, &[]), [], "not before the hold, counted from the answer, is over");
    node.turn(at(2) + HOLD, &[]);
    assert_eq!(node.peers().len(), 2);
}

#[test]
fn an_answer_about_an_older_list_counts_for_nothing() {
    let mut node = Node::of(6);
    let older = node.cluster.relist(at(1), list((1..=3).map(first_life))).unwrap();
    let newer = node.cluster.relist(at(2), list((1..=2).map(first_life))).unwrap();
    assert!(!node.cluster.confirm(at(3), older.list, &names(&[3, 4, 5, 6])));
    node.turn(at(3), &[]);
    assert_eq!(node.peers().len(), 5);
    assert!(node.cluster.confirm(at(4), newer.list, &names(&[3, 4, 5, 6])));
}

#[test]
fn while_lookups_hang_turns_go_on_and_repair_the_node() {
    let mut node = Node::of(6);
    let lookup = node.cluster.relist(at(1), list((1..=3).map(first_life)));
    assert!(lookup.is_some());
    // No answer comes; meanwhile the guard and a peer are removed by hand.
    for second in 2..200 {
        node.network.guard = None;
        let gone = node.network.devices[&Slot::B].peers.keys().next_back().copied().unwrap();
        node.network.devices.get_mut(&Slot::B).unwrap().peers.remove(&gone);
        let due = node.turn(at(second), &[]);
        assert!(matches!(&due[..], [Op::SetGuard(_), Op::AddPeer { .. }]), "{due:?}");
        assert_eq!(node.peers().len(), 5);
    }
    // Without an answer the missing Nodes are let go when the hold is over.
    node.turn(at(1) + HOLD, &[]);
    assert_eq!(node.peers().len(), 2);
}

#[test]
fn a_list_without_our_own_node_removes_no_peer_and_is_not_looked_into() {
    let mut node = Node::of(6);
    assert_eq!(node.cluster.relist(at(1), list((2..=3).map(first_life))), None);
    assert_eq!(node.turn(at(10_000), &[]), []);
    assert_eq!(node.peers().len(), 5);
    assert_eq!(node.cluster.brakes(), 1);
}

#[test]
fn a_recreated_node_keeps_its_peer_until_its_daemon_publishes() {
    let mut node = Node::of(6);
    // Six nodes, one recreated: a fifth of the peers is too few for the brake.
    let records = (1..=6).map(|number| if number == 4 { recreated(4) } else { first_life(number) });
    assert_eq!(node.cluster.relist(at(1), list(records)), None);
    node.turn(at(1), &[]);
    assert!(!node.peers().contains("n4"), "one of five peers is not worth holding on to");

    // All recreated, our own as well: a restored or emptied store. Everything stays.
    let mut node = Node::of(6);
    assert_eq!(node.cluster.relist(at(1), list((1..=6).map(recreated))), None, "no answer makes it credible");
    assert_eq!(node.turn(at(1), &[]), []);
    // Daemon after daemon publishes; each keeps its keys, so its sessions go on.
    for number in 2..=6 {
        assert!(node.cluster.apply(at(2), self::node(number, 1)));
        assert_eq!(node.turn(at(2), &[]), []);
    }
    assert_eq!(node.cluster.kept().count(), 1, "our own, until we have published");
}

#[test]
fn an_outdated_device_is_replaced_with_its_key_and_not_before() {
    let mut node = Node::of(3);
    node.outdated = [Slot::A, Slot::B].into();
    assert_eq!(node.turn(at(1), &[]), [], "it carries traffic");
    node.keys.b = key(90);
    let due = node.turn(at(2), &[]);
    let removed = due.iter().find(|op| matches!(op, Op::RemoveDevice { .. }));
    assert_eq!(removed, None, "the link is replaced where the device is created");
    assert!(matches!(
        &due[..],
        [Op::CreateDevice { slot: Slot::B, .. }, Op::SetKey { slot: Slot::B, .. }, ..]
    ));
    // One of the same backend keeps its device.
    node.outdated.clear();
    node.keys.a = key(91);
    let due = node.turn(at(3), &[]);
    assert!(!due.iter().any(|op| matches!(op, Op::CreateDevice { .. })), "{due:?}");
    assert!(due.contains(&Op::SetKey { slot: Slot::A, key: key(91) }));
}

#[test]
fn keys_are_renewed_for_a_backend_only_while_all_is_quiet() {
    let now = at(1_000);
    for (outdated, rotating, failing, last, renew) in [
        (true, false, false, None, true),
        (false, false, false, None, false),
        (true, true, false, None, false),
        (true, false, true, None, false),
        (true, false, false, Some(at(401)), false),
        (true, false, false, Some(at(400)), true),
    ] {
        assert_eq!(renew_for_backend(outdated, rotating, failing, last, now), renew);
    }
}

#[test]
fn a_plan_counts_for_the_keys_that_it_was_made_for() {
    let mut node = Node::of(3);
    node.turn(at(1), &[]);
    // The keys are replaced after the plan was made: what was performed is the former generation.
    let turn = node.last.clone().unwrap();
    node.generation = 2;
    node.keys.b = key(90);
    assert_eq!(turn.applied(&node.backoff), Some(1));
    // The next plan fails at one step: its generation is not in place, and the former plan's no longer is.
    node.turn(at(2), &["+ peer"]);
    assert_eq!(node.last.as_ref().unwrap().applied(&node.backoff), None);
    node.turn(at(3), &[]);
    assert_eq!(node.last.as_ref().unwrap().applied(&node.backoff), Some(2));
}

#[test]
fn while_a_step_waits_the_generation_is_not_in_place() {
    let mut node = Node::of(3);
    node.generation = 2;
    node.keys.b = key(90);
    for (now, tried) in [(2_000, 2), (2_500, 2), (3_000, 0), (3_500, 2), (4_000, 0)] {
        let due = node.turn(Duration::from_millis(now), &["+ peer"]);
        let added = due.iter().filter(|op| matches!(op, Op::AddPeer { .. })).count();
        assert_eq!(added, tried, "at {now} ms");
        assert_eq!(node.last.as_ref().unwrap().applied(&node.backoff), None, "at {now} ms");
    }
}

#[test]
fn the_api_server_is_asked_when_connected_and_then_every_ten_minutes() {
    let other = Some(NodeName::new("n2"));
    let api = |connected, addresses_asked, fence_tested, other: &Option<NodeName>| ApiServer {
        connected,
        addresses_known: true,
        addresses_asked,
        fence_tested,
        other: other.clone(),
    };
    let both = Questions { addresses: true, fence: other.clone() };
    for (api, expected) in [
        (api(true, None, None, &other), both.clone()),
        (api(false, None, None, &other), Questions::default()),
        (api(true, Some(at(401)), Some(at(401)), &other), Questions::default()),
        (api(true, Some(at(400)), Some(at(400)), &other), both),
        (api(true, None, None, &None), Questions { addresses: true, fence: None }),
        (api(true, Some(at(900)), None, &other), Questions { addresses: false, fence: other.clone() }),
    ] {
        assert_eq!(questions(&api, at(1_000)), expected, "{api:?}");
    }
    // Until it has named its addresses it is asked sooner.
    for (asked, expected) in [(971, false), (970, true)] {
        let api = ApiServer { addresses_known: false, ..api(true, Some(at(asked)), Some(at(401)), &other) };
        assert_eq!(questions(&api, at(1_000)).addresses, expected, "{api:?}");
    }
}

#[test]
fn a_lookup_names_its_list() {
    let mut node = Node::of(6);
    let first = node.cluster.relist(at(1), list((1..=3).map(first_life)));
    let second = node.cluster.relist(at(1), list((1..=3).map(first_life)));
    let missing = names(&[4, 5, 6]);
    assert_eq!(first, Some(Lookup { list: 2, missing: missing.clone() }));
    assert_eq!(second, Some(Lookup { list: 3, missing }));
}

#[test]
fn an_answer_counts_only_when_this_node_has_left_the_drained_slot() {
    for (drains, sends_on, counts) in [
        (Some(Slot::B), Some(Slot::A), true),
        (Some(Slot::B), Some(Slot::B), false),
        (Some(Slot::B), None, true),
        (None, Some(Slot::B), true),
        (None, None, true),
    ] {
        assert_eq!(answer_counts(drains, sends_on), counts, "drains {drains:?}, sends on {sends_on:?}");
    }
}
