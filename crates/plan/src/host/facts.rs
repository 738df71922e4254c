//! What is read of a node, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::network::LinkName;

/// A node as it is beside the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Base chains of others that drop what no rule of theirs accepts, and don't name a link of the mesh or of pods. Those
    /// that iptables (nft variant) calls FORWARD and INPUT are not among them: they get rules of the daemon's.
    pub chains: Vec<DroppingChain>,
    /// Routes of others in the main table with a destination in the cluster's pod ranges, but for those of the mesh links.
    pub routes: Vec<ForeignRoute>,
    /// Links to other network namespaces that the CNI plugin did not make.
    pub veths: BTreeSet<ForeignVeth>,
    /// Policy rules of others, in the order in which they are matched.
    pub rules: Vec<ForeignRule>,
    /// Kernel settings by name below `/proc/sys`, as far as they exist.
    pub sysctls: BTreeMap<String, String>,
    /// Links with a default route from router advertisements that the kernel itself takes (`accept_ra` is not 0: other
    /// programs than the kernel do without it).
    pub router_links: BTreeSet<LinkName>,
    /// Links that default routes lead to.
    pub default_links: BTreeSet<String>,
    /// Names of network configurations in the directory of the container runtime.
    pub cni_files: BTreeSet<String>,
    /// Directories of the container runtime that the daemon may not write to, with the user that owns them.
    pub closed_directories: Vec<(PathBuf, u32)>,
    /// Whether `/dev/net/tun` is there.
    pub tun: bool,
    /// Unix time in seconds.
    pub unix_seconds: u64,
    /// What else manages the node's network and may take away routes, rules or links that it did not make.
    pub managers: BTreeSet<NetworkManager>,
    /// The daemon's `SELinux` context, if that enforces its policy.
    pub selinux: Option<String>,
}

/// A base chain that drops what no rule of its own accepts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DroppingChain {
    /// What it filters.
    pub hook: FilterHook,
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whether it is of the legacy variant of iptables.
    pub legacy: bool,
}

/// What a chain filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FilterHook {
    /// Packets for the node itself.
    Input,
    /// Packets that the node forwards.
    Forward,
}

/// A route of another program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRoute {
    /// Destination.
    pub destination: IpNetwork,
    /// Metric; the lower one wins.
    pub metric: u32,
    /// The program that made it, as a number of `rtm_protocol`.
    pub protocol: u8,
    /// The link that it leads to, if there is one.
    pub link: Option<String>,
}

/// A link of another program whose other end is in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignVeth {
    /// Its name.
    pub link: String,
    /// The bridge that it is a port of, if it is.
    pub bridge: Option<String>,
}

/// A policy rule of another program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignRule {
    /// Priority.
    pub priority: u32,
    /// Source; length 0 is any.
    pub from: IpNetwork,
    /// Destination; length 0 is any.
    pub to: IpNetwork,
    /// The table that is looked up; none if the rule ends otherwise.
    pub table: Option<u32>,
    /// Whether it holds for some packets only, by a mark, a link or something else that is not an address.
    pub conditional: bool,
}

/// A program that manages networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkManager {
    /// systemd-networkd, not told to leave foreign routes and rules alone.
    SystemdNetworkd,
    /// `NetworkManager`, not told to leave the links of pods and of the mesh alone.
    NetworkManager,
}
