//! `kubectl meshd rotate`: asks nodes for new keys by an annotation of their Nodes, and follows them there.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use ::status::mesh::{API_VERSION, Verdict};
use ::status::progress::{NodeProgress, left, table};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{Config, Event, watcher};
use plan::annotation::{State, names};
use plan::node::NodeUid;
use plan::renewal::Renewal;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::CommandError;
use crate::arguments::{flag, time};
use crate::cluster::Cluster;
use crate::output::{self, Format};

/// What became of a request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MeshRotation<'a> {
    api_version: &'static str,
    kind: &'static str,
    nodes: &'a [NodeProgress],
}

/// The subcommand.
pub(crate) fn command(command: Command) -> Command {
    command
        .about("Replace the keys of nodes without losing a packet, and show progress")
        .long_about(
            "Replace the keys of nodes without losing a packet, and show progress. Asks by an annotation of each Node, which needs \
             permission to patch Nodes. Nodes take turns by themselves, and go on if this command is interrupted. Exits with 1 \
             if some are not done in time.",
        )
        .arg(
            Arg::new("node")
                .long("node")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("A node whose keys to replace; may be repeated"),
        )
        .arg(flag("all", "Replace the keys of every node that runs meshd"))
        .group(ArgGroup::new("which").args(["node", "all"]).required(true))
        .arg(flag("dry-run", "Show which nodes would be asked"))
        .arg(flag(
            "emergency",
            "Replace both keys at once, if a key may be compromised. Traffic is interrupted until peers know the new ones",
        ))
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_parser(time)
                .default_value("30m")
                .help("How long to wait for the nodes; they go on after that"),
        )
        .after_help("Example:\n  kubectl meshd rotate --node n1 --node n2\n  kubectl meshd rotate --all --dry-run")
}

/// Asks, follows, and prints what became of it.
pub(crate) async fn run(matches: &ArgMatches) -> Result<Verdict, CommandError> {
    let cluster = Cluster::connect(matches).await?;
    let mut asked = chosen(&cluster.node_objects().await?, matches)?;
    let dry = matches.get_flag("dry-run");
    if !dry {
        // Creation times have a resolution of one second: keys created in the current second are included.
        let renewal = Renewal { before: unix() + 1, at_once: matches.get_flag("emergency") };
        for node in &asked {
            cluster
                .annotate(&node.node, node.uid.as_str(), names::CONFIG_RENEWAL, &renewal.to_string())
                .await?;
            output::progress(&format!("{}: asked", node.node));
        }
        let timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or_default();
        follow(&cluster, &mut asked, timeout).await;
    }
    let document = MeshRotation { api_version: API_VERSION, kind: "MeshRotation", nodes: &asked };
    output::print(&Format::of(matches).render(&document, || table(&asked))?)?;
    let left = left(&asked);
    if dry || left.is_empty() {
        return Ok(Verdict::Good);
    }
    output::progress(&format!("not done in time: {}; they go on", left.join(", ")));
    Ok(Verdict::Failed)
}

/// What a Node announces; none if it runs no meshd.
fn announced(metadata: &ObjectMeta) -> Option<State> {
    let text = metadata.annotations.as_ref()?.get(names::STATE)?;
    State::parse(text).ok()
}

/// The Nodes that the command line means.
fn chosen(nodes: &[Node], matches: &ArgMatches) -> Result<Vec<NodeProgress>, CommandError> {
    let running: BTreeMap<&str, NodeProgress> = nodes
        .iter()
        .filter_map(|node| {
            let (name, uid) = (node.metadata.name.as_deref()?, node.metadata.uid.clone()?);
            Some((name, NodeProgress::new(name, NodeUid::new(uid), &announced(&node.metadata)?)))
        })
        .collect();
    let Some(wanted) = matches.get_many::<String>("node") else {
        return Ok(running.into_values().collect());
    };
    let mut chosen = BTreeMap::new();
    for name in wanted {
        let Some(found) = running.get(name.as_str()) else {
            let is_node = nodes.iter().any(|node| node.metadata.name.as_ref() == Some(name));
            let node = name.clone();
            return Err(if is_node {
                CommandError::NotInTheMesh { node }
            } else {
                CommandError::NoSuchNode { node }
            });
        };
        chosen.insert(name, found.clone());
    }
    Ok(chosen.into_values().collect())
}

/// Says each step until all are done, or the time is over.
async fn follow(cluster: &Cluster, asked: &mut [NodeProgress], timeout: Duration) {
    let began = Instant::now();
    let mut changes = pin!(watcher(cluster.node_metadata(), Config::default()));
    while asked.iter().any(|node| !node.done) {
        let node = match timeout_at(began + timeout, changes.next()).await {
            Ok(Some(Ok(Event::Apply(node) | Event::InitApply(node)))) => node,
            Ok(Some(Ok(Event::Delete(_) | Event::Init | Event::InitDone))) => continue,
            Ok(Some(Err(error))) => {
                output::progress(&format!("the API server can't be asked: {error}"));
                // The watch begins anew at once.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Ok(None) | Err(_) => return,
        };
        let uid = node.metadata.uid.clone().map(NodeUid::new);
        let found = asked.iter_mut().find(|asked| Some(&asked.uid) == uid.as_ref());
        if let (Some(found), Some(state)) = (found, announced(&node.metadata))
            && found.update(&state, began.elapsed())
        {
            output::progress(&found.line());
        }
    }
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use keyring::{PerSlot, PublicKey, Slot};
    use plan::annotation::{Phase, SlotState};

    use super::*;

    fn node(name: &str, runs: bool) -> Node {
        let key = |byte| PublicKey::from_bytes(&[byte; 32]).unwrap();
        let slot = |byte, port| SlotState { key: key(byte), generation: 1, port };
        let state = State {
            uid: NodeUid::new(name),
            generation: 1,
            slots: PerSlot { a: slot(1, 51840), b: slot(2, 51841) },
            prefer: Slot::A,
            drain: None,
            phase: Phase::Steady,
            proofs: None,
        };
        let annotations = runs.then(|| serde_json::json!({names::STATE: state.render()}));
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "uid": name, "annotations": annotations},
        }))
        .unwrap()
    }

    fn chosen_by(arguments: &[&str]) -> Result<Vec<String>, String> {
        let nodes = [node("n1", true), node("n2", true), node("n3", false)];
        let parsed = command(Command::new("rotate"))
            .try_get_matches_from([&["rotate"], arguments].concat())
            .map_err(|error| error.kind().to_string())?;
        let chosen = chosen(&nodes, &parsed).map_err(|error| error.to_string())?;
        Ok(chosen.into_iter().map(|node| node.node).collect())
    }

    #[test]
    fn nodes_are_asked_by_name_or_all_that_run_meshd_and_never_by_accident() {
        assert_eq!(chosen_by(&["--all"]), Ok(vec!["n1".to_owned(), "n2".to_owned()]));
        assert_eq!(chosen_by(&["--node", "n2", "--node", "n2"]), Ok(vec!["n2".to_owned()]));
        for (wrong, why) in [
            (&["--node", "n3"][..], "meshd.dev/state"),
            (&["--node", "n9"], "name of a Node"),
            (&[], "required"),
            (&["--all", "--node", "n1"], "cannot be used"),
        ] {
            let error = chosen_by(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }
}
