//! What this node says of itself: pure, from its keys and addresses to its annotations.

use std::net::IpAddr;

use keyring::PerSlot;
use keyring::rotation::{PeerId, Stance, Step};
use plan::admission::Member;
use plan::annotation::{Endpoints, Phase, SlotState, State, names};
use plan::node::NodeRecord;

use super::keys::Keys;
use crate::api::publish::Publication;
use crate::config::Config;

/// The annotations that `record`, this node's own Node, should have.
pub(super) fn wanted(
    record: &NodeRecord,
    keys: &Keys,
    config: &Config,
    endpoints: Vec<IpAddr>,
) -> Publication {
    let journal = keys.journal();
    let state = State {
        uid: record.uid.clone(),
        generation: journal.generation,
        slots: PerSlot::from_fn(|slot| SlotState {
            key: journal.slots.get(slot).key,
            generation: journal.slots.get(slot).generation,
            port: *config.ports.get(slot),
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
    let endpoints = Endpoints { addresses: endpoints, nat: config.nat };
    let annotations = [(names::STATE, state.render()), (names::ENDPOINTS, endpoints.render())];
    Publication {
        node: record.name.clone(),
        uid: record.uid.clone(),
        annotations: annotations.into_iter().map(|(name, text)| (name.to_owned(), Some(text))).collect(),
    }
}

/// What a peer asks others to heed, from what it published.
pub(super) fn stance(member: &Member) -> Stance {
    Stance {
        id: PeerId::new(member.uid.as_str()),
        generation: member.state.generation,
        prefer: member.state.prefer,
        drain: member.state.drain,
        installed: member.state.phase == Phase::Verifying,
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
    let generation = keys.journal().generation;
    let outgrown = state.generation < generation;
    let same = ours && state.generation == generation;
    (!outgrown && !same).then_some(state.generation)
}
