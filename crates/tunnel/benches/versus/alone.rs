//! The engine without devices and sockets, compared with the bare AEAD over the same bytes in the same order.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use keyring::PrivateKey;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use tunnel::{ClockReading, Datagrams, Engine, EngineOptions, Packets};
use wireguard::{PeerChange, PeerOp};

/// Bytes of one packet.
const LENGTH: usize = 1420;
/// Packets in a batch: what a large packet of the kernel becomes.
const BATCH: usize = 46;

/// The engine's speed as a share of the AEAD's own, sealing and opening, once for each of `turns`.
pub(crate) fn shares(turns: usize, turn: Duration) -> Vec<f64> {
    let (mut aead, mut pair) = (Bare::new(), Pair::new());
    // Warm up: caches, and the clock of the core.
    time(turn, || aead.batch());
    time(turn, || pair.batch());
    (0..turns)
        .map(|_| {
            // Two short halves around the other keep a slow change of the core's clock out of the ratio.
            let before = time(turn / 2, || aead.batch());
            let engine = time(turn, || pair.batch());
            let after = time(turn / 2, || aead.batch());
            f64::midpoint(before, after) / engine
        })
        .collect()
}

/// Seconds for one run of `body`.
fn time(turn: Duration, mut body: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut runs = 0;
    while begin.elapsed() < turn {
        (0..16).for_each(|_| body());
        runs += 16;
    }
    begin.elapsed().as_secs_f64() / f64::from(runs)
}

/// The cipher alone, in place.
struct Bare {
    key: LessSafeKey,
    buffers: Vec<u8>,
    counter: u64,
}

impl Bare {
    fn new() -> Self {
        let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).unwrap());
        Self { key, buffers: vec![1; BATCH * (LENGTH + 16)], counter: 0 }
    }

    fn batch(&mut self) {
        let first = self.counter;
        for (counter, buffer) in (first..).zip(self.buffers.chunks_exact_mut(LENGTH + 16)) {
            let (text, tag) = buffer.split_at_mut(LENGTH);
            tag.copy_from_slice(
                self.key.seal_in_place_separate_tag(nonce(counter), Aad::empty(), text).unwrap().as_ref(),
            );
        }
        for (counter, buffer) in (first..).zip(self.buffers.chunks_exact_mut(LENGTH + 16)) {
            self.key.open_in_place(nonce(counter), Aad::empty(), buffer).unwrap();
        }
        self.counter += BATCH as u64;
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Two engines with a session.
struct Pair {
    ends: [(Engine, SocketAddr); 2],
    packet: Vec<u8>,
    packets: Packets,
    datagrams: Datagrams,
    opened: Packets,
    replies: Datagrams,
}

impl Pair {
    fn new() -> Self {
        let keys = [PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap()];
        let publics = [keys[1].public(), keys[0].public()];
        let mut number = 0;
        let ends = keys.map(|key| {
            let engine = Engine::new(EngineOptions::default());
            engine.set_private_key(Some(key));
            number += 1;
            (engine, SocketAddr::from(([192, 0, 2, number], 1)))
        });
        for (own, peer) in publics.into_iter().enumerate() {
            let settings = PeerChange {
                endpoint: Some(ends[1 - own].1),
                allow: [format!("10.0.0.{}/32", 2 - own).parse().unwrap()].into(),
                ..Default::default()
            };
            ends[own].0.apply(vec![PeerOp::add(peer, settings)]).unwrap();
        }
        let mut packet = vec![0; LENGTH];
        packet[..4].copy_from_slice(&[0x45, 0, (LENGTH >> 8).to_le_bytes()[0], LENGTH.to_le_bytes()[0]]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let (packets, opened) = (Packets::new(), Packets::new());
        let (datagrams, replies) = (Datagrams::new(), Datagrams::new());
        let mut pair = Self { ends, packet, packets, datagrams, opened, replies };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        self.packets.push(&self.packet);
        self.ends[0].0.seal(ClockReading::now(), &mut self.packets, &mut self.datagrams);
        let mut to = 1;
        while !self.datagrams.is_empty() {
            let source = self.ends[1 - to].1;
            let wire: Vec<Vec<u8>> = self.datagrams.iter().map(|(_, bytes)| bytes.to_vec()).collect();
            self.datagrams.clear();
            let wire = wire.iter().map(|bytes| (source, &bytes[..]));
            self.ends[to].0.open(ClockReading::now(), wire, &mut self.opened, &mut self.datagrams);
            to = 1 - to;
        }
        assert_eq!(self.opened.len(), 1, "the packet that waited for the handshake");
    }

    fn batch(&mut self) {
        self.packets.clear();
        self.datagrams.clear();
        self.opened.clear();
        (0..BATCH).for_each(|_| self.packets.push(&self.packet));
        let now = ClockReading::now();
        self.ends[0].0.seal(now, &mut self.packets, &mut self.datagrams);
        let source = self.ends[0].1;
        let wire = self.datagrams.iter().map(|(_, bytes)| (source, bytes));
        self.ends[1].0.open(now, wire, &mut self.opened, &mut self.replies);
        assert_eq!(self.opened.len(), BATCH);
    }
}
