//! Nodes as they are in the field: each case is a kind of host on which an earlier version said "ready" and nothing worked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod added_range;
mod addresses;
mod directories;
mod findings;
mod firewalls;
mod guests;
mod own_network;
mod rules;
mod settings;

use std::time::Duration;

use lab::mesh::Mesh;
use lab::{ApiKind, End, Family, Flow, IpVersion, Lab, Node, Protocol};

/// Two nodes, dual stack, with a pod each.
fn pair() -> Mesh {
    let lab = Lab::builder().nodes(2).family(Family::Dual).api(ApiKind::Fake).build().unwrap();
    let mesh = Mesh::form(lab).unwrap();
    for name in ["n1", "n2"] {
        mesh.node(name).unwrap().pod("a").unwrap();
    }
    mesh.wait_settled();
    mesh
}

fn shell(node: &Node, script: &str) {
    node.command("sh").args(["-ec", script]).run().unwrap();
}

/// UDP passes from one end to the other and back, in both families.
#[track_caller]
fn must_pass(from: &End, to: &End, what: &str) {
    for version in Family::Dual.versions() {
        must_pass_in(*version, from, to, what);
    }
}

#[track_caller]
fn must_pass_in(version: IpVersion, from: &End, to: &End, what: &str) {
    let seen = Flow::new(from, to, version, Protocol::Udp).probe_until_answered().unwrap();
    assert!(seen.answered, "{what}: {} to {}: {seen}", from.name(), to.name());
}

/// Whether UDP is answered at once. A machine that is busy may have it pass later, so this is for what must not pass.
fn passes_at_once(version: IpVersion, from: &End, to: &End) -> bool {
    let flow = Flow::new(from, to, version, Protocol::Udp).timeout(Duration::from_secs(1));
    flow.probe().unwrap().answered
}
