//! Inputs, effects and settings of a pairing: plain data without secrets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::agreement::StaticKeys;
use super::message::{Message, Refusal};
use super::provider::ProviderError;
use crate::rotation::PeerId;
use crate::{PerSlot, PresharedId, Slot};

/// Whether preshared keys are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// No new ones. Existing ones stay until a static key of their slot is replaced.
    Off,
    /// With every peer that supports them; traffic with other peers passes without.
    #[default]
    Prefer,
    /// Pod traffic passes only where a preshared key is in use.
    Require,
}

/// The settings for preshared keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PqSettings {
    /// Whether they are used.
    pub mode: Mode,
    /// Age at which a key is renewed; zero: only with a static key.
    pub interval: Duration,
    /// How long a slot must have been idle before its key changes: longer than a packet can be in flight.
    pub drain: Duration,
    /// How often a hello is sent over each slot while all is well.
    pub hello_interval: Duration,
    /// How long a rotation waits for a new preshared key that is not required.
    pub rotation_wait: Duration,
    /// After how long without any answer the key of slot a is dropped, so that two nodes with different keys
    /// can reach each other again.
    pub silence_timeout: Duration,
}

impl Default for PqSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Prefer,
            interval: Duration::from_hours(1),
            drain: Duration::from_secs(1),
            hello_interval: Duration::from_mins(1),
            rotation_wait: Duration::from_secs(15),
            silence_timeout: Duration::from_secs(30),
        }
    }
}

/// The peer's state in the device of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The preshared key that the device has for the peer.
    pub preshared: Option<PresharedId>,
    /// Whether a handshake has completed since the device got the key. A device must drop its sessions with a
    /// peer when that peer's preshared key changes.
    pub handshake: bool,
}

/// Inputs, effects and settings of a pairing: plain data without secrets.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The UIDs of both ends; they change if the Node of a running node is recreated.
    Ids {
        /// This node.
        own: PeerId,
        /// The peer.
        peer: PeerId,
    },
    /// The static keys of both ends on each slot; none while one of them is unknown or not in its device.
    StaticKeys(PerSlot<Option<StaticKeys>>),
    /// The peer's state in the devices; none where it is in no device.
    Engine(PerSlot<Option<Entry>>),
    /// The slot that carries pod traffic to the peer from now on; none if there is no route.
    Tx(Option<Slot>),
    /// The slot that must not carry traffic because one of the two replaces its static key.
    Drained(Option<Slot>),
    /// A message from the peer.
    Received {
        /// The slot that it arrived on.
        over: Slot,
        /// The message.
        message: Message,
    },
    /// What [`super::Pairing::to_store`] returned at the last [`Effect::Persist`] is on disk.
    Persisted,
    /// It could not be written; the previous state is still in place.
    PersistFailed,
}

/// What the caller must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a message to the peer, once.
    Send {
        /// The slot to send it on.
        over: Slot,
        /// The message.
        message: Message,
    },
    /// Write [`super::Pairing::to_store`] to disk; then report the result.
    Persist,
    /// One of the pairing's results has changed: update devices and routes, then report their state.
    Apply,
    /// An event for the log.
    Note(Note),
}

/// An event in the life of a preshared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Both ends have a new key; this end uses it from now on.
    Agreed(Slot, u64, PresharedId),
    /// A handshake has completed with it.
    Proven(Slot, u64, PresharedId),
    /// A key was dropped because a static key that it was bound to was replaced.
    StaticKeyReplaced(Slot, u64),
    /// A key was dropped because the peer has not answered over either slot for long: it may hold another
    /// one.
    GivenUp(Slot, u64),
    /// The peer refuses.
    Refused(Slot, u64, Refusal),
    /// The peer holds a different key.
    Differs(Slot),
    /// The peer's key confirmation failed.
    ConfirmationFailed(Slot, u64),
    /// The exchange could not be computed.
    Failed(Slot, ProviderError),
    /// A new key could not be written to disk; it is not used.
    NotStored(Slot, u64),
}

/// The state of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protection {
    /// No preshared key.
    #[default]
    None,
    /// No preshared key yet; an exchange is running.
    Offered,
    /// There is one, but no handshake with it has completed yet.
    Set,
    /// A handshake with it has completed.
    Proven,
}

/// The status of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotReport {
    /// Its state.
    pub protection: Protection,
    /// The key's ID.
    pub id: Option<PresharedId>,
    /// The key's epoch between the two nodes.
    pub epoch: u64,
    /// For how long it has been proven.
    pub age: Option<Duration>,
}
