//! The AEAD key of one direction of a session, which is overwritten as soon as it goes.
#![expect(
    unsafe_code,
    reason = "ring's key types do not wipe themselves, so ours has to be able to overwrite one"
)]

use std::mem::MaybeUninit;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize as _;

use crate::message::TAG;

/// The ciphertext or its authenticator was not produced with this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forged;

/// A key of ChaCha20-Poly1305.
///
/// On the heap, so that moving it leaves no copy behind.
pub(crate) struct Key(Box<MaybeUninit<LessSafeKey>>);

// Overwriting a key that had to be dropped as well would leak, or worse.
const _: () = assert!(!std::mem::needs_drop::<LessSafeKey>());

impl Key {
    pub(crate) fn new(bytes: &[u8; 32]) -> Self {
        let Ok(key) = UnboundKey::new(&CHACHA20_POLY1305, bytes) else {
            unreachable!("the cipher takes every key of 32 bytes")
        };
        Self(Box::new(MaybeUninit::new(LessSafeKey::new(key))))
    }

    /// Encrypts `text` in place and returns the tag. `counter` may be used once in the life of a key.
    pub(crate) fn seal(&self, counter: u64, data: &[u8], text: &mut [u8]) -> [u8; TAG] {
        let sealed = self.key().seal_in_place_separate_tag(nonce(counter), Aad::from(data), text);
        let Ok(tag) = sealed else {
            unreachable!("a text is never as long as the cipher's limit of 256 GiB")
        };
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Decrypts `sealed`, text with tag, in place and returns the text. A forgery leaves nothing of use there.
    pub(crate) fn open<'a>(
        &self,
        counter: u64,
        data: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], Forged> {
        self.key().open_in_place(nonce(counter), Aad::from(data), sealed).map_err(|_| Forged)
    }

    fn key(&self) -> &LessSafeKey {
        // SAFETY: `new` is the only constructor and initializes it; it is overwritten only in `drop`.
        unsafe { self.0.assume_init_ref() }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// WireGuard's nonce: 32 zero bits and the counter (WireGuard paper, section 5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_once_and_only_as_it_is() {
        let key = Key::new(&[7; 32]);
        let mut text = *b"a packet";
        let tag = key.seal(5, b"data", &mut text);
        assert_ne!(&text, b"a packet");
        let sealed = [&text[..], &tag].concat();
        assert_eq!(key.open(5, b"data", &mut sealed.clone()), Ok(&mut b"a packet".to_owned()[..]));
        assert_eq!(key.open(6, b"data", &mut sealed.clone()), Err(Forged));
        assert_eq!(key.open(5, b"atad", &mut sealed.clone()), Err(Forged));
        let mut changed = sealed;
        changed[3] ^= 1;
        assert_eq!(key.open(5, b"data", &mut changed), Err(Forged));
        assert_eq!(key.open(5, b"data", &mut [0; 15]), Err(Forged), "shorter than a tag");
    }

    #[test]
    fn the_vector_of_rfc_8439_with_the_nonce_of_wireguard() {
        // RFC 8439 appendix A.5 has a nonce that a counter can't express; this one was computed with OpenSSL:
        // key 0x80..0x9f, nonce 00000000 0700000000000000, no data, plaintext of 16 zero bytes.
        let mut bytes = [0; 32];
        for (place, value) in bytes.iter_mut().zip(0x80..) {
            *place = value;
        }
        let key = Key::new(&bytes);
        let mut text = [0; 16];
        let tag = key.seal(7, &[], &mut text);
        assert_eq!((&text[..], &tag[..]), (&TEXT[..], &SEALED_TAG[..]));
    }

    const TEXT: [u8; 16] = [240, 224, 127, 227, 202, 66, 105, 165, 11, 186, 130, 243, 102, 129, 13, 246];
    const SEALED_TAG: [u8; 16] = [94, 137, 135, 88, 56, 153, 39, 219, 236, 158, 188, 217, 168, 149, 76, 127];
}
