//! What the runs of one commit have shown, accumulated in a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::cluster::Traffic;
use crate::picture;
use crate::schedule::Planned;

/// All runs of one commit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    commit: String,
    runs: Vec<Run>,
}

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    /// Seconds of faults.
    pub(crate) seconds: u64,
    pub(crate) faults: Vec<Applied>,
    /// Frames with a pod's address outside WireGuard.
    pub(crate) leaks: u64,
    /// Frames that the capture missed.
    pub(crate) missed: u64,
    /// Seconds from the end of the last fault until all was well; none if it was not in time.
    pub(crate) converged: Option<f64>,
    pub(crate) traffic: Traffic,
    /// What was not as it has to be; empty if the run passed.
    pub(crate) trouble: Vec<String>,
}

/// A fault as it was made; times in seconds since the start of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub(crate) kind: String,
    pub(crate) place: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Whether it could be made. A link that is gone already can't be removed.
    pub(crate) made: bool,
}

impl Applied {
    pub(crate) fn new(planned: &Planned, at: Duration, made: bool) -> Self {
        let (from, kind) = (at.as_secs_f64(), planned.fault.kind().to_owned());
        Self { kind, place: planned.fault.place(), from, to: from, made }
    }
}

impl Run {
    pub(crate) fn passed(&self) -> bool {
        self.trouble.is_empty() && self.converged.is_some()
    }

    /// A fault has ended.
    pub(crate) fn ended(&mut self, planned: &Planned, at: Duration) {
        let (kind, place) = (planned.fault.kind(), planned.fault.place());
        let mut made = self.faults.iter_mut().rev();
        if let Some(fault) = made.find(|fault| fault.kind == kind && fault.place == place) {
            fault.to = at.as_secs_f64();
        }
    }

    pub(crate) fn line(&self) -> String {
        let made = self.faults.iter().filter(|fault| fault.made).count();
        let converged = self
            .converged
            .map_or_else(|| "not converged".to_owned(), |time| format!("well after {time:.1} s"));
        let Traffic { sent, lost, duplicated, longest_silence } = self.traffic;
        format!(
            "seed {}: {}; {made} faults, {} leaks, {converged}; {lost} of {sent} packets lost, {duplicated} duplicated, \
             longest silence of a pair {:.1} s",
            self.seed,
            if self.passed() { "passed" } else { "FAILED" },
            self.leaks,
            longest_silence.as_secs_f64()
        )
    }
}

impl Report {
    /// The runs of this commit so far; none if the file is of another one or can't be read.
    pub(crate) fn load(directory: &Path, commit: &str) -> Self {
        let found = std::fs::read(directory.join("report.json")).ok();
        let parsed = found.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let same = parsed.filter(|report| report.commit == commit && !commit.is_empty());
        same.unwrap_or_else(|| Self { commit: commit.to_owned(), runs: Vec::new() })
    }

    /// The first seeds that have not passed yet.
    pub(crate) fn next(&self, count: usize) -> Vec<u64> {
        let passed = |seed: &u64| self.runs.iter().any(|run| run.seed == *seed && run.passed());
        (1..).filter(|seed| !passed(seed)).take(count).collect()
    }

    /// Adds a run; another one of the same seed is replaced.
    pub(crate) fn add(&mut self, run: Run) {
        self.runs.retain(|former| former.seed != run.seed);
        self.runs.push(run);
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<(), Failure> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("report.json"), serde_json::to_string_pretty(self)? + "\n")?;
        if let Some(run) = self.runs.last() {
            std::fs::write(directory.join("picture.svg"), picture::draw(run))?;
        }
        Ok(())
    }

    /// A table of faults, and the verdict over all runs.
    pub(crate) fn summary(&self) -> String {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for fault in self.runs.iter().flat_map(|run| &run.faults).filter(|fault| fault.made) {
            *kinds.entry(&fault.kind).or_default() += 1;
        }
        let mut text = String::from("\n  faults made\n");
        for (kind, count) in kinds {
            // Writing into a String can't fail.
            let _ = writeln!(text, "  {count:6}  {kind}");
        }
        let failed: Vec<_> =
            self.runs.iter().filter(|run| !run.passed()).map(|run| run.seed.to_string()).collect();
        let leaks: u64 = self.runs.iter().map(|run| run.leaks).sum();
        let slowest = self.runs.iter().filter_map(|run| run.converged).fold(0.0, f64::max);
        let (all, passed) = (self.runs.len(), self.runs.len() - failed.len());
        let _ = writeln!(
            text,
            "\n{passed} of {all} seeds passed at this commit; {leaks} leaks; the slowest was well after {slowest:.1} s"
        );
        if !failed.is_empty() {
            let _ = writeln!(text, "failed: {}; SEED=N repeats one", failed.join(", "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_that_passed_are_not_run_again() {
        let mut report = Report::default();
        assert_eq!(report.next(2), [1, 2]);
        report.add(Run { seed: 1, converged: Some(2.0), ..Run::default() });
        report.add(Run { seed: 2, converged: Some(2.0), trouble: vec!["lost".into()], ..Run::default() });
        report.add(Run { seed: 3, ..Run::default() });
        assert_eq!(report.next(3), [2, 3, 4]);
        assert!(
            report.summary().contains("1 of 3 seeds passed") && report.summary().contains("failed: 2, 3;")
        );
        report.add(Run { seed: 2, converged: Some(1.0), ..Run::default() });
        assert_eq!(report.next(2), [3, 4]);
    }

    #[test]
    fn runs_of_another_commit_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let mut report = Report::load(directory.path(), "one");
        report.add(Run { seed: 1, converged: Some(2.0), ..Run::default() });
        report.write(directory.path()).unwrap();
        assert_eq!(Report::load(directory.path(), "one").next(1), [2]);
        assert_eq!(Report::load(directory.path(), "other").next(1), [1]);
        assert_eq!(Report::load(directory.path(), "").next(1), [1]);
    }
}
