//! A week of rotations and renewed preshared keys, with everything that was recorded replayed at random.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use keyring::{PresharedKey, PrivateKey, PublicKey};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::net::{owned, prefix};
use crate::batch::{Datagrams, Packets};
use crate::engine::{ClockReading, Engine, EngineOptions};
use wireguard::{PeerChange, PeerOp, PresharedKeyChange};

const HOUR: u64 = 3_600;
const WEEK: u64 = 7 * 24;

/// One node: its engine, and what it is configured with.
struct End {
    engine: Engine,
    address: SocketAddr,
    keys: Vec<PrivateKey>,
    /// Which of its keys it has.
    key: usize,
}

impl End {
    fn new(number: u8, rng: &mut TestRng) -> Self {
        let keys = (0..WEEK / 24 + 2).map(|_| {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            PrivateKey::from_bytes(&bytes).unwrap()
        });
        // Without cookies, whose limiter has a clock of its own.
        let options = EngineOptions { handshakes_per_second: u64::MAX, ..EngineOptions::default() };
        let address = SocketAddr::from(([192, 0, 2, number], 51840));
        let end = Self { engine: Engine::new(options), address, keys: keys.collect(), key: 0 };
        end.engine.set_private_key(Some(end.keys[0].duplicate()));
        end
    }

    fn public(&self) -> PublicKey {
        self.keys[self.key].public()
    }

    /// The peer as a node behind NAT: its endpoint may move.
    fn add(&self, peer: PublicKey, at: SocketAddr, number: u8, preshared: &PresharedKey) {
        let allow = [prefix(&format!("10.0.{number}.0/24"))].into();
        let change = PeerChange { endpoint: Some(at), allow, ..PeerChange::default() };
        let preshared_key = Some(PresharedKeyChange::to(Some(preshared)));
        self.engine.apply(vec![PeerOp::Add { peer, change, preshared_key }]).unwrap();
    }
}

/// Two nodes, and somebody who records all initiations between them.
struct Week {
    ends: [End; 2],
    preshared: PresharedKey,
    start: ClockReading,
    passed: Duration,
    recorded: Vec<(usize, Vec<u8>)>,
    handshakes: usize,
}

impl Week {
    fn now(&self) -> ClockReading {
        ClockReading { instant: self.start.instant + self.passed, wall: self.start.wall + self.passed }
    }

    /// Both ends remove the peer and add it again with a new preshared key, as the daemon does.
    fn renew(&mut self, byte: u8) {
        self.preshared = PresharedKey::from_bytes(&[byte.max(1); 32]).unwrap();
        for at in 0..2 {
            let peer = self.ends[1 - at].public();
            self.ends[at].engine.apply(vec![PeerOp::Remove { peer }]).unwrap();
            self.introduce(at);
        }
    }

    fn introduce(&self, at: usize) {
        let (end, other) = (&self.ends[at], &self.ends[1 - at]);
        let number = if at == 0 { 2 } else { 1 };
        end.add(other.public(), other.address, number, &self.preshared);
    }

    /// One end gets another of its keys, which the other end learns.
    fn set_key(&mut self, at: usize, key: usize) {
        let peer = self.ends[at].public();
        self.ends[at].key = key;
        let end = &self.ends[at];
        end.engine.set_private_key(Some(end.keys[key].duplicate()));
        self.ends[1 - at].engine.apply(vec![PeerOp::Remove { peer }]).unwrap();
        self.introduce(1 - at);
    }

    /// A handshake that `from` begins; it has to succeed.
    fn handshake(&mut self, from: usize) {
        let mut out = Datagrams::new();
        let to = self.ends[1 - from].public();
        assert!(self.ends[from].engine.initiate_handshake(self.now(), &to, &mut out));
        let mut flying: Vec<_> = owned(&out).into_iter().map(|(_, bytes)| (from, bytes)).collect();
        let initiation = flying[0].1.clone();
        while let Some((sender, bytes)) = flying.pop() {
            let answers = self.deliver(1 - sender, self.ends[sender].address, &bytes);
            flying.extend(answers.into_iter().map(|bytes| (1 - sender, bytes)));
        }
        self.recorded.push((1 - from, initiation));
        let age = self.ends[from].engine.peers(self.now())[&to].since_handshake;
        assert_eq!(age, Some(Duration::ZERO), "hour {}", self.passed.as_secs() / HOUR);
        self.handshakes += 1;
    }

    fn deliver(&self, to: usize, from: SocketAddr, bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
        self.ends[to].engine.open(self.now(), [(from, bytes)], &mut packets, &mut replies);
        owned(&replies).into_iter().map(|(_, bytes)| bytes).collect()
    }

    /// Replays a few of the recorded initiations from elsewhere: nothing may come of it.
    fn replay(&mut self, rng: &mut TestRng) {
        let elsewhere = SocketAddr::from(([203, 0, 113, 9], 4_444));
        for _ in 0..20 {
            let (to, initiation) = &self.recorded[below(rng, self.recorded.len())];
            let hour = self.passed.as_secs() / HOUR;
            assert_eq!(
                self.deliver(*to, elsewhere, initiation),
                [] as [Vec<u8>; 0],
                "answered in hour {hour}"
            );
            let peers = self.ends[*to].engine.peers(self.now());
            let moved = peers.values().find(|peer| peer.config.endpoint == Some(elsewhere));
            assert_eq!(moved, None, "an endpoint was moved in hour {hour}");
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.passed += Duration::from_secs(seconds);
    }
}

fn below(rng: &mut TestRng, end: usize) -> usize {
    usize::try_from(rng.next_u32()).unwrap() % end
}

#[test]
fn in_a_week_of_rotations_and_renewals_no_recorded_handshake_is_accepted() {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let ends = [End::new(1, &mut rng), End::new(2, &mut rng)];
    let start = ClockReading { instant: Instant::now(), wall: SystemTime::now() };
    let preshared = PresharedKey::from_bytes(&[1; 32]).unwrap();
    let mut week = Week { ends, preshared, start, passed: Duration::ZERO, recorded: vec![], handshakes: 0 };
    (0..2).for_each(|at| week.introduce(at));
    for hour in 0..WEEK {
        for turn in 0..4 {
            week.handshake(below(&mut rng, 2));
            week.pass(120);
            if turn == 2 {
                week.renew(u8::try_from(hour % 200).unwrap() + 1);
                // Before the first handshake with the new key too.
                week.replay(&mut rng);
            }
        }
        if hour % 12 == 11 {
            // Each end rotates once a day; every second rotation is rolled back first.
            let at = usize::try_from(hour / 12 % 2).unwrap();
            let key = week.ends[at].key;
            week.set_key(at, key + 1);
            if hour % 48 >= 24 {
                week.handshake(at);
                week.pass(60);
                week.set_key(at, key);
                week.replay(&mut rng);
                week.handshake(1 - at);
                week.pass(60);
                week.set_key(at, key + 1);
            }
        }
        week.replay(&mut rng);
        week.pass(HOUR - 600);
    }
    assert!(week.handshakes > 600, "{}", week.handshakes);
    // Positive control: the last is a genuine one as long as it is not repeated.
    let mut out = Datagrams::new();
    let to = week.ends[1].public();
    assert!(week.ends[0].engine.initiate_handshake(week.now(), &to, &mut out));
    let fresh = owned(&out).remove(0).1;
    let elsewhere = SocketAddr::from(([203, 0, 113, 9], 4_444));
    assert_eq!(week.deliver(1, elsewhere, &fresh).len(), 1);
    assert_eq!(week.deliver(1, elsewhere, &fresh).len(), 0);
}
