//! The kernel's WireGuard: the state of an interface, and messages that change only what differs.
//!
//! ```text
//!  PeerOp ──request──▶ messages, each below the size limit ──channel──▶ kernel
//!  DeviceState ◀──reading── answers, read again if the interface changed meanwhile ◀──┘
//! ```
//!
//! A link is created through `defguard_wireguard_rs`. Everything else is implemented here: that crate replaces all
//! allowed IPs of a peer at each change, which drops packets, cannot clear a preshared key, accepts an interrupted dump
//! as it is, and its types print keys.
//!
//! It is a crate of its own so that the CNI plugin, which uses `linux`, does not have to link all that.
//!
//! What is opened here belongs to the network namespace of the thread that opens it.

mod channel;
mod device;
mod error;
mod interface;
mod reading;
mod request;
#[cfg(test)]
mod tests;

pub use device::Kernel;
pub use error::{KernelError, ReadingError};
pub use interface::Interface;
