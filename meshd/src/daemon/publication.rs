//! What this node says of itself: pure, from its keys and addresses to its annotations.

use std::net::IpAddr;

use plan::annotation::{Endpoints, Phase, SlotState, State, names};
use plan::node::NodeRecord;

use super::keys::Keys;
use crate::api::publish::Publication;
use crate::config::Config;
use keyring::PerSlot;

/// The annotations that `record`, this node's own Node, should have.
pub(super) fn wanted(
    record: &NodeRecord,
    keys: &Keys,
    config: &Config,
    endpoints: Vec<IpAddr>,
) -> Publication {
    let public = keys.public();
    let state = State {
        uid: record.uid.clone(),
        generation: keys.generation(),
        slots: PerSlot::from_fn(|slot| SlotState {
            key: *public.get(slot),
            generation: keys.slot_generation(slot),
            port: *config.ports.get(slot),
        }),
        prefer: keys.prefer(),
        drain: None,
        phase: Phase::Steady,
    };
    let endpoints = Endpoints { addresses: endpoints, nat: config.nat };
    let annotations = [(names::STATE, state.render()), (names::ENDPOINTS, endpoints.render())];
    Publication {
        node: record.name.clone(),
        uid: record.uid.clone(),
        annotations: annotations.into_iter().map(|(name, text)| (name.to_owned(), Some(text))).collect(),
    }
}

/// Whether the Node already says so.
pub(super) fn stands(record: &NodeRecord, wanted: &Publication) -> bool {
    let found = |name: &str| match name {
        names::STATE => record.state.clone(),
        names::ENDPOINTS => record.endpoints.clone(),
        _ => None,
    };
    wanted.annotations.iter().all(|(name, text)| found(name) == *text)
}

/// The generation on our own Node if it is not of these keys: left by a life before, and to be outgrown.
///
/// Also when somebody else wrote it: peers that saw it believe only a higher one.
pub(super) fn foreign_generation(record: &NodeRecord, keys: &Keys) -> Option<u64> {
    let state = State::parse(record.state.as_deref()?).ok()?;
    let public = keys.public();
    let ours = state.slots.iter().all(|(slot, found)| found.key == *public.get(slot));
    let outgrown = state.generation < keys.generation();
    let same = ours && state.generation == keys.generation();
    (!outgrown && !same).then_some(state.generation)
}
