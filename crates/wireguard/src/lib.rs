//! How peers are changed, said the same way to the engine and to the kernel.
//!
//! Differences only, so that nothing that stays is ever taken away in between.

mod link;
mod peer;

use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PublicKey};

pub use link::{LinkName, LinkNameError};
pub use peer::{Peer, PeerChange};

/// One change to the set of peers.
#[derive(Debug)]
pub enum PeerOp {
    /// Makes the peer if it isn't there, then applies the settings as [`PeerOp::Update`] does.
    Add {
        /// The peer's public key.
        peer: PublicKey,
        /// What to set.
        settings: PeerSettings,
    },
    /// Changes a peer in place; its session goes on. The kernel ignores it without a word if there is no such peer
    /// (`set_peer` in `drivers/net/wireguard/netlink.c`).
    Update {
        /// The peer's public key.
        peer: PublicKey,
        /// What to change.
        settings: PeerSettings,
    },
    /// Removes a peer with its session keys. Removing one that isn't there is no error.
    Remove {
        /// The peer's public key.
        peer: PublicKey,
    },
}

/// What to change about one peer; the default changes nothing.
///
/// A new peer has no endpoint, no allowed IPs, no keepalive and no preshared key, and it may roam.
#[derive(Debug, Default)]
pub struct PeerSettings {
    /// The configured endpoint. `None` leaves it as it is.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives, zero for none. `None` leaves it as it is.
    pub keepalive: Option<u16>,
    /// Prefixes to give to this peer. A prefix that another peer has moves here. Host bits are cleared.
    pub allow: Vec<IpNetwork>,
    /// Prefixes to take from this peer, before [`PeerSettings::allow`] is applied. Prefixes of others stay.
    pub disallow: Vec<IpNetwork>,
    /// Whether an authenticated packet from another address moves the endpoint there. With `false` the
    /// configured endpoint stands and such packets are accepted and counted. `None` leaves it as it is. The kernel
    /// always lets it move.
    pub roaming: Option<bool>,
    /// The preshared key. `None` leaves it as it is; another key holds from the next handshake on.
    pub preshared_key: Option<PresharedKeyChange>,
}

/// What becomes of a peer's preshared key.
#[derive(Debug)]
pub enum PresharedKeyChange {
    /// From now on this key.
    Set(PresharedKey),
    /// From now on none.
    Clear,
}

impl PeerOp {
    /// The peer that changes.
    pub const fn peer(&self) -> &PublicKey {
        match self {
            Self::Add { peer, .. } | Self::Update { peer, .. } | Self::Remove { peer } => peer,
        }
    }
}
