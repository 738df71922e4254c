//! The key file's text: one JSON object with a checksum, so that a cut-off or edited file shows.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{NodeKeys, SlotKey};
use crate::{KeyError, PerSlot, PrivateKey, Slot};

/// The version of the format that this code writes and reads.
const VERSION: u32 = 1;

/// The file as it is written. The secrets are borrowed from a buffer that is wiped.
#[derive(Serialize, Deserialize)]
struct Document<'a> {
    v: u32,
    generation: u64,
    prefer: Slot,
    #[serde(borrow)]
    slots: PerSlot<Entry<'a>>,
    #[serde(borrow)]
    checksum: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    generation: u64,
    key: &'a str,
}

pub(super) fn render(keys: &NodeKeys) -> Zeroizing<Vec<u8>> {
    let texts = PerSlot::from_fn(|slot| keys.slots.get(slot).private.to_base64());
    let checksum = checksum(keys);
    let document = Document {
        v: VERSION,
        generation: keys.generation,
        prefer: keys.prefer,
        slots: PerSlot::from_fn(|slot| Entry {
            generation: keys.slots.get(slot).generation,
            key: texts.get(slot).as_str(),
        }),
        checksum: &checksum,
    };
    let mut text = Zeroizing::new(Vec::with_capacity(1024));
    // Writing into memory can't fail, and a document of numbers and strings always serializes.
    let written = serde_json::to_writer(&mut *text, &document);
    debug_assert!(written.is_ok());
    text.push(b'\n');
    text
}

pub(super) fn parse(text: &[u8]) -> Result<NodeKeys, FormatError> {
    let document: Document<'_> = serde_json::from_slice(text).map_err(|_| FormatError::NotAKeyFile)?;
    if document.v != VERSION {
        return Err(FormatError::Version { found: document.v, expected: VERSION });
    }
    let slots = PerSlot::try_from_fn(|slot| {
        let entry = document.slots.get(slot);
        let private =
            PrivateKey::from_base64(entry.key).map_err(|source| FormatError::Key { slot, source })?;
        Ok(SlotKey { generation: entry.generation, private })
    })?;
    let keys = NodeKeys { generation: document.generation, prefer: document.prefer, slots };
    if checksum(&keys) != document.checksum {
        return Err(FormatError::Checksum);
    }
    Ok(keys)
}

/// A digest over all values. Against accidents, not against attackers: whoever can write the file can
/// compute it as well.
fn checksum(keys: &NodeKeys) -> String {
    let mut digest = Sha256::new();
    digest.update(keys.generation.to_be_bytes());
    digest.update(keys.prefer.as_str());
    for (_, slot) in keys.slots.iter() {
        digest.update(slot.generation.to_be_bytes());
        digest.update(slot.private.public().as_bytes());
    }
    format!("{:x}", digest.finalize())
}

/// What is wrong with a key file. The JSON parser's own message is left out: it may quote the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not one complete JSON object with the expected fields.
    #[error("not a complete key file: cut off, empty or of another kind")]
    NotAKeyFile,
    /// Written by a newer version.
    #[error("format version {found}: this version reads {expected}")]
    Version {
        /// The version in the file.
        found: u32,
        /// The version that is understood.
        expected: u32,
    },
    /// A slot's key is no key.
    #[error("key of slot {slot}")]
    Key {
        /// The slot.
        slot: Slot,
        /// What is wrong with the key.
        source: KeyError,
    },
    /// The checksum does not fit.
    #[error("checksum does not match: a value was changed")]
    Checksum,
}
