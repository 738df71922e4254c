//! What can keep a mesh from being proven encrypted: each has a stable code, a sentence and what to do.

use keyring::Slot;
use serde::{Deserialize, Serialize};

/// How much a finding says against the mesh, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Packets with pod addresses left unencrypted.
    Leak,
    /// A check failed.
    Failed,
    /// A check could not be made.
    Unknown,
    /// It says nothing against encryption, and should be looked after.
    Warning,
}

/// Stable names of findings. docs/verify.md has each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// Packets with a pod address left the node outside the mesh.
    SentInTheClear,
    /// The daemon gave no evidence.
    NoEvidence,
    /// A rule of the guard is not as the daemon wants it.
    GuardChanged,
    /// The guard was away a short time ago.
    GuardWasAway,
    /// A packet that was sent in the clear on purpose was not caught.
    ControlNotCaught,
    /// No such packet could be sent.
    ControlNotSent,
    /// The API server accepts a forgery.
    ForgeryAccepted,
    /// Whether it does is not known.
    ForgeryUntested,
    /// The audit trail is not whole.
    TrailChanged,
    /// The audit trail is not what another node has recorded of it.
    TrailDisagrees,
    /// The audit trail could not be read.
    TrailUnread,
    /// The device has another key than the Node announces.
    OwnKeyDiffers,
    /// A node does not have another one as a peer.
    NotAPeer,
    /// The device does not have the peer's announced key.
    KeyNotHeld,
    /// The two ends of a pair don't mean the same key.
    KeysDisagree,
    /// No answer through the tunnel.
    NoEcho,
    /// An answer came from another address than the peer's.
    WrongSource,
    /// There is no session.
    NoSession,
    /// Packets of the full size are lost.
    FullSizeLost,
    /// Packets larger than that are not refused.
    SizeNotLimited,
    /// The device has not counted what was sent.
    BytesMissing,
    /// Packets pass without a preshared key although both nodes want one, or none pass for want of one.
    PresharedMissing,
    /// A preshared key is not proven yet.
    PresharedUnproven,
    /// Packets with a pod address arrived outside the mesh.
    ArrivedInTheClear,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::SentInTheClear,
        Self::NoEvidence,
        Self::GuardChanged,
        Self::GuardWasAway,
        Self::ControlNotCaught,
        Self::ControlNotSent,
        Self::ForgeryAccepted,
        Self::ForgeryUntested,
        Self::TrailChanged,
        Self::TrailDisagrees,
        Self::TrailUnread,
        Self::OwnKeyDiffers,
        Self::NotAPeer,
        Self::KeyNotHeld,
        Self::KeysDisagree,
        Self::NoEcho,
        Self::WrongSource,
        Self::NoSession,
        Self::FullSizeLost,
        Self::SizeNotLimited,
        Self::BytesMissing,
        Self::PresharedMissing,
        Self::PresharedUnproven,
        Self::ArrivedInTheClear,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SentInTheClear => "sent-in-the-clear",
            Self::NoEvidence => "no-evidence",
            Self::GuardChanged => "guard-changed",
            Self::GuardWasAway => "guard-was-away",
            Self::ControlNotCaught => "control-not-caught",
            Self::ControlNotSent => "control-not-sent",
            Self::ForgeryAccepted => "forgery-accepted",
            Self::ForgeryUntested => "forgery-untested",
            Self::TrailChanged => "trail-changed",
            Self::TrailDisagrees => "trail-disagrees",
            Self::TrailUnread => "trail-unread",
            Self::OwnKeyDiffers => "own-key-differs",
            Self::NotAPeer => "not-a-peer",
            Self::KeyNotHeld => "key-not-held",
            Self::KeysDisagree => "keys-disagree",
            Self::NoEcho => "no-echo",
            Self::WrongSource => "wrong-source",
            Self::NoSession => "no-session",
            Self::FullSizeLost => "full-size-lost",
            Self::SizeNotLimited => "size-not-limited",
            Self::BytesMissing => "bytes-missing",
            Self::PresharedMissing => "preshared-missing",
            Self::PresharedUnproven => "preshared-unproven",
            Self::ArrivedInTheClear => "arrived-in-the-clear",
        }
    }

    /// How much it says, unless keys are being replaced.
    pub const fn weight(self) -> Weight {
        match self {
            Self::SentInTheClear => Weight::Leak,
            Self::NoEvidence | Self::ControlNotSent | Self::ForgeryUntested | Self::TrailUnread => {
                Weight::Unknown
            }
            Self::PresharedUnproven | Self::ArrivedInTheClear => Weight::Warning,
            Self::GuardChanged
            | Self::GuardWasAway
            | Self::ControlNotCaught
            | Self::ForgeryAccepted
            | Self::TrailChanged
            | Self::TrailDisagrees
            | Self::OwnKeyDiffers
            | Self::NotAPeer
            | Self::KeyNotHeld
            | Self::KeysDisagree
            | Self::NoEcho
            | Self::WrongSource
            | Self::NoSession
            | Self::FullSizeLost
            | Self::SizeNotLimited
            | Self::BytesMissing
            | Self::PresharedMissing => Weight::Failed,
        }
    }

    /// What to do first.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::SentInTheClear => {
                "find what changed the guard: nft list table inet meshd, and the daemon's log"
            }
            Self::NoEvidence => "look at the daemon's pod and its log, then verify again",
            Self::GuardChanged => {
                "the daemon puts it back within 2 s: verify again, and look in its log for how often"
            }
            Self::GuardWasAway => {
                "find the program that changes nftables; after 10 min the claim begins anew"
            }
            Self::ControlNotCaught => {
                "nft list table inet meshd: compare its rules with those of a node that is well"
            }
            Self::ControlNotSent => {
                "the message has the kernel's words; is there a link with the node's address?"
            }
            Self::ForgeryAccepted => {
                "apply the admission policies of deploy/base, on Kubernetes 1.32 or newer"
            }
            Self::ForgeryUntested => "look at the API server and at the path to it, then verify again",
            Self::TrailChanged | Self::TrailDisagrees => {
                "meshd audit verify on the node, with copies of the other nodes' trails as witnesses (docs/audit.md)"
            }
            Self::TrailUnread => "look at the node's disk",
            Self::OwnKeyDiffers | Self::KeyNotHeld | Self::KeysDisagree => {
                "the daemon sets keys again within 2 s; if it stays, look in both daemons' logs for what was rejected"
            }
            Self::NotAPeer => "meshd status on the node names why it leaves the other one out",
            Self::NoEcho | Self::NoSession => {
                "check that UDP 51840 (slot a) and 51841 (slot b) pass between the nodes, both ways"
            }
            Self::WrongSource => "meshd status on both nodes: do they claim the same pod range?",
            Self::FullSizeLost => {
                "find the link on the path with the smaller MTU; the routes follow within a minute"
            }
            Self::SizeNotLimited => "ip route get PEER on the node: its MTU should be the one that is named",
            Self::BytesMissing => "look in the daemon's log: was the device created anew?",
            Self::PresharedMissing => "check that both UDP ports are open, and that pq is on at both ends",
            Self::PresharedUnproven => "wait some seconds after a start or a rotation, then verify again",
            Self::ArrivedInTheClear => "find the sender: no node that gave evidence sent them",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it says.
    pub weight: Weight,
    /// What it is.
    pub code: Code,
    /// The node that found it.
    pub node: String,
    /// The other node of the pair, if it is about one.
    pub peer: Option<String>,
    /// The slot, if it is about one.
    pub slot: Option<Slot>,
    /// A sentence.
    pub what: String,
}

impl Finding {
    pub(super) fn of_node(code: Code, node: &str, what: impl Into<String>) -> Self {
        Self { weight: code.weight(), code, node: node.to_owned(), peer: None, slot: None, what: what.into() }
    }

    pub(super) fn of_pair(code: Code, node: &str, peer: &str, slot: Slot, what: impl Into<String>) -> Self {
        let (peer, slot) = (Some(peer.to_owned()), Some(slot));
        Self { peer, slot, ..Self::of_node(code, node, what) }
    }
}
