//! `make chaos`: random faults on a mesh under traffic, by seeds. Daemons die, links, routes and rules are removed, nodes are
//! cut off and change their addresses, the API server goes and comes, keys rotate. Nothing with a pod's address may leave a
//! node outside WireGuard at any time; after the last fault everything has to be well again within 30 s, no pod may have lost
//! its address, and after `meshd uninstall` nothing may be left.
//!
//! `SEEDS=20` runs so many seeds after those that passed at this commit, `SEED=7` only that one, `SECONDS_EACH=120` of faults
//! for each. Writes `target/chaos/report.json` and a picture of the last run; ends with 1 if a run failed.

mod cluster;
mod faults;
mod picture;
mod report;
mod schedule;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cluster::Cluster;
use lab::sandbox;
use report::{Applied, Report, Run};
use schedule::{Network, Planned, Random, schedule};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// After the last fault has ended, all is well within this time.
const CONVERGED_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked for packets that leaked.
const LOOK: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    // Before anything else: a process with threads can't change its namespaces.
    match sandbox::enter().map_err(Into::into).and_then(|_| run_seeds()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("chaos: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn run_seeds() -> Result<bool, Failure> {
    let number = |name: &str| -> Result<Option<u64>, Failure> {
        match std::env::var(name) {
            Ok(text) if !text.is_empty() => {
                Ok(Some(text.parse().map_err(|_| format!("{name}: expected a number, not {text:?}"))?))
            }
            _ => Ok(None),
        }
    };
    let time = Duration::from_secs(number("SECONDS_EACH")?.unwrap_or(120));
    let directory = lab::target_dir()?.join("chaos");
    let mut report = Report::load(&directory, &std::env::var("COMMIT").unwrap_or_default());
    let seeds = match number("SEED")? {
        Some(seed) => vec![seed],
        None => report.next(usize::try_from(number("SEEDS")?.unwrap_or(20))?),
    };
    let mut passed = true;
    for seed in seeds {
        say(&format!("\nseed {seed}: {} s of faults", time.as_secs()));
        let run = run(seed, time);
        say(&run.line());
        for trouble in &run.trouble {
            say(&format!("  {trouble}"));
        }
        passed &= run.passed();
        report.add(run);
        report.write(&directory)?;
    }
    say(&report.summary());
    Ok(passed)
}

/// One run. What keeps it from being made is a failure of it.
fn run(seed: u64, time: Duration) -> Run {
    let mut run = Run { seed, seconds: time.as_secs(), ..Run::default() };
    if let Err(error) = play(&mut run, time) {
        run.trouble.push(lab::chain(&*error));
    }
    run
}

fn play(run: &mut Run, time: Duration) -> Result<(), Failure> {
    let mut cluster = Cluster::start(Network::of(run.seed))?;
    let mut random = Random::new(run.seed.wrapping_add(1) << 32);
    let planned = schedule(run.seed, time);
    let begin = Instant::now();
    apply(run, &mut cluster, &planned, begin, &mut random)?;
    match cluster.converge(CONVERGED_WITHIN) {
        Ok(time) => run.converged = Some(time.as_secs_f64()),
        Err(missing) => run.trouble.push(format!("not well after {CONVERGED_WITHIN:?}: {missing}")),
    }
    run.trouble.extend(cluster.lost_addresses());
    look(run, &cluster, begin);
    if !run.trouble.is_empty() {
        let kept = lab::target_dir()?.join("chaos").join(format!("seed-{}", run.seed));
        cluster.keep_logs(&kept)?;
        run.trouble.push(format!("logs and statuses: {}", kept.display()));
    }
    let (traffic, left) = cluster.stop()?;
    run.traffic = traffic;
    run.trouble.extend(left.into_iter().map(|line| format!("left after uninstall: {line}")));
    Ok(())
}

/// Makes and undoes faults at their times.
fn apply(
    run: &mut Run,
    cluster: &mut Cluster,
    planned: &[Planned],
    begin: Instant,
    random: &mut Random,
) -> Result<(), Failure> {
    let mut waiting = planned.iter().peekable();
    let mut lasting: Vec<(Duration, &Planned)> = Vec::new();
    let mut api_down = false;
    while waiting.peek().is_some() || !lasting.is_empty() {
        let now = begin.elapsed();
        let (over, still): (Vec<_>, Vec<_>) = lasting.into_iter().partition(|(until, _)| *until <= now);
        lasting = still;
        for (_, one) in over {
            // What needs the API server ends after it is there again.
            if api_down && one.fault.needs_api() {
                lasting.push((now + Duration::from_secs(1), one));
                continue;
            }
            faults::end(&mut cluster.mesh, &one.fault)
                .map_err(|error| format!("end of {one:?}: {}", lab::chain(&*error)))?;
            api_down &= one.fault != schedule::Fault::ApiDown;
            run.ended(one, begin.elapsed());
        }
        while let Some(one) = waiting.next_if(|one| one.at <= now) {
            let outcome = if api_down && one.fault.needs_api() {
                Err("the API server is down".into())
            } else {
                faults::begin(&mut cluster.mesh, &one.fault, random)
            };
            api_down |= one.fault == schedule::Fault::ApiDown;
            let made = outcome.is_ok();
            let failed = outcome.err().map(|error| lab::chain(&*error));
            say(&progress(begin.elapsed(), one, failed.as_deref()));
            run.faults.push(Applied::new(one, begin.elapsed(), made));
            // A daemon that was stopped halfway is started again all the same.
            if !one.lasts.is_zero() && (made || one.fault.stops_daemon()) {
                lasting.push((one.at + one.lasts, one));
            }
        }
        look(run, cluster, begin);
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Notes packets that leaked since the last look.
fn look(run: &mut Run, cluster: &Cluster, begin: Instant) {
    let (leaks, missed) = cluster.leaks();
    if leaks > run.leaks {
        let at = begin.elapsed().as_secs_f64();
        run.trouble.push(format!("{at:.1} s: {} packets leaked", leaks - run.leaks));
        run.leaks = leaks;
        let seen = cluster.capture.report();
        run.trouble.extend(seen.violations.last().map(|one| format!("the last of them: {one:?}")));
    }
    if missed > run.missed {
        run.trouble.push(format!("the capture missed {} frames", missed - run.missed));
        run.missed = missed;
    }
}

fn progress(at: Duration, one: &Planned, failed: Option<&str>) -> String {
    let (kind, place) = (one.fault.kind(), one.fault.place());
    let lasts =
        if one.lasts.is_zero() { String::new() } else { format!(", {:.0} s", one.lasts.as_secs_f64()) };
    let failed = failed.map(|why| format!(" (not made: {why})")).unwrap_or_default();
    format!("  {:6.1} s  {kind}: {place}{lasts}{failed}", at.as_secs_f64())
}

fn say(text: &str) {
    // The terminal may be closed.
    let _ = writeln!(std::io::stdout(), "{text}");
}
