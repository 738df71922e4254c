//! Random runs.

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::world::{Action, World};

/// An action from four random bytes: mostly everyday events of a cluster, and a few faults.
const fn action([kind, node, other, more]: [u8; 4]) -> Action {
    let number = u16::from_be_bytes([other, more]);
    match kind {
        0..=19 => Action::Wait(1 + number % 2500),
        20..=22 => Action::Wait(20_000 + number % 40_000),
        23..=63 => Action::Turn(node),
        64..=104 => Action::Watch(node, other),
        105..=130 => Action::Publish(node),
        131..=207 => Action::Deliver(node),
        208..=215 => Action::Repeat(node),
        216..=223 => Action::Lose(node),
        224..=233 => Action::Rotate(node),
        234..=236 => Action::Crash(node),
        237..=242 => Action::Start(node),
        243..=246 => Action::Api(number % 2 == 0),
        247..=250 => Action::Mute(node, number % 2 == 0),
        251..=255 => Action::DiskFull(node),
    }
}

/// As many as fit into every run of the tests. `make explore` takes more.
fn cases(usual: u32) -> u32 {
    std::env::var("ROTATION_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn run(nodes: usize, actions: &[[u8; 4]]) -> World {
    let mut world = World::new(nodes);
    for bytes in actions {
        world.act(action(*bytes));
    }
    world.calm();
    world
}

fn explore(nodes: usize, cases: u32) {
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    // The same runs each time, so that a failure is caused by a change; `ROTATION_SEED=random` explores new
    // ones.
    let mut runner = match std::env::var("ROTATION_SEED").as_deref() {
        Ok("random") => TestRunner::new(config),
        _ => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let (mut finished, mut rolled_back) = (0, 0);
    let outcome = runner.run(&proptest::collection::vec(any::<[u8; 4]>(), 20..160), |actions| {
        let world = run(nodes, &actions);
        ROTATIONS.with(|count| {
            let (done, back) = count.get();
            count.set((done + world.finished, back + world.rolled_back));
        });
        Ok(())
    });
    ROTATIONS.with(|count| (finished, rolled_back) = count.get());
    outcome.unwrap();
    println!("{cases} runs of {nodes} nodes: {finished} rotations finished, {rolled_back} rolled back");
    // Runs in which nothing happens prove nothing.
    assert!(finished > usize::try_from(cases).unwrap() && (rolled_back > 0 || cases < 5000));
}

thread_local! {
    static ROTATIONS: std::cell::Cell<(usize, usize)> = const { std::cell::Cell::new((0, 0)) };
}

#[test]
fn two_nodes_always_share_a_working_slot() {
    explore(2, cases(2_000));
}

#[test]
fn three_nodes_always_share_a_working_slot() {
    explore(3, cases(11_000));
}

#[test]
fn four_nodes_always_share_a_working_slot() {
    explore(4, cases(7_000));
}
