//! Preshared keys with peers, as the status shows them: from what devices show, not from what is configured.

use keyring::PresharedId;
use keyring::pq::Protection;
use serde::{Deserialize, Serialize};

/// How this node and a peer stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairStatus {
    /// Whether the peer agrees on preshared keys; none while it has not said so.
    pub willing: Option<bool>,
    /// Whether no pod's packet passes between the two, because a preshared key is required and none is proven.
    pub barred: bool,
}

/// The preshared key of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PqSlotStatus {
    /// How far it is.
    pub protection: Protection,
    /// Name of the key.
    pub key: Option<PresharedId>,
    /// Its number between the two nodes.
    pub epoch: u64,
    /// Seconds since a handshake with it was first seen.
    pub age: Option<u64>,
}

impl PqSlotStatus {
    /// One word for a table.
    pub(super) const fn word(&self) -> &'static str {
        match self.protection {
            Protection::None => "-",
            Protection::Offered => "agreeing",
            Protection::Set => "set",
            Protection::Proven => "proven",
        }
    }
}

impl PairStatus {
    /// Why no pod's packet passes, for people.
    pub(super) const fn reason(self) -> &'static str {
        match self.willing {
            Some(false) => "its pq is off",
            None => {
                "it has said nothing about preshared keys: it is out of reach, or of a version that has none"
            }
            Some(true) => "none is proven yet",
        }
    }
}
