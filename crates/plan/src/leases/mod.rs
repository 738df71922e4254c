//! Which relay each pair of nodes uses, as one of its ends sees it.
//!
//! Both ends must come to the same relay, and before that they may have no path to each other. So they speak through the
//! relays: who asks a relay for a lease has the relay tell the other end (an offer). The end with the lower UID leads. It
//! asks the relays how far the peer is from each and takes the one with the least sum of round trips; the other end follows
//! the offers. If the other end alone wants a relay, its offer makes the leading end look for one.
//!
//! A lease is given up for another when its relay is silent, refuses, can't be reached any more, or when the other end does
//! not come; and when nothing passes over it although the relay answers: its ports may be blocked. A relay that failed rests
//! before it is tried again. Without failure the leading end looks for a nearer relay every five minutes and moves only for
//! one that is much nearer.
//!
//! Pure: time is an argument, messages are results. Times are monotonic since any fixed moment.

mod sought;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::Slot;
use serde::{Deserialize, Serialize};

use crate::node::NodeUid;
use sought::Sought;

/// How often a lease is asked for again.
pub const REFRESH: Duration = Duration::from_mins(1);
/// How long a lease is kept that is not wanted any more: both slots have left it by then.
pub const KEPT: Duration = Duration::from_mins(1);
/// Time between two questions while there is no answer.
const ASK_PERIOD: Duration = Duration::from_millis(400);
/// A relay that has not answered by then is silent: four questions.
const SILENT: Duration = Duration::from_millis(1600);
/// The other end does not come to a relay if it has not asked there by then. The end that follows waits longer: it can't
/// know where to go instead.
const ALONE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];
/// How long distances are waited for before the best of those that are known is taken.
const DISTANCES: Duration = Duration::from_millis(500);
/// How often the leading end looks for a nearer relay.
const RECONSIDER: Duration = Duration::from_mins(5);
/// A relay that says it is further away than this from a peer does not reach it.
const FARTHEST: Duration = Duration::from_secs(10);
/// A nearer relay must save this much, and a third.
const NEARER: Duration = Duration::from_millis(10);
/// How long a relay that failed rests; doubled with each further failure, up to the second.
const REST: [Duration; 2] = [Duration::from_secs(30), Duration::from_mins(15)];
/// Where all relays rest, one that was silent, or to which the other end did not come, is asked again after this time.
const LAST_RESORT: Duration = Duration::from_secs(10);
/// Two doubts no further apart than this mean that nothing passes, and no nearer than the first that both have the same
/// cause.
const DOUBTS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(90)];

/// What a node asks of a relay about a peer and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// How far is the peer from you?
    Distance,
    /// A lease, new or again; the relay tells the peer.
    Lease {
        /// Whether this end wants it itself, and not only because the other one does.
        wanted: bool,
    },
    /// The lease is not needed any more.
    Release,
}

/// A question to be sent to a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The relay.
    pub relay: NodeUid,
    /// The other end.
    pub peer: NodeUid,
    /// The slot of the tunnel.
    pub slot: Slot,
    /// What is asked.
    pub question: Question,
}

/// What a relay says about a peer and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The round trip from the relay to the peer; none if it does not reach it.
    Distance(Option<Duration>),
    /// There is a lease.
    Leased {
        /// Where this end sends to, at the relay.
        port: u16,
        /// Whether the other end has asked as well: only then does the relay forward.
        both: bool,
        /// The round trip from the relay to the peer; none if it does not reach it.
        distance: Option<Duration>,
    },
    /// There is none.
    Refused(Refusal),
    /// The other end has asked for a lease.
    Offered {
        /// Whether it wants it itself.
        wanted: bool,
    },
}

/// Why a relay refuses a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The node is no relay.
    Off,
    /// Every port is leased.
    Full,
    /// This node has asked for too many.
    TooMany,
    /// The relay does not know the peer as a member of the mesh.
    NotAMember,
}

/// A relay that may be used: a member that has the label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayView {
    /// The round trip to it.
    pub round_trip: Option<Duration>,
    /// Whether the tunnel to it works.
    pub reachable: bool,
}

/// Where an end sends to: a port of a relay, at whichever address the relay is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedPort {
    /// The relay.
    pub relay: NodeUid,
    /// The UDP port there.
    pub port: u16,
}

/// Why there is no lease yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No member is a relay.
    NoRelay,
    /// The tunnels to all relays are down.
    Unreachable,
    /// The last relay that was asked refused.
    Refused(Refusal),
    /// The last relay that was asked was silent.
    Silent,
    /// The other end did not come to the relay.
    Alone,
    /// Nothing passed over the lease although the relay answers: its ports may be closed.
    NothingPasses,
}

/// All leases of this node.
#[derive(Clone, Debug)]
pub struct Leases {
    own: NodeUid,
    wanted: BTreeSet<(NodeUid, Slot)>,
    relays: BTreeMap<NodeUid, RelayView>,
    sought: BTreeMap<(NodeUid, Slot), Sought>,
}

impl Leases {
    /// Starts without leases. `own` is the UID of this node.
    pub const fn new(own: NodeUid) -> Self {
        Self { own, wanted: BTreeSet::new(), relays: BTreeMap::new(), sought: BTreeMap::new() }
    }

    /// Sets for which peers and slots this node wants a lease.
    pub fn set_wanted(&mut self, wanted: BTreeSet<(NodeUid, Slot)>) {
        self.wanted = wanted;
    }

    /// Sets the members that are relays.
    pub fn set_relays(&mut self, relays: BTreeMap<NodeUid, RelayView>) {
        self.relays = relays;
    }

    /// Forgets peers that left the mesh. Leases with them end by themselves.
    pub fn retain(&mut self, is_member: impl Fn(&NodeUid) -> bool) {
        self.sought.retain(|(peer, _), _| is_member(peer));
    }

    /// Takes what a relay says. Only a relay is heard, and only about another node; that the peer is a member is up to the
    /// caller.
    pub fn receive(&mut self, now: Duration, relay: &NodeUid, peer: &NodeUid, slot: Slot, answer: Answer) {
        let is_relay = self.relays.contains_key(relay) && relay != peer && *peer != self.own;
        let key = (peer.clone(), slot);
        match (self.sought.get_mut(&key), answer) {
            _ if !is_relay => {}
            (Some(sought), answer) => sought.receive(now, relay, answer),
            (None, Answer::Offered { wanted: true }) => {
                let mut sought = Sought::new(self.own < *peer);
                sought.receive(now, relay, answer);
                self.sought.insert(key, sought);
            }
            (None, _) => {}
        }
    }

    /// Nothing passes over the lease with a peer: its relay is asked at once, and left if it is silent, or at the second
    /// doubt.
    pub fn doubt(&mut self, now: Duration, peer: &NodeUid, slot: Slot) {
        if let Some(sought) = self.sought.get_mut(&(peer.clone(), slot)) {
            sought.doubt(now);
        }
    }

    /// Nothing has come over the lease with a peer for a while: its relay is asked at once, and left if it is silent.
    pub fn ask(&mut self, now: Duration, peer: &NodeUid, slot: Slot) {
        if let Some(sought) = self.sought.get_mut(&(peer.clone(), slot)) {
            sought.ask(now);
        }
    }

    /// The questions that are due.
    pub fn poll(&mut self, now: Duration) -> Vec<Request> {
        for (peer, slot) in &self.wanted {
            let leads = self.own < *peer;
            self.sought.entry((peer.clone(), *slot)).or_insert_with(|| Sought::new(leads));
        }
        let mut requests = Vec::new();
        self.sought.retain(|(peer, slot), sought| {
            let wanted = self.wanted.contains(&(peer.clone(), *slot));
            let relays = self.relays.iter().filter(|(uid, view)| view.reachable && *uid != peer);
            let usable = relays.map(|(uid, view)| (uid.clone(), view.round_trip)).collect();
            let asked = sought.poll(now, wanted, &usable, self.relays.is_empty());
            requests.extend(asked.into_iter().map(|(relay, question)| Request {
                relay,
                peer: peer.clone(),
                slot: *slot,
                question,
            }));
            !sought.is_over()
        });
        requests
    }

    /// When to call [`Leases::poll`] next, if nothing happens before; none if there is nothing to do.
    pub fn due(&self, now: Duration) -> Option<Duration> {
        self.sought.values().map(|sought| sought.due(now)).min()
    }

    /// The relay's port that leads to a peer's slot, once both ends have a lease there.
    pub fn address(&self, peer: &NodeUid, slot: Slot) -> Option<LeasedPort> {
        self.sought.get(&(peer.clone(), slot))?.address()
    }

    /// Why there is no lease with a peer that is wanted.
    pub fn trouble(&self, peer: &NodeUid, slot: Slot) -> Option<Trouble> {
        self.sought.get(&(peer.clone(), slot))?.trouble()
    }
}
