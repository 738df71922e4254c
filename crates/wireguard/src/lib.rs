//! The interface to WireGuard that the userspace engine and the kernel implement: devices, peers and what changes
//! about them.
//!
//! ```text
//!  plan ──Peer, PeerChange──▶ dyn Device ──┬─ tunnel::Userspace: an engine in this process, on a TUN device
//!                                          └─ kernel_wireguard::Kernel: the kernel's, over netlink
//!  plan ◀───── DeviceState ─────┘
//! ```
//!
//! Changes are differences, so that what stays the same is never removed in between. Both backends behave the same as
//! far as [`Device`] goes: one suite of tests runs over both and over the stand-in that plans are tested with.
//!
//! No type here prints a secret: preshared keys appear under their identifiers.

mod backend;
mod change;
mod device;
mod link;
mod mtu;
mod peer;

pub use backend::Backend;
pub use change::{PeerOp, PresharedKeyChange};
pub use device::{Device, DeviceError, DeviceState, OffloadStatus, PeerState};
pub use link::{LinkName, LinkNameError};
pub use mtu::{MIN_MTU, MTU_EXPECTED, MTU_RANGE, OVERHEAD};
pub use peer::{Peer, PeerChange};
