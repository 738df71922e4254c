//! Keys are replaced under traffic: nothing is lost, nothing is in clear, and the old keys are gone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{Connection, IpVersion, Lab, Stream};
use serde_json::Value;

/// Short steps, so that a rotation takes seconds. What they wait for is the same.
const QUICK: [&str; 4] = ["--rotation-drain", "1s", "--rotation-timeout", "8s"];

fn quick(nodes: u8) -> Mesh {
    let mut mesh = Mesh::idle(Lab::builder().nodes(nodes).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &QUICK).unwrap();
    }
    mesh.wait_formed();
    mesh
}

/// The keys of a node, by fingerprint.
fn keys(mesh: &Mesh, node: &str) -> Vec<String> {
    let status = mesh.status(node).unwrap();
    let keys = status["rotation"]["keys"].as_array().unwrap().clone();
    keys.iter().map(|key| key["key"].as_str().unwrap().to_owned()).collect()
}

/// `meshd rotate -o json` on a node.
fn rotate(mesh: &Mesh, node: &str) -> Value {
    let command = mesh.node(node).unwrap().command(lab::bin("meshd").unwrap());
    let text = command.args(["rotate", "-o", "json"]).run().unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_rotation_loses_no_packet() {
    let mesh = quick(3);
    let capture = mesh.capture().unwrap();
    let pods = mesh.pods(&["a"]).unwrap();
    let before = keys(&mesh, "n1");
    let mut streams = Vec::new();
    for from in &pods {
        for to in pods.iter().filter(|to| to.name() != from.name() || to.node().name() != from.node().name())
        {
            streams.push(Stream::start(&from.end(), &to.end(), IpVersion::V4, 200).unwrap());
        }
    }
    let connection = Connection::open(&pods[0].end(), &pods[1].end(), IpVersion::V4, Some(20_000)).unwrap();
    for node in ["n1", "n2", "n1"] {
        let since = Instant::now();
        let report = rotate(&mesh, node);
        println!("{node}: {:?}: {} ms", since.elapsed(), report["last_milliseconds"]);
        assert_eq!(report["rolled_back"], 0);
        assert_eq!(report["step"], "steady");
    }
    let after = keys(&mesh, "n1");
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|key| !before.contains(key)), "{before:?} {after:?}");
    std::thread::sleep(Duration::from_millis(500));
    for stream in streams {
        let report = stream.stop();
        assert!(report.lost == report.overflowed, "{report:?}");
        assert_eq!(report.duplicated, 0, "{report:?}");
    }
    let report = connection.close();
    assert!(report.broken.is_none() && report.received == report.sent, "{report:?}");
    capture.report().assert_sealed();
}
