//! The newest timestamp that each public key has sent, which outlives the peer: an initiation that was recorded before
//! the peer was removed must not be accepted once it is added again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use keyring::PublicKey;
use parking_lot::Mutex;

use super::timestamp::Timestamp;

/// Removed peers that are remembered at most. A present peer is never forgotten, nor one that is removed and added again
/// with another preshared key. Only a key that was gone while so many others went after it is.
const REMOVED_LIMIT: usize = 16_384;

/// The newest timestamp of one public key, shared with threads that still work with a removed peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewestTimestamp(Arc<Mutex<Timestamp>>);

impl NewestTimestamp {
    pub(super) fn is_older_than(&self, timestamp: Timestamp) -> bool {
        *self.0.lock() < timestamp
    }

    /// Takes the timestamp of a genuine initiation; returns whether it is newer than all before.
    pub(super) fn advance(&self, timestamp: Timestamp) -> bool {
        let mut newest = self.0.lock();
        let newer = timestamp > *newest;
        if newer {
            *newest = timestamp;
        }
        newer
    }
}

/// The timestamps of removed peers. They do not end with our own private key: a rotation that is rolled back sets a
/// former key again, and with it what was recorded under it.
#[derive(Debug, Default)]
pub(super) struct RemovedPeers {
    timestamps: HashMap<PublicKey, (u64, NewestTimestamp)>,
    /// The keys in the order in which they were removed.
    order: BTreeMap<u64, PublicKey>,
    next: u64,
    /// How many were forgotten because there were too many.
    forgotten: u64,
}

impl RemovedPeers {
    /// Keeps the timestamp of a peer that is removed. When there are too many, the one that was removed first goes.
    pub(super) fn keep(&mut self, peer: PublicKey, newest: NewestTimestamp) {
        self.next += 1;
        if let Some((at, _)) = self.timestamps.insert(peer, (self.next, newest)) {
            self.order.remove(&at);
        }
        self.order.insert(self.next, peer);
        if self.timestamps.len() > REMOVED_LIMIT
            && let Some((_, first)) = self.order.pop_first()
        {
            self.timestamps.remove(&first);
            self.forgotten += 1;
        }
    }

    /// How many were forgotten because there were too many.
    pub(super) const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The timestamp of a peer that is added: what is remembered, or none.
    pub(super) fn take(&mut self, peer: &PublicKey) -> NewestTimestamp {
        match self.timestamps.remove(peer) {
            Some((at, newest)) => {
                self.order.remove(&at);
                newest
            }
            None => NewestTimestamp::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> PublicKey {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_first_removed_is_forgotten_first() {
        let mut removed = RemovedPeers::default();
        let count = u32::try_from(REMOVED_LIMIT).unwrap() + 10;
        for number in 0..count {
            let newest = removed.take(&key(number));
            assert!(newest.advance([1; 12]));
            removed.keep(key(number), newest);
            // This one is removed and added again all the time.
            let renewed = removed.take(&key(u32::MAX));
            renewed.advance([2; 12]);
            removed.keep(key(u32::MAX), renewed);
        }
        assert_eq!((removed.timestamps.len(), removed.order.len()), (REMOVED_LIMIT, REMOVED_LIMIT));
        assert_eq!(removed.forgotten(), 11);
        assert!(!removed.take(&key(u32::MAX)).advance([2; 12]));
        assert!(!removed.take(&key(count - 1)).advance([1; 12]));
        assert!(removed.take(&key(0)).advance([1; 12]), "forgotten");
    }
}
