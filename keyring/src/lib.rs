//! Key material of one mesh node and its life cycle.
//!
//! This crate deals with keys, slots and files. It knows nothing of networks, Kubernetes or clocks: the
//! caller decides when a key is generated and where it is announced.
//!
//! ```text
//!   random bytes ──▶ PrivateKey ──▶ PublicKey      two types, parsed once, never mixed up
//!                        │
//!   rotation::Journal ──▶ NodeKeys ──▶ store         one file, 0600 in a 0700 directory, replaced atomically
//!   rotation::Rotation                               which key is used when; no clock, no I/O
//!   pq::Pairing ──▶ PresharedKey                     a second secret with each peer, from ML-KEM-768
//!   ChannelKeys                                      authenticate control messages between two nodes
//! ```
//!
//! A private or preshared key has no `Debug` that shows it, no `Display`, no `Serialize` and no `Clone`. It
//! is wiped from memory when it is dropped.

pub mod audit;
mod channel_key;
mod digest;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod low_order;
mod node_keys;
pub mod pq;
mod preshared;
mod proof;
pub mod rotation;
mod secret;
mod shared_text;
mod slot;
pub mod store;

pub use channel_key::{ChannelKey, ChannelKeys, ChannelMac, MAC_LEN};
pub use error::KeyError;
pub use key::{Fingerprint, PrivateKey, PublicKey};
pub use node_keys::NodeKeys;
pub use preshared::{PresharedId, PresharedKey};
pub use proof::{NOISE, Proof, ProofError};
pub use shared_text::SharedText;
pub use slot::{PerSlot, Slot, SlotError};
