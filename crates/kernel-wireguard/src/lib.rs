//! The kernel's WireGuard: what an interface is like now, and the messages that change only what differs.
//!
//! ```text
//!  PeerOp ──request──▶ messages, each below the size limit ──channel──▶ kernel
//!  InterfaceState ◀──reading── answers, read again if they changed under way ◀──┘
//! ```
//!
//! An interface is made through `defguard_wireguard_rs`. Everything else is said here: that crate replaces all allowed
//! IPs of a peer at each change, which drops packets, can't clear a preshared key, takes a list that changed while it
//! was read as it is, and its types print keys.
//!
//! It is a crate of its own so that the CNI plugin, which uses `linux`, need not carry all that.
//!
//! What is opened here belongs to the network namespace of the thread that opens it.

mod channel;
mod error;
mod interface;
mod reading;
mod request;
#[cfg(test)]
mod tests;

pub use error::{KernelError, ReadingError};
pub use interface::Interface;
pub use reading::{InterfaceState, PeerStatus};
pub use wireguard::{PeerOp, PeerSettings, PresharedKeyChange};
