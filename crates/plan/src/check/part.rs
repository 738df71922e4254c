//! The same for a network in which only the shares of some peers are others than in one without a violation.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Spans, Violation, disjoint, granted, has_guard, position};
use crate::desired::MAIN_TABLE;
use crate::network::{LinkName, MeshLink, Network, Via};
use crate::part::Shares;
use crate::prefix;

/// Finds violations in `network`, in which nothing but these shares has changed since one without any. There is one exactly if
/// [`check`](super::check()) finds one, but not all of them need to be found.
pub fn check_part(network: &Network, shares: &Shares) -> Vec<Violation> {
    let mut found = Vec::new();
    has_guard(network, &mut found);
    disjoint(&shares.after, &mut found);
    granted(&shares.after, &shares.world, &mut found);
    disjoint_from_others(network, shares, &mut found);
    routed(network, shares, &mut found);
    found
}

/// Prefixes and single addresses in order: what a prefix holds of them is found by one binary search.
struct Sorted(Vec<IpNetwork>);

impl Sorted {
    fn new(prefixes: impl Iterator<Item = IpNetwork>) -> Self {
        let mut sorted: Vec<IpNetwork> = prefixes.collect();
        sorted.sort_by_key(|net| position(*net));
        Self(sorted)
    }

    /// The first that is in a prefix.
    fn first_in(&self, net: IpNetwork) -> Option<IpNetwork> {
        let from = self.0.partition_point(|inner| position(*inner) < position(net));
        self.0.get(from).copied().filter(|inner| prefix::contains(net, *inner))
    }
}

/// Compares the peers of the shares with all others of the same device.
fn disjoint_from_others(network: &Network, shares: &Shares, found: &mut Vec<Violation>) {
    for (slot, device) in &network.devices {
        let Some(of) = shares.after.devices.get(slot) else { continue };
        let spans = Spans::new(allowed(of));
        let sorted = Sorted::new(allowed(of));
        let others = device.peers.iter().filter(|(key, _)| !of.peers.contains_key(key));
        for net in others.flat_map(|(_, peer)| peer.allowed_ips.iter().copied()) {
            if let Some(one) = spans.holder(net) {
                found.push(Violation::Overlap { slot: *slot, one, other: net });
            } else if let Some(other) = sorted.first_in(net) {
                found.push(Violation::Overlap { slot: *slot, one: net, other });
            }
        }
    }
}

fn allowed(device: &MeshLink) -> impl Iterator<Item = IpNetwork> {
    device.peers.values().flat_map(|peer| peer.allowed_ips.iter().copied())
}

fn routed(network: &Network, Shares { before, after, .. }: &Shares, found: &mut Vec<Violation>) {
    let is_allowed = |link: &LinkName, net: IpNetwork| {
        let device = network.devices.values().find(|device| device.link == *link);
        device.is_some_and(|device| allowed(device).any(|of| prefix::contains(of, net)))
    };
    // What the peers had of each device and have no more: routes that were theirs must be gone as well.
    for (slot, device) in &network.devices {
        let of = |share: &Network| share.devices.get(slot).map(|of| Spans::new(allowed(of)));
        let (Some(had), Some(has)) = (of(before), of(after)) else { continue };
        let into = |via: &Via| matches!(via, Via::Link { link, .. } if *link == device.link);
        for route in network.routes.iter().filter(|route| into(&route.via)) {
            let net = route.destination;
            let is_doubtful = (had.contain(net) || after.routes.contains(route)) && !has.contain(net);
            if is_doubtful && !is_allowed(&device.link, net) {
                found.push(Violation::RouteWithoutPeer(net));
            }
        }
    }
    let into_mesh = |share: &Network| -> Vec<IpNetwork> {
        let main = share.routes.iter().filter(|route| route.table == MAIN_TABLE);
        main.filter(|route| route.via != Via::Unreachable).map(|route| route.destination).collect()
    };
    let endpoints = |share: &Network| -> Vec<(keyring::PublicKey, IpAddr)> {
        let peers = share.devices.values().flat_map(|device| &device.peers);
        peers.filter_map(|(key, peer)| Some((*key, peer.endpoint?.ip()))).collect()
    };
    let of_shares = endpoints(after);
    let sorted = Sorted::new(of_shares.iter().map(|(_, address)| prefix::host(*address)));
    for inside in into_mesh(network).into_iter().filter_map(|net| sorted.first_in(net)) {
        let of = |(key, address): &(_, IpAddr)| (prefix::host(*address) == inside).then_some(*key);
        found.extend(of_shares.iter().find_map(of).map(Violation::TunnelInTunnel));
    }
    let new = Spans::new(into_mesh(after).into_iter());
    let inside = endpoints(network).into_iter().filter(|(_, address)| new.contain(prefix::host(*address)));
    found.extend(inside.map(|(key, _)| Violation::TunnelInTunnel(key)));
}

#[cfg(test)]
mod tests;
