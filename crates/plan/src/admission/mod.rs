//! Which nodes are admitted to the mesh: validates what all Nodes publish, with a reason for every refusal.
//!
//! Decisions depend on the whole set of Nodes and on the [`Ledger`], never on the order of arrival. A key belongs to the
//! node that proves it. The node that held a podCIDR before keeps it; between newcomers the older Node wins, because the
//! API server alone sets a Node's age. A contested address goes to the node that was reached there, whatever its age.

mod addresses;
mod admitter;
mod announcement;
mod claims;
mod contenders;
mod keys;
mod ledger;
mod part;
mod reason;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PublicKey, Slot};
use serde::{Deserialize, Serialize};

use crate::annotation::{Endpoints, State};
use crate::names::{HostName, Resolved};
use crate::node::{NodeName, NodeRecord, NodeUid};
use crate::renewal::Renewal;
use crate::whereabouts::Heard;
use admitter::{Admitter, Candidate};
pub(crate) use announcement::Announcement;
pub use announcement::SETTLE;
use claims::Claims;
pub use keys::GENERATION_STEP;
pub use ledger::{Ledger, LedgerChange};
pub use part::AdmissionPart;
pub(crate) use part::{Grounds, Index, admit_part};
pub use reason::Reason;

/// What this node is configured to accept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings, each read on its own")]
pub struct AdmissionPolicy {
    /// The cluster's pod ranges.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// The cluster's service ranges.
    pub service_cidrs: Vec<IpNetwork>,
    /// Ranges that node addresses must lie in; empty means anywhere that is not refused otherwise.
    pub node_cidrs: Vec<IpNetwork>,
    /// Whether pods must not send to external addresses of Nodes that no member holds.
    pub close_external: bool,
    /// Addresses of the API server.
    pub api_servers: BTreeSet<IpAddr>,
    /// Addresses on this node's own links; none while they are not known. What its Node lists besides, such as the external
    /// address of a cloud's NAT, is a way to reach it, not an address that it has.
    pub own_addresses: Option<BTreeSet<IpAddr>>,
    /// Public keys of this node: no other node may publish them.
    pub own_keys: BTreeSet<PublicKey>,
    /// Whether nodes that have never proved their keys are accepted; daemons of version 0.1 never do.
    pub accept_unproven: bool,
    /// What is known of the addresses that nodes claim, by node and address. An address that is missing has not been
    /// tested yet.
    pub evidence: BTreeMap<(NodeUid, IpAddr), Evidence>,
    /// Addresses that a node has proven so long ago that it gets them although others that claim them are untested.
    pub waited_for: BTreeSet<IpAddr>,
    /// What was heard of nodes besides their annotations, by UID.
    pub heard: BTreeMap<NodeUid, Heard>,
    /// What the names stand for that operators prescribe as endpoints.
    pub resolved: Resolved,
    /// Whether this node can send to IPv4 endpoints.
    pub ipv4: bool,
    /// Whether this node can send to IPv6 endpoints.
    pub ipv6: bool,
}

/// Whether a node that claims an address was reached there: it completed a handshake that this node began towards the
/// address. The source of a datagram proves nothing, since anybody can forge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It was, not long ago.
    Proven,
    /// It did not answer there.
    Unproven,
}

/// A claim that has to be tested, because more than one node claims the address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// UID of the node that claims it.
    pub uid: NodeUid,
    /// The address.
    pub address: IpAddr,
    /// The node's key in each slot.
    pub keys: PerSlot<PublicKey>,
    /// UDP port of each slot at that address.
    pub ports: PerSlot<u16>,
}

/// The nodes that are in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// This node, as the others see it; none before it has a podCIDR.
    pub own: Option<Own>,
    /// All other nodes by name.
    pub peers: BTreeMap<NodeName, Member>,
    /// Addresses of known Nodes that no member holds: pods must not send there, since it would not be encrypted.
    pub closed: BTreeSet<IpAddr>,
}

/// What is granted to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// UID of its Node.
    pub uid: NodeUid,
    /// Its pod ranges.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Its accepted node addresses.
    pub addresses: Vec<IpAddr>,
    /// Where it is, as far as the cluster says.
    pub location: Option<String>,
    /// Whether it may serve as a relay.
    pub relay: bool,
    /// Which of its keys an operator asks to replace.
    pub renewal: Option<Renewal>,
}

impl Own {
    /// The node address of an IP version by which the node itself is known to pods.
    pub fn address(&self, ipv4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4)
    }
}

/// Another node in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// UID of its Node.
    pub uid: NodeUid,
    /// Its pod ranges: inside the cluster's, disjoint from all other nodes'.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Its accepted node addresses: no other node's.
    pub addresses: Vec<IpAddr>,
    /// Its keys.
    pub state: State,
    /// Where datagrams for it go while no path to it is known.
    pub endpoint: Option<Endpoint>,
    /// The endpoints that an operator prescribes: no other is tried. There are several only if it is by a name, and none while
    /// that is looked up for the first time.
    pub prescribed: Option<Vec<Endpoint>>,
    /// The name that an operator prescribes.
    pub name: Option<HostName>,
    /// Ways to reach it, those that this node may try. The external addresses of its Node are among them.
    pub reach: Endpoints,
    /// Number of the list of endpoints that it publishes.
    pub published: u64,
    /// Where it is, as far as the cluster says: nodes at the same place reach each other at their private addresses.
    pub location: Option<String>,
    /// Whether it is behind NAT.
    pub nat: bool,
    /// Whether it may serve as a relay.
    pub relay: bool,
    /// Seconds between keepalives that an operator prescribes; zero turns them off.
    pub keepalive: Option<u16>,
}

/// An endpoint of a node, for both slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Port of slot a as an operator prescribes it, slot b being the next one; none means the ports that the
    /// node publishes.
    pub port: Option<u16>,
}

impl World {
    /// The name of the peer whose Node has this UID.
    pub fn name_of(&self, uid: &str) -> Option<&NodeName> {
        self.peers.iter().find(|(_, member)| member.uid.as_str() == uid).map(|(name, _)| name)
    }
}

impl Member {
    /// Whether it proves that it has the private keys. Proofs that are not valid are refused with the state.
    pub const fn is_proven(&self) -> bool {
        self.state.proofs.is_some()
    }

    /// Where datagrams for a slot of this node go.
    pub fn socket(&self, slot: Slot) -> Option<SocketAddr> {
        crate::paths::socket(self.endpoint?, &self.state.slots.map(|slot| slot.port), slot)
    }
}

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The node.
    pub node: NodeName,
    /// Its UID.
    pub uid: NodeUid,
    /// Why.
    pub reason: Reason,
    /// Whether the node is in the mesh nevertheless: with what it published before, or without the refused part.
    pub stays: bool,
}

/// The outcome of [`admit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Who is in the mesh.
    pub world: World,
    /// The ledger for the next call.
    pub ledger: Ledger,
    /// What was refused, sorted by node.
    pub rejected: Vec<Rejected>,
    /// Nodes that have published nothing yet, or have no podCIDR yet.
    pub pending: Vec<NodeName>,
    /// Claims to test.
    pub to_test: Vec<Claim>,
}

/// Decides who is in the mesh. `records` are all Nodes that count, in any order; `ledger` is the one that the last call
/// returned. Every annotation is taken as new.
pub fn admit<'a>(
    policy: &AdmissionPolicy,
    own: &NodeName,
    records: impl IntoIterator<Item = &'a NodeRecord>,
    ledger: &'a Ledger,
) -> Admission {
    static NOTHING_READ: BTreeMap<NodeUid, Announcement> = BTreeMap::new();
    static NOTHING_CLOSED: BTreeSet<IpAddr> = BTreeSet::new();
    admit_announced(policy, own, records, &NOTHING_READ, (ledger, &NOTHING_CLOSED))
}

/// The same, with what was read before of the Nodes' annotations, by UID, and with addresses that are known to be those of
/// Nodes that are not among the records.
pub(crate) fn admit_announced<'a>(
    policy: &AdmissionPolicy,
    own: &NodeName,
    records: impl IntoIterator<Item = &'a NodeRecord>,
    announcements: &'a BTreeMap<NodeUid, Announcement>,
    (ledger, outside): (&'a Ledger, &'a BTreeSet<IpAddr>),
) -> Admission {
    let candidate = |record: &'a NodeRecord| {
        let read = announcements.get(&record.uid).filter(|found| found.is_of(record));
        let read = read
            .map_or_else(|| Cow::Owned(Announcement::read(record, ledger, Duration::ZERO)), Cow::Borrowed);
        let has_proved = ledger.has_proved(&record.uid) || read.is_proven();
        Candidate { record, entry: ledger.entry(&record.uid), announcement: read, has_proved }
    };
    let mut candidates: Vec<Candidate<'_>> = records.into_iter().map(candidate).collect();
    // Those with proofs first, so that no other keeps a key from them; then incumbents, then by age. The UID decides between
    // Nodes created in the same second.
    candidates.sort_by(|one, other| one.rank(own).cmp(&other.rank(own)));
    let mut names = BTreeSet::new();
    candidates.retain(|candidate| names.insert(&candidate.record.name));
    let claims = Claims::of_incumbents(&candidates, own, policy.accept_unproven);
    let mut admitter = Admitter { policy, own, claims, accepted: BTreeMap::new(), out: Admission::default() };
    for candidate in &candidates {
        admitter.consider(candidate);
    }
    admitter.settle_addresses(&candidates, outside);
    let mut out = admitter.out;
    out.rejected
        .sort_by(|one, other| (&one.node, one.reason.code()).cmp(&(&other.node, other.reason.code())));
    out.pending.sort();
    out
}

#[cfg(test)]
mod proof_tests;
#[cfg(test)]
pub(crate) mod tests;
