//! Whether a mesh is proven encrypted: each node's daemon tries, by itself and with each peer, and gives evidence; what the
//! evidence of all proves is decided here. Pure.

pub mod evidence;
mod finding;
mod judge;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use keyring::pq::Protection;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::mesh::API_VERSION;
use evidence::Evidence;
pub use finding::{Code, Finding, Weight};
pub use text::{render, verdict_line};

/// What there is of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// What its daemon found.
    Evidence(Box<Evidence>),
    /// It gave none, and why.
    Nothing(String),
}

/// What the evidence comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was tried proves encryption, between all nodes.
    Encrypted,
    /// Packets with pod addresses left a node unencrypted.
    Leak,
    /// Something speaks against it, or is not known.
    NotProven,
}

impl Verdict {
    /// The word that begins the verdict line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encrypted => "ENCRYPTED",
            Self::Leak => "LEAK",
            Self::NotProven => "NOT PROVEN",
        }
    }
}

/// The mesh in a few numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Those that gave evidence.
    pub answered: u64,
    /// Ordered pairs of nodes.
    pub pairs: u64,
    /// Those that nothing speaks against.
    pub proven: u64,
    /// Slots of pairs, from each end that gave evidence.
    pub slots: u64,
    /// Those with a preshared key that a handshake has used.
    pub preshared: u64,
    /// For how many seconds, up to now, nothing left any node in the clear; none if that is known of no time.
    pub clear_seconds: Option<u64>,
    /// How often a node has recorded a line that is in another one's audit trail.
    pub witnesses: u64,
}

/// A node and what it said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePart {
    /// Its name.
    pub node: String,
    /// SHA-256 of its evidence as compact JSON, in hexadecimal digits; none without evidence.
    pub sha256: Option<String>,
    /// Its evidence.
    pub evidence: Option<Evidence>,
    /// Why there is none.
    pub error: Option<String>,
}

/// The verdict with everything that it rests on, for an auditor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `MeshVerification`.
    pub kind: String,
    /// Unix time, in seconds, at which it was made, by the clock of who asked.
    pub made_at: u64,
    /// What it comes to.
    pub verdict: Verdict,
    /// The mesh in a few numbers.
    pub totals: Totals,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// Each node's part, by name.
    pub nodes: Vec<NodePart>,
    /// SHA-256 of all of the above as compact JSON, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}

impl Report {
    /// Judges what all nodes say, with both ends of each pair. `made_at` is the Unix time in seconds.
    pub fn of_mesh(made_at: u64, gathered: BTreeMap<String, Gathered>) -> Self {
        let mut findings = of_each(&gathered);
        let rotates = |peer: &String| matches!(gathered.get(peer), Some(Gathered::Evidence(evidence)) if evidence.rotating);
        for finding in &mut findings {
            if finding.peer.as_ref().is_some_and(rotates) {
                judge::suspend(finding);
            }
        }
        judge::of_pairs(&gathered, &mut findings);
        Self::new(made_at, gathered, findings)
    }

    /// Judges what one node says of itself and its peers: of the pairs that begin at it, this end.
    pub fn of_node(made_at: u64, evidence: Evidence) -> Self {
        let peers = evidence.peers.len() as u64;
        let gathered = BTreeMap::from([(evidence.node.clone(), Gathered::Evidence(Box::new(evidence)))]);
        let findings = of_each(&gathered);
        let mut report = Self::new(made_at, gathered, findings);
        let failed = report.failed_pairs().len() as u64;
        (report.totals.pairs, report.totals.proven) = (peers, peers.saturating_sub(failed));
        report.sealed()
    }

    fn new(made_at: u64, gathered: BTreeMap<String, Gathered>, mut findings: Vec<Finding>) -> Self {
        let key = |finding: &Finding| (finding.weight, finding.code, finding.node.clone());
        findings.sort_by(|one, other| {
            (key(one), &one.peer, one.slot, &one.what).cmp(&(
                key(other),
                &other.peer,
                other.slot,
                &other.what,
            ))
        });
        let is = |weight| findings.iter().any(|finding| finding.weight == weight);
        let verdict = if is(Weight::Leak) {
            Verdict::Leak
        } else if is(Weight::Failed) || is(Weight::Unknown) || gathered.is_empty() {
            Verdict::NotProven
        } else {
            Verdict::Encrypted
        };
        let totals = Totals::new(&gathered);
        let nodes = gathered.into_iter().map(|(node, gathered)| NodePart::new(node, gathered)).collect();
        let mut report = Self {
            api_version: API_VERSION.to_owned(),
            kind: "MeshVerification".to_owned(),
            made_at,
            verdict,
            totals,
            findings,
            nodes,
            sha256: String::new(),
        };
        report.totals.proven = report.proven_pairs();
        report.sealed()
    }

    /// The pairs that something speaks against.
    fn failed_pairs(&self) -> BTreeSet<(&str, &str)> {
        let failed = self.findings.iter().filter(|finding| finding.weight < Weight::Warning);
        let pairs = failed.filter(|finding| finding.code != Code::TrailDisagrees);
        pairs.filter_map(|finding| Some((finding.node.as_str(), finding.peer.as_deref()?))).collect()
    }

    /// How many pairs, of nodes that both gave evidence, nothing speaks against.
    fn proven_pairs(&self) -> u64 {
        let answered: Vec<&str> =
            self.nodes.iter().filter(|part| part.evidence.is_some()).map(|part| part.node.as_str()).collect();
        let failed = self.failed_pairs();
        let pairs = answered.iter().flat_map(|node| answered.iter().map(move |peer| (*node, *peer)));
        pairs.filter(|(node, peer)| node != peer && !failed.contains(&(*node, *peer))).count() as u64
    }

    fn sealed(mut self) -> Self {
        self.sha256.clear();
        self.sha256 = digest(&self);
        self
    }

    /// What in it does not have the digest that it states: `null` in a list of none if nothing was changed.
    pub fn changed(&self) -> Vec<String> {
        let mut changed: Vec<String> = self
            .nodes
            .iter()
            .filter(|part| part.evidence.as_ref().map(digest) != part.sha256)
            .map(|part| part.node.clone())
            .collect();
        if self.clone().sealed().sha256 != self.sha256 {
            changed.push("the whole".to_owned());
        }
        changed
    }

    /// Exit code of a program: 0 if encryption is proven, 1 if a check failed, 2 if something is not known.
    pub fn exit_code(&self) -> u8 {
        let failed = self.findings.iter().any(|finding| finding.weight <= Weight::Failed);
        match self.verdict {
            Verdict::Encrypted => 0,
            Verdict::Leak => 1,
            Verdict::NotProven if failed => 1,
            Verdict::NotProven => 2,
        }
    }
}

/// How far a daemon's verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Slots of peers that are done with.
    pub done: usize,
    /// All of them.
    pub of: usize,
    /// Seconds since it began.
    pub seconds: u64,
}

fn of_each(gathered: &BTreeMap<String, Gathered>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (node, gathered) in gathered {
        match gathered {
            Gathered::Evidence(evidence) => judge::of_node(evidence, &mut findings),
            Gathered::Nothing(why) => findings.push(Finding::of_node(Code::NoEvidence, node, why.as_str())),
        }
    }
    findings
}

/// SHA-256 of a value as compact JSON.
fn digest(value: &impl Serialize) -> String {
    // Texts, numbers, lists and maps with texts or numbers as keys always serialize.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing into a String can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl NodePart {
    fn new(node: String, gathered: Gathered) -> Self {
        let (evidence, error) = match gathered {
            Gathered::Evidence(evidence) => (Some(*evidence), None),
            Gathered::Nothing(why) => (None, Some(why)),
        };
        Self { node, sha256: evidence.as_ref().map(digest), evidence, error }
    }
}

impl Totals {
    fn new(gathered: &BTreeMap<String, Gathered>) -> Self {
        let said: Vec<&Evidence> = gathered
            .values()
            .filter_map(|gathered| match gathered {
                Gathered::Evidence(evidence) => Some(&**evidence),
                Gathered::Nothing(_) => None,
            })
            .collect();
        let all = gathered.len() as u64;
        let slots = || said.iter().flat_map(|evidence| &evidence.peers).flat_map(|peer| peer.slots.iter());
        let clear = |evidence: &&Evidence| {
            let since = evidence.guard.repaired_seconds_ago.unwrap_or(evidence.running_seconds);
            (evidence.guard.in_place == Some(true)).then_some(since)
        };
        let clear_seconds: Option<Vec<u64>> = said.iter().map(clear).collect();
        Self {
            nodes: all,
            answered: said.len() as u64,
            pairs: all * all.saturating_sub(1),
            proven: 0,
            slots: slots().count() as u64,
            preshared: slots().filter(|(_, slot)| slot.pq.protection == Protection::Proven).count() as u64,
            clear_seconds: clear_seconds.and_then(|seconds| seconds.into_iter().min()),
            witnesses: said.iter().map(|evidence| judge::agreeing_witnesses(gathered, evidence)).sum(),
        }
    }
}

#[cfg(test)]
mod tests;
