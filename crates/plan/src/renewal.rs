//! An operator's wish that a node replace its keys, as it stands on the Node.
//!
//! It names a moment and not a deed: whoever reads it twice, or after a crash, or after it was fulfilled, does the right
//! thing without remembering anything.

use std::fmt;
use std::str::FromStr;

/// The annotation `config.meshd.dev/renew-keys-before`: a Unix time in seconds, and perhaps how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Keys that were made before this moment are to be replaced. Seconds since 1970. Nothing happens before the moment
    /// itself has come, or else new keys would be too old at once where clocks differ.
    pub before: u64,
    /// Both keys at once, without waiting for peers: for a key that others may know.
    pub at_once: bool,
}

/// The word that asks for haste.
const AT_ONCE: &str = "at-once";

impl fmt::Display for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.before)?;
        if self.at_once { write!(f, " {AT_ONCE}") } else { Ok(()) }
    }
}

impl FromStr for Renewal {
    type Err = RenewalError;

    fn from_str(text: &str) -> Result<Self, RenewalError> {
        let (number, at_once) = match text.split_once(' ') {
            Some((number, AT_ONCE)) => (number, true),
            Some(_) => return Err(RenewalError),
            None => (text, false),
        };
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let before = number.parse().ok().filter(|_| digits).ok_or(RenewalError)?;
        Ok(Self { before, at_once })
    }
}

/// Why a wish was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a Unix time in seconds, such as 1764000000, or one with the word {AT_ONCE:?} after it")]
pub struct RenewalError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for wish in [Renewal { before: 0, at_once: false }, Renewal { before: u64::MAX, at_once: true }] {
            assert_eq!(wish.to_string().parse(), Ok(wish));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "now", "-1", "+1", "1.5", "1 ", " 1", "1 at", "1 at-once ", "99999999999999999999"] {
            assert_eq!(text.parse::<Renewal>(), Err(RenewalError), "{text:?}");
        }
    }
}
