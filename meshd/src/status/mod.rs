//! What the daemon knows, as one value: status, metrics and readiness are views of it.

pub mod pq;
pub mod rotation;
pub mod table;

use std::fmt;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PublicKey, Slot};
use serde::{Deserialize, Serialize};

use crate::api::fence::Fence;
use pq::{PairStatus, PqSlotStatus};
use rotation::RotationStatus;

/// The mesh as one node's daemon sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of this node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Which WireGuard carries the packets: `kernel` or `userspace`.
    pub backend: String,
    /// Why this one.
    pub backend_reason: String,
    /// Whether pods can be attached and reach the mesh.
    pub ready: bool,
    /// Why not, one reason each.
    pub waiting_for: Vec<String>,
    /// Generation of this node's keys.
    pub generation: u64,
    /// How their rotation stands.
    pub rotation: RotationStatus,
    /// This node's devices.
    pub slots: PerSlot<Option<SlotStatus>>,
    /// This node's pod ranges.
    pub pod_cidrs: Vec<IpNetwork>,
    /// The guard.
    pub guard: GuardStatus,
    /// The API server.
    pub api: ApiStatus,
    /// The control channel inside the tunnel.
    pub control: ControlStatus,
    /// Other nodes in the mesh.
    pub peers: Vec<PeerStatus>,
    /// Nodes that have not published anything yet.
    pub pending: Vec<String>,
    /// Nodes, or parts of what they publish, that were refused.
    pub rejected: Vec<RejectedStatus>,
    /// Nodes that the API server no longer lists but that are kept for now.
    pub kept: Vec<String>,
    /// Steps that failed in the last reconciliation; they are tried again.
    pub failures: Vec<String>,
    /// Protections of the daemon's memory that could not be had.
    pub shortfalls: Vec<String>,
    /// What has been counted since the daemon started.
    pub counters: Counters,
}

/// One of this node's devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Interface.
    pub link: String,
    /// Public key.
    pub key: PublicKey,
    /// UDP port.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// Which WireGuard carries its packets: another one than new devices get until its key is replaced.
    pub backend: String,
}

/// The guard and what it dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Whether its table stood, unchanged, when it was last looked at.
    pub stands: bool,
    /// Packets with a pod address that would have left this node in clear.
    pub dropped_out: u64,
    /// Packets with a pod address that came from outside the mesh.
    pub dropped_in: u64,
    /// Packets of this node's pods with a source address that is not theirs.
    pub dropped_spoofed: u64,
}

/// How the daemon gets on with the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiStatus {
    /// Whether a complete list of Nodes has been seen since the daemon started.
    pub listed: bool,
    /// What the last failed watch said; none while it works.
    pub error: Option<String>,
    /// Whether this node's annotations are as they should be.
    pub published: bool,
    /// Whether the admission policy keeps this daemon to its own Node.
    pub trust_policy: Fence,
}

/// The control channel inside the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlStatus {
    /// Messages from peers.
    pub heard: u64,
    /// Messages from addresses that are no peer's mesh address; they are dropped.
    pub strangers: u64,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Its node addresses that pods reach through the mesh.
    pub addresses: Vec<std::net::IpAddr>,
    /// Slot that traffic to it takes.
    pub active: Option<Slot>,
    /// MTU of the routes to it, in bytes.
    pub mtu: Option<u32>,
    /// Its generation.
    pub generation: u64,
    /// Microseconds from a question inside the tunnel to its answer; none while there is none.
    pub round_trip_microseconds: Option<u64>,
    /// Whether packets of the size of the MTU arrive; none while that is not known.
    pub full_size_passes: Option<bool>,
    /// How it stands about preshared keys.
    #[serde(default)]
    pub pq: PairStatus,
    /// Both slots.
    pub slots: PerSlot<Option<PeerSlotStatus>>,
}

/// One slot of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerSlotStatus {
    /// Its public key.
    pub key: PublicKey,
    /// Where datagrams for it go.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last completed handshake.
    pub handshake_age: Option<u64>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
    /// Authenticated packets that came from another address than the published endpoint.
    pub endpoint_drifts: u64,
    /// The preshared key.
    #[serde(default)]
    pub pq: PqSlotStatus,
}

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedStatus {
    /// The node.
    pub node: String,
    /// The reason for programs.
    pub code: String,
    /// The reason for people.
    pub reason: String,
    /// Whether the node stays in the mesh with what it published before, or without the refused part.
    pub stays: bool,
}

/// Counters that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Reconciliations.
    pub reconciles: u64,
    /// Steps performed.
    pub steps: u64,
    /// Steps that failed.
    pub failed_steps: u64,
    /// Steps that were tried again after a failure.
    #[serde(default)]
    pub retried_steps: u64,
    /// Devices that were gone and were made anew.
    pub device_restarts: u64,
    /// Times that a mass removal of peers was braked.
    pub brakes: u64,
}

/// What `meshd plan` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Each step as a line for people.
    pub steps: Vec<String>,
    /// Each step as data.
    pub ops: Vec<serde_json::Value>,
    /// Why the plan would be refused as a whole.
    pub violations: Vec<String>,
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "! {violation}")?;
        }
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        match self.steps.len() {
            0 => writeln!(f, "Nothing to change."),
            count => writeln!(f, "{count} steps; none was performed."),
        }
    }
}
