//! The interface's own key and what hangs on it: a new key is a new guard with new cookies.

use std::time::SystemTime;

use boringtun::x25519;
use keyring::{PrivateKey, PublicKey};
use parking_lot::Mutex;

use super::admission::Admission;
use super::noise::Timestamp;

/// Seconds between the zeros of TAI64 and of Unix time, with the 10 leap seconds of 1970 that WireGuard counts.
const TAI64_UNIX: u64 = (1 << 62) + 10;

/// Our own static key, in the form that the handshake computes with.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    /// On the heap, so that moving the identity leaves no copy behind.
    pub(crate) secret: Box<x25519::StaticSecret>,
    pub(crate) secret_public: x25519::PublicKey,
    pub(crate) admission: Admission,
    /// The greatest timestamp that was sent under this key. Of all peers, so that one that is removed and added
    /// again does not take the next for a replay.
    stamped: Mutex<Timestamp>,
}

impl Identity {
    pub(crate) fn new(private: PrivateKey, handshakes_per_second: u64) -> Self {
        let secret = Box::new(x25519::StaticSecret::from(*private.expose()));
        let secret_public = x25519::PublicKey::from(&*secret);
        Self {
            public: private.public(),
            private,
            secret,
            admission: Admission::new(&secret_public, handshakes_per_second),
            stamped: Mutex::new([0; 12]),
            secret_public,
        }
    }

    /// The time as a timestamp, greater than the last. Cut to about 17 ms, as the kernel does: who handshakes when
    /// tells nothing finer about this machine's clock.
    pub(crate) fn stamp(&self, wall: SystemTime) -> Timestamp {
        let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut stamp = [0; 12];
        stamp[..8].copy_from_slice(&(since.as_secs() + TAI64_UNIX).to_be_bytes());
        stamp[8..].copy_from_slice(&(since.subsec_nanos() & !0x00ff_ffff).to_be_bytes());
        let mut last = self.stamped.lock();
        if stamp <= *last {
            // Another within the same 17 ms, or a clock that was set back: one more than the last.
            let mut wide = [0; 16];
            wide[4..].copy_from_slice(&*last);
            let next = u128::from_be_bytes(wide).saturating_add(1).to_be_bytes();
            stamp.copy_from_slice(&next[4..]);
        }
        *last = stamp;
        stamp
    }
}
