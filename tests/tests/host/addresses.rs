//! Addresses of nodes: on no link of the node, of one family only, or the same on every node.

use lab::mesh::{FORMED_WITHIN, Mesh};
use lab::nat::{Nat, Site};
use lab::{ApiKind, Family, Flow, IpVersion, Lab, Node, Protocol};
use serde_json::{Value, json};

use crate::shell;

/// Has a Node list these addresses, as its kubelet would.
fn list(mesh: &Mesh, node: &str, addresses: &[&str]) {
    let listed: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    mesh.api().patch_node_status(node, &json!({"status": {"addresses": listed}})).unwrap();
}

fn start_all(mesh: &mut Mesh) {
    for name in mesh.node_names() {
        mesh.start(&name).unwrap();
    }
    mesh.wait_formed();
}

/// Waits until a node has a session with each of its peers.
fn wait_reached(mesh: &Mesh, node: &str) {
    mesh.wait(node, "all peers are up", FORMED_WITHIN, |status| {
        status["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["state"] == "up"))
    });
}

/// The endpoints of a peer on both slots.
fn endpoints(mesh: &Mesh, node: &str, peer: &str) -> String {
    let status = mesh.status(node).unwrap();
    let peers = status["peers"].as_array().unwrap();
    let peer = peers.iter().find(|found| found["node"] == peer).unwrap();
    ["a", "b"].map(|slot| peer["slots"][slot]["endpoint"].to_string()).concat()
}

fn link_of_pod(node: &Node) -> String {
    let links = node.command("sh").args(["-c", "ip -o link | grep -o 'mveth[0-9a-f]*' | head -1"]).run();
    links.unwrap().trim().to_owned()
}

/// The external address is a way to reach the node: it belongs to the cloud, and does not lead into the tunnel.
#[test]
fn what_a_pod_sends_to_an_external_address_goes_there_and_not_into_the_tunnel() {
    let cloud =
        |name, lan: &str, node| Site::new(name, Nat::OneToOne(Vec::new()), lan.parse().unwrap(), &[node]);
    let sites = vec![cloud("one", "203.0.113.0/26", 1), cloud("two", "203.0.113.64/26", 2)];
    let mesh = Mesh::form(Lab::builder().sites(sites).api(ApiKind::Fake).build().unwrap()).unwrap();
    let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name).unwrap());
    let pod = n1.pod("a").unwrap();
    let (own, external) = (n1.external_addresses()[0], n2.external_addresses()[0]);
    let link = link_of_pod(n1);
    let [to, from] = [external, pod.addresses()[0]].map(|address| address.to_string());
    let route = n1.command("ip").args(["route", "get", &to, "from", &from, "iif", &link]).run().unwrap();
    assert!(route.contains("dev eth0"), "{route}");
    let flow = Flow::new(&pod.end(), &n2.end().at(external), IpVersion::V4, Protocol::Udp);
    assert_eq!(flow.must_pass(), own, "translated by the node and by its cloud");
}

/// n1 has IPv6 alone. n2 lists its IPv4 address first. n3 has IPv4 as well, which does not lead to n2.
#[test]
fn a_family_that_a_node_does_not_have_and_one_that_is_silent_are_no_obstacle() {
    let lab = Lab::builder().nodes(3).family(Family::V6).api(ApiKind::Fake).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    for (name, address) in [("n2", "198.18.0.2"), ("n3", "198.51.100.3")] {
        let node = mesh.node(name).unwrap();
        shell(node, &format!("ip addr add {address}/24 dev eth0; ip route replace default dev eth0"));
        let v6 = node.address(IpVersion::V6).unwrap().to_string();
        list(&mesh, name, &[address, &v6]);
    }
    start_all(&mut mesh);
    for name in mesh.node_names() {
        wait_reached(&mesh, &name);
    }
    for name in ["n1", "n3"] {
        let found = endpoints(&mesh, name, "n2");
        assert!(found.contains("[2001:db8:18::2]:51840"), "{name}: {found}");
    }
    mesh.wait_settled();
    let pods = mesh.pods(&["a"]).unwrap();
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        Flow::new(&pods[one].end(), &pods[other].end(), IpVersion::V6, Protocol::Tcp).must_pass();
    }
}

/// As Vagrant makes its machines: the first link and the default route are behind a NAT of the machine's own.
#[test]
fn nodes_that_all_have_the_same_first_address_reach_each_other_at_the_next_one() {
    const SAME: &str = "10.0.2.15";
    let mut mesh = Mesh::idle(Lab::builder().nodes(3).family(Family::V4).api(ApiKind::Fake).build().unwrap());
    for name in mesh.node_names() {
        let node = mesh.node(&name).unwrap();
        shell(
            node,
            &format!(
                "ip link add nat0 type veth peer name nat1; ip addr add {SAME}/24 dev nat0
                 ip link set nat0 up; ip link set nat1 up; ip route replace default via 10.0.2.2 dev nat0"
            ),
        );
        list(&mesh, &name, &[SAME, &node.address(IpVersion::V4).unwrap().to_string()]);
    }
    start_all(&mut mesh);
    for name in mesh.node_names() {
        wait_reached(&mesh, &name);
        let status = mesh.status(&name).unwrap();
        for peer in status["peers"].as_array().unwrap() {
            let found = endpoints(&mesh, &name, peer["node"].as_str().unwrap());
            assert!(!found.contains(SAME), "{name}: {found}");
        }
    }
    mesh.wait_settled();
    let pods = mesh.pods(&["a"]).unwrap();
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        let seen = Flow::new(&pods[one].end(), &pods[other].end(), IpVersion::V4, Protocol::Tcp).must_pass();
        assert_eq!(seen, pods[one].addresses()[0]);
    }
}
