//! Handshakes, data, padding, keepalives and limits between honest engines.

use std::net::SocketAddr;
use std::time::Duration;

use keyring::{PresharedKey, PrivateKey};

use super::net::{Net, SECRET, packet, prefix};
use crate::counters::DropReason;
use crate::engine::EngineOptions;
use crate::engine::session::MessageLimits;
use wireguard::PeerChange;

#[test]
fn packets_arrive_and_the_eavesdropper_sees_one_handshake_and_no_plaintext() {
    let mut net = Net::mesh(3);
    let mut sent = Vec::new();
    for extra in 0..50 {
        sent.push(packet("10.0.1.5", "10.0.2.6", extra));
        net.send(0, sent.last().unwrap());
        sent.push(packet("fd00:1::5", "fd00:2::6", extra));
        net.send(0, sent.last().unwrap());
    }
    assert_eq!(net.nodes[1].delivered, sent);
    assert!(net.nodes[2].delivered.is_empty());
    assert_eq!((net.seen(1), net.seen(2)), (1, 1), "one initiation, one answer");
    assert_eq!(net.seen(4), 101, "100 packets and the keepalive that confirms the session");
    assert!(net.wire.iter().all(|(_, _, bytes)| bytes.windows(SECRET.len()).all(|part| part != SECRET)));
    assert_eq!(net.nodes.iter().map(super::net::Node::dropped_at_all).sum::<u64>(), 0);
}

#[test]
fn the_eavesdropper_would_see_plaintext() {
    // Positive control of the search above.
    let clear = packet("10.0.1.5", "10.0.2.6", 3);
    assert!(clear.windows(SECRET.len()).any(|part| part == SECRET));
}

#[test]
fn packets_that_wait_for_the_handshake_arrive_in_order() {
    let mut net = Net::mesh(2);
    let sent: Vec<_> = (0..20).map(|extra| packet("10.0.1.5", "10.0.2.6", extra)).collect();
    let first = net.nodes[0].seal(&sent[0]);
    assert_eq!((first.len(), first[0].1[0]), (1, 1), "an initiation");
    for waiting in &sent[1..] {
        assert!(net.nodes[0].seal(waiting).is_empty(), "only one initiation for all that wait");
    }
    let address = net.nodes[0].address;
    net.carry(address, first);
    assert_eq!(net.nodes[1].delivered, sent);
}

#[test]
fn both_may_start_at_once() {
    let mut net = Net::mesh(2);
    let (to_b, to_a) = (packet("10.0.1.5", "10.0.2.6", 0), packet("10.0.2.6", "10.0.1.5", 1));
    let (a, b) = (net.nodes[0].address, net.nodes[1].address);
    let (from_a, from_b) = (net.nodes[0].seal(&to_b), net.nodes[1].seal(&to_a));
    net.carry(a, from_a);
    net.carry(b, from_b);
    net.send(0, &to_b);
    net.send(1, &to_a);
    assert_eq!(net.nodes[1].delivered, [to_b.clone(), to_b]);
    assert_eq!(net.nodes[0].delivered, [to_a.clone(), to_a]);
}

#[test]
fn data_is_padded_to_16_bytes_within_the_mtu() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    for extra in 0..40 {
        net.send(0, &packet("10.0.1.5", "10.0.2.6", extra));
        assert_eq!(net.last_data().len() % 16, 0);
    }
    let largest = packet("10.0.1.5", "10.0.2.6", 1420 - 20 - SECRET.len());
    assert_eq!(largest.len(), 1420);
    net.send(0, &largest);
    assert_eq!(net.last_data().len(), 1420 + 32, "1420 is no multiple of 16, and stays");
    net.nodes[0].engine.set_mtu(1424);
    net.send(0, &largest);
    assert_eq!(net.last_data().len(), 1424 + 32);
    assert_eq!(net.nodes[1].delivered.last(), Some(&largest), "the padding is cut off again");
}

#[test]
fn what_has_no_way_out_is_dropped_and_counted() {
    let net = Net::mesh(2);
    let node = &net.nodes[0];
    assert!(node.seal(&packet("10.0.1.5", "10.0.9.1", 0)).is_empty());
    assert!(node.seal(&packet("10.0.1.5", "10.0.9.1", 0)[..19]).is_empty());
    assert_eq!((node.dropped(DropReason::NoPeer), node.dropped(DropReason::MalformedOutbound)), (1, 1));
    let lonely = super::net::Node::new(7, EngineOptions::default());
    lonely.change(node, PeerChange { allow: [prefix("0.0.0.0/0")].into(), ..Default::default() });
    assert!(lonely.seal(&packet("10.0.1.5", "10.0.9.1", 0)).is_empty());
    assert_eq!(lonely.dropped(DropReason::NoEndpoint), 1);
    lonely.change(node, PeerChange { endpoint: Some(node.address), ..Default::default() });
    lonely.engine.set_private_key(None);
    assert!(lonely.seal(&packet("10.0.1.5", "10.0.9.1", 0)).is_empty());
    assert_eq!(lonely.dropped(DropReason::NoPrivateKey), 1);
}

#[test]
fn a_keepalive_is_due_when_nothing_passed_for_its_interval() {
    let mut net = Net::mesh(2);
    let settings = |seconds| PeerChange { keepalive: Some(seconds), ..Default::default() };
    net.nodes[0].change(&net.nodes[1], settings(Some(25)));
    let first = net.nodes[0].tick(Duration::ZERO);
    assert_eq!(first.iter().map(|(_, bytes)| bytes[0]).collect::<Vec<_>>(), [1], "due at once: a handshake");
    let address = net.nodes[0].address;
    net.carry(address, first);
    assert!(net.nodes[0].tick(Duration::from_secs(24)).is_empty());
    let later = net.nodes[0].tick(Duration::from_secs(26));
    assert_eq!(later.iter().map(|(_, bytes)| (bytes[0], bytes.len())).collect::<Vec<_>>(), [(4, 32)]);
    assert!(net.nodes[0].tick(Duration::from_secs(27)).is_empty(), "one, not one per tick");
    net.carry(address, later);
    assert!(net.nodes[1].delivered.is_empty(), "a keepalive is no packet");
    net.nodes[0].change(&net.nodes[1], settings(None));
    assert!(net.nodes[0].tick(Duration::from_secs(500)).is_empty(), "turned off");
    assert_eq!(net.seen(1), 1, "changing it costs no handshake");
}

#[test]
fn changes_in_place_keep_the_session() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let moved = SocketAddr::from(([192, 0, 2, 99], 1));
    net.nodes[1].address = moved;
    let settings = PeerChange {
        endpoint: Some(moved),
        keepalive: Some(Some(5)),
        allow: [prefix("10.77.0.0/16")].into(),
        disallow: [prefix("10.0.2.0/24")].into(),
        roaming: Some(false),
    };
    net.nodes[0].change(&net.nodes[1], settings);
    net.nodes[0].set_preshared_key(&net.nodes[1], None);
    net.send(0, &packet("10.0.1.5", "10.77.0.1", 1));
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 2));
    assert_eq!(net.nodes[1].delivered.len(), 2);
    assert_eq!(net.nodes[0].dropped(DropReason::NoPeer), 1, "the prefix that was taken away");
    assert_eq!(net.seen(1), 1, "still the first session");
}

#[test]
fn another_preshared_key_leaves_the_session_and_holds_from_the_next_handshake_on() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    net.nodes[0].set_preshared_key(&net.nodes[1], Some(1));
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 1));
    net.send(1, &packet("10.0.2.6", "10.0.1.5", 1));
    assert_eq!((net.nodes[1].delivered.len(), net.nodes[0].delivered.len(), net.seen(1)), (2, 1, 1));
    let id = PresharedKey::from_bytes(&[1; 32]).unwrap().id();
    assert_eq!(net.nodes[0].status(&net.nodes[1]).config.preshared, Some(id));

    net.handshake(0, 1);
    assert_eq!(net.nodes[0].dropped(DropReason::InvalidHandshake), 1, "only one side has it");
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 2));
    assert_eq!(net.nodes[1].delivered.len(), 3, "and the old session is still there");

    // The initiation that failed is still pending at node 0: the other side initiates.
    let before = net.nodes[1].status(&net.nodes[0]).last_handshake;
    net.nodes[1].set_preshared_key(&net.nodes[0], Some(2));
    net.nodes[1].set_preshared_key(&net.nodes[0], Some(1));
    net.handshake(1, 0);
    assert!(net.nodes[1].status(&net.nodes[0]).last_handshake > before, "now both have it");
    net.nodes[0].set_preshared_key(&net.nodes[1], None);
    assert_eq!(net.nodes[0].status(&net.nodes[1]).config.preshared, None);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 3));
    assert_eq!(net.nodes[1].delivered.len(), 4);
    net.handshake(1, 0);
    assert_eq!(net.nodes[1].dropped(DropReason::InvalidHandshake), 1, "taken from one side");
}

#[test]
fn another_private_key_ends_every_session_and_the_same_none() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    net.nodes[0].engine.set_private_key(Some(PrivateKey::from_bytes(&[1; 32]).unwrap()));
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 1));
    assert_eq!((net.nodes[1].delivered.len(), net.seen(1)), (2, 1));
    net.nodes[0].engine.set_private_key(Some(PrivateKey::from_bytes(&[9; 32]).unwrap()));
    assert_eq!(net.nodes[0].status(&net.nodes[1]).last_handshake, None);
    net.send(1, &packet("10.0.2.6", "10.0.1.5", 2));
    assert!(net.nodes[0].delivered.is_empty(), "the old session is gone");
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 3));
    assert_eq!(net.nodes[1].dropped(DropReason::UnknownPeer), 1, "no peer has the new key yet");
}

#[test]
fn a_session_is_renewed_and_ends_by_its_number_of_messages() {
    let limits = MessageLimits { rekey_after: 10, reject_after: 15 };
    let mut net = Net::mesh_with(2, EngineOptions { limits, ..EngineOptions::default() });
    for extra in 0..30 {
        net.send(0, &packet("10.0.1.5", "10.0.2.6", extra));
    }
    assert_eq!(net.nodes[1].delivered.len(), 30, "renewed in time, nothing is lost");
    assert_eq!(
        net.seen(1),
        4,
        "the first, and one behind each ten packets: a session begins with a keepalive"
    );

    let mut net = Net::mesh_with(2, EngineOptions { limits, ..EngineOptions::default() });
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let sealed = (0..30).flat_map(|extra| net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", extra)));
    let data: Vec<_> = sealed.filter(|(_, bytes)| bytes[0] == 4).collect();
    assert_eq!(data.len(), 13, "counters 2 to 14, then nothing more without an answer to the handshake");
    assert_eq!(net.nodes[0].dropped(DropReason::MessageLimit), 17);
}

#[test]
fn a_responder_believes_a_handshake_once_the_session_is_used() {
    let mut net = Net::mesh(2);
    let initiation = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 0));
    let source = net.nodes[0].address;
    let answer = net.nodes[1].open(source, &initiation[0].1);
    assert_eq!(net.nodes[1].status(&net.nodes[0]).last_handshake, None, "the answer may be lost");
    let confirmation = net.nodes[0].open(answer[0].0, &answer[0].1);
    assert!(net.nodes[0].status(&net.nodes[1]).last_handshake.is_some());
    net.nodes[1].open(source, &confirmation[0].1);
    assert!(net.nodes[1].status(&net.nodes[0]).last_handshake.is_some());
}

#[test]
fn bytes_are_counted_as_they_are_on_the_wire() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    net.send(1, &packet("10.0.2.6", "10.0.1.5", 0));
    let a = net.nodes[0].address;
    let from_a = |from: bool| -> u64 {
        net.wire
            .iter()
            .filter(|(source, ..)| (*source == a) == from)
            .map(|(_, _, bytes)| bytes.len() as u64)
            .sum()
    };
    let status = net.nodes[0].status(&net.nodes[1]);
    assert_eq!((status.sent, status.received), (from_a(true), from_a(false)));
    let status = net.nodes[1].status(&net.nodes[0]);
    assert_eq!((status.received, status.sent), (from_a(true), from_a(false)));
}
