//! Hashes, MACs and the running state of a handshake: a chaining key and a hash of all messages so far.

use blake2::digest::consts::U16;
use blake2::digest::{Mac as _, Update as _};
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use boringtun::x25519::{PublicKey as Point, SharedSecret};
use zeroize::Zeroizing;

use crate::counters::DropReason;
use crate::engine::cipher::Key;

/// Names of the protocol (WireGuard paper, section 5.4).
const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// Block length of BLAKE2s (RFC 7693), which HMAC pads its key to.
const BLOCK: usize = 64;

type Secret = Zeroizing<[u8; 32]>;

/// `HASH(label || key)`.
pub(super) fn labelled(label: [u8; 8], key: &Point) -> [u8; 32] {
    hash(&[&label, key.as_bytes()])
}

/// Keyed BLAKE2s with 16 bytes of output, over `message`.
pub(crate) fn mac(key: &[u8], message: &[u8]) -> [u8; 16] {
    let Ok(mut state) = Blake2sMac::<U16>::new_from_slice(key) else {
        unreachable!("keys here have 16 or 32 bytes, and the hash takes up to 32")
    };
    blake2::digest::Update::update(&mut state, message);
    state.finalize().into_bytes().into()
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        blake2::digest::Update::update(&mut state, part);
    }
    state.finalize().into()
}

/// HMAC (RFC 2104) with BLAKE2s; every key here is 32 bytes.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let pad = |byte: u8| {
        let mut block = Zeroizing::new([byte; BLOCK]);
        for (place, key) in block.iter_mut().zip(key) {
            *place ^= key;
        }
        block
    };
    let mut inner = Blake2s256::new().chain(&pad(0x36)[..]);
    for part in parts {
        blake2::digest::Update::update(&mut inner, part);
    }
    let inner = Zeroizing::new(<[u8; 32]>::from(inner.finalize()));
    Zeroizing::new(Blake2s256::new().chain(&pad(0x5c)[..]).chain(&inner[..]).finalize().into())
}

/// `KDF3` of the paper, the first two of which are `KDF2`, the first `KDF1`.
fn derive(key: &[u8; 32], input: &[u8]) -> (Secret, Secret, Secret) {
    let secret = hmac(key, &[input]);
    let first = hmac(&secret, &[&[1]]);
    let second = hmac(&secret, &[&first[..], &[2]]);
    let third = hmac(&secret, &[&second[..], &[3]]);
    (first, second, third)
}

/// The state that both sides share as long as they have sent and received the same.
#[derive(Clone)]
pub(super) struct Transcript {
    chaining: Secret,
    hash: [u8; 32],
}

impl Transcript {
    /// The start of a handshake with `responder`.
    pub(super) fn new(responder: &Point) -> Self {
        let chaining = hash(&[CONSTRUCTION]);
        let mut transcript =
            Self { hash: hash(&[&chaining, IDENTIFIER]), chaining: Zeroizing::new(chaining) };
        transcript.mix_hash(responder.as_bytes());
        transcript
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = hash(&[&self.hash, bytes]);
    }

    /// Takes in an ephemeral key, which both sides see. WireGuard mixes it into the chaining key too.
    pub(super) fn mix_point(&mut self, point: &Point) {
        self.chaining = derive(&self.chaining, point.as_bytes()).0;
        self.mix_hash(point.as_bytes());
    }

    /// Mixes in a shared secret and returns the key derived from it. A point of low order gives a
    /// secret that is publicly known, and is refused.
    pub(super) fn mix_secret(&mut self, secret: &SharedSecret) -> Result<Secret, DropReason> {
        if !secret.was_contributory() {
            return Err(DropReason::InvalidHandshake);
        }
        let (chaining, key, _) = derive(&self.chaining, secret.as_bytes());
        self.chaining = chaining;
        Ok(key)
    }

    /// Takes in the preshared key, zeros if there is none, and returns the key that follows.
    pub(super) fn mix_preshared(&mut self, preshared: &[u8; 32]) -> Secret {
        let (chaining, temporary, key) = derive(&self.chaining, preshared);
        self.chaining = chaining;
        self.mix_hash(&temporary[..]);
        key
    }

    /// Writes `text` encrypted with its tag to `sealed`, 16 bytes longer.
    pub(super) fn seal(&mut self, key: &Secret, text: &[u8], sealed: &mut [u8]) {
        let (place, tag) = sealed.split_at_mut(text.len());
        place.copy_from_slice(text);
        tag.copy_from_slice(&Key::new(key).seal(0, &self.hash, place));
        self.mix_hash(sealed);
    }

    /// Decrypts `sealed` into `text`, 16 bytes shorter.
    pub(super) fn open(&mut self, key: &Secret, sealed: &[u8], text: &mut [u8]) -> Result<(), DropReason> {
        let mut buffer = sealed.to_vec();
        let opened =
            Key::new(key).open(0, &self.hash, &mut buffer).map_err(|_| DropReason::InvalidHandshake)?;
        text.copy_from_slice(opened);
        self.mix_hash(sealed);
        Ok(())
    }

    /// The keys of the session: from the initiator, and to it.
    pub(super) fn split(&self) -> (Secret, Secret) {
        let (first, second, _) = derive(&self.chaining, &[]);
        (first, second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_macs_agree_with_other_implementations_of_blake2s() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        // Computed with Python's hashlib and hmac.
        assert_eq!(hex(&mac(&[1; 32], b"abc")), "6c5a9b2dd4324520e222cce7e29e8711");
        assert_eq!(
            hex(&hmac(&[2; 32], &[b"ab", b"c"])[..]),
            "c32fa039fe1f12ec46b1e2c767448c3e23d8b0fa0c72abdfec01036b2ff6557d"
        );
        assert_eq!(
            hex(&hash(&[b"a", b"bc"])),
            "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
        );
    }
}
