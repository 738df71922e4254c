//! Preshared keys with peers, as observed on the devices rather than as configured.

use keyring::PresharedId;
use keyring::pq::Protection;
use serde::{Deserialize, Serialize};

/// State of the preshared key exchange with a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairStatus {
    /// Whether preshared keys are enabled on the peer; none while unknown.
    pub enabled: Option<bool>,
    /// Whether pod traffic with the peer is blocked because a preshared key is required and none is proven.
    pub blocked: bool,
    /// For how many seconds pods' packets have passed without a preshared key although both nodes want one; none if they
    /// have not for long.
    #[serde(default)]
    pub stripped_seconds: Option<u64>,
}

/// The preshared key of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PqSlotStatus {
    /// Its state.
    pub protection: Protection,
    /// Identifies the key.
    pub key: Option<PresharedId>,
    /// Its sequence number between the two nodes.
    pub epoch: u64,
    /// Seconds since the first handshake with it.
    pub age: Option<u64>,
}

impl PqSlotStatus {
    /// Its state in one word, for a table.
    pub(crate) const fn text(&self) -> &'static str {
        text(self.protection)
    }
}

/// The state of a preshared key in one word, for a table.
pub(crate) const fn text(protection: Protection) -> &'static str {
    match protection {
        Protection::None => "-",
        Protection::Offered => "negotiating",
        Protection::Set => "set",
        Protection::Proven => "proven",
    }
}

impl PairStatus {
    /// Why pod traffic is blocked.
    pub(crate) const fn reason(self) -> &'static str {
        match self.enabled {
            Some(false) => "pq is off there",
            None => {
                "it has not negotiated preshared keys: it is unreachable, or its version does not support them"
            }
            Some(true) => "none is proven yet",
        }
    }
}
