//! Changes to peers as data: differences only.

use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PublicKey};

/// One change to the set of peers.
#[derive(Debug)]
pub enum PeerChange {
    /// Makes the peer if it isn't there, then applies the settings as [`PeerChange::Update`] does.
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
#[derive(Debug, Default)]
pub struct PeerSettings {
    /// The endpoint. `None` leaves it as it is. The kernel lets it follow the peer; that can't be turned off.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between persistent keepalives, zero for none. `None` leaves it as it is.
    pub keepalive: Option<u16>,
    /// Prefixes to give to this peer. A prefix that another peer has moves here.
    pub allow: Vec<IpNetwork>,
    /// Prefixes to take from this peer, before [`PeerSettings::allow`] is applied. Prefixes of others stay.
    pub disallow: Vec<IpNetwork>,
    /// The preshared key, for the next handshake: the session goes on. `None` leaves it as it is.
    pub preshared_key: Option<PresharedKeyChange>,
}

/// What becomes of a peer's preshared key.
#[derive(Debug)]
pub enum PresharedKeyChange {
    /// From the next handshake on this key.
    Set(PresharedKey),
    /// From the next handshake on none.
    Clear,
}

impl PeerChange {
    /// The peer that changes.
    pub const fn peer(&self) -> &PublicKey {
        match self {
            Self::Add { peer, .. } | Self::Update { peer, .. } | Self::Remove { peer } => peer,
        }
    }
}
