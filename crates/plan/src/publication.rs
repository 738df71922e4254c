//! What this node publishes: from its keys and addresses to the annotations on its Node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use keyring::PerSlot;
use keyring::rotation::{Journal, PeerId, Stance, Step};

use crate::admission::Member;
use crate::annotation::{Endpoints, Phase, SlotState, State, names};
use crate::node::{NodeName, NodeRecord, NodeUid};

/// What a node wants its annotations to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The Node's name.
    pub node: NodeName,
    /// Its UID: a Node that was deleted and recreated is not patched by mistake.
    pub uid: NodeUid,
    /// Annotations by name. `None` removes one.
    pub annotations: BTreeMap<String, Option<String>>,
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// UDP port of each slot.
    pub ports: PerSlot<u16>,
    /// Addresses that peers reach it at.
    pub endpoints: Vec<IpAddr>,
    /// Whether it is behind NAT.
    pub nat: bool,
}

/// The annotations that `record`, this node's own Node, should have.
pub fn wanted(record: &NodeRecord, journal: &Journal, listening: Listening) -> Publication {
    let state = State {
        uid: record.uid.clone(),
        generation: journal.generation,
        slots: PerSlot::from_fn(|slot| SlotState {
            key: journal.slots.get(slot).key,
            generation: journal.slots.get(slot).generation,
            port: *listening.ports.get(slot),
        }),
        prefer: journal.prefer,
        drain: journal.drain(),
        phase: match journal.step {
            Step::Draining { .. } => Phase::Draining,
            Step::Verifying { .. } | Step::Restoring => Phase::Verifying,
            Step::Steady | Step::Between if journal.cold => Phase::Cold,
            Step::Steady | Step::Between => Phase::Steady,
        },
    };
    let endpoints = Endpoints { addresses: listening.endpoints, nat: listening.nat };
    let annotations = [(names::STATE, state.render()), (names::ENDPOINTS, endpoints.render())];
    Publication {
        node: record.name.clone(),
        uid: record.uid.clone(),
        annotations: annotations.into_iter().map(|(name, text)| (name.to_owned(), Some(text))).collect(),
    }
}

/// What a peer asks of others, from what it published.
pub fn stance(member: &Member) -> Stance {
    Stance {
        id: PeerId::new(member.uid.as_str()),
        generation: member.state.generation,
        prefer: member.state.prefer,
        drain: member.state.drain,
        installed: member.state.phase == Phase::Verifying,
    }
}

/// Whether the Node has these annotations already.
pub fn is_in_place(record: &NodeRecord, wanted: &Publication) -> bool {
    let found = |name: &str| match name {
        names::STATE => record.state.clone(),
        names::ENDPOINTS => record.endpoints.clone(),
        _ => None,
    };
    wanted.annotations.iter().all(|(name, text)| found(name) == *text)
}

/// The generation on our own Node if it does not belong to these keys: left by an earlier installation, or written by
/// somebody else. Peers that saw it accept only a higher one, so ours has to exceed it.
pub fn foreign_generation(record: &NodeRecord, journal: &Journal) -> Option<u64> {
    let state = State::parse(record.state.as_deref()?).ok()?;
    let ours = state.slots.iter().all(|(slot, found)| found.key == journal.slots.get(slot).key);
    let exceeded = state.generation < journal.generation;
    let same = ours && state.generation == journal.generation;
    (!exceeded && !same).then_some(state.generation)
}
