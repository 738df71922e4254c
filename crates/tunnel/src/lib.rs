//! Userspace WireGuard for nodes whose kernel has none.
//!
//! This crate knows datagrams, IP packets, sessions and one TUN device. It must not know nodes, Kubernetes,
//! routes or addresses: the caller decides who the peers are and what is routed into the device.
//!
//! ```text
//!            apply, set_private_key                      wg show, wg set
//!                     │                                        │
//!                     ▼                                        ▼
//!                Interface ◀───────────────────────────── UAPI socket
//!      TUN ──read──▶ │ ──seal──▶ Engine ──datagrams──▶ │ ──send──▶ UDP (IPv4, IPv6)
//!      TUN ◀─write── │ ◀─open─── (no I/O) ◀─datagrams─ │ ◀─recv─── UDP
//!                timer thread ──tick──▶
//! ```
//!
//! [`Engine`] does no I/O and takes the time as an argument; only boringtun's rate limiter inside it reads
//! a clock of its own. Configuration and sessions are immutable snapshots that are swapped as a whole, so no lock is
//! held while a packet is encrypted or decrypted, which happens where it lies: in the buffer that it was read into.
//! [`Interface`] is the shell: threads, sockets and the TUN device.

pub mod bare;
mod batch;
mod counters;
mod device;
mod engine;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod interface;
mod message;
mod offload;
mod uapi;

/// UDP with many datagrams per system call, for others that forward WireGuard's.
pub mod udp {
    pub use crate::interface::{Inbox, Message, SEND_BATCH, Sockets, UdpOffload};
}

pub use batch::{Datagrams, Packets};
pub use counters::{Counters, DropReason};
pub use device::{Userspace, UserspaceOptions};
pub use engine::{
    ClockReading, Engine, EngineOptions, InitiationError, Initiator, Received, answered_index,
    initiation_from,
};
pub use error::{ChangeError, Failure, TunnelError};
pub use interface::{Health, Interface, InterfaceConfig, OffloadOption, uapi_dir};
