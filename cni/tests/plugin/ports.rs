//! Host ports: who reaches a pod by them, whom it sees, and that they go with the pod.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cni::host_ports::{Change, Held, Sources};
use ipnetwork::IpNetwork;
use linux::host_ports::{HostPorts, Protocol};
use linux::{FilterState, LastAnswer};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};
use serde_json::{Value, json};

use crate::node::{NODE, Node, OUTSIDE, Outcome, Pod};

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];
/// How long anything that must happen may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A mapping of a port of the node to port 9000 of the pod.
fn port(protocol: &str, host_port: u16) -> Value {
    json!({"hostPort": host_port, "containerPort": 9000, "protocol": protocol})
}

fn add(node: &Node, pod: &Pod, ports: &[Value]) -> Outcome {
    node.pod_call("ADD", pod).conf("runtimeConfig", json!({"portMappings": ports})).run()
}

/// As the daemon does at each turn.
fn hold(node: &Node, services: &[IpNetwork], last_seen: &mut LastAnswer<HostPorts, bool>) -> Held {
    let (state_dir, node_file, own) = (node.state_dir(), node.node_file(), node.own_ports());
    let sources = Sources { state_dir: &state_dir, node_file: &node_file, services, own: &own };
    node.run(|| cni::host_ports::hold(sources, (FilterState::read(Duration::ZERO), last_seen))).unwrap()
}

/// Takes one connection at the pod's port and answers it; returns the client's address as the pod sees it.
fn serve(pod: &Pod) -> std::thread::JoinHandle<SocketAddr> {
    let listener = pod.run(|| TcpListener::bind("[::]:9000")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(b"pod").unwrap();
        from
    })
}

/// Connects and reads the answer; returns the address that it came from and ours.
fn connect(run: impl Fn(SocketAddr) -> std::io::Result<TcpStream>, to: SocketAddr) -> (IpAddr, IpAddr) {
    let since = Instant::now();
    let mut stream = loop {
        match run(to) {
            Ok(stream) => break stream,
            Err(error) => assert!(since.elapsed() < TIMEOUT, "connect to {to}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).unwrap();
    (stream.peer_addr().unwrap().ip(), stream.local_addr().unwrap().ip())
}

fn tcp(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(3))
}

#[test]
fn everyone_reaches_the_pod_by_the_port_and_is_seen_by_it() {
    let node = Node::new(&DUAL);
    let outside = node.neighbour();
    outside.sh("ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1");
    let (pod, other) = (Pod::new("a"), Pod::new("b"));
    let own = add(&node, &pod, &[port("tcp", 8080), port("udp", 8080)]).addresses();
    let others = node.add(&other).addresses();
    for family in [0, 1] {
        let to = SocketAddr::new(ip(NODE[family]), 8080);
        let seen = |who: &str, run: &dyn Fn(SocketAddr) -> std::io::Result<TcpStream>| {
            let server = serve(&pod);
            let (answered, _) = connect(run, to);
            assert_eq!(answered, to.ip(), "{who}");
            server.join().unwrap().ip().to_canonical()
        };
        assert_eq!(seen("outside", &|to| outside.run(|| tcp(to))), ip(OUTSIDE[family]));
        assert_eq!(seen("another pod", &|to| other.run(|| tcp(to))), others[family]);
        assert_eq!(seen("the node", &|to| node.run(|| tcp(to))), ip(NODE[family]));
        assert_ne!(seen("the pod itself", &|to| pod.run(|| tcp(to))), own[family]);
    }
    let loopback = node.run(|| TcpStream::connect(("127.0.0.1", 8080)));
    assert!(loopback.is_err(), "no port is mapped on the node's loopback");
    assert!(outside.run(|| TcpStream::connect((NODE[0], 8081))).is_err(), "another port");
    let drops = node.run(linux::guard::drops).unwrap();
    assert_eq!(drops, linux::guard::Drops::default());
}

#[test]
fn a_mapping_for_one_address_holds_for_no_other() {
    let node = Node::new(&DUAL);
    let outside = node.neighbour();
    node.sh("ip address add 192.0.2.9/32 dev eth0");
    let (pod, other) = (Pod::new("a"), Pod::new("b"));
    let bound = |address: &str| {
        let mut port = port("tcp", 8080);
        port["hostIP"] = json!(address);
        [port]
    };
    add(&node, &pod, &bound("192.0.2.1")).addresses();
    add(&node, &other, &bound("192.0.2.9")).addresses();
    for (pod, address) in [(&pod, "192.0.2.1"), (&other, "192.0.2.9")] {
        let server = serve(pod);
        connect(|to| outside.run(|| tcp(to)), SocketAddr::new(ip(address), 8080));
        server.join().unwrap();
    }
    assert!(outside.run(|| TcpStream::connect((NODE[1], 8080))).is_err(), "the other family");
}

#[test]
fn a_taken_port_is_refused_and_free_once_its_pod_is_deleted() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    add(&node, &a, &[port("tcp", 8080)]).addresses();
    let attached = node.attached();
    let refused = add(&node, &b, &[port("tcp", 9090), port("tcp", 8080)]);
    assert_eq!(refused.code(), 105);
    let said = refused.json["msg"].as_str().unwrap();
    assert!(said.contains("host port 8080/tcp") && said.contains("container a"), "{said}");
    assert_eq!(node.attached(), attached, "nothing is left of it");
    add(&node, &b, &[port("udp", 8080)]).addresses();
    node.del(&b);
    node.del(&a);
    assert!(!node.sh("nft list tables").contains("meshd-ports"), "no port, no table");
    add(&node, &b, &[port("tcp", 8080)]).addresses();
    node.gc(&[]).silent();
    assert!(!node.sh("nft list tables").contains("meshd-ports"), "GC unmaps");
    node.assert_clean(&before);
}

#[test]
fn the_table_is_checked_and_held() {
    let node = Node::new(&DUAL);
    let pod = Pod::new("a");
    let added = add(&node, &pod, &[port("tcp", 8080)]);
    added.addresses();
    let check = |ports: Value| {
        let call = node.pod_call("CHECK", &pod).conf("prevResult", added.json.clone());
        call.conf("runtimeConfig", json!({"portMappings": ports})).run()
    };
    check(json!([port("tcp", 8080)])).silent();
    assert_eq!(check(json!([port("tcp", 8081)])).code(), 101);
    assert_eq!(check(json!([])).code(), 101);
    let services: Vec<_> = ["10.96.0.0/16", "fd00:96::/112"].map(|text| text.parse().unwrap()).into();
    let mut last_seen = LastAnswer::default();
    let mut hold = || hold(&node, &services, &mut last_seen).change;
    assert_eq!(hold(), Change::None, "it is as the plugin left it");
    node.sh("nft flush ruleset");
    assert_eq!(check(json!([port("tcp", 8080)])).code(), 101);
    assert_eq!(hold(), Change::Restored);
    assert_eq!(hold(), Change::None);
    check(json!([port("tcp", 8080)])).silent();
    node.del(&pod);
    assert_eq!(hold(), Change::None);
}

#[test]
fn a_mistake_in_the_ports_is_refused_and_never_keeps_a_pod_from_being_deleted() {
    let node = Node::new(&DUAL[..1]);
    let before = node.listing();
    let pod = Pod::new("a");
    let wrong = json!({"hostPort": 80, "containerPort": 80, "hostIP": "2001:db8::1"});
    assert_eq!(add(&node, &pod, std::slice::from_ref(&wrong)).code(), 7);
    add(&node, &pod, &[port("tcp", 80)]).addresses();
    let del = node.pod_call("DEL", &pod).conf("runtimeConfig", json!({"portMappings": "no list"}));
    del.run().silent();
    node.assert_clean(&before);
}

#[test]
fn a_port_that_the_node_listens_on_is_refused_and_stays_its_own_whatever_was_mapped_before() {
    let node = Node::new(&DUAL);
    let outside = node.neighbour();
    let pod = Pod::new("a");
    let refused = add(&node, &pod, &[port("tcp", 8080), port("udp", 51841)]);
    assert_eq!(refused.code(), 107);
    let said = refused.json["msg"].as_str().unwrap();
    assert!(said.contains("host port 51841/udp: meshd listens on it"), "{said}");
    assert_eq!(node.reservations(), Vec::<String>::new());

    // As a version that did not refuse it left the node: the port leads to the pod.
    node.set_file(|file| file.own_ports.clear());
    let addresses = add(&node, &pod, &[port("tcp", 51841), port("udp", 51841)]).addresses();
    let ours = NODE.map(|address| node.run(|| UdpSocket::bind((ip(address), 51841))).unwrap());
    let clients = ["0.0.0.0:0", "[::]:0"].map(|any| outside.run(|| UdpSocket::bind(any)).unwrap());
    let servers = addresses.iter().map(|address| pod.run(|| UdpSocket::bind((*address, 9000))).unwrap());
    let servers: Vec<UdpSocket> = servers.collect();
    let arrives_at = |server: &UdpSocket, family: usize| {
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let to = SocketAddr::new(ip(NODE[family]), 51841);
        let mut buffer = [0; 8];
        (0..20).any(|_| clients[family].send_to(b"data", to).is_ok() && server.recv_from(&mut buffer).is_ok())
    };
    assert!(arrives_at(&servers[0], 0) && arrives_at(&servers[1], 1), "the test's port leads to the pod");
    // The daemon, and the plugin with each change, set the table anew; flows that began before come back as well.
    let services: Vec<_> = ["10.96.0.0/16", "fd00:96::/112"].map(|text| text.parse().unwrap()).into();
    let held = hold(&node, &services, &mut LastAnswer::default());
    assert_eq!(held.change, Change::Adapted, "no other program has changed it");
    let overruled: Vec<_> =
        held.overruled.iter().map(|of| (of.host_port, of.protocol, of.pod_address)).collect();
    assert_eq!(overruled, [0, 1].map(|family| (51841, Protocol::Udp, addresses[family])));
    node.set_file(|_| ());
    assert!(arrives_at(&ours[0], 0) && arrives_at(&ours[1], 1), "the node has its port back");
    let server = serve(&pod);
    connect(|to| outside.run(|| tcp(to)), SocketAddr::new(ip(NODE[0]), 51841));
    server.join().unwrap();
    add(&node, &Pod::new("b"), &[port("tcp", 8080)]).addresses();
    assert!(arrives_at(&ours[0], 0), "after another pod's ADD");
    node.del(&pod);
}

/// An address of the range of services is the node's own where kube-proxy uses IPVS; its ports are services' all the same.
#[test]
fn ports_of_services_stay_theirs() {
    let node = Node::new(&DUAL);
    let outside = node.neighbour();
    let pod = Pod::new("a");
    add(&node, &pod, &[port("tcp", 443)]).addresses();
    node.sh("ip address add 10.96.0.1/32 dev lo");
    outside.sh("ip route add 10.96.0.0/16 via 192.0.2.1");
    let listener = node.run(|| TcpListener::bind("10.96.0.1:443")).unwrap();
    let service = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"svc").unwrap());
    connect(|to| outside.run(|| tcp(to)), SocketAddr::new(ip("10.96.0.1"), 443));
    service.join().unwrap();
}

#[test]
fn a_client_that_goes_on_sending_reaches_each_new_pod() {
    let node = Node::new(&DUAL);
    let outside = node.neighbour();
    for family in [0, 1] {
        let to = SocketAddr::new(ip(NODE[family]), 5353);
        let unspecified = if family == 0 { "0.0.0.0:0" } else { "[::]:0" };
        let client = outside.run(|| UdpSocket::bind(unspecified)).unwrap();
        // To nobody, so the kernel remembers that this goes nowhere.
        let _ = client.send_to(b"early", to);
        for name in ["first", "second"] {
            let pod = Pod::new(name);
            let address = add(&node, &pod, &[port("udp", 5353)]).addresses()[family];
            let server = pod.run(|| UdpSocket::bind((address, 9000))).unwrap();
            server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let since = Instant::now();
            let mut buffer = [0; 8];
            while server.recv_from(&mut buffer).is_err() {
                assert!(since.elapsed() < Duration::from_secs(10), "nothing reaches the {name} pod at {to}");
                // An earlier datagram may have been refused.
                let _ = client.send_to(b"more", to);
            }
            node.del(&pod);
        }
    }
}

/// The first packet of an SCTP association; kernels need not have SCTP itself.
#[test]
fn sctp_is_led_to_the_pod_as_well() {
    let node = Node::new(&DUAL[..1]);
    let outside = node.neighbour();
    // A checksum of the whole packet would be needed otherwise.
    node.sh("sysctl -qw net.netfilter.nf_conntrack_checksum=0");
    let pod = Pod::new("a");
    add(&node, &pod, &[port("sctp", 36412)]).addresses();
    let raw = || socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
    let (client, server) = (outside.run(raw), pod.run(raw));
    set_socket_timeout(&server, Timeout::Recv, Some(TIMEOUT)).unwrap();
    // Ports, verification tag 0 and no checksum; an INIT of 20 bytes (RFC 9260, sections 3.1 and 3.3.2).
    let ports = [40000_u16.to_be_bytes(), 36412_u16.to_be_bytes()].concat();
    let init = [&[1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 16, 0, 0, 1, 0, 1][..], &[0, 0, 0, 1]].concat();
    let packet = [&ports[..], &[0; 8], &init].concat();
    sendto(&client, &packet, SendFlags::empty(), &SocketAddrV4::new([192, 0, 2, 1].into(), 0)).unwrap();
    let mut buffer = [0; 128];
    let (_, length) = recv(&server, &mut buffer, RecvFlags::empty()).unwrap();
    // After the IP header: the source's port, then that of the pod.
    assert_eq!(buffer[20..24], [&ports[..2], &9000_u16.to_be_bytes()].concat());
    assert_eq!(buffer[12..16], [192, 0, 2, 2], "the client's address");
    assert_eq!(length, 20 + packet.len());
}
