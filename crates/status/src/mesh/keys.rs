//! The keys of all nodes, as data and as a table. Pure; never a secret.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use super::silent::{Silent, said};
use super::{Answer, Verdict};
use crate::rotation::{RotationStatus, age, line};

/// The keys of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshKeys {
    /// [`super::API_VERSION`].
    pub api_version: String,
    /// `MeshKeys`.
    pub kind: String,
    /// The keys of each node that answered, and their rotation, as `meshd keys -o json` has them.
    pub nodes: Vec<RotationStatus>,
    /// Nodes that did not answer, and why.
    pub silent: Silent,
}

impl MeshKeys {
    /// Makes it of what each node says.
    pub fn new(answers: &BTreeMap<String, Answer>) -> Self {
        let (said, silent) = said(answers);
        let nodes = said
            .into_iter()
            .map(|(node, status)| RotationStatus { node: node.clone(), ..status.rotation.clone() })
            .collect();
        Self { api_version: super::API_VERSION.to_owned(), kind: "MeshKeys".to_owned(), nodes, silent }
    }

    /// Unknown if a node did not answer.
    pub fn verdict(&self) -> Verdict {
        if self.silent.is_empty() { Verdict::Good } else { Verdict::Unknown }
    }

    /// As a table, with a line for each node whose rotation is not at rest or was rolled back.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["NODE", "SLOT", "FINGERPRINT", "STATE", "GENERATION", "AGE"]);
        for rotation in &self.nodes {
            for key in &rotation.keys {
                table.add_row([
                    rotation.node.clone(),
                    key.slot.to_string(),
                    key.key.fingerprint().to_string(),
                    key.state.clone(),
                    key.generation.to_string(),
                    age(key.age_seconds),
                ]);
            }
        }
        let mut text = format!("{}\n", table.trim_fmt());
        // Writing into a String can't fail.
        for rotation in self.nodes.iter().filter(|node| node.busy || !node.blocked_by.is_empty()) {
            let _ = writeln!(text, "\n{}: {}", rotation.node, line(rotation));
        }
        let due = |node: &RotationStatus| Some((node.due_in_seconds?, node.node.clone()));
        if let Some((seconds, node)) = self.nodes.iter().filter(|node| !node.busy).filter_map(due).min() {
            let _ = writeln!(text, "\nnext rotation in {}, of {node}", age(seconds));
        }
        let _ = self.silent.write(&mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use keyring::{PublicKey, Slot};

    use super::super::tests::{mesh, node};
    use super::*;
    use crate::rotation::KeyStatus;

    #[test]
    fn each_key_has_a_row_and_a_rotation_in_progress_a_line() {
        let key = |byte, slot, state: &str, age_seconds| KeyStatus {
            slot,
            key: PublicKey::from_bytes(&[byte; 32]).unwrap(),
            state: state.to_owned(),
            generation: 7,
            age_seconds,
        };
        let mut n1 = node("n1", &["n1", "n2"], &[]);
        n1.rotation.keys = vec![key(1, Slot::A, "active", 90), key(2, Slot::B, "standby", 9000)];
        n1.rotation.due_in_seconds = Some(7300);
        let mut n2 = node("n2", &["n1", "n2"], &[]);
        n2.rotation = RotationStatus {
            generation: 9,
            step: "draining".to_owned(),
            slot: Some(Slot::B),
            busy: true,
            keys: vec![key(3, Slot::A, "active", 200)],
            due_in_seconds: Some(1),
            ..RotationStatus::default()
        };
        let mut answers = mesh(vec![n1, n2]);
        let keys = MeshKeys::new(&answers);
        assert_eq!(keys.verdict(), Verdict::Good);
        let text = keys.text();
        let fingerprint = PublicKey::from_bytes(&[2; 32]).unwrap().fingerprint().to_string();
        for part in [&*fingerprint, "standby", "2 h", "\nn2: generation 9, draining slot b\n"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(text.contains("next rotation in 2 h, of n1\n"), "n2 is busy\n{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for number in 3..12 {
            answers.insert(format!("n{number}"), Answer::Silent("late".to_owned()));
        }
        let keys = MeshKeys::new(&answers);
        assert_eq!(keys.verdict(), Verdict::Unknown);
        let text = keys.text();
        assert!(text.contains("\nn10 did not answer: late\n") && text.contains("nor did n6, n7, "), "{text}");
    }
}
