//! After `meshd uninstall` the node is as it was before: files, links, routes, rules, tables, annotations.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use lab::mesh::Mesh;
use lab::{Family, Lab, Node, Signal};
use serde_json::Value;

fn inventory(node: &Node) -> String {
    let script = "
        ip -br link; ip -br addr
        ip -4 route show table all; ip -6 route show table all; ip -4 rule; ip -6 rule; ip neigh show nud permanent
        nft list ruleset
        find /run /etc/cni /opt/cni /var/lib/cni /var/lib/meshd -path /run/lab -prune -o -type f -print -o -type s -print
    ";
    let text = node.command("sh").args(["-c", script]).run().unwrap();
    // Lifetimes of IPv6 addresses and routes count down. Anycast addresses are the kernel's own, for as long as it
    // forwards; forwarding stays on, since others on the node may have come to rely on it.
    let stable = text.lines().filter(|line| !line.contains("expires") && !line.starts_with("anycast"));
    stable.map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn annotations(mesh: &Mesh) -> Value {
    mesh.api().node("n1").unwrap()["metadata"]["annotations"].clone()
}

#[test]
fn nothing_is_left() {
    let lab = Lab::builder().nodes(2).family(Family::Dual).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let (before, annotated_before) = (inventory(mesh.node("n1").unwrap()), annotations(&mesh));
    for node in mesh.node_names() {
        mesh.start(&node).unwrap();
    }
    mesh.wait_formed();
    mesh.node("n1").unwrap().pod("a").unwrap();
    assert_ne!(inventory(mesh.node("n1").unwrap()), before);

    let run = |mesh: &Mesh| {
        let arguments = mesh.arguments("n1", &[]);
        mesh.node("n1")
            .unwrap()
            .command(lab::bin("meshd").unwrap())
            .arg("uninstall")
            .args(&arguments)
            .output()
            .unwrap()
    };
    let refused = run(&mesh);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("stop it first"));
    mesh.stop("n1", Signal::TERM).unwrap();
    let refused = run(&mesh);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("1 pods are attached"), "{said}");
    let guard = mesh.node("n1").unwrap().command("nft").args(["list", "table", "inet", "meshd"]).run();
    assert!(guard.is_ok(), "the guard stays until the rest is gone");

    mesh.node("n1").unwrap().pod("a").unwrap().delete().unwrap();
    let removed = run(&mesh);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert_eq!(inventory(mesh.node("n1").unwrap()), before);
    let none = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
    assert!(annotations(&mesh) == annotated_before || (none(&annotated_before) && none(&annotations(&mesh))));
    let again = run(&mesh);
    assert!(
        String::from_utf8_lossy(&again.stdout).contains("Nothing of meshd's"),
        "a second time there is nothing"
    );
}
