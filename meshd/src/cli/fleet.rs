//! `meshd rotate --node` and `--all`: requests rotations through the API server and watches their progress there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::ArgMatches;
use plan::annotation::{State, names};
use plan::node::{NodeName, NodeRecord};
use plan::renewal::Renewal;
use status::progress::{NodeProgress, left, table};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{CommandError, arguments, output, run};
use crate::api;
use crate::api::nodes::Change;
use crate::api::publish::{Publication, patch};
use crate::chain::Chain;

/// Whether the command line names nodes.
pub(super) fn is_wanted(matches: &ArgMatches) -> bool {
    matches.get_flag("all") || matches.contains_id("node")
}

/// `meshd rotate --node NAME …` and `meshd rotate --all`
pub(super) fn rotate(matches: &ArgMatches) -> Result<(), CommandError> {
    run::runtime()?.block_on(request_and_follow(matches))
}

async fn request_and_follow(matches: &ArgMatches) -> Result<(), CommandError> {
    let (client, _) = api::connect::client(kubeconfig(matches).as_deref())
        .await
        .map_err(|source| CommandError::Connect(Box::new(source)))?;
    let (changes_in, mut changes) = mpsc::channel(64);
    // No Node has an empty name, so none is treated as our own.
    let watching = tokio::spawn(api::nodes::watch(client.clone(), NodeName::new(""), changes_in));
    let records = first_list(&mut changes).await?;
    let mut asked = selected(matches, &records)?;
    let json = arguments::wants_json(matches);
    if matches.get_flag("dry-run") {
        return if json { output::json(&asked) } else { output::print(&table(&asked)) };
    }
    // Creation times have a resolution of one second: keys created in the current second are included.
    let renewal = Renewal { before: unix() + 1, at_once: matches.get_flag("emergency") };
    for node in &asked {
        let annotations = BTreeMap::from([(names::CONFIG_RENEWAL.to_owned(), Some(renewal.to_string()))]);
        let publication = Publication { node: NodeName::new(&node.node), uid: node.uid.clone(), annotations };
        patch(&client, &publication)
            .await
            .map_err(|source| CommandError::Ask { node: node.node.clone(), source })?;
    }
    let timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or_default();
    follow(&mut asked, &mut changes, timeout).await;
    watching.abort();
    if json {
        output::json(&asked)?;
    } else {
        output::print(&table(&asked))?;
    }
    let left = left(&asked);
    if left.is_empty() { Ok(()) } else { Err(CommandError::NotYet { nodes: left }) }
}

/// The file of `--kubeconfig`, else that of kubectl; none inside a cluster.
fn kubeconfig(matches: &ArgMatches) -> Option<PathBuf> {
    let given = matches.get_one::<PathBuf>("kubeconfig").cloned();
    let listed = || std::env::split_paths(&std::env::var_os("KUBECONFIG")?).next();
    let usual = || std::env::home_dir().map(|home| home.join(".kube/config")).filter(|path| path.exists());
    given.or_else(listed).or_else(usual)
}

async fn first_list(
    changes: &mut mpsc::Receiver<Change>,
) -> Result<BTreeMap<NodeName, NodeRecord>, CommandError> {
    while let Some(change) = changes.recv().await {
        match change {
            Change::Listed(records) => return Ok(records),
            // The watch would retry for ever; report the failure instead.
            Change::Failed(source) => return Err(CommandError::List(Box::new(source))),
            Change::Applied(_) | Change::Deleted(..) => {}
        }
    }
    Ok(BTreeMap::new())
}

/// The nodes named on the command line, each with its announced state.
fn selected(
    matches: &ArgMatches,
    records: &BTreeMap<NodeName, NodeRecord>,
) -> Result<Vec<NodeProgress>, CommandError> {
    let state = |record: &NodeRecord| record.state.as_deref().and_then(|text| State::parse(text).ok());
    let Some(wanted) = matches.get_many::<String>("node") else {
        return Ok(records
            .values()
            .filter_map(|record| {
                Some(NodeProgress::new(record.name.as_str(), record.uid.clone(), &state(record)?))
            })
            .collect());
    };
    let wanted: BTreeSet<&String> = wanted.collect();
    let find = |name: &String| {
        let record = records.get(&NodeName::new(name.as_str()));
        let state = record.and_then(state);
        record
            .zip(state)
            .map(|(record, state)| NodeProgress::new(record.name.as_str(), record.uid.clone(), &state))
            .ok_or_else(|| CommandError::NotInTheMesh { node: name.clone(), missing: record.is_none() })
    };
    wanted.into_iter().map(find).collect()
}

/// Prints progress on standard error until all nodes are done or the timeout expires.
async fn follow(asked: &mut [NodeProgress], changes: &mut mpsc::Receiver<Change>, timeout: Duration) {
    let began = Instant::now();
    while asked.iter().any(|node| !node.done) {
        let change = tokio::time::timeout_at(began + timeout, changes.recv()).await;
        let records: Vec<NodeRecord> = match change {
            Ok(Some(Change::Applied(record))) => vec![*record],
            Ok(Some(Change::Listed(records))) => records.into_values().collect(),
            Ok(Some(Change::Failed(error))) => {
                print_progress(&format!("API server unreachable: {}", Chain(&error)));
                continue;
            }
            Ok(Some(Change::Deleted(..))) => continue,
            Ok(None) | Err(_) => return,
        };
        for record in records {
            let state = record.state.as_deref().and_then(|text| State::parse(text).ok());
            let node = asked.iter_mut().find(|node| node.uid == record.uid);
            if let (Some(node), Some(state)) = (node, state)
                && node.update(&state, began.elapsed())
            {
                print_progress(&node.line());
            }
        }
    }
}

fn print_progress(text: &str) {
    // Standard error may be closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}
