//! Configuration of the daemon: one table of options, three sources, one validated value.

mod options;
mod read;
mod value;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use keyring::PerSlot;
use keyring::rotation::RotationPolicy;
use plan::network::LinkName;

use crate::device::Wish;

pub use options::{OPTIONS, OptionSpec, reference};
pub(crate) use value::time;

pub use read::{ConfigError, Source, Sources, from_sources};

/// How private keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyStorage {
    /// On a tmpfs: a key that is on no disk can't be stolen with it.
    Tmpfs,
    /// Encrypted under a key that the operator supplies.
    Sealed(SealingSource),
    /// As they are.
    PlainOnDisk,
}

/// Where the operator's key for sealing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealingSource {
    /// In a file.
    File(PathBuf),
    /// A systemd credential: a file of this name in the folder that `CREDENTIALS_DIRECTORY` names (systemd.exec(5)).
    Credential(String),
}

/// Everything that the daemon is told from outside, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the Node that this daemon runs on.
    pub node_name: String,
    /// Kubeconfig file; none means the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// The cluster's pod ranges. Whatever lies in them never leaves a node in clear.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// The cluster's service ranges.
    pub service_cidrs: Vec<IpNetwork>,
    /// Ranges that node addresses must lie in; empty means anywhere.
    pub node_cidrs: Vec<IpNetwork>,
    /// Addresses of the API server that ordinary nodes may never claim, beside those that it names itself.
    pub api_servers: BTreeSet<IpAddr>,
    /// Addresses that peers reach this node at; empty means those of its Node that are on its own links.
    pub endpoints: Vec<IpAddr>,
    /// Whether this node is behind NAT: peers then follow the address that it really sends from.
    pub nat: bool,
    /// Name of each slot's interface.
    pub links: PerSlot<LinkName>,
    /// UDP port of each slot.
    pub ports: PerSlot<u16>,
    /// Who carries the packets.
    pub backend: Wish,
    /// Whether the kernel's devices are to receive in threads of their own.
    pub threaded_napi: bool,
    /// MTU of the mesh; none computes it from the route to each endpoint.
    pub mtu: Option<u32>,
    /// Number of the routing table for peers' node addresses.
    pub table: u32,
    /// Priority of the policy rules that look that table up.
    pub rule_priority: u32,
    /// UDP port of the control channel inside the tunnel.
    pub control_port: u16,
    /// How often the way to each peer is measured; zero never.
    pub probe_interval: Duration,
    /// When and how this node's keys are replaced.
    pub rotation: RotationPolicy,
    /// Whether and how preshared keys are agreed on with peers.
    pub pq: keyring::pq::PqSettings,
    /// Folder of the key file.
    pub key_dir: PathBuf,
    /// What keeps the key file from whoever gets hold of the disk.
    pub key_storage: KeyStorage,
    /// Folder for what must survive a reboot: the last known peers.
    pub state_dir: PathBuf,
    /// Folder for the daemon's socket and what the CNI plugin reads.
    pub run_dir: PathBuf,
    /// Folder of the WireGuard control sockets that `wg` looks for.
    pub wireguard_dir: PathBuf,
    /// Folder of the kernel's settings, with those of the network below `net`.
    pub sysctl_dir: PathBuf,
    /// Folder that the container runtime reads network configurations from.
    pub cni_conf_dir: PathBuf,
    /// Folder that the container runtime finds plugins in.
    pub cni_bin_dir: PathBuf,
    /// Where health and metrics are served.
    pub listen: SocketAddr,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Which log lines are written, in `tracing`'s filter syntax.
    pub log_filter: String,
}
