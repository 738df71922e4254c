//! What a node remembers of the others: the last accepted record of each, and what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::announcement::Announcement;
use crate::annotation::{Endpoints, State};
use crate::node::{NodeName, NodeRecord, NodeUid};
use crate::prefix;

/// Most podCIDRs and most addresses of one node that are read.
pub(super) const MAX_LISTED: usize = 16;

/// The last accepted record of every node that counts. Kept on disk, so that a node starts without the API server
/// and so that incumbents stay incumbents over a restart. A clone shares the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredLedger")]
pub struct Ledger {
    nodes: BTreeMap<NodeUid, SharedEntry>,
    /// UIDs of the Nodes that have proved their keys once. They are held to it for as long as they are listed, even while
    /// they are not accepted.
    proved: BTreeSet<NodeUid>,
    /// Addresses of Nodes that no member held. They stay closed until there is a list again, which alone says which Nodes are
    /// not in the mesh.
    closed: BTreeSet<IpAddr>,
}

/// What was decided anew of a ledger: enough to change a copy of it in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerChange {
    /// The Nodes that it was decided about.
    uids: BTreeSet<NodeUid>,
    /// Addresses that they list, or listed before.
    addresses: BTreeSet<IpAddr>,
    /// What the ledger has of both now.
    now: Ledger,
}

impl LedgerChange {
    pub(super) const fn new(uids: BTreeSet<NodeUid>, addresses: BTreeSet<IpAddr>, now: Ledger) -> Self {
        Self { uids, addresses, now }
    }

    /// Changes a ledger; returns whether it is another one now.
    pub fn apply(&self, ledger: &mut Ledger) -> bool {
        ledger.splice(&self.uids, &self.addresses, &self.now) != self.now
    }
}

/// A ledger as it is on disk.
#[derive(Deserialize)]
struct StoredLedger {
    nodes: BTreeMap<NodeUid, SharedEntry>,
    #[serde(default)]
    proved: BTreeSet<NodeUid>,
    #[serde(default)]
    closed: BTreeSet<IpAddr>,
}

impl From<StoredLedger> for Ledger {
    /// Version 0.1 kept what it read without verifying proofs: those are verified now.
    fn from(StoredLedger { mut nodes, mut proved, closed }: StoredLedger) -> Self {
        for (uid, entry) in &mut nodes {
            let Some(state) = entry.state().filter(|state| state.proofs.is_some()) else { continue };
            if proved.contains(uid) {
                continue;
            }
            if state.invalid_proof().is_none() {
                proved.insert(uid.clone());
            } else {
                let record = NodeRecord { state: None, ..entry.record().clone() };
                *entry = SharedEntry::new(record, entry.addresses().to_vec());
            }
        }
        Self { nodes, proved, closed }
    }
}

/// One node in the ledger, shared by all ledgers in which it is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SharedEntry(Arc<Entry>);

/// One node in the ledger.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The Node with its last accepted annotations.
    record: NodeRecord,
    /// Its accepted addresses.
    addresses: Vec<IpAddr>,
    /// Its state annotation, parsed.
    state: Option<State>,
    /// Its endpoints annotation, parsed.
    endpoints: Option<Endpoints>,
}

/// An entry as it is on disk.
#[derive(Serialize, Deserialize)]
struct StoredEntry<R, A> {
    record: R,
    addresses: A,
}

impl Serialize for SharedEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoredEntry { record: &self.0.record, addresses: &self.0.addresses }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SharedEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StoredEntry::deserialize(deserializer)
            .map(|StoredEntry { record, addresses }| Self::new(record, addresses))
    }
}

impl SharedEntry {
    /// An entry for a record whose annotations have been accepted.
    pub(super) fn new(record: NodeRecord, addresses: Vec<IpAddr>) -> Self {
        // A file that was changed since does not get past its checksum; if it did, an annotation that can't be parsed
        // counts as none.
        let state = record.state.as_deref().and_then(|text| State::parse(text).ok());
        let endpoints = record.endpoints.as_deref().and_then(|text| Endpoints::parse(text).ok());
        Self(Arc::new(Entry { record, addresses, state, endpoints }))
    }

    /// Whether it is for exactly this.
    pub(super) fn matches(&self, record: &NodeRecord, addresses: &[IpAddr]) -> bool {
        self.0.record == *record && self.0.addresses == addresses
    }

    /// The record.
    pub(super) fn record(&self) -> &NodeRecord {
        &self.0.record
    }

    /// The keys that it published last.
    pub(super) fn state(&self) -> Option<&State> {
        self.0.state.as_ref()
    }

    /// The endpoints that it published last.
    pub(super) fn endpoints(&self) -> Option<&Endpoints> {
        self.0.endpoints.as_ref()
    }

    /// The podCIDRs that it had.
    pub(super) fn pod_cidrs(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.record.pod_cidrs.iter().filter_map(|text| prefix::parse_canonical(text))
    }

    /// Its accepted addresses.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }
}

impl Ledger {
    /// The remembered Nodes by name, as if they had just been listed.
    pub fn records(&self) -> BTreeMap<&NodeName, &NodeRecord> {
        self.nodes.values().map(|entry| (&entry.0.record.name, &entry.0.record)).collect()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn insert(&mut self, entry: SharedEntry) {
        self.nodes.insert(entry.record().uid.clone(), entry);
    }

    /// Addresses that were closed.
    pub(crate) const fn closed(&self) -> &BTreeSet<IpAddr> {
        &self.closed
    }

    pub(super) fn set_closed(&mut self, closed: BTreeSet<IpAddr>) {
        self.closed = closed;
    }

    /// Whether a Node has proved its keys once.
    pub(super) fn has_proved(&self, uid: &NodeUid) -> bool {
        self.proved.contains(uid)
    }

    pub(super) fn insert_proved(&mut self, uid: NodeUid) {
        self.proved.insert(uid);
    }

    pub(super) fn entry(&self, uid: &NodeUid) -> Option<&SharedEntry> {
        self.nodes.get(uid)
    }

    /// Whether a Node's annotation is the one that was accepted last.
    pub(crate) fn has_announced(&self, uid: &NodeUid, announcement: &Announcement) -> bool {
        self.nodes.get(uid).is_some_and(|entry| announcement.is_of(entry.record()))
    }

    /// What it has of some Nodes. Which addresses are closed is no part of it.
    pub(super) fn part(&self, uids: &BTreeSet<NodeUid>) -> Self {
        let entry = |uid: &NodeUid| Some((uid.clone(), self.nodes.get(uid)?.clone()));
        Self {
            nodes: uids.iter().filter_map(entry).collect(),
            proved: uids.iter().filter(|uid| self.proved.contains(*uid)).cloned().collect(),
            closed: BTreeSet::new(),
        }
    }

    /// Replaces what it has of some Nodes and addresses, and returns what it had.
    pub(super) fn splice(
        &mut self,
        uids: &BTreeSet<NodeUid>,
        addresses: &BTreeSet<IpAddr>,
        part: &Self,
    ) -> Self {
        let former = Self {
            nodes: uids.iter().filter_map(|uid| self.nodes.remove_entry(uid)).collect(),
            proved: uids.iter().filter_map(|uid| self.proved.take(uid)).collect(),
            closed: addresses.iter().filter_map(|address| self.closed.take(address)).collect(),
        };
        self.nodes.extend(part.nodes.iter().map(|(uid, entry)| (uid.clone(), entry.clone())));
        self.proved.extend(part.proved.iter().cloned());
        self.closed.extend(&part.closed);
        former
    }
}
