//! Inputs and effects of the rotation: plain data, so that a test can take the daemon's place.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::{Journal, KeyRecord};
use super::pair::{PeerId, Stance};
use crate::{PublicKey, Slot};

/// The current time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since an origin that the caller chose. All timeouts are measured with it.
    pub elapsed: Duration,
    /// Seconds since 1970; may jump. Read once, at the start, for the age of keys.
    pub unix: u64,
}

/// Why keys are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The keys have reached their age.
    Age,
    /// An operator requested it.
    Request,
    /// A key may be compromised: both are replaced at once, and traffic is interrupted until peers know the
    /// new ones.
    Emergency,
}

/// An input of the state machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// Start a rotation.
    Rotate(Cause),
    /// Replace keys older than this Unix time once it has come; `None` clears the request. Holds until the
    /// next such input.
    RenewBefore(Option<u64>),
    /// The public halves of the keys that [`Effect::Generate`] requested; the caller holds the private halves
    /// for the next [`Effect::Persist`].
    Generated(Vec<PublicKey>),
    /// The journal is on disk.
    Persisted,
    /// The journal could not be written; the previous one is still in place.
    PersistFailed,
    /// Devices, routes and the cache of peers match the announcement of this generation.
    Applied(u64),
    /// The own Node shows the announcement of this generation.
    Published(u64),
    /// The own Node shows a generation that this node did not write and that is not lower than its own.
    ForeignGeneration(u64),
    /// The current set of peers.
    Peers(BTreeSet<PeerId>),
    /// What a peer announces.
    Stance(Stance),
    /// A peer's answer to [`Effect::Ask`].
    Answer {
        /// The peer.
        peer: PeerId,
        /// The nonce of the question.
        nonce: u64,
        /// The generation of this node that the peer has applied.
        seen: u64,
        /// The slot that the peer sends to this node on.
        tx: Slot,
        /// The slot that the answer arrived on.
        over: Slot,
        /// Whether that slot has the preshared key that the configuration requires.
        protected: bool,
    },
    /// Whether the API server is reachable.
    Connected(bool),
    /// Something arrived from a peer.
    PeerAlive(PeerId),
    /// Pod traffic arrived on a slot.
    SlotTraffic(Slot),
}

/// What the caller must do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Generate this many private keys.
    Generate(usize),
    /// Write the journal with the private halves of all its keys, and no other private key; then report the
    /// result.
    Persist(Journal),
    /// Make devices and routes match the journal; then report it.
    Apply,
    /// Announce the journal's state to peers.
    Announce,
    /// Ask a peer which announcement it has applied.
    Ask(Ask),
    /// Wipe a private key from memory. No file contains it any more.
    Destroy(KeyRecord),
    /// An event for logs and the audit trail.
    Note(Note),
}

/// A question to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The peer.
    pub peer: PeerId,
    /// Nonce of the question; the answer repeats it.
    pub nonce: u64,
    /// The slot to send it on.
    pub over: Slot,
}

/// An event in the life of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A rotation starts.
    Begun(Cause),
    /// A new key for a slot is on disk.
    Staged(Slot, PublicKey),
    /// Peers are asked to stop sending on a slot.
    Draining(Slot, PublicKey),
    /// A new key is in its slot and is announced.
    Installed(Slot, PublicKey),
    /// A peer has acknowledged that it does not send on this slot.
    Acknowledged(PeerId, Slot),
    /// A peer has answered over this key.
    Verified(PeerId, Slot, PublicKey),
    /// Peers should use this key from now on.
    Active(Slot, PublicKey),
    /// The rotation no longer waits for a peer that is silent.
    Skipped(PeerId),
    /// The rotation no longer waits for a peer that is alive, because the keys are too old.
    Forced(PeerId),
    /// These peers block the rotation.
    Blocked(Slot, Vec<PeerId>),
    /// The new key was abandoned and the previous one restored.
    RolledBack(Slot, PublicKey, Vec<PeerId>),
    /// A key was removed from all files and from memory.
    Destroyed(Slot, PublicKey, Duration),
    /// The rotation is complete, after this long.
    Finished(Duration),
    /// The generation was raised above one that was found on the own Node.
    Outgrown(u64),
}

impl Cause {
    /// The more urgent of two causes.
    pub(super) const fn more_urgent(self, other: Self) -> Self {
        match (self, other) {
            (Self::Emergency, _) | (_, Self::Emergency) => Self::Emergency,
            (Self::Request, _) | (_, Self::Request) => Self::Request,
            (Self::Age, Self::Age) => Self::Age,
        }
    }
}
