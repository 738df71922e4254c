//! The head of a trail: what a witness needs to know to notice later that the trail was changed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The end of a trail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of its last line; zero if there is none.
    pub seq: u64,
    /// Hash of its last line; zeros if there is none.
    pub hash: [u8; 32],
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
