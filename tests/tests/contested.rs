//! A node that lists another node's address does not get it, however old it is and whoever joins later.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::mesh::{Mesh, is_formed, refusals};
use lab::{Family, Flow, IpVersion, Lab, Protocol, Signal};
use serde_json::{Value, json};

/// How long the tests of a contested address may take. Far more than on an idle machine.
const WITHIN: Duration = Duration::from_secs(30);

/// Node addresses of a peer, as a node's status has them.
fn addresses(status: &Value, node: &str) -> Vec<String> {
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let peer = peers.iter().find(|peer| peer["node"] == node).cloned().unwrap_or_default();
    let listed = peer["addresses"].as_array().cloned().unwrap_or_default();
    listed.iter().filter_map(|address| address.as_str().map(ToOwned::to_owned)).collect()
}

/// Has a Node list these addresses, as its kubelet would.
fn list(mesh: &Mesh, node: &str, addresses: &[&str]) {
    let listed: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    mesh.api().patch_node_status(node, &json!({"status": {"addresses": listed}})).unwrap();
}

fn settled(status: &Value, liar: &str, liars: &str, victims: &str) -> bool {
    assert!(!addresses(status, "n2").contains(&victims.to_owned()), "the liar has it: {status:#}");
    addresses(status, "n3") == [victims]
        && addresses(status, liar) == [liars]
        && refusals(status, liar) == ["address-taken"]
}

#[test]
fn an_older_liar_does_not_get_another_node_s_address_at_a_node_that_joins_later() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(3).family(Family::V4).build().unwrap());
    let of = |mesh: &Mesh, node: &str| mesh.node(node).unwrap().address(IpVersion::V4).unwrap().to_string();
    let (liars, victims) = (of(&mesh, "n2"), of(&mesh, "n3"));
    // The liar is there first, and n3 joins a mesh in which its address has been taken.
    list(&mesh, "n2", &[&liars, &victims]);
    mesh.start("n2").unwrap();
    mesh.start("n3").unwrap();
    mesh.wait_formed();
    mesh.start("n1").unwrap();
    let took = mesh.wait("n1", "n3 has its address", WITHIN, |status| {
        is_formed(status, 2) && settled(status, "n2", &liars, &victims)
    });
    println!("n3 had its address after {took:?}");

    // Pods reach n3 there with their own address, through the tunnel.
    let pod = mesh.node("n1").unwrap().pod("a").unwrap();
    let capture = mesh.capture().unwrap();
    let source =
        Flow::new(&pod.end(), &mesh.node("n3").unwrap().end(), IpVersion::V4, Protocol::Udp).must_pass();
    assert_eq!(source, pod.address(IpVersion::V4).unwrap());
    let report = capture.report();
    assert_eq!((report.marked, report.pod_addresses()), (0, 0), "{report}");

    // It stays so over a restart of the observer, which tests the claims again.
    mesh.stop("n1", Signal::TERM).unwrap();
    mesh.start("n1").unwrap();
    mesh.wait("n1", "n3 has its address again", WITHIN, |status| {
        is_formed(status, 2) && settled(status, "n2", &liars, &victims)
    });
    let log = mesh.daemon("n1").json_log().unwrap();
    assert!(log.iter().any(|line| line["event"] == "AddressProven" && line["address"] == victims));
}

/// A machine is replaced: its Node is still listed and published, and holds the address that the new machine has.
#[test]
fn a_node_that_is_gone_does_not_hold_the_address_of_a_living_one() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(3).family(Family::V4).build().unwrap());
    let of = |mesh: &Mesh, node: &str| mesh.node(node).unwrap().address(IpVersion::V4).unwrap().to_string();
    let (gone, living) = (of(&mesh, "n2"), of(&mesh, "n3"));
    mesh.unregister("n3").unwrap();
    list(&mesh, "n2", &[&gone, &living]);
    mesh.start("n1").unwrap();
    mesh.start("n2").unwrap();
    mesh.wait_formed();
    mesh.wait("n1", "nobody else lists it", WITHIN, |status| {
        addresses(status, "n2") == [gone.clone(), living.clone()]
    });
    mesh.stop("n2", Signal::KILL).unwrap();
    mesh.register(mesh.node("n3").unwrap()).unwrap();
    mesh.start("n3").unwrap();
    let took = mesh.wait("n1", "the living node has its address", WITHIN, |status| {
        addresses(status, "n3") == [living.clone()] && refusals(status, "n2") == ["address-taken"]
    });
    println!("the living node had its address after {took:?}");
}
