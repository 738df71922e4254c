//! The audit trail: what happened to keys, on their own node and as its peers saw it.
//!
//! ```text
//!  Event ─▶ Trail ─▶ audit.jsonl ─▶ verify   is it whole, and does it agree with what others remember?
//!                                ─▶ report   which keys were in use when, and are the old ones gone?
//!                                ─▶ export   for other tools
//! ```
//!
//! Each line carries the hash of the line before it. That alone does not stop the owner of a trail from writing it
//! anew, so each node tells its peers where its trail ends, and they write that into theirs.

/// Name of a trail's directory in the daemon's state directory.
pub const DIRECTORY: &str = "audit";

mod event;
mod export;
mod line;
mod report;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

pub use event::{Event, NodeRef};
pub use export::{Format, export};
pub use line::{Head, Line, LineError};
pub use report::{KeyLife, NodeReport, Report, not_destroyed, report};
pub use trail::{Trail, TrailError, files, read, remove};
pub use verify::{Finding, Verdict, WitnessFinding, against_witness, verify};
