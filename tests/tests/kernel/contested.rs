//! The kernel's WireGuard answers the handshake that tests a contested address, and the tunnel goes on.

use lab::IpVersion;
use serde_json::json;

use super::{KERNEL, WITHIN, mesh, none_lost, pods, streams};

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn a_kernel_node_proves_its_address_and_loses_nothing() {
    let mesh = mesh(&[&KERNEL, &KERNEL]);
    // As many as are counted in the seconds that a test takes.
    let streams = streams(&pods(&mesh), 100);
    let address = mesh.node("n2").unwrap().address(IpVersion::V4).unwrap().to_string();
    // A Node that has published nothing contests the address.
    let listed = json!({"addresses": [{"type": "InternalIP", "address": address}]});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"}, "status": listed});
    mesh.api().create_node(node).unwrap();
    mesh.api().patch_node_status("n9", &json!({"status": listed})).unwrap();
    let proven = || {
        let log = mesh.daemon("n1").json_log().unwrap();
        log.iter().any(|line| line["event"] == "AddressProven" && line["address"] == address)
    };
    mesh.wait("n1", "n2 proves its address", WITHIN * 2, |status| {
        let peers = status["peers"].as_array().cloned().unwrap_or_default();
        proven()
            && peers
                .iter()
                .any(|peer| peer["addresses"].as_array().is_some_and(|all| all.contains(&json!(address))))
    });
    none_lost(streams);
}
