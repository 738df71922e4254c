//! After `meshd uninstall` the node is as it was before: files, links, routes, rules, tables, annotations. The audit trail
//! is kept unless its removal is asked for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{Family, Inventory, Lab, Node, Signal};
use serde_json::Value;

const TRAIL: &str = "/var/lib/meshd/audit";

fn network(node: &Node) -> String {
    Inventory::network(node).unwrap()
}

/// The paths of all files that a node holds, one per line.
fn files(node: &Node) -> String {
    let inventory = Inventory::take(node).unwrap();
    let paths: Vec<String> = inventory.paths().map(|path| path.display().to_string()).collect();
    paths.iter().flat_map(|path| [path.as_str(), "\n"]).collect()
}

fn annotations(mesh: &Mesh) -> Value {
    mesh.api().node("n1").unwrap()["metadata"]["annotations"].clone()
}

/// `meshd uninstall` on n1: whether it succeeded, its output, its errors.
fn uninstall(mesh: &Mesh, flags: &[&str]) -> (bool, String, String) {
    let command = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap()).arg("uninstall");
    let output = command.args(mesh.arguments("n1", flags)).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn nothing_is_left() {
    let lab = Lab::builder().nodes(2).family(Family::Dual).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let node = |mesh: &Mesh| -> (String, String) {
        let node = mesh.node("n1").unwrap();
        (network(node), files(node))
    };
    // Chains that drop get rules, which go again, whatever the options say about them.
    let drop = "for iptables in iptables ip6tables; do
        $iptables -A INPUT -i lo -j ACCEPT; $iptables -A INPUT -i eth0 -j ACCEPT
        $iptables -P INPUT DROP; $iptables -P FORWARD DROP
    done";
    mesh.node("n1").unwrap().command("sh").args(["-c", drop]).run().unwrap();
    let (before, annotated_before) = (node(&mesh), annotations(&mesh));
    mesh.set_relay("n1", true).unwrap();
    for name in mesh.node_names() {
        mesh.start_with(&name, &["--input-from-pods", "false", "--close-external-ips", "true"]).unwrap();
    }
    mesh.wait_formed();
    mesh.wait("n1", "to be a relay", Duration::from_mins(1), |status| !status["relay"].is_null());
    mesh.node("n1").unwrap().pod("a").unwrap();
    let installed = node(&mesh);
    assert_ne!(installed.0, before.0);
    assert_eq!(installed.0.matches("meshd accept").count(), 2 * (2 + 2 * 2 + 2 * 2), "{}", installed.0);
    for path in [
        "/run/meshd/meshd.sock",
        "/etc/cni/net.d/10-meshd.conflist",
        "/opt/cni/bin/loopback",
        "/var/lib/meshd/peers.json",
        "/var/lib/meshd/paths.json",
        TRAIL,
    ] {
        assert!(installed.1.contains(path), "{path} in\n{}", installed.1);
    }

    refuses_while_in_use(&mut mesh);

    let (removed, output, errors) = uninstall(&mesh, &[]);
    assert!(removed, "{errors}");
    for part in [
        &format!("Kept the audit trail in {TRAIL}"),
        "--purge-audit",
        "accept rules",
        "settings stay (forwarding",
    ] {
        assert!(output.contains(part), "{part} in\n{output}");
    }
    let trail = format!("{TRAIL}/audit.jsonl\n");
    let witness = format!("{TRAIL}/witness/audit.jsonl\n");
    let after = node(&mesh);
    assert_eq!(after.0, before.0);
    assert_eq!(after.1.replace(&trail, "").replace(&witness, ""), before.1);
    assert!(after.1.contains(&trail), "the trail is kept");
    let verify = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap()).args(["audit", "verify"]).run();
    assert!(verify.unwrap().contains("intact: "));
    let is_empty = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
    assert!(
        annotations(&mesh) == annotated_before
            || (is_empty(&annotated_before) && is_empty(&annotations(&mesh)))
    );

    let (_, output, _) = uninstall(&mesh, &[]);
    assert!(output.contains("No meshd state was found") && output.contains(TRAIL), "{output}");
    assert!(node(&mesh).1.contains(&trail));

    let (removed, output, errors) = uninstall(&mesh, &["--purge-audit"]);
    assert!(removed, "{errors}");
    assert!(output.contains(&format!("- audit trail {TRAIL}")) && !output.contains("Kept"), "{output}");
    assert_eq!(node(&mesh), before);
    let (_, output, _) = uninstall(&mesh, &["--purge-audit"]);
    assert_eq!(output, "No meshd state was found on this node.\n");
}

/// A running daemon would restore what is removed, and attached pods would lose their network.
fn refuses_while_in_use(mesh: &mut Mesh) {
    let (removed, _, errors) = uninstall(mesh, &[]);
    assert!(!removed && errors.contains("stop it first"), "{errors}");
    mesh.stop("n1", Signal::TERM).unwrap();
    let (removed, _, errors) = uninstall(mesh, &["--purge-audit"]);
    assert!(!removed && errors.contains("1 pods are attached"), "{errors}");
    let node = mesh.node("n1").unwrap();
    let guard = node.command("nft").args(["list", "table", "inet", "meshd"]).run();
    assert!(guard.is_ok(), "the guard stays until everything else is removed");
    assert!(files(node).contains(TRAIL), "nothing was removed");
    node.pod("a").unwrap().delete().unwrap();
}

/// An API server that never answers is named, and not waited for; the guard stays, as after any failure.
#[test]
fn an_api_server_that_hangs_is_not_waited_for() {
    let mut mesh = Mesh::form(Lab::builder().nodes(1).build().unwrap()).unwrap();
    mesh.stop("n1", Signal::TERM).unwrap();
    assert!(mesh.api().hang_gets());
    let since = Instant::now();
    let (removed, _, errors) = uninstall(&mesh, &[]);
    assert!(!removed && errors.contains("read the Node: expected an answer of the API server"), "{errors}");
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    let guard = mesh.node("n1").unwrap().command("nft").args(["list", "table", "inet", "meshd"]).run();
    assert!(guard.is_ok(), "the guard was removed");
}

#[test]
fn the_help_says_what_becomes_of_the_audit_trail() {
    let help = std::process::Command::new(lab::bin("meshd").unwrap()).args(["uninstall", "--help"]).output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    assert!(help.contains("but its audit trail") && help.contains("--purge-audit"), "{help}");
}
