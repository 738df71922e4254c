//! The path to each peer is probed inside the tunnel: loss of full-size packets is reported, and so are
//! peers that do not answer. A peer at which datagrams are damaged says so.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::mesh::Mesh;
use lab::stream::Connection;
use lab::{Family, IpVersion, Lab};
use serde_json::Value;

/// How long a change of the path may go unnoticed: three probes and the time until the next one.
const WITHIN: Duration = Duration::from_secs(20);

#[test]
fn the_mtu_follows_what_passes_and_damaged_packets_end_batches() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &["--probe-interval", "1s"]).unwrap();
    }
    mesh.wait_formed();
    mesh.wait("n1", "a working path", WITHIN, |status| {
        let peer = &status["peers"][0];
        peer["full_size_passes"] == true
            && peer["round_trip_microseconds"].as_u64().is_some_and(|took| took > 0)
    });
    let nft = |rules: &str| {
        let node = mesh.node("n2").unwrap();
        node.command("nft").args([rules]).run().unwrap();
    };
    // Like a link with a smaller MTU whose ICMP errors are dropped. A full-size datagram has 1,500 bytes on the wire.
    nft("add table inet narrow");
    nft("add chain inet narrow in { type filter hook prerouting priority -350; }");
    nft("add rule inet narrow in udp dport 51840 ip length > 1400 drop");
    // 60 of the 1,400 bytes are headers, and packets are padded to 16 bytes.
    mesh.wait("n1", "the MTU that passes", WITHIN, |status| {
        let mtu = status["peers"][0]["mtu"].as_u64();
        mtu.is_some_and(|mtu| (1312..=1340).contains(&mtu)) && status["peers"][0]["mtu_source"] == "probed"
    });
    // What somebody asks for takes the same path as what is measured.
    let ping = |arguments: &[&str]| {
        let program = lab::bin("meshd").unwrap();
        let command = mesh.node("n1").unwrap().command(program);
        let output =
            command.args(["ping", "n2", "--count", "1", "-o", "json"]).args(arguments).output().unwrap();
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), said["echoes"][0].clone())
    };
    let (code, echo) = ping(&[]);
    assert!(code == Some(0) && echo["roundTripMicroseconds"].as_u64().unwrap() > 0, "{echo:#}");
    assert!(echo["path"].is_string() && echo["endpoint"].as_str().unwrap().ends_with(":51840"), "{echo:#}");
    let (code, echo) = ping(&["--slot", "a", "--size", "1420"]);
    assert!(code == Some(1) && echo["roundTripMicroseconds"].is_null(), "too large for the path: {echo:#}");
    let (code, echo) = ping(&["--slot", "b", "--size", "1420"]);
    assert!(code == Some(0) && echo["slot"] == "b", "the other slot is not narrow: {echo:#}");
    // The other direction still works.
    let back = mesh.status("n2").unwrap()["peers"][0].clone();
    assert!(back["round_trip_microseconds"].is_u64(), "{back:#}");
    nft("delete table inet narrow");
    mesh.wait("n1", "the path to recover", WITHIN * 2, |status| status["peers"][0]["mtu"] == 1420);
    mesh.wait_settled();
    // Like a driver that damages what it sends: in transport data (type 4) one byte of the packet is another.
    nft("add table inet damaged");
    nft("add chain inet damaged in { type filter hook prerouting priority -350; }");
    nft("add rule inet damaged in udp dport { 51840, 51841 } @th,64,8 4 @th,384,8 set 0x5a");
    mesh.wait("n1", "n2 to be sent to one by one", WITHIN, |_| {
        let log = mesh.daemon("n1").log().unwrap();
        log.contains("\"event\":\"UdpOffloadOffForPeer\",\"node\":\"n2\"")
    });
    let slots = mesh.status("n2").unwrap()["peers"][0]["slots"].clone();
    let forged = |slot: &str| slots[slot]["forged"].as_u64().unwrap();
    assert!(forged("a") + forged("b") >= 8, "{slots:#}");
    nft("delete table inet damaged");
}

#[test]
fn a_peer_that_no_longer_answers_is_down_and_the_node_stays_ready() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(3).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &["--probe-interval", "1s"]).unwrap();
    }
    mesh.wait_formed();
    mesh.wait_settled();
    let is = |status: &Value, states: &[(&str, &str)]| {
        let peers = status["peers"].as_array().unwrap();
        let found: Vec<_> = peers
            .iter()
            .map(|peer| (peer["node"].as_str().unwrap(), peer["state"].as_str().unwrap()))
            .collect();
        found == states
    };
    mesh.wait("n1", "both up", WITHIN, |status| is(status, &[("n2", "up"), ("n3", "up")]));
    let nft = |rules: &str| mesh.node("n3").unwrap().command("nft").args([rules]).run().unwrap();
    nft("add table inet blocked");
    nft("add chain inet blocked in { type filter hook prerouting priority -350; }");
    nft("add rule inet blocked in udp dport { 51840, 51841 } drop");
    // The last session would last for three minutes.
    let took = mesh.wait("n1", "n3 down", WITHIN, |status| is(status, &[("n2", "up"), ("n3", "down")]));
    assert!(took < Duration::from_secs(1 + 8), "{took:?}");
    mesh.wait("n3", "nobody reached", WITHIN, |status| is(status, &[("n1", "down"), ("n2", "down")]));
    assert_eq!(mesh.status("n3").unwrap()["ready"], true);
    let shown = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap()).args(["status"]).run().unwrap();
    assert!(shown.contains("peers     1 of 2 reached (1 up, 0 idle, 1 down)"), "{shown}");
    nft("delete table inet blocked");
    mesh.wait("n1", "both up again", WITHIN, |status| is(status, &[("n2", "up"), ("n3", "up")]));
}

#[test]
fn tcp_goes_on_when_the_path_narrows_in_silence() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).family(Family::V4).build().unwrap());
    for node in mesh.node_names() {
        // The rule below would drop whole batches.
        mesh.start_with(&node, &["--udp-offload", "off"]).unwrap();
    }
    mesh.wait_formed();
    mesh.wait_settled();
    let _pods = mesh.pods(&["a"]).unwrap();
    let end = |node: &str| mesh.node(node).unwrap().pod("a").unwrap().end();
    let connection = Connection::open(&end("n1"), &end("n2"), IpVersion::V4, Some(500_000)).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let nft = |rules: &str| mesh.node("n2").unwrap().command("nft").args([rules]).run().unwrap();
    nft("add table inet narrow");
    nft("add chain inet narrow in { type filter hook prerouting priority -350; }");
    nft("add rule inet narrow in udp dport { 51840, 51841 } ip length > 900 drop");
    let narrowed = connection.received();
    // IPv4 alone may go below 1,280 bytes; 60 of the 900 bytes are headers.
    let took = mesh.wait("n1", "the MTU that passes", Duration::from_mins(1), |status| {
        let mtu = status["peers"][0]["mtu"].as_u64();
        mtu.is_some_and(|mtu| (800..=840).contains(&mtu)) && status["peers"][0]["mtu_source"] == "probed"
    });
    let goes_on = mesh
        .wait("n1", "TCP to go on", Duration::from_mins(1), |_| connection.received() > narrowed + 500_000);
    println!("found after {took:?}, TCP went on {goes_on:?} later");
    let log = mesh.daemon("n1").log().unwrap();
    assert!(log.contains("\"event\":\"PathMtuChanged\",\"node\":\"n2\""), "{log}");
    assert!(connection.close().broken.is_none());
}
