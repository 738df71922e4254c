//! `meshd audit`: reads trails from files, so that it works anywhere, even without a daemon.

pub(super) mod arguments;
mod description;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::ArgMatches;
use comfy_table::{Table, presets};
use keyring::audit::{self, CheckedTrail, Event, Finding, Format, Line, NodeReport, Report};

use self::arguments::Subcommand;
use self::description::Names;
use super::arguments::{path, wants_json};
use super::{CommandError, EX_USAGE, output};

/// `meshd audit …`
pub(super) fn audit(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    // clap has refused a command line without a known subcommand.
    let Some((subcommand, matches)) = arguments::subcommand(matches) else {
        return Ok(ExitCode::from(EX_USAGE));
    };
    match subcommand {
        Subcommand::Verify => verify(matches),
        Subcommand::Show => show(matches).map(|()| ExitCode::SUCCESS),
        Subcommand::Export => export(matches).map(|()| ExitCode::SUCCESS),
        Subcommand::Report => report(matches).map(|()| ExitCode::SUCCESS),
    }
}

/// A node's own trail, and its witness trail if it is in the same place. A file is one trail.
struct NodeTrails {
    own: CheckedTrail,
    witness: Option<CheckedTrail>,
    is_directory: bool,
}

impl NodeTrails {
    fn read(place: &Path) -> Result<Self, CommandError> {
        let own = audit::verify(&audit::read(place)?);
        let directory = place.join(audit::WITNESS_DIRECTORY);
        let witness = if directory.is_dir() { Some(audit::verify(&audit::read(&directory)?)) } else { None };
        // It begins with the first peer.
        let witness = witness.filter(|trail| trail.findings != [Finding::Empty]);
        Ok(Self { own, witness, is_directory: place.is_dir() })
    }

    fn all(&self) -> impl Iterator<Item = &CheckedTrail> {
        std::iter::once(&self.own).chain(&self.witness)
    }

    /// What is wrong with either.
    fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.all().flat_map(|trail| &trail.findings).map(ToString::to_string).collect();
        if self.is_directory {
            // A witness trail that is gone is one that ends at its beginning.
            let findings = match &self.witness {
                Some(witness) => audit::against_own(witness, &self.own),
                None => audit::against_own(&CheckedTrail::default(), &self.own),
            };
            problems.extend(findings.iter().map(|finding| format!("witness trail: {finding}")));
        }
        problems
    }

    /// The lines of both in the order of time, each with a letter for the trail that it is in.
    fn lines(&self) -> Vec<(&'static str, &Line)> {
        let witness = self.witness.iter().flat_map(|trail| &trail.lines).map(|line| ("w", line));
        let mut lines: Vec<_> = self.own.lines.iter().map(|line| ("", line)).chain(witness).collect();
        lines.sort_by_key(|(_, line)| line.time);
        lines
    }
}

fn places(matches: &ArgMatches, name: &str) -> Vec<PathBuf> {
    matches.get_many::<PathBuf>(name).map(|paths| paths.cloned().collect()).unwrap_or_default()
}

/// Prints everything that is wrong; fails if there is anything.
fn verify(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let trails = NodeTrails::read(&path(matches, "trail"))?;
    let trail = &trails.own;
    let mut problems = trails.problems();
    let mut gaps: Vec<String> = trail.gaps();
    gaps.extend(
        trails.witness.iter().flat_map(CheckedTrail::gaps).map(|gap| format!("witness trail: {gap}")),
    );
    let mut witnesses = 0;
    for place in places(matches, "witness") {
        let witness = NodeTrails::read(&place)?;
        let findings = witness.problems().into_iter();
        problems.extend(findings.map(|finding| format!("witness {}: {finding}", place.display())));
        for witness in witness.all() {
            problems.extend(audit::against_witness(trail, witness).iter().map(ToString::to_string));
        }
        witnesses += 1;
    }
    let (first, last) = (trail.lines.first().map_or(0, |line| line.seq), trail.head());
    let node = trail.node.as_ref().map(|node| node.name.clone()).unwrap_or_default();
    if wants_json(matches) {
        output::json(&serde_json::json!({
            "node": node, "first": first, "last": last.seq, "head": last.to_string(),
            "witnesses": witnesses, "intact": problems.is_empty(), "problems": problems, "missing": gaps,
        }))?;
    } else {
        let mut text = String::new();
        for problem in &problems {
            // Writing into a String can't fail.
            let _ = writeln!(text, "{problem}");
        }
        for gap in &gaps {
            let _ = writeln!(text, "missing: {gap}");
        }
        let verdict = if problems.is_empty() { "intact" } else { "NOT INTACT" };
        let _ = writeln!(
            text,
            "{verdict}: trail of {node}, lines {first} to {}, {witnesses} witnesses, head {last}",
            last.seq
        );
        output::print(&text)?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The lines selected by the flags.
fn chosen<'a>(matches: &ArgMatches, trails: &'a NodeTrails) -> Vec<(&'static str, &'a Line)> {
    let node = matches.get_one::<String>("node");
    let key = matches.get_one::<String>("key");
    let since = matches.get_one::<Duration>("since").map(|since| now().saturating_sub(millis(*since)));
    let of_node = |line: &Line| {
        node.is_none_or(|node| line.event.is_about(node) || (line.event.is_own() && line.node.name == **node))
    };
    let wanted = |(_, line): &(&str, &Line)| {
        of_node(line)
            && key.is_none_or(|key| line.event.mentions(key))
            && since.is_none_or(|since| line.time >= since)
    };
    trails.lines().into_iter().filter(wanted).collect()
}

fn show(matches: &ArgMatches) -> Result<(), CommandError> {
    let trails = NodeTrails::read(&path(matches, "trail"))?;
    let lines = chosen(matches, &trails);
    if wants_json(matches) {
        return output::print(&exported(&lines, Format::Jsonl));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["LINE", "TIME (UTC)", "EVENT", "WHAT"]);
    let names = Names::of(trails.all().flat_map(|trail| &trail.lines));
    for (trail, line) in lines {
        table.add_row([
            format!("{trail}{}", line.seq),
            time(line.time),
            name(&line.event),
            names.describe(&line.event),
        ]);
    }
    output::print(&format!("{table}\n"))
}

fn export(matches: &ArgMatches) -> Result<(), CommandError> {
    let trails = NodeTrails::read(&path(matches, "trail"))?;
    let format = match matches.get_one::<String>("format").map(String::as_str) {
        Some("csv") => Format::Csv,
        Some("ocsf") => Format::Ocsf,
        _ => Format::Jsonl,
    };
    output::print(&exported(&chosen(matches, &trails), format))
}

fn exported(lines: &[(&str, &Line)], format: Format) -> String {
    let lines: Vec<&Line> = lines.iter().map(|(_, line)| *line).collect();
    audit::export(&lines, format)
}

fn report(matches: &ArgMatches) -> Result<(), CommandError> {
    let read = places(matches, "trail").into_iter().map(|place| NodeTrails::read(&place));
    let trails = read.collect::<Result<Vec<_>, _>>()?;
    let lines: Vec<&[Line]> =
        trails.iter().flat_map(NodeTrails::all).map(|trail| trail.lines.as_slice()).collect();
    let max_age = matches.get_one::<Duration>("max-age").map_or(172_800, Duration::as_secs);
    let report = audit::report(&lines, now(), max_age);
    if wants_json(matches) {
        return output::json(&report);
    }
    let broken = trails.iter().filter(|trails| !trails.problems().is_empty()).count();
    output::print(&page(&report, trails.len(), broken, max_age))
}

/// The report as one page of text.
fn page(report: &Report, trails: usize, broken: usize, max_age: u64) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "NODE",
        "KEY",
        "SLOT",
        "SINCE (UTC)",
        "ACTIVE",
        "REPLACED",
        "DESTROYED",
        "VERIFIED BY",
    ]);
    for node in &report.nodes {
        for key in &node.keys {
            let moment = |at: Option<u64>| at.map(minute).unwrap_or_default();
            table.add_row([
                node.node.clone(),
                key.key.clone(),
                key.slot.to_string(),
                minute(key.since),
                moment(key.active.last().copied()),
                moment(key.replaced),
                moment(key.destroyed),
                peers(key.verified_by.len(), node.own_trail),
            ]);
        }
    }
    let mut text = format!("{table}\n\n");
    // Writing into a String can't fail.
    let _ = match &report.oldest {
        Some((node, key, age)) => {
            writeln!(text, "oldest key in use        {key} of {node}, {}", length(*age))
        }
        None => writeln!(text, "oldest key in use        none known"),
    };
    let list = |keys: Vec<String>| if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
    let overdue = report.overdue.iter().map(|(node, key, age)| format!("{key} of {node} ({})", length(*age)));
    let _ = writeln!(text, "older than {:13} {}", length(max_age), list(overdue.collect()));
    let open = report.not_proven_destroyed.iter().map(|(node, key)| format!("{key} of {node}"));
    let _ = writeln!(text, "not proven destroyed     {}", list(open.collect()));
    let sum = |value: &dyn Fn(&NodeReport) -> usize| report.nodes.iter().map(value).sum::<usize>();
    let rolled_back: u64 = report.nodes.iter().map(|node| node.rolled_back).sum();
    let _ = writeln!(
        text,
        "rotations                {} finished, {rolled_back} rolled back",
        sum(&|node| node.rotations.len())
    );
    let passed: Vec<String> = report
        .nodes
        .iter()
        .flat_map(|node| node.passed_over.iter().map(move |(peer, count)| (node, peer, count)))
        .map(|(node, peer, count)| format!("{peer} by {} ({count} times)", node.node))
        .collect();
    let _ = writeln!(text, "not waited for           {}", list(passed));
    let own = sum(&|node| usize::from(node.own_trail));
    let _ = writeln!(
        text,
        "sources                  {trails} trails, {broken} of them not intact; {own} of {} nodes by their own trail",
        report.nodes.len()
    );
    text
}

fn peers(count: usize, own_trail: bool) -> String {
    match (own_trail, count) {
        (false, _) => "seen by a peer".to_owned(),
        (true, 1) => "1 peer".to_owned(),
        (true, count) => format!("{count} peers"),
    }
}

/// The event's name in JSON.
fn name(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap_or_default();
    value["event"].as_str().unwrap_or_default().to_owned()
}

fn now() -> u64 {
    millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A time to the second, without its zone, which is in the heading.
fn time(millis: u64) -> String {
    moment(millis, "%Y-%m-%d %H:%M:%S")
}

/// A time to the minute: four of them fit in a line.
fn minute(millis: u64) -> String {
    moment(millis, "%Y-%m-%d %H:%M")
}

fn moment(millis: u64, form: &str) -> String {
    let moment = i64::try_from(millis / 1000)
        .ok()
        .and_then(|seconds| k8s_openapi::jiff::Timestamp::from_second(seconds).ok());
    moment.map(|moment| moment.strftime(form).to_string()).unwrap_or_default()
}

fn length(seconds: u64) -> String {
    match seconds {
        0..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
