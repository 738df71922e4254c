//! What a node's daemon found when it was asked to verify: facts, without a judgement.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PublicKey, Slot};
use serde::{Deserialize, Serialize};

use crate::pq::{PairStatus, PqSlotStatus};

/// The largest packet that daemons probe with, in bytes: what fits common jumbo frames.
pub const LARGEST_PROBED: u32 = 9028;

/// What one node's daemon found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Name of the node.
    pub node: String,
    /// UID of its Node; empty while that is unknown.
    pub uid: String,
    /// Version of its daemon.
    pub version: String,
    /// Unix time, in seconds, at the end, by the node's clock.
    pub taken_at: u64,
    /// How long it took, in milliseconds.
    pub took_milliseconds: u64,
    /// How long the daemon had been running, in seconds.
    pub running_seconds: u64,
    /// Whether keys of this node are being replaced, so that two nodes may not agree on them at this moment.
    pub rotating: bool,
    /// Its own keys.
    pub keys: PerSlot<OwnKey>,
    /// The guard, and what it has let pass.
    pub guard: GuardEvidence,
    /// What the API server says to forgeries.
    pub fence: FenceEvidence,
    /// The audit trail.
    pub trail: TrailEvidence,
    /// Each peer, by name.
    pub peers: Vec<PeerEvidence>,
}

/// One of the node's own keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnKey {
    /// The one that its Node announces, as the API server has last shown it.
    pub announced: Option<PublicKey>,
    /// The one that the device has.
    pub held: Option<PublicKey>,
}

/// The guard, and what it has let pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardEvidence {
    /// Whether every rule and every member of the sets is as the daemon wants them, read from the kernel at the start and at the
    /// end; none if it could not be read.
    pub in_place: Option<bool>,
    /// Why it could not be read.
    pub error: Option<String>,
    /// Whether it belongs to the daemon, so that no other program can change it.
    pub owned: bool,
    /// How often the daemon has found it missing or changed since it started, and put it back.
    pub repairs: u64,
    /// Seconds since the last time.
    pub repaired_seconds_ago: Option<u64>,
    /// Packets with a pod address that were about to leave outside the mesh, since the table was last set.
    pub seen: u64,
    /// Those of them that were dropped.
    pub dropped: u64,
    /// Those that were not, since the daemon started: they left unencrypted.
    pub escaped: u64,
    /// Packets with a pod address that arrived outside the mesh, since the table was last set. They were dropped.
    pub arrived: u64,
    /// Packets that the daemon itself tried to send unencrypted, for each pod range. All have to be caught.
    pub controls: Vec<Control>,
}

/// The positive control for one pod range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// The range that the source address was from.
    pub range: IpNetwork,
    /// The link that it should have left by.
    pub link: String,
    /// How many were sent; zero if none could be.
    pub sent: u64,
    /// By how much [`GuardEvidence::seen`] grew meanwhile.
    pub seen: u64,
    /// By how much [`GuardEvidence::dropped`] grew meanwhile.
    pub dropped: u64,
    /// Why none could be sent.
    pub error: Option<String>,
}

/// What the API server says to forgeries in the daemon's own name. Nothing is written whatever it says: they are dry runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceEvidence {
    /// The Node that was to be forged; none without another one.
    pub other: Option<String>,
    /// Each forgery.
    pub forgeries: Vec<Forgery>,
}

/// One forgery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgery {
    /// What was to be forged.
    pub what: Forged,
    /// Whether it was refused; none if the API server could not be asked.
    pub refused: Option<bool>,
    /// Who refused it, in the API server's words, or why it could not be asked.
    pub words: String,
}

/// What a forgery changes on another Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forged {
    /// Its keys: the annotation `meshd.dev/state`.
    Keys,
    /// Its address: `status.addresses`.
    Address,
}

impl Forged {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Keys, Self::Address];

    /// What it is in a sentence.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Address => "address",
        }
    }
}

/// The node's audit trail, and what it has recorded about those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailEvidence {
    /// Number of the first line; zero if there is none.
    pub first: u64,
    /// Number of the last line.
    pub last: u64,
    /// What is wrong with it, and with the witness trail; empty if it is whole.
    pub problems: Vec<String>,
    /// Why it could not be read.
    pub error: Option<String>,
    /// The newest lines by their number, each by its hash.
    pub lines: BTreeMap<u64, String>,
    /// The last line of each other node's trail that this one has recorded, by the UID of its Node.
    pub witnessed: BTreeMap<String, WitnessedLine>,
}

/// A line of another node's trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessedLine {
    /// Its number.
    pub line: u64,
    /// Its hash.
    pub hash: String,
}

/// One peer, as seen from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEvidence {
    /// Its name.
    pub node: String,
    /// UID of its Node.
    pub uid: String,
    /// Its address inside the mesh, which echoes have to come from.
    pub address: Option<IpAddr>,
    /// The slot that packets to it take.
    pub active: Option<Slot>,
    /// MTU of the routes to it, in bytes.
    pub mtu: u32,
    /// State of the preshared key exchange with it.
    pub pq: PairStatus,
    /// Both slots.
    pub slots: PerSlot<SlotEvidence>,
}

/// One slot of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotEvidence {
    /// The key that its Node announces, as the API server has last shown it.
    pub announced: Option<PublicKey>,
    /// The key by which the device knows it; none if it does not.
    pub held: Option<PublicKey>,
    /// Seconds since the last completed handshake, after the probes.
    pub handshake_age: Option<u64>,
    /// How many small probes were sent.
    pub tries: u32,
    /// Time until the first was answered, in microseconds.
    pub echo_microseconds: Option<u64>,
    /// Where the answer came from.
    pub echo_from: Option<IpAddr>,
    /// Whether a packet of the MTU's size was answered; none if none was sent.
    pub full_size_passes: Option<bool>,
    /// Whether the kernel refused to send one byte more in one piece; none if that was not tried.
    pub larger_refused: Option<bool>,
    /// Bytes of the IP packets that were probes, as far as they were sent.
    pub probed: u64,
    /// Bytes that the device sent to the peer meanwhile; none if it was added anew.
    pub sent: Option<u64>,
    /// Bytes that the device received from the peer meanwhile; none if it was added anew.
    pub received: Option<u64>,
    /// The preshared key.
    pub pq: PqSlotStatus,
}
