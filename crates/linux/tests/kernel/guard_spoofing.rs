//! A pod sends under its own address, or not at all.

use std::net::IpAddr;

use crate::namespace::{Namespace, ip, until};
use crate::scene::{BURST, PORT, Scene, burst, plans, received, received_burst};

/// An address that the pod takes without being asked.
fn take(all: &Scene, address: IpAddr) {
    let nodad = if address.is_ipv4() { "" } else { " nodad" };
    all.pods[0].ip(&format!("addr add {address} dev lo{nodad}"));
}

#[test]
fn a_pod_can_not_send_under_another_s_address() {
    let all = Scene::unguarded();
    for plan in plans() {
        let node = all.node.udp(plan.node, PORT);
        // A neighbour's address, one of another node's pods, one from outside, one that no host has.
        let nobody: IpAddr = ip(if plan.node.is_ipv4() { "10.244.1.77" } else { "fd00:10:244:1::77" });
        let forged = [plan.pods[1], plan.remote, plan.stranger, nobody];
        for source in forged {
            take(&all, source);
            burst(&all.pods[0].udp(source, 0), plan.node);
            assert_eq!(received_burst(&node).ip(), source, "without the guard it is seen");
        }
        all.guard();
        for (count, source) in (1..).zip(forged) {
            burst(&all.pods[0].udp(source, 0), plan.node);
            until("the guard has dropped the burst", || all.drops().spoofed == count * BURST);
            assert_eq!(received(&node), [], "from {source}");
        }
        burst(&all.pods[0].udp(plan.pods[0], 0), plan.node);
        assert_eq!(received_burst(&node).ip(), plan.pods[0], "its own address is fine");
        assert_eq!(all.drops().spoofed, 4 * BURST);
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn a_pod_can_not_pretend_to_be_the_node() {
    let all = Scene::unguarded();
    for plan in plans() {
        take(&all, plan.node);
        // To another pod: the node itself never takes packets from its own address.
        let other = all.pods[1].udp(plan.pods[1], PORT);
        burst(&all.pods[0].udp(plan.node, 0), plan.pods[1]);
        if plan.node.is_ipv6() {
            assert_eq!(received_burst(&other).ip(), plan.node, "without the guard it is seen");
        }
        all.guard();
        burst(&all.pods[0].udp(plan.node, 0), plan.pods[1]);
        until("the guard has dropped the burst", || all.drops().spoofed == BURST);
        assert_eq!(received(&other), []);
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn an_address_that_moved_to_another_pod_is_only_that_one_s() {
    let all = Scene::guarded();
    for plan in plans() {
        let node = all.node.udp(plan.node, PORT);
        let before = all.drops().spoofed;
        take(&all, plan.pods[1]);
        let length = if plan.node.is_ipv4() { 32 } else { 128 };
        all.node.ip(&format!("route replace {}/{length} dev mveth0 proto 84", plan.pods[1]));
        burst(&all.pods[0].udp(plan.pods[1], 0), plan.node);
        assert_eq!(received_burst(&node).ip(), plan.pods[1], "it follows the route at once");
        burst(&all.pods[1].udp(plan.pods[1], 0), plan.node);
        until("the guard has dropped the burst", || all.drops().spoofed == before + BURST);
        assert_eq!(received(&node), []);
    }
}

#[test]
fn neighbour_discovery_goes_on() {
    let all = Scene::guarded();
    let pod = &all.pods[0];
    // The node has no permanent entry for the pod's link-local address, nor the pod for the node's.
    let link_local = |namespace: &Namespace, name: &str| {
        let mut found = None;
        until("a link-local address that has been tried out", || {
            let shown = namespace.ip(&format!("-6 -o addr show dev {name} scope link -tentative"));
            found = shown.split_whitespace().find(|word| word.starts_with("fe80::")).map(str::to_owned);
            found.is_some()
        });
        found.unwrap().split('/').next().unwrap().to_owned()
    };
    let (node_address, pod_address) = (link_local(&all.node, "mveth0"), link_local(pod, "eth0"));
    for (namespace, name, target) in [(pod, "eth0", &node_address), (&all.node, "mveth0", &pod_address)] {
        namespace.ip(&format!("-6 neigh flush dev {name} {target}"));
        let socket = namespace.udp(ip("::"), 0);
        let scope = index_of(namespace, name);
        let target = std::net::SocketAddrV6::new(ip(target), PORT, 0, scope);
        socket.send_to(b"who are you", target).unwrap();
        until("the neighbour is found", || {
            let shown = namespace.ip(&format!("-6 neigh show dev {name} {}", target.ip()));
            shown.contains("REACHABLE") || shown.contains("lladdr")
        });
    }
    assert_eq!(all.drops().spoofed, 0);
}

fn index_of(namespace: &Namespace, name: &str) -> u32 {
    let shown = namespace.ip(&format!("-o link show dev {name}"));
    shown.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn a_pod_s_address_is_tried_out_as_usual() {
    let all = Scene::guarded();
    // Duplicate address detection sends from the unspecified address.
    all.pods[0].ip("-6 addr add fe80::77/64 dev eth0");
    until("the address has been tried out", || {
        !all.pods[0].ip("-6 -o addr show dev eth0 scope link -tentative to fe80::77").is_empty()
    });
    assert_eq!(all.drops().spoofed, 0);
}
