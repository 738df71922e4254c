//! The proof that a node has the private key of a public key that it publishes: a signature by that key.
//!
//! X25519 keys sign as in "The `XEdDSA` and `VXEdDSA` Signature Schemes" (Trevor Perrin, 2016, section 2). No second key is
//! needed, which would not prove anything about the first.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use curve25519_dalek::{EdwardsPoint, MontgomeryPoint, Scalar};
use sha2::{Digest as _, Sha512};
use zeroize::{Zeroize as _, Zeroizing};

use crate::key::{PrivateKey, PublicKey};

/// Random bytes that a signature takes.
pub const NOISE: usize = 64;
/// Separates the hash of the nonce from all others: 2^256 - 2 in little endian (`hash_1`, section 2.4).
const NONCE_PREFIX: [u8; 32] = {
    let mut prefix = [0xff; 32];
    prefix[0] = 0xfe;
    prefix
};
/// Length of a proof in bytes.
const LEN: usize = 64;
/// Length of a proof in base64, padding included.
const BASE64_LEN: usize = 88;

/// A signature by a private key over what its node publishes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof([u8; LEN]);

impl Proof {
    /// Takes 64 bytes as a proof; whether it is valid is another question.
    pub const fn from_bytes(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    /// Signs a message. `noise` must be unpredictable: it protects the key against faults of the hardware.
    pub fn sign(key: &PrivateKey, message: &[u8], noise: &[u8; NOISE]) -> Self {
        // The Edwards point of a Montgomery key has two signs. The one with sign 0 is signed for. A key that has it is
        // hashed as it is, not reduced, as other implementations do.
        let mut secret = Zeroizing::new(Scalar::from_bytes_mod_order(*key.expose()));
        let mut hashed = Zeroizing::new(*key.expose());
        let mut public = EdwardsPoint::mul_base(&secret).compress();
        if public.as_bytes()[31] >> 7 == 1 {
            *secret = -*secret;
            *hashed = secret.to_bytes();
            public.0[31] &= 0x7f;
        }
        let mut state = Sha512::new();
        state.update(NONCE_PREFIX);
        state.update(*hashed);
        state.update(message);
        state.update(noise);
        let mut digest: [u8; LEN] = state.finalize_reset().into();
        let nonce = Zeroizing::new(Scalar::from_bytes_mod_order_wide(&digest));
        digest.zeroize();
        // The hash function's state still has the secret; this overwrites it.
        state.update([0; 127]);
        let commitment = EdwardsPoint::mul_base(&nonce).compress();
        let challenge = challenge(commitment.as_bytes(), public.as_bytes(), message);
        let mut proof = [0; LEN];
        proof[..32].copy_from_slice(commitment.as_bytes());
        proof[32..].copy_from_slice((*nonce + challenge * *secret).as_bytes());
        Self(proof)
    }

    /// Whether this is a signature of the message by the private key of `key`.
    pub fn verifies(&self, key: &PublicKey, message: &[u8]) -> bool {
        let (commitment, response) = self.0.split_at(32);
        let mut canonical = [0; 32];
        canonical.copy_from_slice(response);
        let Some(response) = Option::<Scalar>::from(Scalar::from_canonical_bytes(canonical)) else {
            return false;
        };
        let Some(point) = MontgomeryPoint(*key.as_bytes()).to_edwards(0) else { return false };
        // The same point has other encodings, which no key that was generated has.
        if point.to_montgomery().as_bytes() != key.as_bytes() {
            return false;
        }
        let challenge = challenge(commitment, point.compress().as_bytes(), message);
        let expected = EdwardsPoint::vartime_double_scalar_mul_basepoint(&-challenge, &point, &response);
        expected.compress().as_bytes() == commitment
    }

    /// Parses canonical base64: exactly 88 characters, no spaces, no unused bits set.
    pub fn from_base64(text: &str) -> Result<Self, ProofError> {
        if text.len() != BASE64_LEN {
            return Err(ProofError::Length { got: text.len() });
        }
        let decoded = BASE64.decode(text).map_err(|_| ProofError::Base64)?;
        decoded.try_into().map(Self).map_err(|_| ProofError::Base64)
    }

    /// The 64 bytes of the proof.
    pub const fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }

    /// Base64, as in annotations.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }
}

fn challenge(commitment: &[u8], public: &[u8], message: &[u8]) -> Scalar {
    let hash = Sha512::new().chain_update(commitment).chain_update(public).chain_update(message).finalize();
    Scalar::from_bytes_mod_order_wide(&hash.into())
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proof({})", self.to_base64())
    }
}

/// Why text is not a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not 88 characters of base64, so not 64 bytes.
    #[error("proof of {got} characters: expected 88 characters of base64 (64 bytes)")]
    Length {
        /// How many bytes the text had.
        got: usize,
    },
    /// A character outside the alphabet, wrong padding, or unused bits that are not zero.
    #[error("proof is not canonical base64")]
    Base64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_base64_is_a_proof() {
        let proof = Proof::from_bytes([7; 64]);
        let text = proof.to_base64();
        assert_eq!(Proof::from_base64(&text), Ok(proof));
        assert_eq!(Proof::from_base64(&format!("{text} ")), Err(ProofError::Length { got: 89 }));
        assert_eq!(Proof::from_base64(&text.replace('=', "A")), Err(ProofError::Base64));
        assert_eq!(Proof::from_base64(""), Err(ProofError::Length { got: 0 }));
        // The last character before the padding has four unused bits.
        let spelled = format!("{}B==", &"A".repeat(85));
        assert_eq!(Proof::from_base64(&spelled), Err(ProofError::Base64));
    }
}
