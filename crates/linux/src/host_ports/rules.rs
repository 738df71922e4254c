//! The table of host ports as a value.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use netlink_packet_netfilter::nftables::InetHookNumber;

use super::{HostPorts, Mapping};
use crate::nft::expression::{
    Side, accept, address_in, destination_nat_by_map, destination_not_local, destination_port_in, key,
    masquerade, pair_in_set,
};
use crate::nft::members::Members;
use crate::nft::{
    Chain, DESTINATION_NAT, DataType, Rule, SOURCE_NAT, Set, TYPE_IPV4, TYPE_IPV6, TYPE_PORT, TYPE_PROTOCOL,
};

/// Just after destination NAT of others: what a service proxy translates stays its own.
const AFTER_SERVICES: i32 = DESTINATION_NAT + 1;
/// 127.0.0.0/8 (RFC 1122 section 3.2.1.3) and `::1` (RFC 4291 section 2.5.3). A packet to them can't leave for a pod
/// unless the kernel routes loopback addresses on pods' links, and then pods would reach what listens on the node's
/// loopback.
const LOOPBACK: [IpNetwork; 2] = [
    match Ipv4Network::new_checked(Ipv4Addr::new(127, 0, 0, 0), 8) {
        Some(network) => IpNetwork::V4(network),
        None => panic!("prefix length beyond 32"),
    },
    match Ipv6Network::new_checked(Ipv6Addr::LOCALHOST, 128) {
        Some(network) => IpNetwork::V6(network),
        None => panic!("prefix length beyond 128"),
    },
];

/// Names of the maps and sets of a family.
struct Names {
    /// Map for all addresses of the node.
    ports: &'static str,
    /// Map for one address each.
    bound: &'static str,
    /// Set of the pods, each as a pair of its address with itself.
    pods: &'static str,
}

const fn names(ipv4: bool) -> Names {
    if ipv4 {
        Names { ports: "ports4", bound: "bound4", pods: "pods4" }
    } else {
        Names { ports: "ports6", bound: "bound6", pods: "pods6" }
    }
}

/// The maps and sets.
pub(super) fn sets(ports: &HostPorts) -> Vec<Set> {
    [true, false].into_iter().flat_map(|ipv4| sets_of_family(ports, ipv4)).collect()
}

fn sets_of_family(ports: &HostPorts, ipv4: bool) -> [Set; 3] {
    let address =
        if ipv4 { DataType { number: TYPE_IPV4, len: 4 } } else { DataType { number: TYPE_IPV6, len: 16 } };
    let protocol = DataType { number: TYPE_PROTOCOL, len: 1 };
    let port = DataType { number: TYPE_PORT, len: 2 };
    let mappings = || ports.mappings.iter().filter(|mapping| mapping.pod_address.is_ipv4() == ipv4);
    let members = |is_bound: bool| -> Members {
        let wanted = mappings().filter(|mapping| mapping.host_address.is_some() == is_bound);
        wanted.map(|mapping| (key_of(mapping), data_of(mapping))).collect()
    };
    let pods = mappings().map(|mapping| (key(mapping.pod_address).repeat(2), Vec::new())).collect();
    let target = Some(DataType::concatenated(&[address, port]));
    let names = names(ipv4);
    let any = DataType::concatenated(&[protocol, port]);
    let one = DataType::concatenated(&[address, protocol, port]);
    [
        Set { name: names.ports, key: any, data: target, members: members(false) },
        Set { name: names.bound, key: one, data: target, members: members(true) },
        Set { name: names.pods, key: DataType::concatenated(&[address, address]), data: None, members: pods },
    ]
}

/// Address, if it is bound to one, protocol and port, each in a multiple of four bytes.
fn key_of(mapping: &Mapping) -> Vec<u8> {
    let address: Vec<u8> = mapping.host_address.map(key).unwrap_or_default();
    [&address[..], &[mapping.protocol.number(), 0, 0, 0], &padded(mapping.host_port)].concat()
}

fn data_of(mapping: &Mapping) -> Vec<u8> {
    [&key(mapping.pod_address)[..], &padded(mapping.pod_port)].concat()
}

/// A port in network byte order, in four bytes.
fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The chains.
pub(super) fn chains(ports: &HostPorts) -> Vec<Chain> {
    let chain = |name, hook, priority, rules| Chain { name, kind: "nat", hook, priority, rules };
    vec![
        chain("prerouting", InetHookNumber::PreRouting, AFTER_SERVICES, leading(ports)),
        chain("output", InetHookNumber::LocalOut, AFTER_SERVICES, leading(ports)),
        chain("postrouting", InetHookNumber::PostRouting, SOURCE_NAT, returning()),
    ]
}

/// From the node's ports to the pods'. What the node listens on itself comes before all, so that a pod never takes it: its
/// tunnels and their control channel, for instance. A mapping for one address comes before one for all.
fn leading(ports: &HostPorts) -> Vec<Rule> {
    let mut rules = vec![Rule::new("other", [destination_not_local(), vec![accept()]])];
    for prefix in LOOPBACK.iter().chain(&ports.services) {
        rules.push(Rule::new("other", [address_in(Side::Destination, *prefix), vec![accept()]]));
    }
    for own in &ports.own {
        rules.push(Rule::new(
            "own",
            [destination_port_in(own.protocol.number(), own.first, own.last), vec![accept()]],
        ));
    }
    for ipv4 in [true, false] {
        let names = names(ipv4);
        rules.push(Rule::new("port", [destination_nat_by_map(ipv4, true, names.bound)]));
        rules.push(Rule::new("port", [destination_nat_by_map(ipv4, false, names.ports)]));
    }
    rules
}

fn returning() -> Vec<Rule> {
    let rule = |ipv4| Rule::new("itself", [pair_in_set(ipv4, names(ipv4).pods), vec![masquerade()]]);
    [true, false].map(rule).into()
}
