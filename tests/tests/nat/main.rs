//! Sites behind NAT: each kind of router has to do what its name says before results about paths count.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "functions that tests share fail as tests do")]

mod behaviour;
mod families;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use behaviour::{
    Behaviour,
    Dependence::{AddressAndPortDependent, AddressDependent, EndpointIndependent},
    Observers, receive, socket, until,
};
use lab::mesh::Mesh;
use lab::nat::{Nat, Site};
use lab::require::{self, Need};
use lab::{ApiKind, Flow, IpVersion, Lab, Protocol};

fn lab(sites: Vec<Site>) -> Lab {
    require::all(&[Need::Namespaces, Need::Nftables]);
    Lab::builder().sites(sites).api(ApiKind::None).build().unwrap()
}

/// A site with a LAN that others have as well, as homes do.
fn site(name: &str, nat: Nat, nodes: &[u8]) -> Site {
    Site::new(name, nat, "192.168.1.0/24".parse().unwrap(), nodes)
}

fn behaviour_of(nat: Nat) -> Behaviour {
    behaviour::of(&lab(vec![site("one", nat, &[1, 2])]))
}

#[test]
fn one_to_one_maps_each_node_to_an_address_of_its_own_and_filters_nothing() {
    let lab = lab(vec![site("cloud", Nat::OneToOne(Vec::new()), &[1, 2])]);
    let expected = Behaviour {
        mapping: EndpointIndependent,
        filtering: EndpointIndependent,
        keeps_port: true,
        hairpins: true,
    };
    assert_eq!(behaviour::of(&lab), expected);
    let observers = Observers::new(&lab);
    for name in ["n1", "n2"] {
        let node = lab.node(name).unwrap();
        let external = node.external_addresses()[0];
        assert_eq!(observers.see(0, &socket(node, 51840)), SocketAddr::new(external, 51840));
        let links = node.command("ip").args(["-4", "addr"]).run().unwrap();
        assert!(!links.contains(&external.to_string()), "{links}");
        let listed = node.listed_addresses();
        assert_eq!(listed[1], serde_json::json!({"type": "ExternalIP", "address": external}));
    }
}

#[test]
fn a_security_group_lets_only_its_ports_in() {
    let lab = lab(vec![site("cloud", Nat::OneToOne(vec![51840..=51840]), &[1])]);
    let (node, observers) = (lab.node("n1").unwrap(), Observers::new(&lab));
    let (open, closed) = (socket(node, 51840), socket(node, 51841));
    let external = node.external_addresses()[0];
    observers.send(0, b"new", SocketAddr::new(external, 51841));
    observers.send(0, b"new", SocketAddr::new(external, 51840));
    assert!(receive(&open, b"new").is_some());
    // What the node asks for is answered on all ports.
    let mapped = observers.see(0, &closed);
    observers.send(0, b"answer", mapped);
    assert_eq!(until(&closed, b"answer"), Vec::<Vec<u8>>::new());
}

#[test]
fn a_full_cone_maps_and_filters_independently_of_endpoints() {
    let found = behaviour_of(Nat::FullCone);
    assert_eq!((found.mapping, found.filtering), (EndpointIndependent, EndpointIndependent));
}

#[test]
fn a_restricted_cone_lets_in_the_addresses_that_were_contacted() {
    let found = behaviour_of(Nat::Restricted);
    assert_eq!((found.mapping, found.filtering), (EndpointIndependent, AddressDependent));
}

#[test]
fn a_home_router_maps_independently_of_endpoints_and_lets_in_only_what_was_asked_for() {
    let expected = Behaviour {
        mapping: EndpointIndependent,
        filtering: AddressAndPortDependent,
        keeps_port: true,
        hairpins: false,
    };
    assert_eq!(behaviour_of(Nat::Home), expected);
}

#[test]
fn a_symmetric_router_maps_each_destination_to_another_port() {
    let expected = Behaviour {
        mapping: AddressAndPortDependent,
        filtering: AddressAndPortDependent,
        keeps_port: false,
        hairpins: false,
    };
    assert_eq!(behaviour_of(Nat::Symmetric), expected);
}

#[test]
fn masquerade_keeps_ports_until_two_nodes_want_the_same_one() {
    let lab = lab(vec![site("one", Nat::Masquerade, &[1, 2])]);
    let alone = Behaviour {
        mapping: EndpointIndependent,
        filtering: AddressAndPortDependent,
        keeps_port: true,
        hairpins: false,
    };
    assert_eq!(behaviour::of(&lab), alone);
    let observers = Observers::new(&lab);
    let (first, second) = (socket(lab.node("n1").unwrap(), 51840), socket(lab.node("n2").unwrap(), 51840));
    assert_eq!(observers.see(0, &first).port(), 51840);
    // Where the first node has sent nothing yet, the second one's port stays: one socket, two mappings.
    assert_eq!(observers.see(1, &second).port(), 51840);
    assert_ne!(observers.see(0, &second).port(), 51840);
}

#[test]
fn two_nodes_behind_a_home_router_never_share_an_external_port() {
    let lab = lab(vec![site("one", Nat::Home, &[1, 2])]);
    let observers = Observers::new(&lab);
    let (first, second) = (socket(lab.node("n1").unwrap(), 51840), socket(lab.node("n2").unwrap(), 51840));
    let of_first = observers.see(0, &first);
    // Not even towards an observer that the first node has not contacted.
    let of_second = [1, 0, 2].map(|which| observers.see(which, &second));
    assert_eq!(of_first.port(), 51840);
    assert!(of_second.iter().all(|seen| *seen == of_second[0]), "{of_second:?}");
    assert_ne!(of_first, of_second[0]);
    assert_eq!(observers.see(2, &first), of_first);
}

#[test]
fn a_packet_from_outside_does_not_change_the_mapping_of_the_one_that_crosses_it() {
    for nat in [Nat::Home, Nat::Masquerade] {
        let lab = lab(vec![site("one", nat, &[1])]);
        let observers = Observers::new(&lab);
        let router = lab.backbone().router("one").unwrap().external();
        observers.send(0, b"early", SocketAddr::new(router, 51840));
        assert_eq!(observers.see(0, &socket(lab.node("n1").unwrap(), 51840)), SocketAddr::new(router, 51840));
    }
}

#[test]
fn a_carrier_translates_what_homes_have_translated() {
    let carrier = Site::new("carrier", Nat::Home, "100.64.0.0/16".parse().unwrap(), &[]);
    let lab = lab(vec![carrier, site("home", Nat::Home, &[1, 2]).behind("carrier")]);
    let found = behaviour::of(&lab);
    assert_eq!((found.mapping, found.filtering), (EndpointIndependent, AddressAndPortDependent));
    let backbone = lab.backbone();
    let seen = Observers::new(&lab).see(0, &socket(lab.node("n1").unwrap(), 51840));
    assert_eq!(seen.ip(), backbone.router("carrier").unwrap().external());
    assert_eq!(backbone.router("home").unwrap().external(), "100.64.0.20".parse::<IpAddr>().unwrap());
}

#[test]
fn a_flushed_router_forgets_whom_a_node_has_contacted() {
    let lab = lab(vec![site("one", Nat::Home, &[1])]);
    let (inside, observers) = (socket(lab.node("n1").unwrap(), 51840), Observers::new(&lab));
    let mapped = observers.see(0, &inside);
    observers.send(0, b"before", mapped);
    assert!(receive(&inside, b"before").is_some());
    lab.backbone().router("one").unwrap().flush().unwrap();
    observers.send(0, b"after", mapped);
    observers.see(1, &inside);
    observers.send(1, b"last", mapped);
    assert_eq!(until(&inside, b"last"), Vec::<Vec<u8>>::new());
}

#[test]
fn addresses_of_routers_and_nodes_can_be_replaced() {
    let sites = vec![site("cloud", Nat::OneToOne(Vec::new()), &[1]), site("home", Nat::Home, &[2])];
    let lab = lab(sites);
    let (backbone, observers) = (lab.backbone(), Observers::new(&lab));
    let (public, behind) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    let inside = [socket(public, 51840), socket(behind, 51840)];
    let before = [0, 1].map(|at| observers.see(0, &inside[at]));
    backbone.renumber_public(public).unwrap();
    backbone.renumber("home").unwrap();
    let after = [0, 1].map(|at| observers.see(0, &inside[at]));
    assert_eq!(after[0].ip(), public.external_addresses()[0]);
    assert_eq!(after[1].ip(), backbone.router("home").unwrap().external());
    for at in [0, 1] {
        assert_ne!(before[at].ip(), after[at].ip());
        observers.send(0, b"former", before[at]);
        observers.send(0, b"new", after[at]);
        assert_eq!(until(&inside[at], b"new"), Vec::<Vec<u8>>::new());
    }
    let own = [public, behind].map(|node| node.address(IpVersion::V4).unwrap());
    for node in [public, behind] {
        backbone.renumber_node(node).unwrap();
    }
    assert_ne!(own, [public, behind].map(|node| node.address(IpVersion::V4).unwrap()));
    // The public address leads to the new private one.
    assert_eq!(observers.see(0, &inside[0]), after[0]);
    observers.send(1, b"unasked", after[0]);
    assert!(receive(&inside[0], b"unasked").is_some());
    assert_eq!(observers.see(0, &inside[1]).ip(), after[1].ip());
}

#[test]
fn a_narrowed_path_swallows_large_packets_and_what_icmp_would_say() {
    let lab = lab(vec![site("one", Nat::OneToOne(Vec::new()), &[1])]);
    let node = lab.node("n1").unwrap();
    // 1,400 bytes with the headers of IPv4 and UDP.
    let (small, large) = (vec![1; 1372], vec![2; 1373]);
    // Without path MTU discovery sockets don't set DF, and routers fragment.
    for without_discovery in ["0", "1"] {
        for host in [&**node, lab.outside()] {
            host.sysctl("net/ipv4/ip_no_pmtu_disc", without_discovery).unwrap();
        }
        let (inside, observers) = (socket(node, 51840), Observers::new(&lab));
        let mapped = observers.see(0, &inside);
        lab.backbone().narrow("one", 1400).unwrap();
        for datagram in [&large, &small] {
            inside.send_to(datagram, observers.endpoint(0)).unwrap();
            observers.send(0, datagram, mapped);
        }
        assert_eq!(until(&inside, &small), Vec::<Vec<u8>>::new());
        assert_eq!(until(observers.socket(0), &small), Vec::<Vec<u8>>::new());
        let outside = observers.endpoint(0).ip().to_string();
        let learned = node.command("ip").args(["route", "get", &outside]).run().unwrap();
        assert!(!learned.contains("mtu"), "the node was told: {learned}");
        lab.backbone().widen("one").unwrap();
        observers.send(0, &large, mapped);
        assert!(receive(&inside, &large).is_some());
    }
}

#[test]
fn udp_between_two_sites_can_be_blocked_and_is_counted() {
    let lab = lab(vec![
        site("one", Nat::OneToOne(Vec::new()), &[1]),
        site("other", Nat::OneToOne(Vec::new()), &[2]),
    ]);
    let backbone = lab.backbone();
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    let (from, to): (UdpSocket, UdpSocket) = (socket(n1, 51840), socket(n2, 51840));
    let target = SocketAddr::new(n2.external_addresses()[0], 51840);
    from.send_to(b"first", target).unwrap();
    assert_eq!(receive(&to, b"first"), Some(SocketAddr::new(n1.external_addresses()[0], 51840)));
    backbone.set_blocked("one", "other", true).unwrap();
    from.send_to(b"blocked", target).unwrap();
    backbone.set_blocked("one", "other", false).unwrap();
    from.send_to(b"last", target).unwrap();
    assert_eq!(until(&to, b"last"), Vec::<Vec<u8>>::new());
    assert_eq!(backbone.forwarded("one", "other").unwrap(), 2);
    assert_eq!(backbone.forwarded("other", "one").unwrap(), 0);
}

#[test]
fn sites_with_the_same_lan_are_separate_and_reach_the_public_hosts() {
    let lab = lab(vec![site("one", Nat::Home, &[1]), site("other", Nat::Symmetric, &[2])]);
    let observers = Observers::new(&lab);
    let sockets = ["n1", "n2"].map(|name| socket(lab.node(name).unwrap(), 51840));
    let seen = [observers.see(0, &sockets[0]), observers.see(0, &sockets[1])];
    assert_ne!(seen[0].ip(), seen[1].ip());
    let neighbour = lab.node("n2").unwrap().address(IpVersion::V4).unwrap();
    let _no_such_host = sockets[0].send_to(b"private", (neighbour, 51840));
    sockets[1].set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(sockets[1].recv_from(&mut [0; 64]).is_err());
}

#[test]
fn nodes_behind_nat_use_the_public_api_server_and_form_a_mesh() {
    require::all(&[Need::Namespaces, Need::Nftables, Need::Tun]);
    let sites = vec![site("home", Nat::Home, &[1, 2])];
    let lab = Lab::builder().sites(sites).api(ApiKind::Fake).build().unwrap();
    let capture = lab.capture().unwrap();
    let mesh = Mesh::form(lab).unwrap();
    let (a, b) = (mesh.node("n1").unwrap().pod("a").unwrap(), mesh.node("n2").unwrap().pod("b").unwrap());
    let seen = Flow::new(&a.end(), &b.end(), IpVersion::V4, Protocol::Udp).must_pass();
    assert_eq!(seen, a.address(IpVersion::V4).unwrap());
    // Also between routers: what the API server is asked is seen there, translated.
    let router = mesh.backbone().router("home").unwrap();
    assert!(capture.report_of(router).other > 0);
    capture.report().assert_sealed();
}

/// Clouds whose external addresses are on no link of their machines, and sort before those that are.
#[test]
fn machines_of_two_clouds_become_ready_and_reach_each_other_at_their_external_addresses() {
    require::all(&[Need::Namespaces, Need::Nftables, Need::Tun]);
    let cloud =
        |name, lan: &str, node| Site::new(name, Nat::OneToOne(Vec::new()), lan.parse().unwrap(), &[node]);
    let sites = vec![cloud("one", "203.0.113.0/26", 1), cloud("two", "203.0.113.64/26", 2)];
    let lab = Lab::builder().sites(sites).api(ApiKind::Fake).build().unwrap();
    let capture = lab.capture().unwrap();
    let mesh = Mesh::form(lab).unwrap();
    let (node, peer) = (mesh.node("n1").unwrap(), mesh.node("n2").unwrap());
    let internal = node.address(IpVersion::V4).unwrap();
    let external = node.external_addresses()[0];
    assert!(external < internal && mesh.status("n1").unwrap()["ready"] == true);
    // The addresses on their links are tried before.
    mesh.wait("n2", "the peer answers at its external address", Duration::from_secs(30), |status| {
        let seen = &status["peers"][0];
        // An external address that is on no link is a way to the node, not its own.
        seen["addresses"] == serde_json::json!([internal])
            && seen["slots"][seen["active"].as_str().unwrap_or("a")]["path"] == "external"
    });
    let (a, b) = (node.pod("a").unwrap(), peer.pod("b").unwrap());
    for (from, seen) in [(a.end(), a.address(IpVersion::V4).unwrap()), (node.end(), internal)] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(Flow::new(&from, &b.end(), IpVersion::V4, protocol).must_pass(), seen);
        }
    }
    capture.report().assert_sealed();
}

#[test]
fn a_capture_sees_pods_addresses_between_routers() {
    let lab = lab(vec![site("home", Nat::Home, &[1])]);
    let capture = lab.capture().unwrap();
    let router = lab.backbone().router("home").unwrap();
    let pod: IpAddr = "10.244.1.10".parse().unwrap();
    // To the router that a node sends this to by default, which has a default route as well.
    socket(lab.node("n1").unwrap(), 51840).send_to(b"plain", (pod, 51840)).unwrap();
    let since = Instant::now();
    while capture.report_of(router).leaked == 0 && since.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(capture.report_of(router).leaked > 0, "{}", capture.report());
}
