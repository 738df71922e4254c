//! Invariants of a network, checked apart from the code that computes it: a plan that breaks one is refused.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use keyring::{PublicKey, Slot};

use crate::admission::World;
use crate::network::{Network, Via};
use crate::prefix;

/// Something that must never be.
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
    #[error("slot {slot}: peer {key} is allowed {prefix}, which its node was not granted")]
    NotGranted {
        /// The slot.
        slot: Slot,
        /// The peer's key.
        key: PublicKey,
        /// The prefix.
        prefix: IpNetwork,
    },
    /// A route leads into the mesh where no peer takes its packets.
    #[error("no peer takes what the route to {0} sends into the mesh")]
    RouteToNobody(IpNetwork),
    /// The node's own datagrams would go into the tunnel that carries them.
    #[error("the endpoint of peer {0} is routed into the mesh")]
    TunnelInTunnel(PublicKey),
}

/// Finds every violation.
pub fn check(network: &Network, world: &World) -> Vec<Violation> {
    let mut found = Vec::new();
    if network.guard.as_ref().is_none_or(|guard| guard.cluster.is_empty()) {
        found.push(Violation::NoGuard);
    }
    disjoint(network, &mut found);
    granted(network, world, &mut found);
    routed(network, &mut found);
    found
}

fn disjoint(network: &Network, found: &mut Vec<Violation>) {
    for (slot, device) in &network.devices {
        let owned =
            device.peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |net| (*net, *key)));
        let mut sorted: Vec<(IpNetwork, PublicKey)> = owned.collect();
        sorted.sort_by_key(|(net, key)| (net.is_ipv6(), net.network(), net.prefix(), *key));
        for pair in sorted.windows(2) {
            if let [(one, first), (other, second)] = pair
                && first != second
                && prefix::overlap(*one, *other)
            {
                found.push(Violation::Overlap { slot: *slot, one: *one, other: *other });
            }
        }
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
    let mut into_mesh: Vec<IpNetwork> = Vec::new();
    for route in &network.routes {
        let Via::Link { link, .. } = &route.via else { continue };
        let device = network.devices.values().find(|device| device.link == *link);
        let taken = device.is_some_and(|device| {
            // The whole of it: one prefix of a peer's that holds it.
            device
                .peers
                .values()
                .any(|peer| peer.allowed_ips.iter().any(|net| prefix::contains(*net, route.destination)))
        });
        if !taken {
            found.push(Violation::RouteToNobody(route.destination));
        }
        if route.table == main {
            into_mesh.push(route.destination);
        }
    }
    for device in network.devices.values() {
        for (key, peer) in &device.peers {
            if peer.endpoint.is_some_and(|endpoint| into_mesh.iter().any(|net| net.contains(endpoint.ip()))) {
                found.push(Violation::TunnelInTunnel(*key));
            }
        }
    }
}
