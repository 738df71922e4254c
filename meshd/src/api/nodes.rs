//! Watches all Nodes and reports what changed, trimmed to the few fields that the mesh reads.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use plan::annotation::names;
use plan::node::{NodeName, NodeRecord, NodeUid};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What the API server reported about the set of Nodes.
#[derive(Debug)]
pub enum Change {
    /// A complete list: a Node that is not in it is gone, as far as the API server knows.
    Listed(BTreeMap<NodeName, NodeRecord>),
    /// One Node is new or changed.
    Applied(NodeRecord),
    /// One Node was deleted while we watched.
    Deleted(NodeName, NodeUid),
    /// The watch failed; it is started again with exponential backoff.
    Failed(WatchError),
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The watch itself.
    #[error("watch the Nodes")]
    Watch(#[source] Box<watcher::Error>),
    /// Our own Node is not the one that the watch reported: the store behind the API server is another one, and a watch that
    /// continues from a resource version of the former one waits for ever.
    #[error("watch the Nodes: the API server has another Node {0} than the one that was listed")]
    AnotherStore(NodeName),
}

/// Seconds after which a watch is renewed: a dead connection is noticed by then.
const WATCH_SECONDS: u32 = 60;
/// Nodes in one page of a list: bounds the memory for its decoding (a Node is about 15 kB of JSON).
const PAGE: u32 = 100;

/// Shortest and longest time before another try; each is extended by up to as much again, so that the nodes of a cluster
/// don't all reconnect at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// How often our own Node is read, to check that the watch is still on the same store.
const STORE_CHECK_PERIOD: Duration = Duration::from_secs(30);

/// Watches until the receiver is gone.
///
/// After an error it begins with a complete list. A watch that continued would wait for ever on an API server whose store
/// was emptied or restored: it does not have that resource version yet, and its error does not say why.
pub async fn watch(client: Client, own: NodeName, changes: mpsc::Sender<Change>) {
    let mut backoff = BACKOFF.0;
    loop {
        let Some(error) = watch_once(&client, &own, &changes, &mut backoff).await else { return };
        if changes.send(Change::Failed(error)).await.is_err() {
            return;
        }
        // This need not be good randomness, only different on each node.
        let jitter = RandomState::new().build_hasher().finish() % 1000;
        tokio::time::sleep(backoff + backoff * u32::try_from(jitter).unwrap_or_default() / 1000).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Watches until an error, which it returns, or until the receiver is gone.
async fn watch_once(
    client: &Client,
    own: &NodeName,
    changes: &mpsc::Sender<Change>,
    backoff: &mut Duration,
) -> Option<WatchError> {
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let mut events = pin!(watcher(Api::<Node>::all(client.clone()), config));
    let mut seen = Seen { own: own.clone(), own_uid: None, listing: BTreeMap::new() };
    let mut store_check = tokio::time::interval_at(Instant::now() + STORE_CHECK_PERIOD, STORE_CHECK_PERIOD);
    loop {
        let event = tokio::select! {
            event = events.try_next() => event,
            _ = store_check.tick() => {
                // No answer says nothing about the store; the watch will fail if the server is away.
                match find(client, own).await {
                    Ok(found) if found.as_ref().map(|record| &record.uid) != seen.own_uid.as_ref() => {
                        return Some(WatchError::AnotherStore(own.clone()));
                    }
                    _ => continue,
                }
            }
        };
        let change = match event {
            Ok(None) => return None,
            Err(error) => return Some(WatchError::Watch(Box::new(error))),
            Ok(Some(event)) => seen.change(event),
        };
        if matches!(change, Some(Change::Listed(_))) {
            *backoff = BACKOFF.0;
        }
        if let Some(change) = change
            && changes.send(change).await.is_err()
        {
            return None;
        }
    }
}

/// What a watch has reported so far, as far as later events depend on it.
struct Seen {
    own: NodeName,
    own_uid: Option<NodeUid>,
    listing: BTreeMap<NodeName, NodeRecord>,
}

impl Seen {
    /// Takes an event; a list is one change once it is complete.
    fn change(&mut self, event: watcher::Event<Node>) -> Option<Change> {
        let gone = matches!(event, watcher::Event::Delete(_));
        match event {
            watcher::Event::Init => {
                self.listing.clear();
                self.own_uid = None;
                None
            }
            watcher::Event::InitApply(node) => {
                let record = self.record(&node, gone);
                self.listing.insert(record.name.clone(), record);
                None
            }
            watcher::Event::InitDone => Some(Change::Listed(std::mem::take(&mut self.listing))),
            watcher::Event::Apply(node) => Some(Change::Applied(self.record(&node, gone))),
            watcher::Event::Delete(node) => {
                let record = self.record(&node, gone);
                Some(Change::Deleted(record.name, record.uid))
            }
        }
    }

    fn record(&mut self, node: &Node, gone: bool) -> NodeRecord {
        let record = trim(node);
        if record.name == self.own {
            self.own_uid = (!gone).then(|| record.uid.clone());
        }
        record
    }
}

/// Gets one Node. `Ok(None)` means that the API server does not have it.
pub async fn find(client: &Client, name: &NodeName) -> Result<Option<NodeRecord>, kube::Error> {
    let found = Api::<Node>::all(client.clone()).get_opt(name.as_str()).await?;
    Ok(found.as_ref().map(trim))
}

/// Keeps what the mesh reads of a Node; the rest (images, conditions, managed fields) is most of it.
fn trim(node: &Node) -> NodeRecord {
    let annotation = |name: &str| node.annotations().get(name).cloned();
    let spec = node.spec.as_ref();
    let pod_cidrs = spec.and_then(|spec| spec.pod_cidrs.clone());
    let single = || spec.and_then(|spec| spec.pod_cidr.clone()).into_iter().collect();
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let is_ip = |kind: &str| kind == "InternalIP" || kind == "ExternalIP";
    NodeRecord {
        name: NodeName::new(node.name_any()),
        uid: NodeUid::new(node.uid().unwrap_or_default()),
        created: node.creation_timestamp().map(|time| time.0.to_string()).unwrap_or_default(),
        pod_cidrs: pod_cidrs.unwrap_or_else(single),
        addresses: addresses
            .into_iter()
            .flatten()
            .filter(|address| is_ip(&address.type_))
            .map(|address| address.address.clone())
            .collect(),
        control_plane: ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"]
            .iter()
            .any(|role| node.labels().contains_key(*role)),
        state: annotation(names::STATE),
        endpoints: annotation(names::ENDPOINTS),
        config_endpoint: annotation(names::CONFIG_ENDPOINT),
        config_keepalive: annotation(names::CONFIG_KEEPALIVE),
        config_renewal: annotation(names::CONFIG_RENEWAL),
    }
}
