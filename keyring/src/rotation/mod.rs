//! Replaces a node's keys while traffic flows: a state machine without clock, randomness or I/O.
//!
//! A node has two slots, each with a WireGuard device of its own. A rotation replaces the key of the standby
//! slot, moves traffic there, and then replaces the other key the same way. In each step the journal is
//! written to disk before anything is announced:
//!
//! ```text
//! Steady ─▶ Draining ─▶ Verifying ─▶ Between ─▶ Draining ─▶ Verifying ─▶ Steady
//!           standby      standby      new key    other        other
//!           slot is      has its      preferred  slot is      has its
//!           drained      new key                 drained      new key
//! ```
//!
//! Why no packet is lost: a key is removed only after every peer that is alive has confirmed, inside the
//! tunnel, that it sends on the other slot, and traffic moves only to keys over which that peer has answered.
//! Two nodes that rotate at the same time never leave their pair without a slot: a node that sees another one
//! drain the other slot does not start, and if both started without knowing of each other,
//! [`Stance::goes_before`] picks the same one on both sides; the one that waits acknowledges nothing and
//! discards the acknowledgement that it had.

mod event;
mod journal;
mod machine;
mod pair;
mod peers;
mod policy;
mod steps;

pub use event::{Ask, Cause, Effect, Input, Note, Now};
pub use journal::{Half, Journal, KeyRecord, MAX_GENERATION, Step};
pub use machine::Rotation;
pub use pair::{PeerId, Stance, drained_between, slot_for};
pub use peers::PeerProgress;
pub use policy::{RotationPolicy, RotationPolicyError, RotationSettings};
