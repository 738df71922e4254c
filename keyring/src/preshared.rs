//! Preshared keys, and their IDs in plans, tables and logs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::digest::ShortDigest;
use crate::error::KeyError;
use crate::secret::{LEN, Secret, decode};

/// Separates these digests from every other use of SHA-256 on the same bytes.
const LABEL: &[u8] = b"meshd preshared key id v1";

/// A symmetric key that two peers share on top of their static keys. Wiped on drop; it can't be printed.
pub struct PresharedKey(Secret);

impl PresharedKey {
    /// Takes 32 bytes as a key. All zeros is refused: WireGuard reads them as "no preshared key".
    pub fn from_bytes(bytes: &[u8; LEN]) -> Result<Self, KeyError> {
        Secret::take(bytes).map(Self)
    }

    /// Parses canonical base64, the form that `wg genpsk` prints.
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

    /// A second copy of the secret, for a second owner.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.duplicate())
    }

    /// The key's ID.
    pub fn id(&self) -> PresharedId {
        let mut digest = Sha256::new().chain_update(LABEL).chain_update(self.expose()).finalize().into();
        let id = PresharedId(ShortDigest::of(&digest));
        digest.zeroize();
        id
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// The first eight bytes of a labelled SHA-256 of a preshared key, as 16 hexadecimal digits.
///
/// Safe to show: the key has 256 random bits, so its digest reveals nothing about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PresharedId(ShortDigest);

impl PresharedId {
    /// The ID as bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0.0
    }

    /// Takes an ID as bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(ShortDigest(bytes))
    }
}

impl fmt::Display for PresharedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PresharedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresharedId({self})")
    }
}

impl FromStr for PresharedId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_an_id_that_does_not_reveal_it() {
        let [one, two] = [7, 8].map(|byte| PresharedKey::from_bytes(&[byte; 32]).unwrap());
        assert_eq!(one.id(), one.duplicate().id());
        assert_ne!(one.id(), two.id());
        // Not the plain digest, which other uses of the same bytes would give.
        assert_ne!(one.id().as_bytes(), &Sha256::digest([7; 32])[..8]);
        assert_eq!(one.id().to_string().parse(), Ok(one.id()));
        assert!(!one.id().to_string().contains("0707"));
    }

    #[test]
    fn only_an_id_is_parsed_as_one() {
        for text in ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdefa", "+123456789abcdef"] {
            assert_eq!(text.parse::<PresharedId>(), Err(KeyError::Fingerprint), "{text:?}");
        }
    }
}
