//! What a node must remember of its rotation to continue it after a crash. Contains public keys only.

use serde::{Deserialize, Serialize};

use super::pair::{PeerId, Stance};
use crate::{PerSlot, PublicKey, Slot};

/// Highest generation: beyond it JSON readers that use floating point lose digits (RFC 8259 section 6).
pub const MAX_GENERATION: u64 = 1 << 53;

/// A public key with its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The public key.
    pub key: PublicKey,
    /// Generation of the node in which the key came into a slot.
    pub generation: u64,
    /// When it was generated, in seconds since 1970 by this node's clock. Used for ages only; the order is
    /// that of generations.
    pub created: u64,
}

/// The step that a rotation is in. The key that is replaced is always that of the slot that is not preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "at")]
pub enum Step {
    /// No rotation.
    Steady,
    /// A new key is on disk; peers are asked to stop sending on the slot.
    Draining {
        /// Which of the two keys is being replaced.
        half: Half,
        /// The new key.
        staged: KeyRecord,
    },
    /// The new key is in its slot; every peer must answer over it.
    Verifying {
        /// Which of the two keys is being replaced.
        half: Half,
        /// The key to restore on failure, while that is possible.
        former: Option<KeyRecord>,
    },
    /// The new key was abandoned and the previous one restored; peers must know that before the slot is used
    /// again.
    Restoring,
    /// The first key has been replaced and is preferred; the second one is next.
    Between,
}

/// The two halves of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Half {
    /// The standby slot's key.
    First,
    /// The key of the slot that was preferred before.
    Second,
}

/// The state of a node's keys and of their rotation. Announcements are derived from it alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Counts announcements; peers accept a higher one at once, and any other only after a while. Starts at 1.
    pub generation: u64,
    /// The slot that peers should send on.
    pub prefer: Slot,
    /// The key in each slot.
    pub slots: PerSlot<KeyRecord>,
    /// The current step.
    pub step: Step,
    /// Whether both keys were replaced because the previous ones were lost or compromised.
    pub cold: bool,
}

impl Journal {
    /// The journal of a node that starts with new keys in both slots.
    pub fn cold(generation: u64, keys: PerSlot<PublicKey>, unix: u64) -> Self {
        let slots = keys.map(|key| KeyRecord { key, generation, created: unix });
        Self { generation, prefer: Slot::A, slots, step: Step::Steady, cold: true }
    }

    /// The slot whose key is replaced now or next.
    pub const fn standby(&self) -> Slot {
        self.prefer.other()
    }

    /// The slot that must not carry traffic.
    pub const fn drain(&self) -> Option<Slot> {
        match self.step {
            Step::Draining { .. } | Step::Verifying { .. } | Step::Restoring => Some(self.standby()),
            Step::Steady | Step::Between => None,
        }
    }

    /// What peers must take into account.
    pub fn stance(&self, id: &PeerId) -> Stance {
        Stance {
            id: id.clone(),
            generation: self.generation,
            prefer: self.prefer,
            drain: self.drain(),
            installed: matches!(self.step, Step::Verifying { .. } | Step::Restoring),
        }
    }

    /// Every key whose private half must be kept. All others must be destroyed.
    pub fn keys(&self) -> impl Iterator<Item = PublicKey> {
        let spare = match &self.step {
            Step::Draining { staged, .. } => Some(staged.key),
            Step::Verifying { former, .. } => former.map(|former| former.key),
            Step::Steady | Step::Between | Step::Restoring => None,
        };
        [self.slots.a.key, self.slots.b.key].into_iter().chain(spare)
    }

    /// The next announcement: the same keys under a higher generation, changed by `change`.
    pub(super) fn next(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        next.generation += 1;
        next.cold = false;
        change(&mut next);
        next.restarted().unwrap_or(next)
    }

    /// The same journal from the first generation on, if its own generations are beyond what peers read: version 0.1 could
    /// be driven there. Peers accept it when it has stood for a while.
    pub fn restarted(&self) -> Option<Self> {
        let spare = match &self.step {
            Step::Draining { staged, .. } => staged.generation,
            Step::Verifying { former, .. } => former.map_or(0, |former| former.generation),
            Step::Steady | Step::Restoring | Step::Between => 0,
        };
        let all = [self.generation, self.slots.a.generation, self.slots.b.generation, spare];
        if all.iter().all(|generation| *generation <= MAX_GENERATION) {
            return None;
        }
        let first = |record: KeyRecord| KeyRecord { generation: 1, ..record };
        let step = match self.step {
            Step::Draining { half, staged } => Step::Draining { half, staged: first(staged) },
            Step::Verifying { half, former } => Step::Verifying { half, former: former.map(first) },
            step => step,
        };
        Some(Self { generation: 1, slots: self.slots.map(first), step, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey::from_bytes(&[byte; 32]).unwrap()
    }

    #[test]
    fn generations_that_peers_would_not_read_start_again() {
        let sound = Journal::cold(MAX_GENERATION, PerSlot { a: key(1), b: key(2) }, 7);
        assert_eq!(sound.restarted(), None);
        assert_eq!(sound.next(|_| {}).generation, 1, "the next one would be too high");
        let staged = KeyRecord { key: key(3), generation: u64::MAX, created: 8 };
        let step = Step::Draining { half: Half::First, staged };
        let poisoned =
            Journal { step, ..Journal::cold(MAX_GENERATION + 1, PerSlot { a: key(1), b: key(2) }, 7) };
        let restarted = poisoned.restarted().unwrap();
        assert_eq!(restarted.generation, 1);
        assert!(restarted.keys().eq(poisoned.keys()), "no key is lost");
        assert!(restarted.slots.iter().all(|(_, slot)| slot.generation == 1 && slot.created == 7));
        assert_eq!(restarted.drain(), poisoned.drain());
        assert_eq!(restarted.restarted(), None);
    }
}
