//! What a plan says of a peer, in the words that both backends take.

use keyring::PresharedKey;
use plan::network::Peer;
use wireguard::PeerChange;
use wireguard::{PeerSettings, PresharedKeyChange};

/// All of a peer that is to be made.
pub(super) fn of_new(peer: &Peer, preshared: Option<&PresharedKey>) -> PeerSettings {
    PeerSettings {
        endpoint: peer.endpoint,
        keepalive: Some(peer.keepalive.unwrap_or(0)),
        allow: peer.allowed_ips.iter().copied().collect(),
        roaming: Some(peer.roaming),
        ..of_preshared(preshared)
    }
}

/// What differs at one that stands.
pub(super) fn of_change(change: &PeerChange) -> PeerSettings {
    PeerSettings {
        endpoint: change.endpoint,
        keepalive: change.keepalive.map(|interval| interval.unwrap_or(0)),
        allow: change.allow.iter().copied().collect(),
        disallow: change.disallow.iter().copied().collect(),
        roaming: change.roaming,
        preshared_key: None,
    }
}

/// Another preshared key, or none, and nothing else.
pub(super) fn of_preshared(preshared: Option<&PresharedKey>) -> PeerSettings {
    let change = preshared.map_or(PresharedKeyChange::Clear, |key| PresharedKeyChange::Set(key.duplicate()));
    PeerSettings { preshared_key: Some(change), ..PeerSettings::default() }
}
