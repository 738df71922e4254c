//! Pure mesh mathematics: given all Nodes of a cluster, what should this node's network be, and which steps
//! lead there from what is observed now.
//!
//! No I/O, no clock, no async, no log. Everything is a function from values to values:
//!
//! ```text
//! NodeRecord* ──admit(ledger)──▶ World + Rejected* ──desired──▶ Network ─┐
//!                                                                        ├─ diff ─▶ Plan(Vec<Op>)
//!                                                   observed Network ────┘
//! ```

pub mod admission;
pub mod annotation;
mod apply;
pub mod backoff;
pub mod brake;
pub mod check;
pub mod cluster;
pub mod desired;
mod diff;
pub mod evidence;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod leases;
pub mod look;
pub mod names;
pub mod network;
pub mod node;
pub mod op;
pub mod part;
pub mod path_mtu;
pub mod paths;
pub mod prefix;
pub mod publication;
mod render;
pub mod renewal;
mod statement;
pub mod timers;
pub mod turn;
pub mod whereabouts;

pub use apply::Refusal;
pub use desired::desired;
pub use diff::diff;
