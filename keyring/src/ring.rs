//! A node's private keys with the journal that says what each is for.

use std::collections::BTreeMap;

use crate::rotation::Journal;
use crate::{KeyError, PerSlot, PrivateKey, PublicKey};

/// Everything secret that a node keeps.
#[derive(Debug)]
pub struct NodeKeys {
    /// What the keys are for.
    pub journal: Journal,
    private: BTreeMap<PublicKey, PrivateKey>,
}

impl NodeKeys {
    /// New keys for both slots, for a node that had none. `unix` is the time in seconds since 1970.
    pub fn cold(generation: u64, unix: u64) -> Result<Self, KeyError> {
        let mut private = BTreeMap::new();
        let public = PerSlot::try_from_fn(|_| -> Result<PublicKey, KeyError> {
            let key = PrivateKey::generate()?;
            let public = key.public();
            private.insert(public, key);
            Ok(public)
        })?;
        Ok(Self { journal: Journal::cold(generation, public, unix), private })
    }

    /// A journal with its keys. None if one of them is missing.
    pub fn assemble(journal: Journal, keys: impl IntoIterator<Item = PrivateKey>) -> Option<Self> {
        let private: BTreeMap<_, _> = keys.into_iter().map(|key| (key.public(), key)).collect();
        let whole = journal.keys().all(|key| private.contains_key(&key));
        whole.then_some(Self { journal, private })
    }

    /// The private half of a public key, if it is here.
    pub fn private(&self, public: &PublicKey) -> Option<&PrivateKey> {
        self.private.get(public)
    }

    /// Takes a new key; it is in no file before the journal names it.
    pub fn hold(&mut self, key: PrivateKey) -> PublicKey {
        let public = key.public();
        self.private.insert(public, key);
        public
    }

    /// Wipes a key, unless the journal still names it. Says whether it is gone.
    pub fn destroy(&mut self, public: &PublicKey) -> bool {
        if self.journal.keys().any(|key| key == *public) {
            return false;
        }
        self.private.remove(public);
        true
    }

    /// The keys that the journal names, in its order.
    pub(crate) fn named(&self) -> impl Iterator<Item = &PrivateKey> {
        self.journal.keys().filter_map(|key| self.private.get(&key))
    }
}
