//! The API server is unreachable, restarted, or loses its store: the mesh keeps working.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::{Mesh, UNOWNED, is_formed, refusals};
use lab::nat::{Nat, Site};
use lab::{ApiKind, Family, Flow, IpVersion, Lab, Pod, Protocol, Signal, Stream};

const WITHIN: Duration = Duration::from_secs(20);

fn formed(api: ApiKind) -> Mesh {
    Mesh::form(Lab::builder().nodes(3).family(Family::V4).api(api).build().unwrap()).unwrap()
}

fn pair(mesh: &Mesh) -> (Pod<'_>, Pod<'_>) {
    (mesh.node("n1").unwrap().pod("a").unwrap(), mesh.node("n2").unwrap().pod("a").unwrap())
}

/// A node that is started while the API server is unreachable joins the mesh with its cached peers.
#[test]
fn a_node_starts_without_the_api_server() {
    let mut mesh = formed(ApiKind::Fake);
    let (here, there) = {
        let (a, b) = pair(&mesh);
        (a.end(), b.end())
    };
    mesh.stop("n1", Signal::KILL).unwrap();
    mesh.api().stop().unwrap();
    mesh.start("n1").unwrap();
    mesh.wait("n1", "ready without the API server", WITHIN, |status| {
        status["ready"] == true
            && status["api"]["listed"] == false
            && status["peers"].as_array().unwrap().len() == 2
    });
    Flow::new(&here, &there, IpVersion::V4, Protocol::Tcp).must_pass();
    assert!(mesh.node("n1").unwrap().pod("late").is_ok(), "pods can be attached");
    mesh.api().resume().unwrap();
    mesh.wait("n1", "back with the API server", Duration::from_mins(1), |status| {
        status["api"]["listed"] == true && is_formed(status, 2)
    });
}

/// Cached peers are used only if the file is intact.
#[test]
fn a_damaged_cache_of_peers_is_not_used() {
    let mut mesh = formed(ApiKind::Fake);
    mesh.stop("n1", Signal::KILL).unwrap();
    mesh.api().stop().unwrap();
    let node = mesh.node("n1").unwrap();
    let cache = String::from_utf8(node.read("/var/lib/meshd/peers.json").unwrap()).unwrap();
    assert!(cache.contains("10.244.2.0/24"), "{cache}");
    node.write("/var/lib/meshd/peers.json", cache.replace("10.244.2.0/24", "10.244.3.0/25")).unwrap();
    mesh.start("n1").unwrap();
    mesh.daemon("n1").wait_log("PeersNotRestored", WITHIN).unwrap();
    mesh.wait("n1", "guard up, no peers", WITHIN, |status| {
        status["guard"]["in_place"] == true
            && status["ready"] == false
            && status["peers"].as_array().unwrap().is_empty()
    });
}

fn outage(api: ApiKind) {
    let mesh = formed(api);
    let (here, there) = pair(&mesh);
    let stream = Stream::start(&here.end(), &there.end(), IpVersion::V4, 200).unwrap();
    mesh.api().stop().unwrap();
    // Longer than a watch lasts, so that its renewal fails as well.
    thread::sleep(Duration::from_secs(70));
    mesh.wait("n1", "the outage is reported", WITHIN, |status| status["api"]["error"].is_string());
    mesh.wait("n1", "no peer was removed", WITHIN, |status| status["peers"].as_array().unwrap().len() == 2);
    mesh.api().resume().unwrap();
    mesh.wait("n1", "the outage is over", Duration::from_mins(1), |status| {
        status["api"]["error"].is_null() && is_formed(status, 2)
    });
    let report = stream.stop();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

/// Runs a check with the fake and the real API server, at the same time because most of it is waiting.
fn with_both_servers(check: fn(ApiKind)) {
    thread::scope(|scope| {
        for kind in [ApiKind::Fake, ApiKind::Real] {
            scope.spawn(move || check(kind));
        }
    });
}

#[test]
fn an_outage_of_the_api_server_loses_no_packet() {
    with_both_servers(outage);
}

/// A restarted API server with an empty store has no Nodes: no peer is removed, and when the Nodes are recreated, with
/// other UIDs, the daemons publish again. No packet is lost.
fn emptied(api: ApiKind) {
    let mesh = formed(api);
    let (here, there) = pair(&mesh);
    let stream = Stream::start(&here.end(), &there.end(), IpVersion::V4, 200).unwrap();
    mesh.api().wipe().unwrap();
    mesh.wait("n1", "the empty list is not acted on", Duration::from_mins(1), |status| {
        status["api"]["error"].is_null() && status["kept"].as_array().unwrap().len() == 3
    });
    assert_eq!(mesh.status("n1").unwrap()["peers"].as_array().unwrap().len(), 2);
    for node in mesh.nodes() {
        mesh.register(node).unwrap();
    }
    mesh.wait_formed();
    // A watch that was just being renewed continues without an error on the new store; the daemon notices when it gets its
    // own Node, every 30 s.
    mesh.wait("n1", "the new Nodes have replaced the old ones", WITHIN * 3, |status| {
        status["kept"].as_array().unwrap().is_empty()
    });
    Flow::new(&here.end(), &there.end(), IpVersion::V4, Protocol::Tcp).must_pass();
    let report = stream.stop();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}

#[test]
fn an_empty_store_of_the_api_server_loses_no_packet() {
    with_both_servers(emptied);
}

/// An operator deletes a Node, and its kubelet registers again: for the other nodes a new one that holds the same keys.
#[test]
fn a_node_that_is_deleted_and_registered_again_keeps_its_preshared_keys() {
    let lab = Lab::builder().nodes(2).family(Family::V4).api(ApiKind::Fake).build().unwrap();
    let mesh = Mesh::form(lab).unwrap();
    mesh.wait_proven();
    let peers = |status: &serde_json::Value| status["peers"].as_array().unwrap().len();
    mesh.unregister("n2").unwrap();
    mesh.wait("n1", "the peer has left", WITHIN, |status| peers(status) == 0);
    mesh.register(mesh.node("n2").unwrap()).unwrap();
    mesh.wait("n1", "the peer has joined again", WITHIN, |status| peers(status) == 1);
    mesh.wait_proven();
    let events = mesh.daemon("n1").json_log().unwrap();
    let count = |wanted: &str| events.iter().filter(|event| event["event"] == wanted).count();
    assert_eq!(count("PresharedKeysTransferred"), 1);
    assert_eq!((count("PresharedKeyGivenUp"), count("PresharedKeyMismatch")), (0, 0));
}

/// The answer of the daemon in the caller's network namespace to a probe. A lookup hangs for 3 s.
fn healthz() -> String {
    let mut stream = TcpStream::connect("127.0.0.1:9384").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// After a mass loss each missing Node is looked up. An API server that never answers these lookups delays neither the
/// repair of the guard nor the answer to a liveness probe, and removes no peer.
#[test]
fn lookups_that_hang_delay_neither_repairs_nor_probes() {
    let lab = Lab::builder().nodes(3).family(Family::V4).api(ApiKind::Fake).build().unwrap();
    let mesh = Mesh::form_with(lab, &UNOWNED).unwrap();
    let (here, there) = pair(&mesh);
    let node = mesh.node("n1").unwrap();
    assert!(mesh.api().hang_gets());
    let lookups = || mesh.api().requests().unwrap().get("get nodes").copied().unwrap_or_default();
    let before = lookups();
    mesh.api().wipe().unwrap();
    let since = Instant::now();
    while lookups() == before {
        assert!(since.elapsed() < Duration::from_mins(1), "no Node is looked up");
        thread::sleep(Duration::from_millis(50));
    }
    for _ in 0..5 {
        node.command("nft").args(["delete", "table", "inet", "meshd"]).run().unwrap();
        let since = Instant::now();
        while node.command("nft").args(["list", "table", "inet", "meshd"]).run().is_err() {
            assert!(since.elapsed() < Duration::from_millis(2500), "the guard is not repaired");
            thread::sleep(Duration::from_millis(50));
        }
        let answer = node.run(healthz).unwrap();
        assert!(answer.ends_with("ok\n"), "{answer}");
        assert_eq!(mesh.status("n1").unwrap()["peers"].as_array().unwrap().len(), 2);
    }
    Flow::new(&here.end(), &there.end(), IpVersion::V4, Protocol::Tcp).must_pass();
}

/// A NAT that forgets a connection tells neither end. The daemon notices, and hears of Nodes again.
#[test]
fn a_watch_over_a_connection_that_has_died_silently_is_replaced() {
    let mesh = formed(ApiKind::Fake);
    let node = mesh.node("n1").unwrap();
    let server: u16 = mesh.api().url().rsplit(':').next().unwrap().parse().unwrap();
    // Connections that begin from now on are marked; the packets of all others are lost.
    let rules = format!(
        "table ip dead {{\nchain to {{ type filter hook output priority 0;\n\
         tcp dport {server} tcp flags & (syn | ack) == syn ct mark set 1\n\
         tcp dport {server} ct mark != 1 drop\n}}\n\
         chain from {{ type filter hook input priority 0; tcp sport {server} ct mark != 1 drop\n}}\n}}\n"
    );
    node.command("nft").args(["-f", "-"]).input(rules).run().unwrap();
    let annotation =
        serde_json::json!({"metadata": {"annotations": {"config.meshd.dev/keepalive": "often"}}});
    mesh.api().patch_node("n2", &annotation).unwrap();
    mesh.wait("n1", "the change of a Node is noticed", WITHIN, |status| {
        refusals(status, "n2") == ["config-keepalive"]
    });
}

/// Both ends of a pair get other addresses while the API server is away. A common neighbour tells each where the other one
/// is, as told by that one, and both try at the same time: the home's router lets in nothing else.
#[test]
fn two_nodes_that_both_move_find_each_other_without_the_api_server() {
    let site = |name, nat, lan: &str, node| Site::new(name, nat, lan.parse().unwrap(), &[node]);
    let sites = vec![
        site("anchor", Nat::OneToOne(Vec::new()), "10.1.0.0/24", 1),
        site("cloud", Nat::OneToOne(Vec::new()), "10.2.0.0/24", 2),
        site("home", Nat::Home, "192.168.1.0/24", 3),
    ];
    let mesh = Mesh::form(Lab::builder().sites(sites).api(ApiKind::Fake).build().unwrap()).unwrap();
    mesh.wait_settled();
    let pod = |node| mesh.node(node).unwrap().pod("a").unwrap().end();
    let streams = [("n2", "n3"), ("n3", "n2")]
        .map(|(from, to)| Stream::start(&pod(from), &pod(to), IpVersion::V4, 20).unwrap());
    for stream in &streams {
        stream.wait_arrival(Instant::now(), WITHIN).unwrap();
    }
    mesh.api().stop().unwrap();
    mesh.backbone().renumber("home").unwrap();
    mesh.backbone().renumber_public(mesh.node("n2").unwrap()).unwrap();
    let since = Instant::now();
    // What was under way has arrived by then.
    thread::sleep(Duration::from_millis(200));
    for stream in &streams {
        // How fast they are is measured by `make prove-paths`.
        stream.wait_arrival(since + Duration::from_millis(200), 3 * WITHIN).unwrap();
    }
}

/// A daemon that starts before its Node exists installs the guard and lets nothing through.
#[test]
fn the_guard_is_in_place_before_the_node_is_known() {
    let lab = Lab::builder().nodes(1).family(Family::Dual).register(false).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    mesh.start("n1").unwrap();
    mesh.wait("n1", "closed", WITHIN, |status| {
        status["guard"]["in_place"] == true && status["ready"] == false
    });
    assert!(mesh.node("n1").unwrap().pod("a").is_err(), "no pod is attached");
    mesh.register(mesh.node("n1").unwrap()).unwrap();
    mesh.wait("n1", "open", WITHIN, |status| status["ready"] == true);
    mesh.node("n1").unwrap().pod("a").unwrap();
}
