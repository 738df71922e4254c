//! Ranges of pods and services that are added to a running cluster: daemons start again with them, pods don't.

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{ApiKind, Family, IpVersion, Lab, Signal, Stream};

use super::{must_pass, shell};

const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
const MORE_SERVICES: &str = "10.97.0.0/16";

/// The podCIDRs of nodes, as an option.
fn pod_ranges(mesh: &Mesh, nodes: &[&str]) -> String {
    let ranges = nodes.iter().flat_map(|node| mesh.node(node).unwrap().pod_ranges());
    ranges.map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn pods_go_on_and_the_guard_has_no_gap_while_ranges_are_added() {
    let lab = Lab::builder().nodes(3).family(Family::Dual).api(ApiKind::Fake).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let former = pod_ranges(&mesh, &["n1", "n2"]);
    for node in ["n1", "n2"] {
        mesh.start_with(node, &["--cluster-cidr", &former, "--service-cidr", SERVICES]).unwrap();
    }
    mesh.wait_formed();
    let [a, b] = ["n1", "n2"].map(|node| mesh.node(node).unwrap().pod("a").unwrap().end());
    mesh.wait_settled();
    let capture = mesh.capture().unwrap();
    // Only the guard keeps these packets from the underlay, at any moment.
    let gateway = mesh.outside().address(IpVersion::V4).unwrap();
    let routed = mesh.node("n2").unwrap().pod_ranges()[0].ip();
    let underlay = |verb: &str| format!("ip route {verb} {routed}/25 via {gateway}");
    shell(mesh.node("n1").unwrap(), &underlay("add"));
    let dropped = Stream::start(&a, &b, IpVersion::V4, 1000).unwrap();
    let passing = Stream::start(&b, &a, IpVersion::V6, 100).unwrap();

    let all = pod_ranges(&mesh, &["n1", "n2", "n3"]);
    let services = format!("{SERVICES},{MORE_SERVICES}");
    for node in ["n1", "n2"] {
        mesh.stop(node, Signal::TERM).unwrap();
        mesh.start_with(node, &["--cluster-cidr", &all, "--service-cidr", &services]).unwrap();
        mesh.wait_formed();
        let since = Instant::now();
        passing.wait_arrival(since, Duration::from_secs(20)).unwrap();
    }
    shell(mesh.node("n1").unwrap(), &underlay("del"));
    assert!(dropped.sent() > 300, "sent: {}", dropped.sent());
    let since = Instant::now();
    dropped.wait_arrival(since, Duration::from_secs(20)).unwrap();
    let guard =
        mesh.node("n1").unwrap().command("nft").args(["list", "table", "inet", "meshd"]).run().unwrap();
    for range in all.split(',').chain([MORE_SERVICES]) {
        assert!(guard.contains(range), "{range} in\n{guard}");
    }

    // A node whose podCIDRs are of the new range. The pods that were there before reach its pods, and are reached.
    mesh.start_with("n3", &["--cluster-cidr", &all, "--service-cidr", &services]).unwrap();
    mesh.wait_formed();
    let c = mesh.node("n3").unwrap().pod("a").unwrap().end();
    for (from, to) in [(&a, &c), (&c, &a), (&b, &c), (&c, &b), (&a, &b)] {
        must_pass(from, to, "after the ranges were added");
    }
    capture.report().assert_sealed();
}
