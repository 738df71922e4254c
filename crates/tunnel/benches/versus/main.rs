//! Ours compared with every other userspace WireGuard, turn by turn on one machine: `make bench-tunnel`.
//!
//! Each round starts each contender on both ends of a cable between two namespaces, with the same MTU, the same
//! iperf3 and the contender's own defaults, and measures all of it before the next contender starts. Printed are
//! every round and the medians of all; `target/bench/tunnel.json` and `tunnel.svg` hold the ratios. Ends with an error
//! if a ratio is not reached. With `--quick` the rounds are few and short, and nothing is judged; without `--bench`,
//! as `cargo test` calls it, only the engine alone is measured for a moment.
//!
//! The other implementations are expected in the directory that `WIREGUARDS` names; `scripts/wireguards.sh` fills it.

#![expect(clippy::print_stdout, reason = "it prints its findings")]
#![expect(clippy::unwrap_used, reason = "in a measurement, as in a test, a failure is a panic")]

mod alone;
mod contender;
#[path = "../../tests/namespaces/lab.rs"]
#[expect(dead_code, reason = "the tests in namespaces use more of it")]
mod lab;
mod measure;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use measure::Sample;

/// How much is measured.
struct Plan {
    rounds: usize,
    /// For each stream.
    seconds: u32,
    pings: u32,
    /// For the engine alone, each turn.
    turn: Duration,
}

const FULL: Plan = Plan { rounds: 5, seconds: 4, pings: 300, turn: Duration::from_millis(600) };
const QUICK: Plan = Plan { rounds: 3, seconds: 1, pings: 100, turn: Duration::from_millis(200) };

fn main() -> ExitCode {
    if let Some(code) = contender::serve_if_asked() {
        return code;
    }
    let asked = |name: &str| std::env::args().any(|argument| argument == name);
    if !asked("--bench") {
        let shares = alone::shares(1, Duration::from_millis(20));
        println!("engine alone: {:.2} of the AEAD's own speed (a moment only, nothing is judged)", shares[0]);
        return ExitCode::SUCCESS;
    }
    let plan = if asked("--quick") { QUICK } else { FULL };
    let contenders = contender::all();
    report::machine(&contenders);

    let mut samples: Vec<Vec<Sample>> = contenders.iter().map(|_| Vec::new()).collect();
    let mut crowded = Vec::new();
    report::heading();
    for round in 1..=plan.rounds {
        // The first one finds the machine in another state: each round starts with another contender.
        for turn in 0..contenders.len() {
            let place = (turn + round) % contenders.len();
            let sample = measure::sample(&contenders[place], &plan);
            report::round(round, contenders[place].name, &sample);
            samples[place].push(sample);
        }
        let pair = measure::crowd(&contenders[0], &plan);
        println!(
            "{round:>5}  {:<22} one peer {:.2} Gbit/s, plus 1,000 idle peers {:.2}",
            "ours", pair.0, pair.1
        );
        crowded.push(pair);
    }
    let memory: Vec<Vec<f64>> = contenders
        .iter()
        .map(|contender| (0..plan.rounds.min(3)).map(|_| measure::memory(contender)).collect())
        .collect();
    let alone = alone::shares(plan.rounds, plan.turn);
    let rows = report::rows(&contenders, &samples, &crowded, &memory, &alone);
    let reached = report::finish(&contenders, &samples, &memory, &rows);
    if reached || asked("--quick") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
