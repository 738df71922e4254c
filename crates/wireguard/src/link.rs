//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Name of a network interface: 1 to 15 bytes, no slash, no white space, not `.` or `..`
/// (`dev_valid_name` in `net/core/dev.c`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LinkName {
    type Err = LinkNameError;

    fn from_str(text: &str) -> Result<Self, LinkNameError> {
        let fits = (1..=15).contains(&text.len()) && text != "." && text != "..";
        let clean = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if fits && clean {
            Ok(Self(text.to_owned()))
        } else {
            Err(LinkNameError(text.chars().take(32).collect()))
        }
    }
}

impl TryFrom<String> for LinkName {
    type Error = LinkNameError;

    fn try_from(text: String) -> Result<Self, LinkNameError> {
        text.parse()
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

/// Text that is not a valid interface name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("interface name {0:?}: expected 1 to 15 printable characters without '/' and ':'")]
pub struct LinkNameError(String);
