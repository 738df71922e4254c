//! Sites with IPv6, alone or beside IPv4: what their routers do, and how nodes with different families reach each other.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use lab::mesh::Mesh;
use lab::nat::{Nat, Site};
use lab::require::{self, Need};
use lab::{ApiKind, Flow, Host, IpVersion, Lab, Protocol};
use serde_json::Value;

use super::behaviour::{receive, until};

/// The ports of both slots, and those of relays.
const OPEN: [std::ops::RangeInclusive<u16>; 2] = [51840..=51841, 24000..=28095];
/// How long nodes may take to find their paths on a busy machine.
const FOUND_WITHIN: Duration = Duration::from_mins(1);

fn range(site: u16) -> ipnetwork::Ipv6Network {
    ipnetwork::Ipv6Network::new(Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, 0), 64).unwrap()
}

fn lan(text: &str) -> ipnetwork::Ipv4Network {
    text.parse().unwrap()
}

fn socket(host: &Host, port: u16) -> (UdpSocket, SocketAddr) {
    let address = host.address(IpVersion::V6).unwrap();
    let socket = host.net().run(|| UdpSocket::bind((address, port))).unwrap().unwrap();
    (socket, SocketAddr::new(address, port))
}

#[test]
fn routers_of_ipv6_translate_nothing_and_let_in_what_was_asked_for_or_is_open() {
    require::all(&[Need::Namespaces, Need::Nftables]);
    let sites = vec![
        Site::new("cloud", Nat::OneToOne(OPEN.to_vec()), lan("10.0.0.0/24"), &[1]).and_v6(range(1)),
        Site::only_v6("home", Nat::Home, range(2), &[2]),
    ];
    let lab = Lab::builder().sites(sites).api(ApiKind::None).build().unwrap();
    let (cloud, home) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    assert_eq!(home.addresses(), [IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, 12])]);
    let (outside, from) = socket(lab.outside(), 4000);
    let (open, open_at) = socket(cloud, 51840);
    let (closed, closed_at) = socket(cloud, 4000);
    let (inside, inside_at) = socket(home, 51840);
    for to in [closed_at, inside_at, open_at] {
        outside.send_to(b"unasked", to).unwrap();
    }
    assert_eq!(receive(&open, b"unasked"), Some(from));
    for (asker, at) in [(&closed, closed_at), (&inside, inside_at)] {
        asker.send_to(b"question", from).unwrap();
        assert_eq!(receive(&outside, b"question"), Some(at));
        outside.send_to(b"answer", at).unwrap();
        assert_eq!(until(asker, b"answer"), Vec::<Vec<u8>>::new());
    }
}

/// The path on the slot that a node sends to a peer on.
fn path(status: &Value, peer: &str) -> Option<String> {
    let peer = status["peers"].as_array()?.iter().find(|one| one["node"] == peer)?;
    let path = peer["slots"][peer["active"].as_str()?]["path"].as_str()?;
    (peer["state"] == "up").then(|| path.to_owned())
}

/// n1 in a cloud and n4 in an office have both families, n2 in a home has only IPv4, n3 only IPv6.
#[test]
fn nodes_with_different_families_reach_each_other_directly_or_over_a_relay_that_has_both() {
    require::all(&[Need::Namespaces, Need::Nftables, Need::Tun]);
    let sites = vec![
        Site::new("cloud", Nat::OneToOne(OPEN.to_vec()), lan("172.31.0.0/20"), &[1]).and_v6(range(1)),
        Site::new("home", Nat::Home, lan("192.168.1.0/24"), &[2]),
        Site::only_v6("mobile", Nat::Home, range(3), &[3]),
        Site::new("office", Nat::Symmetric, lan("10.20.0.0/24"), &[4]).and_v6(range(4)),
    ];
    let lab = Lab::builder().sites(sites).api(ApiKind::Fake).build().unwrap();
    lab.set_relay("n1", true).unwrap();
    let capture = lab.capture().unwrap();
    let mesh = Mesh::form(lab).unwrap();
    let relayed = "relayed via n1";
    for (node, peer, wanted) in [
        ("n2", "n1", "external"),
        ("n3", "n1", "global"),
        ("n4", "n1", "global"),
        // Only IPv6 in common, and both routers let in what was asked for.
        ("n3", "n4", "global"),
        ("n4", "n3", "global"),
        // No family in common.
        ("n2", "n3", relayed),
        ("n3", "n2", relayed),
        // The family in common has a symmetric NAT.
        ("n2", "n4", relayed),
        ("n4", "n2", relayed),
    ] {
        mesh.wait(node, &format!("path to {peer}: {wanted}"), FOUND_WITHIN, |status| {
            path(status, peer).as_deref() == Some(wanted)
        });
    }
    for (from, to) in [("n2", "n3"), ("n3", "n2"), ("n3", "n4"), ("n2", "n4"), ("n1", "n3")] {
        let end = |name: &str| mesh.node(name).unwrap().pod("a").unwrap().end();
        let (from, to) = (end(from), end(to));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let seen = Flow::new(&from, &to, IpVersion::V4, protocol).must_pass();
            assert_eq!(seen, from.address(IpVersion::V4).unwrap());
        }
    }
    capture.report().assert_sealed();
}
