//! The events in a trail. Public keys only: there is no field that could hold a secret.

use serde::{Deserialize, Serialize};

use super::head::Head;
use crate::rotation::{Cause, Note, PeerId, Stance};
use crate::{Fingerprint, PerSlot, Slot};

/// A node, by UID and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeRef {
    /// UID of the Node.
    pub uid: PeerId,
    /// Its name.
    pub name: String,
}

/// One event in the life of a key or of the trail itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The daemon started; these keys were loaded or generated.
    Started {
        /// Its version.
        version: String,
        /// Generation of the node.
        generation: u64,
        /// The keys in the slots.
        keys: PerSlot<Fingerprint>,
        /// When each was generated, in seconds since 1970.
        created: PerSlot<u64>,
        /// The preferred slot.
        prefer: Slot,
    },
    /// A rotation started.
    Begun {
        /// Why.
        cause: Cause,
    },
    /// A new key was generated and is on disk.
    Staged {
        /// The slot that it is for.
        slot: Slot,
        /// The key.
        key: Fingerprint,
    },
    /// Peers are asked to stop sending on a slot.
    Draining {
        /// The slot.
        slot: Slot,
        /// The key that is in it.
        key: Fingerprint,
    },
    /// A peer confirmed that it does not send on the slot.
    Acknowledged {
        /// The peer.
        peer: PeerId,
        /// The slot.
        slot: Slot,
    },
    /// A key is in its slot, and is published under this generation.
    Published {
        /// The slot.
        slot: Slot,
        /// The key.
        key: Fingerprint,
        /// The generation.
        generation: u64,
    },
    /// A peer answered over the key: a handshake with it succeeded.
    Verified {
        /// The peer.
        peer: PeerId,
        /// The slot.
        slot: Slot,
        /// The key.
        key: Fingerprint,
    },
    /// Peers should use the key from now on.
    Active {
        /// The slot.
        slot: Slot,
        /// The key.
        key: Fingerprint,
    },
    /// The key is no longer in any file or in this node's memory.
    Destroyed {
        /// The slot that it was in.
        slot: Slot,
        /// The key.
        key: Fingerprint,
        /// Its age in seconds.
        age: u64,
    },
    /// A peer was silent and was not waited for.
    Skipped {
        /// The peer.
        peer: PeerId,
    },
    /// A peer did not follow and was not waited for, because the keys were too old.
    Forced {
        /// The peer.
        peer: PeerId,
    },
    /// Peers that are alive do not follow.
    Blocked {
        /// The slot.
        slot: Slot,
        /// The peers.
        peers: Vec<PeerId>,
    },
    /// The new key was abandoned.
    RolledBack {
        /// The slot.
        slot: Slot,
        /// The abandoned key.
        key: Fingerprint,
        /// The peers that did not follow.
        peers: Vec<PeerId>,
    },
    /// The rotation is complete.
    Finished {
        /// Its duration in milliseconds.
        milliseconds: u64,
    },
    /// The generation was raised above one found on the own Node.
    Outgrown {
        /// The new generation.
        generation: u64,
    },
    /// As a witness: what a peer announces.
    PeerAnnounced {
        /// The peer.
        peer: NodeRef,
        /// Its generation.
        generation: u64,
        /// Its keys.
        keys: PerSlot<Fingerprint>,
        /// The slot that it prefers.
        prefer: Slot,
        /// The slot that it drains.
        drain: Option<Slot>,
        /// Whether the drained slot has its new key.
        installed: bool,
    },
    /// As a witness: a peer is no longer in the mesh.
    PeerGone {
        /// The peer.
        peer: NodeRef,
    },
    /// As a witness: what a node published was refused.
    PeerRefused {
        /// The node's name.
        refused: String,
        /// The reason's code.
        reason: String,
    },
    /// As a witness: the head that a peer announced for its trail.
    PeerHead {
        /// The peer.
        peer: PeerId,
        /// Number of its last line.
        line: u64,
        /// Hash of its last line, in hexadecimal.
        head: String,
    },
    /// This trail's head was written to a Kubernetes Event.
    Anchored {
        /// Number of the line.
        line: u64,
        /// Its hash, in hexadecimal.
        head: String,
    },
    /// An incomplete last line was removed after a crash.
    Repaired {
        /// Bytes that were removed.
        bytes: u64,
    },
    /// A file of this trail was damaged; it was archived as it is, and the trail goes on in a new one.
    Damaged {
        /// Name of the archived file.
        file: String,
        /// Lines in it that can't be read.
        lines: u64,
    },
    /// Lines about a peer were left out before this one, because it exceeded its quota.
    Omitted {
        /// UID of the peer, or the name of a Node that was refused.
        subject: String,
        /// How many.
        lines: u64,
    },
    /// Events were lost before this line, because they could not be written for too long.
    Lost {
        /// How many.
        events: u64,
    },
    /// The head of this node's witness trail, so that it can't be cut off unnoticed either.
    WitnessHead {
        /// Number of its last line.
        line: u64,
        /// Hash of its last line, in hexadecimal.
        head: String,
    },
}

impl Event {
    /// The event for a note of the rotation, under a generation.
    pub fn of(note: &Note, generation: u64) -> Self {
        match note.clone() {
            Note::Begun(cause) => Self::Begun { cause },
            Note::Staged(slot, key) => Self::Staged { slot, key: key.fingerprint() },
            Note::Draining(slot, key) => Self::Draining { slot, key: key.fingerprint() },
            Note::Installed(slot, key) => Self::Published { slot, key: key.fingerprint(), generation },
            Note::Acknowledged(peer, slot) => Self::Acknowledged { peer, slot },
            Note::Verified(peer, slot, key) => Self::Verified { peer, slot, key: key.fingerprint() },
            Note::Active(slot, key) => Self::Active { slot, key: key.fingerprint() },
            Note::Skipped(peer) => Self::Skipped { peer },
            Note::Forced(peer) => Self::Forced { peer },
            Note::Blocked(slot, peers) => Self::Blocked { slot, peers },
            Note::RolledBack(slot, key, peers) => Self::RolledBack { slot, key: key.fingerprint(), peers },
            Note::Destroyed(slot, key, age) => {
                Self::Destroyed { slot, key: key.fingerprint(), age: age.as_secs() }
            }
            Note::Finished(took) => {
                Self::Finished { milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) }
            }
            Note::Outgrown(generation) => Self::Outgrown { generation },
        }
    }

    /// The event that a witness records for an announcement.
    pub fn announced(name: &str, stance: &Stance, keys: PerSlot<Fingerprint>) -> Self {
        Self::PeerAnnounced {
            peer: NodeRef { uid: stance.id.clone(), name: name.to_owned() },
            generation: stance.generation,
            keys,
            prefer: stance.prefer,
            drain: stance.drain,
            installed: stance.installed,
        }
    }

    /// The event that a witness records for the head of a peer's trail.
    pub fn head_of(peer: PeerId, head: &Head) -> Self {
        Self::PeerHead { peer, line: head.seq, head: head.to_string() }
    }

    /// The event that a node records in its own trail for the head of its witness trail.
    pub fn witness_head(head: &Head) -> Self {
        Self::WitnessHead { line: head.seq, head: head.to_string() }
    }

    /// Whether the event is about the node's own keys, so that witnesses should know of it.
    pub const fn is_own(&self) -> bool {
        !matches!(
            self,
            Self::PeerAnnounced { .. }
                | Self::PeerGone { .. }
                | Self::PeerRefused { .. }
                | Self::PeerHead { .. }
                | Self::Anchored { .. }
                | Self::Repaired { .. }
                | Self::Damaged { .. }
                | Self::Omitted { .. }
                | Self::Lost { .. }
                | Self::WitnessHead { .. }
        )
    }

    /// Whether the event shows where the node's own keys are.
    pub const fn is_of_own_keys(&self) -> bool {
        matches!(
            self,
            Self::Started { .. }
                | Self::Staged { .. }
                | Self::Published { .. }
                | Self::Destroyed { .. }
                | Self::RolledBack { .. }
        )
    }

    /// Whether the event mentions this key.
    pub fn mentions(&self, key: &str) -> bool {
        match self {
            Self::Staged { key: found, .. }
            | Self::Draining { key: found, .. }
            | Self::Published { key: found, .. }
            | Self::Verified { key: found, .. }
            | Self::Active { key: found, .. }
            | Self::Destroyed { key: found, .. }
            | Self::RolledBack { key: found, .. } => found.to_string() == key,
            Self::Started { keys, .. } | Self::PeerAnnounced { keys, .. } => {
                keys.iter().any(|(_, found)| found.to_string() == key)
            }
            _ => false,
        }
    }

    /// Whether the event is about a peer with this name or UID.
    pub fn is_about(&self, node: &str) -> bool {
        let named = |peer: &NodeRef| peer.name == node || peer.uid.as_str() == node;
        match self {
            Self::PeerAnnounced { peer, .. } | Self::PeerGone { peer } => named(peer),
            Self::PeerRefused { refused, .. } => refused == node,
            Self::Omitted { subject, .. } => subject == node,
            Self::Acknowledged { peer, .. }
            | Self::Verified { peer, .. }
            | Self::Skipped { peer }
            | Self::Forced { peer }
            | Self::PeerHead { peer, .. } => peer.as_str() == node,
            Self::Blocked { peers, .. } | Self::RolledBack { peers, .. } => {
                peers.iter().any(|peer| peer.as_str() == node)
            }
            _ => false,
        }
    }
}
