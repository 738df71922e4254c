//! A verification: whether this node's end of the mesh is encrypted, tried and not assumed. What it proves is decided by the crate
//! `status`.

mod control;
mod rounds;
mod trail;

use std::time::Duration;

use keyring::PerSlot;
use status::verify::evidence::{FenceEvidence, GuardEvidence, TrailEvidence};
use tokio::sync::oneshot;
use wireguard::DeviceState;

pub(super) use control::control;
pub(super) use rounds::{Rounds, Tried, Wanted};
pub(super) use trail::trail_evidence;

/// How long everything may take that is not a probe: the API server, the disk.
const OTHERS: Duration = Duration::from_secs(12);
/// After how long it ends whatever is still open.
const LIMIT: Duration = Duration::from_mins(1);

/// A verification that runs.
#[derive(Debug)]
pub(super) struct Verification {
    /// When it began, since the daemon started.
    pub(super) began: Duration,
    /// The probes of all peers.
    pub(super) rounds: Rounds,
    /// The devices before the first probe.
    pub(super) before: PerSlot<Option<DeviceState>>,
    /// The guard before the first probe, and the positive control.
    pub(super) guard: GuardEvidence,
    /// What the API server says to forgeries, once it has answered.
    pub(super) fence: Option<FenceEvidence>,
    /// The audit trail, once it was read.
    pub(super) trail: Option<TrailEvidence>,
    /// Who has asked.
    pub(super) replies: Vec<oneshot::Sender<String>>,
}

impl Verification {
    /// Whether all is known that can be.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        let lasted = now.saturating_sub(self.began);
        let others = (self.fence.is_some() && self.trail.is_some()) || lasted >= OTHERS;
        (self.rounds.is_over(now) && others) || lasted >= LIMIT
    }

    /// When it is to be looked after next.
    pub(super) fn due(&self, now: Duration) -> Duration {
        if self.is_over(now) {
            return now;
        }
        let end = if self.rounds.is_over(now) { self.began + OTHERS } else { self.rounds.due(now) };
        end.min(self.began + LIMIT)
    }
}
