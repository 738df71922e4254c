//! A blocking netlink socket for every netlink family that is used without a runtime: nftables, generic netlink, and
//! rtnetlink in the CNI plugin.
//!
//! ```text
//!  Request ──encode──▶ Socket ──▶ kernel
//!  take(Message) ◀── frame: one message at a time, errors and acknowledgements apart ◀──┘
//! ```
//!
//! It knows framing (RFC 3549 section 2), acknowledgements with the kernel's text, interrupted dumps and transactions.
//! What is in a message is the caller's: a [`Protocol`] names the type of its requests, and answers are handed over as
//! bytes.
//!
//! A [`Socket`] belongs to the network namespace of the thread that opens it.

mod error;
mod exchange;
mod frame;
mod socket;
#[cfg(test)]
mod tests;

pub use error::NetlinkError;
pub use exchange::DUMP_ATTEMPTS;
pub use frame::{HEADER_LEN, Message, encode};
pub use socket::{Protocol, Socket, Step};
