//! What this node's network should be: a pure function of the admitted nodes, of its own setup and of the underlay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PresharedId, PublicKey, Slot};
pub use wireguard::{MIN_MTU, OVERHEAD};

use crate::admission::{Member, Own, World};
use crate::network::{Accepts, Guard, LinkName, MeshInput, MeshLink, Network, Peer, Route, Rule, Via};
use crate::node::NodeUid;
use crate::part::differing;
use crate::path_mtu::search::{Limits, MIN_IPV4_MTU};
use crate::prefix;

/// Number of the main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// Metric of the routes to peers.
pub const PEER_METRIC: u32 = 84;
/// Metric of the routes to peers by the slot that is not used. They carry what is sent into that slot's device on
/// purpose, which is how a new key is tried out, and everything else only if the other device is gone.
pub const RESERVE_METRIC: u32 = 85;
/// Metric of the unreachable route for what no other route matches. Higher than the others', so that on a cluster
/// with one node, where both have the same destination, it does not win.
pub const UNREACHABLE_METRIC: u32 = 50_000;
/// Seconds between keepalives where one of two ends is behind NAT: shorter than the 30 s after which
/// common NATs forget a UDP mapping.
const NAT_KEEPALIVE: u16 = 25;

/// This node's own part: configuration, keys, and what the key exchange says about each peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The cluster's pod ranges.
    pub cluster_cidrs: BTreeSet<IpNetwork>,
    /// The cluster's service ranges.
    pub service_cidrs: BTreeSet<IpNetwork>,
    /// Ranges of nodes that never run meshd: what pods send there may leave unencrypted.
    pub open_node_cidrs: BTreeSet<IpNetwork>,
    /// Public key of each slot.
    pub keys: PerSlot<PublicKey>,
    /// UDP port of each slot.
    pub ports: PerSlot<u16>,
    /// Interface of each slot.
    pub links: PerSlot<LinkName>,
    /// Routing table for peers' node addresses.
    pub table: u32,
    /// Priority of the rules that look it up; those for what goes to pods have the next one.
    pub rule_priority: u32,
    /// Links with an IPv6 default route from router advertisements that the kernel takes.
    pub router_links: BTreeSet<LinkName>,
    /// What is accepted on the mesh links for the node itself where iptables' INPUT drops.
    pub input: MeshInput,
    /// Whether this node is behind NAT.
    pub nat: bool,
    /// The path to each peer by slot, where one is known.
    pub paths: BTreeMap<(NodeUid, Slot), Path>,
    /// Slot to send to, for peers whose own preference is not to be followed.
    pub steer: BTreeMap<NodeUid, Slot>,
    /// The preshared keys that there are.
    pub preshared: BTreeMap<(NodeUid, Slot), PresharedId>,
    /// Slots of peers that must not carry pods' packets, because a preshared key is required and there is none: only the
    /// nodes themselves speak to each other over them.
    pub barred: BTreeSet<(NodeUid, Slot)>,
}

/// Where datagrams for a peer's slot go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The endpoint; none where the peer has to make itself known.
    pub endpoint: Option<SocketAddr>,
    /// Whether the peer is followed to wherever it sends from.
    pub follow: bool,
}

/// The MTUs of the node's own network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// MTU in bytes where the route to the endpoint is not known.
    pub mtu: u32,
    /// MTU in bytes of the route to an endpoint address.
    pub mtu_to: BTreeMap<IpAddr, u32>,
    /// What passes inside the tunnel to a peer's slot, in bytes, as far as probes have shown.
    pub passes: BTreeMap<(NodeUid, Slot), u32>,
}

impl Underlay {
    /// MTU inside the tunnel to an endpoint; not less than `smallest`.
    fn inner_mtu(&self, endpoint: Option<IpAddr>, smallest: u32) -> u32 {
        let known = endpoint.and_then(|address| self.mtu_to.get(&address));
        known.unwrap_or(&self.mtu).saturating_sub(OVERHEAD).max(smallest)
    }
}

impl Guard {
    /// The guard with the cluster's ranges only: what is in place before the first Node is known.
    pub fn closed(
        cluster: BTreeSet<IpNetwork>,
        services: BTreeSet<IpNetwork>,
        links: &PerSlot<LinkName>,
    ) -> Self {
        let mesh_links = links.iter().map(|(_, link)| link.clone()).collect();
        Self { cluster, mesh_links, no_masquerade: services, ..Self::default() }
    }
}

impl Setup {
    /// Whether another setup is the same in all that is not about single peers.
    pub(crate) fn differs_in_peers_only(&self, other: &Self) -> bool {
        let general = |of: &Self| Self {
            paths: BTreeMap::new(),
            steer: BTreeMap::new(),
            preshared: BTreeMap::new(),
            barred: BTreeSet::new(),
            cluster_cidrs: of.cluster_cidrs.clone(),
            service_cidrs: of.service_cidrs.clone(),
            open_node_cidrs: of.open_node_cidrs.clone(),
            links: of.links.clone(),
            router_links: of.router_links.clone(),
            ..*of
        };
        general(self) == general(other)
    }

    /// The peers of which it knows something else than another one.
    pub(crate) fn peers_known_otherwise<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a NodeUid> {
        let mut uids: BTreeSet<&NodeUid> = differing(&self.steer, &other.steer).collect();
        uids.extend(differing(&self.paths, &other.paths).map(|(uid, _)| uid));
        uids.extend(differing(&self.preshared, &other.preshared).map(|(uid, _)| uid));
        uids.extend(self.barred.symmetric_difference(&other.barred).map(|(uid, _)| uid));
        uids
    }

    /// The slot that packets for a peer take.
    pub fn active_slot(&self, member: &Member) -> Slot {
        let follow = || match member.state.drain {
            Some(drained) if drained == member.state.prefer => drained.other(),
            _ => member.state.prefer,
        };
        let preferred = self.steer.get(&member.uid).copied().unwrap_or_else(follow);
        if self.is_barred(member, preferred) && !self.is_barred(member, preferred.other()) {
            preferred.other()
        } else {
            preferred
        }
    }

    /// The path to a peer's slot: the one that is known, else the first endpoint that it names.
    pub fn path(&self, member: &Member, slot: Slot) -> Path {
        let known = (!self.paths.is_empty()).then(|| self.paths.get(&(member.uid.clone(), slot))).flatten();
        known.copied().unwrap_or_else(|| Path { endpoint: member.socket(slot), follow: member.nat })
    }

    /// Whether pods may reach a Node's address outside the mesh.
    fn is_open(&self, address: IpAddr) -> bool {
        self.open_node_cidrs.iter().any(|range| range.contains(address))
    }

    /// Whether pods' packets must not take this slot to or from a peer.
    pub fn is_barred(&self, member: &Member, slot: Slot) -> bool {
        !self.barred.is_empty() && self.barred.contains(&(member.uid.clone(), slot))
    }

    /// The slot that pods' packets to a peer take; none if they take none.
    pub fn carrying_slot(&self, member: &Member) -> Option<Slot> {
        Some(self.active_slot(member)).filter(|slot| !self.is_barred(member, *slot))
    }
}

/// MTU inside the tunnel to a peer, in bytes: that of its routes. It fits the paths of both slots, so that a packet fits
/// whichever it takes.
pub fn peer_mtu(member: &Member, setup: &Setup, underlay: &Underlay) -> u32 {
    let of_slot = |slot| {
        let Limits { smallest, largest } = mtu_limits(member, setup, underlay, slot);
        let passes = (!underlay.passes.is_empty()).then(|| underlay.passes.get(&(member.uid.clone(), slot)));
        passes.flatten().map_or(largest, |passes| *passes.min(&largest).max(&smallest))
    };
    of_slot(Slot::A).min(of_slot(Slot::B))
}

/// Bounds of the MTU inside the tunnel to a peer's slot: what the protocols that its routes are for require, and what the
/// route to its endpoint allows.
pub fn mtu_limits(member: &Member, setup: &Setup, underlay: &Underlay, slot: Slot) -> Limits {
    let ipv6 =
        member.pod_cidrs.iter().any(IpNetwork::is_ipv6) || member.addresses.iter().any(IpAddr::is_ipv6);
    let smallest = if ipv6 { MIN_MTU } else { MIN_IPV4_MTU };
    let endpoint = setup.path(member, slot).endpoint.map(|endpoint| endpoint.ip());
    Limits { smallest, largest: underlay.inner_mtu(endpoint, smallest) }
}

/// The MTU that pods get: what the node's own underlay carries.
pub fn pod_mtu(underlay: &Underlay) -> u32 {
    underlay.inner_mtu(None, MIN_MTU)
}

/// Computes the network.
pub fn desired(world: &World, setup: &Setup, underlay: &Underlay) -> Network {
    Network {
        guard: Some(guard(world, setup)),
        accepts: Some(accepts(setup)),
        sysctls: sysctls(setup),
        devices: Slot::ALL.into_iter().map(|slot| (slot, device(world, setup, underlay, slot))).collect(),
        routes: routes(world, setup, underlay),
        rules: rules(world, setup),
    }
}

fn guard(world: &World, setup: &Setup) -> Guard {
    let own = world.own.iter();
    let own_addresses = own.clone().flat_map(|own| own.addresses.iter());
    let addresses = own_addresses.chain(world.peers.values().flat_map(|peer| peer.addresses.iter()));
    let mut guard = Guard::closed(setup.cluster_cidrs.clone(), setup.service_cidrs.clone(), &setup.links);
    guard.local_pods = own.flat_map(|own| own.pod_cidrs.iter().copied()).collect();
    guard.no_masquerade.extend(addresses.map(|address| prefix::host(*address)));
    guard.closed = world.closed.iter().filter(|address| !setup.is_open(**address)).copied().collect();
    // What a node sends to itself never leaves it.
    guard.closed.retain(|address| world.own.iter().all(|own| !own.addresses.contains(address)));
    guard
}

fn accepts(setup: &Setup) -> Accepts {
    let mesh_links = setup.links.iter().map(|(_, link)| link.clone()).collect();
    Accepts { cluster: setup.cluster_cidrs.clone(), mesh_links, input: setup.input }
}

/// Forwarding, because pods' packets pass through the node. A node that forwards takes no default route from router
/// advertisements any more, and forgets those that it has, unless it is told to (`accept_ra` in
/// `Documentation/networking/ip-sysctl.rst`). IPv6 on the mesh links, which may be off for new links. Loose source checking on the mesh, because each
/// direction of a pair changes slots by itself: a packet may come in by one link while the route back leads
/// out of the other.
fn sysctls(setup: &Setup) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    let mut set = |name: String, value: &str| sysctls.insert(name, value.to_owned());
    if setup.cluster_cidrs.iter().any(IpNetwork::is_ipv4) {
        set("net/ipv4/ip_forward".to_owned(), "1");
        for (_, link) in setup.links.iter() {
            set(format!("net/ipv4/conf/{link}/rp_filter"), "2");
        }
    }
    if setup.cluster_cidrs.iter().any(IpNetwork::is_ipv6) {
        set("net/ipv6/conf/all/forwarding".to_owned(), "1");
        for link in &setup.router_links {
            set(format!("net/ipv6/conf/{link}/accept_ra"), "2");
        }
        for (_, link) in setup.links.iter() {
            set(format!("net/ipv6/conf/{link}/disable_ipv6"), "0");
        }
    }
    sysctls
}

fn device(world: &World, setup: &Setup, underlay: &Underlay, slot: Slot) -> MeshLink {
    let own_nat = setup.nat;
    let peer = |member: &Member| Peer {
        endpoint: setup.path(member, slot).endpoint,
        roaming: setup.path(member, slot).follow,
        allowed_ips: if setup.is_barred(member, slot) {
            peer_mesh_addresses(member).collect()
        } else {
            allowed_ips(member)
        },
        keepalive: match member.keepalive {
            Some(0) => None,
            Some(seconds) => Some(seconds),
            None => (own_nat || member.nat).then_some(NAT_KEEPALIVE),
        },
        preshared: setup.preshared.get(&(member.uid.clone(), slot)).copied(),
    };
    let limits = |member| Slot::ALL.map(|slot| mtu_limits(member, setup, underlay, slot).largest);
    let mtus = world.peers.values().flat_map(limits);
    MeshLink {
        link: setup.links.get(slot).clone(),
        // The widest path's, so that probes of its size fit: narrower ones are held by the MTU of their routes.
        mtu: mtus.chain([pod_mtu(underlay)]).max().unwrap_or(MIN_MTU),
        up: true,
        addresses: world.own.iter().flat_map(mesh_addresses).collect(),
        key: Some(*setup.keys.get(slot)),
        port: *setup.ports.get(slot),
        peers: world.peers.values().map(|member| (member.state.slots.get(slot).key, peer(member))).collect(),
    }
}

/// What is sent to a peer and accepted from it: its podCIDRs and its accepted node addresses.
fn allowed_ips(member: &Member) -> BTreeSet<IpNetwork> {
    let addresses = member.addresses.iter().map(|address| prefix::host(*address));
    member.pod_cidrs.iter().copied().chain(addresses).collect()
}

/// A peer's addresses in the mesh, one for each podCIDR.
fn peer_mesh_addresses(member: &Member) -> impl Iterator<Item = IpNetwork> {
    member.pod_cidrs.iter().map(|pod_cidr| prefix::host(prefix::first_usable(*pod_cidr)))
}

/// The node's own addresses in the mesh, one for each podCIDR.
fn mesh_addresses(own: &Own) -> impl Iterator<Item = IpNetwork> {
    own.pod_cidrs.iter().map(|pod_cidr| prefix::host(prefix::first_usable(*pod_cidr)))
}

/// The address that the node itself uses towards pods on other nodes: its Node address, which is what a pod on
/// the host network sees of itself; its mesh address where that one was not accepted.
fn source(own: &Own, ipv4: bool) -> Option<IpAddr> {
    own.address(ipv4)
        .or_else(|| mesh_addresses(own).map(|address| address.ip()).find(|address| address.is_ipv4() == ipv4))
}

fn routes(world: &World, setup: &Setup, underlay: &Underlay) -> BTreeSet<Route> {
    let mut routes = BTreeSet::new();
    for member in world.peers.values() {
        peer_routes(&mut routes, world, member, setup, Some(peer_mtu(member, setup, underlay)));
    }
    for cluster in &setup.cluster_cidrs {
        let unreachable = Route {
            table: MAIN_TABLE,
            destination: *cluster,
            metric: UNREACHABLE_METRIC,
            via: Via::Unreachable,
        };
        routes.insert(unreachable);
    }
    routes
}

/// The routes to one peer, by either slot. Where a slot is barred they are to the peer's mesh addresses alone, and then by
/// the other slot as well, or the more specific ones would win there; what pods send finds no route but the
/// unreachable one.
fn peer_routes(
    routes: &mut BTreeSet<Route>,
    world: &World,
    member: &Member,
    setup: &Setup,
    mtu: Option<u32>,
) {
    let active = setup.active_slot(member);
    let barred = Slot::ALL.into_iter().any(|slot| setup.is_barred(member, slot));
    for slot in [active, active.other()] {
        let metric = if slot == active { PEER_METRIC } else { RESERVE_METRIC };
        let pods = member.pod_cidrs.iter().copied().filter(|_| !setup.is_barred(member, slot));
        for destination in pods.chain(peer_mesh_addresses(member).filter(|_| barred)) {
            let source = world.own.as_ref().and_then(|own| source(own, destination.is_ipv4()));
            let via = Via::Link { link: setup.links.get(slot).clone(), source, mtu };
            routes.insert(Route { table: MAIN_TABLE, destination, metric, via });
        }
    }
    let Some(carrying) = setup.carrying_slot(member) else { return };
    for address in &member.addresses {
        // No source: these routes are for pods, which have their own.
        let via = Via::Link { link: setup.links.get(carrying).clone(), source: None, mtu };
        let destination = prefix::host(*address);
        routes.insert(Route { table: setup.table, destination, metric: PEER_METRIC, via });
    }
}

/// Only pods use the mesh's table: the node's own traffic to other nodes, including the tunnel's datagrams and the API
/// server's, stays on the underlay.
///
/// What goes to a pod looks up the main table before other programs' rules, such as those of VPNs and of cloud agents that
/// look up a table of theirs for everything from the node's address. It always ends there, with the unreachable route.
fn rules(world: &World, setup: &Setup) -> BTreeSet<Rule> {
    let own = world.own.iter().flat_map(|own| own.pod_cidrs.iter());
    let from_pods = own.map(|pod_cidr| Rule {
        priority: setup.rule_priority,
        from: *pod_cidr,
        to: prefix::any(pod_cidr.is_ipv4()),
        table: setup.table,
    });
    let to_pods = setup.cluster_cidrs.iter().map(|cluster| Rule {
        priority: setup.rule_priority + 1,
        from: prefix::any(cluster.is_ipv4()),
        to: *cluster,
        table: MAIN_TABLE,
    });
    from_pods.chain(to_pods).collect()
}
