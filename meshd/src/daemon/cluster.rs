//! What the daemon knows of the cluster: the Nodes as listed, those kept by the brake, and the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plan::admission::{Admission, Ledger, Policy, admit};
use plan::brake::{Brake, HOLD, Relist};
use plan::node::{NodeName, NodeRecord, NodeUid};

/// The set of Nodes that counts now.
#[derive(Debug)]
pub(super) struct Cluster {
    own: NodeName,
    /// UID of our own Node as it was before the daemon started.
    former_uid: Option<NodeUid>,
    /// None until the first complete list: until then the ledger alone speaks.
    listed: Option<BTreeMap<NodeName, NodeRecord>>,
    /// Nodes that a list no longer has but that stay for now, as they were last seen.
    kept: BTreeMap<NodeName, NodeRecord>,
    release_at: Option<Duration>,
    brake: Brake,
    brakes: u64,
    pub(super) ledger: Ledger,
}

impl Cluster {
    /// A cluster of which only the ledger's nodes are known.
    pub(super) fn remembered(own: NodeName, ledger: Ledger, own_uid: Option<NodeUid>) -> Self {
        Self {
            own,
            former_uid: own_uid.clone(),
            listed: None,
            kept: BTreeMap::new(),
            release_at: None,
            brake: Brake::new(own_uid),
            brakes: 0,
            ledger,
        }
    }

    /// Whether a complete list has been seen.
    pub(super) const fn is_listed(&self) -> bool {
        self.listed.is_some()
    }

    /// This node's own Node, if it is listed.
    pub(super) fn own_record(&self) -> Option<&NodeRecord> {
        self.listed.as_ref()?.get(&self.own)
    }

    /// UID of this node's own Node: as listed, or as remembered until there is a list. Keys, sessions and routes stand on
    /// it; without it a daemon that starts while the API server is away would take them for nobody's.
    pub(super) fn own_uid(&self) -> Option<&NodeUid> {
        if self.is_listed() { self.own_record().map(|record| &record.uid) } else { self.former_uid.as_ref() }
    }

    /// Some other listed Node.
    pub(super) fn any_other(&self) -> Option<&NodeName> {
        self.listed.as_ref()?.keys().find(|name| **name != self.own)
    }

    /// Nodes that are kept although no list has them.
    pub(super) fn kept(&self) -> impl Iterator<Item = &NodeName> {
        self.kept.keys()
    }

    /// How often the brake held.
    pub(super) const fn brakes(&self) -> u64 {
        self.brakes
    }

    /// Nodes that a complete list lacks although they are known. A Node that was made anew and says nothing yet
    /// is as good as missing: its daemon publishes within moments, unless the store has lost more than that.
    pub(super) fn missing_from(&self, list: &BTreeMap<NodeName, NodeRecord>) -> BTreeSet<NodeName> {
        let is_there = |known: &NodeRecord| {
            list.get(&known.name)
                .is_some_and(|found| found.uid == known.uid || found.state.is_some() || known.state.is_none())
        };
        self.known().into_values().filter(|known| !is_there(known)).map(|known| known.name).collect()
    }

    /// Takes a complete list. `gone` are the missing Nodes that the API server, asked one by one, says it
    /// does not have.
    pub(super) fn relist(
        &mut self,
        now: Duration,
        list: BTreeMap<NodeName, NodeRecord>,
        gone: &BTreeSet<NodeName>,
    ) {
        let known = self.known();
        let missing = self.missing_from(&list);
        let verdict = self.brake.on_relist(
            now,
            &Relist {
                known: &known.keys().cloned().collect(),
                listed: &list.keys().filter(|name| !missing.contains(*name)).cloned().collect(),
                confirmed_gone: gone,
                own_uid: list.get(&self.own).map(|record| &record.uid),
                own: &self.own,
            },
        );
        if !verdict.keep.is_empty() {
            self.brakes += 1;
        }
        // Our own Node as well: what it granted us is ours until another one says otherwise.
        let stays =
            |name: &NodeName| verdict.keep.contains(name) || (*name == self.own && missing.contains(name));
        self.kept = known.into_iter().filter(|(name, _)| stays(name)).collect();
        self.release_at = verdict.release_at;
        self.listed = Some(list);
    }

    /// Takes one new or changed Node. One that was made anew replaces the kept one as soon as its daemon has
    /// published something.
    pub(super) fn apply(&mut self, now: Duration, record: NodeRecord) {
        if record.state.is_some() {
            self.kept.remove(&record.name);
        }
        if record.name == self.own && self.release_at.is_none() && !self.kept.is_empty() {
            self.release_at = Some(now + HOLD);
        }
        if let Some(listed) = &mut self.listed {
            listed.insert(record.name.clone(), record);
        }
    }

    /// Takes the deletion of one Node, which the API server told us of by itself.
    pub(super) fn delete(&mut self, name: &NodeName, uid: &NodeUid) {
        if let Some(listed) = &mut self.listed
            && listed.get(name).is_some_and(|record| record.uid == *uid)
        {
            listed.remove(name);
        }
    }

    /// Lets go of kept Nodes whose time is over.
    pub(super) fn release(&mut self, now: Duration) {
        if self.release_at.is_some_and(|at| at <= now) {
            self.kept.clear();
            self.release_at = None;
        }
    }

    /// Decides who is in the mesh.
    pub(super) fn admit(&self, policy: &Policy) -> Admission {
        let records: Vec<NodeRecord> = self.known().into_values().collect();
        admit(policy, &self.own, &records, &self.ledger)
    }

    /// Every Node that counts, by name.
    fn known(&self) -> BTreeMap<NodeName, NodeRecord> {
        match &self.listed {
            Some(listed) => {
                let mut known = listed.clone();
                let silent = |name| listed.get(name).is_none_or(|record: &NodeRecord| record.state.is_none());
                let kept = self.kept.iter().filter(|(name, _)| silent(*name));
                known.extend(kept.map(|(name, record)| (name.clone(), record.clone())));
                known
            }
            None => self.ledger.records(),
        }
    }
}
