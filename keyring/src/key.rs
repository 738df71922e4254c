//! Curve25519 keys as WireGuard uses them: private and public keys are two types that can't be mixed up.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::digest::ShortDigest;
use crate::error::KeyError;
use crate::low_order::is_low_order;
use crate::secret::{LEN, Secret, decode};

/// A node's static private key. Wiped on drop; it can't be printed, copied by accident or serialized.
pub struct PrivateKey(Secret);

impl PrivateKey {
    /// Generates a key from the operating system's random source. Fails if that source fails.
    pub fn generate() -> Result<Self, KeyError> {
        Self::generate_with(|bytes| getrandom::fill(bytes).map_err(KeyError::Random))
    }

    /// Generates a key from `fill`, which must write 32 unpredictable bytes.
    pub fn generate_with(fill: impl FnOnce(&mut [u8]) -> Result<(), KeyError>) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; LEN]);
        fill(bytes.as_mut_slice())?;
        Self::from_bytes(&bytes)
    }

    /// Takes 32 bytes as a key, clamped as RFC 7748 section 5 requires, so that equal keys are equal bytes.
    ///
    /// Refuses all zeros: that is an empty file or a cleared buffer, never a key.
    pub fn from_bytes(bytes: &[u8; LEN]) -> Result<Self, KeyError> {
        let mut secret = Secret::take(bytes)?;
        let bytes = secret.expose_mut();
        bytes[0] &= 0b1111_1000;
        bytes[31] = (bytes[31] & 0b0111_1111) | 0b0100_0000;
        Ok(Self(secret))
    }

    /// Parses canonical base64, the form that `wg genkey` prints.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(&*decode(text)?)
    }

    /// Base64 for the key file; wiped on drop.
    pub fn to_base64(&self) -> Zeroizing<String> {
        self.0.to_base64()
    }

    /// The raw secret, for computing with it.
    pub fn expose(&self) -> &[u8; LEN] {
        self.0.expose()
    }

    /// The public key that belongs to this private key.
    pub fn public(&self) -> PublicKey {
        PublicKey(*x25519_dalek::PublicKey::from(&StaticSecret::from(*self.expose())).as_bytes())
    }

    /// A second copy of the secret, for a second owner. Explicit, so that it is noticed in review.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.duplicate())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A peer's static public key: the 32-byte encoding of a point of large order on Curve25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; LEN]);

impl PublicKey {
    /// Takes 32 bytes as a key. Refuses all encodings of points of low order: with those the shared secret is
    /// zero whatever the other side's key is (RFC 7748 section 6.1).
    pub fn from_bytes(bytes: &[u8; LEN]) -> Result<Self, KeyError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(KeyError::Zero);
        }
        if is_low_order(bytes) { Err(KeyError::LowOrder) } else { Ok(Self(*bytes)) }
    }

    /// Parses canonical base64: exactly 44 characters, no spaces, no unused bits set.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(&*decode(text)?)
    }

    /// The 32 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }

    /// Base64, as in annotations and in `wg show`.
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.0)
    }

    /// A short name for logs and tables.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(ShortDigest::of(&Sha256::digest(self.0).into()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_base64(text)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_base64(&text).map_err(serde::de::Error::custom)
    }
}

/// The first eight bytes of a public key's SHA-256, as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(ShortDigest);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Fingerprint {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PresharedKey;

    #[test]
    fn public_key_is_that_of_rfc_7748_section_5_2() {
        // First iteration of the loop in the RFC: the scalar and the point are both the base point's
        // encoding.
        let private = hex("0900000000000000000000000000000000000000000000000000000000000000");
        let public = hex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
        assert_eq!(PrivateKey::from_bytes(&private).unwrap().public().as_bytes(), &public);
    }

    #[test]
    fn low_order_points_are_refused() {
        // Orders 1, 2, 4 and 8, and the non-canonical forms of 0 and 1 (Bernstein, "Curve25519", section 3).
        for text in [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ] {
            assert_eq!(PublicKey::from_bytes(&hex(text)), Err(KeyError::LowOrder), "{text}");
        }
        assert_eq!(PublicKey::from_bytes(&[0; 32]), Err(KeyError::Zero));
    }

    #[test]
    fn only_canonical_base64_is_a_key() {
        let key = PrivateKey::generate().unwrap().public();
        let text = key.to_base64();
        assert_eq!(PublicKey::from_base64(&text), Ok(key));
        assert_eq!(PublicKey::from_base64(&format!("{text} ")), Err(KeyError::Length { got: 45 }));
        assert_eq!(PublicKey::from_base64(&text.replace('=', "A")), Err(KeyError::Base64));
        assert_eq!(PublicKey::from_base64(""), Err(KeyError::Length { got: 0 }));
        // The last character before the padding has two unused bits; setting one gives another text for the
        // same key.
        let spelled = format!("{}B=", &"A".repeat(42));
        assert_eq!(PublicKey::from_base64(&spelled), Err(KeyError::Base64));
    }

    #[test]
    fn a_failing_random_source_gives_no_key() {
        assert!(matches!(PrivateKey::generate_with(|_| Err(KeyError::Zero)), Err(KeyError::Zero)));
        assert!(
            matches!(PrivateKey::generate_with(|_| Ok(())), Err(KeyError::Zero)),
            "a source that writes nothing"
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = PrivateKey::from_bytes(&[7; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey(..)");
        assert_eq!(format!("{:?}", PresharedKey::from_bytes(&[7; 32]).unwrap()), "PresharedKey(..)");
    }

    fn hex(text: &str) -> [u8; 32] {
        let mut out = [0; 32];
        for (index, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap();
        }
        out
    }
}
