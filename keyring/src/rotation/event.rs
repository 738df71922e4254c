//! What the rotation is told and what it asks for: plain data, so that a test can stand in for the daemon.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::{Journal, KeyRecord};
use super::pair::{PeerId, Stance};
use crate::{PublicKey, Slot};

/// The time as the caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since some start of the caller's; never goes back. All waiting is measured with it.
    pub elapsed: Duration,
    /// Seconds since 1970; may jump. Stands in the journal as the age of keys, and is read once, at the start.
    pub unix: u64,
}

/// Why a rotation is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The keys are old enough.
    Age,
    /// Somebody asked.
    Request,
    /// A key may be known to others: both are replaced at once, and traffic breaks until peers know the new ones.
    Emergency,
}

/// What the machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Nothing but that time has passed.
    Tick,
    /// A rotation is wanted.
    Rotate(Cause),
    /// Keys that were made before this Unix time are wanted replaced once it has come; none asks for nothing. Stands
    /// until another one is told.
    RenewBefore(Option<u64>),
    /// The keys that [`Effect::Generate`] asked for; their private halves are held for the next [`Effect::Persist`].
    Generated(Vec<PublicKey>),
    /// The journal is on disk.
    Persisted,
    /// The journal could not be written; the former one stands.
    PersistFailed,
    /// Devices, routes and the memory of peers are as the announcement of this generation asks.
    Applied(u64),
    /// Our own Node shows the announcement of this generation.
    Published(u64),
    /// Our own Node shows a generation that is not ours and not below ours.
    Foreign(u64),
    /// The present peers.
    Peers(BTreeSet<PeerId>),
    /// What a peer announces.
    Stance(Stance),
    /// A peer's answer to [`Effect::Ask`].
    Answer {
        /// The peer.
        peer: PeerId,
        /// The number of the question.
        nonce: u64,
        /// The generation of ours that the peer heeds.
        seen: u64,
        /// The slot that the peer sends to us on.
        tx: Slot,
        /// The slot that the answer came over.
        over: Slot,
        /// Whether that slot's preshared key is as the configuration asks.
        protected: bool,
    },
    /// Whether the API server answers.
    Connected(bool),
    /// A peer is alive: something arrived from it.
    Heard(PeerId),
    /// Pods' packets arrived on a slot.
    Received(Slot),
}

/// What the machine wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this many private keys.
    Generate(usize),
    /// Write the journal with the private halves of all its keys, and no other private key; then say so.
    Persist(Journal),
    /// Make devices and routes as the journal says; then say so.
    Apply,
    /// Tell the peers.
    Announce,
    /// Ask a peer what it heeds.
    Ask(Ask),
    /// Wipe a private key from memory. It is in no file any more.
    Destroy(KeyRecord),
    /// Something that auditors want to know.
    Note(Note),
}

/// A question to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The peer.
    pub peer: PeerId,
    /// Number of the question; answers repeat it.
    pub nonce: u64,
    /// The slot that it must go over.
    pub over: Slot,
}

/// An event in the life of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A rotation begins.
    Begun(Cause),
    /// A new key for a slot is stored.
    Staged(Slot, PublicKey),
    /// A slot is being left.
    Draining(Slot, PublicKey),
    /// A new key is in its slot and announced.
    Installed(Slot, PublicKey),
    /// A peer has acknowledged that it does not send on this slot.
    Acknowledged(PeerId, Slot),
    /// A peer has answered over this key.
    Verified(PeerId, Slot, PublicKey),
    /// This key is the one that peers should use.
    Active(Slot, PublicKey),
    /// A silent peer is no longer waited for.
    Skipped(PeerId),
    /// A peer that is alive is no longer waited for, because the keys are too old.
    Forced(PeerId),
    /// The rotation can't go on because of these peers.
    Blocked(Slot, Vec<PeerId>),
    /// The new key was given up in favour of the former one.
    RolledBack(Slot, PublicKey, Vec<PeerId>),
    /// A key is gone from files and memory.
    Destroyed(Slot, PublicKey, Duration),
    /// The rotation is over, after this long.
    Finished(Duration),
    /// The generation was raised above one that was found on our Node.
    Outgrown(u64),
}

impl Cause {
    /// The one of two that can wait less.
    pub(super) const fn graver(self, other: Self) -> Self {
        match (self, other) {
            (Self::Emergency, _) | (_, Self::Emergency) => Self::Emergency,
            (Self::Request, _) | (_, Self::Request) => Self::Request,
            (Self::Age, Self::Age) => Self::Age,
        }
    }
}
