//! Who is in the mesh: decided about the Nodes that have changed, with those that compete with them, and now and then about all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use plan::admission::Admission;
use plan::node::NodeName;
use tracing::warn;

use super::Reconciler;
use crate::daemon::outcome::Spliced;

/// How long all Nodes are not decided about at most, if turns of other reasons follow each other.
const ALL_PERIOD: Duration = Duration::from_mins(10);

impl Reconciler {
    /// Decides who is in the mesh; also returns what was decided anew, unless that is all: the outcome has it already. A turn
    /// that is taken only because the last one is long ago decides about all.
    pub(super) fn admit(&mut self, now: Duration) -> (Arc<Admission>, Option<Spliced>) {
        let is_time = self.looks.admitted_all.is_none_or(|last| now >= last + ALL_PERIOD);
        let part = self.cluster.admit_changed(&self.policy);
        let is_comparable = part.is_some() && !self.cluster.has_changed();
        if let Some(part) = part.filter(|_| !self.looks.periodic && !is_time) {
            let spliced = self.outcome.splice(part);
            return (self.outcome.shared_admission(), Some(spliced));
        }
        self.looks.admitted_all = Some(now);
        let admission = self.cluster.admit(&self.policy);
        // With nothing new, all must be as it was decided before.
        if is_comparable {
            self.compare(&admission);
        }
        (Arc::new(admission), None)
    }

    /// Counts the Nodes about which parts have decided otherwise than an admission of all.
    fn compare(&mut self, all: &Admission) {
        let former = self.outcome.admission();
        if former == all {
            return;
        }
        let differs = |name: &&NodeName| former.world.peers.get(*name) != all.world.peers.get(*name);
        let names: BTreeSet<&NodeName> = former.world.peers.keys().chain(all.world.peers.keys()).collect();
        let nodes: Vec<&str> = names.into_iter().filter(differs).map(NodeName::as_str).collect();
        warn!(
            event = "AdmissionDiffered",
            count = nodes.len(),
            nodes = nodes.iter().take(5).copied().collect::<Vec<_>>().join(", "),
            "all Nodes together are admitted otherwise than one after the other; that is taken now"
        );
        self.outcome.counters.missed_changes += u64::try_from(nodes.len().max(1)).unwrap_or(u64::MAX);
        self.cluster.admit_all_next();
    }
}
