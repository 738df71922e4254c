//! No packet with a pod address is ever on the underlay outside WireGuard, whatever happens to the daemon, its links, its
//! routes, the cluster or the API server; and no such packet from the underlay is delivered to a pod.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::{Mesh, UNOWNED};
use lab::{End, Family, Flow, IpVersion, Lab, Protocol, Signal, Sink, Stream, frame};

/// How long traffic may take to recover after a disturbance.
const BACK_WITHIN: Duration = Duration::from_secs(20);

fn formed(nodes: u8, family: Family) -> Mesh {
    Mesh::form(Lab::builder().nodes(nodes).family(family).build().unwrap()).unwrap()
}

fn end(mesh: &Mesh, node: &str, pod: &str) -> End {
    mesh.node(node).unwrap().pod(pod).unwrap().end()
}

/// The positive control: without the guard and the unreachable routes the capture sees unencrypted packets.
#[test]
fn control_without_the_guard_unencrypted_packets_are_captured() {
    let mut mesh = formed(2, Family::Dual);
    let (a, b) = (end(&mesh, "n1", "a"), end(&mesh, "n2", "a"));
    let capture = mesh.capture().unwrap();
    mesh.stop("n1", Signal::KILL).unwrap();
    let node = mesh.node("n1").unwrap();
    node.command("nft").args(["delete", "table", "inet", "meshd"]).run().unwrap();
    for link in ["mesh-a", "mesh-b"] {
        node.command("ip").args(["link", "del", link]).run().unwrap();
    }
    node.command("ip")
        .args(["-4", "route", "del", "unreachable", "10.244.0.0/16", "metric", "50000"])
        .run()
        .unwrap();
    node.command("ip").args(["-6", "route", "flush", "proto", "84", "type", "unreachable"]).run().unwrap();
    for version in [IpVersion::V4, IpVersion::V6] {
        let _lost = Flow::new(&a, &b, version, Protocol::Icmp).probe().unwrap();
    }
    let report = capture.report();
    let families: Vec<bool> =
        report.violations.iter().map(|violation| violation.matched.destination.is_ipv4()).collect();
    assert!(
        families.contains(&true) && families.contains(&false),
        "unencrypted packets of both families: {report}"
    );
}

/// One capture over start, stop, kill, join, leave, deleted routes and links, an injected route, and an unreachable API
/// server. Traffic runs throughout and recovers each time.
#[test]
fn nothing_leaks_whatever_happens() {
    let lab = Lab::builder().nodes(3).family(Family::Dual).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let mut capture = mesh.capture().unwrap();
    for node in mesh.node_names() {
        mesh.start_with(&node, &UNOWNED).unwrap();
    }
    mesh.wait_formed();
    let (a, b, c) = (end(&mesh, "n1", "a"), end(&mesh, "n2", "a"), end(&mesh, "n3", "a"));
    let streams: Vec<Stream> =
        [(&a, &b, IpVersion::V4), (&b, &a, IpVersion::V6), (&a, &c, IpVersion::V6), (&c, &b, IpVersion::V4)]
            .into_iter()
            .map(|(from, to, version)| Stream::start(from, to, version, 100).unwrap())
            .collect();
    let back = |what: &str| {
        let since = Instant::now();
        for stream in &streams {
            stream.wait_arrival(since, BACK_WITHIN).unwrap_or_else(|error| panic!("after {what}: {error}"));
        }
    };
    back("the start");

    for (signal, what) in [(Signal::TERM, "SIGTERM"), (Signal::KILL, "SIGKILL")] {
        mesh.stop("n1", signal).unwrap();
        thread::sleep(Duration::from_millis(500));
        mesh.start_with("n1", &UNOWNED).unwrap();
        back(what);
    }

    let disturb = |what: &str, program: &str, arguments: &[&str]| {
        // A stream on the other slot arrives before the link of the last change is back.
        let since = Instant::now();
        let node = mesh.node("n1").unwrap();
        while ["mesh-a", "mesh-b"]
            .iter()
            .any(|link| node.command("ip").args(["link", "show", link]).run().is_err())
        {
            assert!(since.elapsed() < BACK_WITHIN, "before {what}: a link is missing");
            thread::sleep(Duration::from_millis(20));
        }
        mesh.node("n1").unwrap().command(program).args(arguments).run().unwrap();
        thread::sleep(Duration::from_millis(100));
        back(what);
    };
    disturb("a deleted route", "ip", &["route", "del", "10.244.2.0/24"]);
    disturb("a deleted IPv6 route", "ip", &["-6", "route", "del", "fd00:10:244:2::/64"]);
    disturb("a deleted link", "ip", &["link", "del", "mesh-a"]);
    disturb("a link set down", "ip", &["link", "set", "mesh-a", "down"]);
    disturb("both links deleted", "sh", &["-c", "ip link del mesh-a; ip link del mesh-b"]);
    disturb("a flushed guard", "nft", &["flush", "chain", "inet", "meshd", "outbound"]);

    // A more specific route to the underlay, as a rogue DHCP server would set it. While it exists its traffic is
    // lost, not leaked.
    let node = mesh.node("n1").unwrap();
    let gateway = mesh.outside().address(IpVersion::V4).unwrap().to_string();
    node.command("ip").args(["route", "add", "10.244.2.0/25", "via", &gateway]).run().unwrap();
    thread::sleep(Duration::from_secs(1));
    node.command("ip").args(["route", "del", "10.244.2.0/25"]).run().unwrap();
    back("a more specific route");

    // A node joins, and leaves as by a power failure.
    let joined = mesh.add_node(true).unwrap().name().to_owned();
    capture
        .add(mesh.node(&joined).unwrap(), "eth0", &lab::capture::Rules::new(mesh.cluster_ranges()))
        .unwrap();
    mesh.start(&joined).unwrap();
    mesh.wait_formed();
    let d = end(&mesh, &joined, "a");
    Flow::new(&a, &d, IpVersion::V4, Protocol::Tcp).must_pass();
    let leaving = Stream::start(&a, &d, IpVersion::V4, 100).unwrap();
    mesh.unregister(&joined).unwrap();
    thread::sleep(Duration::from_millis(500));
    drop(leaving);
    back("a node that left");

    mesh.api().stop().unwrap();
    thread::sleep(Duration::from_secs(3));
    back("an API server that is away");
    mesh.api().resume().unwrap();

    drop(streams);
    let report = capture.report();
    report.assert_sealed();
    assert!(report.wireguard() > 1000, "the capture saw the tunnels: {report}");
}

/// Unencrypted packets from the underlay to a pod are not delivered but counted. Without the guard they are delivered.
#[test]
fn unencrypted_packets_from_the_underlay_are_not_delivered() {
    let mut mesh = formed(2, Family::V4);
    let pod = end(&mesh, "n1", "a");
    let target = pod.address(IpVersion::V4).unwrap();
    let sources: [IpAddr; 2] =
        [mesh.outside().address(IpVersion::V4).unwrap(), "10.244.2.77".parse().unwrap()];
    let delivered = |mesh: &Mesh| {
        let sink = Sink::open(&pod, IpVersion::V4).unwrap();
        let link = frame::Link { from: mesh.outside().mac(), to: mesh.node("n1").unwrap().mac() };
        for source in sources {
            for _ in 0..20 {
                mesh.outside()
                    .inject(&frame::udp(link, (source, 9), (target, sink.port()), frame::MARKER))
                    .unwrap();
            }
        }
        sink.drain(Duration::from_millis(500)).len()
    };
    assert_eq!(delivered(&mesh), 0);
    mesh.wait("n1", "drops are counted", BACK_WITHIN, |status| {
        status["guard"]["dropped_in"].as_u64() >= Some(40)
    });

    mesh.stop("n1", Signal::KILL).unwrap();
    mesh.node("n1").unwrap().command("nft").args(["delete", "table", "inet", "meshd"]).run().unwrap();
    assert!(delivered(&mesh) > 0, "positive control: delivered without the guard");
}

/// Packets that a pod sends from another address are not delivered.
#[test]
fn a_pod_can_send_only_as_itself() {
    let mesh = formed(2, Family::Dual);
    let (here, there) =
        (mesh.node("n1").unwrap().pod("a").unwrap(), mesh.node("n2").unwrap().pod("a").unwrap());
    let neighbour = mesh.node("n1").unwrap().pod("b").unwrap();
    for (foreign, version) in [("10.244.2.200/32", IpVersion::V4), ("fd00:10:244:2::200/128", IpVersion::V6)]
    {
        here.command("ip").args(["addr", "add", foreign, "dev", "eth0", "nodad"]).run().unwrap();
        let source = foreign.split('/').next().unwrap().parse().unwrap();
        for target in [there.end(), neighbour.end()] {
            let sink = Sink::open(&target, version).unwrap();
            lab::flow::send_udp(&here.end(), source, target.address(version).unwrap(), sink.port(), 20)
                .unwrap();
            assert_eq!(sink.drain(Duration::from_millis(300)).len(), 0, "{foreign}");
            let own = here.address(version).unwrap();
            lab::flow::send_udp(&here.end(), own, target.address(version).unwrap(), sink.port(), 20).unwrap();
            let since = Instant::now();
            while sink.drain(Duration::from_millis(300)).is_empty() {
                assert!(since.elapsed() < BACK_WITHIN, "positive control: delivered from its own address");
            }
        }
    }
    mesh.wait("n1", "spoofed packets are counted", BACK_WITHIN, |status| {
        status["guard"]["dropped_spoofed"].as_u64() >= Some(80)
    });
}
