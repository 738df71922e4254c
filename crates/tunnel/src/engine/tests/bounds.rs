//! What one peer, or many dead ones, can use up of the interface.

use std::time::{Duration, Instant, SystemTime};

use super::net::{Attacker, Net, Node, owned, packet, prefix};
use crate::batch::{Datagrams, Packets};
use crate::counters::DropReason;
use crate::engine::{ClockReading, EngineOptions};
use wireguard::{PeerChange, PeerOp};

fn later(start: ClockReading, by: Duration) -> ClockReading {
    ClockReading { instant: start.instant + by, wall: start.wall + by }
}

#[test]
fn a_peer_that_floods_initiations_is_answered_fifty_times_a_second_and_others_as_before() {
    // Without cookies, which have another limit.
    let options = EngineOptions { handshakes_per_second: u64::MAX, ..EngineOptions::default() };
    let mut node = Node::new(1, options);
    let [mut flooder, mut other] = [66, 67].map(|number| Attacker::new(number, node.key));
    for peer in [flooder.key, other.key] {
        node.engine.apply(vec![PeerOp::add(peer, PeerChange::default())]).unwrap();
    }
    let start = ClockReading { instant: Instant::now(), wall: SystemTime::now() };
    let (mut answered, mut others) = (0, 0);
    for milliseconds in 0..1_000 {
        let now = later(start, Duration::from_millis(milliseconds));
        let initiation = flooder.initiation();
        answered += node.open_at(now, flooder.address, &initiation).len();
        if milliseconds % 100 == 99 {
            let initiation = other.initiation();
            others += node.open_at(now, other.address, &initiation).len();
        }
    }
    assert_eq!((answered, others), (50, 10));
    assert_eq!(node.dropped(DropReason::PeerHandshakeRateLimited), 950);
    // A stranger who only knows the peer's public key does not use up its share.
    let now = later(start, Duration::from_secs(2));
    let forged = {
        let mut bytes = other.initiation();
        bytes[100] ^= 1;
        bytes
    };
    assert!(node.open_at(now, other.address, &forged).is_empty());
    let initiation = other.initiation();
    assert_eq!(node.open_at(now, other.address, &initiation).len(), 1);
}

#[test]
fn retries_are_put_off_at_random_and_never_come_early() {
    let net = Net::mesh(2);
    let node = &net.nodes[0];
    let start = ClockReading::now();
    let mut out = Datagrams::new();
    assert!(node.engine.initiate_handshake(start, &net.nodes[1].key, &mut out));
    let (mut delays, mut last) = (Vec::new(), 0);
    for milliseconds in 0..85_000 {
        let mut out = Datagrams::new();
        node.engine.tick(later(start, Duration::from_millis(milliseconds)), &mut out);
        if !owned(&out).is_empty() {
            delays.push(milliseconds - last);
            last = milliseconds;
        }
    }
    assert!(delays.len() >= 15, "{delays:?}");
    assert!(delays.iter().all(|delay| (5_000..=5_334).contains(delay)), "{delays:?}");
    delays.sort_unstable();
    delays.dedup();
    assert!(delays.len() > 3, "they differ: {delays:?}");
}

#[test]
fn packets_for_many_dead_peers_are_bounded_and_a_living_one_still_connects() {
    const DEAD: u16 = 300;
    let mut net = Net::mesh(2);
    for number in 0..DEAD {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&number.to_le_bytes());
        let [high, low] = number.to_be_bytes();
        let change = PeerChange {
            endpoint: Some(format!("198.51.100.{low}:51840").parse().unwrap()),
            allow: [prefix(&format!("10.{}.{low}.0/24", 100 + high))].into(),
            ..PeerChange::default()
        };
        let peer = keyring::PublicKey::from_bytes(&bytes).unwrap();
        net.nodes[0].engine.apply(vec![PeerOp::add(peer, change)]).unwrap();
    }
    let sent = u64::from(DEAD) * 100;
    for _ in 0..100 {
        let (mut packets, mut out) = (Packets::new(), Datagrams::new());
        for number in 0..DEAD {
            let [high, low] = number.to_be_bytes();
            packets.push(&packet("10.0.1.5", &format!("10.{}.{low}.1", 100 + high), 0));
        }
        net.nodes[0].engine.seal(ClockReading::now(), &mut packets, &mut out);
    }
    let waiting = sent - net.nodes[0].dropped(DropReason::StagedPacketsLimited);
    assert!((8_192..8_192 + 4 * u64::from(DEAD)).contains(&waiting), "{waiting} wait");
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    assert_eq!(net.nodes[1].delivered.len(), 1);
}
