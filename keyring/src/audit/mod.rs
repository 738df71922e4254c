//! The audit trail: what happened to keys, recorded by their own node and by its peers.
//!
//! ```text
//!  Event ─▶ Trail ─▶ audit.jsonl ─▶ verify   is it intact, and does it match what peers have recorded?
//!                                ─▶ report   which keys were in use when, and were the old ones destroyed?
//!                                ─▶ export   for other tools
//! ```
//!
//! Each line contains the hash of the previous line. That alone does not keep the owner of a trail from
//! rewriting it, so each node announces the head of its trail to its peers, and they record it in theirs.

/// Name of a trail's directory in the daemon's state directory.
pub const DIRECTORY: &str = "audit";

mod event;
mod export;
mod head;
mod line;
mod report;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

pub use event::{Event, NodeRef};
pub use export::{Format, export};
pub use head::Head;
pub use line::{Line, LineError};
pub use report::{KeyHistory, NodeReport, Report, not_destroyed, report};
pub use trail::{Trail, TrailError, files, read, remove};
pub use verify::{CheckedTrail, Finding, WitnessFinding, against_witness, verify};
