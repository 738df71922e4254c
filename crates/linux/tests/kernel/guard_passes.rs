//! What the guard lets pass: pods of the node, the mesh, services, and the outside under the node's address.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::namespace::{Namespace, until};
use crate::scene::{BURST, PORT, Scene, burst, plans, received_burst};

#[test]
fn pods_reach_each_other_the_node_and_the_mesh_under_their_own_address() {
    let all = Scene::guarded();
    for plan in plans() {
        let pod = all.pods[0].udp(plan.pods[0], PORT);
        for (there, address) in
            [(&all.pods[1], plan.pods[1]), (&all.node, plan.node), (&all.peer, plan.remote)]
        {
            let other = there.udp(address, PORT);
            burst(&pod, address);
            assert_eq!(received_burst(&other), (plan.pods[0], PORT).into(), "to {address}");
            burst(&other, plan.pods[0]);
            assert_eq!(received_burst(&pod), (address, PORT).into(), "from {address}");
        }
    }
    assert_eq!(all.drops(), linux::guard::Drops::default());
    assert_eq!(all.leaked(), 0);
}

#[test]
fn pods_reach_the_outside_under_the_node_s_address_and_get_answers() {
    let all = Scene::guarded();
    for plan in plans() {
        let pod = all.pods[0].udp(plan.pods[0], PORT);
        let stranger = all.stranger.udp(plan.stranger, PORT);
        burst(&pod, plan.stranger);
        let seen = received_burst(&stranger);
        assert_eq!(seen.ip(), plan.node);
        assert_ne!(seen.port(), PORT, "ports are chosen at random");
        answer(&stranger, seen);
        assert_eq!(received_burst(&pod), (plan.stranger, PORT).into());
    }
    assert_eq!(all.drops(), linux::guard::Drops::default());
    assert_eq!(all.leaked(), 0);
}

#[test]
fn the_node_reaches_its_own_mesh_address() {
    let all = Scene::guarded();
    for plan in plans() {
        let (client, server) = (all.node.udp(plan.mesh, 0), all.node.udp(plan.mesh, PORT));
        burst(&client, plan.mesh);
        assert_eq!(received_burst(&server), client.local_addr().unwrap());
    }
    assert_eq!(all.drops(), linux::guard::Drops::default());
}

#[test]
fn towards_services_and_other_nodes_no_pod_is_masked() {
    let all = Scene::guarded();
    for plan in plans() {
        let pod = all.pods[0].udp(plan.pods[0], 0);
        // Where nothing translates the service, and no rule leads to the other node by the mesh, both would
        // leave by the default route: unencrypted under the pod's address, so not at all.
        for address in [plan.service, plan.other_node] {
            let before = all.drops().outgoing;
            burst(&pod, address);
            until("it is dropped, not masqueraded", || all.drops().outgoing == before + BURST);
        }
    }
    assert_eq!(all.leaked(), 0);
}

fn answer(from: &UdpSocket, to: SocketAddr) {
    for _ in 0..BURST {
        from.send_to(b"answer", to).unwrap();
    }
}

/// What a service proxy does: the node's port and the service's address lead to a pod.
fn serve(node: &Namespace, family: &str, own: IpAddr, service: IpAddr, pod: IpAddr) {
    let table = if own.is_ipv4() { "proxy4" } else { "proxy6" };
    let target = if own.is_ipv4() { format!("{pod}:{PORT}") } else { format!("[{pod}]:{PORT}") };
    let words = format!(
        "add table {family} {table} ; \
         add chain {family} {table} in {{ type nat hook prerouting priority -100 ; }} ; \
         add chain {family} {table} own {{ type nat hook output priority -100 ; }} ; \
         add chain {family} {table} back {{ type nat hook postrouting priority 100 ; }} ; \
         add rule {family} {table} in {family} daddr {own} udp dport 30000 meta mark set 1 dnat to {target} ; \
         add rule {family} {table} in {family} daddr {service} udp dport {PORT} dnat to {target} ; \
         add rule {family} {table} own {family} daddr {service} udp dport {PORT} meta mark set 1 dnat to {target} ; \
         add rule {family} {table} back meta mark 1 masquerade"
    );
    node.nft(&words);
}

#[test]
fn services_work_from_pods_and_from_the_node_with_pods_here_and_elsewhere() {
    for (backend, remote) in [("here", false), ("elsewhere", true)] {
        let all = Scene::guarded();
        for plan in plans() {
            let family = if plan.node.is_ipv4() { "ip" } else { "ip6" };
            let (there, target) =
                if remote { (&all.peer, plan.remote) } else { (&all.pods[1], plan.pods[1]) };
            serve(&all.node, family, plan.node, plan.service, target);
            let backend_socket = there.udp(target, PORT);
            let pod = all.pods[0].udp(plan.pods[0], 0);
            burst(&pod, plan.service);
            let seen = received_burst(&backend_socket);
            assert_eq!(seen.ip(), plan.pods[0], "the backend {backend} sees the pod");
            answer(&backend_socket, seen);
            assert_eq!(received_burst(&pod), (plan.service, PORT).into());

            let unspecified = crate::namespace::ip(if plan.node.is_ipv4() { "0.0.0.0" } else { "::" });
            let node = all.node.udp(unspecified, 0);
            burst(&node, plan.service);
            let seen = received_burst(&backend_socket);
            answer(&backend_socket, seen);
            assert_eq!(received_burst(&node), (plan.service, PORT).into());
        }
        assert_eq!(all.drops(), linux::guard::Drops::default(), "{backend}");
        assert_eq!(all.leaked(), 0, "{backend}");
    }
}

#[test]
fn a_port_of_the_node_leads_to_a_pod_here_and_elsewhere() {
    for (backend, remote) in [("here", false), ("elsewhere", true)] {
        let all = Scene::guarded();
        for plan in plans() {
            let family = if plan.node.is_ipv4() { "ip" } else { "ip6" };
            let (there, target) =
                if remote { (&all.peer, plan.remote) } else { (&all.pods[1], plan.pods[1]) };
            serve(&all.node, family, plan.node, plan.service, target);
            let backend_socket = there.udp(target, PORT);
            let client = all.stranger.udp(plan.stranger, 0);
            for _ in 0..BURST {
                client.send_to(b"request", (plan.node, 30000)).unwrap();
            }
            let seen = received_burst(&backend_socket);
            answer(&backend_socket, seen);
            assert_eq!(received_burst(&client), (plan.node, 30000).into());
        }
        assert_eq!(all.drops(), linux::guard::Drops::default(), "{backend}");
        assert_eq!(all.leaked(), 0, "{backend}");
    }
}

#[test]
fn a_pod_reaches_itself_by_its_service() {
    let all = Scene::guarded();
    for plan in plans() {
        let family = if plan.node.is_ipv4() { "ip" } else { "ip6" };
        serve(&all.node, family, plan.node, plan.service, plan.pods[0]);
        let table = if plan.node.is_ipv4() { "proxy4" } else { "proxy6" };
        // A service proxy masks the pod's own address, or the answer would not come back here.
        let own = plan.pods[0];
        all.node.nft(&format!(
            "add rule {family} {table} back {family} saddr {own} {family} daddr {own} masquerade"
        ));
        let backend = all.pods[0].udp(plan.pods[0], PORT);
        let client = all.pods[0].udp(plan.pods[0], 0);
        burst(&client, plan.service);
        let seen = received_burst(&backend);
        assert_ne!(seen.ip(), plan.pods[0]);
        answer(&backend, seen);
        assert_eq!(received_burst(&client), (plan.service, PORT).into());
    }
    assert_eq!(all.drops(), linux::guard::Drops::default());
}
