//! A peer is reached at a name: the daemon asks the node's DNS server itself, again once the path is lost, and keeps the last
//! answer while the server is silent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::mesh::{Mesh, refusals};
use lab::nat::{Nat, Site};
use lab::require::{self, Need};
use lab::{ApiKind, Flow, IpVersion, Lab, Protocol};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_mins(1);
const NAME: &str = "n2.example.org";

/// A DNS server (RFC 1035) that knows one name and its IPv4 address.
struct DnsServer {
    address: Arc<Mutex<Option<IpAddr>>>,
    ended: Arc<AtomicBool>,
}

impl DnsServer {
    fn start(socket: UdpSocket) -> Self {
        let server = Self { address: Arc::default(), ended: Arc::default() };
        let (address, ended) = (Arc::clone(&server.address), Arc::clone(&server.ended));
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while !ended.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut query) else { continue };
                let address = *address.lock().unwrap();
                if let Some(answer) = address.and_then(|address| answer(&query[..len], address)) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        server
    }

    /// The address that the name stands for from now on; with none the server is silent.
    fn set(&self, address: Option<IpAddr>) {
        *self.address.lock().unwrap() = address;
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// The answer to a query: the address if it asks for one of IPv4, else nothing. There is no such name but one.
fn answer(query: &[u8], address: IpAddr) -> Option<Vec<u8>> {
    let IpAddr::V4(address) = address else { return None };
    // A header of 12 bytes, the labels of the name, its type and class.
    let end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let question = query.get(12..end)?;
    let labels = NAME.split('.').flat_map(|label| {
        std::iter::once(u8::try_from(label.len()).unwrap()).chain(label.bytes()).collect::<Vec<u8>>()
    });
    let asked: Vec<u8> = question[..question.len() - 5].to_ascii_lowercase();
    let is_known = labels.eq(asked);
    let is_ipv4 = question[question.len() - 4..] == [0, 1, 0, 1];
    let answers = u8::from(is_known && is_ipv4);
    let code = if is_known { 0 } else { 3 };
    let mut text = query[..2].to_vec();
    text.extend([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    text.extend(question);
    if answers == 1 {
        // The name at byte 12, type A, class IN, 60 s, four bytes.
        text.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        text.extend(address.octets());
    }
    Some(text)
}

#[test]
fn a_peer_is_followed_to_what_its_name_stands_for() {
    require::all(&[Need::Namespaces, Need::Nftables, Need::Tun]);
    let cloud =
        |name, lan: &str, node| Site::new(name, Nat::OneToOne(Vec::new()), lan.parse().unwrap(), &[node]);
    let sites = vec![cloud("one", "10.1.0.0/24", 1), cloud("two", "10.2.0.0/24", 2)];
    let lab = Lab::builder().sites(sites).api(ApiKind::Fake).build().unwrap();
    let outside = lab.outside();
    let at = SocketAddr::new(outside.address(IpVersion::V4).unwrap(), 53);
    let server = DnsServer::start(outside.run(|| UdpSocket::bind(at)).unwrap().unwrap());
    let mut mesh = Mesh::idle(lab);
    let external = |mesh: &Mesh| mesh.backbone().router("two").unwrap().external_of(mesh.node("n2").unwrap());
    server.set(external(&mesh));
    let node = mesh.node("n1").unwrap();
    node.write("/run/resolv.conf", format!("nameserver {}\noptions timeout:1 attempts:1\n", at.ip()))
        .unwrap();
    node.command("mount").args(["--bind", "/run/resolv.conf", "/etc/resolv.conf"]).run().unwrap();
    let annotation = |text: &str| json!({"metadata": {"annotations": {"config.meshd.dev/endpoint": text}}});
    mesh.api().patch_node("n2", &annotation(&format!("{NAME}:51840"))).unwrap();
    for node in mesh.node_names() {
        mesh.start(&node).unwrap();
    }
    mesh.wait_formed();
    let is_at = |status: &Value, address: Option<IpAddr>| {
        let peer = &status["peers"][0];
        let slot = &peer["slots"][peer["active"].as_str().unwrap_or("a")];
        let endpoint: Option<SocketAddr> = slot["endpoint"].as_str().and_then(|text| text.parse().ok());
        slot["path"] == "named" && peer["state"] == "up" && endpoint.map(|at| at.ip()) == address
    };
    mesh.wait("n1", "n2 at its name", WITHIN, |status| is_at(status, external(&mesh)));
    // It moves, and the server is silent.
    let former = external(&mesh);
    server.set(None);
    mesh.backbone().renumber_public(mesh.node("n2").unwrap()).unwrap();
    mesh.wait("n1", "the lookup to fail", WITHIN, |status| {
        let found = &status["names"][0];
        found["name"] == NAME && found["trouble"].is_string() && found["addresses"] == json!([former])
    });
    assert!(refusals(&mesh.status("n1").unwrap(), "n2").is_empty(), "the last answer is kept");
    // The server answers again.
    server.set(external(&mesh));
    mesh.wait("n1", "n2 where it is now", WITHIN, |status| {
        is_at(status, external(&mesh)) && status["names"][0]["trouble"].is_null()
    });
    let (a, b) = (mesh.node("n1").unwrap().pod("a").unwrap(), mesh.node("n2").unwrap().pod("b").unwrap());
    Flow::new(&a.end(), &b.end(), IpVersion::V4, Protocol::Udp).must_pass();
    // A name that does not exist leaves what the node publishes.
    mesh.api().patch_node("n2", &annotation("missing.example.org")).unwrap();
    mesh.wait("n1", "the other endpoints", WITHIN, |status| {
        let peer = &status["peers"][0];
        refusals(status, "n2") == ["config-endpoint-unresolved"] && peer["state"] == "up"
    });
}
