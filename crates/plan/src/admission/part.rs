//! Admission of the Nodes that a change concerns, apart from all others: of those that compete with the changed ones, directly
//! or by others. Its outcome is that of an admission of all, because only Nodes that compete have an effect on each other.
//!
//! An admission can lead to another one with its ledger. A part is admitted again until its ledger stays as it is, so it must
//! follow an admission of all that left the ledger as it was: the outcome is then that of admissions of all, repeated until
//! nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::contenders::{Contenders, Resource, resources};
use super::{Admission, AdmissionPolicy, Announcement, Ledger, LedgerChange, Member, World, admit_announced};
use crate::node::{NodeName, NodeRecord, NodeUid};

/// How often a part is admitted at most. No part is known that needs more than three.
const MAX_ROUNDS: usize = 8;

/// What an admission is decided by, beside the records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grounds<'a> {
    pub(crate) policy: &'a AdmissionPolicy,
    pub(crate) own: &'a NodeName,
    pub(crate) announcements: &'a BTreeMap<NodeUid, Announcement>,
    pub(crate) ledger: &'a Ledger,
}

impl Grounds<'_> {
    fn resources(&self, record: &NodeRecord) -> Vec<Resource> {
        let announced = self.announcements.get(&record.uid).filter(|found| found.is_of(record));
        let state = announced.and_then(|found| found.state().ok());
        resources(record, state, self.ledger.entry(&record.uid))
    }
}

/// Who competes with whom, as of an admission of all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index(Contenders);

impl Index {
    /// Takes a Node as it is now, or that it is gone.
    pub(crate) fn set(&mut self, grounds: Grounds<'_>, node: &NodeName, record: Option<&NodeRecord>) {
        let claimed = record.map(|record| grounds.resources(record));
        self.0.set(node, claimed.unwrap_or_default());
    }

    /// The Nodes with a UID.
    pub(crate) fn with_uid(&self, uid: &NodeUid) -> impl Iterator<Item = &NodeName> {
        self.0.with_uid(uid)
    }
}

/// The outcome of an admission of some Nodes that compete with no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionPart {
    /// The Nodes, and those that are gone.
    nodes: BTreeSet<NodeName>,
    /// UIDs that they have, or had before.
    uids: BTreeSet<NodeUid>,
    /// Addresses that they list, or listed before.
    addresses: BTreeSet<IpAddr>,
    /// Whether this node is one of them.
    has_own: bool,
    /// What is decided about them.
    admission: Admission,
}

impl AdmissionPart {
    /// The Nodes that were considered, and those that are gone.
    pub const fn nodes(&self) -> &BTreeSet<NodeName> {
        &self.nodes
    }

    /// What is decided about them.
    pub const fn admission(&self) -> &Admission {
        &self.admission
    }

    /// The peers that are others than before, each as it is now: none if it is no member any more.
    pub fn changed_peers<'a>(
        &'a self,
        before: &'a Admission,
    ) -> impl Iterator<Item = (&'a NodeName, Option<&'a Member>, Option<&'a Member>)> {
        let pair = |node| (node, before.world.peers.get(node), self.admission.world.peers.get(node));
        self.nodes.iter().map(pair).filter(|(_, former, member)| former != member)
    }

    /// What is decided of the ledger.
    pub fn ledger_change(&self) -> LedgerChange {
        LedgerChange::new(self.uids.clone(), self.addresses.clone(), self.admission.ledger.clone())
    }
}

impl Admission {
    /// Takes what was decided about some of the Nodes; the rest stays. Returns what was decided about them before: taken again,
    /// it undoes this.
    pub fn splice(&mut self, part: &AdmissionPart) -> AdmissionPart {
        let AdmissionPart { nodes, uids, addresses, has_own, admission } = part;
        let own = self.world.own.clone();
        let peers = nodes.iter().filter_map(|node| self.world.peers.remove_entry(node)).collect();
        self.world
            .peers
            .extend(admission.world.peers.iter().map(|(node, member)| (node.clone(), member.clone())));
        if *has_own {
            self.world.own.clone_from(&admission.world.own);
        }
        let closed = addresses.iter().filter_map(|address| self.world.closed.take(address)).collect();
        self.world.closed.extend(&admission.world.closed);
        let ledger = self.ledger.splice(uids, addresses, &admission.ledger);
        let rejected = self.rejected.extract_if(.., |rejected| nodes.contains(&rejected.node)).collect();
        self.rejected.extend(admission.rejected.iter().cloned());
        // Stable: those of one node stay in the order in which they were found.
        self.rejected
            .sort_by(|one, other| (&one.node, one.reason.code()).cmp(&(&other.node, other.reason.code())));
        let pending = self.pending.extract_if(.., |node| nodes.contains(node)).collect();
        self.pending.extend(admission.pending.iter().cloned());
        self.pending.sort();
        let to_test = self.to_test.extract_if(.., |claim| addresses.contains(&claim.address)).collect();
        self.to_test.extend(admission.to_test.iter().cloned());
        self.to_test.sort_by_key(|claim| claim.address);
        AdmissionPart {
            nodes: nodes.clone(),
            uids: uids.clone(),
            addresses: addresses.clone(),
            has_own: *has_own,
            admission: Self { world: World { own, peers, closed }, ledger, rejected, pending, to_test },
        }
    }
}

/// Admits the changed Nodes with those that compete with them; `record` has each Node as it is now. None if these are too many,
/// if this node is among the changed ones, or if the part finds no end: then all are to be admitted.
pub(crate) fn admit_part<'a>(
    grounds: Grounds<'a>,
    index: &Index,
    changed: &BTreeSet<NodeName>,
    record: impl Fn(&NodeName) -> Option<&'a NodeRecord>,
) -> Option<AdmissionPart> {
    let Grounds { policy, own, announcements, ledger } = grounds;
    if changed.contains(own) {
        return None;
    }
    let now = |node: &NodeName| Some((node.clone(), grounds.resources(record(node)?)));
    let after: BTreeMap<NodeName, Vec<Resource>> = changed.iter().filter_map(now).collect();
    let nodes = index.0.component(changed, &after)?;
    let (mut uids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for resource in nodes.iter().flat_map(|node| index.0.of(node)).chain(after.values().flatten()) {
        match resource {
            Resource::Uid(uid) => drop(uids.insert(uid.clone())),
            Resource::Address(address) => drop(addresses.insert(*address)),
            Resource::Key(_) | Resource::Prefix { .. } => {}
        }
    }
    let records: Vec<&NodeRecord> = nodes.iter().filter_map(&record).collect();
    let (nothing_closed, mut ledger) = (BTreeSet::new(), ledger.part(&uids));
    for _ in 0..MAX_ROUNDS {
        let admission =
            admit_announced(policy, own, records.iter().copied(), announcements, (&ledger, &nothing_closed));
        let next = admission.ledger.part(&uids);
        if next == ledger {
            let has_own = nodes.contains(own);
            return Some(AdmissionPart { nodes, uids, addresses, has_own, admission });
        }
        ledger = next;
    }
    None
}
