//! Invariants of a network, checked independently of the code that computes it: a plan that breaks one is refused.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use keyring::{PublicKey, Slot};

use crate::admission::World;
use crate::network::{LinkName, MeshLink, Network, Via};
use crate::prefix;

mod part;

pub use part::check_part;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// There is no guard.
    #[error("the network has no guard")]
    NoGuard,
    /// Two peers of one device share addresses: the engine could accept one's packets from the other.
    #[error("slot {slot}: allowed IPs {one} and {other} of two peers overlap")]
    Overlap {
        /// The slot.
        slot: Slot,
        /// One prefix.
        one: IpNetwork,
        /// The other.
        other: IpNetwork,
    },
    /// A peer is allowed what its node was not granted.
    #[error("slot {slot}: peer {key} has allowed IP {prefix}, which its node was not granted")]
    NotGranted {
        /// The slot.
        slot: Slot,
        /// The peer's key.
        key: PublicKey,
        /// The prefix.
        prefix: IpNetwork,
    },
    /// A route leads into the mesh, but no peer's allowed IPs contain its destination.
    #[error("route {0} leads into the mesh, but no peer's allowed IPs contain it")]
    RouteWithoutPeer(IpNetwork),
    /// The tunnel's own datagrams would be routed into the tunnel.
    #[error("the endpoint of peer {0} is routed into the mesh")]
    TunnelInTunnel(PublicKey),
}

/// Finds every violation.
pub fn check(network: &Network, world: &World) -> Vec<Violation> {
    let mut found = Vec::new();
    has_guard(network, &mut found);
    disjoint(network, &mut found);
    granted(network, world, &mut found);
    routed(network, &mut found);
    found
}

fn has_guard(network: &Network, found: &mut Vec<Violation>) {
    if network.guard.as_ref().is_none_or(|guard| guard.cluster.is_empty()) {
        found.push(Violation::NoGuard);
    }
}

fn disjoint(network: &Network, found: &mut Vec<Violation>) {
    for (slot, device) in &network.devices {
        let owned =
            device.peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |net| (*net, *key)));
        let mut sorted: Vec<(IpNetwork, PublicKey)> = owned.collect();
        sorted.sort_by_key(|(net, key)| (position(*net), *key));
        // Prefixes are nested or disjoint. In this order each one comes right after those that contain it.
        let mut enclosing: Vec<(IpNetwork, PublicKey)> = Vec::new();
        for (other, second) in sorted {
            while enclosing.last().is_some_and(|(one, _)| !prefix::contains(*one, other)) {
                enclosing.pop();
            }
            if let Some((one, _)) = enclosing.iter().rev().find(|(_, first)| *first != second) {
                found.push(Violation::Overlap { slot: *slot, one: *one, other });
            }
            enclosing.push((other, second));
        }
    }
}

/// Sorts prefixes by family and first address, wider ones first.
fn position(net: IpNetwork) -> (bool, std::net::IpAddr, u8) {
    (net.is_ipv6(), net.network(), net.prefix())
}

/// The widest of some prefixes, sorted and disjoint: what one of the prefixes contains is found by one binary search.
struct Spans(Vec<IpNetwork>);

impl Spans {
    fn new(prefixes: impl Iterator<Item = IpNetwork>) -> Self {
        let mut spans: Vec<IpNetwork> = prefixes.collect();
        spans.sort_by_key(|net| position(*net));
        spans.dedup_by(|inner, outer| prefix::contains(*outer, *inner));
        Self(spans)
    }

    /// The one of the prefixes that contains all of this one.
    fn holder(&self, net: IpNetwork) -> Option<IpNetwork> {
        let after = self.0.partition_point(|span| position(*span) <= position(net));
        let last = after.checked_sub(1).and_then(|last| self.0.get(last));
        last.copied().filter(|span| prefix::contains(*span, net))
    }

    /// Whether there is one.
    fn contain(&self, net: IpNetwork) -> bool {
        self.holder(net).is_some()
    }
}

fn granted(network: &Network, world: &World, found: &mut Vec<Violation>) {
    for (slot, device) in &network.devices {
        let members: BTreeMap<PublicKey, _> =
            world.peers.values().map(|member| (member.state.slots.get(*slot).key, member)).collect();
        for (key, peer) in &device.peers {
            let member = members.get(key);
            let is_granted = |net: &IpNetwork| {
                member.is_some_and(|member| {
                    let is_mesh_address =
                        |pod_cidr: &IpNetwork| prefix::host(prefix::first_usable(*pod_cidr)) == *net;
                    member.pod_cidrs.contains(net)
                        || member.pod_cidrs.iter().any(is_mesh_address)
                        || member.addresses.iter().any(|address| prefix::host(*address) == *net)
                })
            };
            for net in peer.allowed_ips.iter().filter(|net| !is_granted(net)) {
                found.push(Violation::NotGranted { slot: *slot, key: *key, prefix: *net });
            }
        }
    }
}

fn routed(network: &Network, found: &mut Vec<Violation>) {
    let main = crate::desired::MAIN_TABLE;
    let allowed = |device: &'_ MeshLink| {
        Spans::new(device.peers.values().flat_map(|peer| peer.allowed_ips.iter().copied()))
    };
    let taken: BTreeMap<&LinkName, Spans> =
        network.devices.values().map(|device| (&device.link, allowed(device))).collect();
    let mut into_mesh = Vec::new();
    for route in &network.routes {
        let Via::Link { link, .. } = &route.via else { continue };
        // All of it, by one prefix.
        if !taken.get(link).is_some_and(|spans| spans.contain(route.destination)) {
            found.push(Violation::RouteWithoutPeer(route.destination));
        }
        if route.table == main {
            into_mesh.push(route.destination);
        }
    }
    let into_mesh = Spans::new(into_mesh.into_iter());
    for device in network.devices.values() {
        for (key, peer) in &device.peers {
            if peer.endpoint.is_some_and(|endpoint| into_mesh.contain(prefix::host(endpoint.ip()))) {
                found.push(Violation::TunnelInTunnel(*key));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Peer, Route};

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn network(peers: &[(u8, &[&str])], routes: &[&str]) -> Network {
        let peer = |allowed: &[&str]| Peer {
            endpoint: Some("192.0.2.1:51840".parse().unwrap()),
            allowed_ips: allowed.iter().map(|text| net(text)).collect(),
            ..Peer::default()
        };
        let link: LinkName = "mesh-a".parse().unwrap();
        let device = MeshLink {
            link: link.clone(),
            mtu: 1420,
            up: true,
            addresses: std::collections::BTreeSet::new(),
            key: None,
            port: 51840,
            peers: peers.iter().map(|(byte, allowed)| (key(*byte), peer(allowed))).collect(),
        };
        let route = |text: &&str| Route {
            table: crate::desired::MAIN_TABLE,
            destination: net(text),
            metric: 84,
            via: Via::Link { link: link.clone(), source: None, mtu: None },
        };
        Network {
            devices: [(Slot::A, device)].into(),
            routes: routes.iter().map(route).collect(),
            ..Network::default()
        }
    }

    fn overlaps(peers: &[(u8, &[&str])]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        disjoint(&network(peers, &[]), &mut found);
        let pair = |violation| match violation {
            Violation::Overlap { one, other, .. } => (one.to_string(), other.to_string()),
            other => panic!("{other}"),
        };
        found.into_iter().map(pair).collect()
    }

    #[test]
    fn prefixes_of_two_peers_must_not_overlap() {
        assert_eq!(overlaps(&[(1, &["10.1.0.0/24", "10.2.0.0/24"]), (2, &["10.3.0.0/24"])]), []);
        assert_eq!(overlaps(&[(1, &["10.0.0.0/8", "10.1.0.0/16"])]), [], "one peer's own may");
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(
            overlaps(&[(1, &["10.1.0.0/24"]), (2, &["10.1.0.0/24"])]),
            [pair("10.1.0.0/24", "10.1.0.0/24")]
        );
        // Also where a prefix of the same peer is between the two.
        assert_eq!(
            overlaps(&[(1, &["10.0.0.0/8", "10.1.0.0/16"]), (2, &["10.2.0.0/16"])]),
            [pair("10.0.0.0/8", "10.2.0.0/16")]
        );
    }

    #[test]
    fn a_route_needs_a_peer_whose_prefix_contains_it() {
        let broken = |peers: &[(u8, &[&str])], routes: &[&str]| {
            let mut found = Vec::new();
            routed(&network(peers, routes), &mut found);
            found
        };
        let peers: &[(u8, &[&str])] = &[(1, &["10.1.0.0/16", "10.1.2.0/24"]), (2, &["10.3.0.0/24"])];
        assert_eq!(broken(peers, &["10.1.9.0/24", "10.1.2.0/24", "10.3.0.0/24"]), []);
        for route in ["10.0.0.0/8", "10.2.0.0/24", "10.3.0.0/23", "fd00::/64"] {
            assert_eq!(broken(peers, &[route]), [Violation::RouteWithoutPeer(net(route))], "{route}");
        }
    }

    #[test]
    fn an_endpoint_must_not_be_routed_into_the_mesh() {
        let mut found = Vec::new();
        routed(&network(&[(1, &["192.0.0.0/16"])], &["192.0.2.0/24"]), &mut found);
        assert_eq!(found, [Violation::TunnelInTunnel(key(1))]);
    }
}
