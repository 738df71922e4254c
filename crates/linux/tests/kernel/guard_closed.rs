//! What pods send to Nodes that are not in the mesh does not leave in the clear, directly or through a service. Each
//! test first sees it leave while the address is not closed.

use std::net::{IpAddr, UdpSocket};

use linux::guard::{self, Drops};
use plan::network::Guard;

use crate::namespace::until;
use crate::scene::{BURST, PORT, Plan, Scene, burst, plans, received, received_burst, wanted};

/// The guard with the stranger as a Node that is not in the mesh.
fn closed() -> Guard {
    Guard { closed: plans().map(|plan| plan.stranger).into(), ..wanted() }
}

fn close(all: &Scene) {
    all.node.run(|| guard::set(&closed())).unwrap();
    assert!(all.node.run(|| guard::is_in_place(&closed())).unwrap());
}

/// Sends from a pod to `to` before and after the stranger's address is closed.
fn is_closed(all: &Scene, plan: &Plan, to: IpAddr) {
    let listener = all.stranger.udp(plan.stranger, PORT);
    let pod = || all.pods[0].udp(plan.pods[0], 0);
    all.guard();
    // The same socket afterwards: a connection that is tracked is closed as well.
    let (former, later): (UdpSocket, UdpSocket) = (pod(), pod());
    burst(&former, to);
    assert_eq!(received_burst(&listener).ip(), plan.node, "masqueraded while it is not closed");
    close(all);
    for (number, sender) in (1..).zip([&former, &later]) {
        burst(sender, to);
        until("the guard has dropped the burst", || all.drops().closed >= number * BURST);
    }
    assert_eq!(received(&listener), []);
    assert_eq!(all.drops(), Drops { closed: 2 * BURST, ..Drops::default() });
}

#[test]
fn what_pods_send_to_a_closed_address_is_dropped() {
    let all = Scene::unguarded();
    for plan in plans() {
        is_closed(&all, &plan, plan.stranger);
    }
}

#[test]
fn a_service_does_not_lead_to_a_closed_address() {
    let all = Scene::unguarded();
    // As kube-proxy does it: the pod sends to the service, and its destination is changed before routing.
    for (table, plan) in [("ip", plans()[0]), ("ip6", plans()[1])] {
        all.node.nft(&format!(
            "add table {table} proxy ; \
             add chain {table} proxy services {{ type nat hook prerouting priority -100 ; }} ; \
             add rule {table} proxy services {table} daddr {} dnat to {}",
            plan.service, plan.stranger
        ));
        is_closed(&all, &plan, plan.service);
    }
}

#[test]
fn what_a_remote_pod_sends_through_this_node_to_a_closed_address_is_dropped() {
    let all = Scene::unguarded();
    for plan in plans() {
        close(&all);
        let peer = all.peer.udp(plan.remote, 0);
        burst(&peer, plan.stranger);
        until("the guard has dropped the burst", || all.drops().closed == BURST);
    }
}

#[test]
fn a_closed_address_is_reached_through_the_mesh_and_by_the_node_itself() {
    let all = Scene::unguarded();
    for (plan, family) in plans().into_iter().zip(["", "-6 "]) {
        let length = if plan.stranger.is_ipv4() { 32 } else { 128 };
        let from = if plan.stranger.is_ipv4() { "10.244.1.0/24" } else { "fd00:10:244:1::/64" };
        let nodad = if plan.stranger.is_ipv4() { "" } else { " nodad" };
        all.peer.ip(&format!("{family}addr add {}/{length} dev lo{nodad}", plan.stranger));
        all.node.ip(&format!("{family}route add {} dev mesh-a table 99", plan.stranger));
        all.node.ip(&format!("{family}rule add from {from} table 99"));
        close(&all);
        let (peer, stranger) = (all.peer.udp(plan.stranger, PORT), all.stranger.udp(plan.stranger, PORT));
        burst(&all.pods[0].udp(plan.pods[0], 0), plan.stranger);
        assert_eq!(received_burst(&peer).ip(), plan.pods[0], "through the mesh");
        burst(&all.node.udp(plan.node, 0), plan.stranger);
        assert_eq!(received_burst(&stranger).ip(), plan.node, "the node itself");
    }
    assert_eq!(all.drops(), Drops::default());
}
