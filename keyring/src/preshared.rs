//! The name of a preshared key, for plans, tables and logs that must speak of it without the secret.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroize as _;

use crate::{KeyError, PresharedKey};

/// Sets these digests apart from every other use of SHA-256 on the same bytes.
const LABEL: &[u8] = b"meshd preshared key id v1";

/// The first eight bytes of a labelled SHA-256 of a preshared key, as 16 hexadecimal digits.
///
/// Safe to show: the key has 256 bits that nobody can guess, so its digest tells nothing about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresharedId([u8; 8]);

impl PresharedId {
    /// The name as bytes.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// Takes a name as bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
}

impl PresharedKey {
    /// The key's name.
    pub fn id(&self) -> PresharedId {
        let mut digest = Sha256::new().chain_update(LABEL).chain_update(self.expose()).finalize();
        let mut short = [0; 8];
        short.copy_from_slice(&digest[..8]);
        digest.as_mut_slice().zeroize();
        PresharedId(short)
    }
}

impl fmt::Display for PresharedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 16 || !text.bytes().all(lower) {
            return Err(KeyError::Fingerprint);
        }
        u64::from_str_radix(text, 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|_| KeyError::Fingerprint)
    }
}

impl Serialize for PresharedId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PresharedId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names_of_their_own_that_do_not_show_them() {
        let [one, two] = [7, 8].map(|byte| PresharedKey::from_bytes(&[byte; 32]).unwrap());
        assert_eq!(one.id(), one.duplicate().id());
        assert_ne!(one.id(), two.id());
        // Not the plain digest, which other uses of the same bytes would have.
        assert_ne!(one.id().as_bytes(), &Sha256::digest([7; 32])[..8]);
        assert_eq!(one.id().to_string().parse(), Ok(one.id()));
        assert!(!one.id().to_string().contains("0707"));
    }

    #[test]
    fn only_a_name_is_read_as_one() {
        for text in ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdefa", "+123456789abcdef"] {
            assert_eq!(text.parse::<PresharedId>(), Err(KeyError::Fingerprint), "{text:?}");
        }
    }
}
