//! What can be wrong with a mesh: each has a stable code, a sentence and what to do.

use serde::{Deserialize, Serialize};

use super::Answer;
use crate::{Fence, Status};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Pods don't reach each other, or something protects less than it should.
    Error,
    /// Whether something is wrong is not known.
    Unknown,
    /// It works, and something should be looked after.
    Warning,
}

/// Stable names of problems. docs/problems.md has each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Pods' packets could leave the node unencrypted.
    GuardMissing,
    /// No daemon runs on the node.
    NoDaemon,
    /// The daemon does not answer.
    NoAnswer,
    /// Pods can't be attached to the node.
    NotReady,
    /// A node does not reach another one.
    Unreached,
    /// Pods' packets are dropped for want of a preshared key.
    PresharedBlocked,
    /// Pods' packets pass without a preshared key.
    PresharedStripped,
    /// Packets of the smallest allowed size are lost.
    PathTooSmall,
    /// A node was rejected by another one.
    Rejected,
    /// A step of the last turn failed.
    StepFailed,
    /// A check of the host has found something.
    Host,
    /// The daemon could change other Nodes.
    FenceMissing,
    /// The daemon has no connection to the API server.
    ApiAway,
    /// The node's keys are not published, or not those in use.
    Unpublished,
    /// A Node has not published keys yet.
    Pending,
    /// The last rotation was rolled back.
    RotationBlocked,
    /// No relay was found for a pair that needs one.
    NoRelay,
    /// A name can't be resolved.
    NameUnresolved,
    /// Pods were attached by another plugin.
    PodsOutside,
    /// A file of the daemon was found damaged.
    FileDamaged,
    /// The daemon's memory is less protected than it could be.
    MemoryExposed,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::GuardMissing,
        Self::NoDaemon,
        Self::NoAnswer,
        Self::NotReady,
        Self::Unreached,
        Self::PresharedBlocked,
        Self::PresharedStripped,
        Self::PathTooSmall,
        Self::Rejected,
        Self::StepFailed,
        Self::Host,
        Self::FenceMissing,
        Self::ApiAway,
        Self::Unpublished,
        Self::Pending,
        Self::RotationBlocked,
        Self::NoRelay,
        Self::NameUnresolved,
        Self::PodsOutside,
        Self::FileDamaged,
        Self::MemoryExposed,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GuardMissing => "guard-missing",
            Self::NoDaemon => "no-daemon",
            Self::NoAnswer => "no-answer",
            Self::NotReady => "not-ready",
            Self::Unreached => "unreached",
            Self::PresharedBlocked => "preshared-blocked",
            Self::PresharedStripped => "preshared-stripped",
            Self::PathTooSmall => "path-too-small",
            Self::Rejected => "rejected",
            Self::StepFailed => "step-failed",
            Self::Host => "host",
            Self::FenceMissing => "fence-missing",
            Self::ApiAway => "api-away",
            Self::Unpublished => "unpublished",
            Self::Pending => "pending",
            Self::RotationBlocked => "rotation-blocked",
            Self::NoRelay => "no-relay",
            Self::NameUnresolved => "name-unresolved",
            Self::PodsOutside => "pods-outside",
            Self::FileDamaged => "file-damaged",
            Self::MemoryExposed => "memory-exposed",
        }
    }

    /// How bad it is.
    pub const fn severity(self) -> Severity {
        match self {
            Self::GuardMissing
            | Self::NoDaemon
            | Self::NotReady
            | Self::Unreached
            | Self::PresharedBlocked
            | Self::PresharedStripped
            | Self::PathTooSmall
            | Self::Rejected
            | Self::StepFailed => Severity::Error,
            Self::NoAnswer => Severity::Unknown,
            Self::Host
            | Self::FenceMissing
            | Self::ApiAway
            | Self::Unpublished
            | Self::Pending
            | Self::RotationBlocked
            | Self::NoRelay
            | Self::NameUnresolved
            | Self::PodsOutside
            | Self::FileDamaged
            | Self::MemoryExposed => Severity::Warning,
        }
    }

    /// What to do first; what docs/problems.md says goes further.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::GuardMissing => {
                "look at the daemon's log for who removed its nftables table; it is put back within 2 s"
            }
            Self::NoDaemon => {
                "look at the DaemonSet's Events: is the node tainted, or the image not pulled there?"
            }
            Self::NoAnswer => "look at the pod and its log: kubectl -n meshd logs POD",
            Self::NotReady => "mend what it waits for; the node's pods are kept off until then",
            Self::Unreached => {
                "check that UDP 51840 and 51841 are open between the nodes, or label a node as a relay"
            }
            Self::PresharedBlocked | Self::PresharedStripped => {
                "check that both UDP ports are open, and that pq is on at both ends"
            }
            Self::PathTooSmall => "the path must let larger UDP datagrams pass: look at its smallest MTU",
            Self::Rejected => "change what the reason names: one of the Nodes, or the option",
            Self::StepFailed => "it is tried again; look at the kernel's message in it",
            Self::Host => "run the command",
            Self::FenceMissing => "apply the admission policies of deploy/, for Kubernetes 1.32 and newer",
            Self::ApiAway => "the mesh goes on with what it knows; look at the API server",
            Self::Unpublished => "look at the daemon's log: may it patch its Node?",
            Self::Pending => "look at the daemon there",
            Self::RotationBlocked => "check that both UDP ports are open between the nodes",
            Self::NoRelay => "label a node that both ends reach as a relay (docs/install.md)",
            Self::NameUnresolved => {
                "look at the name and at the node's DNS; the last addresses are used meanwhile"
            }
            Self::PodsOutside => "recreate the pods: meshd status on the node shows the command",
            Self::FileDamaged => "it is kept beside the new one; look at the disk",
            Self::MemoryExposed => "see docs/options.md for what the daemon needs",
        }
    }
}

/// What is wrong with a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// Where it is seen.
    pub node: String,
    /// What was found.
    pub what: String,
    /// What to do.
    #[serde(rename = "do")]
    pub advice: String,
    /// The other nodes that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// The check of the host that found it (docs/host-checks.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
}

impl Problem {
    pub(super) fn new(code: Code, node: &str, what: impl Into<String>) -> Self {
        let advice = code.advice().to_owned();
        let (peers, check) = (Vec::new(), None);
        Self {
            code,
            severity: code.severity(),
            node: node.to_owned(),
            what: what.into(),
            advice,
            peers,
            check,
        }
    }

    /// The same, about other nodes.
    pub(super) fn about<'a>(mut self, peers: impl IntoIterator<Item = &'a str>) -> Self {
        self.peers = peers.into_iter().map(ToOwned::to_owned).collect();
        self
    }

    /// Its code, or that of the check of the host.
    pub fn name(&self) -> &str {
        self.check.as_deref().unwrap_or_else(|| self.code.as_str())
    }

    /// What problems are sorted by.
    pub(super) fn order(&self) -> (Severity, Code, &str, &str) {
        (self.severity, self.code, &self.node, &self.what)
    }
}

/// What a node's own answer says is wrong. Whom it reaches is not part of it.
pub(super) fn of_node(node: &str, answer: &Answer, problems: &mut Vec<Problem>) {
    match answer {
        Answer::Absent(why) => problems.push(Problem::new(Code::NoDaemon, node, why)),
        Answer::Silent(why) => problems.push(Problem::new(Code::NoAnswer, node, why)),
        Answer::Said(status) => {
            of_others(node, status, problems);
            said(node, status, problems);
        }
    }
}

/// What it says of other nodes.
fn of_others(node: &str, status: &Status, problems: &mut Vec<Problem>) {
    let mut about =
        |code, peer: &str, what: String| problems.push(Problem::new(code, node, what).about([peer]));
    for peer in &status.peers {
        if peer.pq.blocked {
            let what = format!("pods' packets to {} are dropped: {}", peer.node, peer.pq.reason());
            about(Code::PresharedBlocked, &peer.node, what);
        }
        if let Some(seconds) = peer.pq.stripped_seconds {
            let what = format!("for {seconds} s pods' packets to {} have had no preshared key", peer.node);
            about(Code::PresharedStripped, &peer.node, what);
        }
        if peer.full_size_passes == Some(false) {
            let mtu = peer.mtu.unwrap_or_default();
            about(
                Code::PathTooSmall,
                &peer.node,
                format!("packets of {mtu} bytes to {} are lost", peer.node),
            );
        }
    }
    for rejected in &status.rejected {
        let effect = if rejected.stays { " in part" } else { "" };
        let what = format!("rejects {}{effect}: {} [{}]", rejected.node, rejected.reason, rejected.code);
        about(Code::Rejected, &rejected.node, what);
    }
    for pending in &status.pending {
        about(Code::Pending, pending, format!("{pending} has not published keys yet"));
    }
    for lease in &status.leases {
        if let Some(trouble) = &lease.trouble {
            about(Code::NoRelay, &lease.node, format!("to {}, slot {}: {trouble}", lease.node, lease.slot));
        }
    }
    if !status.rotation.blocked_by.is_empty() {
        let by = &status.rotation.blocked_by;
        let what = format!("the last rotation was rolled back: {} did not follow", by.join(", "));
        let problem = Problem::new(Code::RotationBlocked, node, what);
        problems.push(problem.about(by.iter().map(String::as_str)));
    }
}

fn said(node: &str, status: &Status, problems: &mut Vec<Problem>) {
    let mut add = |code, what: String| problems.push(Problem::new(code, node, what));
    if !status.guard.in_place {
        add(Code::GuardMissing, "the guard is not in place, or was changed".to_owned());
    }
    if !status.ready {
        add(Code::NotReady, format!("waits for: {}", status.waiting_for.join("; ")));
    }
    for failure in &status.failures {
        add(Code::StepFailed, failure.clone());
    }
    if status.api.trust_policy == Fence::Missing {
        add(Code::FenceMissing, "this node's token could forge the keys of other nodes".to_owned());
    }
    match &status.api.error {
        Some(error) => add(Code::ApiAway, error.clone()),
        None if !status.api.published => {
            add(Code::Unpublished, "its annotations are not up to date".to_owned());
        }
        None => {}
    }
    for name in &status.names {
        if let Some(trouble) = &name.trouble {
            add(Code::NameUnresolved, format!("{}: {trouble}", name.name));
        }
    }
    if status.pods_outside > 0 {
        add(
            Code::PodsOutside,
            match status.pods_outside {
                1 => "1 pod is outside the mesh".to_owned(),
                pods => format!("{pods} pods are outside the mesh"),
            },
        );
    }
    for file in &status.damaged_files {
        add(Code::FileDamaged, file.clone());
    }
    for protection in &status.missing_protections {
        add(Code::MemoryExposed, protection.clone());
    }
    for found in &status.findings {
        let what = format!("{} [{}]", found.sentence, found.code);
        problems.push(Problem {
            advice: format!("{}: {}", Code::Host.advice(), found.fix),
            check: Some(found.code.clone()),
            ..Problem::new(Code::Host, node, what)
        });
    }
}
