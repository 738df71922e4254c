//! A daemon to which nothing happens compares nothing: its cost follows what changes, not the size of the mesh.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::time::Duration;

use lab::mesh::{Mesh, UNOWNED, refusals};
use lab::{ApiKind, Family, IpVersion, Lab};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_mins(1);

fn counter(status: &Value, name: &str) -> u64 {
    status["counters"][name].as_u64().unwrap()
}

/// Waits until the loop has taken so many turns in a row that compared nothing.
fn wait_idle(mesh: &Mesh, turns: u64) {
    let since: Cell<Option<(u64, u64)>> = Cell::new(None);
    mesh.wait("n1", "turns that compare nothing", TIMEOUT, |status| {
        let now = (counter(status, "reconciles"), counter(status, "full_reconciles"));
        let start = since.get().filter(|start| start.1 == now.1).unwrap_or(now);
        since.set(Some(start));
        now.0 - start.0 >= turns
    });
}

#[test]
fn a_change_of_one_node_compares_only_what_is_new() {
    let lab = Lab::builder().nodes(2).family(Family::V4).api(ApiKind::Fake).build().unwrap();
    let mesh = Mesh::form_with(lab, &UNOWNED).unwrap();
    mesh.wait_proven();
    let node = mesh.node("n1").unwrap();
    let keepalives = || {
        let shown = node.command("wg").args(["show", "all", "persistent-keepalive"]).run().unwrap();
        let lines = shown.lines().filter_map(|line| line.split_whitespace().last().map(ToOwned::to_owned));
        lines.collect::<Vec<String>>()
    };
    // A turn that it is time for may fall into one of them, not into all.
    let fewest = [7, 8, 9].map(|seconds: u16| {
        wait_idle(&mesh, 2);
        let before = mesh.status("n1").unwrap();
        let keepalive =
            json!({"metadata": {"annotations": {"config.meshd.dev/keepalive": seconds.to_string()}}});
        mesh.api().patch_node("n2", &keepalive).unwrap();
        mesh.wait("n1", "another keepalive", TIMEOUT, |status| {
            counter(status, "steps") >= counter(&before, "steps") + 2
                && counter(status, "reconciles") >= counter(&before, "reconciles") + 4
        });
        assert_eq!(keepalives(), vec![seconds.to_string(); 2]);
        let after = mesh.status("n1").unwrap();
        counter(&after, "full_reconciles") - counter(&before, "full_reconciles")
    });
    assert_eq!(fewest.into_iter().min(), Some(0), "whole comparisons because of a change of one Node");
    assert_eq!(counter(&mesh.status("n1").unwrap(), "missed_changes"), 0);
}

#[test]
fn an_idle_second_compares_nothing_and_changes_by_hand_are_seen() {
    let lab = Lab::builder().nodes(2).family(Family::V4).api(ApiKind::Fake).build().unwrap();
    let mesh = Mesh::form_with(lab, &UNOWNED).unwrap();
    mesh.wait_proven();
    wait_idle(&mesh, 4);
    let node = mesh.node("n1").unwrap();
    // Others change their tables of nft all the time: a look sees that the guard stands.
    let before = mesh.status("n1").unwrap();
    for number in 0..5 {
        node.command("nft").args(["add", "table", "ip", &format!("other{number}")]).run().unwrap();
    }
    mesh.wait("n1", "five more turns", TIMEOUT, |status| {
        counter(status, "reconciles") >= counter(&before, "reconciles") + 5
    });
    let after = mesh.status("n1").unwrap();
    let full = counter(&after, "full_reconciles") - counter(&before, "full_reconciles");
    // One because it is time, some because the host is checked again after tables have changed.
    assert!(full <= 3, "{full} whole comparisons because of tables of others");
    for change in [
        "wg set mesh-a peer $(wg show mesh-a peers) remove",
        "wg set mesh-b peer $(wg show mesh-b peers) allowed-ips 10.99.0.0/24",
        "sysctl -qw net.ipv4.ip_forward=0",
        "nft delete table inet meshd",
        "ip link set mesh-b mtu 1300",
    ] {
        wait_idle(&mesh, 2);
        let steps = counter(&mesh.status("n1").unwrap(), "steps");
        node.command("sh").args(["-c", change]).run().unwrap();
        mesh.wait("n1", change, TIMEOUT, |status| counter(status, "steps") > steps);
    }
    mesh.wait_settled();
    assert_eq!(counter(&mesh.status("n1").unwrap(), "missed_changes"), 0, "found only because it was time");

    // One liar is enough to have an address contested for ever.
    let own = mesh.node("n2").unwrap().address(IpVersion::V4).unwrap().to_string();
    let listed = |addresses: &[&str]| {
        let address = |address: &&str| json!({"type": "InternalIP", "address": address});
        json!({"addresses": addresses.iter().map(address).collect::<Vec<_>>()})
    };
    let other = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}, "spec": {},
        "status": listed(&["192.0.2.77"]),
    });
    mesh.api().create_node(other).unwrap();
    let status = json!({"status": listed(&[&own, "192.0.2.77"])});
    mesh.api().patch_node_status("n2", &status).unwrap();
    mesh.wait("n1", "an address that no Node has proven", TIMEOUT, |status| {
        refusals(status, "n2") == ["address-taken"] || refusals(status, "n2") == ["address-contested"]
    });
    wait_idle(&mesh, 6);
}
