//! Where nodes say that they are, over the control channel: while the API server is away, and faster than it.
//!
//! A node tells its peers its own list of endpoints ([`Whereabouts::here`]); it says nothing about others. If no path to a
//! peer is left, a few common neighbours are asked: each tells either end what the other one has told it last, and where it
//! sees it ([`Whereabouts::meet`]). That is hearsay: a few more endpoints to try for a moment, besides those that the peer
//! names itself. Neither grants anything, since only the holder of the keys can answer at an endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use keyring::{PerSlot, Slot};

use crate::annotation::Endpoints;
use crate::node::NodeUid;
use crate::paths::is_public;

/// By how much a list's number may exceed the last known one. Who gets hold of a node's keys for a moment can't use up all
/// numbers.
pub const SEQUENCE_STEP: u64 = 1024;
/// Between two lists of a node that are taken: each is a turn. A node repeats what is not taken.
const TOLD_APART: Duration = Duration::from_millis(500);
/// Most neighbours that are asked about a peer at a time.
pub const ASKED: usize = 3;
/// First and longest pause between two times of asking about a peer.
const ASK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// How long a peer is looked for without help if it has never answered.
const ALONE: Duration = Duration::from_secs(5);
/// Most peers that are asked about in one turn.
const PEERS_A_TURN: usize = 8;
/// How long hearsay is tried. It may be false, and must not keep this node from what the peer names itself.
const HEARSAY: Duration = Duration::from_secs(10);
/// How often hearsay about a peer is taken in that time: the neighbour that was asked first may not know yet that the peer
/// has moved. What is false must leave time for what the peer names itself.
const TAKEN: (u32, Duration) = (3, Duration::from_secs(1));
/// Most endpoints of a slot that are tried by hearsay.
const MAX_HEARSAY: usize = 2;
/// How often a node may ask about the same peer.
const ANSWER: Duration = Duration::from_secs(1);
/// Most pairs of nodes whose last question is remembered.
const MAX_ANSWERED: usize = 1024;

/// What was heard of a node besides its annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Its own list: counts while it is later than the one that is published.
    pub told: Option<Endpoints>,
    /// What a neighbour says that it said.
    pub hearsay: Option<Endpoints>,
}

impl Heard {
    /// The endpoints of a slot that are tried by hearsay, with the ports that the node publishes.
    pub fn hearsay_of(&self, slot: Slot, ports: PerSlot<u16>) -> Vec<SocketAddr> {
        let Some(list) = &self.hearsay else { return Vec::new() };
        let port = *ports.get(slot);
        let public = list.external.iter().chain(list.addresses.iter().filter(|address| is_public(**address)));
        let direct = public.map(|address| SocketAddr::new(*address, port));
        list.observed.get(slot).iter().copied().chain(direct).take(MAX_HEARSAY).collect()
    }
}

/// Why a node's list is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is not later than the last known one.
    Stale,
    /// Its number does not follow the last known one.
    Jumped,
    /// Another one was taken a moment ago.
    Early,
}

/// What nodes have said, and whom to ask.
#[derive(Clone, Debug, Default)]
pub struct Whereabouts {
    heard: BTreeMap<NodeUid, Heard>,
    /// When each node's list was taken, and the number of the one that it published then.
    taken: BTreeMap<NodeUid, (Duration, u64)>,
    /// Until when hearsay is tried, since when, and how much of it was taken in that time.
    until: BTreeMap<NodeUid, (Duration, Duration, u32)>,
    /// Peers without a path: when to ask the next time, and the pause after it.
    searched: BTreeMap<NodeUid, (Duration, Duration)>,
    /// Peers that have answered since this daemon started.
    known: BTreeSet<NodeUid>,
    /// When each node asked about each peer.
    answered: BTreeMap<(NodeUid, NodeUid), Duration>,
}

impl Whereabouts {
    /// What was heard, by node.
    pub const fn heard(&self) -> &BTreeMap<NodeUid, Heard> {
        &self.heard
    }

    /// The list that a node has told, if it is later than its published one.
    pub fn told(&self, uid: &NodeUid) -> Option<&Endpoints> {
        self.heard.get(uid)?.told.as_ref()
    }

    /// Takes a node's own list; `published` is the number of the one that it publishes.
    pub fn here(
        &mut self,
        now: Duration,
        uid: &NodeUid,
        list: Endpoints,
        published: u64,
    ) -> Result<(), Refused> {
        let known = self.told(uid).map_or(published, |told| published.max(told.sequence));
        if list.sequence <= known {
            return Err(Refused::Stale);
        }
        if list.sequence - known > SEQUENCE_STEP {
            return Err(Refused::Jumped);
        }
        if self.taken.get(uid).is_some_and(|(at, _)| now < *at + TOLD_APART) {
            return Err(Refused::Early);
        }
        self.taken.insert(uid.clone(), (now, published));
        self.heard.entry(uid.clone()).or_default().told = Some(list);
        Ok(())
    }

    /// A neighbour says that a peer looks for this node, and where that peer is. Says whether to look for the peer now.
    pub fn meet(&mut self, now: Duration, uid: &NodeUid, list: Endpoints) -> bool {
        let (until, count) = match self.until.get(uid) {
            Some((until, taken, count)) if now < *until => {
                if *count >= TAKEN.0 || now < *taken + TAKEN.1 {
                    return false;
                }
                (*until, *count + 1)
            }
            _ => (now + HEARSAY, 1),
        };
        self.until.insert(uid.clone(), (until, now, count));
        self.heard.entry(uid.clone()).or_default().hearsay = Some(list);
        true
    }

    /// Forgets what no longer counts: lists that are published by now, those of a node that has published another one since
    /// (it tells anew what is later; its numbers may start over with its daemon), hearsay after a while, and nodes that are
    /// not in the mesh. `published` is the number of a member's published list.
    pub fn retain(&mut self, now: Duration, published: impl Fn(&NodeUid) -> Option<u64>) {
        let until = &self.until;
        self.heard.retain(|uid, heard| {
            let number = published(uid);
            let then = self.taken.get(uid).map(|(_, published)| *published);
            heard.told.take_if(|told| number.is_none_or(|number| told.sequence <= number) || number != then);
            heard.hearsay.take_if(|_| until.get(uid).is_none_or(|(until, ..)| now >= *until));
            heard.told.is_some() || heard.hearsay.is_some()
        });
        self.taken.retain(|uid, _| published(uid).is_some());
        self.until.retain(|_, (until, ..)| now < *until);
        self.answered.retain(|_, at| now < *at + ANSWER);
        self.known.retain(|uid| published(uid).is_some());
    }

    /// Whom to ask about which peers now. `peers` are all of them, each with whether there is a path to it; `neighbours` are
    /// those to ask, the best first.
    pub fn ask<'a>(
        &mut self,
        now: Duration,
        peers: impl Iterator<Item = (&'a NodeUid, bool)>,
        neighbours: &[NodeUid],
    ) -> Vec<(NodeUid, NodeUid)> {
        let mut former = std::mem::take(&mut self.searched);
        let mut questions = Vec::new();
        let mut asked = 0;
        for (uid, up) in peers {
            if up {
                self.known.insert(uid.clone());
                continue;
            }
            let first = if self.known.contains(uid) { now } else { now + ALONE };
            let (mut due, mut pause) = former.remove(uid).unwrap_or((first, ASK.0));
            let others = neighbours.iter().filter(|neighbour| *neighbour != uid).take(ASKED);
            let due_now: Vec<_> = others.map(|neighbour| (neighbour.clone(), uid.clone())).collect();
            if now >= due && asked < PEERS_A_TURN && !due_now.is_empty() {
                questions.extend(due_now);
                asked += 1;
                due = now + pause;
                pause = (pause * 2).min(ASK.1);
            }
            self.searched.insert(uid.clone(), (due, pause));
        }
        questions
    }

    /// Whether to answer a node that looks for a peer.
    pub fn answers(&mut self, now: Duration, from: &NodeUid, about: &NodeUid) -> bool {
        let pair = (from.clone(), about.clone());
        let early = self.answered.get(&pair).is_some_and(|at| now < *at + ANSWER);
        if early || from == about || self.answered.len() >= MAX_ANSWERED {
            return false;
        }
        self.answered.insert(pair, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(sequence: u64, observed: &str) -> Endpoints {
        let observed = PerSlot::from_fn(|_| vec![observed.parse().unwrap()]);
        Endpoints { observed, sequence, ..Endpoints::default() }
    }

    fn uid(text: &str) -> NodeUid {
        NodeUid::new(text)
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_later_list_counts_and_a_number_only_steps() {
        let (mut places, p) = (Whereabouts::default(), uid("p"));
        assert_eq!(places.here(S, &p, list(7, "192.0.2.1:1"), 7), Err(Refused::Stale));
        assert_eq!(places.here(S, &p, list(8 + SEQUENCE_STEP, "192.0.2.1:1"), 7), Err(Refused::Jumped));
        assert_eq!(places.here(S, &p, list(8, "192.0.2.1:1"), 7), Ok(()));
        assert_eq!(places.here(S, &p, list(8, "192.0.2.9:1"), 7), Err(Refused::Stale));
        assert_eq!(places.told(&p), Some(&list(8, "192.0.2.1:1")));
        // Published by now: the annotation counts again, also if another one with a lower number follows.
        places.retain(S, |_| Some(8));
        assert_eq!(places.told(&p), None);
        assert_eq!(places.here(S * 2, &p, list(3, "192.0.2.1:1"), 2), Ok(()));
        places.retain(S * 2, |_| None);
        assert!(places.heard().is_empty(), "not a member any more");
    }

    #[test]
    fn a_list_gives_way_to_what_is_published_after_it_whatever_its_number() {
        let (mut places, p) = (Whereabouts::default(), uid("p"));
        places.here(S, &p, list(10, "192.0.2.1:1"), 7).unwrap();
        places.retain(S, |_| Some(7));
        assert!(places.told(&p).is_some());
        // Its daemon has started anew, and goes on from what it had published.
        places.retain(S, |_| Some(8));
        assert_eq!(places.told(&p), None);
    }

    #[test]
    fn a_node_that_tells_lists_all_the_time_is_heard_twice_a_second() {
        let (mut places, p) = (Whereabouts::default(), uid("p"));
        let millis = Duration::from_millis;
        let taken =
            (1_u64..1000).filter(|n| places.here(millis(n * 10), &p, list(n + 7, "192.0.2.1:1"), 7).is_ok());
        assert_eq!(taken.count(), 20);
    }

    #[test]
    fn hearsay_replaces_nothing_and_ends() {
        let (mut places, p) = (Whereabouts::default(), uid("p"));
        places.here(S, &p, list(8, "192.0.2.1:1"), 7).unwrap();
        assert!(places.meet(S, &p, list(9, "192.0.2.9:1")));
        assert!(!places.meet(S, &p, list(10, "192.0.2.10:1")), "one at a time");
        let taken = (2..11).filter(|second| places.meet(S * *second, &p, list(9, "192.0.2.9:1"))).count();
        assert_eq!(taken, 2, "a few in all, until hearsay ends");
        let heard = &places.heard()[&p];
        assert_eq!(heard.told, Some(list(8, "192.0.2.1:1")));
        let ports = PerSlot { a: 5, b: 6 };
        assert_eq!(heard.hearsay_of(Slot::A, ports), ["192.0.2.9:1".parse().unwrap()]);
        places.retain(S + HEARSAY, |_| Some(7));
        assert_eq!(places.heard()[&p], Heard { told: Some(list(8, "192.0.2.1:1")), hearsay: None });
    }

    #[test]
    fn no_more_than_a_few_endpoints_are_tried_by_hearsay() {
        let sockets = (1..=2).map(|port| SocketAddr::from(([192, 0, 2, 9], port))).collect();
        let external = (1..=4).map(|last| [203, 0, 113, last].into()).collect();
        let many =
            Endpoints { external, observed: PerSlot { a: sockets, b: Vec::new() }, ..list(9, "192.0.2.9:1") };
        let heard =
            Heard { told: None, hearsay: Some(Endpoints { observed: many.observed.clone(), ..many }) };
        let ports = PerSlot { a: 5, b: 6 };
        for slot in Slot::ALL {
            assert_eq!(heard.hearsay_of(slot, ports).len(), MAX_HEARSAY);
        }
        assert_eq!(heard.hearsay_of(Slot::B, ports)[0], "203.0.113.1:6".parse().unwrap());
    }

    #[test]
    fn a_few_neighbours_are_asked_less_and_less_often() {
        let mut places = Whereabouts::default();
        let neighbours = ["a", "b", "c", "d"].map(uid);
        let p = uid("p");
        assert!(places.ask(Duration::ZERO, [(&p, true)].into_iter(), &neighbours).is_empty());
        let mut times = Vec::new();
        for second in 1..=300 {
            let questions = places.ask(S * second, [(&p, false)].into_iter(), &neighbours);
            assert!(questions.is_empty() || questions.len() == ASKED);
            times.extend((!questions.is_empty()).then_some(second));
        }
        assert_eq!(times, [1, 3, 7, 15, 31, 63, 123, 183, 243]);
        // One that has never answered is looked for alone at first; a neighbour is not asked about itself.
        let q = uid("a");
        assert!(places.ask(S * 400, [(&q, false)].into_iter(), &neighbours).is_empty());
        let questions = places.ask(S * 400 + ALONE, [(&q, false)].into_iter(), &neighbours);
        assert_eq!(questions.first(), Some(&(uid("b"), q)));
    }

    #[test]
    fn a_node_that_asks_all_the_time_is_answered_now_and_then() {
        let (mut places, x) = (Whereabouts::default(), uid("x"));
        assert!(places.answers(S, &x, &uid("p")) && !places.answers(S, &x, &uid("p")));
        assert!(!places.answers(S, &x, &x));
        let answered = (0..5000).filter(|number| places.answers(S, &x, &uid(&number.to_string()))).count();
        assert_eq!(answered, MAX_ANSWERED - 1);
        places.retain(S * 2, |_| None);
        assert!(places.answers(S * 2, &x, &uid("p")));
    }
}
