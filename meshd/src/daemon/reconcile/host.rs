//! The checks of the host, as part of a turn.

use std::time::Duration;

use plan::admission::Admission;
use tracing::{info, warn};

use super::{HOST, Reconciler};
use crate::chain::Chain;

impl Reconciler {
    /// Reads the host if that is due.
    pub(super) async fn read_host(&mut self, now: Duration) {
        if !self.host_checks.are_due(now, self.kernel_changed || self.looks.filters_changed) {
            return;
        }
        match self.host_checks.read(now, &self.config, (&self.host, self.filters.state)).await {
            Ok(()) => drop(self.side_tasks.succeeded(&HOST)),
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(now, HOST, cause.clone()) {
                    warn!(event = "HostNotChecked", error = cause, "the host could not be checked");
                }
            }
        }
    }

    /// Judges what was read, and says what has changed.
    pub(super) fn judge_host(&mut self, now: Duration, admission: &Admission) {
        let backend = self.outcome.backend();
        let changes = self.host_checks.judge(now, &self.config, backend, admission);
        for found in &changes.appeared {
            warn!(
                event = "HostFinding",
                code = found.code.as_str(),
                sentence = found.sentence,
                fix = found.fix,
                "found on the host"
            );
        }
        for gone in &changes.gone {
            info!(
                event = "HostFindingGone",
                code = gone.code.as_str(),
                sentence = gone.sentence,
                "no longer found on the host"
            );
        }
        if changes != super::super::host::Changes::default() {
            self.outcome.pods_outside = self.host_checks.pods_outside();
            self.outcome.findings = self.host_checks.findings().iter().cloned().collect();
        }
        if self.cluster.own_record().is_none() {
            return;
        }
        let Some(message) = self.host_checks.take_announcement(now) else { return };
        let warning = !self.host_checks.findings().is_empty();
        let reason = if warning { "HostFindings" } else { "HostFindingsCleared" };
        self.send_event(warning, reason, message);
    }
}
