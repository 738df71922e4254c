//! Agrees with each peer on preshared keys that resist quantum computers: a state machine without clock or
//! I/O.
//!
//! WireGuard mixes a preshared key into its handshake. One from ML-KEM protects traffic recorded today
//! against an attacker who breaks Curve25519 later. The key itself is never sent: both ends compute it from
//! two messages that they exchange inside the tunnel. It does not depend on which slot carries them.
//!
//! A userspace engine drops its session with a peer whose preshared key changes, so a key changes only on a
//! slot that carries no pod traffic in either direction. The node with the lower UID is the initiator:
//!
//! ```text
//!  initiator                                     responder
//!  avoids slot s, waits until it is idle
//!             ── Offer(s, epoch, key) ────────▶  avoids slot s, waits until it is idle
//!             ◀─ Accept(ciphertext, proof) ────  does not use s until the outcome is known
//!  writes the key to disk, sets it in the device
//!             ── Confirm(proof) ──────────────▶  writes the key to disk, sets it in the device
//!             ◀═ handshake over s with the key ═▶
//!  proven                                        proven
//! ```
//!
//! All three are sent over the other slot, so an exchange progresses only while that one works. A proven slot
//! is better than one without a key, and that is better than one whose key differs: [`Pairing::avoid`] names
//! the worse one. So traffic moves and the other slot is next, and a renewal, [`PqSettings::interval`] later,
//! works the same way.
//!
//! The IDs of the keys that both hold are compared in each [`Hello`]. Keys that differ are replaced over the
//! slot that still works; two nodes that can't reach each other on either drop the key of slot a after
//! [`PqSettings::silence_timeout`], and no other.

mod agreement;
mod epoch;
mod event;
mod exchange;
mod initiator;
mod message;
mod pairing;
mod provider;
mod responder;
mod slot;

pub use agreement::StaticKeys;
pub use event::{Effect, Entry, Input, Mode, Note, PqSettings, Protection, SlotReport};
pub use message::{
    Accept, Hello, MAX_ANSWER_LEN, MAX_MESSAGE_LEN, MAX_OFFER_LEN, Message, MessageError, Offer, Refusal,
};
pub use pairing::{Pairing, StoredPreshared};
#[cfg(feature = "ml-kem")]
pub use provider::MlKem768;
pub use provider::{PendingExchange, ProviderError, PskProvider, SharedSecret};
