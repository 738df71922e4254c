//! What happens after minutes of silence, with the clock that boringtun reads moved by hand:
//! `cargo test -p tunnel --features mock-clock --test silence`.
#![expect(clippy::unwrap_used, reason = "in a test, also outside of its functions, a failure is a panic")]

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use keyring::PrivateKey;
use mock_instant::MockClock;
use tunnel::{ClockReading, Datagrams, Engine, EngineOptions, Packets};
use wireguard::{PeerChange, PeerOp};

/// Both clocks of a test: that of boringtun, which is one per thread, and the one that the engine is told.
struct Clock {
    start: ClockReading,
    passed: Duration,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: ClockReading { instant: Instant::now(), wall: SystemTime::now() },
            passed: Duration::ZERO,
        }
    }

    fn now(&self) -> ClockReading {
        ClockReading { instant: self.start.instant + self.passed, wall: self.start.wall + self.passed }
    }

    fn advance(&mut self, by: Duration) {
        MockClock::advance(by);
        MockClock::advance_system_time(by);
        self.passed += by;
    }
}

struct Pair {
    a: Engine,
    b: Engine,
    clock: Clock,
    /// Whether the network carries anything.
    connected: bool,
    /// Message types of what was sent, with the time since the start.
    sent: Vec<(Duration, u8)>,
    delivered: usize,
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51840))
}

fn packet(from: u8, to: u8) -> [u8; 20] {
    [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, to]
}

impl Pair {
    fn new(keepalive: Option<u16>) -> Self {
        // Away from zero, which boringtun's timers take for "never".
        MockClock::advance(Duration::from_secs(1_000));
        MockClock::advance_system_time(Duration::from_secs(1_000_000));
        let keys = [1, 2].map(|byte| PrivateKey::from_bytes(&[byte; 32]).unwrap());
        let publics = [keys[0].public(), keys[1].public()];
        let [a, b] = keys.map(|key| {
            let engine = Engine::new(EngineOptions::default());
            engine.set_private_key(Some(key));
            engine
        });
        let settings = |number: u8, keepalive| PeerChange {
            endpoint: Some(address(number)),
            keepalive: Some(keepalive),
            allow: [format!("10.0.0.{number}/32").parse().unwrap()].into(),
            ..Default::default()
        };
        a.apply(vec![PeerOp::add(publics[1], settings(2, keepalive))]).unwrap();
        b.apply(vec![PeerOp::add(publics[0], settings(1, None))]).unwrap();
        Self { a, b, clock: Clock::new(), connected: true, sent: Vec::new(), delivered: 0 }
    }

    /// A packet from a to b.
    fn send(&mut self) {
        let (mut packets, mut out) = (Packets::new(), Datagrams::new());
        packets.push(&packet(1, 2));
        self.a.seal(self.clock.now(), &mut packets, &mut out);
        self.carry(&out);
    }

    /// Lets `seconds` pass, with timers running.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.clock.advance(Duration::from_millis(250));
            for engine in [1, 2] {
                let mut out = Datagrams::new();
                if engine == 1 { &self.a } else { &self.b }.tick(self.clock.now(), &mut out);
                self.carry(&out);
            }
        }
    }

    fn carry(&mut self, datagrams: &Datagrams) {
        for (to, bytes) in datagrams.iter() {
            self.sent.push((self.clock.passed, bytes[0]));
            if !self.connected {
                continue;
            }
            let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
            let (engine, from) = if to == address(1) { (&self.a, address(2)) } else { (&self.b, address(1)) };
            engine.open(self.clock.now(), [(from, bytes)], &mut packets, &mut replies);
            self.delivered += packets.len();
            self.carry(&replies);
        }
    }

    fn initiations(&self, from: u64, to: u64) -> usize {
        let range = Duration::from_secs(from)..Duration::from_secs(to);
        self.sent.iter().filter(|(at, kind)| *kind == 1 && range.contains(at)).count()
    }
}

#[test]
fn with_a_keepalive_a_silent_peer_is_asked_for_ever_and_found_again() {
    let mut pair = Pair::new(Some(25));
    pair.connected = false;
    pair.pass(3_600);
    for quarter in 0..24 {
        let asked = pair.initiations(quarter * 150, (quarter + 1) * 150);
        assert!(asked >= 10, "{asked} initiations in quarter {quarter}");
        assert!(asked <= 31, "not more than one in five seconds: {asked}");
    }
    pair.connected = true;
    pair.pass(31);
    pair.send();
    assert_eq!(pair.delivered, 1, "at most 5 s between two attempts, or 25 after one was given up");
}

#[test]
fn without_a_keepalive_silence_costs_nothing_and_traffic_starts_again() {
    let mut pair = Pair::new(None);
    pair.send();
    assert_eq!(pair.delivered, 1);
    pair.pass(3_600);
    assert_eq!(pair.initiations(60, 3_600), 0);
    pair.send();
    assert_eq!(pair.delivered, 2, "the first packet after an hour");
    pair.connected = false;
    pair.pass(600);
    pair.send();
    pair.pass(200);
    assert!(pair.initiations(4_199, 4_400) >= 10);
    pair.connected = true;
    pair.send();
    assert!(pair.delivered >= 3, "and after boringtun has given up");
}

#[test]
fn a_session_in_use_is_renewed_every_two_minutes_without_loss() {
    let mut pair = Pair::new(None);
    for _ in 0..600 {
        pair.send();
        pair.pass(1);
    }
    assert_eq!(pair.delivered, 600);
    let handshakes = pair.initiations(0, 601);
    assert!((5..=6).contains(&handshakes), "{handshakes} handshakes in 600 s");
}

#[test]
fn the_last_handshake_is_remembered_after_its_session_has_ended() {
    let mut pair = Pair::new(None);
    pair.send();
    let (key, handshake) = {
        let (key, status) = pair.a.peers(pair.clock.now()).pop_first().unwrap();
        (key, status.last_handshake)
    };
    assert!(handshake.is_some());
    pair.pass(700);
    let status = pair.a.peers(pair.clock.now()).remove(&key).unwrap();
    assert_eq!(status.last_handshake, handshake);
    assert_eq!(status.since_handshake, Some(Duration::from_secs(700)));
}
