//! Operations on the peers of a device, with the secrets that they need.

use keyring::{PresharedKey, PublicKey};

use crate::PeerChange;

/// One operation on the peers of a device.
#[derive(Debug)]
pub enum PeerOp {
    /// Adds the peer if it does not exist, then changes it as [`PeerOp::Update`] does.
    ///
    /// A new peer has no endpoint, no allowed IPs, no keepalive and no preshared key, and its endpoint roams.
    Add {
        /// The peer's public key.
        peer: PublicKey,
        /// Its configuration.
        change: PeerChange,
        /// Its preshared key; `None` leaves it as it is.
        preshared_key: Option<PresharedKeyChange>,
    },
    /// Changes an existing peer; its session goes on. The kernel silently ignores this if there is no such peer
    /// (`set_peer` in `drivers/net/wireguard/netlink.c`).
    Update {
        /// The peer's public key.
        peer: PublicKey,
        /// What to change.
        change: PeerChange,
        /// Its preshared key; `None` leaves it as it is. Another key takes effect at the next handshake.
        preshared_key: Option<PresharedKeyChange>,
    },
    /// Removes a peer with its sessions. Removing one that does not exist is no error.
    Remove {
        /// The peer's public key.
        peer: PublicKey,
    },
}

/// A change of the preshared key with a peer.
#[derive(Debug)]
pub enum PresharedKeyChange {
    /// Use this key.
    Set(PresharedKey),
    /// Use none.
    Clear,
}

impl PeerOp {
    /// Adds a peer, or changes it if it exists; its preshared key stays as it is.
    pub const fn add(peer: PublicKey, change: PeerChange) -> Self {
        Self::Add { peer, change, preshared_key: None }
    }

    /// Changes an existing peer; its preshared key stays as it is.
    pub const fn update(peer: PublicKey, change: PeerChange) -> Self {
        Self::Update { peer, change, preshared_key: None }
    }

    /// The peer concerned.
    pub const fn peer(&self) -> &PublicKey {
        match self {
            Self::Add { peer, .. } | Self::Update { peer, .. } | Self::Remove { peer } => peer,
        }
    }
}

impl PresharedKeyChange {
    /// The change to `key`, or to none.
    pub fn to(key: Option<&PresharedKey>) -> Self {
        key.map_or(Self::Clear, |key| Self::Set(key.duplicate()))
    }
}
