//! `kubectl meshd audit`: the audit trails of all nodes, fetched and compared here.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ::status::mesh::Verdict;
use ::status::mesh::silent::Silent;
use ::status::trail::Selection;
use ::status::trail::fleet::{Fetched, Fleet};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command};
use keyring::audit::{self, Line};

use crate::CommandError;
use crate::arguments::time;
use crate::ask::each;
use crate::cluster::{Cluster, Listed};
use crate::output::{self, Format};

/// How long a trail may take to arrive: it may have some megabytes.
const TRAIL_TIMEOUT: Duration = Duration::from_mins(1);
/// Directory of the witness trail on a node (`deploy/base/daemonset.yaml`).
const WITNESS: &str = "/var/lib/meshd/audit/witness";

/// The subcommand with its own.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Read the audit trails of the keys of all nodes")
        .long_about(
            "Read the audit trails of the keys of all nodes. They are fetched as they are and checked here, so that no node's \
             word is taken for its own trail. Exits with 1 if one is not intact, and with 2 if one could not be fetched.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("verify")
                .about("Check that each trail is complete, and agrees with what all other nodes recorded about it")
                .after_help("Example:\n  kubectl meshd audit verify"),
        )
        .subcommand(
            filtered(Command::new("show").about("Show events of all nodes in the order of time"))
                .after_help("Example:\n  kubectl meshd audit show --about n2 --since 24h"),
        )
        .subcommand(
            filtered(Command::new("export").about("Print events in a format for other tools"))
                .arg(
                    Arg::new("format")
                        .long("format")
                        .value_name("FORMAT")
                        .value_parser(PossibleValuesParser::new(["jsonl", "csv", "ocsf"]))
                        .default_value("jsonl")
                        .help("JSON Lines, comma-separated values, or Open Cybersecurity Schema Framework"),
                )
                .after_help("Example:\n  kubectl meshd audit export --format ocsf --since 24h"),
        )
        .subcommand(
            Command::new("report")
                .about("One page for an auditor: which keys were in use when, and whether old ones were destroyed")
                .arg(
                    Arg::new("max-age")
                        .long("max-age")
                        .value_name("TIME")
                        .value_parser(time)
                        .default_value("48h")
                        .help("Age above which a key is reported as too old"),
                )
                .after_help("Example:\n  kubectl meshd audit report --max-age 30d"),
        )
        .after_help("Example:\n  kubectl meshd audit verify\n  kubectl meshd audit show --since 24h")
}

fn filtered(command: Command) -> Command {
    command
        .arg(Arg::new("about").long("about").value_name("NODE").help("Only events about this node"))
        .arg(Arg::new("key").long("key").value_name("FINGERPRINT").help("Only events about this key"))
        .arg(
            Arg::new("since")
                .long("since")
                .value_name("TIME")
                .value_parser(time)
                .help("Only events of this last period, such as 90s, 24h or 30d"),
        )
}

/// Runs one of its subcommands.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let fleet = fetch(&cluster, cluster.nodes().await?).await;
    let Some((name, matches)) = matches.subcommand() else { return Ok(Verdict::Unknown) };
    let format = Format::of(matches);
    match name {
        "verify" => {
            let found = fleet.verify();
            output::print(&format.render(&found, || found.text())?)?;
            return Ok(found.verdict());
        }
        "show" if format == Format::Table => output::print(&fleet.lines_text(&selection(matches)))?,
        "report" => {
            let age = matches.get_one::<Duration>("max-age").map_or(0, Duration::as_secs);
            let report = fleet.report(now(), age);
            output::print(&format.render(&report, || fleet.report_text(now(), age))?)?;
        }
        _ => {
            let format = match matches.try_get_one::<String>("format").ok().flatten().map(String::as_str) {
                Some("csv") => audit::Format::Csv,
                Some("ocsf") => audit::Format::Ocsf,
                _ => audit::Format::Jsonl,
            };
            let chosen = fleet.chosen(&selection(matches));
            let lines: Vec<&Line> = chosen.iter().map(|(_, line)| *line).collect();
            output::print(&audit::export(&lines, format))?;
        }
    }
    Ok(fleet.completeness())
}

fn selection(matches: &ArgMatches) -> Selection {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let since = matches.get_one::<Duration>("since").map(|since| now().saturating_sub(millis(*since)));
    Selection { node: text("about"), key: text("key"), since }
}

/// Fetches each trail in the order that [`Fetched`] needs.
async fn fetch(cluster: &Cluster, nodes: BTreeMap<String, Listed>) -> Fleet {
    let own = ["audit", "export", "--format", "trail"];
    let witness = ["audit", "export", "--format", "trail", "--trail", WITNESS];
    let first = each(nodes.clone(), async |_, pod| {
        let before = cluster.ask_within(TRAIL_TIMEOUT, &pod, &own, &[]).await?;
        // A node without peers has none; that one is missing is found where the node's own trail speaks of it.
        let witness = cluster.ask_within(TRAIL_TIMEOUT, &pod, &witness, &[]).await.ok();
        Ok(Fetched { before, witness, after: String::new() })
    })
    .await;
    let mut then = each(nodes, async |_, pod| cluster.ask_within(TRAIL_TIMEOUT, &pod, &own, &[]).await).await;
    let (mut fetched, mut silent) = (BTreeMap::new(), Silent::default());
    for (node, first) in first {
        match first.and_then(|first| Ok((first, then.remove(&node).transpose()?))) {
            Ok((first, after)) => {
                fetched.insert(node, Fetched { after: after.unwrap_or_default(), ..first });
            }
            Err(why) => silent.insert(&node, why.words()),
        }
    }
    Fleet::new(&fetched, silent)
}

fn now() -> u64 {
    millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
