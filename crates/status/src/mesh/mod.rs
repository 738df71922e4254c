//! The whole mesh, from what the daemon of each node says: a few numbers, a row for each node, and what is wrong with a
//! sentence on what to do. Pure.

pub mod causes;
pub mod graph;
pub mod keys;
pub mod netcheck;
mod pairs;
pub mod peers;
mod problem;
pub mod silent;
pub(crate) mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Fence, Status};
pub use problem::{Code, Problem, Severity};
pub use text::{Paint, Shown, render, wrapped_text};

/// `apiVersion` of JSON output.
pub const API_VERSION: &str = "meshd.dev/v1";

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What its daemon says.
    Said(Box<Status>),
    /// No daemon is meant to run there, or its pod does not exist, and why.
    Absent(String),
    /// The daemon did not answer, and why.
    Silent(String),
}

/// The whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `MeshStatus`.
    pub kind: String,
    /// The mesh in a few numbers.
    pub totals: Totals,
    /// Each node, by name.
    pub nodes: Vec<Node>,
    /// What is wrong, errors first, then by code and node.
    pub problems: Vec<Problem>,
}

/// The mesh in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Those whose daemon answered.
    pub answered: u64,
    /// Those on which pods can be attached.
    pub ready: u64,
    /// Ordered pairs of nodes.
    pub pairs: u64,
    /// Those of which the first node reaches the second one.
    pub reached: u64,
    /// Nodes whose guard is in place.
    pub guarded: u64,
    /// Nodes that can't change other Nodes.
    pub fenced: u64,
    /// Slots of pairs, from each end that answered.
    pub slots: u64,
    /// Those with a preshared key that a handshake has used.
    pub proven: u64,
    /// Age of the oldest key in use, in seconds.
    pub oldest_key_seconds: Option<u64>,
    /// Nodes that replace their keys now.
    pub rotating: u64,
    /// Nodes by the version of their daemon.
    pub versions: BTreeMap<String, u64>,
    /// Nodes by their backend.
    pub backends: BTreeMap<String, u64>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub node: String,
    /// Whether its daemon answered.
    pub answered: bool,
    /// Whether pods can be attached there.
    pub ready: bool,
    /// Peers that it reaches.
    pub reached: u64,
    /// Peers that it knows.
    pub peers: u64,
    /// Slots of its peers with a preshared key that a handshake has used.
    pub proven: u64,
    /// Whether its guard is in place.
    pub guard: bool,
    /// Age of its oldest key in use, in seconds.
    pub key_age_seconds: Option<u64>,
    /// Its backend.
    pub backend: String,
    /// The version of its daemon.
    pub version: String,
    /// Codes of its problems.
    pub problems: Vec<Code>,
}

/// What the state of a mesh comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Good,
    /// Something is.
    Failed,
    /// Not known: a node did not answer, and nothing else is wrong.
    Unknown,
}

impl Verdict {
    /// Exit code of a program.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Failed => 1,
            Self::Unknown => 2,
        }
    }
}

impl Mesh {
    /// Makes the whole of what is known of each node.
    pub fn new(answers: &BTreeMap<String, Answer>) -> Self {
        let mut problems = Vec::new();
        for (node, answer) in answers {
            problem::of_node(node, answer, &mut problems);
        }
        pairs::unreached(answers, &mut problems);
        problems.sort_by(|one, other| one.order().cmp(&other.order()));
        let nodes: Vec<Node> =
            answers.iter().map(|(name, answer)| Node::new(name, answer, &problems)).collect();
        let totals = Totals::new(answers, &nodes);
        Self { api_version: API_VERSION.to_owned(), kind: "MeshStatus".to_owned(), totals, nodes, problems }
    }

    /// What it comes to; with `strict`, warnings count as well.
    pub fn verdict(&self, strict: bool) -> Verdict {
        let is = |severity| self.problems.iter().any(|problem| problem.severity == severity);
        if is(Severity::Error) || (strict && is(Severity::Warning)) {
            Verdict::Failed
        } else if is(Severity::Unknown) || self.nodes.is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Good
        }
    }

    /// The same with one node alone.
    #[must_use]
    pub fn only(mut self, node: &str) -> Self {
        self.nodes.retain(|row| row.node == node);
        self.problems.retain(|problem| problem.node == node);
        self
    }
}

impl Node {
    fn new(name: &str, answer: &Answer, problems: &[Problem]) -> Self {
        let mut codes: Vec<Code> =
            problems.iter().filter(|problem| problem.node == name).map(|problem| problem.code).collect();
        codes.dedup();
        let node = Self { node: name.to_owned(), problems: codes, ..Self::default() };
        let Answer::Said(status) = answer else { return node };
        Self {
            answered: true,
            ready: status.ready,
            reached: status.summary.reach.reached(),
            peers: status.summary.reach.all(),
            proven: status.summary.preshared_keys.proven,
            guard: status.guard.in_place,
            key_age_seconds: oldest_key(status),
            backend: status.backend.clone(),
            version: status.version.clone(),
            ..node
        }
    }
}

/// Age of the oldest key that is announced.
fn oldest_key(status: &Status) -> Option<u64> {
    status.rotation.keys.iter().filter(|key| key.state != "former").map(|key| key.age_seconds).max()
}

impl Totals {
    fn new(answers: &BTreeMap<String, Answer>, nodes: &[Node]) -> Self {
        let count = |is: &dyn Fn(&Node) -> bool| nodes.iter().filter(|node| is(node)).count() as u64;
        let said = || {
            answers.values().filter_map(|answer| match answer {
                Answer::Said(status) => Some(status),
                Answer::Absent(_) | Answer::Silent(_) => None,
            })
        };
        let all = nodes.len() as u64;
        let by = |value: &dyn Fn(&Status) -> &str| {
            let mut counts = BTreeMap::new();
            for status in said() {
                *counts.entry(value(status).to_owned()).or_default() += 1;
            }
            counts
        };
        Self {
            nodes: all,
            answered: count(&|node| node.answered),
            ready: count(&|node| node.ready),
            pairs: all * all.saturating_sub(1),
            reached: nodes.iter().map(|node| node.reached).sum(),
            guarded: count(&|node| node.guard),
            fenced: said().filter(|status| status.api.trust_policy == Fence::InPlace).count() as u64,
            slots: nodes.iter().map(|node| 2 * node.peers).sum(),
            proven: nodes.iter().map(|node| node.proven).sum(),
            oldest_key_seconds: nodes.iter().filter_map(|node| node.key_age_seconds).max(),
            rotating: said().filter(|status| status.rotation.busy).count() as u64,
            versions: by(&|status| &status.version),
            backends: by(&|status| &status.backend),
        }
    }
}

#[cfg(test)]
mod tests;
