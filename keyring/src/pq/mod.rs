//! Agrees with each peer on preshared keys that a quantum computer can't find: a state machine without clock or I/O.
//!
//! WireGuard mixes a preshared key into its handshake. One that came out of ML-KEM protects what is recorded today from
//! whoever breaks Curve25519 later. The key travels nowhere: both ends compute it from two messages that they exchange
//! inside the tunnel, and which slot's tunnel carries them does not matter to what the key is bound to.
//!
//! A userspace engine loses its session with a peer whose preshared key changes, so a key changes only on a slot that
//! neither end sends pods' packets on. The node with the lower name leads:
//!
//! ```text
//!  lower name                                    higher name
//!  avoids slot s, waits                          
//!             ── Offer(s, epoch, key) ────────▶  avoids slot s, waits
//!             ◀─ Accept(ciphertext, proof) ────  keeps off s until it knows what became of this
//!  disk, then engine
//!             ── Confirm(proof) ──────────────▶  disk, then engine
//!             ◀═ handshake over s with the key ═▶
//!  proven                                        proven
//! ```
//!
//! All three go over the other slot, so an exchange goes on only while that one works. A proven slot is better than one
//! without a key, and that one better than one whose key differs: [`Pairing::avoid`] names the worse one. So the second
//! slot's turn comes by itself, and a renewal, [`Terms::interval`] after the last one, is the same again.
//!
//! What both hold is compared by name in each [`Hello`]. Keys that differ are replaced over the slot that still works;
//! two nodes that can't hear each other on either give up the key of slot a after [`Terms::silence`], and no other.

mod agreement;
mod event;
mod exchange;
mod follow;
mod lead;
mod message;
mod pairing;
mod provider;
mod slot;

pub use agreement::Statics;
pub use event::{Effect, Entry, Input, Mode, Note, Protection, SlotReport, Terms};
pub use message::{
    Accept, Hello, LONGEST_ANSWER, LONGEST_MESSAGE, LONGEST_OFFER, Message, MessageError, Offer, Refusal,
};
pub use pairing::{Kept, Pairing};
#[cfg(feature = "ml-kem")]
pub use provider::MlKem768;
pub use provider::{Begun, ProviderError, PskProvider, SharedSecret};
