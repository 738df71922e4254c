//! The peers of the control channel, with their keys and sessions: set by the control loop, used by the tasks that
//! read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyring::rotation::PeerId;
use keyring::{ChannelKeys, PerSlot, PrivateKey, PublicKey, Slot};
use tokio::time::Instant;

use super::message::{MAX_PROBE_LEN, Message, UNAUTHENTICATED};
use super::rate_limit::RateLimit;
use super::session::{self, OVERHEAD, Opened, Refused, Session};
use status::ControlStatus;

/// What the channel must know of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Correspondent {
    /// UID of its Node.
    pub(crate) id: PeerId,
    /// Its public keys.
    pub(crate) keys: PerSlot<PublicKey>,
    /// Whether messages to and from it are not authenticated: it runs a version that can't.
    pub(crate) unauthenticated: bool,
}

/// What a datagram was.
#[derive(Debug)]
pub(super) enum Taken {
    /// A peer's message.
    Message(PeerId, Message),
    /// Part of the session only.
    Session,
    /// Nothing to act on.
    Refused(Refused),
}

/// All peers.
#[derive(Debug)]
pub(crate) struct Peers {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    own: PerSlot<Option<Own>>,
    peers: BTreeMap<IpAddr, Peer>,
    rate_limit: RateLimit,
    counts: Counts,
}

#[derive(Debug)]
struct Own {
    public: PublicKey,
    /// Replaced when the slot's key is, which wipes it.
    private: PrivateKey,
}

#[derive(Debug)]
struct Peer {
    known: Correspondent,
    slots: PerSlot<Connection>,
}

/// Derived and created when they are first needed.
#[derive(Debug, Default)]
struct Connection {
    keys: Option<ChannelKeys>,
    session: Option<Session>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    messages: u64,
    sessions: u64,
    refused: [u64; Refused::ALL.len()],
    /// Messages that could not wait for a session.
    unsent: u64,
}

impl Peers {
    /// No peers.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), state: Mutex::default() }
    }

    /// Sets this node's keys and all peers, by mesh address. What stays the same keeps its sessions.
    pub(crate) fn set<'a>(
        &self,
        private: impl Fn(&PublicKey) -> Option<&'a PrivateKey>,
        own: &PerSlot<PublicKey>,
        peers: BTreeMap<IpAddr, Correspondent>,
    ) {
        let mut state = self.lock();
        for (slot, public) in own.iter() {
            if state.own.get(slot).as_ref().is_some_and(|own| own.public == *public) {
                continue;
            }
            *state.own.get_mut(slot) =
                private(public).map(|private| Own { public: *public, private: private.duplicate() });
            for peer in state.peers.values_mut() {
                peer.slots.get_mut(slot).keys = None;
            }
        }
        state.peers.retain(|address, peer| {
            peers.get(address).is_some_and(|correspondent| correspondent.id == peer.known.id)
        });
        for (address, known) in peers {
            state.take(address, known);
        }
    }

    /// Sets some peers, by mesh address, after those at the addresses in `left` were forgotten. All others stay.
    pub(crate) fn set_some(
        &self,
        left: impl IntoIterator<Item = IpAddr>,
        peers: impl IntoIterator<Item = (IpAddr, Correspondent)>,
    ) {
        let mut state = self.lock();
        for address in left {
            state.peers.remove(&address);
        }
        for (address, known) in peers {
            state.take(address, known);
        }
    }

    /// The datagrams that send a message to the peer at a mesh address.
    pub(super) fn seal(&self, over: Slot, to: IpAddr, message: &Message) -> Vec<Vec<u8>> {
        let now = self.started.elapsed();
        let mut state = self.lock();
        let State { own, peers, counts, .. } = &mut *state;
        let Some(peer) = peers.get_mut(&to) else { return Vec::new() };
        if peer.known.unauthenticated {
            return vec![message.encode(&[UNAUTHENTICATED])];
        }
        let Some((keys, session)) = peer.connection(own, over) else { return Vec::new() };
        // A probe has a given length on the wire.
        let body = match message {
            Message::Probe { nonce, len } => {
                let len = usize::from(*len).saturating_sub(OVERHEAD);
                Message::Probe { nonce: *nonce, len: u16::try_from(len).unwrap_or_default() }.encode(&[])
            }
            other => other.encode(&[]),
        };
        let datagrams = session.seal(now, keys, &body, &mut random);
        counts.unsent += session.take_unsent();
        datagrams
    }

    /// Takes a datagram that arrived on a slot from a mesh address; returns what it was and what to send there.
    pub(super) fn open(&self, over: Slot, from: IpAddr, datagram: &[u8]) -> (Taken, Vec<Vec<u8>>) {
        let now = self.started.elapsed();
        let mut state = self.lock();
        let (taken, reply) = state.open(now, over, from, datagram);
        match &taken {
            Taken::Message(..) => state.counts.messages += 1,
            Taken::Session => state.counts.sessions += 1,
            Taken::Refused(why) => state.counts.refused[*why as usize] += 1,
        }
        (taken, reply)
    }

    /// Counts a message that was taken, and then dropped because the daemon's queue is full.
    pub(super) fn dropped(&self) {
        let counts = &mut self.lock().counts;
        counts.messages -= 1;
        counts.refused[Refused::Queue as usize] += 1;
    }

    /// What was received so far.
    pub(crate) fn status(&self) -> ControlStatus {
        let counts = self.lock().counts;
        let of = |why: Refused| counts.refused[why as usize];
        let refused = Refused::ALL.into_iter().filter(|why| *why != Refused::Sender);
        ControlStatus {
            received: counts.messages,
            session_messages: counts.sessions,
            unknown_senders: of(Refused::Sender),
            refused: refused.map(|why| (why.as_str().to_owned(), of(why))).collect(),
            unsent: counts.unsent,
        }
    }

    /// What is known of each peer, in the order of mesh addresses.
    #[cfg(test)]
    pub(crate) fn known(&self) -> Vec<Correspondent> {
        self.lock().peers.values().map(|peer| peer.known.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock panics; if it did, the counters would still be valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes what is known of the peer at an address. What stays the same of it keeps its sessions.
    fn take(&mut self, address: IpAddr, known: Correspondent) {
        match self.peers.get_mut(&address).filter(|peer| peer.known.id == known.id) {
            None => {
                let peer = Peer { known, slots: PerSlot::from_fn(|_| Connection::default()) };
                self.peers.insert(address, peer);
            }
            Some(peer) if peer.known != known => {
                for slot in Slot::ALL {
                    if peer.known.keys.get(slot) != known.keys.get(slot) {
                        peer.slots.get_mut(slot).keys = None;
                    }
                }
                peer.known = known;
            }
            Some(_) => {}
        }
    }

    fn open(&mut self, now: Duration, over: Slot, from: IpAddr, datagram: &[u8]) -> (Taken, Vec<Vec<u8>>) {
        let refused = |why| (Taken::Refused(why), Vec::new());
        let Self { own, peers, rate_limit, .. } = self;
        let Some(peer) = peers.get_mut(&from) else { return refused(Refused::Sender) };
        if datagram.len() > MAX_PROBE_LEN {
            return refused(Refused::Malformed);
        }
        let id = peer.known.id.clone();
        let decoded = |decoded: Result<Message, _>| match decoded {
            Ok(message) => Taken::Message(id, message),
            Err(_) => Taken::Refused(Refused::Malformed),
        };
        match datagram.first() {
            Some(&UNAUTHENTICATED) if !peer.known.unauthenticated => refused(Refused::Unauthenticated),
            Some(&UNAUTHENTICATED) if !rate_limit.allows(now, from, false) => refused(Refused::Rate),
            Some(&UNAUTHENTICATED) => (decoded(Message::decode(datagram, 1)), Vec::new()),
            Some(&session::VERSION) => {
                let Some((keys, session)) = peer.connection(own, over) else { return refused(Refused::Mac) };
                let Opened { body, reply } = session.open(now, keys, datagram, &mut random);
                match body {
                    Err(why) => (Taken::Refused(why), reply),
                    // Only what the peer itself has sent counts, so that nobody uses up its share.
                    Ok(body) if !rate_limit.allows(now, from, body.is_none()) => refused(Refused::Rate),
                    Ok(None) => (Taken::Session, reply),
                    Ok(Some(body)) => (decoded(Message::decode(body, 0)), reply),
                }
            }
            _ => refused(Refused::Malformed),
        }
    }
}

impl Peer {
    /// The keys and the session of a slot; none while this node's key is unknown.
    fn connection(&mut self, own: &PerSlot<Option<Own>>, slot: Slot) -> Option<(&ChannelKeys, &mut Session)> {
        let Connection { keys, session } = self.slots.get_mut(slot);
        if keys.is_none() {
            let own = own.get(slot).as_ref()?;
            *keys = ChannelKeys::derive(&own.private, self.known.keys.get(slot), slot).ok();
        }
        if session.is_none() {
            *session = Session::new(&mut random);
        }
        keys.as_ref().zip(session.as_mut())
    }
}

fn random() -> Option<u64> {
    getrandom::u64().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [&str; 2] = ["10.244.1.1", "10.244.2.1"];

    fn private(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes(&[byte; 32]).unwrap()
    }

    fn address(end: usize) -> IpAddr {
        ADDRESSES[end].parse().unwrap()
    }

    /// One of two nodes, with these private keys of its own and of the other.
    fn set(peers: &Peers, end: usize, keys: [u8; 2], unauthenticated: bool) {
        let own = private(keys[0]);
        let other = private(keys[1]).public();
        let correspondent = Correspondent {
            id: PeerId::new(format!("u{}", 1 - end)),
            keys: PerSlot { a: other, b: other },
            unauthenticated,
        };
        let public = PerSlot { a: own.public(), b: own.public() };
        peers.set(|_| Some(&own), &public, [(address(1 - end), correspondent)].into());
    }

    /// Two nodes that know each other.
    fn pair() -> [Peers; 2] {
        let ends = [Peers::new(), Peers::new()];
        set(&ends[0], 0, [1, 2], false);
        set(&ends[1], 1, [2, 1], false);
        ends
    }

    /// Delivers datagrams and all answers to them; returns the messages that were taken.
    fn deliver(ends: [&Peers; 2], to: usize, datagrams: Vec<Vec<u8>>) -> Vec<(usize, Message)> {
        let mut flying: Vec<_> = datagrams.into_iter().map(|datagram| (to, datagram)).collect();
        let mut taken = Vec::new();
        while !flying.is_empty() {
            let (to, datagram) = flying.remove(0);
            let (what, reply) = ends[to].open(Slot::A, address(1 - to), &datagram);
            flying.extend(reply.into_iter().map(|datagram| (1 - to, datagram)));
            if let Taken::Message(peer, message) = what {
                assert_eq!(peer, PeerId::new(format!("u{}", 1 - to)));
                taken.push((to, message));
            }
        }
        taken
    }

    fn refused(peers: &Peers, why: Refused) -> u64 {
        peers.status().refused[why.as_str()]
    }

    #[test]
    fn peers_hear_each_other_and_follow_a_rotation() {
        let ends = pair();
        let [low, high] = &ends;
        let ask = Message::Ask { nonce: 7 };
        let datagrams = low.seal(Slot::A, address(1), &ask);
        assert_eq!(deliver([low, high], 1, datagrams), [(1, ask.clone())]);
        // Another slot has other keys and a session of its own.
        let recorded = low.seal(Slot::A, address(1), &ask);
        let (what, _) = high.open(Slot::B, address(0), &recorded[0]);
        assert!(matches!(what, Taken::Refused(Refused::Mac)), "{what:?}");
        set(low, 0, [3, 2], false);
        let datagrams = low.seal(Slot::A, address(1), &ask);
        assert_eq!(deliver([low, high], 1, datagrams), [], "the other end does not know the key yet");
        set(high, 1, [2, 3], false);
        let datagrams = low.seal(Slot::A, address(1), &ask);
        assert_eq!(datagrams.len(), 1);
        assert_eq!(deliver([low, high], 1, datagrams), [(1, ask)]);
        assert_eq!(deliver([low, high], 1, recorded), []);
        assert_eq!(refused(high, Refused::Mac), 3);
    }

    #[test]
    fn a_probe_has_the_stated_length_on_the_wire() {
        let ends = pair();
        let [low, high] = &ends;
        let datagrams = low.seal(Slot::A, address(1), &Message::Ask { nonce: 7 });
        deliver([low, high], 1, datagrams);
        let datagrams = low.seal(Slot::A, address(1), &Message::Probe { nonce: 7, len: 1392 });
        assert_eq!(datagrams[0].len(), 1392);
        assert_eq!(deliver([low, high], 1, datagrams).len(), 1);
    }

    #[test]
    fn only_a_peer_that_cannot_authenticate_is_heard_without() {
        let peers = Peers::new();
        let ask = Message::Ask { nonce: 7 };
        let old = ask.encode(&[UNAUTHENTICATED]);
        for unauthenticated in [false, true, false] {
            set(&peers, 0, [1, 2], unauthenticated);
            let (what, reply) = peers.open(Slot::A, address(1), &old);
            assert!(reply.is_empty());
            let heard = matches!(&what, Taken::Message(_, message) if *message == ask);
            assert_eq!(heard, unauthenticated, "{what:?}");
            let sent = peers.seal(Slot::A, address(1), &ask);
            assert_eq!(sent.first() == Some(&old), unauthenticated);
        }
        assert_eq!(refused(&peers, Refused::Unauthenticated), 2);
        let (what, _) = peers.open(Slot::A, "10.244.9.1".parse().unwrap(), &old);
        assert!(matches!(what, Taken::Refused(Refused::Sender)));
        assert_eq!(peers.status().unknown_senders, 1);
    }

    #[test]
    fn a_flood_of_what_a_peer_did_not_send_does_not_use_up_its_share() {
        let ends = pair();
        let [low, high] = &ends;
        let ask = Message::Ask { nonce: 7 };
        let datagrams = low.seal(Slot::A, address(1), &ask);
        deliver([low, high], 1, datagrams);
        for forged in [vec![1, 0, 7], vec![2; 60], vec![0]] {
            for _ in 0..1000 {
                high.open(Slot::A, address(0), &forged);
            }
        }
        let datagrams = low.seal(Slot::A, address(1), &ask);
        assert_eq!(deliver([low, high], 1, datagrams).len(), 1);
        assert_eq!(high.status().refused.values().sum::<u64>(), 3000);
    }
}
