//! The audit trail as evidence: whether it is whole, its newest lines, and what it says of other nodes' trails.

use std::path::Path;
use std::thread;
use std::time::Duration;

use keyring::audit::{self, CheckedTrail, Event, Finding, TrailError};
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
    let checked = |directory: &Path| -> Result<CheckedTrail, TrailError> {
        Ok(audit::verify(&audit::read(directory)?))
    };
    let witness = directory.join(audit::WITNESS_DIRECTORY);
    // The witness trail begins with the first peer, and the own one says where it ends.
    let read = checked(directory).and_then(|own| {
        let witness = if witness.is_dir() { checked(&witness)? } else { CheckedTrail::default() };
        Ok((own, witness))
    });
    match read {
        Ok((own, witness)) => evidence(&own, &witness),
        Err(error) => TrailEvidence { error: Some(Chain(&error).to_string()), ..TrailEvidence::default() },
    }
}

fn evidence(own: &CheckedTrail, witness: &CheckedTrail) -> TrailEvidence {
    let findings =
        own.findings.iter().chain(witness.findings.iter().filter(|found| **found != Finding::Empty));
    let disagreeing = audit::against_own(witness, own);
    let newest = own.lines.iter().skip(own.lines.len().saturating_sub(NEWEST));
    // Version 0.1 recorded heads in the own trail.
    let heads = own.lines.iter().chain(&witness.lines).filter_map(|line| match &line.event {
        Event::PeerHead { peer, line, head } => {
            Some((peer.to_string(), WitnessedLine { line: *line, hash: head.clone() }))
        }
        _ => None,
    });
    TrailEvidence {
        first: own.lines.first().map_or(0, |line| line.seq),
        last: own.head().seq,
        problems: findings
            .map(ToString::to_string)
            .chain(disagreeing.iter().map(|found| format!("witness trail: {found}")))
            .collect(),
        error: None,
        lines: newest.map(|line| (line.seq, line.hash.clone())).collect(),
        // The last one of each counts.
        witnessed: heads.collect(),
    }
}
