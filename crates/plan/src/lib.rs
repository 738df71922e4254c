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

pub mod network;
pub mod op;
