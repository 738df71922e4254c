//! One played node: the engines of both slots, the control channel and the preshared keys with the daemon that is measured.
//! Real key exchanges and real answers; no sockets, and the time is an argument.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyring::pq::{Effect, Entry, Input, MlKem768, Pairing, PqSettings, StaticKeys};
use keyring::rotation::PeerId;
use keyring::{PerSlot, PresharedId, PrivateKey, PublicKey, Slot};
use meshd::channel::{Heard, PlayedEnd, Stand};
use tunnel::{ClockReading, Datagrams, Engine, EngineOptions, Packets};
use wireguard::{PeerChange, PeerOp, PresharedKeyChange};

use crate::fleet::{self, Identity};
use crate::packet;

/// The port of the control channel: the default.
pub(crate) const CONTROL_PORT: u16 = 51842;
/// How often a daemon probes each peer: the default.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Mesh MTU over an underlay of 1,500 bytes.
const MTU: usize = 1420;
/// First byte of WireGuard's handshake messages: initiation and response.
const HANDSHAKE: [u8; 2] = [1, 2];

/// What all played nodes know of the daemon, from its Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Daemon {
    pub(crate) id: PeerId,
    /// Its mesh address.
    pub(crate) mesh: Ipv4Addr,
    /// Its address on the underlay.
    pub(crate) underlay: Ipv4Addr,
    pub(crate) keys: PerSlot<PublicKey>,
    pub(crate) generation: u64,
    pub(crate) prefer: Slot,
    pub(crate) drain: Option<Slot>,
}

/// The time on the clock of engines and on that of the pairing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) reading: ClockReading,
    pub(crate) since: Duration,
}

/// A datagram to the daemon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) slot: Slot,
    pub(crate) from: Ipv4Addr,
    pub(crate) bytes: Vec<u8>,
}

/// What a node has seen of the daemon.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Control messages that were answered or handled.
    pub(crate) messages: u64,
    /// Echoes of this node's own probes.
    pub(crate) echoes: u64,
    /// When the last handshake that the daemon began on a slot was answered.
    pub(crate) initiated: PerSlot<Option<Instant>>,
    /// When the last datagram arrived at the second address.
    pub(crate) at_second: Option<Instant>,
}

/// A node that is played.
#[derive(Debug)]
pub(crate) struct PlayedNode {
    pub(crate) identity: Identity,
    pub(crate) seen: Seen,
    engines: PerSlot<Engine>,
    /// The daemon's key, and the preshared key, that each engine has.
    configured: PerSlot<Option<(PublicKey, Option<PresharedId>)>>,
    reported: PerSlot<bool>,
    end: PlayedEnd,
    pairing: Pairing,
    tx: Slot,
    daemon: Arc<Daemon>,
    next_probe: Duration,
    nonce: u64,
}

impl PlayedNode {
    /// A node that has just started and knows the daemon. `jitter` spreads its probes over their interval.
    pub(crate) fn start(identity: Identity, daemon: Arc<Daemon>, now: Now, jitter: u64) -> Self {
        let engines = PerSlot::from_fn(|slot| {
            let engine = Engine::new(EngineOptions::default());
            engine.set_private_key(Some(identity.keys.get(slot).duplicate()));
            engine
        });
        let own = identity.uid.peer_id();
        let pairing = Pairing::resume(
            PqSettings::default(),
            own,
            daemon.id.clone(),
            PerSlot::default(),
            jitter.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            now.since,
        );
        let end = PlayedEnd::new(daemon.id.clone(), daemon.mesh.into());
        let spread =
            PROBE_INTERVAL.mul_f64(f64::from(u32::try_from(jitter % 1000).unwrap_or_default()) / 1000.0);
        Self {
            identity,
            seen: Seen::default(),
            engines,
            configured: PerSlot::default(),
            reported: PerSlot::default(),
            end,
            pairing,
            tx: daemon.prefer,
            daemon,
            next_probe: now.since + Duration::from_secs(2) + spread,
            nonce: 0,
        }
    }

    /// Follows what the daemon announces, or the node's own keys after they changed.
    pub(crate) fn follow(&mut self, daemon: Arc<Daemon>, now: Now, out: &mut Vec<Outgoing>) {
        self.daemon = daemon;
        let (own, keys) = (&self.identity.keys, self.daemon.keys);
        self.end.set_keys(own, keys);
        let statics = |slot| StaticKeys { own: own.get(slot).public(), peer: *keys.get(slot) };
        let statics = PerSlot::from_fn(|slot| Some(statics(slot)));
        self.configure();
        self.handle(now, Input::StaticKeys(statics), out);
        self.handle(now, Input::Drained(self.daemon.drain), out);
        self.steer(now);
        self.handle(now, Input::Tx(Some(self.tx)), out);
        self.observe(now, out);
    }

    /// Replaces the key of a slot at once; the caller publishes it.
    pub(crate) fn replace_key(&mut self, slot: Slot, key: PrivateKey, now: Now, out: &mut Vec<Outgoing>) {
        self.engines.get(slot).set_private_key(Some(key.duplicate()));
        *self.identity.keys.get_mut(slot) = key;
        *self.seen.initiated.get_mut(slot) = None;
        self.identity.generation += 1;
        self.follow(Arc::clone(&self.daemon), now, out);
    }

    /// Moves to the other of the node's two addresses; the caller publishes it.
    pub(crate) fn change_address(&mut self) {
        self.identity.moved = !self.identity.moved;
        self.identity.sequence += 1;
        self.seen.at_second = None;
    }

    /// Takes a datagram that arrived for one of the two addresses that are the node's one after the other.
    pub(crate) fn receive(
        &mut self,
        now: Now,
        slot: Slot,
        (datagram, at_second): (&[u8], bool),
        out: &mut Vec<Outgoing>,
    ) {
        if at_second != self.identity.moved {
            // It has that address no longer, or not yet.
            return;
        }
        if at_second {
            self.seen.at_second = Some(now.reading.instant);
        }
        let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
        let source = self.endpoint(slot);
        self.engines.get(slot).open(now.reading, [(source, datagram)], &mut packets, &mut replies);
        let kind = datagram.first().copied().unwrap_or_default();
        if kind == HANDSHAKE[0] && !replies.is_empty() {
            *self.seen.initiated.get_mut(slot) = Some(now.reading.instant);
        }
        self.push(slot, &replies, out);
        for packet in packets.iter() {
            let own = fleet::mesh_address(self.identity.index);
            if let Some(payload) = packet::payload(packet, own, CONTROL_PORT) {
                self.receive_message(now, slot, payload, out);
            }
        }
        if HANDSHAKE.contains(&kind) {
            self.observe(now, out);
        }
    }

    /// Does what is due. To be called about twice a second.
    pub(crate) fn tick(&mut self, now: Now, out: &mut Vec<Outgoing>) {
        for slot in Slot::ALL {
            let mut datagrams = Datagrams::new();
            self.engines.get(slot).tick(now.reading, &mut datagrams);
            self.push(slot, &datagrams, out);
        }
        if self.pairing.poll_timeout(now.since).is_some_and(|due| due <= now.since) {
            self.handle(now, Input::Tick, out);
        }
        if !self.is_proven() {
            self.observe(now, out);
        }
        if now.since >= self.next_probe {
            self.next_probe += PROBE_INTERVAL;
            for len in [0, MTU - packet::HEADERS] {
                self.nonce += 1;
                let len = u16::try_from(len).unwrap_or_default();
                let datagrams = self.end.probe(self.tx, self.nonce, len);
                self.send(now, self.tx, &datagrams, out);
            }
        }
    }

    /// Begins a handshake with the daemon on a slot.
    pub(crate) fn initiate(&mut self, now: Now, slot: Slot, out: &mut Vec<Outgoing>) {
        let mut datagrams = Datagrams::new();
        self.engines.get(slot).initiate_handshake(now.reading, self.daemon.keys.get(slot), &mut datagrams);
        self.push(slot, &datagrams, out);
    }

    /// Whether a handshake with the preshared key of each slot has completed.
    pub(crate) fn is_proven(&self) -> bool {
        Slot::ALL.into_iter().all(|slot| self.pairing.proven(slot))
    }

    /// When the last handshake on a slot was completed.
    pub(crate) fn since_handshake(&self, now: Now, slot: Slot) -> Option<Duration> {
        let peers = self.engines.get(slot).peers(now.reading);
        peers.get(self.daemon.keys.get(slot))?.since_handshake
    }

    fn receive_message(&mut self, now: Now, slot: Slot, payload: &[u8], out: &mut Vec<Outgoing>) {
        let stand = Stand { seen: self.daemon.generation, tx: self.tx };
        let (heard, datagrams) = self.end.receive(slot, payload, stand);
        self.send(now, slot, &datagrams, out);
        match heard {
            Heard::Nothing => return,
            Heard::Answered => {}
            Heard::Echo(_) => self.seen.echoes += 1,
            Heard::Preshared(message) => self.handle(now, Input::Received { over: slot, message }, out),
        }
        self.seen.messages += 1;
        if !std::mem::replace(self.reported.get_mut(slot), true) {
            let datagrams = self.end.seen(slot, self.endpoint(slot));
            self.send(now, slot, &datagrams, out);
        }
    }

    /// Passes the state of both engines to the pairing.
    fn observe(&mut self, now: Now, out: &mut Vec<Outgoing>) {
        let entries = self.entries(now);
        self.handle(now, Input::Engine(entries), out);
    }

    fn entries(&self, now: Now) -> PerSlot<Option<Entry>> {
        PerSlot::from_fn(|slot| {
            let peers = self.engines.get(slot).peers(now.reading);
            let peer = peers.get(self.daemon.keys.get(slot))?;
            Some(Entry { preshared: peer.config.preshared, handshake: peer.since_handshake.is_some() })
        })
    }

    /// Processes an input of the pairing and all that follows from it. There is no disk: what is to be kept is kept.
    fn handle(&mut self, now: Now, input: Input, out: &mut Vec<Outgoing>) {
        let mut inputs = VecDeque::from([input]);
        let mut changed = false;
        while let Some(input) = inputs.pop_front() {
            for effect in self.pairing.handle(now.since, &MlKem768, input) {
                match effect {
                    Effect::Send { over, message } => {
                        let datagrams = self.end.preshared(over, &message);
                        self.send(now, over, &datagrams, out);
                    }
                    Effect::Persist => inputs.push_back(Input::Persisted),
                    Effect::Apply => changed = true,
                    Effect::Note(_) => {}
                }
            }
            if inputs.is_empty() && std::mem::take(&mut changed) {
                self.configure();
                self.steer(now);
                inputs.extend([Input::Engine(self.entries(now)), Input::Tx(Some(self.tx))]);
            }
        }
    }

    /// The slot on which to send: the daemon's preference, unless that slot is drained or its key is about to change.
    fn steer(&mut self, now: Now) {
        let daemon = &self.daemon;
        let wanted = daemon.drain.map_or(daemon.prefer, Slot::other);
        self.tx = if self.pairing.avoid(now.since) == Some(wanted) { wanted.other() } else { wanted };
    }

    /// Gives each engine the daemon's key and the preshared key of its slot. A peer whose keys change is added anew, as
    /// daemons do it, so that no session outlives its key.
    fn configure(&mut self) {
        for slot in Slot::ALL {
            let (key, preshared) = (*self.daemon.keys.get(slot), self.pairing.preshared(slot));
            let configured = *self.configured.get(slot);
            if configured == Some((key, preshared)) {
                continue;
            }
            let change = PeerChange {
                endpoint: Some(self.endpoint(slot)),
                roaming: Some(false),
                allow: [ipnetwork::IpNetwork::from(std::net::IpAddr::from(self.daemon.mesh))].into(),
                ..PeerChange::default()
            };
            let secret = preshared.and_then(|id| self.pairing.key(&id));
            let add = PeerOp::Add { peer: key, change, preshared_key: Some(PresharedKeyChange::to(secret)) };
            let former = configured.map(|(peer, _)| PeerOp::Remove { peer });
            // Refused only for a key of its own.
            if self.engines.get(slot).apply(former.into_iter().chain([add]).collect()).is_ok() {
                *self.configured.get_mut(slot) = Some((key, preshared));
            }
        }
    }

    fn send(&self, now: Now, slot: Slot, payloads: &[Vec<u8>], out: &mut Vec<Outgoing>) {
        let own = fleet::mesh_address(self.identity.index);
        let (mut packets, mut sealed) = (Packets::new(), Datagrams::new());
        for payload in payloads {
            packets.push(&packet::build(own, self.daemon.mesh, CONTROL_PORT, payload));
        }
        if !packets.is_empty() {
            self.engines.get(slot).seal(now.reading, &mut packets, &mut sealed);
            self.push(slot, &sealed, out);
        }
    }

    fn push(&self, slot: Slot, datagrams: &Datagrams, out: &mut Vec<Outgoing>) {
        let from = fleet::address(self.identity.index, self.identity.moved);
        out.extend(datagrams.iter().map(|(_, bytes)| Outgoing { slot, from, bytes: bytes.to_vec() }));
    }

    fn endpoint(&self, slot: Slot) -> SocketAddr {
        (self.daemon.underlay, *fleet::PORTS.get(slot)).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use super::*;

    /// A played node with number 7, and the daemon: another node whose engines, channel and pairing are as real.
    struct Pair {
        nodes: [PlayedNode; 2],
        start: Instant,
        since: Duration,
    }

    impl Pair {
        fn new() -> Self {
            let start = Instant::now();
            let now = at(start, Duration::ZERO);
            let identities = [7, 9].map(|index| Identity::new(index, &format!("u{index}")).unwrap());
            let known = identities.each_ref().map(|identity| {
                Arc::new(Daemon {
                    id: identity.uid.peer_id(),
                    mesh: fleet::mesh_address(identity.index),
                    underlay: fleet::address(identity.index, false),
                    keys: PerSlot::from_fn(|slot| identity.keys.get(slot).public()),
                    generation: 1,
                    prefer: Slot::A,
                    drain: None,
                })
            });
            let [one, two] = identities;
            let nodes = [
                PlayedNode::start(one, Arc::clone(&known[1]), now, 1),
                PlayedNode::start(two, Arc::clone(&known[0]), now, 2),
            ];
            let mut pair = Self { nodes, start, since: Duration::ZERO };
            let [to_two, to_one] = [(0, 1), (1, 0)].map(|(end, other)| {
                let mut out = Vec::new();
                pair.nodes[end].follow(Arc::clone(&known[other]), now, &mut out);
                out
            });
            pair.deliver(1, to_two);
            pair.deliver(0, to_one);
            pair
        }

        fn now(&self) -> Now {
            at(self.start, self.since)
        }

        fn deliver(&mut self, to: usize, datagrams: Vec<Outgoing>) {
            let mut flying: VecDeque<_> = datagrams.into_iter().map(|datagram| (to, datagram)).collect();
            while let Some((to, Outgoing { slot, bytes, .. })) = flying.pop_front() {
                let mut out = Vec::new();
                let now = self.now();
                self.nodes[to].receive(now, slot, (&bytes, false), &mut out);
                flying.extend(out.into_iter().map(|datagram| (1 - to, datagram)));
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.since + time;
            while self.since < end {
                self.since += Duration::from_millis(250);
                let now = self.now();
                for index in 0..2 {
                    let mut out = Vec::new();
                    self.nodes[index].tick(now, &mut out);
                    self.deliver(1 - index, out);
                }
            }
        }
    }

    fn at(start: Instant, since: Duration) -> Now {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_hours(490_896) + since;
        Now { reading: ClockReading { instant: start + since, wall }, since }
    }

    #[test]
    fn a_played_node_completes_handshakes_answers_probes_and_agrees_on_preshared_keys() {
        let mut pair = Pair::new();
        pair.run(Duration::from_secs(40));
        let now = pair.now();
        let seen: BTreeMap<_, _> =
            Slot::ALL.map(|slot| (slot, pair.nodes[0].since_handshake(now, slot))).into();
        assert!(seen.values().all(Option::is_some), "{seen:?}");
        // Each probes the other twice within the interval.
        assert!(pair.nodes.iter().all(|node| node.seen.echoes >= 2), "{:?}", pair.nodes[0].seen);
        assert!(pair.nodes.iter().all(PlayedNode::is_proven));
    }

    #[test]
    fn a_slot_that_the_daemon_drains_is_left() {
        let mut pair = Pair::new();
        pair.run(Duration::from_secs(20));
        for drained in Slot::ALL {
            let daemon = Daemon { drain: Some(drained), ..Daemon::clone(&pair.nodes[0].daemon) };
            let now = pair.now();
            pair.nodes[0].follow(Arc::new(daemon), now, &mut Vec::new());
            assert_eq!(pair.nodes[0].tx, drained.other());
        }
    }

    #[test]
    fn another_key_of_the_daemon_is_followed() {
        let mut pair = Pair::new();
        pair.run(Duration::from_secs(20));
        let former = pair.nodes[0].seen.echoes;
        let key = PrivateKey::generate().unwrap();
        let keys = PerSlot { a: key.public(), ..pair.nodes[0].daemon.keys };
        let daemon = Arc::new(Daemon { keys, generation: 2, ..Daemon::clone(&pair.nodes[0].daemon) });
        let (now, mut out) = (pair.now(), Vec::new());
        pair.nodes[1].replace_key(Slot::A, key, now, &mut out);
        pair.nodes[0].follow(daemon, now, &mut Vec::new());
        pair.run(Duration::from_mins(1));
        assert!(pair.nodes[0].seen.echoes > former && pair.nodes.iter().all(PlayedNode::is_proven));
    }
}
