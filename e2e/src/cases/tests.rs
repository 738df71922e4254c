//! Tests of commands and expectations.

use super::*;

fn inventory() -> Inventory {
    let node = |number: u8| Node {
        name: format!("n{number}"),
        addresses: vec![IpAddr::from([198, 18, 0, number])],
        ranges: vec![format!("10.244.{number}.0/24").parse().unwrap()],
    };
    let pod = |set: &str, number: u8, last: u8| Pod {
        name: format!("{set}-{number}"),
        set: set.to_owned(),
        node: format!("n{number}"),
        addresses: vec![IpAddr::from([10, 244, number, last])],
        port: PORT,
        host_network: false,
    };
    let service = |kind| {
        let number = match kind {
            Kind::OfNode(node) | Kind::LocalOfNode(node) => u8::try_from(node).unwrap(),
            Kind::All | Kind::Sticky => 100,
        };
        let node_ports = BTreeMap::from([("tcp".to_owned(), 30_000 + u16::from(number))]);
        (kind, Service { addresses: vec![IpAddr::from([10, 96, 0, number])], node_ports })
    };
    Inventory {
        nodes: (1..=3).map(node).collect(),
        pods: (1..=3).flat_map(|number| [pod("one", number, 2), pod("other", number, 3)]).collect(),
        services: Kind::all(3).map(service).collect(),
        protocols: vec!["tcp".into(), "udp".into()],
        unchanging: None,
        policies: false,
        acting: false,
        namespace: "e2e".into(),
    }
}

fn row(place: Place) -> Row {
    Row {
        place: Some(place),
        from: "one".into(),
        to: "other".into(),
        protocols: vec!["tcp".into(), "udp".into()],
        run: vec!["ask".into(), "{protocol}".into(), "{to-port}".into()],
        expect: Some("{to-name} {from}".into()),
        ..Row::default()
    }
}

#[test]
fn a_row_between_nodes_is_tried_for_every_ordered_pair_and_protocol() {
    let cases = inventory().cases(&row(Place::BetweenNodes), Family::V4).0;
    assert_eq!(cases.len(), 3 * 2 * 2);
    let case = cases.iter().find(|case| case.about == "one on n1, to other on n3, udp").unwrap();
    assert_eq!(case.pod.as_deref(), Some("one-1"));
    assert_eq!(case.command, ["ask", "udp", "10.244.3.3:8080"]);
    assert!(case.expected.is_met(true, "other-3 10.244.1.2\n"));
    assert!(!case.expected.is_met(true, "other-3 10.244.1.1\n"));
}

#[test]
fn on_one_node_there_are_no_others() {
    let cases = inventory().cases(&row(Place::SameNode), Family::V4).0;
    assert_eq!(cases.len(), 3 * 2);
    assert!(cases.iter().all(|case| case.about.matches("n1").count() != 1), "{cases:?}");
}

#[test]
fn a_node_may_use_any_of_its_addresses() {
    let mut inventory = inventory();
    inventory.nodes[0].addresses.push("10.244.1.1".parse().unwrap());
    let row = Row { expect: Some("{to-name} {from-node}".into()), ..row(Place::SameNode) };
    let case = inventory.cases(&row, Family::V4).0.remove(0);
    assert!(
        case.expected.is_met(true, "other-1 198.18.0.1") && case.expected.is_met(true, "other-1 10.244.1.1")
    );
    assert!(!case.expected.is_met(true, "other-1 198.18.0.2"));
}

#[test]
fn a_cluster_has_the_ip_versions_that_all_its_pods_have() {
    let mut inventory = inventory();
    assert_eq!(inventory.families(), [Family::V4]);
    for pod in &mut inventory.pods {
        pod.addresses.push("fd00::1".parse().unwrap());
    }
    assert_eq!(inventory.families(), Family::ALL);
    inventory.pods[2].addresses.pop();
    assert_eq!(inventory.families(), [Family::V4]);
    assert_eq!(Inventory::default().families(), []);
    assert_eq!(inventory.cases(&row(Place::SameNode), Family::V6).1.len(), 2, "no protocol of it is tried");
}

#[test]
fn addresses_that_are_shared_or_elsewhere_are_wrong() {
    let mut inventory = inventory();
    assert_eq!(inventory.wrong_addresses(), Vec::<String>::new());
    inventory.pods[0].addresses = vec![IpAddr::from([10, 244, 2, 2])];
    inventory.pods[1].addresses.clear();
    let wrong = inventory.wrong_addresses();
    assert_eq!(wrong.len(), 3, "{wrong:?}");
}

#[test]
fn a_node_port_is_asked_through_the_node_that_a_client_outside_talks_to() {
    let mut inventory = inventory();
    let through = Row {
        from: OUTSIDE.into(),
        protocols: vec!["tcp".into()],
        run: vec!["ask".into(), "{via-port}".into(), "{via-local-port}".into(), "{to-service}".into()],
        expect: Some("{to-name} {from}".into()),
        ..row(Place::BetweenNodes)
    };
    let whole = |reason| (vec![], vec![Skip { about: String::new(), reason }]);
    assert_eq!(inventory.cases(&through, Family::V4), whole(NOT_REACHED));
    inventory.pods.push(Pod {
        name: OUTSIDE.into(),
        set: OUTSIDE.into(),
        node: "n2".into(),
        addresses: vec![IpAddr::from([198, 18, 0, 250])],
        port: 5,
        host_network: true,
    });
    let cases = inventory.cases(&through, Family::V4).0;
    assert_eq!(cases.len(), 2);
    assert_eq!(cases[1].about, "outside, by n2, to other on n3, tcp");
    assert_eq!(cases[1].command, ["ask", "198.18.0.2:30002", "198.18.0.2:30002", "10.96.0.2:80"]);
    assert_eq!((&cases[1].pod, cases[1].expected.describe()), (&None, "other-3 198.18.0.250".to_owned()));
    // Nobody has a service for the pods of another set.
    let (cases, skipped) = inventory.cases(&Row { to: "one".into(), ..through }, Family::V4);
    assert_eq!((cases.len(), skipped.len()), (0, 1));
}

#[test]
fn a_command_that_has_to_fail_may_not_print_an_answer() {
    let row = Row { expect: None, fails: true, ..row(Place::SameNode) };
    let expected = inventory().cases(&row, Family::V4).0.remove(0).expected;
    assert!(expected.is_met(false, ""));
    assert!(!expected.is_met(true, "") && !expected.is_met(false, "other-1 10.244.1.2"));
}

#[test]
fn a_protocol_that_nodes_lack_is_skipped_and_others_are_not() {
    let row = Row { protocols: vec!["tcp".into(), "sctp".into()], ..row(Place::SameNode) };
    let (cases, skipped) = inventory().cases(&row, Family::V4);
    assert_eq!(cases.len(), 3);
    assert_eq!(skipped, [Skip { about: "sctp".into(), reason: NO_PROTOCOL }]);
}

#[test]
fn what_changes_something_is_tried_for_one_pair_and_only_where_it_may() {
    let mut inventory = inventory();
    let words = |words: [&str; 3]| words.map(str::to_owned).to_vec();
    let row = Row {
        protocols: Vec::new(),
        run: words(["stream", "20", "{to-port}"]),
        meanwhile: vec![Step::Kubectl(words(["rotate", "--node", "{to-host}"]))],
        ..row(Place::OnePair)
    };
    let (cases, skipped) = inventory.cases(&row, Family::V4);
    assert_eq!((cases.len(), skipped.len()), (1, 0));
    assert_eq!(cases[0].about, "one on n1, to other on n2");
    assert_eq!(cases[0].meanwhile, [Step::Kubectl(words(["rotate", "--node", "n2"]))]);
    inventory.unchanging = Some("not asked for");
    let skip = Skip { about: String::new(), reason: "not asked for" };
    assert_eq!(inventory.cases(&row, Family::V4), (vec![], vec![skip]));
    assert_eq!(inventory.cases(&Row { meanwhile: Vec::new(), ..row }, Family::V4).1, []);
}

#[test]
fn policies_are_tried_where_somebody_enforces_them() {
    let mut inventory = inventory();
    let row = Row { needs: vec![Need::Policies], ..row(Place::OnePair) };
    let skipped =
        |inventory: &Inventory| inventory.cases(&row, Family::V4).1.into_iter().map(|skip| skip.reason);
    assert!(skipped(&inventory).eq([NO_ENFORCER]));
    inventory.policies = true;
    assert_eq!(skipped(&inventory).count(), 0);
}

#[test]
fn nodes_are_rebooted_only_where_that_can_be_done_and_never_those_of_the_stream() {
    let mut inventory = inventory();
    let row = Row {
        protocols: Vec::new(),
        meanwhile: vec![Step::Cluster { cluster: vec!["reboot".into(), "{third-host}".into()] }],
        expect: None,
        contains: Some("sent".into()),
        ..row(Place::OnePair)
    };
    let skipped =
        |inventory: &Inventory| inventory.cases(&row, Family::V4).1.into_iter().map(|skip| skip.reason);
    assert!(skipped(&inventory).eq([NOT_ACTING]));
    inventory.acting = true;
    let case = inventory.cases(&row, Family::V4).0.remove(0);
    assert_eq!(case.about, "one on n1, to other on n2");
    assert_eq!(case.meanwhile, [Step::Cluster { cluster: vec!["reboot".into(), "n3".into()] }]);
    inventory.nodes.pop();
    inventory.pods.retain(|pod| pod.node != "n3");
    assert!(skipped(&inventory).eq([TOO_FEW_NODES]));
    // What shows the outcome of a change is tried only where changes are.
    let after = Row { needs: vec![Need::Changes], meanwhile: Vec::new(), ..row.clone() };
    assert_eq!(inventory.cases(&after, Family::V4).0.len(), 1);
    inventory.unchanging = Some("not asked for");
    assert_eq!(inventory.cases(&after, Family::V4).0.len(), 0);
}
