//! The interface's static key and the state that belongs to it: another key has its own handshake limiter and cookies.

use boringtun::x25519;
use keyring::{PrivateKey, PublicKey};

use super::handshake_limiter::HandshakeLimiter;
use super::timestamp::Timestamps;

/// Our own static key, in the form that the handshake computes with.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    /// On the heap, so that moving the identity leaves no copy behind.
    pub(crate) secret: Box<x25519::StaticSecret>,
    pub(crate) secret_public: x25519::PublicKey,
    pub(crate) limiter: HandshakeLimiter,
    pub(crate) timestamps: Timestamps,
}

impl Identity {
    pub(crate) fn new(private: PrivateKey, handshakes_per_second: u64) -> Self {
        let secret = Box::new(x25519::StaticSecret::from(*private.expose()));
        let secret_public = x25519::PublicKey::from(&*secret);
        Self {
            public: private.public(),
            private,
            secret,
            limiter: HandshakeLimiter::new(&secret_public, handshakes_per_second),
            timestamps: Timestamps::default(),
            secret_public,
        }
    }
}
