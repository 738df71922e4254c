//! Random worlds, by number.

use std::time::Duration;

use proptest::prelude::*;

use super::network::Nat;
use super::node::Lie;
use super::runs;
use super::world::{Chance, World};

/// How long after the last fault the pair has its path. Pauses between two rounds are 15 s, a trial of a direct path is
/// due within 15 min.
const FOUND_AFTER: Duration = Duration::from_mins(2);

/// How long after that each slot has the best path that there is, and nothing is tried any more.
const BEST_AFTER: Duration = Duration::from_secs(1_000);

#[derive(Clone, Debug)]
struct Dice {
    state: u64,
    /// Losses in a thousand.
    loss: u64,
    /// Longest delay in ticks.
    slowest: u64,
}

impl Dice {
    /// A number below `bound`, by a xorshift generator.
    fn roll(&mut self, bound: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % bound
    }
}

impl Chance for Dice {
    fn loses(&mut self) -> bool {
        self.roll(1000) < self.loss
    }

    fn delay(&mut self) -> u64 {
        1 + self.roll(self.slowest)
    }
}

#[derive(Clone, Debug)]
enum Fault {
    Flush(usize),
    Renumber(usize),
    Down(usize),
    Restart(usize),
    Reboot(usize),
    KillRelay,
    LoseRelay,
    ApiAway(bool),
    Prefer(usize),
    Lie(usize, Option<Lie>),
    Wait(u64),
}

fn fault() -> impl Strategy<Value = Fault> {
    let node = 0..2_usize;
    prop_oneof![
        node.clone().prop_map(Fault::Flush),
        node.clone().prop_map(Fault::Renumber),
        node.clone().prop_map(Fault::Down),
        node.clone().prop_map(Fault::Restart),
        node.clone().prop_map(Fault::Reboot),
        Just(Fault::KillRelay),
        Just(Fault::LoseRelay),
        any::<bool>().prop_map(Fault::ApiAway),
        node.clone().prop_map(Fault::Prefer),
        (node, lie()).prop_map(|(index, lie)| Fault::Lie(index, lie)),
        (1..40_u64).prop_map(Fault::Wait),
    ]
}

fn lie() -> impl Strategy<Value = Option<Lie>> {
    prop_oneof![Just(None), Just(Some(Lie::Elsewhere)), Just(Some(Lie::Symmetric))]
}

fn nat() -> impl Strategy<Value = Nat> {
    prop_oneof![Just(Nat::None), Just(Nat::OneToOne), Just(Nat::Home), Just(Nat::Symmetric)]
}

fn perform(world: &mut World<Dice>, fault: &Fault, number: u8) {
    match *fault {
        Fault::Flush(index) => world.nodes[index].site.flush(),
        Fault::Renumber(index) => world.nodes[index].site.renumber(10 + number),
        Fault::Down(index) => {
            world.nodes[index].site.down = true;
            world.run(Duration::from_secs(20));
            world.nodes[index].site.down = false;
        }
        Fault::Restart(index) => world.restart(index),
        Fault::Reboot(index) => world.reboot(index),
        Fault::KillRelay => world.kill_relay(),
        Fault::LoseRelay => world.lose_relay(),
        Fault::ApiAway(away) => world.api_away = away,
        Fault::Prefer(index) => {
            let node = &mut world.nodes[index];
            node.pq_prefers = node.pq_prefers.other();
        }
        Fault::Lie(index, lie) => world.nodes[index].lie = lie,
        Fault::Wait(ticks) => world.run(Duration::from_millis(ticks * 500)),
    }
}

#[test]
fn explore() {
    let strategy = (
        [nat(), nat()],
        any::<bool>(),
        any::<bool>(),
        1..u64::MAX,
        (0..150_u64, 1..4_u64),
        proptest::collection::vec(fault(), 0..8),
    );
    runs::explore("explore", 1, &strategy, |(nats, slow, traffic, seed, (loss, slowest), faults)| {
        let mut world = World::new(nats, true, Dice { state: seed, loss, slowest });
        (world.slow, world.traffic) = (slow, traffic);
        world.run(Duration::from_secs(5));
        for (number, fault) in (0_u8..).zip(&faults) {
            perform(&mut world, fault, number);
        }
        world.api_away = false;
        world.nodes.iter_mut().for_each(|node| node.lie = None);
        world.chance.loss = 0;
        let direct = nats[0].reaches(nats[1]);
        let found = world.run_until_up(FOUND_AFTER, |_| true);
        prop_assert!(found.is_some(), "no path: {:?} {:?}", world.nodes[0].events, world.nodes[1].events);
        // Traffic shows whether the path is kept.
        world.traffic = true;
        world.run_until_both_slots(BEST_AFTER, |kind| kind.is_direct() == direct);
        world.run(Duration::from_mins(1));
        for index in 0..2 {
            let kind = world.nodes[index].kind(1 - index);
            prop_assert!(
                kind.is_some_and(|kind| kind.is_direct() == direct),
                "{nats:?}: {kind:?} {:?}",
                world.nodes[index].events
            );
        }
        let before: Vec<usize> = world.nodes.iter().map(|node| node.events.len()).collect();
        world.run(Duration::from_secs(200));
        let after: Vec<usize> = world.nodes.iter().map(|node| node.events.len()).collect();
        let last = |index: usize| world.nodes[index].events.iter().rev().take(12).collect::<Vec<_>>();
        prop_assert_eq!(before, after, "it flaps: {:?} {:?}", last(0), last(1));
        prop_assert!(world.passes());
        prop_assert!(world.disturbed.is_empty(), "{:?}", world.disturbed);
        Ok(())
    });
}

/// Of two ends that begin at the same time, one leaves off as soon as it hears of the other. What says so is lost with other
/// packets, so none is lost here; what is moved is found along a path that works, whether or not it is tried alone.
#[test]
fn both_slots_of_a_pair_are_never_tried_at_once() {
    let strategy = ([nat(), nat()], any::<bool>(), any::<[bool; 2]>(), 1..u64::MAX, 1..4_u64, 1..60_u64);
    runs::explore("both_slots", 2, &strategy, |(nats, traffic, prefers, seed, slowest, moment)| {
        let mut world = World::new(nats, true, Dice { state: seed, loss: 0, slowest });
        world.traffic = traffic;
        world.run(Duration::from_millis(moment * 500));
        for (node, other) in world.nodes.iter_mut().zip(prefers) {
            node.pq_prefers = if other { node.pq_prefers.other() } else { node.pq_prefers };
        }
        world.run(Duration::from_secs(400));
        let longest = world.longest_both_tried;
        prop_assert!(longest <= Duration::from_millis(400), "{longest:?} until {:?}", world.now);
        Ok(())
    });
}
