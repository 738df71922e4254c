//! Errors of this crate.

use std::io;

use netlink_packet_core::DecodeError;

/// Why an exchange with the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened, written or read.
    #[error("{operation} the netlink socket")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refused the request.
    #[error("{error}{}", message.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Refused {
        /// The kernel's error.
        error: io::Error,
        /// The kernel's text (extended acknowledgement), if it has one.
        message: Option<String>,
    },
    /// The answer is not a sequence of whole netlink messages.
    #[error("the kernel's answer is malformed: {problem}")]
    Malformed {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The contents of a message could not be read.
    #[error("read the kernel's answer")]
    Decode {
        /// What is wrong with it.
        source: DecodeError,
    },
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused or the socket failed.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Socket { source: error, .. } | Self::Refused { error, .. } => error.raw_os_error(),
            Self::Malformed { .. } | Self::Decode { .. } => None,
        }
    }
}

/// An error of the kernel's without a text.
impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self::Refused { error, message: None }
    }
}

impl From<DecodeError> for NetlinkError {
    fn from(source: DecodeError) -> Self {
        Self::Decode { source }
    }
}
