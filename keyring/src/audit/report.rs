//! The report for auditors: which keys were in use when, who has confirmed them, and were the old ones
//! destroyed.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::event::Event;
use super::line::Line;
use crate::rotation::PeerId;
use crate::{Fingerprint, Slot};

/// The history of one key. Times are milliseconds since 1970 by the clock of the node that recorded them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyHistory {
    /// The key.
    pub key: String,
    /// Its slot.
    pub slot: Slot,
    /// When it was generated, or else first seen.
    pub since: u64,
    /// When it became preferred, each time.
    pub active: Vec<u64>,
    /// When it was replaced.
    pub replaced: Option<u64>,
    /// When its own node destroyed it.
    pub destroyed: Option<u64>,
    /// Peers that have answered over it.
    pub verified_by: BTreeSet<String>,
}

/// One node's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeReport {
    /// Its name.
    pub node: String,
    /// Whether its own trail was available; if not, this is what its peers recorded, and nothing proves
    /// destruction.
    pub own_trail: bool,
    /// Its keys, oldest first.
    pub keys: Vec<KeyHistory>,
    /// Durations of completed rotations in milliseconds; only from its own trail.
    pub rotations: Vec<u64>,
    /// Number of rotations that were rolled back.
    pub rolled_back: u64,
    /// Peers that were not waited for, and how often.
    pub passed_over: BTreeMap<String, u64>,
}

/// The cluster, as far as it is known from the trails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every node that occurs in a trail.
    pub nodes: Vec<NodeReport>,
    /// The oldest key in use: node, key and age in seconds.
    pub oldest: Option<(String, String, u64)>,
    /// Keys in use that exceed the maximum age: node, key, age in seconds.
    pub overdue: Vec<(String, String, u64)>,
    /// Replaced keys whose destruction is not in any trail: node and key.
    pub not_proven_destroyed: Vec<(String, String)>,
}

/// Builds the report from any number of trails. `now` is in milliseconds since 1970, `max_age` in seconds.
pub fn report(trails: &[&[Line]], now: u64, max_age: u64) -> Report {
    let mut nodes: BTreeMap<PeerId, NodeReport> = BTreeMap::new();
    let mut names: BTreeMap<PeerId, String> = BTreeMap::new();
    for line in trails.iter().copied().flatten() {
        names.insert(line.node.uid.clone(), line.node.name.clone());
        if let Event::PeerAnnounced { peer, .. } | Event::PeerGone { peer } = &line.event {
            names.insert(peer.uid.clone(), peer.name.clone());
        }
    }
    let name = |id: &PeerId| names.get(id).cloned().unwrap_or_else(|| id.to_string());
    // A node's own trail takes precedence over those of witnesses.
    for line in trails.iter().copied().flatten() {
        let node = nodes.entry(line.node.uid.clone()).or_default();
        node.own_trail = true;
        own(node, line, &name);
    }
    for line in trails.iter().copied().flatten() {
        if let Event::PeerAnnounced { peer, keys, prefer, .. } = &line.event {
            let node = nodes.entry(peer.uid.clone()).or_default();
            if !node.own_trail {
                seen(node, line.time, *prefer, keys.iter().map(|(slot, key)| (slot, *key)));
            }
        }
    }
    let mut report = Report::default();
    for (id, mut node) in nodes {
        node.node = name(&id);
        node.keys.sort_by_key(|key| key.since);
        for key in &node.keys {
            let age = now.saturating_sub(key.since) / 1000;
            let entry = || (node.node.clone(), key.key.clone(), age);
            if key.replaced.is_none() && key.destroyed.is_none() {
                if report.oldest.as_ref().is_none_or(|(_, _, oldest)| age > *oldest) {
                    report.oldest = Some(entry());
                }
                if age > max_age {
                    report.overdue.push(entry());
                }
            } else if key.destroyed.is_none() {
                report.not_proven_destroyed.push((node.node.clone(), key.key.clone()));
            }
        }
        report.nodes.push(node);
    }
    report
}

/// The keys of a node whose destruction is not in its own trail, in the trail's order. Lines of other nodes
/// are ignored.
pub fn not_destroyed<'a>(trail: impl IntoIterator<Item = &'a Line>, node: &PeerId) -> Vec<KeyHistory> {
    let mut own_keys = NodeReport::default();
    for line in trail.into_iter().filter(|line| line.node.uid == *node) {
        own(&mut own_keys, line, &PeerId::to_string);
    }
    own_keys.keys.retain(|key| key.destroyed.is_none());
    own_keys.keys
}

impl NodeReport {
    fn key(&mut self, slot: Slot, key: Fingerprint, since: u64) -> Option<&mut KeyHistory> {
        let text = key.to_string();
        let at = self.keys.iter().position(|known| known.key == text).unwrap_or_else(|| {
            let (active, verified_by) = (Vec::new(), BTreeSet::new());
            let (replaced, destroyed) = (None, None);
            self.keys.push(KeyHistory { key: text, slot, since, active, replaced, destroyed, verified_by });
            self.keys.len() - 1
        });
        self.keys.get_mut(at)
    }

    /// Another key is in the slot from now on.
    fn replace(&mut self, slot: Slot, by: Fingerprint, time: u64) {
        let by = by.to_string();
        for key in self.keys.iter_mut().filter(|key| key.slot == slot && key.key != by) {
            // A key that is only stored so far replaces nothing and is not replaced.
            if key.replaced.is_none() && key.since <= time {
                key.replaced = Some(time);
            }
        }
        if let Some(back) = self.keys.iter_mut().find(|key| key.key == by) {
            back.replaced = None;
        }
    }
}

fn own(node: &mut NodeReport, line: &Line, name: &impl Fn(&PeerId) -> String) {
    let time = line.time;
    match &line.event {
        Event::Started { keys, created, prefer, .. } => {
            for (slot, key) in keys.iter() {
                node.key(slot, *key, created.get(slot).saturating_mul(1000));
                node.replace(slot, *key, time);
            }
            activate(node, *prefer, *keys.get(*prefer), time);
        }
        Event::Staged { slot, key } => drop(node.key(*slot, *key, time)),
        Event::Published { slot, key, .. } => {
            node.key(*slot, *key, time);
            node.replace(*slot, *key, time);
        }
        Event::Verified { peer, slot, key } => {
            if let Some(key) = node.key(*slot, *key, time) {
                key.verified_by.insert(name(peer));
            }
        }
        Event::Active { slot, key } => activate(node, *slot, *key, time),
        Event::Destroyed { slot, key, .. } => {
            if let Some(key) = node.key(*slot, *key, time) {
                key.destroyed = Some(time);
                key.replaced = key.replaced.or(Some(time));
            }
        }
        Event::RolledBack { slot, key, .. } => {
            node.rolled_back += 1;
            let failed = key.to_string();
            for key in node.keys.iter_mut().filter(|key| key.slot == *slot) {
                if key.key == failed {
                    key.replaced = Some(time);
                } else if key.destroyed.is_none() {
                    key.replaced = None;
                }
            }
        }
        Event::Finished { milliseconds } => node.rotations.push(*milliseconds),
        Event::Skipped { peer } | Event::Forced { peer } => {
            *node.passed_over.entry(name(peer)).or_default() += 1;
        }
        _ => {}
    }
}

fn seen(node: &mut NodeReport, time: u64, prefer: Slot, keys: impl Iterator<Item = (Slot, Fingerprint)>) {
    for (slot, key) in keys {
        node.key(slot, key, time);
        node.replace(slot, key, time);
        if slot == prefer {
            activate(node, slot, key, time);
        }
    }
}

fn activate(node: &mut NodeReport, slot: Slot, key: Fingerprint, time: u64) {
    let text = key.to_string();
    let last = node.keys.iter().filter_map(|key| Some((*key.active.last()?, key.key.clone()))).max();
    if last.is_none_or(|(_, active)| active != text)
        && let Some(key) = node.key(slot, key, time)
    {
        key.active.push(time);
    }
}
