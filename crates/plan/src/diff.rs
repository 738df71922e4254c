//! From what is observed to what is desired, in an order in which every step leaves the node safe.
//!
//! The guard comes first, then links, keys and peers, then the routes to them; what is no longer wanted is removed last.
//! Nothing is replaced as a whole, so what stays is never missing in between.

use std::collections::{BTreeMap, BTreeSet};

use keyring::{PublicKey, Slot};
use wireguard::PeerChange;

use crate::network::{LinkName, MeshLink, Network, Peer, Route};
use crate::op::Op;

/// The steps from `observed` to `desired`; none if they agree.
pub fn diff(desired: &Network, observed: &Network) -> Vec<Op> {
    let mut ops = Vec::new();
    if let Some(guard) = desired.guard.as_ref().filter(|guard| observed.guard.as_ref() != Some(*guard)) {
        ops.push(Op::SetGuard(guard.clone()));
    }
    if let Some(accepts) =
        desired.accepts.as_ref().filter(|accepts| observed.accepts.as_ref() != Some(*accepts))
    {
        ops.push(Op::SetAccepts(accepts.clone()));
    }
    let recreated = recreated(desired, observed);
    remove_devices(&mut ops, desired, observed);
    let settings = settings(desired, observed, &recreated);
    for (slot, wanted) in &desired.devices {
        let found = observed.devices.get(slot).filter(|found| found.link == wanted.link);
        let of_link = format!("net/ipv6/conf/{}/{BEFORE_ADDRESSES}", wanted.link);
        let early = settings.iter().filter(|(name, _)| **name == of_link);
        let early: Vec<Op> = early.map(|setting| set_sysctl(*setting)).collect();
        device(&mut ops, *slot, wanted, found, &early);
    }
    // After the devices: a setting of a link exists only with the link.
    let late = settings.iter().filter(|(name, _)| !name.ends_with(BEFORE_ADDRESSES));
    let (first, last): (Vec<&Setting<'_>>, Vec<&Setting<'_>>) =
        late.partition(|(name, _)| name.ends_with(BEFORE_FORWARDING));
    ops.extend(first.into_iter().chain(last).map(|setting| set_sysctl(*setting)));
    routes(&mut ops, desired, observed, &recreated);
    for rule in desired.rules.difference(&observed.rules) {
        ops.push(Op::AddRule(rule.clone()));
    }
    for rule in observed.rules.difference(&desired.rules) {
        ops.push(Op::RemoveRule(rule.clone()));
    }
    for (slot, wanted) in &desired.devices {
        if let Some(found) = observed.devices.get(slot).filter(|found| found.link == wanted.link) {
            for address in found.addresses.difference(&wanted.addresses) {
                ops.push(Op::RemoveAddress { link: wanted.link.clone(), address: *address });
            }
        }
    }
    ops
}

/// The setting without which a link takes no address.
const BEFORE_ADDRESSES: &str = "disable_ipv6";
/// The setting without which the kernel drops default routes when forwarding is switched on.
const BEFORE_FORWARDING: &str = "accept_ra";

/// A name below `/proc/sys`, and a value.
type Setting<'a> = (&'a String, &'a String);

/// The settings to write.
fn settings<'a>(
    desired: &'a Network,
    observed: &Network,
    recreated: &BTreeSet<LinkName>,
) -> Vec<Setting<'a>> {
    let differs = |(name, value): &Setting<'_>| {
        observed.sysctls.get(*name) != Some(*value) || is_of_link(name, recreated)
    };
    desired.sysctls.iter().filter(differs).collect()
}

fn set_sysctl((name, value): Setting<'_>) -> Op {
    Op::SetSysctl { name: name.clone(), value: value.clone() }
}

/// Links that this plan creates: what was observed on the old ones is gone with them.
fn recreated(desired: &Network, observed: &Network) -> BTreeSet<LinkName> {
    let links = desired
        .devices
        .iter()
        .filter(|(slot, wanted)| observed.devices.get(slot).is_none_or(|found| found.link != wanted.link));
    links.map(|(_, device)| device.link.clone()).collect()
}

fn is_of_link(sysctl: &str, links: &BTreeSet<LinkName>) -> bool {
    links.iter().any(|link| sysctl.split('/').any(|part| part == link.as_str()))
}

fn remove_devices(ops: &mut Vec<Op>, desired: &Network, observed: &Network) {
    for (slot, found) in &observed.devices {
        if desired.devices.get(slot).is_none_or(|wanted| wanted.link != found.link) {
            ops.push(Op::RemoveDevice { slot: *slot, link: found.link.clone() });
        }
    }
}

/// `early` has to be done once the link exists, and before it gets addresses.
fn device(ops: &mut Vec<Op>, slot: Slot, wanted: &MeshLink, found: Option<&MeshLink>, early: &[Op]) {
    let link = || wanted.link.clone();
    let Some(found) = found else {
        ops.push(Op::CreateDevice { slot, link: link(), mtu: wanted.mtu });
        let empty = MeshLink {
            mtu: wanted.mtu,
            up: false,
            addresses: BTreeSet::new(),
            key: None,
            port: 0,
            peers: BTreeMap::new(),
            link: link(),
        };
        return device(ops, slot, wanted, Some(&empty), early);
    };
    // A device that gets another key keeps no peer: their sessions, made with the former key, go with them.
    let rekeyed;
    let found = match wanted.key.filter(|key| found.key != Some(*key)) {
        Some(key) => {
            ops.extend(found.peers.keys().map(|key| Op::RemovePeer { slot, key: *key }));
            ops.push(Op::SetKey { slot, key });
            rekeyed = MeshLink { peers: BTreeMap::new(), ..found.clone() };
            &rekeyed
        }
        None => found,
    };
    if found.port != wanted.port {
        ops.push(Op::SetPort { slot, port: wanted.port });
    }
    if found.mtu != wanted.mtu {
        ops.push(Op::SetMtu { link: link(), mtu: wanted.mtu });
    }
    ops.extend(early.iter().cloned());
    for address in wanted.addresses.difference(&found.addresses) {
        ops.push(Op::AddAddress { link: link(), address: *address });
    }
    if wanted.up && !found.up {
        ops.push(Op::SetUp { link: link() });
    }
    peers(ops, slot, wanted, found);
}

/// Removals first: a prefix that moves to another peer is free before it is added there, so that no packet for its new
/// owner is encrypted for the old one.
fn peers(ops: &mut Vec<Op>, slot: Slot, wanted: &MeshLink, found: &MeshLink) {
    for (key, former) in &found.peers {
        // A session with another preshared key, or with none, must not continue.
        if wanted.peers.get(key).is_none_or(|peer| peer.preshared != former.preshared) {
            ops.push(Op::RemovePeer { slot, key: *key });
        }
    }
    let mut changes: Vec<(PublicKey, PeerChange)> = Vec::new();
    let mut additions = Vec::new();
    for (key, peer) in &wanted.peers {
        match found.peers.get(key) {
            None => additions.push(Op::AddPeer { slot, key: *key, peer: peer.clone() }),
            Some(former) if former.preshared != peer.preshared => {
                let endpoint = if follows(peer, former) { former.endpoint } else { peer.endpoint };
                let peer = Peer { endpoint, ..peer.clone() };
                additions.push(Op::AddPeer { slot, key: *key, peer });
            }
            Some(former) => {
                let change = change(peer, former);
                if change != PeerChange::default() {
                    changes.push((*key, change));
                }
            }
        }
    }
    // Changes that only remove prefixes come before those that add some.
    changes.sort_by_key(|(key, change)| (!change.allow.is_empty(), *key));
    ops.extend(changes.into_iter().map(|(key, change)| Op::UpdatePeer { slot, key, change }));
    ops.extend(additions);
}

/// Whether a peer's endpoint is the address that it last sent from: for one that roams, and for one that has published none.
const fn follows(wanted: &Peer, found: &Peer) -> bool {
    found.endpoint.is_some() && (wanted.roaming || wanted.endpoint.is_none())
}

fn change(wanted: &Peer, found: &Peer) -> PeerChange {
    let follow = follows(wanted, found);
    // A peer that is not followed any more stays where the plan says, not where it was set before it was followed.
    let pinned = found.roaming && !wanted.roaming;
    PeerChange {
        endpoint: wanted.endpoint.filter(|endpoint| !follow && (pinned || found.endpoint != Some(*endpoint))),
        keepalive: (wanted.keepalive != found.keepalive).then_some(wanted.keepalive),
        roaming: (wanted.roaming != found.roaming).then_some(wanted.roaming),
        allow: wanted.allowed_ips.difference(&found.allowed_ips).copied().collect(),
        disallow: found.allowed_ips.difference(&wanted.allowed_ips).copied().collect(),
    }
}

fn routes(ops: &mut Vec<Op>, desired: &Network, observed: &Network, recreated: &BTreeSet<LinkName>) {
    let gone = |route: &Route| matches!(&route.via, crate::network::Via::Link { link, .. } if recreated.contains(link));
    let is_in_place = |route: &Route| observed.routes.contains(route) && !gone(route);
    for route in desired.routes.iter().filter(|route| !is_in_place(route)) {
        ops.push(Op::SetRoute(route.clone()));
    }
    // A wanted route with the same table, destination and metric has replaced it.
    let identity = |route: &Route| (route.table, route.destination, route.metric);
    let replaced: BTreeSet<_> = desired.routes.iter().map(identity).collect();
    for route in observed.routes.difference(&desired.routes) {
        if !replaced.contains(&identity(route)) {
            ops.push(Op::RemoveRoute(route.clone()));
        }
    }
}
