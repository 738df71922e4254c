//! Errors of this crate: operation, interface, peer, and the kernel's own number.

use defguard_wireguard_rs::error::WireguardInterfaceError;
use keyring::PublicKey;
use netlink::NetlinkError;

/// Why the kernel's WireGuard could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel has no WireGuard, or its module can't be loaded from here.
    #[error(
        "find WireGuard in the kernel: expected Linux 5.6 or newer, with the module wireguard if it is not built in"
    )]
    NoWireguard {
        /// The kernel's error.
        source: NetlinkError,
    },
    /// A link could not be created.
    #[error("create the WireGuard link {link}: expected WireGuard in the kernel and CAP_NET_ADMIN")]
    Create {
        /// Its name.
        link: String,
        /// The cause; the kernel's number is in its text only.
        source: Box<WireguardInterfaceError>,
    },
    /// The link is there but is another kind of link, or it is gone.
    #[error("{operation} {link}: expected a WireGuard link")]
    NotWireguard {
        /// What was tried.
        operation: &'static str,
        /// The link.
        link: String,
        /// The kernel's error.
        source: NetlinkError,
    },
    /// The kernel refused something about an interface.
    #[error("{operation} {link}")]
    Interface {
        /// What was tried.
        operation: &'static str,
        /// The interface.
        link: String,
        /// The kernel's error.
        source: NetlinkError,
    },
    /// The kernel refused something about a peer.
    #[error("{operation} peer {peer} of {link}")]
    Peer {
        /// What was tried.
        operation: &'static str,
        /// The interface.
        link: String,
        /// The peer.
        peer: PublicKey,
        /// The kernel's error.
        source: NetlinkError,
    },
    /// The kernel's answer could not be read.
    #[error("{operation} {link}: read the kernel's answer")]
    Answer {
        /// What was tried.
        operation: &'static str,
        /// The interface.
        link: String,
        /// What is wrong with the answer.
        source: ReadingError,
    },
    /// There is no randomness for a key.
    #[error("remove prefixes from peer {peer} of {link}: no random numbers")]
    Random {
        /// The interface.
        link: String,
        /// The peer.
        peer: PublicKey,
        /// The cause.
        source: getrandom::Error,
    },
}

/// What is wrong with an answer of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadingError {
    /// It ends before its length says, or a part of it does.
    #[error("a message or an attribute is cut off")]
    CutOff,
    /// An attribute has another length than its kind has.
    #[error("attribute {kind} has {found} bytes")]
    Length {
        /// Number of the attribute within its level.
        kind: u16,
        /// Bytes found.
        found: usize,
    },
    /// A prefix is longer than its address, or its family is unknown.
    #[error("an allowed IP is no prefix")]
    Prefix,
    /// A peer without a public key.
    #[error("a peer has no public key")]
    Nameless,
    /// An answer of another kind than was asked for.
    #[error("unexpected response")]
    Foreign,
}

impl KernelError {
    /// The kernel's error number, if it was the kernel that refused and said why.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NoWireguard { source }
            | Self::NotWireguard { source, .. }
            | Self::Interface { source, .. }
            | Self::Peer { source, .. } => source.errno(),
            Self::Create { .. } | Self::Answer { .. } | Self::Random { .. } => None,
        }
    }

    /// Whether the link is not there or is no WireGuard link.
    pub const fn is_missing(&self) -> bool {
        matches!(self, Self::NotWireguard { .. })
    }
}
