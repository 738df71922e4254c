//! One line of a trail, chained to the previous one by a hash.
//!
//! A line is one JSON object whose last two members are `prev` and `hash`. `hash` is the SHA-256, in
//! hexadecimal, of all bytes of the line before the text `,"hash":"`. `prev` is the hash of the previous
//! line, or 64 zeros in a trail's first line. So a trail can be checked with `sha256sum`.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::event::{Event, NodeRef};
use super::head::Head;

/// The version that this code writes and reads.
const VERSION: u32 = 1;
/// The text between the hashed bytes and the hash.
const HASH_MEMBER: &str = ",\"hash\":\"";
/// Longest line that is read, in bytes: one that lists the UIDs of 10,000 peers has 400 kB.
const MAX_LINE_LEN: usize = 1 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub seq: u64,
    /// Milliseconds since 1970 by the node's clock.
    pub time: u64,
    /// The kernel's boot ID.
    pub boot: String,
    /// The node that wrote it.
    pub node: NodeRef,
    /// What happened.
    pub event: Event,
    /// Hash of the previous line.
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
    /// Renders the line that follows `head`, without its newline; returns it with the new head.
    pub(super) fn write(head: &Head, time: u64, boot: &str, node: &NodeRef, event: &Event) -> (String, Head) {
        let hashed = Hashed {
            v: VERSION,
            seq: head.seq.saturating_add(1),
            time,
            boot: boot.to_owned(),
            node: node.clone(),
            event: event.clone(),
            prev: head.to_string(),
        };
        // Numbers and strings always serialize.
        let mut text = serde_json::to_string(&hashed).unwrap_or_default();
        text.truncate(text.len().saturating_sub(1));
        let next = Head { seq: hashed.seq, hash: Sha256::digest(&text).into() };
        (format!("{text}{HASH_MEMBER}{next}\"}}"), next)
    }

    /// Parses a line and verifies its own hash.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        if text.len() > MAX_LINE_LEN {
            return Err(LineError::TooLong);
        }
        let (hashed, rest) = text.rsplit_once(HASH_MEMBER).ok_or(LineError::NotALine)?;
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

    /// The trail's head after this line. Its hash is zero if the line has none, which a parsed line always
    /// has.
    pub fn head(&self) -> Head {
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(self.hash.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
        }
        Head { seq: self.seq, hash }
    }
}

/// Why text is not a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Not a line of a trail.
    #[error("not a line of an audit trail")]
    NotALine,
    /// Longer than any line.
    #[error("longer than any line of an audit trail")]
    TooLong,
    /// Written by another version.
    #[error("line of version {found}: expected version {VERSION}")]
    Version {
        /// The version.
        found: u32,
    },
    /// Its hash does not match its text.
    #[error("the line was changed after it was written")]
    Changed,
}
