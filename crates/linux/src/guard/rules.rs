//! The guard's chains as a value: which packets with a pod address may pass where.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv6Network};
use netlink_packet_netfilter::nftables::InetHookNumber;
use plan::network::{Guard, LinkName};
use plan::prefix;

use crate::POD_LINK_PREFIX;
use crate::nft::expression::{
    Direction, Expression, Side, accept, address_in, address_in_set, count, discard, key, link_begins,
    link_is, masquerade, quoted_address_in, source_not_routed_back,
};
use crate::nft::{Chain, DataType, Rule, SOURCE_NAT, Set, TYPE_IPV4, TYPE_IPV6};

/// Set of IPv4 addresses of the mesh's nodes.
const NODES_V4: &str = "nodes4";
/// Set of IPv6 addresses of the mesh's nodes.
const NODES_V6: &str = "nodes6";
/// Set of IPv4 addresses of Nodes that no member of the mesh holds.
const CLOSED_V4: &str = "closed4";
/// Set of IPv6 addresses of Nodes that no member of the mesh holds.
const CLOSED_V6: &str = "closed6";

/// The chain that masquerades. Which of this node's pods it does that for are its last rules.
pub(super) const MASQUERADING: &str = "outbound";

/// Priorities of the hooks (`enum nf_ip_hook_priorities` in `include/uapi/linux/netfilter_ipv4.h`).
/// Ingress, before connection tracking and any DNAT: the addresses are those on the wire.
const RAW: i32 = -300;
/// Just before source NAT, which hides the pod's address, and after any DNAT, kube-proxy's in either mode (IPVS has no
/// forward hook).
const BEFORE_SOURCE_NAT: i32 = SOURCE_NAT - 1;
/// Egress, after source NAT: again the addresses on the wire.
const LAST: i32 = 300;
/// Just before that: what is about to leave is counted in a chain of its own, so that it is known if the next one lets any of it
/// pass, whatever somebody has done to that.
const BEFORE_LAST: i32 = LAST - 1;

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Accepts packets that are where they belong.
    Pass,
    /// Drops pod addresses that come from outside the mesh.
    In,
    /// Drops pod addresses that would leave unencrypted.
    Out,
    /// Drops what a pod sends under an address that is not its own.
    Spoof,
    /// Drops what pods send to Nodes outside the mesh.
    Closed,
    /// Masquerades pods' traffic to the outside.
    Masquerade,
    /// Counts pod addresses that are about to leave unencrypted, before [`Self::Out`] drops them.
    Seen,
}

impl Purpose {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::In => "in",
            Self::Out => "out",
            Self::Spoof => "spoof",
            Self::Closed => "closed",
            Self::Masquerade => "masquerade",
            Self::Seen => "seen",
        }
    }
}

/// The chains of a guard. The one that counts comes first: the kernel lists rules in this order, so what is dropped is read
/// after what was seen.
pub(super) fn chains(guard: &Guard) -> Vec<Chain> {
    let mut chains = vec![Chain {
        name: "seen",
        kind: "filter",
        hook: InetHookNumber::PostRouting,
        priority: BEFORE_LAST,
        rules: seen(guard),
    }];
    chains.extend(filters(guard));
    chains.push(Chain {
        name: MASQUERADING,
        kind: "nat",
        hook: InetHookNumber::PostRouting,
        priority: SOURCE_NAT,
        rules: masquerading(guard),
    });
    chains
}

/// The chains that drop packets. They depend on the cluster's ranges and the mesh links alone.
pub(super) fn filters(guard: &Guard) -> Vec<Chain> {
    vec![
        Chain {
            name: "ingress",
            kind: "filter",
            hook: InetHookNumber::PreRouting,
            priority: RAW,
            rules: ingress(guard),
        },
        Chain {
            name: "closed",
            kind: "filter",
            hook: InetHookNumber::PostRouting,
            priority: BEFORE_SOURCE_NAT,
            rules: closing(guard),
        },
        Chain {
            name: "egress",
            kind: "filter",
            hook: InetHookNumber::PostRouting,
            priority: LAST,
            rules: egress(guard),
        },
    ]
}

/// The sets of a guard: the node addresses among the destinations that are not masqueraded, and the closed ones.
pub(super) fn sets(guard: &Guard) -> [Set; 4] {
    let hosts = guard.no_masquerade.iter().filter(|range| prefix::is_host(**range));
    let nodes: BTreeSet<IpAddr> = hosts.map(IpNetwork::network).collect();
    let set = |name, ipv4, members: &BTreeSet<IpAddr>| Set {
        name,
        key: if ipv4 {
            DataType { number: TYPE_IPV4, len: 4 }
        } else {
            DataType { number: TYPE_IPV6, len: 16 }
        },
        data: None,
        members: members
            .iter()
            .filter(|address| address.is_ipv4() == ipv4)
            .map(|address| (key(*address), Vec::new()))
            .collect(),
    };
    [
        set(NODES_V4, true, &nodes),
        set(NODES_V6, false, &nodes),
        set(CLOSED_V4, true, &guard.closed),
        set(CLOSED_V6, false, &guard.closed),
    ]
}

fn rule(purpose: Purpose, parts: impl IntoIterator<Item = Vec<Expression>>) -> Rule {
    Rule::new(purpose.as_str(), parts)
}

fn ingress(guard: &Guard) -> Vec<Rule> {
    let mut rules = passes(guard, Direction::In);
    // Neighbour discovery and the like: link-local addresses are valid on the link alone.
    rules.push(from_pod(Purpose::Pass, &[address_in(Side::Source, LINK_LOCAL)], accept()));
    rules.push(from_pod(
        Purpose::Pass,
        &[address_in(Side::Source, UNSPECIFIED), address_in(Side::Destination, LINK_MULTICAST)],
        accept(),
    ));
    rules.push(from_pod(Purpose::Spoof, &[source_not_routed_back()], discard()));
    rules.push(from_pod(Purpose::Pass, &[], accept()));
    rules.extend(each_side(guard, Purpose::In, &[count(), discard()]));
    rules
}

fn egress(guard: &Guard) -> Vec<Rule> {
    leaving_in_clear(guard, Purpose::Out, &discard())
}

/// Counts once what the egress chain has to drop.
fn seen(guard: &Guard) -> Vec<Rule> {
    leaving_in_clear(guard, Purpose::Seen, &accept())
}

/// What is about to leave unencrypted with a pod address, or about a packet with one.
fn leaving_in_clear(guard: &Guard, purpose: Purpose, verdict: &Expression) -> Vec<Rule> {
    let mut rules = passes(guard, Direction::Out);
    rules.push(rule(Purpose::Pass, [link_begins(Direction::Out, POD_LINK_PREFIX), vec![accept()]]));
    let then = [count(), verdict.clone()];
    rules.extend(each_side(guard, purpose, &then));
    rules.extend(each_quote(guard, purpose, &then));
    rules
}

/// By the source that a packet has until source NAT: a pod's, of this node or of another one.
fn closing(guard: &Guard) -> Vec<Rule> {
    let mut rules = passes(guard, Direction::Out);
    for prefix in &guard.cluster {
        let set = if prefix.is_ipv4() { CLOSED_V4 } else { CLOSED_V6 };
        let conditions =
            [address_in(Side::Source, *prefix), address_in_set(Side::Destination, prefix.is_ipv4(), set)];
        rules.push(rule(Purpose::Closed, conditions.into_iter().chain([vec![count(), discard()]])));
    }
    rules
}

fn masquerading(guard: &Guard) -> Vec<Rule> {
    let mut rules = passes(guard, Direction::Out);
    rules.push(rule(Purpose::Pass, [link_begins(Direction::Out, POD_LINK_PREFIX), vec![accept()]]));
    let ranges = guard.no_masquerade.iter().filter(|range| !prefix::is_host(**range));
    for prefix in guard.cluster.iter().chain(ranges) {
        rules.push(rule(Purpose::Pass, [address_in(Side::Destination, *prefix), vec![accept()]]));
    }
    for (ipv4, set) in [(true, NODES_V4), (false, NODES_V6)] {
        rules.push(rule(Purpose::Pass, [address_in_set(Side::Destination, ipv4, set), vec![accept()]]));
    }
    for prefix in &guard.local_pods {
        rules.push(rule(Purpose::Masquerade, [address_in(Side::Source, *prefix), vec![masquerade()]]));
    }
    rules
}

/// The node itself and the mesh may carry pod addresses.
fn passes(guard: &Guard, direction: Direction) -> Vec<Rule> {
    let names = guard.mesh_links.iter().map(LinkName::as_str).chain(["lo"]);
    names.map(|name| rule(Purpose::Pass, [link_is(direction, name), vec![accept()]])).collect()
}

fn from_pod(purpose: Purpose, conditions: &[Vec<Expression>], verdict: Expression) -> Rule {
    let counter = if purpose == Purpose::Spoof { vec![count()] } else { Vec::new() };
    let link = [link_begins(Direction::In, POD_LINK_PREFIX)];
    rule(purpose, link.into_iter().chain(conditions.iter().cloned()).chain([counter, vec![verdict]]))
}

/// A rule for each pod range as source and one as destination.
fn each_side(guard: &Guard, purpose: Purpose, then: &[Expression]) -> Vec<Rule> {
    let rule_of = |(side, prefix)| rule(purpose, [address_in(side, prefix), then.to_vec()]);
    pod_ranges(guard).map(rule_of).collect()
}

/// The same for error messages about packets of pods: what a node's own process sends to a pod comes through the tunnel, and the
/// message that there is no such pod would go back to the node's address, outside it, with a part of that packet.
fn each_quote(guard: &Guard, purpose: Purpose, then: &[Expression]) -> Vec<Rule> {
    let quotes = pod_ranges(guard).flat_map(|(side, prefix)| quoted_address_in(side, prefix));
    quotes.map(|quote| rule(purpose, [quote, then.to_vec()])).collect()
}

/// Each pod range, as source and as destination.
fn pod_ranges(guard: &Guard) -> impl Iterator<Item = (Side, IpNetwork)> {
    let sides = [Side::Source, Side::Destination];
    guard.cluster.iter().flat_map(move |prefix| sides.map(|side| (side, *prefix)))
}

/// `fe80::/10` (RFC 4291 section 2.5.6).
const LINK_LOCAL: IpNetwork = v6(0xfe80, 10);
/// `::/128` (RFC 4291 section 2.5.2): the source of duplicate address detection.
const UNSPECIFIED: IpNetwork = v6(0, 128);
/// `ff02::/16` (RFC 4291 section 2.7): never leaves the link.
const LINK_MULTICAST: IpNetwork = v6(0xff02, 16);

const fn v6(first: u16, prefix: u8) -> IpNetwork {
    match Ipv6Network::new_checked(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), prefix) {
        Some(network) => IpNetwork::V6(network),
        None => panic!("prefix length beyond 128"),
    }
}
