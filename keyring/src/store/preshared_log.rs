//! The file of the preshared keys: records that are appended, one for each change of a peer's keys. The last one of a peer
//! holds. Compacted when half of it is superseded, and a minute after something was.
//!
//! ```text
//!  magic, 24 bytes │ ID of the file, 16 bytes │ record │ record │ …
//!  record = length of the body, 2 bytes │ body │ checksum, 8 bytes
//!  body   = length of the peer's ID, 2 bytes │ peer's ID │ slot a │ slot b, sealed where the key file is
//!  slot   = epoch, 8 bytes │ 0, or 1 and own static key, peer's static key, preshared key, 32 bytes each
//! ```
//!
//! Numbers are little-endian. The checksum covers the file's ID and the record's place: no record is taken for another one.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::seal::{SealError, SealingKey};
use crate::pq::{StaticKeys, StoredPreshared};
use crate::rotation::PeerId;
use crate::{PerSlot, PresharedKey, PublicKey, Slot};

/// First bytes of a file whose records are plain, and of one whose records are sealed.
const MAGIC: [&[u8; 24]; 2] = [b"meshd preshared plain 1\n", b"meshd preshared sealed1\n"];
/// Bytes of a file's ID. It is random: records of a former file are not taken for those of this one.
const ID: usize = 16;
/// Bytes before the first record.
const HEADER: usize = 24 + ID;
/// Bytes of a checksum.
const SUM: usize = 8;
/// Longest body. The ID of a peer is a UUID; nothing else has a variable length.
const MAX_BODY: usize = 1024;
/// Separates these digests from every other use of SHA-256 on the same bytes.
const LABEL: &[u8] = b"meshd preshared log v1";

/// A peer with its keys; none in both slots for one that was forgotten.
pub(super) type Kept = (PeerId, PerSlot<StoredPreshared>);

/// What identifies a record's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    id: [u8; ID],
    /// Records before it.
    index: u64,
}

impl Place {
    /// The first record of a new file.
    pub(super) fn first() -> Result<Self, SealError> {
        let mut id = [0; ID];
        getrandom::fill(&mut id).map_err(SealError::Random)?;
        Ok(Self { id, index: 0 })
    }

    fn text(&self) -> [u8; ID + 8] {
        let mut text = [0; ID + 8];
        text[..ID].copy_from_slice(&self.id);
        text[ID..].copy_from_slice(&self.index.to_le_bytes());
        text
    }

    fn checksum(&self, framed: &[u8]) -> [u8; SUM] {
        let digest =
            Sha256::new().chain_update(LABEL).chain_update(self.text()).chain_update(framed).finalize();
        std::array::from_fn(|at| digest[at])
    }

    /// How many records there are before it.
    pub(super) const fn index(&self) -> u64 {
        self.index
    }
}

/// Renders the start of a file.
pub(super) fn header(first: &Place, sealed: bool) -> Vec<u8> {
    [MAGIC[usize::from(sealed)].as_slice(), &first.id].concat()
}

/// Renders records for the places from `place` on, which is the next one afterwards.
pub(super) fn render(
    kept: &[(&PeerId, Option<&PerSlot<StoredPreshared>>)],
    place: &mut Place,
    sealing: Option<&SealingKey>,
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    // One allocation of more than the full size: a growing buffer would leave copies that are not wiped.
    let mut text = Zeroizing::new(Vec::with_capacity(kept.iter().map(|(peer, _)| room(peer)).sum()));
    for (peer, kept) in kept {
        let plain = body(peer, *kept);
        let sealed = sealing.map(|key| key.seal_part(&place.text(), &plain)).transpose()?;
        let body: &[u8] = sealed.as_deref().unwrap_or(&plain);
        let start = text.len();
        // A body is never longer: see `body`.
        text.extend_from_slice(&u16::try_from(body.len()).unwrap_or_default().to_le_bytes());
        text.extend_from_slice(body);
        let sum = place.checksum(&text[start..]);
        text.extend_from_slice(&sum);
        place.index += 1;
    }
    Ok(text)
}

/// More bytes than a record of a peer takes: two slots have 210, what seals them 40.
fn room(peer: &PeerId) -> usize {
    300 + id(peer).len()
}

/// Longer IDs are no UIDs. One that is cut off is that of no peer, so its keys are agreed on anew after a restart.
fn id(peer: &PeerId) -> &[u8] {
    let whole = peer.as_str().as_bytes();
    &whole[..whole.len().min(MAX_BODY / 2)]
}

fn body(peer: &PeerId, kept: Option<&PerSlot<StoredPreshared>>) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(room(peer)));
    let id = id(peer);
    body.extend_from_slice(&u16::try_from(id.len()).unwrap_or_default().to_le_bytes());
    body.extend_from_slice(id);
    for slot in Slot::ALL {
        let kept = kept.map(|kept| kept.get(slot));
        body.extend_from_slice(&kept.map_or(0, |kept| kept.epoch).to_le_bytes());
        match kept.and_then(|kept| kept.key.as_ref()) {
            None => body.push(0),
            Some((key, statics)) => {
                body.push(1);
                body.extend_from_slice(statics.own.as_bytes());
                body.extend_from_slice(statics.peer.as_bytes());
                body.extend_from_slice(key.expose());
            }
        }
    }
    body
}

/// What is in a file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The last whole record of each peer; not of those that were forgotten.
    pub(super) kept: BTreeMap<PeerId, PerSlot<StoredPreshared>>,
    /// Whether the last record is not complete: the daemon or the host ended while it was written, so nobody relies on it.
    pub(super) is_cut: bool,
    /// How many records were changed or can't be read; one if it is the header.
    pub(super) damaged: usize,
    /// How many whole records there are.
    pub(super) whole: usize,
    /// Where the next record belongs.
    pub(super) next: Place,
}

/// Reads a file: every record that is whole.
pub(super) fn parse(text: &[u8], sealing: Option<&SealingKey>) -> Contents {
    let mut found = Contents::default();
    let magic = MAGIC[usize::from(sealing.is_some())];
    let header = text.split_at_checked(HEADER).filter(|(header, _)| header.starts_with(magic));
    let Some((header, mut rest)) = header else {
        found.damaged = 1;
        return found;
    };
    found.next.id.copy_from_slice(&header[HEADER - ID..]);
    while !rest.is_empty() {
        let Some(len) = rest.first_chunk::<2>().map(|len| usize::from(u16::from_le_bytes(*len))) else {
            found.is_cut = true;
            break;
        };
        if len > MAX_BODY {
            // Where the next one would begin is not known.
            found.damaged += 1;
            break;
        }
        let Some((framed, after)) = rest.split_at_checked(2 + len) else {
            found.is_cut = true;
            break;
        };
        let Some((sum, after)) = after.split_first_chunk::<SUM>() else {
            found.is_cut = true;
            break;
        };
        rest = after;
        let place = found.next;
        found.next.index += 1;
        let is_whole = place.checksum(framed) == *sum;
        let Some((peer, kept)) = is_whole.then(|| open(&framed[2..], &place, sealing)).flatten() else {
            found.damaged += 1;
            continue;
        };
        found.whole += 1;
        if kept.iter().all(|(_, kept)| kept.epoch == 0) {
            found.kept.remove(&peer);
        } else {
            found.kept.insert(peer, kept);
        }
    }
    found
}

fn open(body: &[u8], place: &Place, sealing: Option<&SealingKey>) -> Option<Kept> {
    match sealing {
        Some(key) => parse_body(&key.open_part(&place.text(), body)?),
        None => parse_body(body),
    }
}

fn parse_body(body: &[u8]) -> Option<Kept> {
    let (len, rest) = body.split_first_chunk::<2>()?;
    let (peer, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let (a, rest) = parse_slot(rest)?;
    let (b, rest) = parse_slot(rest)?;
    rest.is_empty().then_some((PeerId::new(std::str::from_utf8(peer).ok()?), PerSlot { a, b }))
}

fn parse_slot(text: &[u8]) -> Option<(StoredPreshared, &[u8])> {
    let (epoch, rest) = text.split_first_chunk::<8>()?;
    let epoch = u64::from_le_bytes(*epoch);
    match rest.split_first()? {
        (0, rest) => Some((StoredPreshared { epoch, key: None }, rest)),
        (1, rest) => {
            let (own, rest) = rest.split_first_chunk::<32>()?;
            let (peer, rest) = rest.split_first_chunk::<32>()?;
            let (key, rest) = rest.split_first_chunk::<32>()?;
            let statics =
                StaticKeys { own: PublicKey::from_bytes(own).ok()?, peer: PublicKey::from_bytes(peer).ok()? };
            let key = Some((PresharedKey::from_bytes(key).ok()?, statics));
            Some((StoredPreshared { epoch, key }, rest))
        }
        _ => None,
    }
}
