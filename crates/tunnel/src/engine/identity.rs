//! The interface's own key and what hangs on it: a new key is a new guard with new cookies.

use std::sync::Arc;

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::x25519;
use keyring::{PrivateKey, PublicKey};

use super::admission::Admission;

/// Our own static key, in the form that the handshake computes with.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    /// On the heap, so that moving the identity leaves no copy behind.
    pub(crate) secret: Box<x25519::StaticSecret>,
    pub(crate) secret_public: x25519::PublicKey,
    pub(crate) admission: Admission,
    /// `Tunn` verifies again what [`Admission`] has let in; this limiter never refuses anything more.
    pub(super) unlimited: Arc<RateLimiter>,
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
            unlimited: Arc::new(RateLimiter::new(&secret_public, u64::MAX)),
            secret_public,
        }
    }
}
