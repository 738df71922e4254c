//! This node's keys: loaded or made once, and never announced before they are on disk.

use std::path::Path;

use keyring::store::{FileStore, NodeKeys, StoreError};
use keyring::{KeyError, PerSlot, PrivateKey, PublicKey, Slot};
use tracing::info;

/// The key file and what is in it.
#[derive(Debug)]
pub(super) struct Keys {
    store: FileStore,
    keys: NodeKeys,
}

impl Keys {
    /// Loads the keys from `folder`, or makes them if there have never been any.
    pub(super) fn open(folder: &Path) -> Result<Self, KeysError> {
        let store = FileStore::open(folder)?;
        if let Some(keys) = store.load()? {
            info!(generation = keys.generation, "loaded keys");
            return Ok(Self { store, keys });
        }
        let keys = NodeKeys::generate(1)?;
        store.save(&keys)?;
        for (slot, key) in keys.slots.iter() {
            info!(%slot, fingerprint = %key.private.public().fingerprint(), "made a new key");
        }
        Ok(Self { store, keys })
    }

    /// The public key of each slot.
    pub(super) fn public(&self) -> PerSlot<PublicKey> {
        PerSlot::from_fn(|slot| self.keys.slots.get(slot).private.public())
    }

    /// The private key that belongs to a public one, if it is ours.
    pub(super) fn private(&self, public: &PublicKey) -> Option<&PrivateKey> {
        let keys = self.keys.slots.iter().map(|(_, key)| &key.private);
        keys.into_iter().find(|private| private.public() == *public)
    }

    /// The generation that is announced.
    pub(super) fn generation(&self) -> u64 {
        self.keys.generation
    }

    /// The generation in which a slot's key was made.
    pub(super) fn slot_generation(&self, slot: Slot) -> u64 {
        self.keys.slots.get(slot).generation
    }

    /// The slot that peers should send to.
    pub(super) fn prefer(&self) -> Slot {
        self.keys.prefer
    }

    /// Takes a generation above `seen`, which stands on our Node from a life before: peers have seen it and
    /// believe only a higher one. On disk when this returns.
    pub(super) fn outgrow(&mut self, seen: u64) -> Result<(), KeysError> {
        let former = self.keys.generation;
        let generation = seen.saturating_add(1);
        self.keys.generation = generation;
        for slot in Slot::ALL {
            self.keys.slots.get_mut(slot).generation = generation;
        }
        if let Err(error) = self.store.save(&self.keys) {
            self.keys.generation = former;
            return Err(error.into());
        }
        info!(former, generation, "took a generation above the one on our Node");
        Ok(())
    }
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The key file can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key could not be made.
    #[error("make this node's keys")]
    Make(#[from] KeyError),
}
