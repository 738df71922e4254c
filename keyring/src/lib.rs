//! Key material of one mesh node and its life cycle.
//!
//! This crate knows keys, slots and files. It must not know networks, Kubernetes or clocks: whoever calls
//! it decides when a key is made and where it is announced.
//!
//! ```text
//!   random bytes ──▶ PrivateKey ──▶ PublicKey      three types, parsed once, never mixed up
//!                        │
//!   rotation::Journal ──▶ NodeKeys ──▶ store         one file, 0600 in a 0700 folder, atomic
//!   rotation::Rotation                               which key comes when; no clock, no I/O
//!   pq::Pairing ──▶ PresharedKey                     a second secret with each peer, agreed with ML-KEM-768
//! ```
//!
//! A private or preshared key has no `Debug` that shows it, no `Display`, no `Serialize` and no `Clone`.
//! It is wiped from memory when it is dropped.

pub mod audit;
mod digest;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod low_order;
pub mod pq;
mod preshared;
mod ring;
pub mod rotation;
mod secret;
mod slot;
pub mod store;

pub use key::{Fingerprint, KeyError, PrivateKey, PublicKey};
pub use preshared::{PresharedId, PresharedKey};
pub use ring::NodeKeys;
pub use slot::{PerSlot, Slot, SlotError};
