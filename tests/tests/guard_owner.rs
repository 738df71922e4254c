//! While the daemon runs, nobody else changes or removes the guard; when it has died, the guard stays.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::mesh::Mesh;
use lab::{Family, Lab, Node, Signal};

/// The guard as `nft` prints it, with the handle of the table, without owner, counters and members of sets.
fn guard(node: &Node) -> String {
    let script = "nft -a list table inet meshd | sed 's/ progname .*//; /flags/d; /elements/d; \
                  s/counter packets [0-9]* bytes [0-9]*/counter/'";
    node.command("sh").args(["-c", script]).run().unwrap()
}

fn nft(node: &Node, arguments: &[&str]) -> bool {
    node.command("nft").args(arguments).output().unwrap().status.success()
}

#[test]
fn nobody_else_removes_the_guard_and_it_outlives_the_daemon() {
    let mut mesh = Mesh::form(Lab::builder().nodes(1).family(Family::Dual).build().unwrap()).unwrap();
    let owned = |mesh: &Mesh| {
        mesh.wait("n1", "the guard belongs to the daemon", Duration::from_secs(10), |status| {
            status["guard"]["owned"] == true
        });
    };
    owned(&mesh);
    let node = mesh.node("n1").unwrap();
    let whole = guard(node);
    assert!(whole.contains("10.244.0.0/16") && whole.contains("fd00:10:244::/48"), "{whole}");
    assert!(nft(node, &["add", "table", "inet", "other"]));
    for change in [
        &["delete", "table", "inet", "meshd"][..],
        &["flush", "table", "inet", "meshd"],
        &["flush", "chain", "inet", "meshd", "egress"],
        &["insert", "rule", "inet", "meshd", "egress", "accept"],
        &["add", "element", "inet", "meshd", "nodes4", "{ 203.0.113.9 }"],
    ] {
        assert!(!nft(node, change), "{change:?}");
    }
    assert!(nft(node, &["flush", "ruleset"]));
    assert!(!nft(node, &["list", "table", "inet", "other"]), "all that has no owner is flushed");
    assert_eq!(guard(node), whole, "not even replaced");
    // A pod can be attached: the plugin reads the guard, and its own tables are others.
    node.pod("added").unwrap().delete().unwrap();

    mesh.stop("n1", Signal::KILL).unwrap();
    let node = mesh.node("n1").unwrap();
    assert_eq!(guard(node), whole, "it has outlived its owner");
    node.pod("meanwhile").unwrap().delete().unwrap();
    mesh.start("n1").unwrap();
    owned(&mesh);
    let node = mesh.node("n1").unwrap();
    assert!(!nft(node, &["delete", "table", "inet", "meshd"]));
    assert!(nft(node, &["flush", "ruleset"]));
    let handle = |text: &str| text.lines().next().unwrap().to_owned();
    assert_eq!(handle(&guard(node)), handle(&whole), "taken over, not replaced");

    // What has changed while no daemon ran is set again, by an owner.
    mesh.stop("n1", Signal::KILL).unwrap();
    assert!(nft(mesh.node("n1").unwrap(), &["delete", "table", "inet", "meshd"]));
    mesh.start("n1").unwrap();
    owned(&mesh);
    assert!(!nft(mesh.node("n1").unwrap(), &["delete", "table", "inet", "meshd"]));
}
