//! Questions to the daemons of all nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use ::status::Status;
use ::status::mesh::Answer;
use futures::StreamExt as _;
use tokio::time::Instant;

use crate::cluster::{AskError, Cluster, Daemon, Listed};
use crate::output;

/// How many daemons are asked at once.
pub(crate) const AT_ONCE: usize = 64;
/// After how long progress is said.
pub(crate) const PROGRESS: Duration = Duration::from_secs(2);

/// Which peers each daemon tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    /// All.
    All,
    /// Those with which something is wrong, or all if they are few.
    Unwell,
}

/// Why there is no answer of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// It has no daemon that could be asked.
    Absent(String),
    /// Its daemon did not answer.
    Silent(String),
}

impl Silence {
    /// In words.
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Absent(why) | Self::Silent(why) => why,
        }
    }
}

/// Asks every daemon for its status.
pub(crate) async fn answers(
    cluster: &Cluster,
    nodes: BTreeMap<String, Listed>,
    peers: Peers,
) -> BTreeMap<String, Answer> {
    let answers = each(nodes, async |_, pod| status(cluster, &pod, peers).await).await;
    let answer = |answer| match answer {
        Ok(status) => Answer::Said(Box::new(status)),
        Err(Silence::Absent(why)) => Answer::Absent(why),
        Err(Silence::Silent(why)) => Answer::Silent(why),
    };
    answers.into_iter().map(|(node, found)| (node, answer(found))).collect()
}

/// Asks every daemon, by its node and its pod; says how far that has come if it takes long.
pub(crate) async fn each<T>(
    nodes: BTreeMap<String, Listed>,
    ask: impl AsyncFn(String, String) -> Result<T, AskError>,
) -> BTreeMap<String, Result<T, Silence>> {
    let (began, all, ask) = (Instant::now(), nodes.len(), &ask);
    let mut said = began;
    let mut answers = BTreeMap::new();
    let asked = nodes.into_iter().map(|(node, listed)| async move {
        let pod = match pod(listed.daemon) {
            Ok(pod) => pod,
            Err(why) => return (node, Err(Silence::Absent(why))),
        };
        let answer = ask(node.clone(), pod.clone()).await;
        (node, answer.map_err(|error| Silence::Silent(format!("{pod}: {error}"))))
    });
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

/// The pod of a daemon, or why there is none.
pub(crate) fn pod(daemon: Daemon) -> Result<String, String> {
    match daemon {
        Daemon::Pod(pod) => Ok(pod),
        Daemon::Waiting(why) => Err(why),
        Daemon::None => Err("the DaemonSet has no pod there".to_owned()),
    }
}

async fn status(cluster: &Cluster, pod: &str, peers: Peers) -> Result<Status, AskError> {
    let all = ["status", "-o", "json"];
    let asked = match peers {
        Peers::All => cluster.ask(pod, &all).await,
        Peers::Unwell => match cluster.ask(pod, &[&all[..], &["--problems"]].concat()).await {
            // A daemon that does not know the flag lists all peers.
            Err(AskError::Failed(text)) if text.contains("--problems") => cluster.ask(pod, &all).await,
            answer => answer,
        },
    };
    serde_json::from_str(&asked?).map_err(|error| AskError::Unreadable(error.to_string()))
}
