//! `make prove-paths`: seven nodes on five networks behind four kinds of NAT find each other; addresses change, routers
//! forget, a relay dies, a path becomes narrower. Each scenario has a goal. Writes `target/paths/report.json` and a picture
//! of all pairs over time; ends with 1 if a goal was missed.
//!
//! `QUICK=1` measures for a shorter time, `BACKEND` and `PQ` are the daemon's options, `CARRIER=1` puts a carrier's NAT
//! before the second home, `HELP=1` has an operator say what the nodes should find out themselves, `ONLY=move,relay` runs
//! only these scenarios after all nodes have come up, `LOGS=directory` keeps the daemons' logs there.

mod joins;
mod network;
mod performance;
mod picture;
mod probes;
mod run;
mod scenarios;

use std::io::Write as _;
use std::process::ExitCode;

use lab::sandbox;
use network::Settings;
use run::{Row, Run};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A scenario: its name for `ONLY`, what it is about, what happens.
type Scenario = (&'static str, &'static str, fn(&mut Run<'_>) -> Result<(), Failure>);

const SCENARIOS: [Scenario; 8] = [
    ("idle", "idle nodes", scenarios::idle),
    ("public", "a public peer's address changes", scenarios::public_address_changes),
    ("punched", "a punched peer's address changes", scenarios::punched_address_changes),
    ("flush", "a NAT's table is flushed", scenarios::table_is_flushed),
    ("move", "a voluntary move", scenarios::moves_under_traffic),
    ("narrow", "a narrow path", scenarios::path_narrows),
    ("both", "both ends' addresses change", scenarios::both_change_without_api),
    ("relay", "the relay is killed", scenarios::relay_dies),
];

fn main() -> ExitCode {
    // Before anything else: a process with threads can't change its namespaces.
    match sandbox::enter().map_err(Into::into).and_then(|_| prove()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            say("\nNot proven; see above.");
            ExitCode::FAILURE
        }
        Err(error) => {
            say(&format!("\nprove-paths: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn prove() -> Result<bool, Failure> {
    let settings = Settings::from_environment();
    let joins = if settings.runs("joins") { joins::first_packets(&settings) } else { Ok(Vec::new()) };
    let joins = joins.unwrap_or_else(|error| {
        let (what, goal) = ("first packets".to_owned(), "2, 3, 5 s".to_owned());
        vec![Row { what, goal, measured: lab::chain(&*error), met: false, details: Value::Null }]
    });
    say("seven nodes on five networks; n1 may relay");
    let mesh = network::mesh(network::seven_nodes(settings.carrier)?, &settings, "seven")?;
    let mut run = Run::start(mesh, &settings)?;
    run.scenario("ordered pairs up within 15 s", scenarios::come_up);
    scenarios::become_direct(&mut run);
    run.rows.extend(joins);
    for (name, what, scenario) in SCENARIOS {
        if settings.runs(name) {
            run.scenario(what, scenario);
        }
    }
    sealed(&mut run);
    let report = report(&run);
    write(&report, &run)?;
    Ok(print(&run.rows))
}

/// What was captured on the links of all nodes and routers, all the time.
fn sealed(run: &mut Run<'_>) {
    let seen = run.capture.report();
    let measured = format!("{} of {} packets", seen.pod_addresses(), seen.wireguard() + seen.other);
    let met = seen.pod_addresses() == 0 && seen.dropped == 0 && seen.wireguard() > 0;
    let details = json!({"missed": seen.dropped, "scenarios": run.leaks});
    run.row("packets with pods' addresses on any link", "0", measured, met, details);
}

fn report(run: &Run<'_>) -> Value {
    let row = |row: &Row| {
        json!({
            "what": row.what,
            "goal": row.goal,
            "measured": row.measured,
            "met": row.met,
            "details": row.details,
        })
    };
    let events = run.events.iter().map(|(at, what)| json!({"at": at.as_secs_f64(), "what": what}));
    let changes =
        run.paths.changes.iter().map(
            |(at, (from, to), path)| json!({"at": at.as_secs_f64(), "from": from, "to": to, "path": path}),
        );
    json!({
        "backend": run.settings.backend,
        "pq": run.settings.pq,
        "carrier": run.settings.carrier,
        "help": run.settings.help,
        "rows": run.rows.iter().map(row).collect::<Vec<_>>(),
        "events": events.collect::<Vec<_>>(),
        "paths": changes.collect::<Vec<_>>(),
    })
}

/// Writes report and picture. Where the file system can't be written to, as in the virtual machine, the table is all.
fn write(report: &Value, run: &Run<'_>) -> Result<(), Failure> {
    let directory = lab::target_dir()?.join("paths");
    match std::fs::create_dir_all(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
        made => made?,
    }
    let (json, svg) = (directory.join("report.json"), directory.join("picture.svg"));
    std::fs::write(&json, serde_json::to_string_pretty(report)? + "\n")?;
    std::fs::write(&svg, picture::draw(run))?;
    say(&format!("\nwritten: {}, {}", json.display(), svg.display()));
    Ok(())
}

/// Shows the result; says whether it is what was promised.
fn print(rows: &[Row]) -> bool {
    let wide = |value: &dyn Fn(&Row) -> usize| rows.iter().map(value).max().unwrap_or_default();
    let (what, goal) = (wide(&|row| row.what.len()), wide(&|row| row.goal.len()));
    say(&format!("\n  {:what$}  {:goal$}  measured", "", "goal"));
    for row in rows {
        let verdict = if row.met { "" } else { "  MISSED" };
        say(&format!("  {:what$}  {:goal$}  {}{verdict}", row.what, row.goal, row.measured));
    }
    let met = rows.iter().filter(|row| row.met).count();
    say(&format!("  {met} of {} goals met", rows.len()));
    met == rows.len()
}

fn say(text: &str) {
    // The terminal may be closed.
    let _ = writeln!(std::io::stdout(), "{text}");
}
