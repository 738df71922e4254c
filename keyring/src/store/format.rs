//! The key file's format: one JSON object with a checksum, so that a truncated or edited file is detected.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::pq::{StaticKeys, StoredPreshared};
use crate::rotation::{Journal, PeerId};
use crate::{KeyError, NodeKeys, PerSlot, PresharedId, PresharedKey, PrivateKey, PublicKey, Slot};

/// The version of the format that this code writes.
const VERSION: u32 = 3;
/// The previous version, without preshared keys. It is read as well: an upgrade must not lose a node's keys.
const WITHOUT_PRESHARED: u32 = 2;

/// The file's contents. The secrets are borrowed from a buffer that is wiped.
#[derive(Serialize, Deserialize)]
struct Document<'a> {
    v: u32,
    journal: Journal,
    /// The private keys that the journal names, in its order.
    #[serde(borrow)]
    keys: Vec<&'a str>,
    /// Everything about each preshared key except the key itself.
    #[serde(default)]
    preshared: Vec<Preshared>,
    /// The keys of those that are bound, in their order.
    #[serde(default, borrow)]
    preshared_keys: Vec<&'a str>,
    #[serde(borrow)]
    checksum: &'a str,
}

/// One slot of one peer.
#[derive(Serialize, Deserialize)]
struct Preshared {
    peer: PeerId,
    slot: Slot,
    epoch: u64,
    bound: Option<Bound>,
}

#[derive(Serialize, Deserialize)]
struct Bound {
    own: PublicKey,
    peer: PublicKey,
    id: PresharedId,
}

/// Read first: a newer file may have other fields.
#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// Renders a file, with the preshared keys only if they are not in one of their own.
pub(crate) fn render(keys: &NodeKeys, with_preshared: bool) -> Zeroizing<Vec<u8>> {
    let texts: Vec<_> = keys.named().map(PrivateKey::to_base64).collect();
    let kept = if with_preshared { keys.preshared_stored() } else { Vec::new() };
    let held = kept.iter().filter_map(|(_, _, kept)| kept.key.as_ref());
    let preshared_texts: Vec<_> = held.map(|(key, _)| key.to_base64()).collect();
    let preshared: Vec<Preshared> = kept.iter().map(|(peer, slot, kept)| public(peer, *slot, kept)).collect();
    let checksum = checksum(&keys.journal, Some(&preshared));
    let document = Document {
        v: VERSION,
        journal: keys.journal.clone(),
        keys: texts.iter().map(|text| text.as_str()).collect(),
        preshared,
        preshared_keys: preshared_texts.iter().map(|text| text.as_str()).collect(),
        checksum: &checksum,
    };
    // One allocation of more than the full size: a growing buffer would leave copies that are not wiped.
    let room = 4096 + 512 * document.preshared.len();
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    // Writing into memory can't fail, and a document of numbers and strings always serializes.
    let written = serde_json::to_writer(&mut *text, &document);
    debug_assert!(written.is_ok());
    text.push(b'\n');
    text
}

pub(crate) fn parse(text: &[u8]) -> Result<NodeKeys, FormatError> {
    let Versioned { v } = serde_json::from_slice(text).map_err(|_| FormatError::NotAKeyFile)?;
    if v != VERSION && v != WITHOUT_PRESHARED {
        return Err(FormatError::Version { found: v, expected: VERSION });
    }
    let document: Document<'_> = serde_json::from_slice(text).map_err(|_| FormatError::NotAKeyFile)?;
    let preshared = (v == VERSION).then_some(document.preshared.as_slice());
    if checksum(&document.journal, preshared) != document.checksum {
        return Err(FormatError::Checksum);
    }
    let keys: Vec<PrivateKey> = document
        .keys
        .iter()
        .map(|text| PrivateKey::from_base64(text).map_err(|source| FormatError::Key { source }))
        .collect::<Result<_, _>>()?;
    let mut ring = NodeKeys::assemble(document.journal, keys).ok_or(FormatError::Incomplete)?;
    let mut texts = document.preshared_keys.iter();
    let mut all: BTreeMap<PeerId, PerSlot<StoredPreshared>> = BTreeMap::new();
    for Preshared { peer, slot, epoch, bound } in document.preshared {
        let key = bound.map(|bound| bound_key(&bound, texts.next())).transpose()?;
        *all.entry(peer).or_default().get_mut(slot) = StoredPreshared { epoch, key };
    }
    for (peer, kept) in all {
        ring.store_preshared(peer, kept);
    }
    if texts.next().is_some() {
        return Err(FormatError::Incomplete);
    }
    Ok(ring)
}

fn bound_key(bound: &Bound, text: Option<&&str>) -> Result<(PresharedKey, StaticKeys), FormatError> {
    let text = text.ok_or(FormatError::Incomplete)?;
    let key = PresharedKey::from_base64(text).map_err(|source| FormatError::Key { source })?;
    if key.id() != bound.id {
        return Err(FormatError::Incomplete);
    }
    Ok((key, StaticKeys { own: bound.own, peer: bound.peer }))
}

fn public(peer: &PeerId, slot: Slot, kept: &StoredPreshared) -> Preshared {
    let bound =
        kept.key.as_ref().map(|(key, statics)| Bound { own: statics.own, peer: statics.peer, id: key.id() });
    Preshared { peer: peer.clone(), slot, epoch: kept.epoch, bound }
}

/// A digest over everything public: the journal, which contains every public key, and the IDs of the
/// preshared keys; the secrets are checked against those. It protects against accidents, not against
/// attackers: anyone who can write the file can compute it.
fn checksum(journal: &Journal, preshared: Option<&[Preshared]>) -> String {
    let mut digest = Sha256::new().chain_update(serde_json::to_vec(journal).unwrap_or_default());
    if let Some(preshared) = preshared {
        digest.update(serde_json::to_vec(preshared).unwrap_or_default());
    }
    format!("{:x}", digest.finalize())
}

/// The same file with the checksum that belongs to what is in it, which no fuzzer finds by itself.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn with_checksum(text: &[u8]) -> Option<Vec<u8>> {
    let document: Document<'_> = serde_json::from_slice(text).ok()?;
    let preshared = (document.v == VERSION).then_some(document.preshared.as_slice());
    let checksum = checksum(&document.journal, preshared);
    serde_json::to_vec(&Document { checksum: &checksum, ..document }).ok()
}

/// What is wrong with a key file. The JSON parser's own message is left out: it may quote the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not one complete JSON object with the expected fields.
    #[error("not a complete key file: truncated, empty or of another kind")]
    NotAKeyFile,
    /// Written by another version.
    #[error("format version {found}: expected version {expected}")]
    Version {
        /// The version in the file.
        found: u32,
        /// The version that is understood.
        expected: u32,
    },
    /// A key is invalid.
    #[error("invalid key")]
    Key {
        /// What is wrong with the key.
        source: KeyError,
    },
    /// A key that the journal names is missing.
    #[error("a key is missing or is not the one that the file names")]
    Incomplete,
    /// The checksum does not match.
    #[error("checksum does not match: a value was changed")]
    Checksum,
}
