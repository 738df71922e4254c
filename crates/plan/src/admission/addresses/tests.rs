use std::net::IpAddr;

use super::super::tests::{admitted, codes, node, policy};
use super::super::*;

fn ip(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

/// A node that lists these addresses.
fn listing(number: u8, addresses: &[u8]) -> NodeRecord {
    NodeRecord { addresses: addresses.iter().map(|last| ip(*last).to_string()).collect(), ..node(number) }
}

/// The older liar of the finding: n2 lists n3's address as well.
fn liar_and_victim() -> [NodeRecord; 3] {
    [node(1), listing(2, &[2, 3]), listing(3, &[3])]
}

type Tested<'a> = &'a [(u8, u8, Evidence)];

fn knowing(tested: Tested<'_>, records: &[NodeRecord], ledger: &Ledger) -> Admission {
    let evidence = tested
        .iter()
        .map(|(node, last, evidence)| ((NodeUid::new(format!("u{node}")), ip(*last)), *evidence));
    let policy = AdmissionPolicy { evidence: evidence.collect(), ..policy() };
    admit(&policy, &NodeName::new("n1"), records, ledger)
}

/// The last byte of each address that a node has.
fn held(admission: &Admission, number: u8) -> Vec<u8> {
    let last = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => panic!("no IPv6 here"),
    };
    let member = &admission.world.peers[&NodeName::new(format!("n{number}"))];
    member.addresses.iter().map(last).collect()
}

use Evidence::{Proven, Unproven};

#[test]
fn an_older_liar_does_not_get_the_address_of_a_node_that_joins_later() {
    let admission = admitted(&liar_and_victim(), &Ledger::default());
    assert_eq!((held(&admission, 2), held(&admission, 3)), (vec![2], vec![]));
    assert_eq!(codes(&admission), [("n2", "address-contested"), ("n3", "address-contested")]);
    assert!(admission.rejected.iter().all(|rejected| rejected.stays));
    let named = |at: usize| admission.rejected[at].reason.to_string();
    assert!(named(0).contains("u3") && named(1).contains("u2"), "{} {}", named(0), named(1));
    assert_eq!(admission.world.closed, [ip(3)].into());
    let tested: Vec<_> = admission.to_test.iter().map(|claim| (claim.uid.as_str(), claim.address)).collect();
    assert_eq!(tested, [("u2", ip(3)), ("u3", ip(3))]);
    assert_eq!(admission.to_test[0].ports, PerSlot { a: 51840, b: 51841 });
}

#[test]
fn evidence_decides_whatever_the_age_and_whoever_held_the_address() {
    let records = liar_and_victim();
    let of_liar = admitted(&records[..2], &Ledger::default()).ledger;
    let of_victim = admitted(&[records[0].clone(), records[2].clone()], &Ledger::default()).ledger;
    for ledger in [Ledger::default(), of_liar, of_victim] {
        let admission = knowing(&[(2, 3, Unproven), (3, 3, Proven)], &records, &ledger);
        assert_eq!((held(&admission, 2), held(&admission, 3)), (vec![2], vec![3]));
        assert_eq!(codes(&admission), [("n2", "address-taken")]);
        assert!(admission.world.closed.is_empty());
    }
}

#[test]
fn a_claim_that_was_not_tested_may_still_be_proven() {
    let admission = knowing(&[(2, 3, Proven)], &liar_and_victim(), &Ledger::default());
    assert_eq!((held(&admission, 2), held(&admission, 3)), (vec![2], vec![]));
    assert_eq!(admission.world.closed, [ip(3)].into());
}

#[test]
fn an_incumbent_keeps_its_address_until_it_fails_a_test() {
    let records = liar_and_victim();
    let ledger = admitted(&[records[0].clone(), records[2].clone()], &Ledger::default()).ledger;
    let tests: [(Tested<'_>, Vec<u8>); 6] = [
        (&[], vec![3]),
        (&[(2, 3, Unproven)], vec![3]),
        (&[(2, 3, Proven)], vec![3]),
        (&[(2, 3, Proven), (3, 3, Proven)], vec![3]),
        (&[(3, 3, Unproven)], vec![]),
        (&[(2, 3, Unproven), (3, 3, Unproven)], vec![]),
    ];
    for (tested, expected) in tests {
        let admission = knowing(tested, &records, &ledger);
        assert_eq!((held(&admission, 2), held(&admission, 3)), (vec![2], expected.clone()), "{tested:?}");
        assert_eq!(admission.world.closed.contains(&ip(3)), expected.is_empty());
    }
}

#[test]
fn without_an_incumbent_an_address_that_two_nodes_prove_belongs_to_nobody() {
    let tested = [(2, 3, Proven), (3, 3, Proven)];
    let admission = knowing(&tested, &liar_and_victim(), &Ledger::default());
    assert_eq!((held(&admission, 2), held(&admission, 3)), (vec![2], vec![]));
    assert_eq!(admission.world.closed, [ip(3)].into());
}

#[test]
fn a_node_that_is_gone_but_listed_does_not_hold_the_address_of_a_living_one() {
    let records = [node(1), listing(2, &[7]), listing(3, &[7])];
    let ledger = admitted(&records[..2], &Ledger::default()).ledger;
    let admission = knowing(&[(2, 7, Unproven), (3, 7, Proven)], &records, &ledger);
    assert_eq!((held(&admission, 2), held(&admission, 3)), (vec![], vec![7]));
}

#[test]
fn our_own_address_is_ours_untested() {
    for own in [node(1), NodeRecord { pod_cidrs: Vec::new(), ..node(1) }] {
        let admission = admitted(&[own, listing(2, &[1, 2])], &Ledger::default());
        assert_eq!(held(&admission, 2), [2]);
        assert!(codes(&admission).contains(&("n2", "address-taken")));
        assert!(admission.to_test.is_empty() && admission.world.closed.is_empty());
    }
}

#[test]
fn a_node_that_is_not_in_the_mesh_takes_no_address_and_a_member_proves_what_it_lists() {
    let pending = NodeRecord { state: None, ..listing(3, &[3]) };
    let refused = NodeRecord { state: Some("{".to_owned()), ..listing(3, &[3]) };
    for outsider in [pending, refused] {
        let records = [node(1), listing(2, &[2, 3]), outsider];
        let contested = admitted(&records, &Ledger::default());
        assert_eq!((held(&contested, 2), &contested.world.closed), (vec![2], &[ip(3)].into()));
        assert_eq!(contested.to_test.len(), 1);
        let liar = knowing(&[(2, 3, Unproven)], &records, &Ledger::default());
        assert_eq!((held(&liar, 2), &liar.world.closed), (vec![2], &[ip(3)].into()));
        let proven = knowing(&[(2, 3, Proven)], &records, &Ledger::default());
        assert_eq!((held(&proven, 2), proven.world.closed.len()), (vec![2, 3], 0));
    }
}

#[test]
fn internal_addresses_of_nodes_that_are_not_in_the_mesh_are_closed() {
    let pending = |addresses: &[&str]| NodeRecord {
        state: None,
        addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
        external: vec!["203.0.113.3".to_owned()],
        ..node(3)
    };
    let record =
        pending(&["192.0.2.3", "203.0.113.3", "127.0.0.1", "10.244.9.9", "192.0.2.1", "192.0.2.100"]);
    let admission = admitted(&[node(1), record.clone()], &Ledger::default());
    assert_eq!(
        admission.world.closed,
        [ip(3)].into(),
        "not external, special, in the cluster, ours, or the API server's"
    );
    let policy = AdmissionPolicy { node_cidrs: vec!["198.18.0.0/15".parse().unwrap()], ..policy() };
    let outside = admit(&policy, &NodeName::new("n1"), &[node(1), record], &Ledger::default());
    assert!(outside.world.closed.is_empty());
}

#[test]
fn the_api_servers_address_is_closed_only_if_its_nodes_are_in_the_mesh() {
    let server = |number| NodeRecord { control_plane: true, ..listing(number, &[100]) };
    let pending = NodeRecord { state: None, ..server(2) };
    assert!(admitted(&[node(1), pending], &Ledger::default()).world.closed.is_empty());
    let member = admitted(&[node(1), server(2)], &Ledger::default());
    assert_eq!((held(&member, 2), member.world.closed.len()), (vec![100], 0));
    let contested = admitted(&[node(1), server(2), server(3)], &Ledger::default());
    assert_eq!(contested.world.closed, [ip(100)].into());
    // A Node without the role contests nothing.
    let liar = admitted(&[node(1), server(2), listing(3, &[100])], &Ledger::default());
    assert_eq!((held(&liar, 2), liar.to_test.len()), (vec![100], 0));
}

#[test]
fn a_prescribed_port_is_tested_at_its_address() {
    let mut records = liar_and_victim();
    records[2].config_endpoint = Some("192.0.2.3:7000".to_owned());
    let admission = admitted(&records, &Ledger::default());
    assert_eq!(admission.to_test[0].ports, PerSlot { a: 51840, b: 51841 });
    assert_eq!(admission.to_test[1].ports, PerSlot { a: 7000, b: 7001 });
}

/// A cloud VM: the cloud's NAT has the external address, no link of the VM does.
fn vm(number: u8, on_links: &[u8], external: u8) -> NodeRecord {
    let published =
        Endpoints { addresses: on_links.iter().map(|last| ip(*last)).collect(), ..Endpoints::default() };
    NodeRecord {
        external: vec![ip(external).to_string()],
        endpoints: Some(published.render()),
        ..listing(number, &[number, external])
    }
}

#[test]
fn only_addresses_on_its_own_links_are_a_nodes_own() {
    let policy = AdmissionPolicy { own_addresses: Some([ip(1), ip(77)].into()), ..policy() };
    let records = [vm(1, &[1], 201), vm(2, &[2], 202), vm(3, &[3, 203], 203)];
    let admission = admit(&policy, &NodeName::new("n1"), &records, &Ledger::default());
    assert_eq!(admission.world.own.as_ref().unwrap().addresses, [ip(1)]);
    assert_eq!((held(&admission, 2), held(&admission, 3)), (vec![2], vec![3, 203]));
    assert!(
        admission.rejected.is_empty() && admission.world.closed.is_empty() && admission.to_test.is_empty()
    );
    let external = |number: u8| &admission.world.peers[&NodeName::new(format!("n{number}"))].reach.external;
    assert_eq!((external(2), external(3)), (&vec![ip(202)], &vec![]), "a way to reach it nevertheless");
}

#[test]
fn an_external_address_of_another_node_has_to_be_proven_by_who_lists_it_as_its_own() {
    let policy = AdmissionPolicy { own_addresses: Some([ip(1)].into()), ..policy() };
    let records = [vm(1, &[1], 201), vm(2, &[2], 202), listing(3, &[3, 201, 202])];
    let admission = admit(&policy, &NodeName::new("n1"), &records, &Ledger::default());
    assert_eq!(held(&admission, 3), [3]);
    let tested: Vec<_> = admission.to_test.iter().map(|claim| (claim.uid.as_str(), claim.address)).collect();
    assert_eq!(tested, [("u3", ip(201)), ("u3", ip(202))]);
    assert_eq!(admission.world.closed, [ip(201), ip(202)].into());
}

#[test]
fn external_addresses_that_nobody_holds_are_closed_where_that_is_wanted() {
    let policy =
        |close_external| AdmissionPolicy { close_external, own_addresses: Some([ip(1)].into()), ..policy() };
    let pending = |external: u8| NodeRecord { state: None, ..vm(4, &[4], external) };
    for (what, others, closed) in [
        ("on no link", vec![vm(2, &[2], 202)], vec![201, 202]),
        ("on a link of its node", vec![vm(2, &[2, 202], 202)], vec![201]),
        ("held by another node", vec![vm(2, &[2], 203), listing(3, &[3, 203])], vec![201, 203]),
        ("of a Node that is not in the mesh", vec![pending(204)], vec![201, 204]),
        ("where the API server is", vec![pending(100)], vec![201]),
        (
            "in the cluster",
            vec![NodeRecord { addresses: vec!["10.244.9.9".to_owned()], ..pending(9) }],
            vec![201],
        ),
    ] {
        let records = [&[vm(1, &[1], 201)], others.as_slice()].concat();
        let admit = |close| admit(&policy(close), &NodeName::new("n1"), &records, &Ledger::default());
        let mut expected: BTreeSet<IpAddr> = closed.into_iter().map(ip).collect();
        let mut found = admit(true).world.closed;
        // The internal address of the Node that is not in the mesh.
        found.remove(&ip(4));
        assert_eq!(found, expected, "{what}");
        // Contested ones are closed anyway.
        expected.retain(|address| what == "held by another node" && *address == ip(203));
        let mut found = admit(false).world.closed;
        found.remove(&ip(4));
        assert_eq!(found, expected, "{what}, off");
    }
    // A kubelet must not be able to close any address of the Internet.
    let within = AdmissionPolicy { node_cidrs: vec!["192.0.2.0/25".parse().unwrap()], ..policy(true) };
    let records = [vm(1, &[1], 101), vm(2, &[2], 202)];
    assert_eq!(
        admit(&within, &NodeName::new("n1"), &records, &Ledger::default()).world.closed,
        [ip(101)].into()
    );
}
