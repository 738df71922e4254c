//! Nothing with a pod address passes outside the mesh, in either direction. Each test first sees it pass without
//! the guard.

use linux::guard::{Drops, GuardOwner};

use crate::namespace::until;
use crate::scene::{BURST, PORT, Scene, burst, know, plans, received, received_burst, wanted};

#[test]
fn plaintext_from_the_underlay_reaches_no_pod() {
    let all = Scene::unguarded();
    for plan in plans() {
        let pod = all.pods[0].udp(plan.pods[0], PORT);
        // Under an address of its own, and under those of pods of another node.
        for source in [plan.stranger, plan.remote] {
            let stranger = all.stranger.udp(source, 0);
            burst(&stranger, plan.pods[0]);
            assert_eq!(received_burst(&pod).ip(), source, "without the guard it is seen");
        }
        all.guard();
        for source in [plan.stranger, plan.remote] {
            let before = all.drops().incoming;
            let stranger = all.stranger.udp(source, 0);
            burst(&stranger, plan.pods[0]);
            until("the guard has dropped the burst", || all.drops().incoming >= before + BURST);
            assert_eq!(received(&pod), [], "from {source}");
            // Nor does it reach the node's own mesh address, or the node under a pod's address.
            burst(&stranger, plan.mesh);
            until("the guard has dropped the burst", || all.drops().incoming >= before + 2 * BURST);
        }
        let before = all.drops().incoming;
        let (node, forger) = (all.node.udp(plan.node, PORT), all.stranger.udp(plan.remote, 0));
        burst(&forger, plan.node);
        until("the guard has dropped the burst", || all.drops().incoming >= before + BURST);
        assert_eq!(received(&node), []);
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn nothing_for_a_pod_leaves_by_the_underlay() {
    let all = Scene::unguarded();
    // The route into the mesh is removed: what is left is the default route.
    all.node.ip("route del 10.244.2.0/24 dev mesh-a");
    all.node.ip("-6 route del fd00:10:244:2::/64 dev mesh-a");
    for plan in plans() {
        let senders = [all.pods[0].udp(plan.pods[0], 0), all.node.udp(plan.node, 0)];
        for sender in &senders {
            let before = all.leaked();
            burst(sender, plan.remote);
            until("without the guard it leaks", || all.leaked() >= before + BURST);
        }
        all.guard();
        let before = (all.leaked(), all.drops().outgoing);
        assert_eq!(burst(&senders[0], plan.remote), 0, "a pod is not told");
        assert_eq!(burst(&senders[1], plan.remote), BURST, "a process of the node is told");
        until("the guard has dropped both bursts", || all.drops().outgoing == before.1 + 2 * BURST);
        assert_eq!(all.leaked(), before.0);
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn a_more_specific_route_on_the_underlay_does_not_open_the_guard() {
    let all = Scene::unguarded();
    for plan in plans() {
        let length = if plan.remote.is_ipv4() { 25 } else { 65 };
        all.node.ip(&format!("route add {}/{length} via {}", trimmed(plan.remote), plan.stranger));
        let pod = all.pods[0].udp(plan.pods[0], 0);
        let before = all.leaked();
        burst(&pod, plan.remote);
        until("without the guard it leaks", || all.leaked() >= before + BURST);
        all.guard();
        let before = all.leaked();
        burst(&pod, plan.remote);
        until("the guard has dropped the burst", || all.drops().outgoing == BURST);
        assert_eq!(all.leaked(), before);
        all.node.run(linux::guard::remove).unwrap();
    }
}

/// The address with its last part cut off.
fn trimmed(address: std::net::IpAddr) -> String {
    let text = address.to_string();
    match text.rsplit_once('.') {
        Some((network, _)) => format!("{network}.0"),
        None => format!("{}::", text.rsplit_once("::").unwrap().0),
    }
}

#[test]
fn what_comes_in_by_the_mesh_does_not_go_out_in_clear() {
    let all = Scene::unguarded();
    for plan in plans() {
        let peer = all.peer.udp(plan.remote, 0);
        let before = all.leaked();
        burst(&peer, plan.stranger);
        until("without the guard it leaks", || all.leaked() >= before + BURST);
        all.guard();
        let before = all.leaked();
        burst(&peer, plan.stranger);
        until("the guard has dropped the burst", || all.drops().outgoing == BURST);
        assert_eq!(all.leaked(), before, "not masqueraded either: it is no pod of this node");
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn what_the_node_sends_under_a_pod_address_does_not_go_out_in_clear() {
    let all = Scene::unguarded();
    for (plan, foreign) in plans().into_iter().zip(["10.244.9.9", "fd00:10:244:9::9"]) {
        // An address of the pods' range that is not of this node's part of it.
        let nodad = if plan.node.is_ipv4() { "" } else { " nodad" };
        all.node.ip(&format!("addr add {foreign} dev lo{nodad}"));
        let node = all.node.udp(crate::namespace::ip(foreign), 0);
        let before = all.leaked();
        burst(&node, plan.stranger);
        until("without the guard it leaks", || all.leaked() >= before + BURST);
        all.guard();
        let before = all.leaked();
        assert_eq!(burst(&node, plan.stranger), BURST);
        assert_eq!(all.leaked(), before);
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn what_the_guard_lets_pass_is_known_whatever_was_done_to_the_chain_that_drops() {
    let all = Scene::unguarded();
    all.node.ip("route del 10.244.2.0/24 dev mesh-a");
    all.node.ip("-6 route del fd00:10:244:2::/64 dev mesh-a");
    for plan in plans() {
        let mut owner = GuardOwner::new(false);
        all.node.run(|| owner.set(&wanted())).unwrap();
        let sender = all.node.udp(plan.node, 0);
        burst(&sender, plan.remote);
        until("the guard has dropped the burst", || all.drops().outgoing == BURST);
        assert_eq!((all.drops().seen, all.drops().escaped()), (BURST, 0));
        let before = all.leaked();
        all.node.nft("insert rule inet meshd egress accept");
        burst(&sender, plan.remote);
        until("it leaks", || all.leaked() >= before + BURST);
        // A table that is set anew begins to count anew.
        let account = all.node.run(|| {
            owner.set(&wanted()).unwrap();
            owner.account().unwrap()
        });
        let (record, drops, escaped) = account;
        assert_eq!((record.repairs, drops, escaped), (1, Drops::default(), BURST));
        assert!(record.repaired.is_some());
        // Its own packets are not among them, whether the table is set anew or not.
        all.node.nft("insert rule inet meshd egress accept");
        let before = all.leaked();
        burst(&sender, plan.remote);
        until("it leaks", || all.leaked() >= before + BURST);
        owner.leave_out(BURST);
        let escaped = |owner: &GuardOwner| all.node.run(|| owner.account().unwrap().2);
        assert_eq!(escaped(&owner), BURST);
        all.node.run(|| owner.set(&wanted())).unwrap();
        assert_eq!(escaped(&owner), BURST);
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn that_a_packet_through_the_mesh_reached_no_pod_is_not_said_in_clear() {
    let all = Scene::unguarded();
    all.node.ip("route add unreachable 10.244.0.0/16 metric 50000");
    all.node.ip("-6 route add unreachable fd00:10:244::/48 metric 50000");
    // The kernel has two limits of such messages to one address, and what the first one allows uses up the second.
    all.node.set("net/ipv4/icmp_ratelimit", "0");
    all.node.set("net/ipv6/icmp/ratelimit", "0");
    for (plan, nobody) in plans().into_iter().zip(["10.244.1.99", "fd00:10:244:1::99"]) {
        let nobody: std::net::IpAddr = crate::namespace::ip(nobody);
        // A node sends from its own address, not from that in the mesh.
        let nodad = if nobody.is_ipv4() { "" } else { " nodad" };
        all.peer.ip(&format!("addr add {} dev lo{nodad}", plan.stranger));
        all.peer.ip(&format!("route replace {nobody} dev mesh-a src {}", plan.stranger));
        know(&all.peer, "mesh-a", &all.node, &[nobody]);
        let peer = all.peer.udp(plan.stranger, 0);
        burst(&peer, nobody);
        until("without the guard it is said", || all.quoted() > 0);
        all.guard();
        let before = all.quoted();
        until("the guard has dropped one", || {
            burst(&peer, nobody);
            all.drops().outgoing > 0
        });
        assert_eq!(all.quoted(), before);
        assert_eq!(all.drops().escaped(), 0);
        all.node.run(linux::guard::remove).unwrap();
    }
}

#[test]
fn a_connection_that_began_before_the_guard_is_cut() {
    let all = Scene::unguarded();
    // Connection tracking is on, so the pod's address is remembered as not to be changed.
    all.node.nft(
        "add table inet other ; add chain inet other track { type filter hook forward priority 0 ; } ; \
         add rule inet other track ct state established counter",
    );
    let connections = plans().map(|plan| (all.pods[0].udp(plan.pods[0], 0), plan.stranger));
    for (pod, stranger) in &connections {
        let before = all.leaked();
        burst(pod, *stranger);
        until("without the guard it leaks", || all.leaked() >= before + BURST);
    }
    let before = all.leaked();
    all.guard();
    for (pod, stranger) in &connections {
        burst(pod, *stranger);
    }
    until("the guard has dropped both bursts", || all.drops().outgoing == 2 * BURST);
    assert_eq!(all.leaked(), before);
}

#[test]
fn replacing_the_guard_leaks_nothing_and_drops_nothing() {
    let all = Scene::guarded();
    all.node.ip("route del 10.244.2.0/24 dev mesh-a");
    let [plan, _] = plans();
    let (bad, good) = (all.pods[0].udp(plan.pods[0], 0), all.pods[1].udp(plan.pods[1], 0));
    let node = all.node.udp(plan.node, PORT);
    let done = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    let (sent, arrived) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(order) {
                bad.send_to(b"plain", (plan.remote, PORT)).unwrap();
                good.send_to(b"fine", (plan.node, PORT)).unwrap();
                sent += 1;
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
            sent
        });
        let receiver = scope.spawn(|| {
            let mut arrived = 0;
            loop {
                let now = received(&node).len();
                if now == 0 && done.load(order) {
                    return arrived;
                }
                arrived += now;
            }
        });
        let other = plan::network::Guard {
            no_masquerade: [crate::namespace::ip("198.51.100.1/32")].into(),
            ..wanted()
        };
        let usual = wanted();
        all.node.run(|| {
            for turn in 0..200 {
                linux::guard::set([&other, &usual][turn % 2]).unwrap();
            }
        });
        done.store(true, order);
        (sender.join().unwrap(), receiver.join().unwrap())
    });
    assert!(sent > 200, "only {sent} packets went through 200 changes");
    assert_eq!(arrived, sent, "none that should pass was dropped");
    assert_eq!(all.leaked(), 0);
    assert_ne!(all.drops(), Drops::default(), "the guard has seen the others");
}
