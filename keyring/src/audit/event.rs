//! Everything that a trail tells. Public halves only: there is no field that a secret would fit into.

use serde::{Deserialize, Serialize};

use super::line::Head;
use crate::rotation::{Cause, Note, PeerId, Stance};
use crate::{Fingerprint, PerSlot, Slot};

/// A node, by what is unique and by what people call it.
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
    /// The daemon started; these keys were found or made.
    Started {
        /// Its version.
        version: String,
        /// Generation of the node.
        generation: u64,
        /// The keys in the slots.
        keys: PerSlot<Fingerprint>,
        /// When each was made, in seconds since 1970.
        created: PerSlot<u64>,
        /// The preferred slot.
        prefer: Slot,
    },
    /// A rotation begins.
    Begun {
        /// Why.
        cause: Cause,
    },
    /// A new key was made and is stored.
    Staged {
        /// The slot that it is for.
        slot: Slot,
        /// The key.
        key: Fingerprint,
    },
    /// Peers are asked to leave a slot.
    Draining {
        /// The slot.
        slot: Slot,
        /// The key that is in it.
        key: Fingerprint,
    },
    /// A peer said that it does not send on the slot.
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
    /// A peer answered over the key: it has it, and a handshake with it succeeded.
    Verified {
        /// The peer.
        peer: PeerId,
        /// The slot.
        slot: Slot,
        /// The key.
        key: Fingerprint,
    },
    /// The key is the one that peers should use.
    Active {
        /// The slot.
        slot: Slot,
        /// The key.
        key: Fingerprint,
    },
    /// The key is in no file and no memory of this node any more.
    Destroyed {
        /// The slot that it was in.
        slot: Slot,
        /// The key.
        key: Fingerprint,
        /// Seconds since it was made.
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
    /// The new key was given up.
    RolledBack {
        /// The slot.
        slot: Slot,
        /// The key that was given up.
        key: Fingerprint,
        /// The peers that did not follow.
        peers: Vec<PeerId>,
    },
    /// The rotation is over.
    Finished {
        /// Milliseconds that it took.
        milliseconds: u64,
    },
    /// The generation was raised above one that stood on our Node.
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
    /// As a witness: something that a node published was refused.
    PeerRefused {
        /// The node's name.
        refused: String,
        /// The reason's code.
        reason: String,
    },
    /// As a witness: where a peer says that its trail ends.
    PeerHead {
        /// The peer.
        peer: PeerId,
        /// Number of its last line.
        line: u64,
        /// Hash of its last line, in hexadecimal.
        head: String,
    },
    /// This trail's end was put into a Kubernetes Event.
    Anchored {
        /// Number of the line.
        line: u64,
        /// Its hash, in hexadecimal.
        head: String,
    },
    /// The end of the last line was missing after a crash, and was cut off.
    Repaired {
        /// Bytes that were cut off.
        bytes: u64,
    },
}

impl Event {
    /// The event that a rotation's note stands for, under a generation.
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

    /// What a witness writes about an announcement.
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

    /// What a witness writes about the end of a peer's trail.
    pub fn head_of(peer: PeerId, head: &Head) -> Self {
        Self::PeerHead { peer, line: head.seq, head: head.to_string() }
    }

    /// Whether this is about this node's own keys, so that others should remember it.
    pub const fn is_own(&self) -> bool {
        !matches!(
            self,
            Self::PeerAnnounced { .. }
                | Self::PeerGone { .. }
                | Self::PeerRefused { .. }
                | Self::PeerHead { .. }
                | Self::Anchored { .. }
                | Self::Repaired { .. }
        )
    }

    /// Whether the event says something of where the writing node's own keys are.
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

    /// Whether the event speaks of this key.
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

    /// Whether the event speaks of a peer of this name or UID.
    pub fn is_about(&self, node: &str) -> bool {
        let named = |peer: &NodeRef| peer.name == node || peer.uid.as_str() == node;
        match self {
            Self::PeerAnnounced { peer, .. } | Self::PeerGone { peer } => named(peer),
            Self::PeerRefused { refused, .. } => refused == node,
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
