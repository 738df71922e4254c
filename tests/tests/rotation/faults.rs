//! Peers and API servers that fail during a rotation.

use std::thread;
use std::time::Duration;

use lab::mesh::Mesh;
use lab::{IpVersion, Lab, Signal, Stream};

use super::{QUICK, WITHIN, keys, must_pass, quick, rotate, wait_accounted, wait_whole};

/// A peer that is alive on the old slot and not on the new one stops the rotation, and nothing is lost.
#[test]
fn a_blocked_port_rolls_the_rotation_back() {
    let mesh = quick(3);
    let pods = mesh.pods(&["a"]).unwrap();
    // Before that a pair may send on slot b, which is blocked below.
    mesh.wait_settled();
    let stream = Stream::start(&pods[0].end(), &pods[1].end(), IpVersion::V4, 200).unwrap();
    let before = keys(&mesh, "n1");
    let nft = |rules: &str| mesh.node("n2").unwrap().command("nft").arg(rules).run().unwrap();
    // Slot b is the standby of a node that has not rotated yet.
    nft("add table inet block; add chain inet block in { type filter hook input priority 0; }; \
         add rule inet block in udp dport 51841 drop; \
         add chain inet block out { type filter hook output priority 0; }; \
         add rule inet block out udp sport 51841 drop");
    let (done, report) = rotate(&mesh, "n1", &[]);
    assert!(!done && report["rolled_back"] == 1 && report["finished"] == 0, "{report:#}");
    assert_eq!(report["blocked_by"], serde_json::json!(["n2"]), "{report:#}");
    assert_eq!(keys(&mesh, "n1"), before);
    mesh.daemon("n1").wait_log("RotationBlocked", WITHIN).unwrap();
    nft("delete table inet block");
    let (done, report) = rotate(&mesh, "n1", &[]);
    assert!(done && report["finished"] == 1 && report["blocked_by"] == serde_json::json!([]), "{report:#}");
    thread::sleep(Duration::from_millis(300));
    let report = stream.stop();
    assert_eq!(report.lost, report.overflowed, "{report:?}");
}

/// A dead peer is skipped, and reconnects when it is back.
#[test]
fn a_dead_peer_is_skipped() {
    let mut mesh = quick(3);
    let before = keys(&mesh, "n1");
    mesh.stop("n3", Signal::KILL).unwrap();
    let (done, report) = rotate(&mesh, "n1", &[]);
    assert!(done, "{report:#}");
    assert!(keys(&mesh, "n1").iter().all(|key| !before.contains(key)));
    mesh.daemon("n1").wait_log("RotationPeerSkipped", WITHIN).unwrap();
    mesh.start_with("n3", &QUICK).unwrap();
    wait_whole(&mesh);
    mesh.pods(&["a"]).unwrap();
    must_pass(&mesh);
}

/// An older announcement, from a restored store of the API server, changes no peer that is alive.
#[test]
fn an_older_announcement_changes_nothing() {
    let mesh = quick(2);
    let pods = mesh.pods(&["a"]).unwrap();
    let state = || {
        let node = mesh.api().node("n2").unwrap();
        node["metadata"]["annotations"]["meshd.dev/state"].as_str().unwrap().to_owned()
    };
    let old = state();
    assert!(rotate(&mesh, "n2", &[]).0);
    let new = state();
    let stream = Stream::start(&pods[0].end(), &pods[1].end(), IpVersion::V4, 200).unwrap();
    let patch = serde_json::json!({"metadata": {"annotations": {"meshd.dev/state": old}}});
    mesh.api().patch_node("n2", &patch).unwrap();
    let since = std::time::Instant::now();
    while state() != new {
        assert!(since.elapsed() < WITHIN, "n2 does not publish again: {}", state());
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(1));
    let report = stream.stop();
    assert_eq!(report.lost, report.overflowed, "{report:?}");
}

/// A node that lost its keys is back with new ones within ten seconds of announcing them.
#[test]
fn a_node_that_lost_its_keys_comes_back_with_new_ones() {
    let mut mesh = quick(2);
    let before = keys(&mesh, "n2");
    mesh.pods(&["a"]).unwrap();
    assert!(rotate(&mesh, "n2", &[]).0, "so that its generation is above that of a new node");
    mesh.stop("n2", Signal::KILL).unwrap();
    mesh.node("n2").unwrap().command("rm").args(["-r", "/run/meshd/keys"]).run().unwrap();
    mesh.start_with("n2", &QUICK).unwrap();
    mesh.wait("n2", "published", WITHIN, |status| status["api"]["published"] == true);
    let since = std::time::Instant::now();
    wait_whole(&mesh);
    must_pass(&mesh);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(keys(&mesh, "n2").iter().all(|key| !before.contains(key)));
    wait_accounted(&mesh, "n2");
}

/// A compromised key is replaced at once, without waiting for peers.
#[test]
fn an_emergency_replaces_both_keys_at_once() {
    let mut mesh = quick(3);
    mesh.pods(&["a"]).unwrap();
    // No peer could acknowledge.
    mesh.stop("n3", Signal::KILL).unwrap();
    let before = keys(&mesh, "n1");
    let (done, report) = rotate(&mesh, "n1", &["--emergency"]);
    assert!(done && report["last_milliseconds"].as_u64().unwrap() < 3000, "{report:#}");
    assert!(keys(&mesh, "n1").iter().all(|key| !before.contains(key)));
    mesh.start_with("n3", &QUICK).unwrap();
    wait_whole(&mesh);
    must_pass(&mesh);
}

/// Control messages sent by pods are dropped.
#[test]
fn pods_cannot_send_on_the_control_channel() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &[&QUICK[..], &["--pq", "off"]].concat()).unwrap();
    }
    mesh.wait_formed();
    let pods = mesh.pods(&["a"]).unwrap();
    let control = |node: &str| mesh.status(node).unwrap()["control"].clone();
    let heard = |node: &str| control(node)["received"].as_u64().unwrap();
    // What the nodes send each other meanwhile is neither.
    let foreign = |node: &str| (control(node)["unknown_senders"].clone(), control(node)["refused"].clone());
    let before: Vec<_> = ["n1", "n2"].iter().map(|node| foreign(node)).collect();
    for pod in &pods {
        for target in ["10.244.1.1", "10.244.2.1"] {
            // An Ask with nonce 7 and the largest hop limit that a pod can set.
            let script = format!(
                "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                 s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255); \
                 [s.sendto(bytes([1, 0, 7]), ('{target}', 51842)) for _ in range(50)]"
            );
            pod.command("python3").args(["-c", &script]).run().unwrap();
        }
    }
    thread::sleep(Duration::from_millis(500));
    let after: Vec<_> = ["n1", "n2"].iter().map(|node| foreign(node)).collect();
    assert_eq!(after, before);
    let before = heard("n1");
    // Positive control: nodes receive each other's messages.
    assert!(rotate(&mesh, "n1", &[]).0);
    assert!(heard("n1") > before);
}
