//! Routes to pods, held by the daemon.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use cni::pod_routes;
use serde_json::Value;

use crate::node::{NODE, Node, Pod};

fn hold(node: &Node) -> BTreeSet<IpAddr> {
    hold_with(node, None)
}

fn hold_with(node: &Node, source: Option<Ipv6Addr>) -> BTreeSet<IpAddr> {
    node.run(|| pod_routes::hold(&node.state_dir(), source)).unwrap()
}

/// A node with a pod, the pod's link and addresses, and ADD's result.
fn attached() -> (Node, Pod, String, BTreeSet<IpAddr>, Value) {
    let node = Node::new(&["10.244.1.0/24", "fd00:244:1::/64"]);
    let pod = Pod::new("a");
    let added = node.add(&pod);
    let link = added.json["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let addresses = added.addresses().into_iter().collect();
    (node, pod, link, addresses, added.json)
}

#[test]
fn what_leads_to_a_pod_is_set_again_whoever_removes_it() {
    let (node, pod, link, addresses, result) = attached();
    node.sh("ip route add unreachable 10.244.0.0/16; ip -6 route add unreachable fd00:244::/48");
    let state = || {
        let lines = "ip route; ip -6 route; ip neigh show nud permanent; ip neigh show proxy; ip -6 address show scope link";
        let text = node.sh(&format!("{{ {lines}; }} | grep -E '{link}|fe80::1/|169.254'"));
        text.lines().map(str::trim).map(ToOwned::to_owned).collect::<BTreeSet<_>>()
    };
    let whole = state();
    assert_eq!(hold(&node), BTreeSet::new());
    for removal in [
        "ip route flush proto 84; ip -6 route flush proto 84",
        "ip route replace unreachable 10.244.1.2; ip -6 route del fd00:244:1::2",
        &format!(
            "ip route flush dev {link}; ip -6 route del fd00:244:1::2; ip neigh flush nud permanent dev {link}"
        ),
        &format!("ip link set {link} down; ip link set {link} up"),
    ] {
        node.sh(removal);
        assert_eq!(hold(&node), addresses, "{removal}");
        let lost: Vec<String> = whole.difference(&state()).cloned().collect();
        let lost: Vec<&String> = lost.iter().filter(|line| !line.contains("fe80::/64")).collect();
        assert_eq!(lost, Vec::<&String>::new(), "{removal}");
        node.pod_call("CHECK", &pod).conf("prevResult", result.clone()).run().silent();
        assert_eq!(hold(&node), BTreeSet::new(), "{removal}");
    }
}

#[test]
fn nothing_is_set_for_a_link_that_is_down_or_gone_or_while_another_rule_comes_before() {
    let (node, _pod, link, addresses, _) = attached();
    // As VPNs have it: everything is looked up in a table of theirs first.
    node.sh("ip rule add priority 100 lookup 52; ip route add default dev lo table 52");
    assert_eq!(hold(&node), BTreeSet::new(), "the route is there all the same");
    node.sh("ip route del 10.244.1.2");
    assert_eq!(hold(&node), ["10.244.1.2".parse().unwrap()].into());
    node.sh(&format!("ip link set {link} down"));
    assert_eq!(hold(&node), BTreeSet::new());
    node.sh(&format!("ip link set {link} up"));
    assert_eq!(hold(&node), addresses);
    node.sh(&format!("ip link del {link}"));
    assert_eq!(hold(&node), BTreeSet::new());
    assert_eq!(node.run(|| pod_routes::hold(&node.state_dir().join("none"), None)).unwrap(), BTreeSet::new());
}

#[test]
fn routes_of_ipv6_have_the_nodes_address_as_source_as_long_as_the_node_has_it() {
    let node = Node::new(&["10.244.1.0/24", "fd00:244:1::/64"]);
    let _outside = node.neighbour();
    let address: Ipv6Addr = NODE[1].parse().unwrap();
    let source =
        || node.sh("ip -6 route show proto 84; ip route show proto 84").contains(&format!("src {address} "));
    node.set_file(|file| file.source = Some(address));
    let pods = ["before", "without"].map(Pod::new);
    node.add(&pods[0]);
    assert!(source());
    // The kernel removes it from the route with the address.
    node.sh(&format!("ip address del {address}/64 dev eth0"));
    assert!(!source());
    assert_eq!(hold_with(&node, Some(address)), BTreeSet::new());
    let added = node.add(&pods[1]).addresses();
    assert!(!source());
    node.sh(&format!("ip address add {address}/64 dev eth0 nodad; until ip route get {address} | grep -q local; do sleep 0.01; done"));
    let restored = hold_with(&node, Some(address));
    assert!(source() && restored.contains(&added[1]), "{restored:?}");
    assert!(restored.len() == 2 && restored.iter().all(IpAddr::is_ipv6), "{restored:?}");
    assert_eq!(hold_with(&node, Some(address)), BTreeSet::new());
    // Another one takes its place.
    node.sh("ip address add 2001:db8::7/64 dev eth0 nodad; until ip route get 2001:db8::7 | grep -q local; do sleep 0.01; done");
    assert_eq!(hold_with(&node, Some("2001:db8::7".parse().unwrap())), restored);
    assert!(!source());
}
