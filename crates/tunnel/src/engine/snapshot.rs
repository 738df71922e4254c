//! The configuration as the data path reads it: immutable, and swapped as a whole.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use keyring::PublicKey;

use super::allowed_ips::AllowedIps;
use super::identity::Identity;
use super::peer::Peer;
use crate::counters::DropReason;

/// The configuration as the data path needs it.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) by_key: HashMap<PublicKey, Arc<Peer>>,
    pub(super) by_index: HashMap<u32, Arc<Peer>, BuildHasherDefault<IndexHasher>>,
    pub(super) routes: AllowedIps<Arc<Peer>>,
}

impl Snapshot {
    /// The peer that a session index was chosen for: its lowest byte counts that peer's sessions.
    pub(super) fn session_owner(&self, index: u32) -> Result<&Arc<Peer>, DropReason> {
        self.by_index.get(&(index >> 8)).ok_or(DropReason::UnknownIndex)
    }
}

/// For session indices, which we chose at random ourselves: they are their own hash.
#[derive(Default)]
pub(super) struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        // Spread over all bits: the table takes some from each end.
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, index: u32) {
        self.0 = index.into();
    }
}
