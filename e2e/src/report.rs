//! What a run found: one entry for each row, IP version and command, and a verdict.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::capture::Control;
use crate::cases::Family;
use crate::change::NOT_ASKED_FOR;
use crate::versions::Versions;

/// How a command, a row or a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

/// `ipv4`, `ipv6`, or nothing. An alias, since serde takes a reference for something to borrow from what it reads.
pub type FamilyName = &'static str;

/// One command and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// The row.
    pub row: String,
    /// Its claim.
    pub claim: String,
    /// `ipv4`, `ipv6`, or nothing.
    #[serde(deserialize_with = "family")]
    pub family: FamilyName,
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
    /// What the command sent, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// How long it took.
    pub milliseconds: u128,
}

/// What a command sent: requests, or packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// How many.
    pub sent: u64,
    /// How many of them were not answered.
    pub lost: u64,
}

/// What the uplinks of all nodes carried while a row was tried with an IP version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The row.
    pub row: String,
    /// `ipv4`, `ipv6`, or nothing.
    pub family: &'static str,
    /// How much.
    pub frames: Frames,
}

/// Frames on the uplinks of all nodes; one that goes from node to node is on two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// With a pod's address in the clear.
    pub clear: u64,
    /// Of tunnels.
    pub tunnel: u64,
}

/// What a capture on the uplinks showed in all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplinks {
    /// What was seen since the cluster began.
    pub since_the_beginning: Frames,
    /// What was seen during the run.
    pub in_this_run: Frames,
    /// How many frames the capture missed.
    pub missed: u64,
    /// Packets that were sent to see what capture and guard do with them.
    pub controls: Vec<Control>,
    /// The first packets in the clear, if there were any.
    pub files: Vec<CaptureFile>,
}

/// The packets in the clear of one node's uplink, as a pcap file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureFile {
    /// The node.
    pub host: String,
    /// Its name, in the directory of the report.
    pub name: String,
    /// How many packets are in it.
    pub packets: usize,
}

/// What a run was made on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// How many nodes it has.
    pub nodes: usize,
    /// The IP versions that all pods have.
    #[serde(deserialize_with = "families")]
    pub families: Vec<&'static str>,
    /// kube-proxy's mode on all nodes, several if they differ; nothing if none of them says.
    pub proxy_mode: String,
    /// What runs on it.
    pub versions: Versions,
}

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Fail if anything failed, or if nothing was tried; not determined if that is the worst.
    pub verdict: Verdict,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// How long it took.
    pub seconds: u64,
    /// What it was made on.
    pub cluster: Cluster,
    /// What a capture showed, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uplinks: Option<Uplinks>,
    /// The grid of rows and IP versions, in the order of the cases.
    pub cells: Vec<Cell>,
    /// Everything that was tried.
    pub cases: Vec<Seen>,
}

/// One cell of the grid of rows and IP versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The row.
    pub row: String,
    /// `ipv4`, `ipv6`, or nothing.
    #[serde(deserialize_with = "family")]
    pub family: FamilyName,
    /// The worst of its commands.
    pub verdict: Verdict,
    /// How many passed.
    pub passed: usize,
    /// How many there are, without those that were skipped.
    pub tried: usize,
    /// How many were skipped.
    pub skipped: usize,
    /// What they sent, as far as that is known.
    pub traffic: Traffic,
    /// What the uplinks carried meanwhile, if there was a capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
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
    reason: String,
}

/// A report of a former run can't be used.
#[derive(Debug, thiserror::Error)]
#[error("read {}, the report of a former run of this version: {said}", path.display())]
pub struct ReadError {
    path: PathBuf,
    said: String,
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

    /// Makes failures of what was skipped and is not in the list, and adds the list's reasons to the rest. What was not asked for
    /// stays skipped.
    pub fn settle(&self, cases: &mut [Seen]) {
        let skipped = |case: &&mut Seen| {
            case.verdict == Verdict::Skipped && case.reason.as_deref() != Some(NOT_ASKED_FOR)
        };
        for case in cases.iter_mut().filter(skipped) {
            let lists = |listed: &&Listed| {
                listed.row == case.row && listed.protocol.as_ref().is_none_or(|what| *what == case.about)
            };
            let reason = case.reason.take().unwrap_or_default();
            if let Some(listed) = self.skip.iter().find(lists) {
                case.reason = Some(format!("{reason} ({})", listed.reason));
            } else {
                case.verdict = Verdict::Fail;
                "that it is tried; not-here.toml does not list it".clone_into(&mut case.expected);
                case.seen = format!("it was skipped: {reason}");
            }
        }
    }
}

impl Frames {
    /// What was added since.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            clear: self.clear.saturating_sub(before.clear),
            tunnel: self.tunnel.saturating_sub(before.tunnel),
        }
    }
}

impl Report {
    /// Sums up.
    pub fn new(cases: Vec<Seen>, carried: &[Carried], cluster: Cluster, started: u64, seconds: u64) -> Self {
        let verdict = match cases.iter().map(|case| case.verdict).max() {
            // A run in which nothing was tried shows nothing.
            None | Some(Verdict::Skipped) => Verdict::Fail,
            Some(worst) => worst,
        };
        let cells = cells(&cases, carried);
        Self { verdict, started, seconds, cluster, uplinks: None, cells, cases }
    }

    /// Reads one back that a run of this version has written.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let failed = |said: String| ReadError { path: path.into(), said };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
    }

    /// The names of the rows, by letter and number: `N2` before `N10`, and these before `E1`.
    pub fn rows(&self) -> Vec<&str> {
        let mut rows: Vec<&str> = self.cases.iter().map(|case| &*case.row).collect();
        sort_rows(&mut rows);
        rows
    }

    /// How many cases have a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.cases.iter().filter(|case| case.verdict == verdict).count()
    }
}

/// Sorts the names of rows by letter and number, and leaves each once.
pub(crate) fn sort_rows(rows: &mut Vec<&str>) {
    // Shorter numbers are smaller, and rows that begin with N, the network's, come before E, encryption's.
    rows.sort_by_key(|row| (Reverse(row.chars().next()), row.len(), *row));
    rows.dedup();
}

/// The name of an IP version in a report that is read back, or nothing.
fn family<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    known(&String::deserialize(deserializer)?)
}

fn families<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<&'static str>, D::Error> {
    Vec::<String>::deserialize(deserializer)?.iter().map(|name| known(name)).collect()
}

fn known<E: de::Error>(name: &str) -> Result<&'static str, E> {
    let mut names = [""].into_iter().chain(Family::ALL.map(Family::as_str));
    names.find(|known| *known == name).ok_or_else(|| E::custom(format!("no IP version: {name:?}")))
}

fn cells(cases: &[Seen], carried: &[Carried]) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for case in cases {
        let place = cells.iter().position(|cell| cell.row == case.row && cell.family == case.family);
        let place = place.unwrap_or_else(|| {
            cells.push(Cell {
                row: case.row.clone(),
                family: case.family,
                verdict: case.verdict,
                passed: 0,
                tried: 0,
                skipped: 0,
                traffic: Traffic::default(),
                frames: None,
            });
            cells.len() - 1
        });
        let Some(cell) = cells.get_mut(place) else { continue };
        cell.verdict = cell.verdict.max(case.verdict);
        cell.passed += usize::from(case.verdict == Verdict::Pass);
        *(if case.verdict == Verdict::Skipped { &mut cell.skipped } else { &mut cell.tried }) += 1;
        let traffic = case.traffic.unwrap_or_default();
        cell.traffic.sent += traffic.sent;
        cell.traffic.lost += traffic.lost;
    }
    for of in carried {
        for cell in cells.iter_mut().filter(|cell| cell.row == of.row && cell.family == of.family) {
            let sum = cell.frames.get_or_insert_default();
            sum.clear += of.frames.clear;
            sum.tunnel += of.frames.tunnel;
        }
    }
    cells
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn seen(row: &str, verdict: Verdict) -> Seen {
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
            traffic: None,
            milliseconds: 0,
        }
    }

    fn report(cases: Vec<Seen>, carried: &[Carried]) -> Report {
        Report::new(cases, carried, Cluster::default(), 0, 0)
    }

    #[test]
    fn one_failure_is_a_failure_and_so_is_nothing() {
        let verdict = |cases: Vec<Seen>| report(cases, &[]).verdict;
        assert_eq!(verdict(Vec::new()), Verdict::Fail);
        assert_eq!(verdict(vec![seen("N1", Verdict::Skipped)]), Verdict::Fail);
        assert_eq!(verdict(vec![seen("N1", Verdict::Pass), seen("N2", Verdict::Skipped)]), Verdict::Pass);
        assert_eq!(verdict(vec![seen("N1", Verdict::Pass), seen("N1", Verdict::Fail)]), Verdict::Fail);
        let unknown = vec![seen("N1", Verdict::Pass), seen("E1", Verdict::NotDetermined)];
        assert_eq!(verdict(unknown.clone()), Verdict::NotDetermined);
        assert_eq!(verdict([unknown, vec![seen("N2", Verdict::Fail)]].concat()), Verdict::Fail);
    }

    #[test]
    fn a_cell_is_as_good_as_its_worst_command() {
        let mut cases = vec![seen("N1", Verdict::Fail), seen("N1", Verdict::Pass), seen("N2", Verdict::Pass)];
        cases.push(seen("N1", Verdict::Skipped));
        let cells = report(cases, &[]).cells;
        let shown: Vec<_> = cells
            .iter()
            .map(|cell| (cell.row.as_str(), cell.verdict, cell.passed, cell.tried, cell.skipped))
            .collect();
        assert_eq!(shown, [("N1", Verdict::Fail, 1, 2, 1), ("N2", Verdict::Pass, 1, 1, 0)]);
    }

    #[test]
    fn rows_are_in_the_order_of_their_numbers() {
        let cases = ["N16", "N2", "E1", "N2"].map(|row| seen(row, Verdict::Pass));
        assert_eq!(report(cases.to_vec(), &[]).rows(), ["N2", "N16", "E1"]);
    }

    #[test]
    fn a_cell_sums_up_what_was_sent_and_what_the_uplinks_carried() {
        let sent = |sent, lost| Seen { traffic: Some(Traffic { sent, lost }), ..seen("N1", Verdict::Pass) };
        let carried = |row: &str, clear, tunnel| Carried {
            row: row.to_owned(),
            family: "ipv4",
            frames: Frames { clear, tunnel },
        };
        let carried = [carried("N1", 0, 4), carried("N1", 1, 6), carried("N3", 9, 9)];
        let cases = vec![sent(3, 1), sent(5, 0), seen("N1", Verdict::Pass), seen("N2", Verdict::Pass)];
        let cells = report(cases, &carried).cells;
        assert_eq!(cells[0].traffic, Traffic { sent: 8, lost: 1 });
        assert_eq!(cells[0].frames, Some(Frames { clear: 1, tunnel: 10 }));
        assert_eq!((cells[1].traffic, cells[1].frames), (Traffic::default(), None));
    }

    #[test]
    fn a_report_is_read_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let cluster = Cluster { families: vec!["ipv4", "ipv6"], ..Cluster::default() };
        let before = Report::new(vec![seen("N1", Verdict::Pass)], &[], cluster, 1, 2);
        let text = serde_json::to_string(&before).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(serde_json::to_string(&Report::read(&path).unwrap()).unwrap(), text);
        std::fs::write(&path, text.replace("ipv6", "ipv7")).unwrap();
        let error = Report::read(&path).unwrap_err().to_string();
        assert!(error.contains("report.json") && error.contains("ipv7"), "{error}");
    }

    #[test]
    fn a_skip_has_to_be_in_the_list() {
        let list =
            "[[skip]]\nrow = 'N4'\nprotocol = 'sctp'\nreason = 'a'\n[[skip]]\nrow = 'N9'\nreason = 'b'\n";
        let list = NotHere::parse(list).unwrap();
        let skipped = |row: &str, about: &str| {
            let reason = Some("it lacks it".to_owned());
            Seen { about: about.to_owned(), reason, ..seen(row, Verdict::Skipped) }
        };
        let before = [
            skipped("N4", "sctp"),
            skipped("N4", "udp"),
            skipped("N9", ""),
            skipped("N9", "udp"),
            seen("N1", Verdict::Pass),
            Seen { reason: Some(NOT_ASKED_FOR.to_owned()), ..seen("E2", Verdict::Skipped) },
        ];
        let settled = |list: &NotHere| {
            let mut cases = before.to_vec();
            list.settle(&mut cases);
            cases
        };
        let cases = settled(&list);
        let verdicts: Vec<_> = cases.iter().map(|case| case.verdict).collect();
        let (skip, fail, pass) = (Verdict::Skipped, Verdict::Fail, Verdict::Pass);
        assert_eq!(verdicts, [skip, fail, skip, skip, pass, skip]);
        assert_eq!(cases[0].reason.as_deref(), Some("it lacks it (a)"));
        assert_eq!(cases[1].seen, "it was skipped: it lacks it");
        assert!(settled(&NotHere::default()).iter().filter(|case| case.verdict == fail).count() == 4);
        NotHere::parse("[[skip]]\nrow = 'N4'\n").unwrap_err();
    }

    #[test]
    fn the_list_of_this_repository_is_read() {
        NotHere::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("not-here.toml")).unwrap();
    }
}
