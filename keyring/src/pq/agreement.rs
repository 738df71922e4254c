//! Derives a preshared key from a shared secret, bound to one pair of nodes, one slot, one pair of static
//! keys and one epoch.

use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::provider::SharedSecret;
use crate::rotation::PeerId;
use crate::{KeyError, PresharedKey, PublicKey, Slot};

/// Separates the keys derived here from any other use of the same secret.
const LABEL: &[u8] = b"meshd pq preshared key v1";

/// The static public keys of both ends on one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticKeys {
    /// This node's.
    pub own: PublicKey,
    /// The peer's.
    pub peer: PublicKey,
}

/// What a preshared key is bound to. Both ends have the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Context(Vec<u8>);

/// The first half of a context's SHA-256: a peer that knows other static keys is noticed early.
pub(super) type ContextDigest = [u8; 16];
/// An HMAC-SHA256.
pub(super) type Tag = [u8; 32];

/// What both ends have after an exchange.
#[derive(Debug)]
pub(super) struct Agreement {
    /// The preshared key.
    pub(super) key: PresharedKey,
    /// Proves to the initiator that the responder has the key.
    pub(super) accept: Tag,
    /// Proves to the responder that the initiator has the key.
    pub(super) confirm: Tag,
}

impl Context {
    /// The context of one epoch of one slot.
    pub(super) fn new(own: &PeerId, peer: &PeerId, statics: &StaticKeys, slot: Slot, epoch: u64) -> Self {
        let (mut low, mut high) = ((own, &statics.own), (peer, &statics.peer));
        if high.0 < low.0 {
            (low, high) = (high, low);
        }
        let mut bytes = Vec::with_capacity(256);
        for part in [
            LABEL,
            low.0.as_str().as_bytes(),
            high.0.as_str().as_bytes(),
            low.1.as_bytes(),
            high.1.as_bytes(),
            slot.as_str().as_bytes(),
            &epoch.to_be_bytes(),
        ] {
            push(&mut bytes, part);
        }
        Self(bytes)
    }

    pub(super) fn digest(&self) -> ContextDigest {
        let mut short = [0; 16];
        short.copy_from_slice(&Sha256::digest(&self.0)[..16]);
        short
    }

    /// Derives the key and both tags (HKDF-SHA256, RFC 5869: no salt, the context first in `info`). The tags
    /// cover both messages, so that neither can be replaced.
    pub(super) fn agree(
        &self,
        secret: &SharedSecret,
        offer: &[u8],
        answer: &[u8],
    ) -> Result<Agreement, KeyError> {
        let hkdf = Hkdf::<Sha256>::new(None, secret.expose());
        let derive = |purpose: &[u8]| {
            let mut info = self.0.clone();
            push(&mut info, purpose);
            let mut out = Zeroizing::new([0; 32]);
            // 32 bytes are well below the maximum of 8,160 (RFC 5869 section 2.3).
            hkdf.expand(&info, out.as_mut_slice()).map_err(|_| KeyError::Zero)?;
            Ok(out)
        };
        let tag = |purpose: &[u8]| -> Result<Tag, KeyError> {
            let key = derive(purpose)?;
            let mut mac = Hmac::<Sha256>::new_from_slice(key.as_slice()).map_err(|_| KeyError::Zero)?;
            let mut transcript = Vec::with_capacity(offer.len() + answer.len() + 16);
            push(&mut transcript, offer);
            push(&mut transcript, answer);
            mac.update(&transcript);
            Ok(mac.finalize().into_bytes().into())
        };
        Ok(Agreement {
            key: PresharedKey::from_bytes(&*derive(b"psk")?)?,
            accept: tag(b"accept")?,
            confirm: tag(b"confirm")?,
        })
    }
}

/// Compares tags in constant time.
pub(super) fn same(one: &Tag, other: &Tag) -> bool {
    one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

/// Appends a part after its length, so that different lists of parts never give the same bytes.
fn push(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend((part.len() as u64).to_be_bytes());
    bytes.extend(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    fn key(byte: u8) -> PublicKey {
        PrivateKey::from_bytes(&[byte; 32]).unwrap().public()
    }

    fn context(own: &str, peer: &str, keys: (u8, u8), slot: Slot, epoch: u64) -> Context {
        let statics = StaticKeys { own: key(keys.0), peer: key(keys.1) };
        Context::new(&PeerId::new(own), &PeerId::new(peer), &statics, slot, epoch)
    }

    fn psk(context: &Context) -> [u8; 32] {
        let secret = SharedSecret::take(&mut [5; 32]);
        *context.agree(&secret, b"offer", b"answer").unwrap().key.expose()
    }

    #[test]
    fn both_ends_derive_the_same_and_any_other_place_another() {
        let here = context("u1", "u2", (1, 2), Slot::A, 7);
        let there = context("u2", "u1", (2, 1), Slot::A, 7);
        assert_eq!(psk(&here), psk(&there));
        assert_eq!(here.digest(), there.digest());
        for other in [
            context("u1", "u3", (1, 2), Slot::A, 7),
            context("u1", "u2", (2, 1), Slot::A, 7),
            context("u1", "u2", (1, 3), Slot::A, 7),
            context("u1", "u2", (3, 2), Slot::A, 7),
            context("u1", "u2", (1, 2), Slot::B, 7),
            context("u1", "u2", (1, 2), Slot::A, 8),
            // The same characters, split elsewhere.
            context("u", "1u2", (1, 2), Slot::A, 7),
        ] {
            assert_ne!(psk(&here), psk(&other), "{other:?}");
            assert_ne!(here.digest(), other.digest());
        }
    }

    #[test]
    fn tags_and_key_are_apart_and_tags_are_over_both_messages() {
        let context = context("u1", "u2", (1, 2), Slot::A, 7);
        let agree = |offer: &[u8], answer: &[u8]| {
            context.agree(&SharedSecret::take(&mut [5; 32]), offer, answer).unwrap()
        };
        let one = agree(b"offer", b"answer");
        assert!(!same(&one.accept, &one.confirm) && !same(&one.accept, one.key.expose()));
        for other in [agree(b"Offer", b"answer"), agree(b"offer", b"Answer"), agree(b"offera", b"nswer")] {
            assert!(!same(&one.accept, &other.accept) && !same(&one.confirm, &other.confirm));
        }
        assert!(same(&one.accept, &agree(b"offer", b"answer").accept));
    }
}
