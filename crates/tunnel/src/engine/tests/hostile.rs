//! Hostile input: replays, forgeries, garbage, floods, and peers that spoof addresses inside the tunnel.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::net::{Attacker, Net, Node, packet, prefix};
use crate::batch::{Datagrams, Packets};
use crate::counters::DropReason;
use crate::engine::{ClockReading, EngineOptions};
use keyring::PrivateKey;
use wireguard::{PeerChange, PeerOp};

/// A node with a peer that does what it likes; its prefix is `10.66.0.0/16`.
fn with_attacker(options: EngineOptions) -> (Node, Attacker) {
    let node = Node::new(1, options);
    let attacker = Attacker::new(66, node.key);
    let allow = [prefix("10.66.0.0/16"), prefix("fd66::/64")].into();
    let peer = attacker.key;
    let settings = PeerChange { allow, ..Default::default() };
    node.engine.apply(vec![PeerOp::add(peer, settings)]).unwrap();
    (node, attacker)
}

#[test]
fn a_replayed_packet_is_refused() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let (from, replay) = (net.nodes[0].address, net.last_data());
    net.nodes[1].open(from, &replay);
    assert_eq!((net.nodes[1].delivered.len(), net.nodes[1].dropped(DropReason::Replay)), (1, 1));
    // Positive control: reordering within the window is no replay.
    let late = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 1)).remove(0).1;
    for extra in 2..100 {
        net.send(0, &packet("10.0.1.5", "10.0.2.6", extra));
    }
    net.nodes[1].open(from, &late);
    assert_eq!(net.nodes[1].delivered.len(), 100);
}

#[test]
fn a_replayed_handshake_gets_no_answer_and_ends_no_session() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let (from, _, initiation) = net.wire[0].clone();
    assert_eq!(initiation[0], 1);
    assert!(net.nodes[1].open(from, &initiation).is_empty());
    let (_, _, answer) = net.wire.iter().find(|(_, _, bytes)| bytes[0] == 2).unwrap().clone();
    let to = net.nodes[1].address;
    assert!(net.nodes[0].open(to, &answer).is_empty());
    assert_eq!(net.nodes[1].dropped(DropReason::InvalidHandshake), 1);
    assert_eq!(net.nodes[0].dropped(DropReason::InvalidHandshake), 1);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 1));
    assert_eq!((net.nodes[1].delivered.len(), net.seen(1)), (2, 1));
}

#[test]
fn every_kind_of_bad_datagram_is_counted_under_its_reason() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let (from, data) =
        (net.nodes[0].address, net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 1)).remove(0).1);
    let changed = |at: usize, value: u8| {
        let mut bytes = data.clone();
        bytes[at] ^= value;
        bytes
    };
    let initiation = net.wire[0].2.clone();
    let mut other_mac = initiation.clone();
    other_mac[120] ^= 1;
    let beyond_limit = [&data[..8], &[0xff; 8], &data[16..]].concat();
    for (reason, bytes) in [
        (DropReason::MalformedDatagram, vec![]),
        (DropReason::MalformedDatagram, vec![4, 0, 0, 0]),
        (DropReason::MalformedDatagram, data[..31].to_vec()),
        (DropReason::MalformedDatagram, changed(0, 1)),
        (DropReason::MalformedDatagram, changed(3, 1)),
        (DropReason::MalformedDatagram, initiation[..147].to_vec()),
        (DropReason::OversizedDatagram, vec![4; 65_536]),
        (DropReason::UnknownIndex, changed(7, 1)),
        (DropReason::NoSession, changed(4, 3)),
        (DropReason::Forged, changed(40, 1)),
        (DropReason::Forged, data[..data.len() - 1].to_vec()),
        (DropReason::Forged, changed(8, 0x40)),
        (DropReason::MessageLimit, beyond_limit),
        (DropReason::InvalidMac, other_mac),
        (DropReason::InvalidHandshake, initiation),
    ] {
        let before = net.nodes[1].dropped(reason);
        let answers = net.nodes[1].open(from, &bytes);
        assert!(answers.is_empty(), "{reason:?} is not answered");
        assert_eq!(net.nodes[1].dropped(reason), before + 1, "{reason:?}");
    }
    let elsewhere = SocketAddr::from(([192, 0, 2, 9], 9));
    net.nodes[1].open(elsewhere, &changed(40, 1));
    assert_eq!(net.nodes[1].dropped(DropReason::Forged), 4);
    assert_eq!(net.nodes[1].status(&net.nodes[0]).forged, 3, "those from the peer's endpoint");
    assert_eq!(net.nodes[1].delivered.len(), 1);
    net.nodes[1].open(from, &data);
    assert_eq!(net.nodes[1].delivered.len(), 2, "and the good one still passes");
}

#[test]
fn what_a_peer_puts_into_the_tunnel_must_be_a_packet_of_its_own() {
    let (mut node, mut attacker) = with_attacker(EngineOptions::default());
    attacker.connect(&mut node);
    let good = packet("10.66.0.1", "10.0.1.1", 0);
    let with_length = |length: u16| {
        let mut bytes = good.clone();
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    let mut short_header = good.clone();
    short_header[0] = 0x44;
    for (reason, inner) in [
        (DropReason::MalformedInbound, with_length(0)),
        (DropReason::MalformedInbound, with_length(19)),
        (DropReason::MalformedInbound, with_length(9_999)),
        (DropReason::MalformedInbound, short_header),
        (DropReason::MalformedInbound, vec![0x45; 19]),
        (DropReason::MalformedInbound, vec![0x60; 39]),
        (DropReason::MalformedInbound, vec![0; 60]),
        (DropReason::MalformedInbound, vec![0xff]),
        (DropReason::SourceMismatch, packet("10.67.0.1", "10.0.1.1", 0)),
        (DropReason::SourceMismatch, packet("fd67::1", "fd00::1", 0)),
    ] {
        let before = node.dropped(reason);
        let datagram = attacker.sealed(&inner);
        assert!(node.open(attacker.address, &datagram).is_empty());
        assert_eq!(node.dropped(reason), before + 1, "{reason:?} {inner:?}");
    }
    assert!(node.delivered.is_empty());
    let datagram = attacker.sealed(&[&good[..], &[0xaa; 1000]].concat());
    node.open(attacker.address, &datagram);
    assert_eq!(node.delivered, [good], "cut to the length that its header states");
}

#[test]
fn under_load_a_handshake_needs_a_cookie_for_its_address_and_port() {
    let (mut node, mut attacker) =
        with_attacker(EngineOptions { handshakes_per_second: 0, ..EngineOptions::default() });
    let answers = node.open(attacker.address, &attacker.initiation());
    assert_eq!(answers.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [64], "a cookie");
    assert_eq!(node.engine.counters().cookie_replies, 1);
    attacker.take(&answers[0].1);
    let proven = attacker.initiation();
    let other_port = SocketAddr::new(attacker.address.ip(), 1);
    assert_eq!(node.open(other_port, &proven)[0].1.len(), 64, "the cookie of another port is none");
    let answers = node.open(attacker.address, &proven);
    assert_eq!(answers.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [92], "an answer");
    assert_eq!(node.dropped(DropReason::HandshakeRateLimited), 2);
}

#[test]
fn the_more_peers_there_are_the_more_handshakes_need_no_cookie() {
    let key = |number: u8| PrivateKey::from_bytes(&[100 + number; 32]).unwrap();
    let flooded = |node: &mut Node| {
        let mut stranger = Attacker::new(66, node.key);
        let before = node.engine.counters().cookie_replies;
        for port in 1..=20 {
            node.open(SocketAddr::from(([203, 0, 113, 1], port)), &stranger.initiation());
        }
        node.engine.counters().cookie_replies - before
    };
    let options = EngineOptions { handshakes_per_second: 2, ..EngineOptions::default() };
    for (peers, without_cookie) in [(1, 2), (14, 2), (25, 5), (50, 10)] {
        let mut node = Node::new(1, options);
        let add = |number| PeerOp::add(key(number).public(), PeerChange::default());
        node.engine.apply((0..peers).map(add).collect()).unwrap();
        assert_eq!(flooded(&mut node), 20 - without_cookie, "{peers} peers");
        // Another static key begins to count anew.
        node.engine.set_private_key(Some(key(99)));
        node.key = key(99).public();
        assert_eq!(flooded(&mut node), 20 - without_cookie, "{peers} peers and another key");
        node.engine.set_private_key(Some(key(98)));
        node.key = key(98).public();
        let remove = |number| PeerOp::Remove { peer: key(number).public() };
        node.engine.apply((0..peers).map(remove).collect()).unwrap();
        assert_eq!(flooded(&mut node), 18, "those that have left count no more");
    }
}

#[test]
fn a_proven_source_may_not_flood_either() {
    let (mut node, mut attacker) =
        with_attacker(EngineOptions { handshakes_per_second: 0, ..EngineOptions::default() });
    let cookie = node.open(attacker.address, &attacker.initiation()).remove(0).1;
    attacker.take(&cookie);
    let now = ClockReading::now();
    let flood: Vec<_> = (0..50).map(|_| attacker.initiation()).collect();
    let answered =
        flood.iter().filter(|initiation| !node.open_at(now, attacker.address, initiation).is_empty()).count();
    assert!((1..=5).contains(&answered), "{answered} of 50 were answered");
}

#[test]
fn a_flood_of_handshakes_leaves_a_session_alone() {
    let mut net = Net::mesh_with(2, EngineOptions { handshakes_per_second: 5, ..EngineOptions::default() });
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let mut stranger = Attacker::new(66, net.nodes[1].key);
    for port in 1..2_000 {
        let from = SocketAddr::from(([203, 0, 113, 1], port));
        net.nodes[1].open(from, &stranger.initiation());
        if port % 100 == 0 {
            net.send(0, &packet("10.0.1.5", "10.0.2.6", usize::from(port)));
        }
    }
    assert_eq!(net.nodes[1].delivered.len(), 20);
    assert!(net.nodes[1].engine.counters().cookie_replies > 1_900);
}

proptest! {
    #[test]
    fn garbage_never_panics_and_honest_traffic_goes_on(
        garbage in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        kinds in prop::collection::vec(0u8..6, 20),
    ) {
        let mut net = Net::mesh(2);
        net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
        let from = net.nodes[0].address;
        for (mut bytes, kind) in garbage.into_iter().zip(kinds) {
            net.nodes[1].open(from, &bytes);
            if let [first, second, third, fourth, ..] = &mut bytes[..] {
                (*first, *second, *third, *fourth) = (kind, 0, 0, 0);
            }
            net.nodes[1].open(from, &bytes);
        }
        net.send(0, &packet("10.0.1.5", "10.0.2.6", 1));
        prop_assert_eq!(net.nodes[1].delivered.len(), 2);
    }

    #[test]
    fn mutated_messages_are_never_delivered(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        which in 0usize..4,
    ) {
        let mut net = Net::mesh(2);
        net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
        let fresh = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 1)).remove(0).1;
        let original = if which == 3 { fresh.clone() } else { net.wire[which].2.clone() };
        let mut mutated = original.clone();
        for (at, flip) in flips {
            let at = at.index(mutated.len());
            mutated[at] ^= flip;
        }
        if let Some(cut) = cut {
            mutated.truncate(cut.index(mutated.len()));
        }
        prop_assume!(mutated != original);
        for node in &mut net.nodes {
            let before = node.delivered.len();
            node.open(SocketAddr::from(([198, 51, 100, 1], 7)), &mutated);
            prop_assert_eq!(node.delivered.len(), before);
        }
        let from = net.nodes[0].address;
        net.nodes[1].open(from, &fresh);
        prop_assert_eq!(net.nodes[1].delivered.len(), 2);
    }

    #[test]
    fn whatever_is_inside_only_own_packets_come_out(inner in prop::collection::vec(any::<u8>(), 0..200)) {
        let (mut node, mut attacker) = with_attacker(EngineOptions::default());
        attacker.connect(&mut node);
        for version in [0x45, 0x60, 0x46] {
            let mut inner = inner.clone();
            if let Some(first) = inner.first_mut() {
                *first = version;
            }
            let datagram = attacker.sealed(&inner);
            node.open(attacker.address, &datagram);
        }
        for delivered in &node.delivered {
            let header = crate::engine::packet::Header::parse(delivered).unwrap();
            prop_assert!(prefix("10.66.0.0/16").contains(header.source) || prefix("fd66::/64").contains(header.source));
            prop_assert_eq!(header.len, delivered.len());
        }
    }

    #[test]
    fn whatever_comes_from_the_tun_is_sent_or_counted(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20),
    ) {
        let mut net = Net::mesh(2);
        net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
        let (mut batch, mut out) = (Packets::new(), Datagrams::new());
        for packet in &packets {
            batch.push(packet);
        }
        net.nodes[0].engine.seal(ClockReading::now(), &mut batch, &mut out);
        prop_assert_eq!(out.len() as u64 + net.nodes[0].dropped_at_all(), packets.len() as u64);
    }
}
