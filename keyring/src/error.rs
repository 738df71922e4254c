//! The error of everything that parses or generates keys.

/// Why bytes or text are not a key. Never carries the text: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 44 characters of base64, so not 32 bytes.
    #[error("key of {got} characters: expected 44 characters of base64 (32 bytes)")]
    Length {
        /// How many bytes the text had.
        got: usize,
    },
    /// A character outside the alphabet, wrong padding, or unused bits that are not zero.
    #[error("key is not canonical base64")]
    Base64,
    /// Not the fingerprint of a key.
    #[error("fingerprint: expected 16 lower-case hexadecimal digits")]
    Fingerprint,
    /// All bytes are zero.
    #[error("key is all zeros")]
    Zero,
    /// A point of low order: every shared secret with it would be zero.
    #[error("public key is a point of low order")]
    LowOrder,
    /// The operating system's random source failed.
    #[error("read random bytes for a new key")]
    Random(#[source] getrandom::Error),
}
