//! How far nodes have come with a rotation that was asked for through the API server, by their annotations. Pure.

use std::time::Duration;

use comfy_table::{Table, presets};
use keyring::{Fingerprint, PerSlot};
use plan::annotation::{Phase, State};
use plan::node::NodeUid;
use serde::Serialize;

/// Progress of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeProgress {
    /// The UID of its Node.
    #[serde(skip)]
    pub uid: NodeUid,
    /// Its name.
    pub node: String,
    /// Whether it announces neither of its former keys and no rotation is in progress.
    pub done: bool,
    phase: Phase,
    generation: u64,
    former: PerSlot<Fingerprint>,
    present: PerSlot<Fingerprint>,
    /// From the request to the announcement of the last new key.
    milliseconds: Option<u64>,
}

impl NodeProgress {
    /// A node that is about to be asked, with what it announces.
    pub fn new(node: &str, uid: NodeUid, state: &State) -> Self {
        let keys = PerSlot::from_fn(|slot| state.slots.get(slot).key.fingerprint());
        Self {
            uid,
            node: node.to_owned(),
            done: false,
            phase: state.phase,
            generation: state.generation,
            former: keys,
            present: keys,
            milliseconds: None,
        }
    }

    /// Takes what the node announces now, so long after the request; returns whether it has come further.
    pub fn update(&mut self, state: &State, since: Duration) -> bool {
        let before = (self.done, self.phase, self.generation);
        self.present = PerSlot::from_fn(|slot| state.slots.get(slot).key.fingerprint());
        self.phase = state.phase;
        self.generation = state.generation;
        let renewed = self.present.iter().all(|(_, key)| self.former.iter().all(|(_, former)| former != key));
        self.done = renewed && matches!(self.phase, Phase::Steady | Phase::Cold);
        if self.done && self.milliseconds.is_none() {
            self.milliseconds = u64::try_from(since.as_millis()).ok();
        }
        before != (self.done, self.phase, self.generation)
    }

    /// In one line.
    pub fn line(&self) -> String {
        format!("{}: generation {}, {}", self.node, self.generation, self.state_text())
    }

    fn state_text(&self) -> &'static str {
        match (self.done, self.phase) {
            (true, _) => "done",
            (false, Phase::Draining) => "draining a slot",
            (false, Phase::Verifying) => "verifying a new key",
            (false, Phase::Steady | Phase::Cold) => "waiting",
        }
    }
}

/// The names of those that are not done.
pub fn left(asked: &[NodeProgress]) -> Vec<String> {
    asked.iter().filter(|node| !node.done).map(|node| node.node.clone()).collect()
}

/// All of them as a table.
pub fn table(asked: &[NodeProgress]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "NODE",
        "STATE",
        "GENERATION",
        "KEY A",
        "KEY B",
        "SECONDS",
    ]);
    for node in asked {
        table.add_row([
            node.node.clone(),
            node.state_text().to_owned(),
            node.generation.to_string(),
            node.present.a.to_string(),
            node.present.b.to_string(),
            node.milliseconds
                .map(|took| format!("{}.{}", took / 1000, took % 1000 / 100))
                .unwrap_or_default(),
        ]);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use keyring::{PublicKey, Slot};
    use plan::annotation::SlotState;

    use super::*;

    fn state(generation: u64, phase: Phase, keys: [u8; 2]) -> State {
        let [a, b] = keys.map(|byte| PublicKey::from_bytes(&[byte; 32]).unwrap());
        let slot = |key, port| SlotState { key, generation, port };
        State {
            uid: NodeUid::new("u1"),
            generation,
            slots: PerSlot { a: slot(a, 51840), b: slot(b, 51841) },
            prefer: Slot::A,
            drain: None,
            phase,
            proofs: None,
        }
    }

    #[test]
    fn a_node_is_done_when_both_keys_are_new_and_no_slot_is_drained() {
        let mut node = NodeProgress::new("n1", NodeUid::new("u1"), &state(1, Phase::Steady, [1, 2]));
        let second = Duration::from_secs(1);
        assert!(!node.update(&state(1, Phase::Steady, [1, 2]), second), "nothing is new");
        assert_eq!(node.line(), "n1: generation 1, waiting");
        assert!(node.update(&state(2, Phase::Draining, [1, 2]), second));
        assert!(node.update(&state(3, Phase::Steady, [1, 3]), second), "one key is new");
        assert_eq!(left(std::slice::from_ref(&node)), ["n1"]);
        assert!(node.update(&state(4, Phase::Verifying, [4, 3]), second) && !node.done);
        assert!(node.update(&state(4, Phase::Steady, [4, 3]), 5 * second) && node.done);
        assert!(!node.update(&state(4, Phase::Steady, [4, 3]), 9 * second), "it stays as it is");
        let text = table(std::slice::from_ref(&node));
        assert!(text.contains("done") && text.contains("5.0"), "{text}");
        assert_eq!(left(&[node]), [""; 0]);
    }
}
