//! Allowed IPs, roaming, changes to the set of peers, and threads.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyring::PublicKey;

use super::net::{Attacker, Net, Node, now, packet, prefix};
use crate::batch::{Datagrams, Packets};
use crate::counters::DropReason;
use crate::engine::{ClockReading, EngineOptions};
use crate::error::ChangeError;
use wireguard::{PeerChange, PeerOp};

/// Node 0 gives `10.0.0.0/8` to node 1 and the smaller `10.5.0.0/16` inside to node 2.
fn nested() -> Net {
    let net = Net::mesh(3);
    let allow = |text: &str| PeerChange { allow: [prefix(text)].into(), ..Default::default() };
    net.nodes[0].change(&net.nodes[1], allow("10.0.0.0/8"));
    net.nodes[0].change(&net.nodes[2], allow("10.5.0.0/16"));
    for node in &net.nodes[1..] {
        node.change(&net.nodes[0], allow("10.0.0.0/8"));
    }
    net
}

#[test]
fn a_peer_cannot_send_from_a_smaller_prefix_of_another_inside_its_own() {
    let mut net = nested();
    net.send(1, &packet("10.5.0.1", "10.0.1.5", 0));
    assert!(net.nodes[0].delivered.is_empty(), "10.5.0.1 is node 2's");
    assert_eq!(net.nodes[0].dropped(DropReason::SourceMismatch), 1);
    // Positive control: the owner may, and the spoofer may from its own part of the prefix.
    let honest = [packet("10.5.0.1", "10.0.1.5", 1), packet("10.6.0.1", "10.0.1.5", 2)];
    net.send(2, &honest[0]);
    net.send(1, &honest[1]);
    assert_eq!(net.nodes[0].delivered, honest);
}

#[test]
fn packets_go_to_the_owner_of_the_longest_prefix() {
    let mut net = nested();
    net.send(0, &packet("10.0.1.5", "10.5.0.1", 0));
    net.send(0, &packet("10.0.1.5", "10.4.0.1", 1));
    assert_eq!(net.nodes[2].delivered, [packet("10.0.1.5", "10.5.0.1", 0)]);
    assert_eq!(net.nodes[1].delivered, [packet("10.0.1.5", "10.4.0.1", 1)]);
}

#[test]
fn a_source_that_no_peer_owns_is_refused() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("172.16.0.1", "10.0.2.6", 0));
    net.send(0, &packet("fd00:2::1", "fd00:2::6", 0));
    assert!(net.nodes[1].delivered.is_empty());
    assert_eq!(net.nodes[1].dropped(DropReason::SourceMismatch), 2);
}

#[test]
fn a_prefix_belongs_to_the_peer_that_got_it_last() {
    let mut net = Net::mesh(3);
    let allow = || PeerChange { allow: [prefix("10.50.0.7/16")].into(), ..Default::default() };
    net.nodes[0].change(&net.nodes[1], allow());
    net.nodes[0].change(&net.nodes[2], allow());
    let owned = prefix("10.50.0.0/16");
    assert!(!net.nodes[0].status(&net.nodes[1]).config.allowed_ips.contains(&owned));
    assert!(net.nodes[0].status(&net.nodes[2]).config.allowed_ips.contains(&owned), "host bits are cleared");
    net.send(0, &packet("10.0.1.5", "10.50.0.1", 0));
    assert_eq!(net.nodes[2].delivered.len(), 1);
    let take = PeerChange { disallow: [owned].into(), ..Default::default() };
    net.nodes[0].change(&net.nodes[1], take);
    assert!(
        net.nodes[0].status(&net.nodes[2]).config.allowed_ips.contains(&owned),
        "one can't take what another has"
    );
}

#[test]
fn a_roaming_peer_is_followed_by_authenticated_packets_only() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let elsewhere = SocketAddr::from(([198, 51, 100, 1], 7));
    let datagram = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 1)).remove(0).1;
    let mut forged = datagram.clone();
    *forged.last_mut().unwrap() ^= 1;
    net.nodes[1].open(elsewhere, &forged);
    assert_eq!(net.nodes[1].status(&net.nodes[0]).config.endpoint, Some(net.nodes[0].address));
    net.nodes[1].open(elsewhere, &datagram);
    assert_eq!(net.nodes[1].status(&net.nodes[0]).config.endpoint, Some(elsewhere));
    let home = net.nodes[0].address;
    net.nodes[1].open(home, &datagram);
    assert_eq!(net.nodes[1].status(&net.nodes[0]).config.endpoint, Some(elsewhere), "a replay moves nothing");
}

#[test]
fn the_endpoint_of_a_peer_that_does_not_roam_stays() {
    let mut net = Net::mesh(2);
    let fixed = || PeerChange { roaming: Some(false), ..Default::default() };
    net.nodes[1].change(&net.nodes[0], fixed());
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let elsewhere = SocketAddr::from(([198, 51, 100, 1], 7));
    let datagram = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 1)).remove(0).1;
    net.nodes[1].open(elsewhere, &datagram);
    let status = net.nodes[1].status(&net.nodes[0]);
    assert_eq!((status.config.endpoint, status.endpoint_drifts), (Some(net.nodes[0].address), 1));
    assert_eq!(net.nodes[1].delivered.len(), 2, "what it carries is good all the same");
}

#[test]
fn turning_roaming_off_brings_the_configured_endpoint_back() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let elsewhere = SocketAddr::from(([198, 51, 100, 1], 7));
    let datagram = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 1)).remove(0).1;
    net.nodes[1].open(elsewhere, &datagram);
    net.nodes[1].change(&net.nodes[0], PeerChange { roaming: Some(false), ..Default::default() });
    assert_eq!(net.nodes[1].status(&net.nodes[0]).config.endpoint, Some(net.nodes[0].address));
}

#[test]
fn without_a_configured_endpoint_it_is_learnt_even_if_the_peer_does_not_roam() {
    let mut net = Net::mesh(1);
    let mut quiet = Node::new(9, EngineOptions::default());
    let allow = [prefix("10.0.1.0/24")].into();
    quiet.change(&net.nodes[0], PeerChange { allow, roaming: Some(false), ..Default::default() });
    let allow = [prefix("10.0.9.0/24")].into();
    net.nodes[0].change(&quiet, PeerChange { allow, endpoint: Some(quiet.address), ..Default::default() });
    assert!(quiet.seal(&packet("10.0.9.1", "10.0.1.5", 0)).is_empty(), "it has no endpoint yet");
    net.nodes.push(quiet);
    net.send(0, &packet("10.0.1.5", "10.0.9.1", 0));
    net.send(1, &packet("10.0.9.1", "10.0.1.5", 0));
    assert_eq!(net.nodes[0].delivered.len(), 1);
    quiet = net.nodes.remove(1);
    let configured = SocketAddr::from(([203, 0, 113, 1], 1));
    quiet.change(&net.nodes[0], PeerChange { endpoint: Some(configured), ..Default::default() });
    assert_eq!(quiet.status(&net.nodes[0]).config.endpoint, Some(configured));
}

#[test]
fn a_cookie_reply_moves_no_endpoint() {
    let mut net = Net::mesh_with(2, EngineOptions { handshakes_per_second: 0, ..EngineOptions::default() });
    let initiation = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 0)).remove(0).1;
    let from = net.nodes[0].address;
    let cookie = net.nodes[1].open(from, &initiation).remove(0).1;
    assert_eq!((cookie[0], cookie.len()), (3, 64));
    net.nodes[0].open(SocketAddr::from(([198, 51, 100, 1], 7)), &cookie);
    assert_eq!(net.nodes[0].status(&net.nodes[1]).config.endpoint, Some(net.nodes[1].address));
    assert_eq!(net.nodes[0].dropped_at_all(), 0, "it was taken");
}

#[test]
fn a_removed_peer_is_cut_off_at_once() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let late = net.nodes[0].seal(&packet("10.0.1.5", "10.0.2.6", 1)).remove(0).1;
    let (from, peer) = (net.nodes[0].address, net.nodes[0].key);
    net.nodes[1].engine.apply(vec![PeerOp::Remove { peer }]).unwrap();
    net.nodes[1].open(from, &late);
    assert_eq!(net.nodes[1].delivered.len(), 1);
    assert_eq!(net.nodes[1].dropped(DropReason::UnknownIndex), 1);
    assert!(net.nodes[1].seal(&packet("10.0.2.6", "10.0.1.5", 0)).is_empty());
}

#[test]
fn a_set_of_changes_is_applied_as_a_whole_or_not_at_all() {
    let net = Net::mesh(2);
    let (node, stranger) = (&net.nodes[0], PublicKey::from_bytes(&[9; 32]).unwrap());
    let before = node.engine.peers(ClockReading::now());
    let remove = || PeerOp::Remove { peer: net.nodes[1].key };
    let update = PeerOp::update(stranger, PeerChange::default());
    let refused = node.engine.apply(vec![remove(), update]);
    assert_eq!(refused, Err(ChangeError::UnknownPeer { peer: stranger }));
    let own = PeerOp::add(node.key, PeerChange::default());
    assert_eq!(node.engine.apply(vec![remove(), own]), Err(ChangeError::OwnKey { peer: node.key }));
    assert_eq!(node.engine.peers(ClockReading::now()), before);
    let add = PeerOp::add(stranger, PeerChange::default());
    let update = PeerOp::update(stranger, PeerChange::default());
    node.engine.apply(vec![remove(), remove(), add, update]).unwrap();
    assert_eq!(node.engine.peers(ClockReading::now()).into_keys().collect::<Vec<_>>(), [stranger]);
}

#[test]
fn a_peer_with_the_new_own_key_goes() {
    let net = Net::mesh(2);
    let private = keyring::PrivateKey::from_bytes(&[2; 32]).unwrap();
    assert_eq!(private.public(), net.nodes[1].key);
    net.nodes[0].engine.set_private_key(Some(private));
    assert!(net.nodes[0].engine.peers(ClockReading::now()).is_empty());
}

#[test]
fn a_stranger_gets_no_answer() {
    let mut net = Net::mesh(1);
    let mut stranger = Attacker::new(66, net.nodes[0].key);
    assert!(net.nodes[0].open(stranger.address, &stranger.initiation()).is_empty());
    assert_eq!(net.nodes[0].dropped(DropReason::UnknownPeer), 1);
}

#[test]
fn both_directions_and_changes_at_once_neither_lose_packets_nor_stop() {
    const ROUNDS: usize = 3_000;
    let mut net = Net::mesh(3);
    for to in 1..3 {
        net.send(0, &packet("10.0.1.5", &format!("10.0.{}.6", to + 1), 0));
    }
    let [a, b, c] = &net.nodes[..] else { unreachable!() };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Batches that go to and fro between two peers, so that locks are taken in every order.
        let ways = [(a, [b, c], 1), (b, [a, c], 2), (c, [b, a], 3)];
        let senders: Vec<_> = ways
            .into_iter()
            .map(|(from, _, own)| {
                scope.spawn(move || {
                    let (mut packets, mut out) = (Packets::new(), Datagrams::new());
                    let mut delivered = 0;
                    for round in 0..ROUNDS {
                        packets.clear();
                        out.clear();
                        let others = [1, 2, 3].into_iter().filter(|other| *other != own);
                        for other in others.cycle().skip(round % 2).take(6) {
                            let source = format!("10.0.{own}.5");
                            packets.push(&packet(&source, &format!("10.0.{other}.6"), 0));
                        }
                        from.engine.seal(ClockReading::now(), &mut packets, &mut out);
                        delivered += carry(&out, from.address, [a, b, c]);
                    }
                    delivered
                })
            })
            .collect();
        let changer = scope.spawn(|| {
            let mut prefixes = (0..=255u8).cycle();
            while !done.load(Ordering::Relaxed) {
                let octet = prefixes.next().unwrap();
                let allow = std::collections::BTreeSet::from([prefix(&format!("10.200.{octet}.0/24"))]);
                a.change(b, PeerChange { allow: allow.clone(), ..Default::default() });
                a.change(b, PeerChange { disallow: allow, ..Default::default() });
            }
        });
        let delivered: usize = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        changer.join().unwrap();
        assert!(
            delivered >= 3 * ROUNDS * 6 - 600,
            "{delivered}: at most the queues of first handshakes are lost"
        );
    });
    for node in &net.nodes {
        assert_eq!(node.dropped(DropReason::SourceMismatch) + node.dropped(DropReason::Forged), 0);
    }
}

/// Carries datagrams and answers in the calling thread and counts the packets that come out.
fn carry(datagrams: &Datagrams, from: SocketAddr, nodes: [&Node; 3]) -> usize {
    let mut delivered = 0;
    for (to, bytes) in datagrams.iter() {
        let Some(node) = nodes.into_iter().find(|node| node.address == to) else { continue };
        let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
        node.engine.open(ClockReading::now(), [(from, bytes)], &mut packets, &mut replies);
        delivered += packets.len() + carry(&replies, to, nodes);
    }
    delivered
}

#[test]
fn a_handshake_in_progress_is_begun_anew_with_another_endpoint_or_half_a_second_later() {
    let net = Net::mesh(2);
    let (engine, peer, start) = (&net.nodes[0].engine, net.nodes[1].key, now());
    let initiations = |millis| -> Vec<SocketAddr> {
        let mut out = Datagrams::new();
        let later = Duration::from_millis(millis);
        let at = ClockReading { instant: start.instant + later, wall: start.wall + later };
        assert!(engine.initiate_handshake(at, &peer, &mut out));
        out.iter().map(|(to, _)| to).collect()
    };
    assert_eq!(initiations(0).len(), 1);
    assert!(initiations(300).is_empty(), "it is in progress");
    let elsewhere: SocketAddr = "192.0.2.99:51840".parse().unwrap();
    let change = PeerChange { endpoint: Some(elsewhere), ..PeerChange::default() };
    engine.apply(vec![PeerOp::update(peer, change)]).unwrap();
    assert_eq!(initiations(600), [elsewhere]);
    assert!(initiations(900).is_empty());
    assert_eq!(initiations(1_100), [elsewhere], "half a second has passed");
}
