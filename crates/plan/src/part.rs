//! The share that single peers have of the node's network, so that a change of theirs costs nothing for the others.
//!
//! [`desired`] and [`diff`](crate::diff()) stay as they are and run on less: on a world of the changed peers alone, and on the
//! entries that may differ.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnetwork::IpNetwork;
use keyring::{PublicKey, Slot};

use crate::admission::{AdmissionPart, Member, Own, World};
use crate::desired::{Setup, Underlay, desired};
use crate::diff::diff;
use crate::network::{MeshLink, Network, Route, Via};
use crate::node::{NodeName, NodeUid};
use crate::op::Op;

/// Of more changed peers than this all of the network is computed.
const MOST_SHARES: usize = 512;

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

/// What some peers have of a network now, and had before.
#[derive(Clone, Debug)]
pub struct Shares {
    /// What they had.
    pub before: Network,
    /// What they have.
    pub after: Network,
    /// This node and these peers as they are now.
    pub world: World,
}

/// What a network was computed from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// This node's own part.
    pub setup: &'a Setup,
    /// The MTUs of its own network.
    pub underlay: &'a Underlay,
    /// What was decided about the Nodes that were considered.
    pub part: &'a AdmissionPart,
}

/// The shares of all peers that are others because of what was decided about some Nodes, or because of what this node knows of
/// them. None if more is different than peers have a share in, or if it concerns too many: then all of the network has to be
/// computed. `world` is as it is now.
pub fn changed_shares(world: &World, former: Inputs<'_>, now: Inputs<'_>) -> Option<Shares> {
    let (decided_before, decided) = (&former.part.admission().world, &now.part.admission().world);
    if decided_before.own != world.own
        || decided_before.closed != decided.closed
        || former.underlay.mtu != now.underlay.mtu
        || !now.setup.differs_in_peers_only(former.setup)
    {
        return None;
    }
    let mut uids: BTreeSet<&NodeUid> = now.setup.peers_known_otherwise(former.setup);
    uids.extend(differing(&now.underlay.passes, &former.underlay.passes).map(|(uid, _)| uid));
    let addresses: BTreeSet<&IpAddr> = differing(&now.underlay.mtu_to, &former.underlay.mtu_to).collect();
    let is_widened = |member: &Member| {
        let endpoint = |slot| now.setup.path(member, slot).endpoint.map(|endpoint| endpoint.ip());
        Slot::ALL.into_iter().filter_map(endpoint).any(|address| addresses.contains(&address))
    };
    let mut nodes: BTreeSet<&NodeName> = now.part.nodes().iter().collect();
    if !uids.is_empty() || !addresses.is_empty() {
        let is_other =
            |member: &Member| uids.contains(&member.uid) || (!addresses.is_empty() && is_widened(member));
        nodes.extend(world.peers.iter().filter(|(_, member)| is_other(member)).map(|(node, _)| node));
    }
    if nodes.len() > MOST_SHARES {
        return None;
    }
    let considered = now.part.nodes();
    let before = nodes.iter().filter_map(|node| {
        let of = if considered.contains(*node) { decided_before } else { world };
        of.peers.get_key_value(*node)
    });
    let before = desired_share(world.own.as_ref(), before, former.setup, former.underlay);
    let after = nodes.iter().filter_map(|node| world.peers.get_key_value(*node));
    let peers = after.map(|(node, member)| (node.clone(), member.clone())).collect();
    let world = World { own: world.own.clone(), peers, closed: BTreeSet::new() };
    Some(Shares { before, after: desired(&world, now.setup, now.underlay), world })
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
        found.add_peers(one, other);
        found.routes.extend(one.routes.symmetric_difference(&other.routes).map(place));
        found
    }

    /// Adds the peers in which two networks differ.
    pub fn add_peers(&mut self, one: &Network, other: &Network) {
        let none = BTreeMap::new();
        for slot in Slot::ALL {
            let one = one.devices.get(&slot).map_or(&none, |device| &device.peers);
            let other = other.devices.get(&slot).map_or(&none, |device| &device.peers);
            self.peers.extend(differing(one, other).map(|key| (slot, *key)));
        }
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
        if self.rest && !keeps_devices(desired, observed) {
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

/// Whether all devices stay with their keys. One that is created, and one that gets another key, has none of its peers and routes.
pub fn keeps_devices(desired: &Network, observed: &Network) -> bool {
    let is_kept = |(slot, wanted): (&Slot, &MeshLink)| {
        let found = observed.devices.get(slot);
        found.is_some_and(|found| found.link == wanted.link && found.key == wanted.key)
    };
    desired.devices.len() == observed.devices.len() && desired.devices.iter().all(is_kept)
}

/// The keys of which two maps have different entries, or only one has an entry.
pub(crate) fn differing<'a, K: Ord, V: PartialEq>(
    one: &'a BTreeMap<K, V>,
    other: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let (mut ones, mut others) = (one.iter().peekable(), other.iter().peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (ones.peek(), others.peek()) {
                (Some((one, _)), Some((other, _))) => one.cmp(other),
                (Some(_), None) => Ordering::Less,
                (None, _) => Ordering::Greater,
            };
            match order {
                Ordering::Less => return ones.next().map(|(key, _)| key),
                Ordering::Greater => return others.next().map(|(key, _)| key),
                Ordering::Equal => {
                    let ((key, one), (_, other)) = ones.next().zip(others.next())?;
                    if one != other {
                        return Some(key);
                    }
                }
            }
        }
    })
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
