//! A network in memory: engines with addresses, packets with contents, and a record of every datagram.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PrivateKey, PublicKey};

use crate::batch::{Datagrams, Packets};
use crate::counters::DropReason;
use crate::engine::{ClockReading, Engine, EngineOptions};
use wireguard::{PeerChange, PeerOp, PeerState, PresharedKeyChange};

/// What every test packet carries, so that an eavesdropper can search for it.
pub(super) const SECRET: &[u8] = b"this must never be seen in the clear";

thread_local! {
    /// How far the tests' clock is ahead of the real one.
    static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The time. Each packet that is sent moves it on, since a peer is answered only so many times per second.
pub(super) fn now() -> ClockReading {
    let (now, ahead) = (ClockReading::now(), AHEAD.get());
    ClockReading { instant: now.instant + ahead, wall: now.wall + ahead }
}

fn move_on() {
    AHEAD.set(AHEAD.get() + Duration::from_millis(20));
}

/// One engine at one address.
pub(super) struct Node {
    pub(super) engine: Engine,
    pub(super) address: SocketAddr,
    pub(super) key: PublicKey,
    /// Packets that came out of the tunnel.
    pub(super) delivered: Vec<Vec<u8>>,
}

impl Node {
    pub(super) fn new(number: u8, options: EngineOptions) -> Self {
        let private = PrivateKey::from_bytes(&[number; 32]).unwrap();
        let engine = Engine::new(options);
        let key = private.public();
        engine.set_private_key(Some(private));
        let address = SocketAddr::from(([192, 0, 2, number], 51840));
        Self { engine, address, key, delivered: Vec::new() }
    }

    pub(super) fn change(&self, peer: &Self, change: PeerChange) {
        self.engine.apply(vec![PeerOp::add(peer.key, change)]).unwrap();
    }

    pub(super) fn set_preshared_key(&self, peer: &Self, byte: Option<u8>) {
        let key = byte.map(|byte| PresharedKey::from_bytes(&[byte; 32]).unwrap());
        let preshared_key = Some(PresharedKeyChange::to(key.as_ref()));
        let op = PeerOp::Update { peer: peer.key, change: PeerChange::default(), preshared_key };
        self.engine.apply(vec![op]).unwrap();
    }

    pub(super) fn status(&self, peer: &Self) -> PeerState {
        self.engine.peers(now()).remove(&peer.key).unwrap()
    }

    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.engine.counters().dropped(reason)
    }

    pub(super) fn dropped_at_all(&self) -> u64 {
        self.engine.counters().iter().map(|(_, count)| count).sum()
    }

    /// Sends `packet` into the tunnel and returns the datagrams that come out.
    pub(super) fn seal(&self, packet: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        let (mut packets, mut out) = (Packets::new(), Datagrams::new());
        packets.push(packet);
        self.engine.seal(now(), &mut packets, &mut out);
        owned(&out)
    }

    /// Hands over one datagram from `source` and returns the answers.
    pub(super) fn open(&mut self, source: SocketAddr, datagram: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        self.open_at(now(), source, datagram)
    }

    /// The same at a given time.
    pub(super) fn open_at(
        &mut self,
        now: ClockReading,
        source: SocketAddr,
        datagram: &[u8],
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
        self.engine.open(now, [(source, datagram)], &mut packets, &mut replies);
        self.delivered.extend(packets.iter().map(<[u8]>::to_vec));
        owned(&replies)
    }

    /// Runs the timers as if `later` had passed and returns what is sent.
    pub(super) fn tick(&self, later: Duration) -> Vec<(SocketAddr, Vec<u8>)> {
        let now = now();
        let now = ClockReading { instant: now.instant + later, wall: now.wall + later };
        let mut out = Datagrams::new();
        self.engine.tick(now, &mut out);
        owned(&out)
    }
}

/// Engines that reach one another, and everything that was ever on the wire: source, destination, bytes.
pub(super) struct Net {
    pub(super) nodes: Vec<Node>,
    pub(super) wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Net {
    /// `count` nodes in a full mesh; node `n` has the addresses `10.0.n.0/24` and `fd00:n::/64`.
    pub(super) fn mesh(count: u8) -> Self {
        Self::mesh_with(count, EngineOptions::default())
    }

    pub(super) fn mesh_with(count: u8, options: EngineOptions) -> Self {
        let nodes: Vec<Node> = (1..=count).map(|number| Node::new(number, options)).collect();
        for node in &nodes {
            for (number, peer) in (1..).zip(&nodes).filter(|(_, peer)| peer.key != node.key) {
                let allow =
                    [prefix(&format!("10.0.{number}.0/24")), prefix(&format!("fd00:{number}::/64"))].into();
                node.change(peer, PeerChange { endpoint: Some(peer.address), allow, ..Default::default() });
            }
        }
        Self { nodes, wire: Vec::new() }
    }

    /// Sends `packet` into the tunnel at node `from`, then carries datagrams until all is quiet.
    pub(super) fn send(&mut self, from: usize, packet: &[u8]) {
        move_on();
        let source = self.nodes[from].address;
        let datagrams = self.nodes[from].seal(packet);
        self.carry(source, datagrams);
    }

    /// Begins a handshake of node `from` with node `to`, and carries it out.
    pub(super) fn handshake(&mut self, from: usize, to: usize) {
        move_on();
        let mut out = Datagrams::new();
        let (source, peer) = (self.nodes[from].address, self.nodes[to].key);
        assert!(self.nodes[from].engine.initiate_handshake(now(), &peer, &mut out));
        self.carry(source, owned(&out));
    }

    /// Carries `datagrams` from `source`, and all answers, until all is quiet.
    pub(super) fn carry(&mut self, source: SocketAddr, datagrams: Vec<(SocketAddr, Vec<u8>)>) {
        let mut flying: Vec<_> = datagrams.into_iter().map(|(to, bytes)| (source, to, bytes)).collect();
        while !flying.is_empty() {
            let (from, to, bytes) = flying.remove(0);
            if let Some(node) = self.nodes.iter_mut().find(|node| node.address == to) {
                let answers = node.open(from, &bytes);
                flying.extend(answers.into_iter().map(|(next, bytes)| (to, next, bytes)));
            }
            self.wire.push((from, to, bytes));
        }
    }

    /// How many datagrams of message type `kind` were on the wire.
    pub(super) fn seen(&self, kind: u8) -> usize {
        self.wire.iter().filter(|(_, _, bytes)| bytes[0] == kind).count()
    }

    /// The last datagram that carries a packet: transport data that is longer than a keepalive.
    pub(super) fn last_data(&self) -> Vec<u8> {
        let data = |bytes: &Vec<u8>| bytes[0] == 4 && bytes.len() > 32;
        self.wire.iter().rev().map(|(_, _, bytes)| bytes).find(|bytes| data(bytes)).unwrap().clone()
    }
}

/// A peer that may do what an honest implementation never does: it holds the session by itself.
pub(super) struct Attacker {
    pub(super) tunn: Tunn,
    pub(super) key: PublicKey,
    pub(super) address: SocketAddr,
}

impl Attacker {
    pub(super) fn new(number: u8, victim: PublicKey) -> Self {
        let private = PrivateKey::from_bytes(&[number; 32]).unwrap();
        let secret = x25519::StaticSecret::from(*private.expose());
        let tunn = Tunn::new(secret, x25519::PublicKey::from(*victim.as_bytes()), None, None, 77, None);
        Self { tunn, key: private.public(), address: SocketAddr::from(([192, 0, 2, number], 51840)) }
    }

    pub(super) fn initiation(&mut self) -> Vec<u8> {
        written(&self.tunn.format_handshake_initiation(&mut [0; 2048], true))
    }

    pub(super) fn take(&mut self, datagram: &[u8]) -> Vec<u8> {
        match self.tunn.decapsulate(None, datagram, &mut [0; 2048]) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            TunnResult::Done => Vec::new(),
            other => panic!("refused: {other:?}"),
        }
    }

    pub(super) fn sealed(&mut self, inner: &[u8]) -> Vec<u8> {
        written(&self.tunn.encapsulate(inner, &mut vec![0; inner.len() + 200]))
    }

    /// Completes a handshake with `node`, which must have this peer.
    pub(super) fn connect(&mut self, node: &mut Node) {
        let answers = node.open(self.address, &self.initiation());
        let keepalive = self.take(&answers[0].1);
        assert!(node.open(self.address, &keepalive).is_empty());
    }
}

fn written(result: &TunnResult<'_>) -> Vec<u8> {
    match result {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        other => panic!("nothing to send: {other:?}"),
    }
}

pub(super) fn owned(datagrams: &Datagrams) -> Vec<(SocketAddr, Vec<u8>)> {
    datagrams.iter().map(|(to, bytes)| (to, bytes.to_vec())).collect()
}

pub(super) fn prefix(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// An IPv4 or IPv6 packet from `source` to `destination` that carries [`SECRET`] and `extra` bytes more.
pub(super) fn packet(source: &str, destination: &str, extra: usize) -> Vec<u8> {
    let payload = [SECRET, &vec![0xee; extra]].concat();
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0; 20];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&destination.octets());
            [packet, payload].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0; 40];
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
            packet[8..24].copy_from_slice(&source.octets());
            packet[24..40].copy_from_slice(&destination.octets());
            [packet, payload].concat()
        }
        _ => panic!("two families in one packet"),
    }
}
