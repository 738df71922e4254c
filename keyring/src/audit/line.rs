//! One line of a trail, and the hash that ties it to the one before.
//!
//! A line is one JSON object whose last two members are `prev` and `hash`. `hash` is the SHA-256, in hexadecimal, of
//! all bytes of the line before the text `,"hash":"`. `prev` is the hash of the line before, or 64 zeros in a trail's
//! first line. So anybody can check a trail with `sha256sum`.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::event::{Event, NodeRef};

/// The version that this code writes and reads.
const VERSION: u32 = 1;
/// What stands between the hashed bytes and the hash.
const SEAM: &str = ",\"hash\":\"";
/// Longest line that is read, in bytes.
pub(super) const LONGEST: usize = 64 << 10;

/// Where a trail ends.
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

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub seq: u64,
    /// Milliseconds since 1970 by the node's clock.
    pub time: u64,
    /// Which start of the machine it was.
    pub boot: String,
    /// The node that wrote it.
    pub node: NodeRef,
    /// What happened.
    pub event: Event,
    /// Hash of the line before.
    pub prev: String,
    /// Hash of this line.
    pub hash: String,
}

/// The members that are hashed, in their order.
#[derive(Serialize, Deserialize)]
struct Hashed {
    v: u32,
    seq: u64,
    time: u64,
    boot: String,
    node: NodeRef,
    #[serde(flatten)]
    event: Event,
    prev: String,
}

impl Line {
    /// Writes the line that follows `head`, without its newline; returns it with the new head.
    pub(super) fn write(head: &Head, time: u64, boot: &str, node: &NodeRef, event: &Event) -> (String, Head) {
        let hashed = Hashed {
            v: VERSION,
            seq: head.seq + 1,
            time,
            boot: boot.to_owned(),
            node: node.clone(),
            event: event.clone(),
            prev: head.to_string(),
        };
        // Numbers and strings always serialize.
        let mut text = serde_json::to_string(&hashed).unwrap_or_default();
        text.truncate(text.len().saturating_sub(1));
        let next = Head { seq: head.seq + 1, hash: Sha256::digest(&text).into() };
        (format!("{text}{SEAM}{next}\"}}"), next)
    }

    /// Reads a line and checks its own hash.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        if text.len() > LONGEST {
            return Err(LineError::TooLong);
        }
        let (hashed, rest) = text.rsplit_once(SEAM).ok_or(LineError::NotALine)?;
        let hash = rest.strip_suffix("\"}").ok_or(LineError::NotALine)?;
        let read: Hashed = serde_json::from_str(&format!("{hashed}}}")).map_err(|_| LineError::NotALine)?;
        if read.v != VERSION {
            return Err(LineError::Version { found: read.v });
        }
        let found = Head { seq: read.seq, hash: Sha256::digest(hashed).into() }.to_string();
        if found != hash {
            return Err(LineError::Changed);
        }
        let Hashed { seq, time, boot, node, event, prev, .. } = read;
        Ok(Self { seq, time, boot, node, event, prev, hash: found })
    }

    /// The trail's head after this line. Zeros if the hash is none, which a parsed line never has.
    pub fn head(&self) -> Head {
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(self.hash.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
        }
        Head { seq: self.seq, hash }
    }
}

/// Why text is no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Not a line of a trail.
    #[error("not a line of an audit trail")]
    NotALine,
    /// Far longer than any line.
    #[error("longer than any line of an audit trail")]
    TooLong,
    /// Written by another version.
    #[error("line of version {found}: this version reads {VERSION}")]
    Version {
        /// The version.
        found: u32,
    },
    /// Its hash is not that of its text.
    #[error("the line was changed after it was written")]
    Changed,
}
