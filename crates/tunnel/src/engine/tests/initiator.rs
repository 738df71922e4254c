//! The handshake without a device, with the engine and with boringtun.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use keyring::{PresharedKey, PrivateKey};
use wireguard::PeerChange;

use super::net::{Net, Node, packet};
use crate::engine::initiator::{Initiator, Received, answered_index, initiation_from, just_before};
use crate::engine::timestamp::Timestamps;
use crate::engine::{ClockReading, EngineOptions};

/// An initiator with the private key of a node of [`Net::mesh`].
fn initiator(number: u8, peer: &Node, preshared: Option<u8>) -> Initiator {
    let preshared = preshared.map(|byte| PresharedKey::from_bytes(&[byte; 32]).unwrap());
    Initiator::new(PrivateKey::from_bytes(&[number; 32]).unwrap(), &peer.key, preshared.as_ref())
}

fn begin(initiator: &mut Initiator, index: u32, wall: SystemTime) -> [u8; 148] {
    initiator.begin(index, &PrivateKey::from_bytes(&[9; 32]).unwrap(), wall).unwrap()
}

fn elsewhere() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], 7))
}

#[test]
fn the_engine_answers_where_the_initiation_came_from_and_moves_no_endpoint() {
    let mut net = Net::mesh(2);
    net.nodes[1].change(&net.nodes[0], PeerChange { roaming: Some(false), ..PeerChange::default() });
    net.nodes[1].set_preshared_key(&net.nodes[0], Some(5));
    let mut ours = initiator(1, &net.nodes[1], Some(5));
    let first = begin(&mut ours, 77, SystemTime::now());
    let answers = net.nodes[1].open(elsewhere(), &first);
    assert_eq!(answers.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [elsewhere()]);
    assert_eq!(net.nodes[1].status(&net.nodes[0]).config.endpoint, Some(net.nodes[0].address));
    assert_eq!(ours.receive(&answers[0].1), Received::Response);
    let mut another = initiator(1, &net.nodes[1], Some(6));
    begin(&mut another, 77, SystemTime::now());
    assert_eq!(another.receive(&answers[0].1), Received::Nothing, "another preshared key and ephemeral key");
    assert_eq!(net.nodes[1].status(&net.nodes[0]).since_handshake, None, "the peer counts no handshake");
}

#[test]
fn sessions_go_on_and_the_device_can_initiate_at_the_same_time() {
    let mut net = Net::mesh(2);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 0));
    let now = ClockReading::now().wall;
    let mut ours = initiator(1, &net.nodes[1], None);
    // A device had its timestamp just before; the first try is later than that, and not so soon that it is a flood.
    let later = Duration::from_secs(1);
    let message = begin(&mut ours, 1, now + later);
    let at = ClockReading { instant: ClockReading::now().instant + later, wall: now + later };
    let answers = net.nodes[1].open_at(at, elsewhere(), &message);
    assert_eq!(ours.receive(&answers[0].1), Received::Response);
    net.send(0, &packet("10.0.1.5", "10.0.2.6", 1));
    assert_eq!(net.nodes[1].delivered.len(), 2);
    assert!(just_before(now) < Timestamps::default().next(now));
    let earlier = now - Duration::from_millis(40);
    assert!(just_before(now) > Timestamps::default().next(earlier));
}

#[test]
fn boringtun_answers_and_every_changed_byte_is_noticed() {
    let secret = x25519::StaticSecret::from([2; 32]);
    let own = PrivateKey::from_bytes(&[1; 32]).unwrap();
    let public = x25519::PublicKey::from(*own.public().as_bytes());
    let mut theirs = Tunn::new(secret, public, Some([5; 32]), None, 5, None);
    let peer = PrivateKey::from_bytes(&[2; 32]).unwrap().public();
    let preshared = PresharedKey::from_bytes(&[5; 32]).unwrap();
    let mut ours = Initiator::new(own, &peer, Some(&preshared));
    let message = begin(&mut ours, 3, SystemTime::now());
    let mut buffer = [0; 256];
    let answer = match theirs.decapsulate(None, &message, &mut buffer) {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    };
    // The sender's index, which nothing covers, and the MACs, which are the limiter's, prove nothing.
    for at in (0..1).chain(8..60) {
        let mut changed = answer.clone();
        changed[at] ^= 0x10;
        assert_eq!(ours.receive(&changed), Received::Nothing, "byte {at}");
    }
    assert_eq!(ours.receive(&answer[..91]), Received::Nothing);
    assert_eq!(ours.receive(&[]), Received::Nothing);
    assert_eq!(ours.receive(&answer), Received::Response);
}

#[test]
fn a_peer_under_load_is_asked_again_with_its_cookie() {
    let mut net = Net::mesh_with(2, EngineOptions { handshakes_per_second: 0, ..EngineOptions::default() });
    let mut ours = initiator(1, &net.nodes[1], None);
    let now = SystemTime::now();
    let message = begin(&mut ours, 1, now);
    let answers = net.nodes[1].open(elsewhere(), &message);
    assert_eq!(ours.receive(&answers[0].1), Received::Cookie);
    let again = begin(&mut ours, 2, now + Duration::from_secs(1));
    let answers = net.nodes[1].open(elsewhere(), &again);
    assert_eq!(ours.receive(&answers[0].1), Received::Response);
}

#[test]
fn an_initiation_in_the_name_of_a_peer_makes_its_former_ones_void() {
    let [own, peer] = [2, 1].map(|byte| PrivateKey::from_bytes(&[byte; 32]).unwrap());
    let mut net = Net::mesh(2);
    let now = ClockReading::now();
    let later = |seconds| ClockReading {
        instant: now.instant + Duration::from_secs(seconds),
        wall: now.wall + Duration::from_secs(seconds),
    };
    let mut theirs = initiator(1, &net.nodes[1], None);
    let [former, same, newer] = [1, 2, 3].map(|index| {
        let wall = [now.wall, later(10).wall, later(20).wall][index as usize - 1];
        begin(&mut theirs, index, wall)
    });
    let ephemeral = PrivateKey::from_bytes(&[8; 32]).unwrap();
    let ours = initiation_from(&own, &peer.public(), 77, &ephemeral, later(10).wall).unwrap();
    let answers = net.nodes[1].open_at(later(11), elsewhere(), &ours);
    assert_eq!(answered_index(&answers[0].1), Some(77));
    assert_eq!(net.nodes[1].open_at(later(12), elsewhere(), &former), [], "from before");
    assert_eq!(net.nodes[1].open_at(later(13), elsewhere(), &same), [], "the very same time");
    assert_eq!(net.nodes[1].open_at(later(21), elsewhere(), &newer).len(), 1);
    // Neither another node's device nor that of the peer itself takes it.
    let stranger = PrivateKey::from_bytes(&[3; 32]).unwrap();
    for own in [&stranger, &peer] {
        let other = initiation_from(own, &peer.public(), 78, &ephemeral, later(30).wall).unwrap();
        assert_eq!(net.nodes[1].open_at(later(31), elsewhere(), &other), []);
    }
    for other in [&ours[..], &answers[0].1[..91], &[]] {
        assert_eq!(answered_index(other), None);
    }
}
