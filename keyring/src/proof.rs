//! The proof that a node has the private key of a public key that it publishes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

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
