//! Who gets ports, for how long, and what a restart keeps.

use std::collections::BTreeSet;
use std::time::Duration;

use keyring::Slot;
use relay::{Dropped, Grant, LIFE, Limits, MAX_LEASES, REFRESH, Refusal, Relay};

use crate::world::{SECOND, World, address, id, limits, message};

#[test]
fn nothing_is_forwarded_until_both_ends_have_asked() {
    let mut relay = Relay::new(Duration::ZERO, limits());
    let (one, two) = (id("u1"), id("u2"));
    let first = relay.ask(SECOND, &one, &two, Slot::A, Some(address("192.0.2.1:51840"))).unwrap();
    assert!(!first.both && first.offer && relay.open_ports().is_empty());
    let initiation = message(1, 7, 0);
    let from = address("192.0.2.1:51840");
    assert_eq!(relay.handle(SECOND, first.port, from, &initiation), Err(Dropped::OneEnd));
    let second = relay.ask(SECOND, &two, &one, Slot::A, Some(address("192.0.2.2:51840"))).unwrap();
    assert!(second.both && second.port != first.port);
    assert_eq!(relay.open_ports(), [first.port, second.port].into());
    let forward = relay.handle(SECOND, first.port, from, &initiation).unwrap();
    assert_eq!((forward.from_port, forward.to), (second.port, address("192.0.2.2:51840")));
    // The other slot is another lease, and an end that asks again keeps its port.
    let other = relay.ask(SECOND, &one, &two, Slot::B, None).unwrap();
    assert!(!other.both && ![first.port, second.port].contains(&other.port));
    let again = relay.ask(SECOND * 2, &one, &two, Slot::A, None).unwrap();
    assert_eq!(again, Grant { port: first.port, both: true, offer: true });
    let soon = relay.ask(SECOND * 2, &one, &two, Slot::A, None).unwrap();
    assert!(!soon.offer, "offers are not repeated at any rate");
    assert_eq!(relay.ask(SECOND, &one, &one, Slot::A, None), Err(Refusal::Itself));
}

#[test]
fn a_lease_ends_when_an_end_is_silent_for_its_life_or_releases_it() {
    let (one, two) = (id("u1"), id("u2"));
    let mut world = World::new(true);
    world.now = REFRESH * 9;
    world.relay.ask(world.now, &one, &two, Slot::A, None).unwrap();
    world.relay.expire(world.now, |_| true);
    assert!(world.both_pass());
    world.now = LIFE + SECOND;
    assert_eq!(world.data(0), Err(Dropped::OneEnd), "the second end has not asked again");
    world.relay.expire(world.now, |_| true);
    assert_eq!(world.relay.count(), (0, 1));
    assert!(world.relay.release(&one, &two, Slot::A));
    assert!(!world.relay.release(&one, &two, Slot::A));
    assert_eq!(world.relay.count(), (0, 0));
    assert_eq!(world.data(0), Err(Dropped::NoLease));
}

#[test]
fn leases_of_nodes_that_left_the_mesh_end() {
    let mut world = World::new(true);
    world.relay.expire(world.now, |node| *node != id("u2"));
    assert_eq!(world.relay.count(), (0, 0));
}

#[test]
fn one_node_does_not_take_all_ports() {
    let wide = Limits { ports: 20_000..=30_000, ..limits() };
    let mut relay = Relay::new(Duration::ZERO, wide);
    let liar = id("liar");
    for peer in 0..MAX_LEASES {
        let peer = id(&format!("p{peer}"));
        assert!(relay.ask(SECOND, &liar, &peer, Slot::A, None).is_ok());
        // An honest node comes to every offer.
        assert!(relay.ask(SECOND, &peer, &liar, Slot::A, None).is_ok());
    }
    assert_eq!(relay.ask(SECOND, &liar, &id("one more"), Slot::A, None), Err(Refusal::TooMany));
    assert!(relay.ask(SECOND, &id("u1"), &id("u2"), Slot::A, None).is_ok());
}

#[test]
fn leases_that_wait_for_their_other_end_give_way_when_no_port_is_free() {
    let mut world = World::new(true);
    for peer in 0..20 {
        world.now += SECOND;
        assert!(world.relay.ask(world.now, &id("liar"), &id(&format!("p{peer}")), Slot::A, None).is_ok());
    }
    assert!(world.both_pass(), "a lease in use never gives way");
    let mut relay = Relay::new(Duration::ZERO, limits());
    for pair in 0..8 {
        let (one, two) = (id(&format!("a{pair}")), id(&format!("b{pair}")));
        relay.ask(SECOND, &one, &two, Slot::A, None).unwrap();
        relay.ask(SECOND, &two, &one, Slot::A, None).unwrap();
    }
    assert_eq!(relay.ask(SECOND, &id("u1"), &id("u2"), Slot::A, None), Err(Refusal::Full));
}

#[test]
fn a_restart_keeps_ports_and_addresses() {
    let mut world = World::new(false);
    assert!(world.connect(2));
    let saved = world.relay.saved();
    assert_eq!(saved.len(), 1);
    world.relay = Relay::new(Duration::ZERO, limits());
    world.relay.restore(world.now, saved.clone());
    assert!(world.both_pass(), "sessions go on although their indices are forgotten");
    assert_eq!(world.relay.saved(), saved);
    // What does not fit is left out: ports that are not ours, or twice.
    let mut elsewhere = Relay::new(Duration::ZERO, Limits { ports: 100..=200, ..limits() });
    elsewhere.restore(world.now, saved.clone());
    assert_eq!(elsewhere.count(), (0, 0));
    let mut twice = Relay::new(Duration::ZERO, limits());
    twice.restore(world.now, [saved.clone(), saved].concat());
    assert_eq!(twice.count(), (1, 0));
}

#[test]
fn a_flood_of_one_pair_leaves_room_for_others() {
    let mut relay = Relay::new(
        Duration::ZERO,
        Limits { bytes_per_second: 20_000_000, pair_bytes_per_second: 1_000_000, ..limits() },
    );
    let mut ports = Vec::new();
    let at = |node: &str| address(&format!("192.0.2.{}:51840", &node[1..]));
    for (one, two) in [("u1", "u2"), ("u3", "u4")] {
        ports.push(relay.ask(SECOND, &id(one), &id(two), Slot::A, Some(at(one))).unwrap().port);
        relay.ask(SECOND, &id(two), &id(one), Slot::A, Some(at(two))).unwrap();
    }
    let mut data = message(4, 1, 1);
    data.resize(1452, 0);
    let mut dropped = BTreeSet::new();
    let mut passed = 0;
    for step in 0..100_000_u32 {
        let now = SECOND + SECOND * step / 10_000;
        match relay.handle(now, ports[0], at("u1"), &data) {
            Ok(_) => passed += 1,
            Err(reason) => drop(dropped.insert(reason)),
        }
        if step % 100 == 0 {
            assert!(relay.handle(now, ports[1], at("u3"), &data).is_ok());
        }
    }
    assert_eq!(dropped, [Dropped::PairLimited].into());
    let bytes = passed * 1452;
    assert!((10_000_000..=15_000_000).contains(&bytes), "{bytes} bytes in ten seconds and one burst");
}
