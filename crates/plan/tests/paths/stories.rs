//! What happens in single, certain cases.

use std::time::Duration;

use keyring::Slot;
use plan::paths::{Event, Kind};

use super::network::Nat;
use super::node::Lie;
use super::world::{Chance, World};

/// Nothing is lost, and everything takes 100 ms.
struct Calm;

impl Chance for Calm {
    fn loses(&mut self) -> bool {
        false
    }

    fn delay(&mut self) -> u64 {
        1
    }
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

const ALL: [Nat; 4] = [Nat::None, Nat::OneToOne, Nat::Home, Nat::Symmetric];

fn world(nats: [Nat; 2]) -> World<Calm> {
    World::new(nats, true, Calm)
}

#[test]
fn every_pair_has_the_best_path_within_the_time_that_users_wait() {
    for one in ALL {
        for other in ALL {
            let mut world = world([one, other]);
            let taken = world.run_until_up(seconds(60), |_| true);
            let limit = if one.reaches(other) { seconds(6) } else { seconds(8) };
            assert!(taken.is_some_and(|taken| taken <= limit), "{one:?} to {other:?}: {taken:?}");
            world.run(seconds(30));
            for index in 0..2 {
                let kind = world.nodes[index].kind(1 - index);
                assert_eq!(
                    kind.map(Kind::is_direct),
                    Some(one.reaches(other)),
                    "{one:?} to {other:?}: {kind:?}"
                );
            }
            assert!(world.passes() && world.disturbed.is_empty(), "{:?}", world.disturbed);
        }
    }
}

#[test]
fn a_path_that_works_is_kept_and_nothing_more_is_tried() {
    for nats in [[Nat::None, Nat::None], [Nat::Home, Nat::Home], [Nat::OneToOne, Nat::Symmetric]] {
        let mut world = world(nats);
        world.traffic = true;
        world.run(seconds(60));
        let before: Vec<usize> = world.nodes.iter().map(|node| node.events.len()).collect();
        world.run(seconds(3_600));
        let after: Vec<usize> = world.nodes.iter().map(|node| node.events.len()).collect();
        assert_eq!(before, after, "{nats:?}: {:?}", world.nodes[0].events);
    }
}

#[test]
fn without_a_relay_nodes_that_cannot_reach_each_other_say_so_and_go_on_trying() {
    let mut world = World::new([Nat::Home, Nat::Symmetric], false, Calm);
    assert_eq!(world.run_until_up(seconds(120), |_| true), None);
    let reported = |event: &(Duration, Slot, Event)| event.2 == Event::Unreachable;
    let count = |world: &World<Calm>| {
        world.nodes.each_ref().map(|node| node.events.iter().filter(|event| reported(event)).count())
    };
    let first = count(&world);
    assert!(first.iter().all(|count| (1..=4).contains(count)), "{first:?}");
    world.run(seconds(600));
    assert_eq!(count(&world), first, "said once");
    world.relay = true;
    assert!(world.run_until_up(seconds(60), |_| true).is_some());
}

#[test]
fn a_flushed_nat_table_costs_seconds() {
    let mut world = world([Nat::Home, Nat::Home]);
    world.traffic = true;
    world.run(seconds(60));
    world.nodes[0].site.flush();
    let taken = world.run_until_up(seconds(60), Kind::is_direct);
    assert!(taken.is_some_and(|taken| taken <= seconds(12)), "{taken:?}");
}

#[test]
fn a_node_that_moves_is_found_again() {
    for (nats, limit) in
        [([Nat::None, Nat::None], 4), ([Nat::OneToOne, Nat::Home], 4), ([Nat::Home, Nat::Home], 12)]
    {
        let mut world = world(nats);
        world.traffic = true;
        world.run(seconds(60));
        world.nodes[0].site.renumber(9);
        let taken = world.run_until_up(seconds(60), Kind::is_direct);
        assert!(taken.is_some_and(|taken| taken <= seconds(limit)), "{nats:?}: {taken:?}");
    }
}

#[test]
fn a_relay_that_dies_is_replaced_and_one_that_is_not_needed_any_more_is_left() {
    let mut world = world([Nat::Home, Nat::Symmetric]);
    world.traffic = true;
    world.run(seconds(60));
    world.kill_relay();
    let taken = world.run_until_up(seconds(60), |_| true);
    assert!(taken.is_some_and(|taken| taken <= seconds(8)), "{taken:?}");
    // The symmetric NAT is replaced by a better one.
    world.nodes[1].site.nat = Nat::Home;
    world.nodes[1].site.flush();
    let taken = world.run_until_up(seconds(120), Kind::is_direct);
    assert!(taken.is_some(), "{:?}", world.nodes[0].events);
    assert!(world.disturbed.is_empty(), "{:?}", world.disturbed);
}

#[test]
fn another_relay_is_taken_when_one_dies() {
    for nats in [[Nat::Home, Nat::Symmetric], [Nat::Symmetric, Nat::Symmetric]] {
        let mut world = world(nats);
        world.traffic = true;
        world.run(seconds(60));
        world.lose_relay();
        let taken = world.run_until_up(seconds(60), |_| true);
        assert!(taken.is_some_and(|taken| taken <= seconds(5)), "{nats:?}: {taken:?}");
    }
}

#[test]
fn a_daemon_that_restarts_keeps_what_its_devices_have() {
    for nats in [[Nat::None, Nat::Home], [Nat::Home, Nat::Home], [Nat::Home, Nat::Symmetric]] {
        let mut world = world(nats);
        world.traffic = true;
        world.run(seconds(60));
        world.restart(0);
        for _ in 0..200 {
            world.run(Duration::from_millis(100));
            assert!(world.passes(), "{nats:?} at {:?}: {:?}", world.now, world.nodes[0].events);
        }
    }
}

const LIES: [Lie; 2] = [Lie::Elsewhere, Lie::Symmetric];

#[test]
fn an_observer_that_lies_moves_no_path_that_works() {
    for nats in ALL.into_iter().flat_map(|one| ALL.map(|other| [one, other])) {
        for lie in LIES {
            let mut world = world(nats);
            world.traffic = true;
            world.run(seconds(60));
            world.nodes[0].lie = Some(lie);
            if lie == Lie::Elsewhere {
                world.nodes[1].lie = Some(lie);
            }
            for _ in 0..1_000 {
                world.run(Duration::from_millis(100));
                assert!(world.passes(), "{nats:?} {lie:?} {:?}: {:?}", world.now, world.nodes[0].events);
            }
            for index in 0..2 {
                let kind = world.nodes[index].kind(1 - index);
                let direct = nats[0].reaches(nats[1]);
                assert_eq!(kind.map(Kind::is_direct), Some(direct), "{nats:?} {lie:?}: {kind:?}");
            }
            assert!(world.disturbed.is_empty(), "{nats:?} {lie:?}: {:?}", world.disturbed);
        }
    }
}

#[test]
fn an_observer_that_lies_keeps_no_pair_apart_and_costs_it_no_more_than_a_detour() {
    for nats in ALL.into_iter().flat_map(|one| ALL.map(|other| [one, other])) {
        for lie in LIES {
            let mut world = world(nats);
            world.nodes[0].lie = Some(lie);
            world.nodes[1].lie = Some(lie);
            let taken = world.run_until_up(seconds(60), |_| true);
            assert!(taken.is_some_and(|taken| taken <= seconds(10)), "{nats:?} {lie:?}: {taken:?}");
            world.nodes.iter_mut().for_each(|node| node.lie = None);
            world.traffic = true;
            let direct = nats[0].reaches(nats[1]);
            let taken = world.run_until_up(seconds(60), |kind| kind.is_direct() == direct);
            assert!(taken.is_some(), "{nats:?} {lie:?}: {:?}", world.nodes[0].events);
        }
    }
}
