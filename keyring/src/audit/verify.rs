//! Whether a trail is intact, and whether it matches what witnesses have recorded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::event::{Event, NodeRef};
use super::head::Head;
use super::line::{Line, LineError};

/// The result of verifying a trail.
#[derive(Clone, Debug, Default)]
pub struct CheckedTrail {
    /// The node whose trail it is.
    pub node: Option<NodeRef>,
    /// The lines that could be parsed, in order.
    pub lines: Vec<Line>,
    /// What is wrong, in order.
    pub findings: Vec<Finding>,
}

impl CheckedTrail {
    /// Where the trail ends.
    pub fn head(&self) -> Head {
        self.lines.last().map(Line::head).unwrap_or_default()
    }

    /// What the trail says that is missing from it: not a sign that it was changed.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        if let Some(first) = self.lines.first().filter(|first| first.seq > 1) {
            gaps.push(format!("lines 1 to {} were deleted with the oldest files", first.seq - 1));
        }
        let mut omitted: BTreeMap<&str, u64> = BTreeMap::new();
        for line in &self.lines {
            match &line.event {
                Event::Omitted { subject, lines } => {
                    let omitted = omitted.entry(subject).or_default();
                    *omitted = omitted.saturating_add(*lines);
                }
                Event::Lost { events } => {
                    gaps.push(format!("{events} events before line {} could not be written", line.seq));
                }
                _ => {}
            }
        }
        let omitted = omitted.into_iter();
        gaps.extend(omitted.map(|(subject, lines)| {
            format!("{lines} lines about {subject} were left out: it exceeded its quota")
        }));
        gaps
    }
}

/// Something wrong in a trail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A line is invalid or was changed.
    #[error("{}:{number}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's place in the file, from 1.
        number: usize,
        /// What is wrong with it.
        source: LineError,
    },
    /// A line does not have the next number: lines were deleted or reordered.
    #[error("{}:{number}: line {found} where line {expected} should be: lines were deleted or reordered", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// The line's place in the file, from 1.
        number: usize,
        /// The number that the line has.
        found: u64,
        /// The number that it should have.
        expected: u64,
    },
    /// A line does not match the hash of the previous one: it comes from another trail or was rewritten.
    #[error("{}:{number}: line {seq} does not match the hash of the line before it", path.display())]
    Chain {
        /// The file.
        path: PathBuf,
        /// The line's place in the file, from 1.
        number: usize,
        /// The number that the line has.
        seq: u64,
    },
    /// A line was written by another node.
    #[error("{}:{number}: written by another node", path.display())]
    Node {
        /// The file.
        path: PathBuf,
        /// The line's place in the file, from 1.
        number: usize,
    },
    /// The trail has no lines.
    #[error("the trail is empty")]
    Empty,
}

/// A contradiction between a trail and a witness's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WitnessFinding {
    /// The witness has recorded a later line: the trail was truncated or replaced by an older copy.
    #[error(
        "{witness} has recorded line {seen} of this trail, which ends at line {found}: its end is missing"
    )]
    CutOff {
        /// The witness.
        witness: String,
        /// The last line that the witness has recorded.
        seen: u64,
        /// The trail's last line.
        found: u64,
    },
    /// The line that the witness has recorded is a different one: the trail was rewritten.
    #[error("{witness} has recorded another line {seq}: the trail was rewritten")]
    Forked {
        /// The witness.
        witness: String,
        /// The line.
        seq: u64,
    },
}

/// Verifies the files of one trail.
pub fn verify(files: &[(PathBuf, String)]) -> CheckedTrail {
    let mut verdict = CheckedTrail::default();
    let mut last: Option<Line> = None;
    for (path, text) in files {
        // Not `lines`, which would ignore a carriage return.
        for (index, text) in text.split_terminator('\n').enumerate() {
            let (path, number) = (path.clone(), index + 1);
            let line = match Line::parse(text) {
                Ok(line) => line,
                Err(source) => {
                    verdict.findings.push(Finding::Line { path, number, source });
                    // The next line can't be checked against it.
                    last = None;
                    continue;
                }
            };
            if let Some(before) = &last {
                if line.seq != before.seq.saturating_add(1) {
                    let (found, expected) = (line.seq, before.seq.saturating_add(1));
                    verdict.findings.push(Finding::Order { path: path.clone(), number, found, expected });
                } else if line.prev != before.hash {
                    verdict.findings.push(Finding::Chain { path: path.clone(), number, seq: line.seq });
                }
            }
            // A recreated Node has another UID and continues its trail; its name stays.
            if verdict.node.as_ref().is_some_and(|node| node.name != line.node.name) {
                verdict.findings.push(Finding::Node { path, number });
            }
            verdict.node = Some(line.node.clone());
            verdict.lines.push(line.clone());
            last = Some(line);
        }
    }
    if verdict.lines.is_empty() && verdict.findings.is_empty() {
        verdict.findings.push(Finding::Empty);
    }
    verdict
}

/// Compares a trail with what a witness has recorded about it.
pub fn against_witness(trail: &CheckedTrail, witness: &CheckedTrail) -> Vec<WitnessFinding> {
    let Some(node) = &trail.node else { return Vec::new() };
    let name = witness.node.as_ref().map_or_else(|| "a witness".to_owned(), |node| node.name.clone());
    let uids: Vec<_> = trail.lines.iter().map(|line| &line.node.uid).collect();
    let heads = witness.lines.iter().filter_map(|line| match &line.event {
        Event::PeerHead { peer, line, head } if *peer == node.uid || uids.contains(&peer) => {
            Some((*line, head.as_str()))
        }
        _ => None,
    });
    compare(trail, heads, &name)
}

/// Compares a node's witness trail with what its own trail has recorded about it.
pub fn against_own(witness: &CheckedTrail, own: &CheckedTrail) -> Vec<WitnessFinding> {
    let heads = own.lines.iter().filter_map(|line| match &line.event {
        Event::WitnessHead { line, head } => Some((*line, head.as_str())),
        _ => None,
    });
    compare(witness, heads, "the node's own trail")
}

/// Compares a trail with heads that were recorded of it.
fn compare<'a>(
    trail: &CheckedTrail,
    heads: impl Iterator<Item = (u64, &'a str)>,
    witness: &str,
) -> Vec<WitnessFinding> {
    let lines: BTreeMap<u64, &Line> = trail.lines.iter().map(|line| (line.seq, line)).collect();
    let (first, last) = (lines.keys().next().copied(), trail.head().seq);
    let witness = || witness.to_owned();
    let finding = |(seq, head): (u64, &str)| match lines.get(&seq) {
        Some(found) if found.hash == head => None,
        Some(_) => Some(WitnessFinding::Forked { witness: witness(), seq }),
        // Files that were archived long ago have been deleted.
        None if first.is_some_and(|first| seq < first) => None,
        None => Some(WitnessFinding::CutOff { witness: witness(), seen: seq, found: last }),
    };
    heads.filter_map(finding).collect()
}
