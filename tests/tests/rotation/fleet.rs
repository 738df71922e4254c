//! An operator requests rotations through the API server alone.

use std::process::Output;
use std::time::Instant;

use serde_json::{Value, json};

use super::{WITHIN, keys, must_pass, quick, wait_whole};
use lab::mesh::Mesh;

/// `meshd rotate` as an operator runs it: outside the cluster, with a kubeconfig.
fn rotate(mesh: &Mesh, flags: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, mesh.api().kubeconfig("admin").unwrap()).unwrap();
    // The API server's own host can reach it and has no daemon.
    let command = mesh.api().host().command(lab::bin("meshd").unwrap());
    command.arg("rotate").args(["--kubeconfig", path.to_str().unwrap()]).args(flags).output().unwrap()
}

fn report(output: &Output) -> Vec<Value> {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    })
}

#[test]
fn every_node_rotates_when_an_operator_requests_it() {
    let mesh = quick(3);
    mesh.pods(&["a"]).unwrap();
    let before: Vec<_> = mesh.node_names().iter().flat_map(|node| keys(&mesh, node)).collect();
    let shown = report(&rotate(&mesh, &["--all", "--dry-run", "-o", "json"]));
    assert_eq!(shown.len(), 3);
    let output = rotate(&mesh, &["--all", "-o", "json", "--timeout", "60s"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("draining a slot"), "{told}");
    for node in report(&output) {
        assert!(node["done"] == true && node["milliseconds"].as_u64() > Some(500), "{node:#}");
    }
    wait_whole(&mesh);
    for node in mesh.node_names() {
        assert!(keys(&mesh, &node).iter().all(|key| !before.contains(key)), "{node}");
        // The request is still on the Node, and has been fulfilled.
        let finished = mesh.status(&node).unwrap()["rotation"]["finished"].as_u64();
        assert_eq!(finished, Some(1), "{node}");
    }
    must_pass(&mesh);
}

#[test]
fn an_operator_can_name_nodes_and_request_an_emergency_rotation() {
    let mesh = quick(3);
    mesh.pods(&["a"]).unwrap();
    let all = |mesh: &Mesh| ["n1", "n2", "n3"].map(|node| keys(mesh, node));
    let before = all(&mesh);
    let output = rotate(&mesh, &["--node", "n2", "--emergency", "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let [node] = report(&output).try_into().unwrap();
    assert!(node["done"] == true && node["milliseconds"].as_u64() < Some(4000), "{node:#}");
    wait_whole(&mesh);
    let after = all(&mesh);
    assert!(after[1].iter().all(|key| !before[1].contains(key)));
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
    must_pass(&mesh);
    let output = rotate(&mesh, &["--node", "n9"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("node n9: expected the name of a Node"), "{told}");
}

#[test]
fn a_request_that_is_invalid_or_not_due_changes_nothing() {
    let mesh = quick(2);
    let before = keys(&mesh, "n1");
    let wish = |text: &str| {
        let patch = json!({"metadata": {"annotations": {"config.meshd.dev/renew-keys-before": text}}});
        mesh.api().patch_node("n1", &patch).unwrap();
    };
    wish("tomorrow");
    mesh.wait("n1", "the refusal", WITHIN, |status| {
        lab::mesh::refusals(status, "n1").iter().any(|reason| reason.contains("config-renewal"))
    });
    wish("99999999999 at-once");
    mesh.wait("n1", "no refusal", WITHIN, |status| lab::mesh::refusals(status, "n1").is_empty());
    assert_eq!(keys(&mesh, "n1"), before);
    assert_eq!(mesh.status("n1").unwrap()["rotation"]["busy"], false);
}

/// An API server that takes a request and never answers it is named, and not waited for.
#[test]
fn a_request_that_is_never_answered_fails() {
    let mesh = quick(1);
    assert!(mesh.api().hang_patches());
    let since = Instant::now();
    let output = rotate(&mesh, &["--node", "n1"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(
        told.contains("annotate Node n1") && told.contains("expected an answer of the API server"),
        "{told}"
    );
    assert!(since.elapsed() < WITHIN, "{:?}", since.elapsed());
}
