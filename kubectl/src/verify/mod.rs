//! `kubectl meshd verify`: has every daemon try, and judges the evidence of all.

mod page;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ::status::verify::evidence::Evidence;
use ::status::verify::{Gathered, Report, render};
use clap::{Arg, ArgMatches, Command, value_parser};
use futures::StreamExt as _;
use tokio::time::interval;

use crate::CommandError;
use crate::arguments::flag;
use crate::ask::{AT_ONCE, PROGRESS, pod};
use crate::cluster::{AskError, Cluster, Daemon, Listed};
use crate::output::{self, Format};

/// Its name.
pub(crate) const NAME: &str = "verify";
/// How long a daemon may take: what it waits for itself ends after 12 s, and with many peers later.
const WITHIN: Duration = Duration::from_secs(75);
/// Exit codes of `meshd verify` with which it has given evidence.
const ANSWERS: [u8; 2] = [1, 2];

/// Its arguments.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Try whether the mesh is encrypted, and give a verdict with evidence")
        .long_about(
            "Try whether the mesh is encrypted, and give a verdict with evidence. The daemon of every node tries: keys, sessions, \
             echoes and sizes over both slots to each peer, the guard with packets that it has to catch, the API server's answer to \
             forgeries, the audit trail. Then both ends of each pair are compared. Prints what was found, the worst first, and \
             ENCRYPTED, LEAK or NOT PROVEN. Exits with 0 if encryption is proven, 1 if a check failed, 2 if something is not known.",
        )
        .arg(flag("all", "Show all findings; without it no more than five of a kind"))
        .arg(
            Arg::new("html")
                .long("html")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Write a page for an auditor, too"),
        )
        .after_help(
            "Example:\n  kubectl meshd verify\n  kubectl meshd verify --html mesh.html\n  kubectl meshd verify -o json > evidence.json\n  \
             jq -cj .nodes[0].evidence evidence.json | sha256sum",
        )
}

/// Verifies; returns the exit code.
pub(crate) async fn run(matches: &ArgMatches) -> Result<u8, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let nodes = cluster.nodes().await?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let report = Report::of_mesh(now.as_secs(), gather(&cluster, nodes).await);
    if let Some(path) = matches.get_one::<PathBuf>("html") {
        let failed = |source| CommandError::File { path: path.clone(), source };
        std::fs::write(path, page::render(&report)).map_err(failed)?;
    }
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let table = || render(&report, matches.get_flag("all"), output::paint(matches, no_color));
    output::print(&Format::of(matches).render(&report, table)?)?;
    Ok(report.exit_code())
}

/// Asks every daemon at once; says how far that has come.
async fn gather(cluster: &Cluster, nodes: BTreeMap<String, Listed>) -> BTreeMap<String, Gathered> {
    let all = nodes.len();
    let asked =
        nodes.into_iter().map(|(node, listed)| async move { (node, evidence(cluster, listed.daemon).await) });
    let mut asked = std::pin::pin!(futures::stream::iter(asked).buffer_unordered(AT_ONCE));
    let mut gathered = BTreeMap::new();
    let mut progress = interval(PROGRESS);
    // The first tick comes at once.
    progress.tick().await;
    loop {
        tokio::select! {
            next = asked.next() => match next {
                Some((node, evidence)) => drop(gathered.insert(node, evidence)),
                None => return gathered,
            },
            _ = progress.tick() => {
                output::progress(&format!("{} of {all} nodes have given evidence", gathered.len()));
            }
        }
    }
}

async fn evidence(cluster: &Cluster, daemon: Daemon) -> Gathered {
    let pod = match pod(daemon) {
        Ok(pod) => pod,
        Err(why) => return Gathered::Nothing(why),
    };
    let answer = cluster.ask_within(WITHIN, &pod, &["verify", "-o", "json"], &ANSWERS).await;
    let read = |text: String| {
        serde_json::from_str::<Evidence>(&text).map_err(|error| AskError::Unreadable(error.to_string()))
    };
    match answer.and_then(read) {
        Ok(evidence) => Gathered::Evidence(Box::new(evidence)),
        Err(error) => Gathered::Nothing(format!("{pod}: {error}")),
    }
}
