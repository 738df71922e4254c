//! What a pairing is told, what it asks for, and what it is set up with: plain data without secrets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agreement::Statics;
use super::message::{Message, Refusal};
use super::provider::ProviderError;
use crate::rotation::PeerId;
use crate::{PerSlot, PresharedId, Slot};

/// Whether preshared keys are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// None are agreed on. Those that stand stay until a static key of their slot is replaced.
    Off,
    /// With every peer that does it too; traffic with the others passes without.
    #[default]
    Prefer,
    /// Pods' packets pass only where a preshared key is proven.
    Require,
}

/// How a node deals with preshared keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether they are wanted.
    pub mode: Mode,
    /// Age at which a key is replaced by a new one; zero replaces it only with a static key.
    pub interval: Duration,
    /// How long a slot must have been without traffic before its key changes: longer than a packet is under way.
    pub linger: Duration,
    /// How often each slot is tried out while all is well.
    pub check: Duration,
    /// How long a rotation waits for a new preshared key where one is not required.
    pub patience: Duration,
    /// After how long without any answer the key of slot a is given up, so that two nodes that hold different keys
    /// find each other again.
    pub silence: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            mode: Mode::Prefer,
            interval: Duration::from_hours(1),
            linger: Duration::from_secs(1),
            check: Duration::from_mins(1),
            patience: Duration::from_secs(15),
            silence: Duration::from_secs(30),
        }
    }
}

/// What an engine shows of the peer on one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The preshared key that the engine has with the peer.
    pub preshared: Option<PresharedId>,
    /// Whether a handshake has been completed since the engine got it. An engine must forget its sessions with a peer
    /// when that peer's preshared key changes.
    pub handshake: bool,
}

/// What a pairing is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Nothing but that time has passed.
    Tick,
    /// What both ends are called: other than before if a Node was made anew for a node that lives.
    Names {
        /// This node.
        own: PeerId,
        /// The peer.
        peer: PeerId,
    },
    /// The static keys of both ends on each slot; none while one of them is not known or not in its device.
    Statics(PerSlot<Option<Statics>>),
    /// What the engines show; none where the peer is in no device.
    Engine(PerSlot<Option<Entry>>),
    /// The slot that pods' packets to the peer take from now on; none if they go nowhere.
    Tx(Option<Slot>),
    /// The slot that must not carry traffic because one of both replaces its static key.
    Drained(Option<Slot>),
    /// A message from the peer.
    Heard {
        /// The slot that it came over.
        over: Slot,
        /// The message.
        message: Message,
    },
    /// What [`super::Pairing::kept`] said when [`Effect::Persist`] was asked for is on disk.
    Persisted,
    /// It could not be written; what was there before stands.
    PersistFailed,
}

/// What a pairing wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a message to the peer, once.
    Send {
        /// The slot that it must go over.
        over: Slot,
        /// The message.
        message: Message,
    },
    /// Write [`super::Pairing::kept`] to disk; then say so.
    Persist,
    /// One of the pairing's answers has changed: make engines and routes as they ask, then tell it what is.
    Apply,
    /// Something that an operator may want to know.
    Note(Note),
}

/// An event in the life of a preshared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Both ends have a new key; this one uses it from now on.
    Agreed(Slot, u64, PresharedId),
    /// A handshake has been completed with it.
    Proven(Slot, u64, PresharedId),
    /// A key was given up because a static key that it was bound to is gone.
    Outlived(Slot, u64),
    /// A key was given up because the peer has not answered over either slot for long: it may hold another one.
    GivenUp(Slot, u64),
    /// The peer refuses.
    Refused(Slot, u64, Refusal),
    /// The peer holds another key than this node.
    Differs(Slot),
    /// What the peer sent does not fit what both should know.
    Forged(Slot, u64),
    /// The exchange could not be computed.
    Failed(Slot, ProviderError),
    /// The disk refused a new key; it is not used.
    NotKept(Slot, u64),
}

/// How far a slot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// No preshared key.
    #[default]
    None,
    /// No preshared key yet; both are about to agree on one.
    Offered,
    /// There is one, but no handshake with it has been seen.
    Set,
    /// A handshake with it has been seen.
    Proven,
}

/// What can be said of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotReport {
    /// How far it is.
    pub protection: Protection,
    /// The key's name.
    pub id: Option<PresharedId>,
    /// The key's number between the two.
    pub epoch: u64,
    /// For how long it has been proven.
    pub age: Option<Duration>,
}
