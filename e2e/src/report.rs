//! What a run found: one entry for each row, IP version and command, and a verdict.

use serde::Serialize;

/// How a command, a row or a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was not tried, for a reason that the report gives.
    Skipped,
    /// It is as claimed.
    Pass,
    /// It is not.
    Fail,
}

/// One command and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// The row.
    pub row: String,
    /// Its claim.
    pub claim: String,
    /// `ipv4`, `ipv6`, or nothing.
    pub family: &'static str,
    /// Pods and protocol.
    pub about: String,
    /// The command, as it can be repeated.
    pub command: String,
    /// What it has to print.
    pub expected: String,
    /// What it printed.
    pub seen: String,
    /// Whether that is the same.
    pub verdict: Verdict,
    /// Why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How long it took.
    pub milliseconds: u128,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Fail if anything failed, or if nothing was tried.
    pub verdict: Verdict,
    /// Of server and kubelets.
    pub versions: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// How long it took.
    pub seconds: u64,
    /// Everything that was tried.
    pub cases: Vec<Seen>,
}

/// One cell of the grid of rows and IP versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The row.
    pub row: String,
    /// `ipv4`, `ipv6`, or nothing.
    pub family: &'static str,
    /// The worst of its commands.
    pub verdict: Verdict,
    /// How many passed.
    pub passed: usize,
    /// How many there are.
    pub all: usize,
}

impl Report {
    /// Sums up.
    pub fn new(cases: Vec<Seen>, versions: Vec<String>, started: u64, seconds: u64) -> Self {
        let worst = cases.iter().map(|case| case.verdict).max();
        // A run in which nothing was tried shows nothing.
        let verdict = if worst == Some(Verdict::Pass) { Verdict::Pass } else { Verdict::Fail };
        Self { verdict, versions, started, seconds, cases }
    }

    /// The grid, in the order of the cases.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = Vec::new();
        for case in &self.cases {
            let passed = usize::from(case.verdict == Verdict::Pass);
            match cells.iter_mut().find(|cell| cell.row == case.row && cell.family == case.family) {
                Some(cell) => {
                    cell.verdict = cell.verdict.max(case.verdict);
                    cell.passed += passed;
                    cell.all += 1;
                }
                None => cells.push(Cell {
                    row: case.row.clone(),
                    family: case.family,
                    verdict: case.verdict,
                    passed,
                    all: 1,
                }),
            }
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(row: &str, verdict: Verdict) -> Seen {
        Seen {
            row: row.to_owned(),
            claim: String::new(),
            family: "ipv4",
            about: String::new(),
            command: String::new(),
            expected: String::new(),
            seen: String::new(),
            verdict,
            reason: None,
            milliseconds: 0,
        }
    }

    #[test]
    fn one_failure_is_a_failure_and_so_is_nothing() {
        let verdict = |cases: Vec<Seen>| Report::new(cases, Vec::new(), 0, 0).verdict;
        assert_eq!(verdict(Vec::new()), Verdict::Fail);
        assert_eq!(verdict(vec![seen("N1", Verdict::Skipped)]), Verdict::Fail);
        assert_eq!(verdict(vec![seen("N1", Verdict::Pass), seen("N2", Verdict::Skipped)]), Verdict::Pass);
        assert_eq!(verdict(vec![seen("N1", Verdict::Pass), seen("N1", Verdict::Fail)]), Verdict::Fail);
    }

    #[test]
    fn a_cell_is_as_good_as_its_worst_command() {
        let cases = vec![seen("N1", Verdict::Fail), seen("N1", Verdict::Pass), seen("N2", Verdict::Pass)];
        let cells = Report::new(cases, Vec::new(), 0, 0).cells();
        let shown: Vec<_> =
            cells.iter().map(|cell| (cell.row.as_str(), cell.verdict, cell.passed, cell.all)).collect();
        assert_eq!(shown, [("N1", Verdict::Fail, 1, 2), ("N2", Verdict::Pass, 1, 1)]);
    }
}
