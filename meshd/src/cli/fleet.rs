//! `meshd rotate --node` and `--all`: asks nodes through the API server to replace their keys, and follows them there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::ArgMatches;
use comfy_table::{Table, presets};
use keyring::{Fingerprint, PerSlot};
use plan::annotation::{Phase, State, names};
use plan::node::{NodeName, NodeRecord, NodeUid};
use plan::renewal::Renewal;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{CommandError, arguments, output, run};
use crate::api;
use crate::api::nodes::Change;
use crate::api::publish::{Publication, patch};
use crate::chain::Chain;

/// One node that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Asked {
    #[serde(skip)]
    uid: NodeUid,
    node: String,
    /// Whether neither of its former keys is announced any more, and no rotation is on its way.
    done: bool,
    phase: Phase,
    generation: u64,
    former: PerSlot<Fingerprint>,
    present: PerSlot<Fingerprint>,
    /// From the question to the announcement of the last new key.
    milliseconds: Option<u64>,
}

impl Asked {
    fn new(record: &NodeRecord, state: &State) -> Self {
        let keys = PerSlot::from_fn(|slot| state.slots.get(slot).key.fingerprint());
        Self {
            uid: record.uid.clone(),
            node: record.name.to_string(),
            done: false,
            phase: state.phase,
            generation: state.generation,
            former: keys,
            present: keys,
            milliseconds: None,
        }
    }

    /// Takes what the Node says now; says whether that is news.
    fn learn(&mut self, state: &State, since: Duration) -> bool {
        let before = (self.done, self.phase, self.generation);
        self.present = PerSlot::from_fn(|slot| state.slots.get(slot).key.fingerprint());
        self.phase = state.phase;
        self.generation = state.generation;
        let renewed = self.present.iter().all(|(_, key)| self.former.iter().all(|(_, former)| former != key));
        self.done = renewed && matches!(self.phase, Phase::Steady | Phase::Cold);
        if self.done && self.milliseconds.is_none() {
            self.milliseconds = u64::try_from(since.as_millis()).ok();
        }
        before != (self.done, self.phase, self.generation)
    }

    fn word(&self) -> &'static str {
        match (self.done, self.phase) {
            (true, _) => "done",
            (false, Phase::Draining) => "peers leave a slot",
            (false, Phase::Verifying) => "peers try a new key",
            (false, Phase::Steady | Phase::Cold) => "waits for its turn",
        }
    }
}

/// Whether the command line names nodes.
pub(super) fn is_wanted(matches: &ArgMatches) -> bool {
    matches.get_flag("all") || matches.contains_id("node")
}

/// `meshd rotate --node NAME …` and `meshd rotate --all`
pub(super) fn rotate(matches: &ArgMatches) -> Result<(), CommandError> {
    run::runtime()?.block_on(ask_and_follow(matches))
}

async fn ask_and_follow(matches: &ArgMatches) -> Result<(), CommandError> {
    let (client, _) = api::connect::client(kubeconfig(matches).as_deref())
        .await
        .map_err(|source| CommandError::Connect(Box::new(source)))?;
    let (changes_in, mut changes) = mpsc::channel(64);
    // No Node has an empty name: none of them is our own.
    let watching = tokio::spawn(api::nodes::watch(client.clone(), NodeName::new(""), changes_in));
    let records = first_list(&mut changes).await?;
    let mut asked = chosen(matches, &records)?;
    let json = arguments::wants_json(matches);
    if matches.get_flag("dry-run") {
        return if json { output::json(&asked) } else { output::print(&table(&asked)) };
    }
    // Nodes know in which second a key was made: those of this second are meant too, and get a new one in the next.
    let renewal = Renewal { before: unix() + 1, at_once: matches.get_flag("emergency") };
    for node in &asked {
        let annotations = BTreeMap::from([(names::CONFIG_RENEWAL.to_owned(), Some(renewal.to_string()))]);
        let publication = Publication { node: NodeName::new(&node.node), uid: node.uid.clone(), annotations };
        patch(&client, &publication)
            .await
            .map_err(|source| CommandError::Ask { node: node.node.clone(), source: Box::new(source) })?;
    }
    let timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or_default();
    follow(&mut asked, &mut changes, timeout).await;
    watching.abort();
    if json {
        output::json(&asked)?;
    } else {
        output::print(&table(&asked))?;
    }
    let left: Vec<String> = asked.iter().filter(|node| !node.done).map(|node| node.node.clone()).collect();
    if left.is_empty() { Ok(()) } else { Err(CommandError::NotYet { nodes: left }) }
}

/// What `--kubeconfig` says, else what kubectl would use; none inside a cluster.
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
            // The watch would try for ever: a person can do that better.
            Change::Failed(source) => return Err(CommandError::List(Box::new(source))),
            Change::Applied(_) | Change::Deleted(..) => {}
        }
    }
    Ok(BTreeMap::new())
}

/// The nodes that the command line names, each with what it announces.
fn chosen(
    matches: &ArgMatches,
    records: &BTreeMap<NodeName, NodeRecord>,
) -> Result<Vec<Asked>, CommandError> {
    let state = |record: &NodeRecord| record.state.as_deref().and_then(|text| State::parse(text).ok());
    let Some(wanted) = matches.get_many::<String>("node") else {
        return Ok(records.values().filter_map(|record| Some(Asked::new(record, &state(record)?))).collect());
    };
    let wanted: BTreeSet<&String> = wanted.collect();
    let find = |name: &String| {
        let record = records.get(&NodeName::new(name.as_str()));
        let state = record.and_then(state);
        record
            .zip(state)
            .map(|(record, state)| Asked::new(record, &state))
            .ok_or_else(|| CommandError::NotInTheMesh { node: name.clone(), missing: record.is_none() })
    };
    wanted.into_iter().map(find).collect()
}

/// Tells on standard error what changes, until all are done or the time is up.
async fn follow(asked: &mut [Asked], changes: &mut mpsc::Receiver<Change>, timeout: Duration) {
    let began = Instant::now();
    while asked.iter().any(|node| !node.done) {
        let change = tokio::time::timeout_at(began + timeout, changes.recv()).await;
        let records: Vec<NodeRecord> = match change {
            Ok(Some(Change::Applied(record))) => vec![record],
            Ok(Some(Change::Listed(records))) => records.into_values().collect(),
            Ok(Some(Change::Failed(error))) => {
                tell(&format!("the API server is away: {}", Chain(&error)));
                continue;
            }
            Ok(Some(Change::Deleted(..))) => continue,
            Ok(None) | Err(_) => return,
        };
        for record in records {
            let state = record.state.as_deref().and_then(|text| State::parse(text).ok());
            let node = asked.iter_mut().find(|node| node.uid == record.uid);
            if let (Some(node), Some(state)) = (node, state)
                && node.learn(&state, began.elapsed())
            {
                tell(&format!("{}: generation {}, {}", node.node, node.generation, node.word()));
            }
        }
    }
}

fn tell(text: &str) {
    // Nobody may be reading the progress.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn table(asked: &[Asked]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "NODE",
        "STATE",
        "GENERATION",
        "KEY A",
        "KEY B",
        "SECONDS",
    ]);
    for node in asked {
        table.add_row([
            node.node.clone(),
            node.word().to_owned(),
            node.generation.to_string(),
            node.present.a.to_string(),
            node.present.b.to_string(),
            node.milliseconds
                .map(|took| format!("{}.{}", took / 1000, took % 1000 / 100))
                .unwrap_or_default(),
        ]);
    }
    format!("{table}\n")
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}
