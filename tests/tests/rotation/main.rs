//! Keys are rotated under traffic: no packet is lost or unencrypted, the old keys are destroyed, and after every fault
//! the mesh works.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod audited;
mod crash;
mod destroyed;
mod faults;
mod fleet;
mod hitless;
mod replayed;
mod secrets;
mod stolen;

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{Flow, IpVersion, Lab, Node, Protocol};
use serde_json::Value;

/// Short timeouts, so that a rotation takes seconds; the conditions are the same.
const QUICK: [&str; 4] = ["--rotation-drain", "500ms", "--rotation-timeout", "4s"];
/// How long a mesh may take to recover.
const WITHIN: Duration = Duration::from_secs(30);

fn quick(nodes: u8) -> Mesh {
    let mut mesh = Mesh::idle(Lab::builder().nodes(nodes).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &QUICK).unwrap();
    }
    mesh.wait_formed();
    mesh
}

/// The public keys of a node that are in use, slot a first.
fn keys(mesh: &Mesh, node: &str) -> Vec<String> {
    let status = mesh.status(node).unwrap();
    let slots = ["a", "b"].map(|slot| status["slots"][slot]["key"].as_str().unwrap().to_owned());
    slots.to_vec()
}

/// `meshd rotate -o json` on a node, with whether it succeeded.
fn rotate(mesh: &Mesh, node: &str, flags: &[&str]) -> (bool, Value) {
    let command = mesh.node(node).unwrap().command(lab::bin("meshd").unwrap());
    let output = command.args(["rotate", "-o", "json"]).args(flags).output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{node}: {error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.success(), report)
}

/// `meshd audit …` on a node: whether it succeeded, and what it printed.
fn audit(mesh: &Mesh, node: &str, arguments: &[&str]) -> (bool, String) {
    let command = mesh.node(node).unwrap().command(lab::bin("meshd").unwrap());
    let output = command.arg("audit").args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until a node's own trail accounts for every key that it no longer has.
fn wait_accounted(mesh: &Mesh, node: &str) {
    let end = Instant::now() + WITHIN;
    loop {
        let (_, report) = audit(mesh, node, &["report", "-o", "json"]);
        let report: Value = serde_json::from_str(&report).unwrap();
        if report["not_proven_destroyed"] == serde_json::json!([]) {
            return;
        }
        assert!(Instant::now() < end, "{report:#}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until no rotation is in progress and every node knows the current keys of every other.
fn wait_whole(mesh: &Mesh) {
    let names = mesh.node_names();
    for node in &names {
        mesh.wait(node, "no rotation", WITHIN, |status| {
            status["rotation"]["step"] == "steady"
                && status["rotation"]["busy"] == false
                && status["api"]["published"] == true
                && status["ready"] == true
        });
    }
    for node in &names {
        for peer in names.iter().filter(|peer| *peer != node) {
            let wanted = keys(mesh, peer);
            mesh.wait(node, &format!("knows the keys of {peer}"), WITHIN, |status| {
                let peers = status["peers"].as_array().unwrap();
                let found = peers.iter().find(|found| found["node"] == peer.as_str());
                found.is_some_and(|found| {
                    ["a", "b"]
                        .iter()
                        .zip(&wanted)
                        .all(|(slot, key)| found["slots"][slot]["key"] == key.as_str())
                })
            });
        }
    }
}

/// A pod on every node reaches every other.
fn must_pass(mesh: &Mesh) {
    let pods: Vec<_> = mesh.nodes().iter().flat_map(Node::pods).collect();
    for from in &pods {
        for to in pods.iter().filter(|to| to.node().name() != from.node().name()) {
            Flow::new(&from.end(), &to.end(), IpVersion::V4, Protocol::Tcp).must_pass();
        }
    }
}
