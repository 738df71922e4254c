//! Random runs, as many as requested.

use std::time::Duration;

use keyring::Slot;
use keyring::pq::PqSettings;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::world::{Action, World};

/// Epochs that somebody may name: near, far, and beyond what is ever reached.
const EPOCHS: [u64; 8] = [0, 3, 64, 1000, 1 << 40, (1 << 48) - 1, (1 << 48) + 1, u64::MAX];
/// Of those, the ones that no exchange gets: a forged message must not be one of the present exchange.
const FOREIGN_EPOCHS: [u64; 4] = [100_000, 1 << 41, 1 << 60, u64::MAX];

/// An action from three random bytes: mostly everyday events, and a few faults.
const fn action([kind, one, two]: [u8; 3]) -> Action {
    let (end, slot) = (one % 2 == 0, if two % 2 == 0 { Slot::A } else { Slot::B });
    match kind {
        0..=51 => Action::Wait(50 + (one as u16) * 8),
        52..=56 => Action::Outdate(EPOCHS[(two % 8) as usize]),
        57..=59 => Action::Renumber(one, FOREIGN_EPOCHS[(two % 4) as usize]),
        60..=63 => Action::Wait(5000 + (one as u16) * 150),
        64..=124 => Action::Turn(end),
        125..=204 => Action::Deliver(one),
        205..=212 => Action::Repeat(one),
        213..=220 => Action::Lose(one),
        221..=228 => Action::Replay(one),
        229..=230 => Action::DiskFull(end),
        231 => Action::Rename(end),
        232..=236 => Action::Prefer(end, slot),
        237..=239 => Action::Drain(if one % 3 == 0 { None } else { Some(slot) }),
        240..=242 => Action::Crash(end),
        243..=250 => Action::Start(end),
        251 => Action::Forget(end),
        252..=253 => Action::Block(slot, one % 3 == 0),
        254..=255 => Action::Misnumber(end, EPOCHS[(two / 2 % 8) as usize]),
    }
}

/// As many as fit into every run of the tests. `make explore` takes more.
fn cases(usual: u32) -> u32 {
    std::env::var("PQ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn explore(cases: u32, faults: bool) {
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 5000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    // The same runs each time, so that a failure is caused by a change; `PQ_SEED=random` explores new ones.
    let mut runner = match std::env::var("PQ_SEED").as_deref() {
        Ok("random") => TestRunner::new(config),
        _ => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let totals = std::cell::Cell::new((0, 0));
    let outcome = runner.run(&proptest::collection::vec(any::<[u8; 3]>(), 20..200), |actions| {
        // Short enough that renewals happen within a run.
        let settings = PqSettings { interval: Duration::from_secs(40), ..PqSettings::default() };
        let mut world = World::new([settings; 2]);
        for mut bytes in actions {
            if !faults && bytes[0] >= 240 {
                bytes[0] = 0;
            }
            world.act(action(bytes));
        }
        world.calm(Duration::from_mins(4));
        assert!(world.is_proven_soon(), "never proven again: {world:?}");
        let (keys, packets) = totals.get();
        totals.set((keys + world.seen.len(), packets + world.passed));
        Ok(())
    });
    outcome.unwrap();
    let (keys, packets) = totals.get();
    println!("{cases} runs: {keys} keys agreed on, {packets} packets passed, none lost");
    assert!(keys > 4 * usize::try_from(cases).unwrap(), "runs in which nothing happens prove nothing");
}

#[test]
fn no_packet_is_lost_whatever_the_network_does_to_messages() {
    explore(cases(1500), false);
}

#[test]
fn crashes_lost_keys_and_blocked_ports_end_in_proven_keys_on_both_slots() {
    explore(cases(1500), true);
}
