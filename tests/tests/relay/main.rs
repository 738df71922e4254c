//! Two nodes that can't reach each other are reached over a third one that has the label of a relay.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod liar;

use std::net::IpAddr;
use std::time::Duration;

use lab::mesh::Mesh;
use lab::{Family, Flow, IpVersion, Lab, Protocol, flow};
use serde_json::Value;

/// How long both ends may take to come to the relay: its tunnels, five seconds without a session, and the questions.
const LEASED_WITHIN: Duration = Duration::from_secs(30);
const SLOTS: [(&str, u16); 2] = [("a", 51840), ("b", 51841)];

/// Some nodes, of which n3 is a relay, and n1 and n2 drop what comes from each other.
fn apart(nodes: u8) -> Mesh {
    let mut mesh = Mesh::idle(Lab::builder().nodes(nodes).family(Family::V4).build().unwrap());
    mesh.set_relay("n3", true).unwrap();
    for (node, other) in [("n1", "n2"), ("n2", "n1")] {
        let other = underlay(&mesh, other);
        nft(&mesh, node, "add table ip apart");
        nft(&mesh, node, "add chain ip apart in { type filter hook prerouting priority -340; }");
        nft(&mesh, node, "add chain ip apart from { type filter hook prerouting priority -330; }");
        nft(&mesh, node, "add chain ip apart out { type route hook output priority -350; }");
        nft(&mesh, node, &format!("add rule ip apart in ip saddr {other} udp dport 51840-51841 drop"));
    }
    for node in mesh.node_names() {
        mesh.start_with(&node, &["--backend", "userspace"]).unwrap();
    }
    mesh
}

fn underlay(mesh: &Mesh, node: &str) -> IpAddr {
    mesh.node(node).unwrap().address(IpVersion::V4).unwrap()
}

fn nft(mesh: &Mesh, node: &str, rules: &str) {
    mesh.node(node).unwrap().command("nft").args([rules]).run().unwrap();
}

/// The relay's port for a peer and slot, once both ends have asked.
fn port(status: &Value, peer: &str, slot: &str) -> Option<u64> {
    let leases = status["leases"].as_array()?;
    let lease = leases.iter().find(|lease| lease["node"] == peer && lease["slot"] == slot)?;
    (lease["relay"] == "n3").then(|| lease["port"].as_u64()).flatten()
}

/// Has a node's datagrams for the other one go to its leased ports, and come from there: what an endpoint at the relay does.
fn send_over_relay(mesh: &Mesh, node: &str, peer: &str) {
    let (relay, other) = (underlay(mesh, "n3"), underlay(mesh, peer));
    mesh.wait(node, "leases on both slots", LEASED_WITHIN, |status| {
        SLOTS.iter().all(|(slot, _)| port(status, peer, slot).is_some())
    });
    let status = mesh.status(node).unwrap();
    for (slot, wireguard) in SLOTS {
        let leased = port(&status, peer, slot).unwrap();
        let out =
            format!("ip daddr {other} udp dport {wireguard} udp dport set {leased} ip daddr set {relay}");
        let back =
            format!("ip saddr {relay} udp sport {leased} udp sport set {wireguard} ip saddr set {other}");
        nft(mesh, node, &format!("add rule ip apart out {out}"));
        nft(mesh, node, &format!("add rule ip apart from {back}"));
    }
}

#[test]
fn two_nodes_reach_each_other_over_a_third_and_nobody_else_changes_that() {
    let mut mesh = apart(3);
    let capture = mesh.capture().unwrap();
    send_over_relay(&mesh, "n1", "n2");
    send_over_relay(&mesh, "n2", "n1");
    let (a, b) = {
        let pod = |node: &str| mesh.node(node).unwrap().pod("a").unwrap().end();
        mesh.node("n1").unwrap().wait_network(LEASED_WITHIN).unwrap();
        mesh.node("n2").unwrap().wait_network(LEASED_WITHIN).unwrap();
        (pod("n1"), pod("n2"))
    };
    mesh.wait("n1", "a tunnel to n2", LEASED_WITHIN, |status| {
        let peers = status["peers"].as_array().unwrap();
        peers.iter().any(|peer| peer["node"] == "n2" && peer["round_trip_microseconds"].is_u64())
    });
    let passes = || {
        for protocol in [Protocol::Icmp, Protocol::Tcp, Protocol::Udp] {
            Flow::new(&a, &b, IpVersion::V4, protocol).must_pass();
            Flow::new(&b, &a, IpVersion::V4, protocol).must_pass();
        }
    };
    passes();
    let relay = |mesh: &Mesh| mesh.status("n3").unwrap()["relay"].clone();
    let before = relay(&mesh);
    assert!(before["bytes"].as_u64().unwrap() > 1000, "{before:#}");
    assert_eq!(before["leases"], 2, "{before:#}");

    // Somebody else at a leased port, from his own address and from that of an end, changes nothing.
    let status = mesh.status("n1").unwrap();
    let target = u16::try_from(port(&status, "n2", "a").unwrap()).unwrap();
    let outside = mesh.outside().end();
    let from = outside.address(IpVersion::V4).unwrap();
    flow::send_udp(&outside, from, underlay(&mesh, "n3"), target, 200).unwrap();
    passes();
    let after = relay(&mesh);
    let dropped = |relay: &Value| relay["dropped"]["not_wireguard"].as_u64().unwrap();
    assert!(dropped(&after) >= dropped(&before) + 100, "{after:#}");

    // Leases and addresses outlive the relay's daemon.
    let ports = SLOTS.map(|(slot, _)| port(&status, "n2", slot));
    std::thread::sleep(Duration::from_secs(3));
    mesh.stop("n3", lab::Signal::KILL).unwrap();
    mesh.start_with("n3", &["--backend", "userspace"]).unwrap();
    mesh.wait("n3", "its leases again", LEASED_WITHIN, |status| status["relay"]["leases"] == 2);
    passes();
    let status = mesh.status("n1").unwrap();
    assert_eq!(SLOTS.map(|(slot, _)| port(&status, "n2", slot)), ports);
    capture.report().assert_sealed();

    // Without the label it is no relay any more.
    mesh.set_relay("n3", false).unwrap();
    mesh.wait("n3", "the end of the relay", LEASED_WITHIN, |status| status["relay"].is_null());
}
