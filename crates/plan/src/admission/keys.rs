//! Which keys of a node count: those that it proves, in the order of their generations.

use keyring::Slot;

use super::admitter::{Admitter, Candidate};
use super::reason::Reason;
use crate::annotation::State;

/// How far a generation may be ahead of the last accepted one. A thief that jumps further gains nothing by it.
pub const GENERATION_STEP: u64 = 1024;

impl Admitter<'_> {
    /// The state that the Node shows, if it can be accepted.
    pub(super) fn state(&self, candidate: &Candidate<'_>) -> Result<State, Reason> {
        let state = candidate.announcement.state().map_err(Clone::clone)?;
        if state.proofs.is_none() && !self.may_be_unproven(candidate) {
            return Err(Reason::ProofMissing);
        }
        if let Some(former) = candidate.entry.and_then(|entry| entry.state())
            && !candidate.announcement.is_settled()
        {
            follows(state, former)?;
        }
        match self.key_of_another(candidate, state) {
            Some(reason) => Err(reason),
            None => Ok(state.clone()),
        }
    }

    /// What the same Node showed before, if it still could.
    pub(super) fn last_good(&self, candidate: &Candidate<'_>) -> Option<State> {
        let state = candidate.entry?.state()?;
        let accepted = state.proofs.is_some() || self.may_be_unproven(candidate);
        (accepted && self.key_of_another(candidate, state).is_none()).then(|| state.clone())
    }

    /// Whether the node may do without proofs: never again once it has shown some.
    fn may_be_unproven(&self, candidate: &Candidate<'_>) -> bool {
        self.policy.accept_unproven && !candidate.has_proved
    }

    /// Why one of the keys is not the node's. A key that is proven is kept from it only by another proof.
    fn key_of_another(&self, candidate: &Candidate<'_>, state: &State) -> Option<Reason> {
        let proven = state.proofs.is_some();
        state.slots.iter().find_map(|(slot, found)| {
            if self.policy.own_keys.contains(&found.key) {
                return Some(if proven { Reason::OwnKeyShared { slot } } else { Reason::OwnKey { slot } });
            }
            let holder = self.claims.holder_of_key(&candidate.record.uid, &found.key, proven)?;
            Some(if proven { Reason::KeyShared { slot, holder } } else { Reason::KeyTaken { slot, holder } })
        })
    }
}

/// Whether a state may follow the last accepted one at once.
fn follows(state: &State, former: &State) -> Result<(), Reason> {
    let (found, known) = (state.generation, former.generation);
    let same_keys = Slot::ALL.iter().all(|slot| state.slots.get(*slot).key == former.slots.get(*slot).key);
    if found < known {
        return Err(Reason::GenerationWentBack { found, known });
    }
    if found == known && !same_keys {
        return Err(Reason::GenerationReused { found });
    }
    if found - known > GENERATION_STEP {
        return Err(Reason::GenerationJumped { found, known });
    }
    Ok(())
}
