//! The share that single peers have of the node's network, so that a change of theirs costs nothing for the others.
//!
//! [`desired`] and [`diff`](crate::diff()) stay as they are and run on less: on a world of the changed peers alone, and on the
//! entries that may differ.

use std::collections::BTreeSet;
use std::ops::Bound;

use ipnetwork::IpNetwork;
use keyring::{PublicKey, Slot};

use crate::admission::{Member, Own, World};
use crate::desired::{Setup, Underlay, desired};
use crate::diff::diff;
use crate::network::{MeshLink, Network, Route, Via};
use crate::node::NodeName;
use crate::op::Op;

/// What identifies a route: its table, destination and metric.
pub type RoutePlace = (u32, IpNetwork, u32);

/// The network as it would be if there were no other peers than these.
pub fn desired_share<'a>(
    own: Option<&Own>,
    peers: impl IntoIterator<Item = (&'a NodeName, &'a Member)>,
    setup: &Setup,
    underlay: &Underlay,
) -> Network {
    let peers = peers.into_iter().map(|(node, member)| (node.clone(), member.clone())).collect();
    desired(&World { own: own.cloned(), peers, closed: BTreeSet::new() }, setup, underlay)
}

/// Entries of a network in which what is desired and what is observed may differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Peers, by slot and public key.
    pub peers: BTreeSet<(Slot, PublicKey)>,
    /// Routes.
    pub routes: BTreeSet<RoutePlace>,
    /// Whether anything else may differ.
    pub rest: bool,
}

impl Pending {
    /// The entries in which two networks differ.
    pub fn between(one: &Network, other: &Network) -> Self {
        let mut found = Self { rest: one.without_peers() != other.without_peers(), ..Self::default() };
        for slot in Slot::ALL {
            let (one, other) = (one.devices.get(&slot), other.devices.get(&slot));
            let peer = |of: Option<&MeshLink>, key| of.and_then(|device| device.peers.get(key).cloned());
            let keys = one.into_iter().chain(other).flat_map(|device| device.peers.keys());
            let differ = keys.filter(|key| peer(one, *key) != peer(other, *key));
            found.peers.extend(differ.map(|key| (slot, *key)));
        }
        found.routes.extend(one.routes.symmetric_difference(&other.routes).map(place));
        found
    }

    /// Adds other entries.
    pub fn extend(&mut self, other: Self) {
        self.peers.extend(other.peers);
        self.routes.extend(other.routes);
        self.rest |= other.rest;
    }

    /// Whether nothing can differ.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.routes.is_empty() && !self.rest
    }

    /// The steps from `observed` to `desired`, which must not differ elsewhere.
    pub fn steps(&self, desired: &Network, observed: &Network) -> Vec<Op> {
        let is_kept = |(slot, wanted): (&Slot, &MeshLink)| {
            let found = observed.devices.get(slot);
            found.is_some_and(|found| found.link == wanted.link && found.key == wanted.key)
        };
        let all_kept = desired.devices.len() == observed.devices.len() && desired.devices.iter().all(is_kept);
        if self.rest && !all_kept {
            // A device that is created, and one that gets another key, has none of its peers and routes.
            return diff(desired, observed);
        }
        diff(&self.entries_of(desired, desired), &self.entries_of(observed, desired))
    }

    /// Forgets the entries that don't differ any more.
    pub fn retain_pending(&mut self, desired: &Network, observed: &Network) {
        let mut left = Self::default();
        for op in self.steps(desired, observed) {
            match op {
                Op::AddPeer { slot, key, .. }
                | Op::UpdatePeer { slot, key, .. }
                | Op::RemovePeer { slot, key } => drop(left.peers.insert((slot, key))),
                Op::SetRoute(route) | Op::RemoveRoute(route) => drop(left.routes.insert(place(&route))),
                _ => left.rest = true,
            }
        }
        *self = left;
    }

    /// These entries of a network; if only peers and routes may differ, the rest is that of `desired`.
    fn entries_of(&self, network: &Network, desired: &Network) -> Network {
        let rest = if self.rest { network } else { desired };
        let mut entries = Network {
            guard: rest.guard.as_ref().filter(|_| self.rest).cloned(),
            accepts: rest.accepts.clone(),
            sysctls: rest.sysctls.clone(),
            rules: rest.rules.clone(),
            ..Network::default()
        };
        for (slot, device) in &rest.devices {
            let found = network.devices.get(slot).map(|found| &found.peers);
            let keys = self.peers.iter().filter(|(of, _)| of == slot);
            let peers = keys.filter_map(|(_, key)| Some((*key, found?.get(key)?.clone()))).collect();
            entries.devices.insert(*slot, device.with_peers(peers));
        }
        entries.routes = self.routes.iter().flat_map(|place| network.routes_at(*place)).cloned().collect();
        entries
    }
}

impl Network {
    /// Puts the share of some peers in the place of what they had before: both as [`desired_share`] computes them. Returns the
    /// entries that are others now; none if all of the network has to be computed anew, and then nothing is changed. What
    /// is closed is no peer's.
    pub fn replace_share(&mut self, before: &Self, after: &Self) -> Option<Pending> {
        if self.devices.keys().ne(after.devices.keys()) || !differ_in_peers_only(before, after) {
            return None;
        }
        let narrows = |(slot, device): (&Slot, &MeshLink)| {
            let mtu = |share: &Self| share.devices.get(slot).map(|device| device.mtu);
            mtu(before) == Some(device.mtu) && mtu(after) < mtu(before)
        };
        // It takes all peers to see which path is the widest then.
        if self.devices.iter().any(narrows) {
            return None;
        }
        let mut changed = Pending::between(before, after);
        changed.rest = false;
        for (slot, device) in &mut self.devices {
            let of = after.devices.get(slot);
            for (_, key) in changed.peers.iter().filter(|(of, _)| of == slot) {
                match of.and_then(|of| of.peers.get(key)) {
                    Some(peer) => drop(device.peers.insert(*key, peer.clone())),
                    None => drop(device.peers.remove(key)),
                }
            }
            if let Some(of) = of.filter(|of| of.mtu > device.mtu) {
                device.mtu = of.mtu;
                changed.rest = true;
            }
        }
        for route in before.routes.difference(&after.routes) {
            self.routes.remove(route);
        }
        self.routes.extend(after.routes.difference(&before.routes).cloned());
        if let (Some(guard), Some(before), Some(after)) = (&mut self.guard, &before.guard, &after.guard)
            && before.no_masquerade != after.no_masquerade
        {
            for address in before.no_masquerade.difference(&after.no_masquerade) {
                guard.no_masquerade.remove(address);
            }
            guard.no_masquerade.extend(&after.no_masquerade);
            changed.rest = true;
        }
        Some(changed)
    }

    /// The routes at a place.
    fn routes_at(&self, (table, destination, metric): RoutePlace) -> impl Iterator<Item = &Route> {
        // In the order of routes the unreachable one is the last at its place.
        let begin = metric.checked_sub(1).map_or(Bound::Unbounded, |metric| {
            Bound::Excluded(Route { table, destination, metric, via: Via::Unreachable })
        });
        let from_here = self.routes.range((begin, Bound::Unbounded));
        from_here
            .take_while(move |route| place(route) <= (table, destination, metric))
            .filter(move |route| place(route) == (table, destination, metric))
    }
}

fn place(route: &Route) -> RoutePlace {
    (route.table, route.destination, route.metric)
}

/// Whether two shares differ in nothing but what peers have: their entries, the widest MTU, and addresses that keep a pod's own.
fn differ_in_peers_only(before: &Network, after: &Network) -> bool {
    let (mut before, mut after) = (before.without_peers(), after.without_peers());
    for network in [&mut before, &mut after] {
        for device in network.devices.values_mut() {
            device.mtu = 0;
        }
        if let Some(guard) = &mut network.guard {
            guard.no_masquerade.clear();
        }
    }
    before == after
}
