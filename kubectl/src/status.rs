//! `kubectl meshd status`: asks the daemon of every node.

use std::collections::BTreeMap;
use std::time::Duration;

use ::status::Status;
use ::status::mesh::{Answer, Mesh, Shown, Verdict, render};
use clap::ArgMatches;
use futures::StreamExt as _;
use tokio::time::{Instant, sleep};

use crate::CommandError;
use crate::cluster::{AskError, Cluster, Daemon};
use crate::output::{self, Format};

/// How many daemons are asked at once.
const AT_ONCE: usize = 64;
/// After how long progress is said.
const PROGRESS: Duration = Duration::from_secs(2);
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
    let daemons = cluster.daemons().await?;
    if let Some(node) = node.filter(|node| !daemons.contains_key(*node)) {
        return Err(CommandError::NoSuchNode { node: node.clone() });
    }
    let mesh = Mesh::new(&answers(cluster, daemons).await);
    Ok(match node {
        Some(node) => mesh.only(node),
        None => mesh,
    })
}

async fn answers(cluster: &Cluster, daemons: BTreeMap<String, Daemon>) -> BTreeMap<String, Answer> {
    let (began, all) = (Instant::now(), daemons.len());
    let mut said = began;
    let mut answers = BTreeMap::new();
    let asked =
        daemons.into_iter().map(|(node, daemon)| async move { (node, answer(cluster, daemon).await) });
    let mut asked = futures::stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some((node, answer)) = asked.next().await {
        answers.insert(node, answer);
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            output::progress(&format!("{} of {all} nodes have answered", answers.len()));
        }
    }
    answers
}

async fn answer(cluster: &Cluster, daemon: Daemon) -> Answer {
    let pod = match daemon {
        Daemon::Pod(pod) => pod,
        Daemon::Waiting(why) => return Answer::Absent(why),
        Daemon::None => return Answer::Absent("the DaemonSet has no pod there".to_owned()),
    };
    match status(cluster, &pod).await {
        Ok(status) => Answer::Said(Box::new(status)),
        Err(error) => Answer::Silent(format!("{pod}: {error}")),
    }
}

async fn status(cluster: &Cluster, pod: &str) -> Result<Status, AskError> {
    let text = match cluster.ask(pod, &["status", "-o", "json", "--problems"]).await {
        // A daemon that does not know the flag lists all peers.
        Err(AskError::Failed(text)) if text.contains("--problems") => {
            cluster.ask(pod, &["status", "-o", "json"]).await?
        }
        answer => answer?,
    };
    serde_json::from_str(&text).map_err(|error| AskError::Unreadable(error.to_string()))
}
