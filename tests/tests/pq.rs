//! Preshared keys between nodes: agreed on automatically, kept over rotations, and enforced where they are required.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::{Mesh, is_proven};
use lab::ping::{PingOutcome, ping};
use lab::{Flow, IpVersion, Lab, ProbeResult, Protocol, Signal, Stream};
use serde_json::Value;

/// Short timeouts, so that a rotation takes seconds; the conditions are the same.
const QUICK: [&str; 4] = ["--rotation-drain", "500ms", "--rotation-timeout", "10s"];
/// How long pairs may take to prove all keys.
const WITHIN: Duration = Duration::from_mins(1);

/// A mesh of nodes with these modes, in order.
fn mesh(modes: &[&str]) -> Mesh {
    let nodes = u8::try_from(modes.len()).unwrap();
    let mut mesh = Mesh::idle(Lab::builder().nodes(nodes).build().unwrap());
    for (node, mode) in mesh.node_names().iter().zip(modes) {
        mesh.start_with(node, &[&QUICK[..], &["--pq", mode]].concat()).unwrap();
    }
    mesh.wait_formed();
    mesh
}

/// Output of `wg` for one slot: each peer's public key with its preshared key.
fn shown(mesh: &Mesh, node: &str, slot: &str) -> Vec<(String, String)> {
    let link = format!("mesh-{slot}");
    let text = mesh.node(node).unwrap().command("wg").args(["show", &link, "preshared-keys"]).run().unwrap();
    let parse =
        |line: &str| line.split_once('\t').map(|(key, psk)| (key.to_owned(), psk.to_owned())).unwrap();
    text.lines().map(parse).collect()
}

/// The preshared key of two nodes on a slot; it must be the same on both.
fn shared(mesh: &Mesh, one: &str, other: &str, slot: &str) -> String {
    let public = |node: &str| mesh.status(node).unwrap()["slots"][slot]["key"].as_str().unwrap().to_owned();
    let with = |node: &str, peer: &str| {
        let key = public(peer);
        let found = shown(mesh, node, slot).into_iter().find(|(shown, _)| *shown == key);
        found.unwrap_or_else(|| panic!("{node} has no {peer} on slot {slot}")).1
    };
    let key = with(one, other);
    assert_eq!(key, with(other, one), "{one} and {other} on slot {slot}");
    key
}

/// All preshared keys of three nodes; no two are the same.
fn all_keys(mesh: &Mesh) -> BTreeSet<String> {
    let pairs = [("n1", "n2"), ("n1", "n3"), ("n2", "n3")];
    let keys: BTreeSet<String> =
        pairs.iter().flat_map(|(one, other)| ["a", "b"].map(|slot| shared(mesh, one, other, slot))).collect();
    assert_eq!(keys.len(), 6, "pairs or slots share a key");
    assert!(!keys.contains("(none)"));
    keys
}

fn streams(mesh: &Mesh) -> Vec<Stream> {
    let pods = mesh.pods(&["a"]).unwrap();
    let mut streams = Vec::new();
    for from in &pods {
        for to in pods.iter().filter(|to| to.node().name() != from.node().name()) {
            streams.push(Stream::start(&from.end(), &to.end(), IpVersion::V4, 100).unwrap());
        }
    }
    streams
}

fn assert_nothing_lost(streams: Vec<Stream>) {
    thread::sleep(Duration::from_millis(500));
    for stream in streams {
        let report = stream.stop();
        assert!(report.sent > 300 && report.lost == report.overflowed, "{report:?}");
    }
}

#[test]
fn all_pairs_agree_automatically_and_again_at_a_rotation_and_lose_nothing() {
    let mesh = mesh(&["prefer", "prefer", "prefer"]);
    // From before the first key: the slots change under traffic.
    let first = streams(&mesh);
    mesh.wait_proven();
    assert_nothing_lost(first);
    let before = all_keys(&mesh);

    let second = streams(&mesh);
    let command = mesh.node("n2").unwrap().command(lab::bin("meshd").unwrap());
    let output = command.args(["rotate", "-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    mesh.wait_proven();
    assert_nothing_lost(second);
    let after = all_keys(&mesh);
    // Both keys of n2 with each of the others are new, those of n1 with n3 are not.
    assert_eq!(before.intersection(&after).count(), 2, "{before:?} {after:?}");
}

#[test]
fn with_require_a_peer_without_pq_gets_no_pod_traffic_but_its_node_still_answers() {
    let mesh = mesh(&["require", "off", "require"]);
    for (node, peer) in [("n1", "n3"), ("n3", "n1")] {
        mesh.wait(node, &format!("proven with {peer}"), WITHIN, |status| {
            let found = status["peers"].as_array().unwrap().iter().find(|found| found["node"] == peer);
            found.is_some_and(|found| found["pq"]["blocked"] == false)
        });
    }
    mesh.wait("n1", "the reason is reported", WITHIN, |status| {
        let found = status["peers"].as_array().unwrap().iter().find(|found| found["node"] == "n2");
        found.is_some_and(|found| found["pq"]["blocked"] == true && found["pq"]["enabled"] == false)
    });
    let text = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap()).args(["status"]).run().unwrap();
    assert!(
        text.contains("n2: pod traffic blocked: a preshared key is required, and pq is off there"),
        "{text}"
    );

    let capture = mesh.capture().unwrap();
    let pods = mesh.pods(&["a"]).unwrap();
    let [one, off, three] = [0, 1, 2].map(|at| pods[at].end());
    for (from, to) in [(&one, &three), (&three, &one)] {
        Flow::new(from, to, IpVersion::V4, Protocol::Udp).must_pass();
    }
    for (from, to) in [(&one, &off), (&off, &one), (&three, &off), (&off, &three)] {
        let timeout = Duration::from_millis(700);
        let flow = Flow::new(from, to, IpVersion::V4, Protocol::Udp).timeout(timeout);
        assert_eq!(flow.probe().unwrap(), ProbeResult { source: None, answered: false }, "{flow}");
    }
    capture.report().assert_sealed();
    // The nodes themselves still communicate, over both devices.
    let node = mesh.node("n1").unwrap().end();
    for link in ["mesh-a", "mesh-b"] {
        let routes =
            mesh.node("n1").unwrap().command("ip").args(["route", "show", "dev", link]).run().unwrap();
        assert!(routes.contains("10.244.2.1 ") && !routes.contains("10.244.2.0/24"), "{routes}");
    }
    let outcome = ping(&node, "10.244.2.1".parse().unwrap(), 56, false, WITHIN).unwrap();
    assert_eq!(outcome, PingOutcome::Answered);
}

#[test]
fn keys_are_renewed_while_traffic_flows_and_survive_a_restart() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &[&QUICK[..], &["--pq", "require", "--pq-interval", "10s"]].concat()).unwrap();
    }
    mesh.wait_formed();
    mesh.wait_proven();
    let epoch = |status: &Value| status["peers"][0]["slots"]["a"]["pq"]["epoch"].as_u64().unwrap_or_default();
    let first = epoch(&mesh.status("n1").unwrap());
    let streams = streams(&mesh);
    mesh.wait("n1", "renewed twice", WITHIN, |status| epoch(status) > first + 2);
    mesh.wait_proven();
    assert_nothing_lost(streams);

    let kept = shared(&mesh, "n1", "n2", "a");
    mesh.stop("n1", Signal::KILL).unwrap();
    mesh.start_with("n1", &[&QUICK[..], &["--pq", "require", "--pq-interval", "0"]].concat()).unwrap();
    mesh.wait("n1", "proven again", WITHIN, is_proven);
    // It is the same unless it was renewed in between; in either case both have one.
    let now = shared(&mesh, "n1", "n2", "a");
    assert!(!now.contains("none") && !kept.contains("none"));
    let pods = mesh.pods(&["a"]).unwrap();
    Flow::new(&pods[0].end(), &pods[1].end(), IpVersion::V4, Protocol::Udp).must_pass();
}

/// The cached peers are enough: a node does not need its own Node to use the keys that it has.
#[test]
fn a_node_that_starts_without_the_api_server_has_its_preshared_keys() {
    let flags = [&QUICK[..], &["--pq", "require", "--pq-interval", "0"]].concat();
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &flags).unwrap();
    }
    mesh.wait_formed();
    mesh.wait_proven();
    let kept = ["a", "b"].map(|slot| shared(&mesh, "n1", "n2", slot));
    let pods = mesh.pods(&["a"]).unwrap();
    let [one, two] = [pods[0].end(), pods[1].end()];
    mesh.api().stop().unwrap();
    mesh.stop("n1", Signal::KILL).unwrap();
    mesh.start_with("n1", &flags).unwrap();
    mesh.wait("n1", "proven from memory", WITHIN, is_proven);
    assert_eq!(["a", "b"].map(|slot| shared(&mesh, "n1", "n2", slot)), kept);
    for (from, to) in [(&one, &two), (&two, &one)] {
        Flow::new(from, to, IpVersion::V4, Protocol::Udp).must_pass();
    }
}

/// Somebody on the path who blocks one of the two ports keeps a pair from agreeing on keys. With `prefer` the pods' packets
/// pass on the other slot; the operator learns of it.
#[test]
fn a_pair_that_is_kept_from_its_preshared_keys_is_reported_until_it_has_them() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    let nft = |mesh: &Mesh, rules: &str| {
        mesh.node("n2").unwrap().command("nft").arg(rules).run().unwrap();
    };
    nft(
        &mesh,
        "add table inet block; add chain inet block in { type filter hook input priority 0; }; \
         add rule inet block in udp dport 51841 drop",
    );
    for node in mesh.node_names() {
        mesh.start_with(&node, &QUICK).unwrap();
    }
    mesh.wait_formed();
    let stripped = |status: &Value| status["peers"][0]["pq"]["stripped_seconds"].as_u64();
    // The page is as of a moment ago.
    let metric = |mesh: &Mesh, value: u8| {
        let sample = format!("\nmeshd_troubled_peers{{reason=\"stripped\"}} {value}\n");
        let since = Instant::now();
        loop {
            let text = mesh.node("n1").unwrap().run(lab::metrics).unwrap().unwrap();
            if text.contains(&sample) {
                break;
            }
            assert!(since.elapsed() < WITHIN, "no {sample:?} in {text}");
            thread::sleep(Duration::from_millis(200));
        }
    };
    metric(&mesh, 0);
    mesh.wait("n1", "it is reported", WITHIN, |status| stripped(status).is_some_and(|lasted| lasted >= 30));
    mesh.daemon("n1").wait_log("PresharedKeyStripped", WITHIN).unwrap();
    metric(&mesh, 1);
    let is_reported = |event: &Value| {
        event["reason"] == "PresharedKeysStripped"
            && event["type"] == "Warning"
            && event["involvedObject"]["name"] == "n1"
    };
    let since = Instant::now();
    while mesh.api().core_events().unwrap().iter().filter(|event| is_reported(event)).count() != 1 {
        assert!(since.elapsed() < WITHIN, "{:?}", mesh.api().core_events());
        thread::sleep(Duration::from_millis(50));
    }
    let text = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap()).args(["status"]).run().unwrap();
    assert!(text.contains("n2: pods' packets have passed without a preshared key for "), "{text}");
    // It is what it says: pods do reach each other, inside the tunnel.
    let capture = mesh.capture().unwrap();
    let pods = mesh.pods(&["a"]).unwrap();
    Flow::new(&pods[0].end(), &pods[1].end(), IpVersion::V4, Protocol::Udp).must_pass();
    capture.report().assert_sealed();

    nft(&mesh, "delete table inet block");
    mesh.wait("n1", "it is over", WITHIN, |status| stripped(status).is_none());
    mesh.daemon("n1").wait_log("PresharedKeyRestored", WITHIN).unwrap();
    metric(&mesh, 0);
    let log = mesh.daemon("n1").log().unwrap();
    assert_eq!(log.matches("PresharedKeyStripped").count(), 1, "logged more than once");
}
