//! A node's private keys and preshared keys, with the journal of its rotation.

use std::collections::BTreeMap;

use crate::pq::StoredPreshared;
use crate::rotation::{Journal, PeerId};
use crate::{KeyError, PerSlot, PresharedId, PresharedKey, PrivateKey, PublicKey, Slot};

/// All secrets of a node.
#[derive(Debug)]
pub struct NodeKeys {
    /// The rotation's journal: what each private key is for.
    pub journal: Journal,
    private: BTreeMap<PublicKey, PrivateKey>,
    preshared: BTreeMap<PeerId, PerSlot<StoredPreshared>>,
    /// The peer and slot of each preshared key.
    by_id: BTreeMap<PresharedId, (PeerId, Slot)>,
}

impl NodeKeys {
    /// Generates keys for both slots, for a node that has none. `unix` is the time in seconds since 1970.
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

    /// Combines a journal with its keys. None if one of them is missing.
    pub fn assemble(journal: Journal, keys: impl IntoIterator<Item = PrivateKey>) -> Option<Self> {
        let private: BTreeMap<_, _> = keys.into_iter().map(|key| (key.public(), key)).collect();
        let whole = journal.keys().all(|key| private.contains_key(&key));
        whole.then(|| Self::new(journal, private))
    }

    const fn new(journal: Journal, private: BTreeMap<PublicKey, PrivateKey>) -> Self {
        Self { journal, private, preshared: BTreeMap::new(), by_id: BTreeMap::new() }
    }

    /// The private key of a public key, if it is known.
    pub fn private(&self, public: &PublicKey) -> Option<&PrivateKey> {
        self.private.get(public)
    }

    /// Adds a new key. It is not written to the file before the journal names it.
    pub fn hold(&mut self, key: PrivateKey) -> PublicKey {
        let public = key.public();
        self.private.insert(public, key);
        public
    }

    /// Wipes a key unless the journal still names it; returns whether it is gone.
    pub fn destroy(&mut self, public: &PublicKey) -> bool {
        if self.journal.keys().any(|key| key == *public) {
            return false;
        }
        self.private.remove(public);
        true
    }

    /// The preshared key with that ID, if it is known.
    pub fn preshared(&self, id: &PresharedId) -> Option<&PresharedKey> {
        let (peer, slot) = self.by_id.get(id)?;
        let kept = self.preshared.get(peer)?.get(*slot);
        kept.key.as_ref().map(|(key, _)| key)
    }

    /// Stores a peer's preshared keys and returns the previous ones; dropping those wipes them.
    pub fn store_preshared(
        &mut self,
        peer: PeerId,
        kept: PerSlot<StoredPreshared>,
    ) -> PerSlot<StoredPreshared> {
        self.forget_ids(&peer);
        let keys = kept.iter().filter_map(|(slot, kept)| Some((slot, &kept.key.as_ref()?.0)));
        self.by_id.extend(keys.map(|(slot, key)| (key.id(), (peer.clone(), slot))));
        self.preshared.insert(peer, kept).unwrap_or_default()
    }

    /// A copy of a peer's preshared keys, for the state machine that uses them.
    pub fn preshared_of(&self, peer: &PeerId) -> PerSlot<StoredPreshared> {
        let copy = |kept: &StoredPreshared| StoredPreshared {
            epoch: kept.epoch,
            key: kept.key.as_ref().map(|(key, statics)| (key.duplicate(), *statics)),
        };
        let kept = self.preshared.get(peer);
        kept.map_or_else(PerSlot::default, |kept| PerSlot::from_fn(|slot| copy(kept.get(slot))))
    }

    /// The peers with which there are or were preshared keys.
    pub fn preshared_peers(&self) -> impl Iterator<Item = &PeerId> {
        self.preshared.keys()
    }

    /// Whether there are or were preshared keys with a peer.
    pub fn has_preshared(&self, peer: &PeerId) -> bool {
        self.preshared.contains_key(peer)
    }

    /// Wipes the preshared keys of a peer that is gone.
    pub fn forget_preshared(&mut self, peer: &PeerId) {
        self.forget_ids(peer);
        self.preshared.remove(peer);
    }

    /// A key may belong to another peer by now: that of a recreated Node.
    fn forget_ids(&mut self, peer: &PeerId) {
        for (_, kept) in self.preshared.get(peer).into_iter().flat_map(PerSlot::iter) {
            let id = kept.key.as_ref().map(|(key, _)| key.id());
            if let Some(id) = id.filter(|id| self.by_id.get(id).is_some_and(|(owner, _)| owner == peer)) {
                self.by_id.remove(&id);
            }
        }
    }

    /// What there is to store of a peer; none if it has no keys and never had.
    pub(crate) fn preshared_stored_of(&self, peer: &PeerId) -> Option<&PerSlot<StoredPreshared>> {
        self.preshared.get(peer).filter(|kept| kept.iter().any(|(_, kept)| kept.epoch > 0))
    }

    /// Every slot of every peer with a state to store.
    pub(crate) fn preshared_stored(&self) -> Vec<(&PeerId, Slot, &StoredPreshared)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_moved_to_another_peer_stays_when_the_former_one_is_forgotten() {
        let mut keys = NodeKeys::cold(1, 0).unwrap();
        let key = PresharedKey::from_bytes(&[7; 32]).unwrap();
        let id = key.id();
        let statics = crate::pq::StaticKeys { own: keys.journal.slots.a.key, peer: keys.journal.slots.b.key };
        let kept = |key: &PresharedKey| PerSlot {
            a: StoredPreshared { epoch: 1, key: Some((key.duplicate(), statics)) },
            b: StoredPreshared::default(),
        };
        let [former, present] = ["former", "present"].map(PeerId::new);
        keys.store_preshared(former.clone(), kept(&key));
        keys.store_preshared(present, kept(&key));
        keys.forget_preshared(&former);
        assert!(keys.preshared(&id).is_some());
    }
}
