use super::*;
use crate::annotation::{Phase, SlotState};
use keyring::PerSlot;

pub(crate) fn policy() -> AdmissionPolicy {
    AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        accept_unproven: true,
        api_servers: ["192.0.2.100".parse().unwrap()].into(),
        ipv4: true,
        ipv6: true,
        ..AdmissionPolicy::default()
    }
}

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes(&[byte; 32]).unwrap()
}

fn state(number: u8) -> State {
    State {
        uid: NodeUid::new(format!("u{number}")),
        generation: 1,
        slots: PerSlot {
            a: SlotState { key: key(2 * number), generation: 1, port: 51840 },
            b: SlotState { key: key(2 * number + 1), generation: 1, port: 51841 },
        },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    }
}

pub(crate) fn node(number: u8) -> NodeRecord {
    NodeRecord {
        name: NodeName::new(format!("n{number}")),
        uid: NodeUid::new(format!("u{number}")),
        created: format!("2026-01-01T00:00:{number:02}Z"),
        pod_cidrs: vec![format!("10.244.{number}.0/24")],
        addresses: vec![format!("192.0.2.{number}")],
        state: Some(state(number).render()),
        endpoints: Some(
            Endpoints {
                addresses: vec![format!("192.0.2.{number}").parse().unwrap()],
                ..Endpoints::default()
            }
            .render(),
        ),
        ..NodeRecord::default()
    }
}

pub(crate) fn admitted(records: &[NodeRecord], ledger: &Ledger) -> Admission {
    admit(&policy(), &NodeName::new("n1"), records, ledger)
}

pub(crate) fn codes(admission: &Admission) -> Vec<(&str, &str)> {
    admission.rejected.iter().map(|rejected| (rejected.node.as_str(), rejected.reason.code())).collect()
}

fn members(admission: &Admission) -> Vec<&str> {
    admission.world.peers.keys().map(NodeName::as_str).collect()
}

#[test]
fn good_nodes_are_members_and_our_own_is_not_a_peer() {
    let admission = admitted(&[node(1), node(2), node(3)], &Ledger::default());
    assert_eq!(members(&admission), ["n2", "n3"]);
    assert_eq!(admission.world.own.as_ref().unwrap().addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    let member = &admission.world.peers[&NodeName::new("n2")];
    assert_eq!(member.socket(Slot::A).unwrap().to_string(), "192.0.2.2:51840");
    assert_eq!(member.socket(Slot::B).unwrap().to_string(), "192.0.2.2:51841");
    assert!(admission.rejected.is_empty() && admission.pending.is_empty());
}

#[test]
fn a_node_without_annotation_or_pod_cidr_is_pending() {
    let silent = NodeRecord { state: None, ..node(2) };
    let without_pod_cidr = NodeRecord { pod_cidrs: Vec::new(), ..node(3) };
    let admission = admitted(&[node(1), silent, without_pod_cidr], &Ledger::default());
    assert_eq!(admission.pending, [NodeName::new("n2"), NodeName::new("n3")]);
    assert!(admission.rejected.is_empty());
}

#[test]
fn every_reason_has_a_case() {
    let with = |change: &dyn Fn(&mut NodeRecord)| {
        let mut record = node(3);
        change(&mut record);
        record
    };
    let text = |change: &dyn Fn(&mut State)| {
        let mut state = state(3);
        change(&mut state);
        Some(state.render())
    };
    // Whole node rejected.
    for (code, record) in [
        ("annotation-json", with(&|node| node.state = Some("{".to_owned()))),
        ("annotation-too-large", with(&|node| node.state = Some("x".repeat(1 << 20)))),
        ("annotation-version", with(&|node| node.state = Some("{\"v\":9}".to_owned()))),
        ("uid-foreign", with(&|node| node.uid = NodeUid::new("other"))),
        ("key-taken", with(&|node| node.state = text(&|state| state.slots.a.key = key(4)))),
        ("key-taken", with(&|node| node.state = text(&|state| state.slots.b.key = key(4)))),
        ("port-twice", with(&|node| node.state = text(&|state| state.slots.b.port = 51840))),
        ("port-zero", with(&|node| node.state = text(&|state| state.slots.b.port = 0))),
        ("generation-bounds", with(&|node| node.state = text(&|state| state.generation = u64::MAX))),
        ("pod-cidr-invalid", with(&|node| node.pod_cidrs = vec!["10.244.3.1/24".to_owned()])),
        (
            "pod-cidr-invalid",
            with(&|node| node.pod_cidrs = vec!["10.244.3.0/24".to_owned(), "10.244.3.0/25".to_owned()]),
        ),
        ("pod-cidr-outside", with(&|node| node.pod_cidrs = vec!["0.0.0.0/0".to_owned()])),
        ("pod-cidr-taken", with(&|node| node.pod_cidrs = vec!["10.244.2.128/25".to_owned()])),
        ("pod-cidr-taken", with(&|node| node.pod_cidrs = vec!["10.244.0.0/16".to_owned()])),
    ] {
        let admission = admitted(&[node(1), node(2), record], &Ledger::default());
        assert_eq!(codes(&admission), [("n3", code)], "{code}");
        assert!(!admission.rejected[0].stays && !admission.rejected[0].reason.to_string().is_empty());
        assert_eq!(members(&admission), ["n2"], "{code}: the others are not touched");
    }
    // A part refused, the node stays.
    for (code, record) in [
        ("address-of-api-server", with(&|node| node.addresses = vec!["192.0.2.100".to_owned()])),
        ("address-in-cluster-range", with(&|node| node.addresses = vec!["10.244.9.9".to_owned()])),
        ("address-special", with(&|node| node.addresses = vec!["::1".to_owned()])),
        ("address-invalid", with(&|node| node.addresses = vec!["x".repeat(1 << 20)])),
        (
            "endpoints-too-many",
            with(&|node| {
                let addresses = vec!["192.0.2.9".parse().unwrap(); 17];
                node.endpoints = Some(Endpoints { addresses, ..Endpoints::default() }.render());
            }),
        ),
        (
            "addresses-cut",
            with(&|node| node.addresses = (3..20).map(|last| format!("192.0.2.{last}")).collect()),
        ),
        ("config-endpoint", with(&|node| node.config_endpoint = Some("example_org:1".to_owned()))),
        ("config-endpoint", with(&|node| node.config_endpoint = Some("10.244.2.2".to_owned()))),
        ("config-endpoint", with(&|node| node.config_endpoint = Some("192.0.2.9:65535".to_owned()))),
        ("config-keepalive", with(&|node| node.config_keepalive = Some("-1".to_owned()))),
    ] {
        let admission = admitted(&[node(1), node(2), record], &Ledger::default());
        assert_eq!(codes(&admission), [("n3", code)], "{code}");
        assert!(admission.rejected[0].stays);
        assert_eq!(members(&admission), ["n2", "n3"], "{code}");
    }
}

#[test]
fn no_other_node_may_have_our_key() {
    let policy = AdmissionPolicy { own_keys: [key(6)].into(), ..policy() };
    let admission = admit(&policy, &NodeName::new("n1"), &[node(1), node(3)], &Ledger::default());
    assert_eq!(codes(&admission), [("n3", "key-own")]);
}

#[test]
fn the_api_servers_address_needs_the_control_plane_role() {
    let policy = AdmissionPolicy { api_servers: ["192.0.2.2".parse().unwrap()].into(), ..policy() };
    let admission = admit(&policy, &NodeName::new("n1"), &[node(1), node(2)], &Ledger::default());
    assert_eq!(codes(&admission), [("n2", "address-of-api-server")]);
    let control_plane = NodeRecord { control_plane: true, ..node(2) };
    let admission = admit(&policy, &NodeName::new("n1"), &[node(1), control_plane], &Ledger::default());
    assert!(admission.rejected.is_empty());
}

#[test]
fn node_addresses_stay_in_their_ranges_if_there_are_some() {
    let policy = AdmissionPolicy { node_cidrs: vec!["192.0.2.0/31".parse().unwrap()], ..policy() };
    let admission = admit(&policy, &NodeName::new("n1"), &[node(1), node(2)], &Ledger::default());
    assert_eq!(codes(&admission), [("n2", "address-outside")]);
}

#[test]
fn an_incumbent_keeps_what_an_older_newcomer_claims() {
    let ledger = admitted(&[node(1), node(5)], &Ledger::default()).ledger;
    let mut older = node(2);
    older.pod_cidrs.clone_from(&node(5).pod_cidrs);
    let admission = admitted(&[node(1), older.clone(), node(5)], &ledger);
    assert_eq!(codes(&admission), [("n2", "pod-cidr-taken")]);
    let fresh = admitted(&[node(1), older, node(5)], &Ledger::default());
    assert_eq!(codes(&fresh), [("n5", "pod-cidr-taken")], "between newcomers the older one wins");
}

#[test]
fn a_known_node_cannot_take_the_key_of_a_known_node() {
    let ledger = admitted(&[node(1), node(2), node(3)], &Ledger::default()).ledger;
    let mut thief = node(2);
    let mut stolen = state(2);
    stolen.generation = 2;
    stolen.slots.a.key = key(6);
    thief.state = Some(stolen.render());
    let admission = admitted(&[node(1), thief, node(3)], &ledger);
    assert_eq!(codes(&admission), [("n2", "key-taken")]);
    assert_eq!(members(&admission), ["n2", "n3"], "both stay with their own keys");
    assert_eq!(admission.world.peers[&NodeName::new("n2")].state, state(2));
}

#[test]
fn the_last_accepted_state_is_kept_until_a_higher_generation() {
    let ledger = admitted(&[node(1), node(2)], &Ledger::default()).ledger;
    let mut next = state(2);
    next.slots.b.key = key(77);
    for (generation, code) in [(0, "generation-went-back"), (1, "generation-reused")] {
        next.generation = generation;
        let record = NodeRecord { state: Some(next.render()), ..node(2) };
        let admission = admitted(&[node(1), record], &ledger);
        assert_eq!(codes(&admission), [("n2", code)]);
        assert_eq!(admission.world.peers[&NodeName::new("n2")].state, state(2));
        assert_eq!(admission.ledger, ledger, "what was refused is not remembered");
    }
    next.generation = 2;
    let record = NodeRecord { state: Some(next.render()), ..node(2) };
    let admission = admitted(&[node(1), record], &ledger);
    assert!(admission.rejected.is_empty());
    assert_eq!(admission.world.peers[&NodeName::new("n2")].state, next);
}

#[test]
fn a_recreated_node_replaces_the_former_one() {
    let ledger = admitted(&[node(1), node(2)], &Ledger::default()).ledger;
    let mut recreated = NodeRecord { uid: NodeUid::new("new"), ..node(2) };
    recreated.state = Some(State { uid: NodeUid::new("new"), ..state(2) }.render());
    let admission = admitted(&[node(1), recreated], &ledger);
    assert!(admission.rejected.is_empty(), "{:?}", admission.rejected);
    assert_eq!(admission.world.peers[&NodeName::new("n2")].uid, NodeUid::new("new"));
}

#[test]
fn endpoints_are_those_that_we_can_send_to() {
    let mut record = node(2);
    let addresses = vec!["2001:db8::2".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    record.endpoints = Some(Endpoints { addresses, nat: true, ..Endpoints::default() }.render());
    let policy = AdmissionPolicy { ipv6: false, ..policy() };
    let of = |record: &NodeRecord| {
        let admission = admit(&policy, &NodeName::new("n1"), &[node(1), record.clone()], &Ledger::default());
        admission.world.peers[&NodeName::new("n2")].clone()
    };
    assert_eq!(of(&record).socket(Slot::A).unwrap().to_string(), "192.0.2.2:51840");
    assert!(of(&record).nat);
    record.config_endpoint = Some("203.0.113.7:7000".to_owned());
    assert_eq!(of(&record).socket(Slot::A).unwrap().to_string(), "203.0.113.7:7000");
    assert_eq!(of(&record).socket(Slot::B).unwrap().to_string(), "203.0.113.7:7001");
}

#[test]
fn an_operators_name_is_tried_alone_once_it_is_resolved_and_answers_inside_the_cluster_are_refused() {
    let record = NodeRecord { config_endpoint: Some("N2.example.org:7000".to_owned()), ..node(2) };
    let of = |answer: Option<&[&str]>| {
        let name = "n2.example.org".parse().unwrap();
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let resolved = answer.map(|texts| (name, addresses(texts))).into_iter().collect();
        let policy = AdmissionPolicy { resolved, ..policy() };
        let admission = admit(&policy, &NodeName::new("n1"), &[node(1), record.clone()], &Ledger::default());
        let codes: Vec<&str> = admission.rejected.iter().map(|rejected| rejected.reason.code()).collect();
        let member = admission.world.peers[&NodeName::new("n2")].clone();
        assert_eq!(member.name.unwrap().as_str(), "n2.example.org");
        let prescribed = member.prescribed.map(|endpoints| {
            endpoints.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.port)).collect::<Vec<_>>()
        });
        (prescribed, codes)
    };
    assert_eq!(of(None), (Some(Vec::new()), Vec::new()), "it is being looked up");
    assert_eq!(of(Some(&[])), (None, vec!["config-endpoint-unresolved"]));
    let good = || ("203.0.113.7".to_owned(), Some(7000));
    assert_eq!(of(Some(&["203.0.113.7"])), (Some(vec![good()]), Vec::new()));
    // Of pods and services.
    assert_eq!(of(Some(&["10.244.2.2", "203.0.113.7", "10.96.0.1"])), (Some(vec![good()]), Vec::new()));
    assert_eq!(of(Some(&["10.244.2.2"])), (None, vec!["config-endpoint"]));
}

#[test]
fn a_ledger_survives_serialization() {
    let ledger = admitted(&[node(1), node(2), node(3)], &Ledger::default()).ledger;
    let text = serde_json::to_string(&ledger).unwrap();
    let read: Ledger = serde_json::from_str(&text).unwrap();
    assert_eq!(read, ledger);
    let records: Vec<NodeRecord> = read.records().into_values().cloned().collect();
    assert_eq!(admitted(&records, &read), admitted(&[node(1), node(2), node(3)], &ledger));
}

#[test]
fn addresses_beyond_the_sixteenth_are_nobodys_and_closed_unless_another_node_holds_them() {
    let address = |last: u8| IpAddr::from([198, 51, 100, last]);
    let many = NodeRecord { addresses: (1..=70).map(|last| address(last).to_string()).collect(), ..node(2) };
    let honest = NodeRecord { addresses: vec![address(20).to_string()], ..node(3) };
    let admission = admitted(&[node(1), many, honest], &Ledger::default());
    let held = |name: &str| admission.world.peers[&NodeName::new(name)].addresses.clone();
    assert_eq!(held("n2"), (1..=16).map(address).collect::<Vec<_>>(), "the first, in the order of the list");
    assert_eq!(held("n3"), [address(20)], "a list that is too long takes nothing from another node");
    let closed = (17..=64).filter(|last| *last != 20).map(address).collect();
    assert_eq!(admission.world.closed, closed);
    assert_eq!(codes(&admission), [("n2", "addresses-cut")]);
    let text = admission.rejected[0].reason.to_string();
    assert!(text.contains("70") && text.contains("16") && text.contains("64"), "{text}");
}

#[test]
fn what_a_node_and_its_neighbours_say_is_filtered_and_grants_nothing() {
    let told = |observed: &[&str], sequence| Endpoints {
        addresses: vec!["192.0.2.2".parse().unwrap(), "192.0.2.100".parse().unwrap()],
        observed: PerSlot { a: observed.iter().map(|text| text.parse().unwrap()).collect(), b: Vec::new() },
        sequence,
        ..Endpoints::default()
    };
    let own_list = told(&["203.0.113.7:4000", "10.244.9.9:4000"], 3);
    let hearsay = told(&["203.0.113.9:5000", "10.96.0.1:443"], 4);
    let heard = Heard { told: Some(own_list), hearsay: Some(hearsay) };
    let policy = AdmissionPolicy { heard: [(NodeUid::new("u2"), heard)].into(), ..policy() };
    let records = [node(1), node(2)];
    let admit = |policy: &AdmissionPolicy| {
        admit(policy, &NodeName::new("n1"), &records, &Ledger::default()).world.peers[&NodeName::new("n2")]
            .clone()
    };
    let (with, without) = (admit(&policy), admit(&tests::policy()));
    assert_eq!(with.reach.addresses, ["192.0.2.2".parse::<IpAddr>().unwrap()], "not the API server's");
    let sockets = ["203.0.113.9:5000", "203.0.113.7:4000"].map(|text| text.parse::<SocketAddr>().unwrap());
    assert_eq!(with.reach.observed.a, sockets, "no pod or service address");
    assert_eq!((with.published, with.reach.sequence), (0, 3));
    assert_eq!((&with.addresses, &with.pod_cidrs), (&without.addresses, &without.pod_cidrs));
    // What is published by now counts, whatever was told before.
    let heard = Heard { told: Some(told(&[], 0)), hearsay: None };
    let stale = AdmissionPolicy { heard: [(NodeUid::new("u2"), heard)].into(), ..policy };
    assert_eq!(admit(&stale), without);
}
