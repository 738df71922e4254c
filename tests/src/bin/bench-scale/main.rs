//! `make bench-scale`: what the daemon of one node costs in a mesh of many. The daemon is real, and so is the API server;
//! all other nodes are played by this program, with real handshakes, preshared keys and answers. Writes
//! `target/scale/report.json` and plots, and prints a table; ends with 1 if a goal was missed.
//!
//! `N=50,1000,5000` are the numbers of peers, `QUICK=1` takes 50 and 500 and less time, `DAEMON` is another program than the
//! release build, `SCENARIOS=idle,join` runs some of them, `IGNORE_GOALS=1` ends with 0 whatever was missed.

mod bench;
mod cluster;
mod fleet;
mod packet;
mod played;
mod plot;
mod report;
mod scenarios;
mod settings;
mod simulator;
mod usage;

use std::io::Write as _;
use std::process::ExitCode;

use lab::sandbox;
use report::{Delays, Row};
use serde_json::{Value, json};
use settings::Settings;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    // Before anything else: a process with threads can't change its namespaces.
    match sandbox::enter().map_err(Into::into).and_then(|_| run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("bench-scale: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, Failure> {
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    if settings.is_debug() {
        say("the daemon is a debug build: its costs are not those of a release");
    }
    let (mut rows, mut delays) = (Vec::new(), Vec::new());
    for size in &settings.sizes {
        say(&format!("{size} peers"));
        let (measured, late) = bench::measure(&settings, *size, scenarios::all)?;
        rows.extend(measured);
        delays.extend(late);
        // After each size: the largest one may fail.
        write(&settings, &rows, &delays)?;
    }
    say(&format!("\n{}", report::table(&rows, &delays)));
    let met = rows.iter().all(|row| row.met() != Some(false)) && !delays.iter().any(Delays::is_void);
    Ok(met || settings.ignore_goals)
}

fn write(settings: &Settings, rows: &[Row], delays: &[Delays]) -> Result<(), Failure> {
    let directory = lab::target_dir()?.join("scale");
    std::fs::create_dir_all(&directory)?;
    let json = serde_json::to_string_pretty(&report::json(rows, delays, &about(settings)))? + "\n";
    std::fs::write(directory.join("report.json"), json)?;
    let plots = ["idle, millicores", "RSS, MiB", "cold start until ready, s", "change of a key, CPU ms"];
    for what in plots {
        if let Some(svg) = plot::draw(rows, what) {
            let name: String =
                what.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).collect();
            std::fs::write(directory.join(format!("{name}.svg")), svg)?;
        }
    }
    say(&format!("written: {}", directory.display()));
    Ok(())
}

/// What the figures depend on.
fn about(settings: &Settings) -> Value {
    let cpus = usage::cpus();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "cpus": cpus,
        "load": load.split_whitespace().take(3).collect::<Vec<_>>(),
        "debug_build": settings.is_debug(),
        "separate_cpus": cpus > 2,
        "note": if cpus > 2 {
            "the daemon has the first CPU, the simulator the others"
        } else {
            "daemon, simulator and API server share the CPUs: latencies include waiting for each other"
        },
        "backend": "userspace",
    })
}

fn say(text: &str) {
    // The terminal may be closed.
    let _ = writeln!(std::io::stdout(), "{text}");
}
