//! The preshared keys of all peers on disk: written when they change, removed when they are no longer in use.

use keyring::pq::StoredPreshared;
use keyring::rotation::PeerId;
use keyring::{NodeKeys, PerSlot};
use tracing::{debug, error, warn};

use super::keys::Keys;
use crate::chain::Chain;

impl Keys {
    /// Writes the state of preshared keys to disk, in one write. If that fails the previous state remains.
    pub(super) fn store_preshared(&mut self, all: Vec<(PeerId, PerSlot<StoredPreshared>)>) -> bool {
        let keep = |ring: &mut NodeKeys, (peer, kept): (PeerId, PerSlot<StoredPreshared>)| {
            let former = ring.store_preshared(peer.clone(), kept);
            (peer, former)
        };
        let peers: Vec<PeerId> = all.iter().map(|(peer, _)| peer.clone()).collect();
        let former: Vec<_> = all.into_iter().map(|one| keep(&mut self.ring, one)).collect();
        let saved = self.store.store_preshared(&self.ring, &peers, self.started.elapsed());
        if let Err(error) = &saved {
            error!(
                event = "PresharedKeysNotStored", error = %Chain(error),
                "can't write preshared keys to disk; the previous ones stay in use"
            );
            for one in former {
                drop(keep(&mut self.ring, one));
            }
        }
        saved.is_ok()
    }

    /// Wipes the preshared keys with a node that is gone.
    pub(super) fn forget_preshared(&mut self, peer: &PeerId) {
        self.ring.forget_preshared(peer);
        let now = self.started.elapsed();
        if let Err(error) = self.store.store_preshared(&self.ring, std::slice::from_ref(peer), now) {
            warn!(
                event = "PresharedKeysNotDeleted", error = %Chain(&error),
                "can't remove the preshared keys of a node that is gone from disk"
            );
        }
    }

    /// Removes from disk what has been superseded for a minute. A failure is tried again at the next turn; that the disk is
    /// full has been logged when a key could not be stored.
    pub(super) fn erase_superseded(&mut self) {
        let erased = self.store.erase_superseded(&self.ring, self.started.elapsed());
        if let Err(error) = erased {
            debug!(event = "PresharedKeysNotErased", error = %Chain(&error), "superseded preshared keys stay on disk");
        }
    }

    /// What was wrong with the file of the preshared keys when the daemon started.
    pub(super) fn damaged(&self) -> Option<&str> {
        self.damaged.as_deref()
    }
}
