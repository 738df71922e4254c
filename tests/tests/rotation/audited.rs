//! The audit trail of a real rotation, on its own node and in its peers' trails.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use lab::kube::ADMIN;
use lab::mesh::Mesh;
use serde_json::Value;

use super::{WITHIN, keys, quick, rotate, wait_whole};

const TRAIL: &str = "/var/lib/meshd/audit/audit.jsonl";
const WITNESS_TRAIL: &str = "/var/lib/meshd/audit/witness/audit.jsonl";

fn text(mesh: &Mesh, node: &str, trail: &str) -> String {
    String::from_utf8(mesh.node(node).unwrap().read(trail).unwrap()).unwrap()
}

fn lines(mesh: &Mesh, node: &str, trail: &str) -> Vec<Value> {
    text(mesh, node, trail).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `meshd audit …` on n1, with copies of other nodes' trails.
fn audit(mesh: &Mesh, arguments: &[&str]) -> (bool, String) {
    super::audit(mesh, "n1", arguments)
}

fn verify(mesh: &Mesh, trail: &str) -> (bool, String) {
    audit(mesh, &["verify", "--trail", trail, "--witness", "/tmp/n2.jsonl", "--witness", "/tmp/n3.jsonl"])
}

#[test]
fn a_rotation_can_be_audited_and_every_forgery_is_detected() {
    let mesh = quick(3);
    let before = keys(&mesh, "n1");
    assert!(rotate(&mesh, "n1", &[]).0);
    wait_whole(&mesh);
    assert!(keys(&mesh, "n1").iter().all(|key| !before.contains(key)));
    the_node_told_it_all(&mesh);
    the_peers_were_told(&mesh);
    a_peer_saw_it_all(&mesh);
    the_report_closes(&mesh);
    forgeries_are_found(&mesh);
}

/// The node's own trail.
fn the_node_told_it_all(mesh: &Mesh) {
    let own = lines(mesh, "n1", TRAIL);
    let events: Vec<&str> = own.iter().map(|line| line["event"].as_str().unwrap()).collect();
    for (event, count) in [
        ("started", 1),
        ("begun", 1),
        ("staged", 2),
        ("draining", 2),
        ("acknowledged", 4),
        ("published", 2),
        ("verified", 4),
        ("active", 1),
        ("destroyed", 2),
        ("finished", 1),
    ] {
        assert_eq!(events.iter().filter(|found| **found == event).count(), count, "{event} in {events:?}");
    }
}

/// Its peers have its head, and so has an Event.
fn the_peers_were_told(mesh: &Mesh) {
    let node = mesh.node("n1").unwrap();
    let since = Instant::now();
    let own = lines(mesh, "n1", TRAIL);
    let finished = own.iter().find(|line| line["event"] == "finished").unwrap();
    let uid = &finished["node"]["uid"];
    for witness in ["n2", "n3"] {
        loop {
            let found = lines(mesh, witness, WITNESS_TRAIL);
            let after = |line: &Value| line["line"].as_u64() >= finished["seq"].as_u64();
            if found.iter().any(|line| line["event"] == "peer-head" && line["peer"] == *uid && after(line)) {
                break;
            }
            assert!(since.elapsed() < WITHIN, "{witness} was not told: {found:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        node.write(format!("/tmp/{witness}.jsonl"), text(mesh, witness, WITNESS_TRAIL)).unwrap();
    }
    let list = |client| async move { Api::<Event>::all(client).list(&ListParams::default()).await };
    let events = mesh.api().run(ADMIN, list).unwrap().unwrap().items;
    let told = events.iter().find(|event| event.reason.as_deref() == Some("KeysRotated"));
    let message = told.and_then(|event| event.message.as_deref()).unwrap_or_default();
    assert!(message.contains("ends at line"), "{events:#?}");
}

/// A peer's trail alone contains the whole rotation.
fn a_peer_saw_it_all(mesh: &Mesh) {
    let seen: Vec<Value> = lines(mesh, "n2", WITNESS_TRAIL)
        .into_iter()
        .filter(|line| line["event"] == "peer-announced" && line["peer"]["name"] == "n1")
        .collect();
    let steps: Vec<_> = seen
        .iter()
        .map(|line| {
            (line["prefer"].as_str().unwrap(), line["drain"].as_str(), line["installed"].as_bool().unwrap())
        })
        .collect();
    let whole = [
        ("a", None, false),
        ("a", Some("b"), false),
        ("a", Some("b"), true),
        ("b", None, false),
        ("b", Some("a"), false),
        ("b", Some("a"), true),
        ("b", None, false),
    ];
    // Two announcements in quick succession may be seen as one.
    let mut rest = whole.iter();
    assert!(steps.iter().all(|step| rest.any(|expected| expected == step)), "{steps:?}");
    assert!(steps.len() >= 5 && steps.last() == whole.last(), "{steps:?}");
    let (_, report) = audit(mesh, &["report", "--trail", "/tmp/n2.jsonl", "-o", "json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let nodes = report["nodes"].as_array().unwrap();
    let seen = nodes.iter().find(|found| found["node"] == "n1").unwrap()["keys"].as_array().unwrap();
    assert_eq!(seen.len(), 4, "{report:#}");
    assert_eq!(seen.iter().filter(|key| key["replaced"].is_null()).count(), 2);
}

/// With the node's own trail the report has no open questions.
fn the_report_closes(mesh: &Mesh) {
    let trails = ["report", "--trail", "/var/lib/meshd/audit", "--trail", "/tmp/n2.jsonl", "-o", "json"];
    let report: Value = serde_json::from_str(&audit(mesh, &trails).1).unwrap();
    assert_eq!(report["not_proven_destroyed"], serde_json::json!([]), "{report:#}");
    assert_eq!(report["overdue"], serde_json::json!([]));
    let page = audit(mesh, &["report"]).1;
    assert!(page.contains("1 finished") && page.lines().all(|line| line.chars().count() <= 120), "{page}");
    for form in ["jsonl", "csv", "ocsf"] {
        assert!(
            audit(mesh, &["export", "--format", form]).1.lines().count() >= lines(mesh, "n1", TRAIL).len(),
            "{form}"
        );
    }
    let shown = audit(mesh, &["show", "--node", "n1", "--since", "1h"]).1;
    assert!(shown.contains("destroyed"), "{shown}");
}

fn forgeries_are_found(mesh: &Mesh) {
    let node = mesh.node("n1").unwrap();
    node.write("/tmp/copy", text(mesh, "n1", TRAIL)).unwrap();
    let (whole, verdict) = verify(mesh, "/tmp/copy");
    assert!(whole && verdict.contains("2 witnesses"), "{verdict}");
    let (whole, verdict) = audit(mesh, &["verify"]);
    assert!(whole, "own trail and witness trail agree: {verdict}");
    let all: Vec<String> = text(mesh, "n1", TRAIL).lines().map(ToOwned::to_owned).collect();
    let forge = |name: &str, lines: Vec<String>, part: &str| {
        node.write("/tmp/forged", lines.join("\n") + "\n").unwrap();
        let (whole, verdict) = verify(mesh, "/tmp/forged");
        assert!(!whole && verdict.contains(part), "{name}: {verdict}");
    };
    let without =
        |at: usize| all.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, l)| l.clone()).collect();
    forge("deleted", without(5), "forged:6: line 7 where line 6 should be");
    let mut changed = all.clone();
    changed[3] = changed[3].replace("\"a\"", "\"b\"").replace("\"b\"", "\"a\"") + " ";
    forge("changed", changed, "forged:4:");
    let mut swapped = all.clone();
    swapped.swap(4, 5);
    forge("reordered", swapped, "forged:5:");
    let mut appended = all.clone();
    appended.push(all[2].clone());
    forge("appended", appended, &format!("forged:{}:", all.len() + 1));
    forge("cut off", all[..4].to_vec(), "its end is missing");
}
