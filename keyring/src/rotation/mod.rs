//! Replaces a node's keys while traffic flows: a state machine without clock, randomness or I/O.
//!
//! A node has two slots, each with a WireGuard device of its own. A rotation replaces the key of the standby
//! slot, moves the traffic there, and then replaces the other key the same way. At each step the journal is on
//! disk before anybody is told:
//!
//! ```text
//! Steady ─▶ Draining ─▶ Verifying ─▶ Between ─▶ Draining ─▶ Verifying ─▶ Steady
//!           standby      standby      new key    the other    the other
//!           is left      has its      preferred  slot is      has its
//!           by all       new key                 left by all  new key
//! ```
//!
//! Why no packet is lost: a key is taken away only after every live peer has said, over the tunnel, that it
//! sends on the other slot, and traffic moves only to keys over which that peer has answered. Two nodes that
//! rotate at once never leave their pair without a slot: who sees that another drains the other slot does not
//! begin, and of two that began without knowing of each other [`Stance::goes_before`] picks the same one on
//! both sides; the one that waits gives no acknowledgement and forgets the one that it had.

mod event;
mod journal;
mod machine;
mod pair;
mod peers;
mod policy;
mod steps;

pub use event::{Ask, Cause, Effect, Input, Note, Now};
pub use journal::{Half, Journal, KeyRecord, Step};
pub use machine::Rotation;
pub use pair::{PeerId, Stance, drained_between, slot_for};
pub use peers::PeerProgress;
pub use policy::{Policy, PolicyError, Terms};
