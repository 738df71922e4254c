//! The daemon's configuration: one table of options, three sources, one validated value.

mod options;
mod read;
mod value;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use keyring::PerSlot;
use keyring::rotation::RotationPolicy;
use plan::names::Host;
use plan::network::{LinkName, MeshInput};
use tunnel::OffloadOption;

use crate::device::BackendOption;

pub use options::{OPTIONS, OptionSpec, reference};
pub(crate) use value::time;

pub use read::{ConfigError, Source, Sources, from_sources};

/// How private keys are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyStorage {
    /// On a tmpfs, so that they can't be stolen with the disk.
    Tmpfs,
    /// Encrypted under a key supplied by the operator.
    Sealed(SealingSource),
    /// Unencrypted on disk.
    PlainOnDisk,
}

/// Where the operator's sealing key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealingSource {
    /// In a file.
    File(PathBuf),
    /// A systemd credential: a file of this name in the directory `CREDENTIALS_DIRECTORY` (systemd.exec(5)).
    Credential(String),
}

/// The validated configuration.
#[expect(clippy::struct_excessive_bools, reason = "one for each option that is true or false")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the Node that this daemon runs on.
    pub node_name: String,
    /// Kubeconfig file; none uses the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The cluster's pod CIDRs. Packets with such an address never leave a node unencrypted.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// The cluster's service CIDRs.
    pub service_cidrs: Vec<IpNetwork>,
    /// CIDRs that node addresses must be in; empty allows any.
    pub node_cidrs: Vec<IpNetwork>,
    /// Whether nodes that have never proved their keys are accepted.
    pub accept_unproven: bool,
    /// Ranges of nodes that never run meshd.
    pub open_node_cidrs: Vec<IpNetwork>,
    /// Whether pods must not send to external addresses of Nodes that no member holds.
    pub close_external_ips: bool,
    /// Whether iptables' INPUT is opened on the mesh links for everything, or for what the mesh needs alone.
    pub input_from_pods: bool,
    /// Whether the guard's table belongs to the daemon, where the kernel has that.
    pub guard_owner: bool,
    /// Further API server addresses that only control-plane nodes may claim.
    pub api_servers: BTreeSet<IpAddr>,
    /// Further addresses, or names of such, at which peers reach this node.
    pub endpoints: Vec<Host>,
    /// Whether this node is behind NAT: peers then follow the source address of its packets.
    pub nat: bool,
    /// Name of each slot's interface.
    pub links: PerSlot<LinkName>,
    /// UDP port of each slot.
    pub ports: PerSlot<u16>,
    /// Which WireGuard implementation to use.
    pub backend: BackendOption,
    /// Whether the kernel's devices are to receive in threads of their own.
    pub threaded_napi: bool,
    /// Whether engines leave batches of datagrams to the kernel.
    pub udp_offload: OffloadOption,
    /// Whether engines exchange batches of packets with the kernel.
    pub tun_offload: OffloadOption,
    /// MTU of the mesh; none derives it from the route to each endpoint.
    pub mtu: Option<u32>,
    /// Number of the routing table for peers' node addresses.
    pub table: u32,
    /// Priority of the policy rules that look that table up; those for packets to pods have the next one.
    pub rule_priority: u32,
    /// UDP port of the control channel inside the tunnel.
    pub control_port: u16,
    /// UDP ports that this node leases as a relay.
    pub relay_ports: RangeInclusive<u16>,
    /// Bytes a second that it forwards as a relay; a pair of nodes gets half of it at most.
    pub relay_rate: u64,
    /// How often the path to each peer is probed; zero never.
    pub probe_interval: Duration,
    /// When and how this node's keys are replaced.
    pub rotation: RotationPolicy,
    /// Whether and how preshared keys are agreed on with peers.
    pub pq: keyring::pq::PqSettings,
    /// Directory of the key file.
    pub key_dir: PathBuf,
    /// How private keys at rest are protected.
    pub key_storage: KeyStorage,
    /// Directory of what must survive a reboot.
    pub state_dir: PathBuf,
    /// Directory of the daemon's control socket and of the CNI plugin's node file.
    pub run_dir: PathBuf,
    /// Directory of the WireGuard control sockets that `wg` reads.
    pub wireguard_dir: PathBuf,
    /// Directory of the kernel's sysctls, with those of the network below `net`.
    pub sysctl_dir: PathBuf,
    /// Directory from which the container runtime reads network configurations.
    pub cni_conf_dir: PathBuf,
    /// Directory of the container runtime's CNI plugins.
    pub cni_bin_dir: PathBuf,
    /// Address of health and metrics.
    pub listen: SocketAddr,
    /// Whether metrics have series for each peer.
    pub metrics_per_peer: bool,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Log filter, in `tracing`'s syntax.
    pub log_filter: String,
}

impl Config {
    /// What is accepted on the mesh links for the node itself where INPUT drops.
    pub const fn mesh_input(&self) -> MeshInput {
        if self.input_from_pods { MeshInput::Everything } else { MeshInput::Control(self.control_port) }
    }
}
