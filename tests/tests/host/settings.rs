//! Kernel settings that a node comes with.

use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use lab::frame::{self, Link};
use lab::mesh::Mesh;
use lab::{ApiKind, Family, IpVersion, Lab, Node};

use crate::must_pass_in;

/// Link-local address of the router.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);
/// Hop limit of neighbour discovery (RFC 4861 section 4.2), and its place in a frame.
const HOP_LIMIT: (usize, u8) = (14 + 7, 255);
const ICMPV6: u8 = 58;

/// A router advertisement with a default route for half an hour and no options (RFC 4861 section 4.2).
fn router_advertisement(mac: [u8; 6]) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // The pseudo header (RFC 8200 section 8.1) and the message, in words of 16 bits.
    let header = [0, 0, 0, 16, 0, 0, 0, ICMPV6];
    let bytes = [&ROUTER.octets()[..], &all_nodes.octets(), &header, &message].concat();
    let mut sum: u32 = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let link = Link { from: mac, to: [0x33, 0x33, 0, 0, 0, 1] };
    let mut frame = frame::ip(link, IpAddr::V6(ROUTER), IpAddr::V6(all_nodes), ICMPV6, &message);
    frame[HOP_LIMIT.0] = HOP_LIMIT.1;
    frame
}

fn advertised(node: &Node) -> String {
    node.command("ip").args(["-6", "route", "show", "default", "proto", "ra"]).run().unwrap()
}

#[test]
fn a_default_route_from_router_advertisements_survives_forwarding() {
    let lab = Lab::builder().nodes(1).family(Family::Dual).api(ApiKind::Fake).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let node = mesh.node("n1").unwrap();
    node.sysctl("net/ipv6/conf/all/forwarding", "0").unwrap();
    node.sysctl("net/ipv6/conf/eth0/accept_ra", "1").unwrap();
    let since = Instant::now();
    while !advertised(node).contains("via fe80::fe") {
        assert!(since.elapsed() < Duration::from_secs(10), "no route is made of an advertisement");
        mesh.outside().inject(&router_advertisement(mesh.outside().mac())).unwrap();
        thread::sleep(Duration::from_millis(200));
    }
    mesh.start("n1").unwrap();
    mesh.wait_formed();
    let node = mesh.node("n1").unwrap();
    let setting = |name: &str| {
        String::from_utf8(node.read(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap()).unwrap()
    };
    assert_eq!(setting("all/forwarding").trim(), "1");
    assert!(advertised(node).contains("via fe80::fe"), "the route is lost");
    assert_eq!(setting("eth0/accept_ra").trim(), "2");
    assert!(mesh.daemon("n1").log().unwrap().contains("net/ipv6/conf/eth0/accept_ra = 2"), "it is said");
}

#[test]
fn the_mesh_has_ipv6_although_new_links_have_none() {
    let lab = Lab::builder().nodes(2).family(Family::Dual).api(ApiKind::Fake).build().unwrap();
    for node in lab.nodes() {
        node.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    }
    let mesh = Mesh::form(lab).unwrap();
    for node in mesh.nodes() {
        let status = mesh.status(node.name()).unwrap();
        assert_eq!(status["counters"]["failed_steps"], 0, "{status:#}");
        // The host ends of pods are new links as well: said, with the command, which is followed here.
        let found = status["findings"].as_array().unwrap();
        let found = found.iter().find(|found| found["code"] == "ipv6-disabled").expect("a finding");
        assert_eq!(found["fix"], "sysctl -w net.ipv6.conf.default.disable_ipv6=0");
        node.sysctl("net/ipv6/conf/default/disable_ipv6", "0").unwrap();
        node.pod("a").unwrap();
    }
    mesh.wait_proven();
    let [one, other] = ["n1", "n2"].map(|name| mesh.node(name).unwrap().pod("a").unwrap().end());
    must_pass_in(IpVersion::V6, &one, &other, "pods on two nodes");
}
