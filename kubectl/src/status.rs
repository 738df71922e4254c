//! `kubectl meshd status`: asks the daemon of every node.

use std::time::Duration;

use ::status::mesh::{Mesh, Shown, Verdict, render};
use clap::ArgMatches;
use tokio::time::{Instant, sleep};

use crate::CommandError;
use crate::ask::{Peers, answers};
use crate::cluster::Cluster;
use crate::output::{self, Format};

/// Time from one question to the next with `--wait` and `--watch`.
const AGAIN: Duration = Duration::from_secs(2);
/// Moves the cursor to the first line and erases what is below (ECMA-48, sections 8.3.21 and 8.3.39).
const ERASE: &str = "\u{1b}[H\u{1b}[2J";

/// Shows the mesh, once, until it is well, or again and again.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let strict = matches.get_flag("strict");
    let node = matches.get_one::<String>("node");
    let began = Instant::now();
    let timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or_default();
    loop {
        let mesh = whole(&cluster, node).await?;
        let verdict = mesh.verdict(strict);
        if matches.get_flag("watch") {
            output::print(&format!("{ERASE}{}", text(&mesh, matches)?))?;
        } else if matches.get_flag("wait") && verdict != Verdict::Good && began.elapsed() < timeout {
            let totals = &mesh.totals;
            output::progress(&format!(
                "{} of {} nodes ready, {} of {} pairs reached, {} problems",
                totals.ready,
                totals.nodes,
                totals.reached,
                totals.pairs,
                mesh.problems.len()
            ));
        } else {
            output::print(&text(&mesh, matches)?)?;
            return Ok(verdict);
        }
        sleep(AGAIN).await;
    }
}

fn text(mesh: &Mesh, matches: &ArgMatches) -> Result<String, CommandError> {
    let shown = match (matches.get_flag("all"), matches.get_flag("problems")) {
        (true, _) => Shown::All,
        (false, true) => Shown::Problems,
        (false, false) => Shown::Usual,
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Format::of(matches).render(mesh, || render(mesh, shown, output::paint(matches, no_color)))
}

/// Asks every daemon; shows one `node` alone if one is given, from all answers.
async fn whole(cluster: &Cluster, node: Option<&String>) -> Result<Mesh, CommandError> {
    let nodes = cluster.nodes().await?;
    if let Some(node) = node.filter(|node| !nodes.contains_key(*node)) {
        return Err(CommandError::NoSuchNode { node: node.clone() });
    }
    let mesh = Mesh::new(&answers(cluster, nodes, Peers::Unwell).await);
    Ok(match node {
        Some(node) => mesh.only(node),
        None => mesh,
    })
}
