//! The key file's text: one JSON object with a checksum, so that a cut-off or edited file shows.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::rotation::Journal;
use crate::{KeyError, NodeKeys, PrivateKey};

/// The version of the format that this code writes and reads.
const VERSION: u32 = 2;

/// The file as it is written. The secrets are borrowed from a buffer that is wiped.
#[derive(Serialize, Deserialize)]
struct Document<'a> {
    v: u32,
    journal: Journal,
    /// The private keys that the journal names, in its order.
    #[serde(borrow)]
    keys: Vec<&'a str>,
    #[serde(borrow)]
    checksum: &'a str,
}

/// What is read first: a newer file may have other fields.
#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

pub(super) fn render(keys: &NodeKeys) -> Zeroizing<Vec<u8>> {
    let texts: Vec<_> = keys.named().map(PrivateKey::to_base64).collect();
    let checksum = checksum(&keys.journal);
    let document = Document {
        v: VERSION,
        journal: keys.journal.clone(),
        keys: texts.iter().map(|text| text.as_str()).collect(),
        checksum: &checksum,
    };
    let mut text = Zeroizing::new(Vec::with_capacity(4096));
    // Writing into memory can't fail, and a document of numbers and strings always serializes.
    let written = serde_json::to_writer(&mut *text, &document);
    debug_assert!(written.is_ok());
    text.push(b'\n');
    text
}

pub(super) fn parse(text: &[u8]) -> Result<NodeKeys, FormatError> {
    let Versioned { v } = serde_json::from_slice(text).map_err(|_| FormatError::NotAKeyFile)?;
    if v != VERSION {
        return Err(FormatError::Version { found: v, expected: VERSION });
    }
    let document: Document<'_> = serde_json::from_slice(text).map_err(|_| FormatError::NotAKeyFile)?;
    if checksum(&document.journal) != document.checksum {
        return Err(FormatError::Checksum);
    }
    let keys: Vec<PrivateKey> = document
        .keys
        .iter()
        .map(|text| PrivateKey::from_base64(text).map_err(|source| FormatError::Key { source }))
        .collect::<Result<_, _>>()?;
    NodeKeys::assemble(document.journal, keys).ok_or(FormatError::Incomplete)
}

/// A digest over the journal, which has every public key in it; the private keys are checked by those. Against
/// accidents, not against attackers: whoever can write the file can compute it as well.
fn checksum(journal: &Journal) -> String {
    let text = serde_json::to_vec(journal).unwrap_or_default();
    format!("{:x}", Sha256::digest(text))
}

/// What is wrong with a key file. The JSON parser's own message is left out: it may quote the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not one complete JSON object with the expected fields.
    #[error("not a complete key file: cut off, empty or of another kind")]
    NotAKeyFile,
    /// Written by another version.
    #[error("format version {found}: this version reads {expected}")]
    Version {
        /// The version in the file.
        found: u32,
        /// The version that is understood.
        expected: u32,
    },
    /// A key is no key.
    #[error("one of the private keys")]
    Key {
        /// What is wrong with the key.
        source: KeyError,
    },
    /// A key that the journal names is not there.
    #[error("a private key is missing or belongs to another public key")]
    Incomplete,
    /// The checksum does not fit.
    #[error("checksum does not match: a value was changed")]
    Checksum,
}
