//! The audit trail: what happened to keys, recorded by their own node and by its peers.
//!
//! ```text
//!  Event ─▶ Trail ─▶ audit.jsonl ─▶ verify   is it intact, and does it match what peers have recorded?
//!                                ─▶ report   which keys were in use when, and were the old ones destroyed?
//!                                ─▶ export   for other tools
//! ```
//!
//! Each line contains the hash of the previous line. That alone does not keep the owner of a trail from
//! rewriting it, so each node announces the head of its trail to its peers, and they record it.
//!
//! What a node records about others goes into a trail of its own, the witness trail, with a quota per peer: however much
//! a peer does, it pushes no line out of the node's own trail, and only after months one of another peer.

/// Name of a trail's directory in the daemon's state directory.
pub const DIRECTORY: &str = "audit";
/// Name of the directory of the witness trail, in that of the node's own trail.
pub const WITNESS_DIRECTORY: &str = "witness";

mod event;
mod export;
mod head;
mod line;
mod quota;
mod report;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

pub use event::{Event, NodeRef};
pub use export::{Format, export};
pub use head::Head;
pub use line::{Line, LineError};
pub use quota::{Decision, Quota};
pub use report::{KeyHistory, NodeReport, Report, not_destroyed, report};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use trail::end_of_file;
pub use trail::{Opening, Trail, TrailError, files, read, remove};
pub use verify::{CheckedTrail, Finding, WitnessFinding, against_own, against_witness, verify};
