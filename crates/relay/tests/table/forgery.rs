//! What others send to a leased port, and what an end lies about, changes nothing that counts.

use std::net::{IpAddr, SocketAddr};

use keyring::Slot;
use proptest::prelude::*;
use relay::Dropped;

use crate::world::{SECOND, World, address, id, message};

#[test]
fn an_address_counts_once_the_other_end_has_answered_it() {
    let mut world = World::new(false);
    assert_eq!(world.send(0, message(1, 1, 0)), Err(Dropped::NoAddress));
    assert_eq!(world.data(0), Err(Dropped::Unproven));
    let initiation = world.send(1, message(1, 2, 0));
    assert!(world.reaches(1, initiation), "a handshake goes to where its end was heard");
    assert!(world.handshake(0));
    // A forged answer names nothing that was announced.
    let forged = address("203.0.113.9:9");
    let port = world.ends[1].port;
    assert_eq!(world.relay.handle(world.now, port, forged, &message(2, 9, 77)), Err(Dropped::UnknownIndex));
    assert_eq!(world.relay.handle(world.now, port, forged, &message(4, 77, 1)), Err(Dropped::Unproven));
}

#[test]
fn an_end_that_moves_is_followed_by_its_session_and_by_its_handshake() {
    // Not seen by the relay's own tunnel; seen where it sends from; and seen under an address of the other family.
    let other_family =
        World::observed_at([address("[2001:db8::1]:51840"), address("[2001:db8::2]:51840")].map(Some));
    for (mut world, seen) in [(World::new(false), false), (World::new(true), true), (other_family, true)] {
        assert!(world.connect(2));
        world.now += SECOND;
        world.ends[0].at = address("198.51.100.77:1024");
        assert!(world.both_pass(), "the counter of its session is above any seen");
        // A copy of what it sent does not move it back, nor elsewhere.
        let (port, copy) = world.sent[world.sent.len() - 2].clone();
        let copied = world.relay.handle(world.now, port, address("203.0.113.9:9"), &copy);
        assert_eq!(copied, Err(Dropped::Unproven));
        assert!(world.both_pass());
        // With a new session it is found wherever it is.
        world.now += SECOND;
        world.ends[0].at = address("198.51.100.78:1025");
        assert!(world.handshake(0));
        world.ends[1].at = address("[2001:db8::3]:1026");
        if seen {
            // It was heard where the tunnel saw it: only the tunnel can show so soon that it is elsewhere.
            assert!(!world.clone().handshake(1));
            world.observe(1);
        }
        assert!(world.handshake(1));
    }
}

#[test]
fn an_end_whose_tunnel_has_another_address_begins_a_session_wherever_it_is() {
    let seen = [address("[2001:db8::1]:51840"), address("[2001:db8::2]:51840")];
    let mut world = World::observed_at(seen.map(Some));
    assert!(world.connect(2));
    for port in 1..4 {
        world.now += SECOND;
        world.ends[0].at = SocketAddr::new([203, 0, 113, 9].into(), port);
        assert!(world.handshake(0), "its node started anew, so no session goes on");
        world.ends[0].at = SocketAddr::new([203, 0, 113, 10].into(), port);
        assert!(!world.clone().handshake(0), "it was heard within a second");
    }
}

/// Who sees the packets can guess the next counter. It pulls the address until the next genuine packet, and no longer.
#[test]
fn who_guesses_a_counter_holds_nothing() {
    let mut world = World::new(false);
    assert!(world.connect(2));
    let attacker = address("203.0.113.9:9");
    let guess = message(4, world.ends[1].index, 1 << 60);
    assert!(world.relay.handle(world.now, world.ends[0].port, attacker, &guess).is_ok());
    assert_eq!(world.data(1).unwrap().to, attacker);
    assert!(world.data(0).is_ok());
    assert!(world.both_pass());
}

#[test]
fn recorded_handshakes_of_both_ends_prove_nothing() {
    for observed in [false, true] {
        let mut world = World::new(observed);
        assert!(world.connect(2));
        let first = world.sent.clone();
        for _ in 0..6 {
            assert!(world.handshake(0));
        }
        let attacker = address("203.0.113.9:9");
        for _ in 0..3 {
            for (port, datagram) in &first {
                world.now += SECOND;
                let _ = world.relay.handle(world.now, *port, attacker, datagram);
            }
        }
        assert!(world.both_pass());
    }
}

/// The index is the attacker's own, and what names it seems to come from the other end.
#[test]
fn who_forges_an_answer_to_his_own_handshake_is_not_taken_for_an_end() {
    let mut world = World::new(true);
    assert!(world.connect(2));
    let (near, far) = (world.ends[0].port, world.ends[1].port);
    let _ = world.relay.handle(world.now, near, address("203.0.113.9:9"), &message(1, 4711, 0));
    for forged in [message(2, 9, 4711), message(4, 4711, 1)] {
        let _ = world.relay.handle(world.now, far, world.ends[1].at, &forged);
        assert!(world.both_pass());
    }
}

/// The session is made up, with the sources of both ends.
#[test]
fn who_forges_both_ends_pulls_nobody_that_is_there() {
    let mut world = World::new(true);
    assert!(world.connect(2) && world.both_pass());
    let (near, far) = (world.ends[0].clone(), world.ends[1].clone());
    let _ = world.relay.handle(world.now, far.port, far.at, &message(1, 4711, 0));
    let _ = world.relay.handle(world.now, near.port, near.at, &message(2, 9, 4711));
    let stranger = address("203.0.113.9:9");
    let pulled = world.relay.handle(world.now, near.port, stranger, &message(4, 4711, 1 << 60));
    assert_eq!(pulled, Err(Dropped::Unproven));
    assert_eq!(world.data(1).unwrap().to, near.at);
    // The end itself may have moved once it is not heard any more.
    world.now += SECOND;
    assert!(world.relay.handle(world.now, near.port, stranger, &message(4, 4711, 1 << 61)).is_ok());
}

/// What has the old address and nothing else of the end says nothing about where the end is.
#[test]
fn who_forges_an_old_address_keeps_nobody_from_moving() {
    let mut world = World::new(true);
    assert!(world.connect(2));
    let old = world.ends[0].clone();
    world.ends[0].at = address("198.51.100.77:1024");
    world.now += SECOND;
    let index = world.ends[1].index;
    for forged in [message(1, 4711, 0), message(2, 9, 4712), message(4, 4713, 1), message(4, index, 1)] {
        let _ = world.relay.handle(world.now, old.port, old.at, &forged);
        let mut moved = world.clone();
        assert!(moved.both_pass(), "{forged:?}");
    }
}

/// Behind a NAT that maps each destination anew, datagrams come from another port than the one that the tunnel sees.
#[test]
fn both_ends_behind_hard_nats_find_each_other() {
    let mut world = World::new(true);
    world.ends[0].at.set_port(2001);
    world.ends[1].at.set_port(2002);
    assert_eq!(world.data(0), Err(Dropped::Unproven));
    assert!(world.connect(2));
}

#[test]
fn a_leased_port_of_a_relay_is_nobodys_address() {
    let mut world = World::new(false);
    let relay: IpAddr = "192.0.2.200".parse().unwrap();
    world.relay.set_relays([relay].into());
    let own_port = SocketAddr::new(relay, world.ends[1].port);
    let port = world.ends[0].port;
    assert_eq!(world.relay.handle(world.now, port, own_port, &message(1, 5, 0)), Err(Dropped::Unproven));
    let grant = world.relay.ask(world.now, &id("u1"), &id("u2"), Slot::A, Some(own_port));
    assert!(grant.is_ok());
    assert_eq!(world.send(1, message(1, 6, 0)), Err(Dropped::NoAddress), "observed there, and not believed");
}

#[test]
fn at_most_ten_handshake_messages_a_second_pass_from_unproven_sources() {
    let mut world = World::new(true);
    let port = world.ends[0].port;
    let mut passed = 0;
    for step in 0..10_000_u32 {
        let now = world.now + SECOND * step / 1000;
        let from = SocketAddr::new([203, 0, 113, u8::try_from(step % 250).unwrap()].into(), 9);
        passed += u32::from(world.relay.handle(now, port, from, &message(1, step, 0)).is_ok());
    }
    assert!((100..=111).contains(&passed), "{passed} in ten seconds");
    // The end itself, behind a NAT that gave it another port, is not crowded out.
    world.now += SECOND * 10;
    let other = address("203.0.113.9:9");
    while world.relay.handle(world.now, port, other, &message(1, 9, 0)).is_ok() {}
    world.ends[0].at.set_port(999);
    assert!(world.handshake(0));
}

/// What somebody who is not an end does: sends what he likes, or what he recorded, from where he likes except the ends'
/// present addresses. He does not know the index of a session that he has not seen.
#[derive(Clone, Debug)]
enum Attack {
    Forged { to: usize, from: u8, kind: u8, index: u16, counter: u64 },
    Replayed { which: prop::sample::Index, from: u8 },
    Noise { to: usize, from: u8, bytes: Vec<u8> },
}

fn attack() -> impl Strategy<Value = Attack> {
    let forged = (0..2_usize, any::<u8>(), 1..5_u8, any::<u16>(), any::<u64>());
    let noise = (0..2_usize, any::<u8>(), prop::collection::vec(any::<u8>(), 0..160));
    let replayed = (any::<prop::sample::Index>(), any::<u8>());
    prop_oneof![
        forged.prop_map(|(to, from, kind, index, counter)| Attack::Forged { to, from, kind, index, counter }),
        replayed.prop_map(|(which, from)| Attack::Replayed { which, from }),
        noise.prop_map(|(to, from, bytes)| Attack::Noise { to, from, bytes }),
    ]
}

/// What the ends do in between.
#[derive(Clone, Debug)]
enum Step {
    Attacks(Vec<Attack>),
    Data(usize),
    Handshake(usize),
    Move(usize, u16),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(attack(), 1..12).prop_map(Step::Attacks),
        3 => (0..2_usize).prop_map(Step::Data),
        1 => (0..2_usize).prop_map(Step::Handshake),
        1 => (0..2_usize, 1024..2048_u16).prop_map(|(end, port)| Step::Move(end, port)),
        1 => Just(Step::Restart),
    ]
}

impl World {
    fn suffer(&mut self, attack: &Attack) {
        self.now += SECOND / 50;
        let source = |from: u8| SocketAddr::new([203, 0, 113, from].into(), 9);
        let (port, from, datagram) = match attack {
            // No end has a session with such an index.
            Attack::Forged { to, from, kind, index, counter } => {
                let index = 0x1000_0000 + u32::from(*index);
                (self.ends[*to].port, *from, message(*kind, index, *counter | 1 << 31))
            }
            Attack::Replayed { which, from } => {
                let (port, datagram) = which.get(&self.sent).clone();
                (port, *from, datagram)
            }
            Attack::Noise { to, from, bytes } => (self.ends[*to].port, *from, bytes.clone()),
        };
        if let Ok(forward) = self.relay.handle(self.now, port, source(from), &datagram) {
            let ends = self.ends.iter().any(|end| end.at == forward.to);
            assert!(ends, "{attack:?} went to {}", forward.to);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn forged_and_replayed_datagrams_change_nothing(
        observed: bool,
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(observed);
        prop_assert!(world.connect(2));
        for step in steps {
            match step {
                Step::Attacks(attacks) => attacks.iter().for_each(|attack| world.suffer(attack)),
                Step::Data(end) => {
                    let forward = world.data(end);
                    prop_assert!(world.reaches(end, forward), "{forward:?}");
                }
                Step::Handshake(end) => {
                    world.now += SECOND * 5;
                    prop_assert!(world.handshake(end));
                }
                Step::Move(end, port) => {
                    world.ends[end].at.set_port(port);
                    // It says where it is with the next packet that it sends.
                    let forward = world.data(end);
                    prop_assert!(world.reaches(end, forward), "{forward:?}");
                }
                Step::Restart => {
                    let saved = world.relay.saved();
                    let now = world.now;
                    world.relay = relay::Relay::new(now, crate::world::limits());
                    world.relay.restore(now, saved);
                    // Sessions are known again after the next handshake.
                    prop_assert!(world.both_pass());
                    prop_assert!(world.handshake(0));
                }
            }
        }
        prop_assert!(world.both_pass());
    }

    /// Without anything known of either end but an address that one of them may not even have: noise makes no panic, and
    /// what goes out is what came in.
    #[test]
    fn noise_is_survived(attacks in prop::collection::vec(attack(), 1..100)) {
        let mut world = World::new(false);
        let initiation = world.send(0, message(1, 1, 0));
        prop_assert_eq!(initiation, Err(Dropped::NoAddress));
        for attack in attacks {
            if let Attack::Noise { to, bytes, .. } = attack {
                let port = world.ends[to].port;
                let _ = world.relay.handle(world.now, port, address("203.0.113.1:1"), &bytes);
            }
        }
    }
}
