//! Nodes that did not answer, in a document and in text. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Answer;
use super::text::wrapped;
use crate::table::names;

/// How many of them are named with what went wrong.
const NAMED: usize = 5;

/// Nodes that did not answer, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Silent(BTreeMap<String, String>);

impl Silent {
    /// Adds a node.
    pub fn insert(&mut self, node: &str, why: &str) {
        self.0.insert(node.to_owned(), why.to_owned());
    }

    /// Whether all nodes answered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names them below a table.
    pub(crate) fn write(&self, text: &mut String) -> std::fmt::Result {
        for (node, why) in self.0.iter().take(NAMED) {
            writeln!(text)?;
            wrapped(text, "", &format!("{node} did not answer: {why}"))?;
        }
        let rest: Vec<&String> = self.0.keys().skip(NAMED).collect();
        if rest.is_empty() { Ok(()) } else { wrapped(text, "", &format!("nor did {}", names(&rest, NAMED))) }
    }
}

/// The answers as what daemons said, and who said nothing.
pub(super) fn said(answers: &BTreeMap<String, Answer>) -> (BTreeMap<&String, &crate::Status>, Silent) {
    let mut silent = Silent::default();
    let mut said = BTreeMap::new();
    for (node, answer) in answers {
        match answer {
            Answer::Said(status) => {
                said.insert(node, &**status);
            }
            Answer::Absent(why) | Answer::Silent(why) => silent.insert(node, why),
        }
    }
    (said, silent)
}
