//! A node's private keys with the journal that says what each is for.

use std::collections::BTreeMap;

use crate::pq::Kept;
use crate::rotation::{Journal, PeerId};
use crate::{KeyError, PerSlot, PresharedId, PresharedKey, PrivateKey, PublicKey, Slot};

/// Everything secret that a node keeps.
#[derive(Debug)]
pub struct NodeKeys {
    /// What the keys are for.
    pub journal: Journal,
    private: BTreeMap<PublicKey, PrivateKey>,
    preshared: BTreeMap<PeerId, PerSlot<Kept>>,
    /// Where each preshared key stands, by its name.
    names: BTreeMap<PresharedId, (PeerId, Slot)>,
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
        Ok(Self::new(Journal::cold(generation, public, unix), private))
    }

    /// A journal with its keys. None if one of them is missing.
    pub fn assemble(journal: Journal, keys: impl IntoIterator<Item = PrivateKey>) -> Option<Self> {
        let private: BTreeMap<_, _> = keys.into_iter().map(|key| (key.public(), key)).collect();
        let whole = journal.keys().all(|key| private.contains_key(&key));
        whole.then(|| Self::new(journal, private))
    }

    const fn new(journal: Journal, private: BTreeMap<PublicKey, PrivateKey>) -> Self {
        Self { journal, private, preshared: BTreeMap::new(), names: BTreeMap::new() }
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

    /// The preshared key of that name, if it is here.
    pub fn preshared(&self, id: &PresharedId) -> Option<&PresharedKey> {
        let (peer, slot) = self.names.get(id)?;
        let kept = self.preshared.get(peer)?.get(*slot);
        kept.key.as_ref().map(|(key, _)| key)
    }

    /// Takes what is to be kept of a peer's preshared keys, and gives back what was: dropping that wipes it.
    pub fn keep_preshared(&mut self, peer: PeerId, kept: PerSlot<Kept>) -> PerSlot<Kept> {
        self.names.retain(|_, (known, _)| *known != peer);
        let keys = kept.iter().filter_map(|(slot, kept)| Some((slot, &kept.key.as_ref()?.0)));
        self.names.extend(keys.map(|(slot, key)| (key.id(), (peer.clone(), slot))));
        self.preshared.insert(peer, kept).unwrap_or_default()
    }

    /// A second copy of a peer's preshared keys, for the machine that uses them.
    pub fn preshared_of(&self, peer: &PeerId) -> PerSlot<Kept> {
        let copy = |kept: &Kept| Kept {
            epoch: kept.epoch,
            key: kept.key.as_ref().map(|(key, statics)| (key.duplicate(), *statics)),
        };
        let kept = self.preshared.get(peer);
        kept.map_or_else(PerSlot::default, |kept| PerSlot::from_fn(|slot| copy(kept.get(slot))))
    }

    /// The peers with whom there are preshared keys, or have been.
    pub fn preshared_peers(&self) -> impl Iterator<Item = &PeerId> {
        self.preshared.keys()
    }

    /// Wipes the preshared keys of a peer that is gone.
    pub fn forget_preshared(&mut self, peer: &PeerId) {
        self.preshared.remove(peer);
        self.names.retain(|_, (known, _)| known != peer);
    }

    /// Every slot of every peer of which there is something to keep.
    pub(crate) fn preshared_kept(&self) -> Vec<(&PeerId, Slot, &Kept)> {
        let all = self
            .preshared
            .iter()
            .flat_map(|(peer, kept)| kept.iter().map(move |(slot, kept)| (peer, slot, kept)));
        all.filter(|(_, _, kept)| kept.epoch > 0).collect()
    }

    /// The keys that the journal names, in its order.
    pub(crate) fn named(&self) -> impl Iterator<Item = &PrivateKey> {
        self.journal.keys().filter_map(|key| self.private.get(&key))
    }
}
