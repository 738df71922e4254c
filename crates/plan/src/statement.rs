//! What a node's keys sign: the whole of its state, so that no part of it can be used for another Node or another time.

use keyring::{PerSlot, Proof, Slot};

use crate::annotation::{Phase, State};

/// Separates these signatures from all others that the keys may ever make.
const DOMAIN: &[u8] = b"meshd.dev/state v1\0";

impl State {
    /// The bytes that the key of `signer` signs. Every field has a fixed length or is preceded by its length, so that no
    /// two states have the same bytes.
    pub fn statement(&self, signer: Slot) -> Vec<u8> {
        let uid = self.uid.as_str().as_bytes();
        let mut bytes = Vec::with_capacity(DOMAIN.len() + uid.len() + 128);
        bytes.extend_from_slice(DOMAIN);
        bytes.extend_from_slice(&(uid.len() as u64).to_be_bytes());
        bytes.extend_from_slice(uid);
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        for (_, slot) in self.slots.iter() {
            bytes.extend_from_slice(slot.key.as_bytes());
            bytes.extend_from_slice(&slot.generation.to_be_bytes());
            bytes.extend_from_slice(&slot.port.to_be_bytes());
        }
        let phase = match self.phase {
            Phase::Steady => 1,
            Phase::Draining => 2,
            Phase::Verifying => 3,
            Phase::Cold => 4,
        };
        bytes.extend([number(self.prefer), self.drain.map_or(0, number), phase, number(signer)]);
        bytes
    }

    /// The same state with proofs by `sign`; none if one of the keys does not sign.
    #[must_use]
    pub fn prove(&self, mut sign: impl FnMut(Slot, &[u8]) -> Option<Proof>) -> Option<Self> {
        let proofs = PerSlot::try_from_fn(|slot| sign(slot, &self.statement(slot)).ok_or(()));
        Some(Self { proofs: Some(proofs.ok()?), ..self.clone() })
    }

    /// The same state without proofs.
    #[must_use]
    pub fn unproven(&self) -> Self {
        Self { proofs: None, ..self.clone() }
    }

    /// The slot whose proof is not valid, if there are proofs and one is not.
    pub fn invalid_proof(&self) -> Option<Slot> {
        let proofs = self.proofs.as_ref()?;
        let valid = |slot| proofs.get(slot).verifies(&self.slots.get(slot).key, &self.statement(slot));
        Slot::ALL.into_iter().find(|slot| !valid(*slot))
    }
}

const fn number(slot: Slot) -> u8 {
    match slot {
        Slot::A => 1,
        Slot::B => 2,
    }
}

#[cfg(test)]
mod tests {
    use keyring::{NOISE, PrivateKey};

    use super::*;
    use crate::annotation::SlotState;
    use crate::node::NodeUid;

    fn private(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn state() -> State {
        let slot = |byte, port| SlotState { key: private(byte).public(), generation: 3, port };
        State {
            uid: NodeUid::new("u1"),
            generation: 4,
            slots: PerSlot { a: slot(1, 51840), b: slot(2, 51841) },
            prefer: Slot::A,
            drain: None,
            phase: Phase::Steady,
            proofs: None,
        }
    }

    fn signed(state: &State) -> State {
        let key = |slot| private(if slot == Slot::A { 1 } else { 2 });
        state.prove(|slot, statement| Some(Proof::sign(&key(slot), statement, &[5; NOISE]))).unwrap()
    }

    #[test]
    fn a_proof_covers_every_field() {
        let signed = signed(&state());
        assert_eq!(signed.invalid_proof(), None);
        let changes: [&dyn Fn(&mut State); 13] = [
            &|state| state.uid = NodeUid::new("u2"),
            &|state| state.generation = 5,
            &|state| state.slots.a.key = private(3).public(),
            &|state| state.slots.b.key = private(3).public(),
            &|state| state.slots.a.generation = 4,
            &|state| state.slots.b.generation = 4,
            &|state| state.slots.a.port = 1,
            &|state| state.slots.b.port = 1,
            &|state| state.prefer = Slot::B,
            &|state| state.drain = Some(Slot::A),
            &|state| state.phase = Phase::Cold,
            // The proof of the other slot, and both slots exchanged with their proofs.
            &|state| {
                let proofs = state.proofs.as_mut().unwrap();
                proofs.a = proofs.b;
            },
            &|state| {
                std::mem::swap(&mut state.slots.a, &mut state.slots.b);
                let proofs = state.proofs.as_mut().unwrap();
                std::mem::swap(&mut proofs.a, &mut proofs.b);
            },
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut forged = signed.clone();
            change(&mut forged);
            assert!(forged.invalid_proof().is_some(), "change {index}");
        }
        let mut half = signed;
        half.proofs.as_mut().unwrap().b = Proof::from_bytes([0; 64]);
        assert_eq!(half.invalid_proof(), Some(Slot::B), "each slot proves its own key");
    }

    #[test]
    fn states_that_differ_have_statements_that_differ() {
        let bare = state();
        let longer = State { uid: NodeUid::new("u1\u{0}"), ..state() };
        assert_ne!(bare.statement(Slot::A), longer.statement(Slot::A));
        assert_ne!(bare.statement(Slot::A), bare.statement(Slot::B));
        assert_eq!(bare.statement(Slot::A), signed(&bare).statement(Slot::A), "proofs are not signed");
    }

    #[test]
    fn the_longest_state_with_proofs_fits() {
        let mut longest = State {
            uid: NodeUid::new("8f4b1c1e-0d9a-4a63-9f50-0123456789ab"),
            generation: 1 << 53,
            prefer: Slot::B,
            drain: Some(Slot::A),
            phase: Phase::Verifying,
            ..state()
        };
        for slot in Slot::ALL {
            longest.slots.get_mut(slot).generation = 1 << 53;
        }
        let text = signed(&longest).render();
        assert!(text.len() <= crate::annotation::MAX_LEN / 2 + 128, "{}", text.len());
        assert_eq!(State::parse(&text).unwrap().invalid_proof(), None);
    }
}
