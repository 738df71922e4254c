//! The audit trail as evidence: whether it is whole, its newest lines, and what it says of other nodes' trails.

use std::path::Path;
use std::thread;
use std::time::Duration;

use keyring::audit::{self, Event};
use status::trail::NodeTrails;
use status::verify::evidence::{TrailEvidence, WitnessedLine};

use crate::chain::Chain;

/// How many lines are part of the evidence: other nodes have recorded one at the last rotation or start, which takes a few lines for
/// each peer.
const NEWEST: usize = 1024;
/// What is being written at this moment is whole soon after.
const WRITTEN_WITHIN: Duration = Duration::from_millis(200);

/// Reads the trails in a directory. Blocks.
pub(in crate::daemon) fn trail_evidence(directory: &Path) -> TrailEvidence {
    let first = read(directory);
    if first.problems.is_empty() {
        return first;
    }
    thread::sleep(WRITTEN_WITHIN);
    read(directory)
}

fn read(directory: &Path) -> TrailEvidence {
    let witness = directory.join(audit::WITNESS_DIRECTORY);
    let read = audit::read(directory).and_then(|own| {
        let witness = if witness.is_dir() { Some(audit::read(&witness)?) } else { None };
        Ok(NodeTrails::new(&own, witness.as_deref(), true))
    });
    match read {
        Ok(trails) => evidence(&trails),
        Err(error) => TrailEvidence { error: Some(Chain(&error).to_string()), ..TrailEvidence::default() },
    }
}

fn evidence(trails: &NodeTrails) -> TrailEvidence {
    let own = trails.own();
    let newest = own.lines.iter().skip(own.lines.len().saturating_sub(NEWEST));
    // Version 0.1 recorded heads in the own trail.
    let heads = trails.all().flat_map(|trail| &trail.lines).filter_map(|line| match &line.event {
        Event::PeerHead { peer, line, head } => {
            Some((peer.to_string(), WitnessedLine { line: *line, hash: head.clone() }))
        }
        _ => None,
    });
    TrailEvidence {
        first: own.lines.first().map_or(0, |line| line.seq),
        last: own.head().seq,
        problems: trails.problems(),
        error: None,
        lines: newest.map(|line| (line.seq, line.hash.clone())).collect(),
        // The last one of each counts.
        witnessed: heads.collect(),
    }
}
