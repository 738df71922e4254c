//! An operator's request that a node replace its keys: an annotation on its Node.
//!
//! It names a time, so that it is idempotent: read twice, after a crash or after it was fulfilled, it needs no memory.

use std::fmt;
use std::str::FromStr;

/// The annotation `config.meshd.dev/renew-keys-before`: a Unix time in seconds, and perhaps how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Keys that were created before this time are to be replaced. Seconds since 1970. Nothing happens before that time,
    /// or where clocks differ new keys would be too old at once.
    pub before: u64,
    /// Both keys at once, without waiting for peers: for a key that may be compromised.
    pub at_once: bool,
}

/// The suffix that asks for both keys at once.
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

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a Unix time in seconds, such as 1764000000, or one with the word {AT_ONCE:?} after it")]
pub struct RenewalError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_request_parses() {
        for request in [Renewal { before: 0, at_once: false }, Renewal { before: u64::MAX, at_once: true }] {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "now", "-1", "+1", "1.5", "1 ", " 1", "1 at", "1 at-once ", "99999999999999999999"] {
            assert_eq!(text.parse::<Renewal>(), Err(RenewalError), "{text:?}");
        }
    }
}
