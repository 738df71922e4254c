//! Thirty-two secret bytes, and their base64 in files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

use crate::error::KeyError;

/// Length of every key in bytes.
pub(crate) const LEN: usize = 32;
/// Length of a key in base64, padding included.
const BASE64_LEN: usize = 44;

/// Secret bytes that are not all zero. Wiped on drop.
///
/// On the heap: moving a value leaves its bytes behind at the old place, moving a box leaves only a pointer.
#[derive(ZeroizeOnDrop)]
pub(crate) struct Secret(Box<[u8; LEN]>);

impl Secret {
    /// Refuses all zeros: that is an empty file or a cleared buffer, never a secret.
    pub(crate) fn take(bytes: &[u8; LEN]) -> Result<Self, KeyError> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(KeyError::Zero);
        }
        let mut secret = Self(Box::new([0; LEN]));
        secret.0.copy_from_slice(bytes);
        Ok(secret)
    }

    pub(crate) fn expose(&self) -> &[u8; LEN] {
        &self.0
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8; LEN] {
        &mut self.0
    }

    pub(crate) fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.expose()))
    }

    pub(crate) fn duplicate(&self) -> Self {
        let mut copy = Self(Box::new([0; LEN]));
        copy.0.copy_from_slice(self.expose());
        copy
    }
}

/// Decodes canonical base64: exactly 44 characters, no spaces, no unused bits set.
pub(crate) fn decode(text: &str) -> Result<Zeroizing<[u8; LEN]>, KeyError> {
    if text.len() != BASE64_LEN {
        return Err(KeyError::Length { got: text.len() });
    }
    // The decoder needs room for the padded length.
    let mut buffer = Zeroizing::new([0; LEN + 1]);
    let written = BASE64.decode_slice(text, buffer.as_mut_slice()).map_err(|_| KeyError::Base64)?;
    if written != LEN {
        return Err(KeyError::Base64);
    }
    let mut key = Zeroizing::new([0; LEN]);
    key.copy_from_slice(&buffer[..LEN]);
    buffer.zeroize();
    Ok(key)
}
