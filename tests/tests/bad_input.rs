//! Annotations of other Nodes are not trusted: a bad Node is rejected with a reason, and the mesh continues.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lab::mesh::{Mesh, refusals};
use lab::{ApiKind, Family, Flow, IpVersion, Lab, Protocol};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(20);

/// A mesh whose nodes accept keys without proofs: what is tested here is what comes after those.
fn accepting(lab: Lab) -> Mesh {
    let mut mesh = Mesh::idle(lab);
    for node in mesh.node_names() {
        mesh.start_with(&node, &["--accept-unproven", "true"]).unwrap();
    }
    mesh.wait_formed();
    mesh
}

/// A Node without a machine.
fn node(uid_annotation: &str, pod_cidr: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n9", "annotations": {"meshd.dev/state": uid_annotation}},
        "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// A state annotation with these keys.
fn state(uid: &str, a: &str, b: &str) -> String {
    json!({
        "v": 1, "uid": uid, "gen": 1, "prefer": "a", "drain": null, "phase": "steady",
        "slots": {"a": {"key": a, "g": 1, "port": 51840}, "b": {"key": b, "g": 1, "port": 51841}},
    })
    .to_string()
}

/// The same with this proof for both slots.
fn proven(state: &str, proof: &str) -> String {
    let mut state: Value = serde_json::from_str(state).unwrap();
    state["proofs"] = json!({"a": proof, "b": proof});
    state.to_string()
}

fn key(byte: u8) -> String {
    BASE64.encode([byte; 32])
}

/// Creates Node n9; returns its UID.
fn create(mesh: &Mesh, pod_cidr: &str, address: &str) -> String {
    let made = mesh.api().create_node(node("", pod_cidr, address)).unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    mesh.api().patch_node_status("n9", &status).unwrap();
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn announce(mesh: &Mesh, text: &str) {
    mesh.api().patch_node("n9", &json!({"metadata": {"annotations": {"meshd.dev/state": text}}})).unwrap();
}

/// A rejection: its code, a podCIDR, an address, and the annotation, given the Node's UID.
type Case<'a> = (&'a str, &'a str, &'a str, Box<dyn Fn(&str) -> String>);

fn bad_nodes(api: ApiKind) {
    let mesh = accepting(Lab::builder().nodes(2).family(Family::V4).api(api).build().unwrap());
    let (a, b) = (mesh.node("n1").unwrap().pod("a").unwrap(), mesh.node("n2").unwrap().pod("a").unwrap());
    let own = |node: &str, slot: &str| {
        mesh.status(node).unwrap()["slots"][slot]["key"].as_str().unwrap().to_owned()
    };
    let (key_of_n1, key_of_n2) = (own("n1", "a"), own("n2", "a"));
    let spelled_otherwise = key(7).replace("c=", "d=");
    assert_ne!(spelled_otherwise, key(7));
    // u = 1, a point of order 4 on the curve's twist: every shared secret with it is zero.
    let low_order = BASE64.encode({
        let mut bytes = [0; 32];
        bytes[0] = 1;
        bytes
    });
    let free = "10.244.9.0/24";
    let address = "198.18.0.99";
    let large = format!("{{\"v\":1,\"x\":\"{}\"}}", "y".repeat(200 << 10));
    let cases: Vec<Case<'_>> = vec![
        ("annotation-json", free, address, Box::new(|_| "garbage \u{202e}\u{0} {".to_owned())),
        ("annotation-too-large", free, address, Box::new(move |_| large.clone())),
        ("annotation-version", free, address, Box::new(|_| "{\"v\":2}".to_owned())),
        (
            "annotation-json",
            free,
            address,
            Box::new(|uid| state(uid, &key(7), &key(8)).replace("\"v\":1", "\"v\":1,\"v\":1")),
        ),
        ("key-base64", free, address, Box::new(move |uid| state(uid, &spelled_otherwise, &key(8)))),
        ("key-zero", free, address, Box::new(|uid| state(uid, &key(0), &key(8)))),
        ("key-low-order", free, address, Box::new(move |uid| state(uid, &low_order, &key(8)))),
        ("key-twice", free, address, Box::new(|uid| state(uid, &key(7), &key(7)))),
        ("key-own", free, address, Box::new(move |uid| state(uid, &key_of_n1, &key(8)))),
        ("key-taken", free, address, Box::new(move |uid| state(uid, &key_of_n2, &key(8)))),
        ("uid-foreign", free, address, Box::new(|_| state("another", &key(7), &key(8)))),
        (
            "proof-base64",
            free,
            address,
            Box::new(|uid| proven(&state(uid, &key(7), &key(8)), &BASE64.encode([0; 32]))),
        ),
        (
            "proof-invalid",
            free,
            address,
            Box::new(|uid| proven(&state(uid, &key(7), &key(8)), &BASE64.encode([0; 64]))),
        ),
        ("pod-cidr-taken", "10.244.2.128/25", address, Box::new(|uid| state(uid, &key(7), &key(8)))),
        ("pod-cidr-outside", "10.250.0.0/24", address, Box::new(|uid| state(uid, &key(7), &key(8)))),
    ];
    for (code, pod_cidr, address, text) in cases {
        let uid = create(&mesh, pod_cidr, address);
        announce(&mesh, &text(&uid));
        mesh.wait("n1", &format!("n9 is rejected: {code}"), WITHIN, |status| {
            refusals(status, "n9") == [code]
        });
        let status = mesh.status("n1").unwrap();
        let peers: Vec<&str> =
            status["peers"].as_array().unwrap().iter().filter_map(|peer| peer["node"].as_str()).collect();
        assert_eq!(peers, ["n2"], "{code}: only n9 is left out");
        Flow::new(&a.end(), &b.end(), IpVersion::V4, Protocol::Tcp).must_pass();
        let logged = mesh.daemon("n1").json_log().unwrap();
        let matches = |line: &Value| line["node"] == "n9" && line["reason"] == code;
        assert!(logged.iter().any(matches), "{code} is a field of a log line");
        mesh.unregister("n9").unwrap();
        mesh.wait("n1", "n9 is forgotten", WITHIN, |status| refusals(status, "n9").is_empty());
    }
}

#[test]
fn only_the_bad_node_is_rejected() {
    bad_nodes(ApiKind::Fake);
}

#[test]
fn only_the_bad_node_is_rejected_with_a_real_api_server() {
    bad_nodes(ApiKind::Real);
}

/// Addresses are admitted separately from podCIDRs: a node with a rejected address keeps its pods in the mesh.
#[test]
fn only_the_bad_address_is_rejected() {
    let mesh = accepting(Lab::builder().nodes(2).family(Family::V4).build().unwrap());
    let api = mesh.api().host().address(IpVersion::V4).unwrap().to_string();
    for (code, address) in [
        ("address-of-api-server", api.as_str()),
        ("address-taken", "198.18.0.2"),
        ("address-in-cluster-range", "10.244.7.7"),
        ("address-in-cluster-range", "10.96.0.10"),
        ("address-special", "127.0.0.1"),
        ("address-special", "169.254.169.254"),
        ("address-special", "224.0.0.1"),
        ("address-invalid", "nowhere"),
    ] {
        let uid = create(&mesh, "10.244.9.0/24", address);
        announce(&mesh, &state(&uid, &key(7), &key(8)));
        mesh.wait("n1", &format!("{address} is rejected: {code}"), WITHIN, |status| {
            let granted = |peer: &Value| peer["node"] == "n9" && peer["addresses"] == json!([]);
            refusals(status, "n9") == [code] && status["peers"].as_array().unwrap().iter().any(granted)
        });
        mesh.unregister("n9").unwrap();
        mesh.wait("n1", "n9 is forgotten", WITHIN, |status| status["peers"].as_array().unwrap().len() == 1);
    }
}

/// A node keeps its last valid state when it announces something invalid or outdated.
#[test]
fn the_last_valid_state_of_a_node_is_kept() {
    let mesh = accepting(Lab::builder().nodes(2).family(Family::V4).build().unwrap());
    let uid = create(&mesh, "10.244.9.0/24", "198.18.0.99");
    announce(&mesh, &state(&uid, &key(7), &key(8)).replace("\"gen\":1", "\"gen\":5"));
    mesh.wait("n1", "n9 has joined", WITHIN, |status| status["peers"].as_array().unwrap().len() == 2);
    for (code, text) in [
        ("annotation-json", "garbage".to_owned()),
        ("generation-went-back", state(&uid, &key(9), &key(10)).replace("\"gen\":1", "\"gen\":4")),
        ("generation-reused", state(&uid, &key(9), &key(10)).replace("\"gen\":1", "\"gen\":5")),
    ] {
        announce(&mesh, &text);
        mesh.wait("n1", &format!("rejected: {code}"), WITHIN, |status| refusals(status, "n9") == [code]);
        let status = mesh.status("n1").unwrap();
        let peers = status["peers"].as_array().unwrap();
        let kept = peers.iter().find(|peer| peer["node"] == "n9").unwrap();
        assert_eq!(kept["slots"]["a"]["key"], key(7), "{code}");
    }
}

/// A wrong flag or file is refused at once, with the option's name and what was expected.
#[test]
fn a_bad_configuration_exits_with_64() {
    let lab = Lab::builder().nodes(1).family(Family::V4).build().unwrap();
    let mesh = Mesh::idle(lab);
    let node = mesh.node("n1").unwrap();
    node.write("/run/bad.yaml", "port-a: many\n").unwrap();
    node.write("/run/unknown.yaml", "porta: 1\n").unwrap();
    for (flags, parts) in [
        (vec!["--mtu", "12"], ["mtu", "1280"]),
        (vec!["--no-such-flag"], ["--no-such-flag", "help"]),
        (vec!["--config", "/run/bad.yaml"], ["port-a", "1 to 65535"]),
        (vec!["--config", "/run/unknown.yaml"], ["porta", "options"]),
        (vec!["--config", "/run/missing.yaml"], ["config", "missing.yaml"]),
    ] {
        let arguments = mesh.arguments("n1", &flags);
        let output = node.command(lab::bin("meshd").unwrap()).arg("run").args(&arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part} in {stderr}");
        }
    }
}
