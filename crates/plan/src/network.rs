//! What the mesh makes of one node's network, as a value: the same type says what should be and what is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use keyring::{PublicKey, Slot};
use serde::{Deserialize, Serialize};

pub use wireguard::{LinkName, LinkNameError, Peer};

/// Routing protocol number on every route that the daemon owns, so that no other program's is touched
/// (`rtm_protocol`, values from 16 up are free for daemons: `include/uapi/linux/rtnetlink.h`).
pub const ROUTE_PROTOCOL: u8 = 84;

/// The network of one node as far as the mesh is concerned.
///
/// Both sides of a diff have this type: `desired` computes one, the shell observes one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The guard's rules, if its table is in place exactly as they say.
    pub guard: Option<Guard>,
    /// What the firewall chains of iptables must accept, if each of them that drops packets does.
    #[serde(default)]
    pub accepts: Option<Accepts>,
    /// Kernel settings by name below `/proc/sys`, for example `net/ipv4/ip_forward`. Observed values cover
    /// at least the names that are desired.
    pub sysctls: BTreeMap<String, String>,
    /// The WireGuard device of each slot that exists.
    pub devices: BTreeMap<Slot, MeshLink>,
    /// Routes with [`ROUTE_PROTOCOL`], except those towards pods of this node, which the CNI plugin owns.
    pub routes: BTreeSet<Route>,
    /// Policy rules with [`ROUTE_PROTOCOL`].
    pub rules: BTreeSet<Rule>,
}

impl Network {
    /// What of it does not grow with the mesh: without routes, and without the peers of the devices.
    #[must_use]
    pub fn without_peers(&self) -> Self {
        let bare = |device: &MeshLink| device.with_peers(BTreeMap::new());
        Self {
            guard: self.guard.clone(),
            accepts: self.accepts.clone(),
            sysctls: self.sysctls.clone(),
            devices: self.devices.iter().map(|(slot, device)| (*slot, bare(device))).collect(),
            routes: BTreeSet::new(),
            rules: self.rules.clone(),
        }
    }
}

/// One WireGuard device with its link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshLink {
    /// Name of the interface.
    pub link: LinkName,
    /// Bytes of the largest IP packet that the link takes.
    pub mtu: u32,
    /// Whether the link is administratively up.
    pub up: bool,
    /// Addresses on the link, with the prefix length that they have there. Link-local ones don't count.
    pub addresses: BTreeSet<IpNetwork>,
    /// Public half of the device's private key; none while it has no key.
    pub key: Option<PublicKey>,
    /// UDP port that it listens on.
    pub port: u16,
    /// Its peers by public key.
    pub peers: BTreeMap<PublicKey, Peer>,
}

impl MeshLink {
    /// The same with other peers.
    #[must_use]
    pub fn with_peers(&self, peers: BTreeMap<PublicKey, Peer>) -> Self {
        let Self { link, mtu, up, addresses, key, port, peers: _ } = self;
        let (link, addresses) = (link.clone(), addresses.clone());
        Self { link, mtu: *mtu, up: *up, addresses, key: *key, port: *port, peers }
    }
}

/// An address on one of the node's links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// The address with its prefix.
    pub address: IpNetwork,
    /// Kind of the link, such as `bridge`; none for hardware.
    pub kind: Option<String>,
}

/// One route of the daemon's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Routing table; 254 is the main one.
    pub table: u32,
    /// Destination.
    pub destination: IpNetwork,
    /// Priority among routes to the same destination; the lower one wins. The kernel shows 1024 for an IPv6
    /// route that was added with 0, so every route of ours says its own.
    pub metric: u32,
    /// Where packets go.
    pub via: Via,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// Out of a link, with no gateway.
    Link {
        /// The link.
        link: LinkName,
        /// Source address of packets that the node itself sends this way; none leaves it to the kernel.
        source: Option<IpAddr>,
        /// Path MTU in bytes.
        mtu: Option<u32>,
    },
    /// Nowhere: the sender is told that the destination can't be reached.
    Unreachable,
}

/// A policy rule: packets between two prefixes look up a table first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Position among all rules; lower ones are matched first; the main table is at 32766.
    pub priority: u32,
    /// Source prefix that the rule is for; one of length 0 is any source.
    pub from: IpNetwork,
    /// Destination prefix that the rule is for, of the same family; one of length 0 is any destination.
    pub to: IpNetwork,
    /// Table that is looked up.
    pub table: u32,
}

/// What pods and the mesh need of the chains FORWARD and INPUT of iptables, where these drop what they don't know. Nothing
/// passes by this that the guard drops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepts {
    /// The cluster's pod ranges.
    pub cluster: BTreeSet<IpNetwork>,
    /// Interfaces that carry pod addresses between nodes.
    pub mesh_links: BTreeSet<LinkName>,
    /// What arrives on them for the node itself.
    pub input: MeshInput,
}

/// What arrives on the mesh links for the node itself and is accepted where INPUT drops what it does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeshInput {
    /// Everything: pods reach what the nodes listen on, as the Kubernetes network model has it.
    #[default]
    Everything,
    /// What the mesh itself needs: the control channel on this UDP port, and ICMP.
    Control(u16),
}

/// What the nft table enforces: nothing with a pod address passes outside WireGuard, in either direction, and nothing
/// from a pod leaves in the clear for a Node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// The cluster's pod ranges.
    pub cluster: BTreeSet<IpNetwork>,
    /// Interfaces that may carry pod addresses between nodes.
    pub mesh_links: BTreeSet<LinkName>,
    /// Pod ranges of this node: their traffic to the outside gets the node's address.
    pub local_pods: BTreeSet<IpNetwork>,
    /// Destinations outside the pod ranges that must see the pod's own address, or nothing at all: the
    /// service ranges and the addresses of the mesh's nodes.
    pub no_masquerade: BTreeSet<IpNetwork>,
    /// Addresses of Nodes that no member of the mesh holds: what is sent there from a pod's address is dropped, unless
    /// it leaves by the mesh.
    #[serde(default)]
    pub closed: BTreeSet<IpAddr>,
}
