//! `meshd audit`: reads trails from files, so that it works anywhere, even without a daemon.

pub(super) mod arguments;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::ArgMatches;
use keyring::audit::{self, Format, Line};
use status::trail::{NodeTrails, Selection, lines_table, page};

use self::arguments::Subcommand;
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

/// Reads a node's trails from a directory, or one trail from a file.
fn read(place: &Path) -> Result<NodeTrails, CommandError> {
    let own = audit::read(place)?;
    let directory = place.join(audit::WITNESS_DIRECTORY);
    let witness = if directory.is_dir() { Some(audit::read(&directory)?) } else { None };
    Ok(NodeTrails::new(&own, witness.as_deref(), place.is_dir()))
}

fn places(matches: &ArgMatches, name: &str) -> Vec<PathBuf> {
    matches.get_many::<PathBuf>(name).map(|paths| paths.cloned().collect()).unwrap_or_default()
}

/// Prints everything that is wrong; fails if there is anything.
fn verify(matches: &ArgMatches) -> Result<ExitCode, CommandError> {
    let trails = read(&path(matches, "trail"))?;
    let mut witnesses = Vec::new();
    for place in places(matches, "witness") {
        witnesses.push((place.display().to_string(), read(&place)?));
    }
    let found = trails.verify(witnesses.iter().map(|(place, witness)| (place.clone(), witness)));
    if wants_json(matches) {
        output::json(&found)?;
    } else {
        output::print(&found.text())?;
    }
    Ok(if found.intact { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The lines selected by the flags.
fn chosen<'a>(matches: &ArgMatches, trails: &'a NodeTrails) -> Vec<(&'static str, &'a Line)> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let since = matches.get_one::<Duration>("since").map(|since| now().saturating_sub(millis(*since)));
    trails.chosen(&Selection { node: text("node"), key: text("key"), since })
}

fn show(matches: &ArgMatches) -> Result<(), CommandError> {
    let trails = read(&path(matches, "trail"))?;
    let lines = chosen(matches, &trails);
    if wants_json(matches) {
        return output::print(&exported(&lines, Format::Jsonl));
    }
    let lines: Vec<_> = lines.into_iter().map(|(trail, line)| (trail.to_owned(), line)).collect();
    output::print(&lines_table(&lines, trails.all(), None))
}

fn export(matches: &ArgMatches) -> Result<(), CommandError> {
    if matches.get_one::<String>("format").is_some_and(|format| format == "trail") {
        // As the files are, also where a line can't be read: what is checked elsewhere has to be what is here.
        let files = audit::read(&path(matches, "trail"))?;
        return output::print(&files.into_iter().map(|(_, text)| text).collect::<String>());
    }
    let trails = read(&path(matches, "trail"))?;
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
    let read = places(matches, "trail").into_iter().map(|place| read(&place));
    let trails = read.collect::<Result<Vec<_>, _>>()?;
    let lines: Vec<&[Line]> =
        trails.iter().flat_map(NodeTrails::all).map(|trail| trail.lines.as_slice()).collect();
    let max_age = matches.get_one::<Duration>("max-age").map_or(172_800, Duration::as_secs);
    let report = audit::report(&lines, now(), max_age);
    if wants_json(matches) {
        return output::json(&report);
    }
    let broken = trails.iter().filter(|trails| !trails.problems().is_empty()).count();
    output::print(&page(&report, trails.len(), broken, max_age, None))
}

fn now() -> u64 {
    millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
