//! Runs of a random test by number: the number of a run is its seed. Results of one commit add up in a file.
//!
//! `PATHS_CASES` runs from number `PATHS_SEED` on. With `PATHS_REPORT`, the path of the file, and `COMMIT` they go on after the
//! last run of that commit, and what comes of them is written there.

#![allow(
    clippy::disallowed_methods,
    reason = "how much is run, and where results go, are settings of the test"
)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use serde::{Deserialize, Serialize};

/// How often progress is said and results are written.
const PROGRESS: Duration = Duration::from_secs(2);
/// How many attempts are made to find a simpler run that fails.
const SIMPLIFIED: u32 = 300;
/// Runs of a test unless the environment says how many.
const USUAL: u64 = 60;

/// Results of all tests at one commit.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Report {
    commit: String,
    tests: BTreeMap<String, Results>,
}

/// Results of one test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Results {
    runs: u64,
    /// First and last number of runs that follow each other.
    seeds: Vec<[u64; 2]>,
    /// Numbers of the runs that failed.
    failures: Vec<u64>,
}

impl Results {
    fn add(&mut self, seed: u64, passed: bool) {
        if self.seeds.iter().any(|[first, last]| (*first..=*last).contains(&seed)) {
            self.failures.retain(|failed| *failed != seed);
        } else {
            self.runs += 1;
            match self.seeds.iter_mut().find(|[_, last]| last + 1 == seed) {
                Some([_, last]) => *last = seed,
                None => self.seeds.push([seed, seed]),
            }
        }
        self.failures.extend((!passed).then_some(seed));
    }

    /// The number after all that were run.
    fn next(&self) -> u64 {
        self.seeds.iter().map(|[_, last]| last + 1).max().unwrap_or(1)
    }
}

/// Tests in one process write their results one after the other.
static WRITING: Mutex<()> = Mutex::new(());

fn load(path: &Path, commit: &str) -> Report {
    let read = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Report>(&text).ok());
    let same = read.filter(|report| !commit.is_empty() && report.commit == commit);
    same.unwrap_or_else(|| Report { commit: commit.to_owned(), ..Report::default() })
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, not {text:?}")))
}

/// Runs a test of everything that the strategy makes; each result counts, and a failure is shown in its simplest form. `factor`
/// is for tests that are run more often than others.
pub(super) fn explore<S>(name: &str, factor: u64, strategy: &S, test: impl Fn(S::Value) -> TestCaseResult)
where
    S: Strategy,
    S::Value: Debug,
{
    let cases = number("PATHS_CASES").unwrap_or(USUAL) * factor;
    let commit = std::env::var("COMMIT").unwrap_or_default();
    let report = std::env::var_os("PATHS_REPORT").map(PathBuf::from);
    let mut results = report.as_deref().map(|path| load(path, &commit)).unwrap_or_default();
    let mut results = results.tests.remove(name).unwrap_or_default();
    let first = number("PATHS_SEED").unwrap_or_else(|| results.next());
    let (begun, mut told) = (Instant::now(), Instant::now());
    let mut shown = None;
    for seed in first..first + cases {
        let failure = run(seed, strategy, &test, if shown.is_none() { SIMPLIFIED } else { 0 });
        results.add(seed, failure.is_none());
        if let Some(failure) = failure {
            eprintln!("{name}: run {seed} failed; PATHS_SEED={seed} PATHS_CASES=1 repeats it\n{failure}");
            shown.get_or_insert(seed);
        }
        let done = seed + 1 - first;
        if told.elapsed() >= PROGRESS || done == cases {
            told = Instant::now();
            // Runs each second, rounded down.
            let rate = u128::from(done) * 1_000 / begun.elapsed().as_millis().max(1);
            let (all, failed) = (results.runs, results.failures.len());
            eprintln!(
                "{name}: {done} of {cases} runs, {rate} a second; {all} at this commit, {failed} failed"
            );
            report.as_deref().into_iter().for_each(|path| write(path, &commit, name, &results));
        }
    }
    assert_eq!(shown, None, "{name}: the first run that failed");
}

/// One run; if it fails, the simplest one that fails as well.
fn run<S>(
    seed: u64,
    strategy: &S,
    test: impl Fn(S::Value) -> TestCaseResult,
    simplified: u32,
) -> Option<String>
where
    S: Strategy,
    S::Value: Debug,
{
    let config = Config { failure_persistence: None, max_shrink_iters: simplified, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let made = strategy.new_tree(&mut runner).unwrap();
    runner.run_one(made, test).err().map(|error| error.to_string())
}

fn write(path: &Path, commit: &str, name: &str, results: &Results) {
    let _guard = WRITING.lock().unwrap();
    let mut report = load(path, commit);
    report.tests.insert(name.to_owned(), results.clone());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, serde_json::to_string_pretty(&report).unwrap() + "\n").unwrap();
    std::fs::rename(&unfinished, path).unwrap();
}

#[test]
fn runs_add_up_and_a_repeated_one_counts_once() {
    let mut results = Results::default();
    (1..=4).for_each(|seed| results.add(seed, seed != 3));
    results.add(100, true);
    assert_eq!((results.runs, results.next()), (5, 101));
    assert_eq!((&results.seeds[..], &results.failures[..]), (&[[1, 4], [100, 100]][..], &[3][..]));
    results.add(3, true);
    assert_eq!((results.runs, results.failures.is_empty()), (5, true));
}

#[test]
fn a_number_is_the_same_run_for_good() {
    let strategy = any::<u32>();
    let value = |seed| run(seed, &strategy, |value| Err(TestCaseError::fail(value.to_string())), 0).unwrap();
    assert_eq!(value(7), value(7));
    assert_ne!(value(7), value(8));
}
