//! The daemon's state as one value: `meshd status`, metrics and readiness are views of it. Pure, and without anything that only
//! runs on a node, so that a program elsewhere can read it.

pub mod mesh;
pub mod ping;
pub mod pq;
pub mod progress;
pub mod reach;
pub mod redact;
pub mod rotation;
pub mod summary;
pub mod table;
pub mod totals;
pub mod trail;
pub mod verify;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PublicKey, Slot};
use serde::{Deserialize, Serialize};

use pq::{PairStatus, PqSlotStatus};
use reach::Reach;
use rotation::RotationStatus;
use summary::Summary;
use totals::{PeerTotals, RoundTrips};

/// The mesh as one node's daemon sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name of this node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Unix time, in seconds, at which this status was taken.
    #[serde(default)]
    pub taken_at: u64,
    /// Backend of new devices: `kernel` or `userspace`.
    pub backend: String,
    /// Why it was selected.
    pub backend_reason: String,
    /// How the NAT in front of this node maps addresses, as far as peers have told it.
    #[serde(default)]
    pub nat: plan::annotation::Mapping,
    /// Whether pods can be attached. Whether they reach those on other nodes is in `peers`.
    pub ready: bool,
    /// What is missing until then, one item each.
    pub waiting_for: Vec<String>,
    /// Generation of this node's keys.
    pub generation: u64,
    /// State of their rotation.
    pub rotation: RotationStatus,
    /// Seconds after which preshared keys are renewed, where that is more than `pq-interval` because of the number of peers.
    #[serde(default)]
    pub stretched_pq_interval: Option<u64>,
    /// This node's devices.
    pub slots: PerSlot<Option<SlotStatus>>,
    /// This node's pod ranges.
    pub pod_cidrs: Vec<IpNetwork>,
    /// State of the guard.
    pub guard: GuardStatus,
    /// Connection to the API server.
    pub api: ApiStatus,
    /// The control channel inside the tunnel.
    pub control: ControlStatus,
    /// Peers' messages about preshared keys that this node refused, by reason.
    #[serde(default)]
    pub preshared_refused: BTreeMap<String, u64>,
    /// Chained plugins because of which CNI 1.1.0 is not offered to the runtime.
    #[serde(default)]
    pub cni_limited_by: Vec<String>,
    /// All peers in a few numbers.
    #[serde(default)]
    pub summary: Summary,
    /// What was exchanged with all peers, also those that have left.
    #[serde(default)]
    pub totals: PeerTotals,
    /// Round-trip times inside the tunnel, of all answered probes.
    #[serde(default)]
    pub round_trips: RoundTrips,
    /// Other nodes in the mesh: all, or those that were asked for.
    pub peers: Vec<PeerStatus>,
    /// Nodes that have not published keys yet.
    pub pending: Vec<String>,
    /// Nodes that were rejected, as a whole or in part.
    pub rejected: Vec<RejectedStatus>,
    /// Nodes that the API server no longer lists but that are kept for now (the brake).
    pub kept: Vec<String>,
    /// Steps that failed in the last reconciliation and will be retried.
    pub failures: Vec<String>,
    /// What keeps the mesh from working on this host.
    #[serde(default)]
    pub findings: Vec<FindingStatus>,
    /// Pods that another network plugin attached, and which are outside the mesh.
    #[serde(default)]
    pub pods_outside: usize,
    /// Protections of the daemon's memory that could not be set up.
    pub missing_protections: Vec<String>,
    /// Files that were found damaged when the daemon started; they are kept.
    #[serde(default)]
    pub damaged_files: Vec<String>,
    /// Packets and datagrams that the userspace engines dropped, by reason.
    #[serde(default)]
    pub tunnel_dropped: BTreeMap<String, u64>,
    /// This node as a relay; none while it is not one.
    #[serde(default)]
    pub relay: Option<RelayStatus>,
    /// Leases of this node at relays.
    #[serde(default)]
    pub leases: Vec<LeaseStatus>,
    /// Names that stand for endpoints of peers or of this node.
    #[serde(default)]
    pub names: Vec<NameStatus>,
    /// Counters since the daemon started.
    pub counters: Counters,
}

/// What a node forwards for others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Leases that both ends have asked for: one for each pair of nodes and slot.
    pub leases: usize,
    /// Those that wait for the other end.
    pub waiting: usize,
    /// Datagrams that were forwarded.
    pub datagrams: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes: u64,
    /// Datagrams that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Leases that were refused: the node that asked has as many as it may, or no port was free.
    #[serde(default)]
    pub refused_leases: u64,
    /// Leased ports that could not be opened, with the cause.
    pub closed_ports: BTreeMap<u16, String>,
}

/// A lease that this node uses or looks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The node at the other end.
    pub node: String,
    /// The slot of the tunnel.
    pub slot: Slot,
    /// The node that relays; none while there is no lease.
    pub relay: Option<String>,
    /// The UDP port there that leads to the other end.
    pub port: Option<u16>,
    /// Why there is no lease.
    pub trouble: Option<String>,
}

/// A name that stands for endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// The addresses that are used.
    pub addresses: Vec<IpAddr>,
    /// Why the last lookup failed. The addresses are those of the last one that did not.
    pub trouble: Option<String>,
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
    /// Its backend. It may differ from that of new devices until its key is replaced.
    pub backend: String,
    /// What the kernel does with batches of packets; none where the backend is the kernel itself.
    #[serde(default)]
    pub offload: Option<OffloadUse>,
}

/// Whether the kernel cuts and joins batches of packets for an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadUse {
    /// Batches of datagrams to and from its UDP sockets.
    pub udp: bool,
    /// Batches of packets to and from its TUN device.
    pub tun: bool,
    /// Batches that the kernel refused, and whose packets were sent one by one.
    pub refused: u64,
}

/// The guard and its drop counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Whether its table was in place and unchanged when last checked.
    pub in_place: bool,
    /// Packets with a pod address that would have left this node unencrypted.
    pub dropped_out: u64,
    /// Whether its table belongs to the daemon, so that no other program can change it.
    #[serde(default)]
    pub owned: bool,
    /// Packets with a pod address that arrived outside the mesh.
    pub dropped_in: u64,
    /// Packets from this node's pods with a spoofed source address.
    pub dropped_spoofed: u64,
    /// Packets from pods to closed addresses of Nodes.
    #[serde(default)]
    pub dropped_closed: u64,
    /// How many addresses of Nodes are closed to pods, because no member of the mesh holds them.
    #[serde(default)]
    pub closed_addresses: usize,
    /// Ranges in which no address of a Node is closed.
    #[serde(default)]
    pub open_node_cidrs: Vec<IpNetwork>,
}

/// Whether the cluster's admission policy restricts a daemon to its own Node, by a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fence {
    /// Not tested yet, or there is no other Node to test with.
    #[default]
    Unknown,
    /// A change of another Node was refused.
    InPlace,
    /// A change of another Node would have been allowed: a stolen token of this node could forge other nodes' keys.
    Missing,
}

/// The daemon's connection to the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiStatus {
    /// Whether a complete list of Nodes has been received since the daemon started.
    pub listed: bool,
    /// Error of the last watch; none while it works.
    pub error: Option<String>,
    /// Whether this node's annotations are published and up to date.
    pub published: bool,
    /// Whether the admission policy restricts this daemon to its own Node.
    pub trust_policy: Fence,
}

/// The control channel inside the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlStatus {
    /// Messages received from peers.
    pub received: u64,
    /// Datagrams received that open the session of a peer.
    #[serde(default)]
    pub session_messages: u64,
    /// Messages from other addresses than the peers' mesh addresses; they are dropped.
    pub unknown_senders: u64,
    /// Datagrams with a peer's source address that were dropped, by reason.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    /// Messages to peers that were given up before the session was open, because too many waited for that or they were long.
    #[serde(default)]
    pub unsent: u64,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// Whether it is reached.
    #[serde(default)]
    pub state: Reach,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Its node addresses that pods reach through the tunnel.
    pub addresses: Vec<IpAddr>,
    /// Slot used for traffic to it.
    pub active: Option<Slot>,
    /// MTU of the routes to it, in bytes.
    pub mtu: Option<u32>,
    /// Its generation.
    pub generation: u64,
    /// Whether it has proved that it has the private keys.
    #[serde(default)]
    pub proven: bool,
    /// Round-trip time inside the tunnel in microseconds; none if the last probe was not answered.
    pub round_trip_microseconds: Option<u64>,
    /// What the MTU comes from: `route`, `probed` (larger packets are lost), `floor` (the smallest that is allowed), `unknown`.
    #[serde(default)]
    pub mtu_source: String,
    /// Whether packets of the MTU's size arrive; none while unknown. If not, not even the smallest size that is allowed does.
    pub full_size_passes: Option<bool>,
    /// State of the preshared key exchange with it.
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
    /// Its endpoint.
    pub endpoint: Option<SocketAddr>,
    /// What kind of endpoint the peer answers at, and the relay as in `relayed via n1`; none while it is searched for.
    #[serde(default)]
    pub path: Option<String>,
    /// Seconds since the last completed handshake.
    pub handshake_age: Option<u64>,
    /// Unix time, in seconds, of the last completed handshake, by this node's clock at that moment.
    #[serde(default)]
    pub last_handshake: Option<u64>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
    /// Authenticated packets that came from another address than the endpoint, while the peer is not followed.
    pub endpoint_drifts: u64,
    /// Datagrams from its endpoint that did not authenticate; zero with the kernel's WireGuard, which does not count them.
    #[serde(default)]
    pub forged: u64,
    /// The preshared key.
    #[serde(default)]
    pub pq: PqSlotStatus,
}

/// A node that was rejected, as a whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedStatus {
    /// The node.
    pub node: String,
    /// Machine-readable reason.
    pub code: String,
    /// Human-readable reason.
    pub reason: String,
    /// Whether the node stays in the mesh, with its last valid state or without the rejected part.
    pub stays: bool,
}

/// Something about the host that keeps the mesh from working. docs/host-checks.md lists the codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingStatus {
    /// Stable code.
    pub code: String,
    /// What was found and what it does.
    pub sentence: String,
    /// The command that fixes it.
    pub fix: String,
}

/// Monotonic counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Reconciliations.
    pub reconciles: u64,
    /// Of these, those that compared the whole network; the others compared what was new, or only looked whether that was wanted.
    #[serde(default)]
    pub full_reconciles: u64,
    /// Steps performed successfully.
    pub steps: u64,
    /// Steps that failed.
    pub failed_steps: u64,
    /// Steps that were tried again after a failure.
    #[serde(default)]
    pub retried_steps: u64,
    /// Steps for changes of which no notice had told, found by a turn that was taken because it was time.
    #[serde(default)]
    pub missed_changes: u64,
    /// Devices that disappeared and were recreated.
    pub device_restarts: u64,
    /// How often the brake held a mass removal of peers.
    pub brakes: u64,
    /// Lines about peers that are not in the audit trail because the peer exceeded its quota.
    #[serde(default)]
    pub audit_omitted: u64,
    /// Events that are not in the audit trail because it could not be written for too long.
    #[serde(default)]
    pub audit_lost: u64,
    /// Kubernetes Events that were not created because too many waited for the API server.
    #[serde(default)]
    pub events_dropped: u64,
    /// Reports of peers about where this node's datagrams come from, given up because there were others.
    #[serde(default)]
    pub reports_displaced: u64,
    /// Lookups of names that were answered.
    #[serde(default)]
    pub names_resolved: u64,
    /// Those that failed.
    #[serde(default)]
    pub names_failed: u64,
}

/// Output of `meshd plan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Each step as text.
    pub steps: Vec<String>,
    /// Each step as data.
    pub ops: Vec<serde_json::Value>,
    /// Why the plan as a whole would be refused.
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
            count => writeln!(f, "{count} steps; none performed."),
        }
    }
}
