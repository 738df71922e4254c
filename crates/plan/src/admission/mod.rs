//! Which nodes are admitted to the mesh: validates what all Nodes publish, with a reason for every refusal.
//!
//! Decisions depend on the whole set of Nodes and on the [`Ledger`], never on the order of arrival. A key belongs to the
//! node that proves it. The node that held a podCIDR before keeps it; between newcomers the older Node wins, because the
//! API server alone sets a Node's age. A contested address goes to the node that was reached there, whatever its age.

mod addresses;
mod announcement;
mod claims;
mod keys;
mod ledger;
mod reason;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PublicKey, Slot};
use serde::{Deserialize, Serialize};

use crate::annotation::{AnnotationError, Endpoints, State};
use crate::node::{NodeName, NodeRecord, NodeUid};
use crate::prefix;
use crate::renewal::Renewal;
use crate::whereabouts::Heard;
use addresses::{Addresses, Grant, Settled};
pub(crate) use announcement::Announcement;
pub use announcement::SETTLE;
use claims::Claims;
pub use keys::GENERATION_STEP;
pub use ledger::Ledger;
use ledger::SharedEntry;
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
    /// What was heard of nodes besides their annotations, by UID.
    pub heard: BTreeMap<NodeUid, Heard>,
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
    /// The endpoint that an operator prescribes; no other is tried.
    pub prescribed: Option<Endpoint>,
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
    let claims = Claims::of_incumbents(&candidates, policy.accept_unproven);
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

/// A Node, and what the ledger has of it.
#[derive(Debug)]
struct Candidate<'a> {
    record: &'a NodeRecord,
    entry: Option<&'a SharedEntry>,
    announcement: Cow<'a, Announcement>,
    /// Whether it proves its keys, or once did.
    has_proved: bool,
}

impl<'a> Candidate<'a> {
    /// Where it comes among all candidates.
    fn rank(&self, own: &NodeName) -> impl Ord + use<'a> {
        let proven = self.record.name == *own || self.announcement.is_proven();
        let record = self.record;
        (!proven, self.entry.is_none(), &record.created, &record.uid, &record.name)
    }

    /// The entry, if it is what a new one would be.
    fn unchanged(&self, record: &NodeRecord, addresses: &[IpAddr]) -> Option<&'a SharedEntry> {
        self.entry.filter(|entry| entry.matches(record, addresses))
    }

    /// The endpoints that the node publishes.
    fn endpoints(&self) -> Result<Endpoints, AnnotationError> {
        let Some(text) = self.record.endpoints.as_deref() else { return Ok(Endpoints::default()) };
        let same = self.entry.filter(|entry| entry.record().endpoints.as_deref() == Some(text));
        match same.and_then(SharedEntry::endpoints) {
            Some(former) => Ok(former.clone()),
            None => Endpoints::parse(text),
        }
    }
}

/// Considers one node after the other.
struct Admitter<'a> {
    policy: &'a AdmissionPolicy,
    own: &'a NodeName,
    claims: Claims,
    /// Nodes that are in the mesh, each with the record for the ledger if that is not the present one.
    accepted: BTreeMap<NodeName, Option<NodeRecord>>,
    out: Admission,
}

impl Admitter<'_> {
    fn consider(&mut self, candidate: &Candidate<'_>) {
        let record = candidate.record;
        if candidate.has_proved {
            self.out.ledger.insert_proved(record.uid.clone());
        }
        let is_own = record.name == *self.own;
        if record.pod_cidrs.is_empty() || (record.state.is_none() && !is_own) {
            self.out.pending.push(record.name.clone());
            return;
        }
        let pod_cidrs = match self.pod_cidrs(record) {
            Ok(pod_cidrs) => pod_cidrs,
            Err(reason) => return self.reject(record, reason, false),
        };
        if is_own {
            return self.admit_own(candidate, pod_cidrs);
        }
        // What replaces the record's annotations in the ledger if they were refused.
        let mut replaced = None;
        let state = match self.state(candidate) {
            Ok(state) => state,
            Err(reason) => match self.last_good(candidate) {
                Some(state) => {
                    self.reject(record, reason, true);
                    let former = replaced.get_or_insert_with(|| record.clone());
                    former.state = Some(state.render());
                    state
                }
                None => return self.reject(record, reason, false),
            },
        };
        self.claims.hold_keys(&record.uid, &state);
        self.claims.hold_prefixes(&record.uid, &pod_cidrs);
        let endpoints = match candidate.endpoints() {
            Ok(endpoints) => endpoints,
            Err(error) => {
                self.reject(record, Reason::Endpoints(error), true);
                let former = candidate.entry.and_then(SharedEntry::endpoints).cloned();
                replaced.get_or_insert_with(|| record.clone()).endpoints =
                    former.as_ref().map(Endpoints::render);
                former.unwrap_or_default()
            }
        };
        let heard = self.policy.heard.get(&record.uid);
        let published = endpoints.sequence;
        let later = heard.and_then(|heard| heard.told.clone()).filter(|told| told.sequence > published);
        let endpoints = later.unwrap_or(endpoints);
        let nat = endpoints.nat;
        let prescribed = self.prescribed(record);
        let mut reach = self.reach(record, endpoints);
        if let Some(heard) = heard {
            self.add_hearsay(&mut reach, heard, state.slots.map(|slot| slot.port));
        }
        let member = Member {
            uid: record.uid.clone(),
            pod_cidrs,
            addresses: Vec::new(),
            state,
            endpoint: prescribed.or_else(|| reach.first()),
            prescribed,
            reach,
            published,
            location: record.location.clone(),
            nat,
            relay: record.relay,
            keepalive: self.keepalive(record),
        };
        self.out.world.peers.insert(record.name.clone(), member);
        self.accepted.insert(record.name.clone(), replaced);
    }

    fn admit_own(&mut self, candidate: &Candidate<'_>, pod_cidrs: Vec<IpNetwork>) {
        let record = candidate.record;
        self.claims.hold_prefixes(&record.uid, &pod_cidrs);
        let (uid, renewal) = (record.uid.clone(), self.renewal(record));
        let (location, relay) = (record.location.clone(), record.relay);
        self.out.world.own = Some(Own { uid, pod_cidrs, addresses: Vec::new(), location, relay, renewal });
        self.accepted.insert(record.name.clone(), None);
    }

    /// Grants addresses, once it is known who is in the mesh, and enters the members in the ledger with theirs.
    fn settle_addresses(&mut self, candidates: &[Candidate<'_>], outside: &BTreeSet<IpAddr>) {
        let Settled { mut grants, closed, to_test } = {
            let mut addresses = Addresses::new(self.policy, outside);
            for Candidate { record, entry, .. } in candidates {
                let held = entry.map(SharedEntry::addresses).unwrap_or_default();
                match self.out.world.peers.get(&record.name) {
                    _ if record.name == *self.own => addresses.set_own(record),
                    Some(member) => addresses.claim(record, member, held),
                    None => addresses.list(record),
                }
            }
            addresses.settle()
        };
        self.out.ledger.set_closed(closed.clone());
        self.out.world.closed = closed;
        self.out.to_test = to_test;
        for candidate in candidates {
            let record = candidate.record;
            let Some(replaced) = self.accepted.remove(&record.name) else { continue };
            let Grant { addresses, refused } = grants.remove(&record.uid).unwrap_or_default();
            for reason in refused {
                self.reject(record, reason, true);
            }
            self.remember(candidate, replaced.as_ref().unwrap_or(record), &addresses);
            if let Some(member) = self.out.world.peers.get_mut(&record.name) {
                member.addresses = addresses;
            } else if let Some(own) = &mut self.out.world.own {
                own.addresses = addresses;
            }
        }
    }

    /// Enters an accepted record in the ledger. The present entry stays if it is the same.
    fn remember(&mut self, candidate: &Candidate<'_>, record: &NodeRecord, addresses: &[IpAddr]) {
        let entry = candidate.unchanged(record, addresses).cloned();
        let entry = entry.unwrap_or_else(|| SharedEntry::new(bounded(record), addresses.to_vec()));
        self.out.ledger.insert(entry);
    }

    fn renewal(&mut self, record: &NodeRecord) -> Option<Renewal> {
        let text = record.config_renewal.as_deref()?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.reject(record, Reason::ConfigRenewal { found: reason::quoted(text) }, true);
        }
        parsed
    }

    fn pod_cidrs(&self, record: &NodeRecord) -> Result<Vec<IpNetwork>, Reason> {
        let mut accepted: Vec<IpNetwork> = Vec::new();
        for text in record.pod_cidrs.iter().take(ledger::MAX_LISTED) {
            let invalid = || Reason::PodCidrInvalid { found: reason::quoted(text) };
            let pod_cidr = prefix::parse_canonical(text).ok_or_else(invalid)?;
            if !self.policy.cluster_cidrs.iter().any(|cluster| prefix::contains(*cluster, pod_cidr)) {
                return Err(Reason::PodCidrOutside { pod_cidr });
            }
            if let Some(holder) = self.claims.holder_of_prefix(&record.uid, pod_cidr) {
                return Err(Reason::PodCidrTaken { pod_cidr, holder });
            }
            if accepted.iter().any(|other| prefix::overlap(*other, pod_cidr)) {
                return Err(Reason::PodCidrInvalid { found: reason::quoted(text) });
            }
            accepted.push(pod_cidr);
        }
        Ok(accepted)
    }

    /// The endpoint that an operator prescribes.
    fn prescribed(&mut self, record: &NodeRecord) -> Option<Endpoint> {
        let text = record.config_endpoint.as_deref()?;
        let usable = parse_endpoint(text).filter(|endpoint| self.is_usable(endpoint.address));
        if usable.is_none() {
            let reason = Reason::ConfigEndpoint { found: reason::quoted(text) };
            self.reject(record, reason, true);
        }
        usable
    }

    /// The endpoints that this node can send to and that are not inside the cluster: a datagram to a pod or service address
    /// would be routed into the tunnel that it is meant to build. Only control-plane nodes may name the API server's.
    fn reach(&self, record: &NodeRecord, published: Endpoints) -> Endpoints {
        let is_usable = |address: IpAddr| {
            let foreign = self.policy.api_servers.contains(&address) && !record.control_plane;
            self.is_usable(address) && !foreign
        };
        let mut reach = published;
        let listed = record.external.iter().take(ledger::MAX_LISTED);
        for address in listed.filter_map(|text| text.parse().ok()) {
            if !reach.external.contains(&address) {
                reach.external.push(address);
            }
        }
        reach.addresses.retain(|address| is_usable(*address));
        let addresses = &reach.addresses;
        reach.external.retain(|address| is_usable(*address) && !addresses.contains(address));
        for slot in Slot::ALL {
            reach.observed.get_mut(slot).retain(|socket| self.is_usable(socket.ip()));
        }
        reach
    }

    /// Adds what a neighbour says, before the mapped addresses that the node names itself: it is tried for a moment only, by
    /// both ends at once. Nothing is replaced.
    fn add_hearsay(&self, reach: &mut Endpoints, heard: &Heard, ports: PerSlot<u16>) {
        for slot in Slot::ALL {
            let usable = |socket: &SocketAddr| {
                self.is_usable(socket.ip()) && !self.policy.api_servers.contains(&socket.ip())
            };
            let mut added: Vec<SocketAddr> =
                heard.hearsay_of(slot, ports).into_iter().filter(usable).collect();
            let named = reach.observed.get_mut(slot);
            added.retain(|socket| !named.contains(socket));
            named.splice(0..0, added);
        }
    }

    fn is_usable(&self, address: IpAddr) -> bool {
        let reachable = if address.is_ipv4() { self.policy.ipv4 } else { self.policy.ipv6 };
        let mut ranges = self.policy.cluster_cidrs.iter().chain(&self.policy.service_cidrs);
        reachable && !prefix::is_special(address) && !ranges.any(|range| range.contains(address))
    }

    fn keepalive(&mut self, record: &NodeRecord) -> Option<u16> {
        let text = record.config_keepalive.as_deref()?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.reject(record, Reason::ConfigKeepalive { found: reason::quoted(text) }, true);
        }
        parsed
    }

    fn reject(&mut self, record: &NodeRecord, reason: Reason, stays: bool) {
        self.out.rejected.push(Rejected {
            node: record.name.clone(),
            uid: record.uid.clone(),
            reason,
            stays,
        });
    }
}

/// A record that can be kept: what others wrote at any length is cut off.
fn bounded(record: &NodeRecord) -> NodeRecord {
    let short = |text: &Option<String>| text.clone().filter(|text| text.len() <= crate::annotation::MAX_LEN);
    let list = |texts: &[String]| {
        texts.iter().take(ledger::MAX_LISTED).filter(|text| text.len() <= 64).cloned().collect()
    };
    NodeRecord {
        pod_cidrs: list(&record.pod_cidrs),
        addresses: list(&record.addresses),
        external: list(&record.external),
        state: short(&record.state),
        endpoints: short(&record.endpoints),
        config_endpoint: short(&record.config_endpoint),
        config_keepalive: short(&record.config_keepalive),
        config_renewal: short(&record.config_renewal),
        ..record.clone()
    }
}

/// Reads an operator's endpoint: an address, or an address with the port of slot a.
fn parse_endpoint(text: &str) -> Option<Endpoint> {
    if let Ok(address) = text.parse() {
        return Some(Endpoint { address, port: None });
    }
    let socket: SocketAddr = text.parse().ok()?;
    // Slot b takes the next port, so there must be one.
    (1..u16::MAX)
        .contains(&socket.port())
        .then(|| Endpoint { address: socket.ip(), port: Some(socket.port()) })
}

#[cfg(test)]
mod proof_tests;
#[cfg(test)]
pub(crate) mod tests;
