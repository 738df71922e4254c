//! What a run found: one entry for each row, IP version and command, and a verdict.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How a command, a row or a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was not tried, for a reason that the report gives.
    Skipped,
    /// It is as claimed.
    Pass,
    /// It was tried, and what was seen shows neither.
    NotDetermined,
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
    /// Fail if anything failed, or if nothing was tried; not determined if that is the worst.
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

/// What may be skipped on a machine, with reasons: `e2e/not-here.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotHere {
    #[serde(default)]
    skip: Vec<Listed>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    row: String,
    /// The protocol; the whole row without one.
    protocol: Option<String>,
    #[serde(rename = "reason")]
    _reason: String,
}

/// The list can't be used.
#[derive(Debug, thiserror::Error)]
#[error("read {}, the list of what may be skipped: {said}", path.display())]
pub struct NotHereError {
    path: PathBuf,
    said: String,
}

impl NotHere {
    /// Reads the list.
    pub fn read(path: &Path) -> Result<Self, NotHereError> {
        let failed = |said: String| NotHereError { path: path.into(), said };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        Self::parse(&text).map_err(failed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// What was skipped and is not in the list, one line each.
    pub fn unlisted(&self, cases: &[Seen]) -> Vec<String> {
        let lists = |case: &Seen| {
            let of_row = self.skip.iter().filter(|listed| listed.row == case.row);
            of_row
                .map(|listed| listed.protocol.as_deref())
                .any(|what| what.is_none_or(|what| what == case.about))
        };
        let skipped = cases.iter().filter(|case| case.verdict == Verdict::Skipped && !lists(case));
        skipped
            .map(|case| {
                let reason = case.reason.as_deref().unwrap_or_default();
                format!("{} {} {}: {reason}", case.row, case.family, case.about)
            })
            .collect()
    }
}

impl Report {
    /// Sums up; `unlisted` is what was skipped and had to be tried.
    pub fn new(
        cases: Vec<Seen>,
        unlisted: &[String],
        versions: Vec<String>,
        started: u64,
        seconds: u64,
    ) -> Self {
        let worst = cases.iter().map(|case| case.verdict).max();
        // A run in which nothing was tried shows nothing.
        let passed = worst == Some(Verdict::Pass) && unlisted.is_empty();
        let verdict = match worst {
            _ if passed => Verdict::Pass,
            Some(Verdict::NotDetermined) if unlisted.is_empty() => Verdict::NotDetermined,
            _ => Verdict::Fail,
        };
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
        let verdict = |cases: Vec<Seen>| Report::new(cases, &[], Vec::new(), 0, 0).verdict;
        assert_eq!(verdict(Vec::new()), Verdict::Fail);
        assert_eq!(verdict(vec![seen("N1", Verdict::Skipped)]), Verdict::Fail);
        assert_eq!(verdict(vec![seen("N1", Verdict::Pass), seen("N2", Verdict::Skipped)]), Verdict::Pass);
        assert_eq!(verdict(vec![seen("N1", Verdict::Pass), seen("N1", Verdict::Fail)]), Verdict::Fail);
        let unknown = vec![seen("N1", Verdict::Pass), seen("E1", Verdict::NotDetermined)];
        assert_eq!(verdict(unknown.clone()), Verdict::NotDetermined);
        assert_eq!(verdict([unknown, vec![seen("N2", Verdict::Fail)]].concat()), Verdict::Fail);
        let unlisted = ["N2 ipv4 sctp: x".to_owned()];
        let report = Report::new(vec![seen("N1", Verdict::Pass)], &unlisted, Vec::new(), 0, 0);
        assert_eq!(report.verdict, Verdict::Fail);
    }

    #[test]
    fn a_cell_is_as_good_as_its_worst_command() {
        let cases = vec![seen("N1", Verdict::Fail), seen("N1", Verdict::Pass), seen("N2", Verdict::Pass)];
        let cells = Report::new(cases, &[], Vec::new(), 0, 0).cells();
        let shown: Vec<_> =
            cells.iter().map(|cell| (cell.row.as_str(), cell.verdict, cell.passed, cell.all)).collect();
        assert_eq!(shown, [("N1", Verdict::Fail, 1, 2), ("N2", Verdict::Pass, 1, 1)]);
    }

    #[test]
    fn a_skip_has_to_be_in_the_list() {
        let list =
            "[[skip]]\nrow = 'N4'\nprotocol = 'sctp'\nreason = 'x'\n[[skip]]\nrow = 'N9'\nreason = 'x'\n";
        let list = NotHere::parse(list).unwrap();
        let skipped =
            |row: &str, about: &str| Seen { about: about.to_owned(), ..seen(row, Verdict::Skipped) };
        let cases = [
            skipped("N4", "sctp"),
            skipped("N4", "udp"),
            skipped("N9", ""),
            skipped("N9", "udp"),
            seen("N1", Verdict::Fail),
        ];
        assert_eq!(list.unlisted(&cases), ["N4 ipv4 udp: "]);
        assert_eq!(NotHere::default().unlisted(&cases).len(), 4);
        NotHere::parse("[[skip]]\nrow = 'N4'\n").unwrap_err();
    }

    #[test]
    fn the_list_of_this_repository_is_read() {
        NotHere::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("not-here.toml")).unwrap();
    }
}
