//! State of the rotation of this node's keys, for `meshd rotate`, `meshd keys` and `meshd status`.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use keyring::rotation::PeerProgress;
use keyring::{PublicKey, Slot};
use serde::{Deserialize, Serialize};

/// The rotation of one node's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationStatus {
    /// The node.
    pub node: String,
    /// Its generation.
    pub generation: u64,
    /// Its step: steady, draining, verifying, restoring, between.
    pub step: String,
    /// The slot whose key is being replaced.
    pub slot: Option<Slot>,
    /// Whether a rotation is in progress or requested.
    pub busy: bool,
    /// Nodes whose rotation must finish first.
    pub waits_for: Vec<String>,
    /// Each peer's progress in the current step.
    pub peers: Vec<PeerStep>,
    /// Nodes that were alive but did not follow, so that the last rotation was rolled back.
    pub blocked_by: Vec<String>,
    /// Rotations completed since the daemon started.
    pub finished: u64,
    /// Rotations rolled back since the daemon started.
    pub rolled_back: u64,
    /// Duration of the last completed rotation in milliseconds.
    pub last_milliseconds: Option<u64>,
    /// Seconds until the next rotation is due; none if only on request.
    pub due_in_seconds: Option<u64>,
    /// Every key of this node.
    pub keys: Vec<KeyStatus>,
}

/// One peer in a rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStep {
    /// Its node.
    pub node: String,
    /// Its progress.
    pub progress: PeerProgress,
}

/// One of this node's keys, by its public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// Its slot, past, present or future.
    pub slot: Slot,
    /// The public key.
    pub key: PublicKey,
    /// Its state: active, standby, new or former.
    pub state: String,
    /// The node's generation when it was created.
    pub generation: u64,
    /// Its age in seconds.
    pub age_seconds: u64,
}

/// `meshd keys` as a table.
pub fn keys_table(status: &RotationStatus) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["SLOT", "FINGERPRINT", "STATE", "GENERATION", "AGE"]);
    for key in &status.keys {
        table.add_row([
            key.slot.to_string(),
            key.key.fingerprint().to_string(),
            key.state.clone(),
            key.generation.to_string(),
            age(key.age_seconds),
        ]);
    }
    let mut text = format!("{table}\n\n");
    // Writing into a String can't fail.
    let _ = writeln!(text, "{}", line(status));
    if let Some(due) = status.due_in_seconds.filter(|_| !status.busy) {
        let _ = writeln!(text, "next rotation in {}", age(due));
    }
    text
}

/// The rotation in one line.
pub fn line(status: &RotationStatus) -> String {
    let mut text = match status.slot {
        Some(slot) => format!("generation {}, {} slot {slot}", status.generation, status.step),
        None => format!("generation {}, {}", status.generation, status.step),
    };
    // Writing into a String can't fail.
    if !status.peers.is_empty() {
        let count = |progress| status.peers.iter().filter(|peer| peer.progress == progress).count();
        let _ = write!(text, ": {} of {} peers", count(PeerProgress::Done), status.peers.len());
        let waiting: Vec<&str> = status
            .peers
            .iter()
            .filter(|peer| peer.progress == PeerProgress::Waiting)
            .map(|peer| peer.node.as_str())
            .collect();
        if !waiting.is_empty() && waiting.len() <= 4 {
            let _ = write!(text, ", waiting for {}", waiting.join(", "));
        }
        for (progress, word) in
            [(PeerProgress::Skipped, "not responding"), (PeerProgress::Forced, "not waited for")]
        {
            let names: Vec<&str> = status
                .peers
                .iter()
                .filter(|peer| peer.progress == progress)
                .map(|peer| peer.node.as_str())
                .collect();
            if !names.is_empty() {
                let _ = write!(text, ", {word}: {}", names.join(", "));
            }
        }
    }
    if !status.waits_for.is_empty() && status.busy {
        let _ = write!(text, "; waiting for the rotation of {}", status.waits_for.join(", "));
    }
    if !status.blocked_by.is_empty() {
        let _ = write!(text, "; the last rotation was blocked by {}", status.blocked_by.join(", "));
    }
    text
}

/// A duration in a suitable unit.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_the_peers_it_waits_for() {
        let peer = |node: &str, progress| PeerStep { node: node.to_owned(), progress };
        let status = RotationStatus {
            generation: 7,
            step: "draining".to_owned(),
            slot: Some(Slot::B),
            busy: true,
            peers: vec![
                peer("n1", PeerProgress::Done),
                peer("n2", PeerProgress::Waiting),
                peer("n3", PeerProgress::Skipped),
            ],
            ..RotationStatus::default()
        };
        assert_eq!(
            line(&status),
            "generation 7, draining slot b: 1 of 3 peers, waiting for n2, not responding: n3"
        );
    }
}
