//! The Nodes that count: those listed, those that the brake keeps, and before the first list those in the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::admission::{
    Admission, AdmissionPart, AdmissionPolicy, Announcement, Grounds, Index, Ledger, admit_announced,
    admit_part,
};
use crate::brake::{Brake, HOLD, KeptNodes, Relist};
use crate::node::{NodeName, NodeRecord, NodeUid};

/// The set of Nodes that counts now.
#[derive(Clone, Debug)]
pub struct Cluster {
    own: NodeName,
    /// UID of our own Node before the daemon started.
    former_uid: Option<NodeUid>,
    /// None until the first complete list: until then only the ledger counts.
    listed: Option<BTreeMap<NodeName, NodeRecord>>,
    /// Nodes that a list no longer has but that stay for now, as they were last seen.
    kept: BTreeMap<NodeName, NodeRecord>,
    release_at: Option<Duration>,
    brake: Brake,
    brakes: u64,
    /// Every Node that counted before the list whose missing Nodes are being looked up.
    unconfirmed: Option<BTreeSet<NodeName>>,
    lists: u64,
    ledger: Ledger,
    /// The state annotations of the listed and the kept Nodes, by UID.
    announcements: BTreeMap<NodeUid, Announcement>,
    /// None if all Nodes have to be admitted next.
    rest: Option<Rest>,
}

/// What an admission of all Nodes was decided by that left the ledger as it was, and what has changed since: those Nodes can be
/// admitted apart.
#[derive(Clone, Debug)]
struct Rest {
    policy: AdmissionPolicy,
    index: Index,
    /// Nodes that have changed, that are gone, or whose annotation has stood for long enough.
    changed: BTreeSet<NodeName>,
}

/// Missing Nodes that the API server is to be asked for one by one. They stay until it has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Number of the list that lacks them; the answer names it.
    pub list: u64,
    /// Their names.
    pub missing: BTreeSet<NodeName>,
}

impl Cluster {
    /// A cluster of which only the ledger's nodes are known.
    pub fn remembered(own: NodeName, ledger: Ledger, own_uid: Option<NodeUid>) -> Self {
        Self {
            own,
            former_uid: own_uid.clone(),
            listed: None,
            kept: BTreeMap::new(),
            release_at: None,
            brake: Brake::new(own_uid),
            brakes: 0,
            unconfirmed: None,
            lists: 0,
            ledger,
            announcements: BTreeMap::new(),
            rest: None,
        }
    }

    /// Whether a complete list has been seen.
    pub const fn is_listed(&self) -> bool {
        self.listed.is_some()
    }

    /// When something next changes by time alone: kept Nodes are let go, or an annotation has stood for long enough.
    pub fn changes_at(&self) -> Option<Duration> {
        let settle = self.announcements.values().filter_map(Announcement::settles_at);
        self.release_at.into_iter().chain(settle).min()
    }

    /// This node's own Node, if it is listed.
    pub fn own_record(&self) -> Option<&NodeRecord> {
        self.listed.as_ref()?.get(&self.own)
    }

    /// UID of this node's own Node: as listed, or as remembered until there is a list. Keys, sessions and routes depend on
    /// it; without it a daemon that starts while the API server is away would remove them.
    pub fn own_uid(&self) -> Option<&NodeUid> {
        if self.is_listed() { self.own_record().map(|record| &record.uid) } else { self.former_uid.as_ref() }
    }

    /// Some other listed Node.
    pub fn any_other(&self) -> Option<&NodeName> {
        self.listed.as_ref()?.keys().find(|name| **name != self.own)
    }

    /// Nodes that are kept although no list has them.
    pub fn kept(&self) -> impl Iterator<Item = &NodeName> {
        self.kept.keys()
    }

    /// How often the brake held.
    pub const fn brakes(&self) -> u64 {
        self.brakes
    }

    /// Takes a complete list. Missing Nodes that the brake keeps, but would not if each is confirmed gone, are to be looked
    /// up; [`Self::confirm`] takes the answer.
    pub fn relist(&mut self, now: Duration, list: BTreeMap<NodeName, NodeRecord>) -> Option<Lookup> {
        self.lists += 1;
        self.unconfirmed = None;
        self.rest = None;
        let missing = self.missing_from(&list);
        let known = self.known();
        let names: BTreeSet<NodeName> = known.keys().map(|name| (*name).clone()).collect();
        let listed: BTreeSet<NodeName> =
            list.keys().filter(|name| !missing.contains(*name)).cloned().collect();
        let missing: BTreeMap<NodeName, NodeRecord> = missing
            .into_iter()
            .filter_map(|name| Some((name.clone(), (*known.get(&name)?).clone())))
            .collect();
        let own_uid = list.get(&self.own).map(|record| record.uid.clone());
        self.listed = Some(list);
        self.kept = missing;
        self.read_announcements(now);
        let verdict = self.brake(now, own_uid.as_ref(), (&names, &listed), &BTreeSet::new());
        self.keep(&verdict);
        // Without our own Node, or with another one, no answer makes the list credible.
        let open = verdict.release_at.is_some() && !self.brake.distrusts(now);
        if verdict.keep.is_empty() || !open {
            self.brakes += u64::from(!verdict.keep.is_empty());
            return None;
        }
        self.unconfirmed = Some(names);
        Some(Lookup { list: self.lists, missing: verdict.keep })
    }

    /// Takes which of the missing Nodes of a list the API server, asked for each, does not have. Says whether Nodes were
    /// removed. An answer about a list that another one followed is ignored.
    pub fn confirm(&mut self, now: Duration, list: u64, gone: &BTreeSet<NodeName>) -> bool {
        let Some(known) = self.unconfirmed.take_if(|_| list == self.lists) else { return false };
        let listed: BTreeSet<NodeName> =
            known.iter().filter(|name| !self.kept.contains_key(*name)).cloned().collect();
        let own_uid = self.own_record().map(|record| record.uid.clone());
        let verdict = self.brake(now, own_uid.as_ref(), (&known, &listed), gone);
        self.brakes += u64::from(!verdict.keep.is_empty());
        let before = self.kept.len();
        self.keep(&verdict);
        self.kept.len() != before
    }

    fn brake(
        &mut self,
        now: Duration,
        own_uid: Option<&NodeUid>,
        (known, listed): (&BTreeSet<NodeName>, &BTreeSet<NodeName>),
        confirmed_gone: &BTreeSet<NodeName>,
    ) -> KeptNodes {
        self.brake.on_relist(now, &Relist { own: &self.own, own_uid, known, listed, confirmed_gone })
    }

    fn keep(&mut self, verdict: &KeptNodes) {
        // Our own Node as well: what it granted us is ours until another one says otherwise.
        let own = &self.own;
        self.kept.retain(|name, _| verdict.keep.contains(name) || name == own);
        self.rest = None;
        self.release_at = verdict.release_at;
    }

    /// Nodes that a complete list lacks although they are known. One that was recreated and has published nothing yet counts
    /// as missing: its daemon publishes within moments, unless the store has lost more than that.
    fn missing_from(&self, list: &BTreeMap<NodeName, NodeRecord>) -> BTreeSet<NodeName> {
        let is_there = |known: &NodeRecord| {
            list.get(&known.name)
                .is_some_and(|found| found.uid == known.uid || found.state.is_some() || known.state.is_none())
        };
        self.known().into_values().filter(|known| !is_there(known)).map(|known| known.name.clone()).collect()
    }

    /// Takes one new or changed Node. One that was recreated replaces the kept one as soon as its daemon has published
    /// something. Says whether anything changed: a kubelet's refresh of its status does not.
    pub fn apply(&mut self, now: Duration, record: NodeRecord) -> bool {
        let mut changed = record.state.is_some() && self.kept.remove(&record.name).is_some();
        if record.name == self.own && self.release_at.is_none() && !self.kept.is_empty() {
            self.release_at = Some(now + HOLD);
            changed = true;
        }
        if changed {
            self.rest = None;
        }
        if let Some(listed) = &mut self.listed
            && listed.get(&record.name) != Some(&record)
        {
            let known = self.announcements.get(&record.uid).is_some_and(|known| known.is_of(&record));
            if !known {
                let read = Announcement::read(&record, &self.ledger, now);
                self.announcements.insert(record.uid.clone(), read);
            }
            if let Some(rest) = &mut self.rest {
                rest.changed.insert(record.name.clone());
            }
            let former = listed.insert(record.name.clone(), record);
            self.forget_announcement(former);
            changed = true;
        }
        changed
    }

    /// Reads the annotations that are new in a list.
    fn read_announcements(&mut self, now: Duration) {
        let mut known = std::mem::take(&mut self.announcements);
        let listed = self.listed.iter().flat_map(BTreeMap::values);
        for record in self.kept.values().chain(listed) {
            let same = known.remove(&record.uid).filter(|known| known.is_of(record));
            let read = same.unwrap_or_else(|| Announcement::read(record, &self.ledger, now));
            self.announcements.insert(record.uid.clone(), read);
        }
    }

    /// Drops the annotation of a Node that is no longer listed, unless it is kept or was listed again.
    fn forget_announcement(&mut self, former: Option<NodeRecord>) {
        let Some(former) = former else { return };
        let kept = self.kept.get(&former.name);
        let listed = self.listed.as_ref().and_then(|listed| listed.get(&former.name));
        let stays = kept.into_iter().chain(listed).any(|record| record.uid == former.uid);
        if !stays {
            self.announcements.remove(&former.uid);
        }
    }

    /// Lets annotations settle that stand unchanged; `connected` says whether changes would be noticed.
    pub fn settle(&mut self, now: Duration, connected: bool) {
        for (uid, announcement) in self.announcements.iter_mut().filter(|(_, one)| !one.is_settled()) {
            announcement.settle(now, connected);
            // What is accepted already stands as well as before.
            if announcement.is_settled()
                && !self.ledger.has_announced(uid, announcement)
                && let Some(Rest { index, changed, .. }) = &mut self.rest
            {
                changed.extend(index.with_uid(uid).cloned());
            }
        }
    }

    /// Takes the deletion of one Node, as the watch reported it. Says whether it was listed.
    pub fn delete(&mut self, name: &NodeName, uid: &NodeUid) -> bool {
        if let Some(listed) = &mut self.listed
            && listed.get(name).is_some_and(|record| record.uid == *uid)
        {
            let former = listed.remove(name);
            self.forget_announcement(former);
            if let Some(rest) = &mut self.rest {
                rest.changed.insert(name.clone());
            }
            return true;
        }
        false
    }

    /// Lets go of kept Nodes whose time is over.
    pub fn release(&mut self, now: Duration) {
        if self.release_at.is_some_and(|at| at <= now) {
            self.kept.clear();
            self.rest = None;
            self.release_at = None;
            self.unconfirmed = None;
        }
    }

    /// Decides who is in the mesh.
    pub fn admit(&self, policy: &AdmissionPolicy) -> Admission {
        let records = self.known().into_values();
        // The ledger has members only. What other Nodes list stays closed until a list has them.
        let outside = if self.is_listed() { &BTreeSet::new() } else { self.ledger.closed() };
        admit_announced(policy, &self.own, records, &self.announcements, (&self.ledger, outside))
    }

    /// Decides about the Nodes that have changed since the last admission, with those that compete with them. None if all are
    /// to be admitted: the last admission was not at rest, something else has changed, or too many Nodes are concerned.
    pub fn admit_changed(&self, policy: &AdmissionPolicy) -> Option<AdmissionPart> {
        let rest = self.rest.as_ref().filter(|rest| rest.policy == *policy)?;
        admit_part(self.grounds(policy), &rest.index, &rest.changed, |name| self.record(name))
    }

    /// Whether Nodes have changed since the last admission that was remembered, as far as that is known.
    pub fn has_changed(&self) -> bool {
        self.rest.as_ref().is_none_or(|rest| !rest.changed.is_empty())
    }

    /// Has all Nodes admitted next, because what is known of them may be wrong.
    pub fn admit_all_next(&mut self) {
        self.rest = None;
    }

    /// Takes the ledger of an admission of all by this policy, for the next one. Says whether it differs from the former. Before
    /// the first list it stays as it was remembered: without the Nodes outside the mesh a member could become the incumbent of
    /// what they list.
    pub fn remember(&mut self, policy: &AdmissionPolicy, ledger: &Ledger) -> bool {
        if !self.is_listed() {
            return false;
        }
        if self.ledger != *ledger {
            self.ledger = ledger.clone();
            self.rest = None;
            return true;
        }
        self.come_to_rest(policy);
        false
    }

    /// Takes the part of the ledger that an admission of some has decided. Says whether it differs from the former.
    pub fn remember_part(&mut self, part: &AdmissionPart) -> bool {
        let changed = part.ledger_change().apply(&mut self.ledger);
        if let Some(mut rest) = self.rest.take() {
            let grounds = self.grounds(&rest.policy);
            for name in part.nodes() {
                rest.index.set(grounds, name, self.record(name));
                rest.changed.remove(name);
            }
            self.rest = Some(rest);
        }
        changed
    }

    /// The admission of all would be the same again.
    fn come_to_rest(&mut self, policy: &AdmissionPolicy) {
        let former = self.rest.take();
        let grounds = self.grounds(policy);
        let rest = if let Some(mut rest) = former {
            for name in std::mem::take(&mut rest.changed) {
                rest.index.set(grounds, &name, self.record(&name));
            }
            if rest.policy != *policy {
                rest.policy.clone_from(policy);
            }
            rest
        } else {
            let mut index = Index::default();
            for (name, record) in self.known() {
                index.set(grounds, name, Some(record));
            }
            Rest { policy: policy.clone(), index, changed: BTreeSet::new() }
        };
        self.rest = Some(rest);
    }

    fn grounds<'a>(&'a self, policy: &'a AdmissionPolicy) -> Grounds<'a> {
        Grounds { policy, own: &self.own, announcements: &self.announcements, ledger: &self.ledger }
    }

    /// The Node of this name that counts.
    pub fn record(&self, name: &NodeName) -> Option<&NodeRecord> {
        let listed = self.listed.as_ref()?.get(name);
        let is_silent = listed.is_none_or(|record| record.state.is_none());
        self.kept.get(name).filter(|_| is_silent).or(listed)
    }

    /// Every Node that counts, by name.
    fn known(&self) -> BTreeMap<&NodeName, &NodeRecord> {
        let Some(listed) = &self.listed else { return self.ledger.records() };
        let silent = |name| listed.get(name).is_none_or(|record: &NodeRecord| record.state.is_none());
        let kept = self.kept.iter().filter(|(name, _)| silent(*name));
        listed.iter().chain(kept).collect()
    }
}
