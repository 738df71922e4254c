//! Descriptions of a trail's events, with nodes by the names that are in the trail.

use std::collections::BTreeMap;

use keyring::audit::{Event, Line};
use keyring::rotation::{Cause, PeerId};
use keyring::{Fingerprint, PerSlot};

/// The names of nodes, as far as they are in a trail.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<PeerId, String>);

impl Names {
    /// Collects the names in trails: each line has its writer's, and some have a peer's.
    pub(super) fn of<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Self {
        let mut names = BTreeMap::new();
        for line in lines {
            names.insert(line.node.uid.clone(), line.node.name.clone());
            if let Event::PeerAnnounced { peer, .. } | Event::PeerGone { peer } = &line.event {
                names.insert(peer.uid.clone(), peer.name.clone());
            }
        }
        Self(names)
    }

    /// The name, or the UID if the trail has none.
    fn name<'a>(&'a self, peer: &'a PeerId) -> &'a str {
        self.0.get(peer).map_or(peer.as_str(), String::as_str)
    }

    fn list(&self, peers: &[PeerId]) -> String {
        peers.iter().map(|peer| self.name(peer)).collect::<Vec<_>>().join(", ")
    }

    /// A description that fits in a line beside the number and time.
    pub(super) fn describe(&self, event: &Event) -> String {
        match event {
            Event::Started { version, generation, keys, prefer, .. } => {
                format!("version {version}, generation {generation}, keys {}, prefers {prefer}", pair(keys))
            }
            Event::Begun { cause } => match cause {
                Cause::Age => "the keys have reached their age".to_owned(),
                Cause::Request => "requested".to_owned(),
                Cause::Emergency => "emergency: both keys at once".to_owned(),
            },
            Event::Staged { slot, key } => format!("{key} was generated for slot {slot}"),
            Event::Draining { slot, key } => format!("{key}: peers are asked not to send on slot {slot}"),
            Event::Acknowledged { peer, slot } => {
                format!("{} no longer sends on slot {slot}", self.name(peer))
            }
            Event::Published { slot, key, generation } => {
                format!("{key} is in slot {slot}, generation {generation}")
            }
            Event::Verified { peer, slot, key } => {
                format!("{key}: {} answers over it in slot {slot}", self.name(peer))
            }
            Event::Active { slot, key } => format!("{key} in slot {slot} is preferred"),
            Event::Destroyed { slot, key, age } => format!("{key}, of slot {slot}, {age} s old"),
            Event::Skipped { peer } => format!("{} does not respond; not waiting for it", self.name(peer)),
            Event::Forced { peer } => {
                format!("{} does not follow; the keys are too old to wait for it", self.name(peer))
            }
            Event::Blocked { slot, peers } => {
                format!("alive but not following on slot {slot}: {}", self.list(peers))
            }
            Event::RolledBack { slot, key, peers } => {
                format!("{key} of slot {slot} was rolled back because of {}", self.list(peers))
            }
            Event::Finished { milliseconds } => {
                format!("after {}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
            }
            Event::Outgrown { generation } => {
                format!("generation {generation}, above the one found on the Node")
            }
            Event::PeerAnnounced { peer, generation, keys, prefer, drain, installed } => {
                let step = match (drain, installed) {
                    (None, _) => String::new(),
                    (Some(slot), false) => format!(", drains {slot}"),
                    (Some(slot), true) => format!(", verifies {slot}"),
                };
                format!("{}: generation {generation}, keys {}, prefers {prefer}{step}", peer.name, pair(keys))
            }
            Event::PeerGone { peer } => peer.name.clone(),
            Event::PeerRefused { refused, reason } => format!("{refused}: {reason}"),
            Event::PeerHead { peer, line, head } => {
                format!("{}: line {line}, {}", self.name(peer), short(head))
            }
            Event::Anchored { line, head } | Event::WitnessHead { line, head } => {
                format!("line {line}, {}", short(head))
            }
            Event::Repaired { bytes } => {
                format!("{bytes} bytes of an incomplete line were removed after a crash")
            }
            Event::Damaged { file, lines } => format!("{lines} lines of {file} can't be read"),
            Event::Omitted { subject, lines } => {
                let name = self.name(&PeerId::new(subject.as_str())).to_owned();
                format!("{lines} lines about {name} were left out: it exceeded its quota")
            }
            Event::Lost { events } => format!("{events} events could not be written"),
        }
    }
}

/// Both keys, slot a first.
fn pair(keys: &PerSlot<Fingerprint>) -> String {
    format!("{} {}", keys.a, keys.b)
}

/// Enough of a hash to compare by eye; the trail has all of it.
fn short(hash: &str) -> String {
    hash.chars().take(16).collect()
}
