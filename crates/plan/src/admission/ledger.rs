//! What a node remembers of the others: the last good word of each, and what it holds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::annotation::{Endpoints, State};
use crate::node::{NodeName, NodeRecord, NodeUid};
use crate::prefix;

/// Most podCIDRs and most addresses of one node that are looked at.
pub(super) const MAX_LISTED: usize = 16;

/// The last good word of every node that counts. Kept on disk, so that a node starts without the API server
/// and so that incumbents stay incumbents over a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    nodes: BTreeMap<NodeUid, Entry>,
}

/// One node in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// The Node with its last good annotations.
    pub(super) record: NodeRecord,
    /// Its addresses whose claim stood.
    pub(super) addresses: Vec<IpAddr>,
}

impl Ledger {
    /// The remembered Nodes by name, as if they had just been listed.
    pub fn records(&self) -> BTreeMap<NodeName, NodeRecord> {
        self.nodes.values().map(|entry| (entry.record.name.clone(), entry.record.clone())).collect()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.nodes.insert(entry.record.uid.clone(), entry);
    }

    pub(super) fn knows(&self, uid: &NodeUid) -> bool {
        self.nodes.contains_key(uid)
    }

    pub(super) fn state(&self, uid: &NodeUid) -> Option<State> {
        // What stands here was parsed once; a file that was changed since does not get past its checksum.
        State::parse(self.nodes.get(uid)?.record.state.as_deref()?).ok()
    }

    pub(super) fn endpoints(&self, uid: &NodeUid) -> Option<Endpoints> {
        Endpoints::parse(self.nodes.get(uid)?.record.endpoints.as_deref()?).ok()
    }

    pub(super) fn pod_cidrs(&self, uid: &NodeUid) -> impl Iterator<Item = IpNetwork> {
        let texts = self.nodes.get(uid).map(|entry| entry.record.pod_cidrs.as_slice()).unwrap_or_default();
        texts.iter().filter_map(|text| prefix::parse_canonical(text))
    }

    pub(super) fn addresses(&self, uid: &NodeUid) -> impl Iterator<Item = IpAddr> {
        self.nodes.get(uid).map(|entry| entry.addresses.clone()).unwrap_or_default().into_iter()
    }
}
