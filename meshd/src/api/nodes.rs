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
use plan::node::{NodeName, NodeRecord, NodeUid, RELAY_LABEL};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::API_TIMEOUT;

/// What the API server reported about the set of Nodes.
#[derive(Debug)]
pub enum Change {
    /// A complete list: a Node that is not in it is gone, as far as the API server knows.
    Listed(BTreeMap<NodeName, NodeRecord>),
    /// One Node is new or changed.
    Applied(Box<NodeRecord>),
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
    #[error(
        "watch the Nodes: Node {0} has another UID than in the list: the API server's store was replaced"
    )]
    AnotherStore(NodeName),
}

/// Seconds after which a watch is renewed. A dead connection is noticed before (see `connect.rs`).
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
        let watched = watch_once(&client, &own, &changes, &mut backoff, STORE_CHECK_PERIOD).await;
        let Some(error) = watched else { return };
        if changes.send(Change::Failed(error)).await.is_err() {
            return;
        }
        // This need not be good randomness, only different on each node.
        let jitter = RandomState::new().build_hasher().finish() % 1000;
        sleep(backoff + backoff * u32::try_from(jitter).unwrap_or_default() / 1000).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Watches until an error, which it returns, or until the receiver is gone.
async fn watch_once(
    client: &Client,
    own: &NodeName,
    changes: &mpsc::Sender<Change>,
    backoff: &mut Duration,
    store_check_period: Duration,
) -> Option<WatchError> {
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let mut events = pin!(watcher(Api::<Node>::all(client.clone()), config));
    let mut seen = Seen { own: own.clone(), own_uid: None, since: None, listing: BTreeMap::new() };
    // Polled beside the events, so that an API server that does not answer delays none of them.
    let mut store_check = pin!(own_uid_after(store_check_period, client, own));
    loop {
        let event = tokio::select! {
            event = events.try_next() => event,
            answer = &mut store_check => {
                store_check.set(own_uid_after(store_check_period, client, own));
                // No answer says nothing about the store; the watch will fail if the server is away.
                if answer.is_some_and(|(asked, uid)| seen.is_contradicted_by(asked, uid.as_ref())) {
                    return Some(WatchError::AnotherStore(own.clone()));
                }
                continue;
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

/// Waits and then reads the UID of our own Node: when it was asked for and what the API server has, or none without an
/// answer in time.
async fn own_uid_after(
    delay: Duration,
    client: &Client,
    own: &NodeName,
) -> Option<(Instant, Option<NodeUid>)> {
    sleep(delay).await;
    let asked = Instant::now();
    let found = timeout(API_TIMEOUT, find(client, own)).await.ok()?.ok()?;
    Some((asked, found.map(|record| record.uid)))
}

/// What a watch has reported so far, as far as later events depend on it.
struct Seen {
    own: NodeName,
    own_uid: Option<NodeUid>,
    /// Since when the watch has reported this UID, or that there is no such Node; none during a list.
    since: Option<Instant>,
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
                self.since = None;
                None
            }
            watcher::Event::InitApply(node) => {
                let record = self.record(&node, gone);
                self.listing.insert(record.name.clone(), record);
                None
            }
            watcher::Event::InitDone => {
                self.since = Some(Instant::now());
                Some(Change::Listed(std::mem::take(&mut self.listing)))
            }
            watcher::Event::Apply(node) => Some(Change::Applied(Box::new(self.record(&node, gone)))),
            watcher::Event::Delete(node) => {
                let record = self.record(&node, gone);
                Some(Change::Deleted(record.name, record.uid))
            }
        }
    }

    fn record(&mut self, node: &Node, gone: bool) -> NodeRecord {
        let record = trim(node);
        if record.name == self.own {
            let uid = (!gone).then(|| record.uid.clone());
            if uid != self.own_uid {
                self.own_uid = uid;
                self.since = self.since.map(|_| Instant::now());
            }
        }
        record
    }

    /// Whether the API server has our own Node with another UID than the watch has reported. What the watch has reported
    /// only since the question was asked may be newer than the answer.
    fn is_contradicted_by(&self, asked: Instant, uid: Option<&NodeUid>) -> bool {
        self.since.is_some_and(|since| since < asked) && self.own_uid.as_ref() != uid
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
    let of_types = |types: &[&str]| -> Vec<String> {
        let found = addresses.into_iter().flatten().filter(|address| types.contains(&address.type_.as_str()));
        found.map(|address| address.address.clone()).collect()
    };
    let (internal, mut external) = (of_types(&["InternalIP"]), of_types(&["ExternalIP"]));
    external.retain(|address| !internal.contains(address));
    NodeRecord {
        name: NodeName::new(node.name_any()),
        uid: NodeUid::new(node.uid().unwrap_or_default()),
        created: node.creation_timestamp().map(|time| time.0.to_string()).unwrap_or_default(),
        pod_cidrs: pod_cidrs.unwrap_or_else(single),
        addresses: of_types(&["InternalIP", "ExternalIP"]),
        external,
        location: annotation(names::CONFIG_LOCATION).or_else(|| location(node.labels())),
        control_plane: ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"]
            .iter()
            .any(|role| node.labels().contains_key(*role)),
        relay: node.labels().get(RELAY_LABEL).is_some_and(|value| value == "true"),
        state: annotation(names::STATE),
        endpoints: annotation(names::ENDPOINTS),
        config_endpoint: annotation(names::CONFIG_ENDPOINT),
        config_keepalive: annotation(names::CONFIG_KEEPALIVE),
        config_renewal: annotation(names::CONFIG_RENEWAL),
    }
}

/// Region and zone, as a cloud's controller labels a Node.
fn location(labels: &BTreeMap<String, String>) -> Option<String> {
    let region = labels.get("topology.kubernetes.io/region")?;
    let zone = labels.get("topology.kubernetes.io/zone");
    Some(zone.map_or_else(|| region.clone(), |zone| format!("{region}/{zone}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::convert::Infallible;

    use axum::Router;
    use axum::body::Body;
    use axum::extract::Query;
    use axum::response::{IntoResponse as _, Response};
    use axum::routing::get;
    use k8s_openapi::api::core::v1::{NodeAddress, NodeStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use serde_json::json;

    use super::*;

    fn node(uid: &str) -> Node {
        let metadata =
            ObjectMeta { name: Some("n1".into()), uid: Some(uid.to_owned()), ..ObjectMeta::default() };
        Node { metadata, ..Node::default() }
    }

    #[test]
    fn only_an_answer_to_a_later_question_contradicts_the_watch() {
        let own = NodeName::new("n1");
        let mut seen = Seen { own, own_uid: None, since: None, listing: BTreeMap::new() };
        let (former, latter) = (NodeUid::new("u1"), NodeUid::new("u2"));
        let before = Instant::now();
        let next = before + Duration::from_mins(1);
        seen.change(watcher::Event::Init);
        assert!(!seen.is_contradicted_by(next, Some(&former)), "the list is not complete");
        seen.change(watcher::Event::InitApply(node("u1")));
        assert!(!seen.is_contradicted_by(next, Some(&latter)), "the list is not complete");
        seen.change(watcher::Event::InitDone);
        assert!(!seen.is_contradicted_by(next, Some(&former)), "the same UID");
        for uid in [Some(&latter), None] {
            assert!(seen.is_contradicted_by(next, uid));
            assert!(!seen.is_contradicted_by(before, uid), "asked before the list");
        }
        let recreated = Instant::now();
        seen.change(watcher::Event::Apply(node("u2")));
        assert!(!seen.is_contradicted_by(recreated, Some(&former)), "asked before the Node was recreated");
        assert!(seen.is_contradicted_by(next, Some(&former)));
        seen.change(watcher::Event::Delete(node("u2")));
        assert!(!seen.is_contradicted_by(next, None));
        assert!(seen.is_contradicted_by(next, Some(&latter)));
    }

    #[test]
    fn an_address_is_external_if_it_is_not_listed_as_internal_too() {
        let address =
            |type_: &str, address: &str| NodeAddress { type_: type_.into(), address: address.into() };
        let addresses = vec![
            address("ExternalIP", "203.0.113.1"),
            address("Hostname", "n1"),
            address("InternalIP", "192.0.2.1"),
            address("ExternalIP", "192.0.2.1"),
        ];
        let status = NodeStatus { addresses: Some(addresses), ..NodeStatus::default() };
        let record = trim(&Node { status: Some(status), ..node("u1") });
        assert_eq!(record.addresses, ["203.0.113.1", "192.0.2.1", "192.0.2.1"]);
        assert_eq!(record.external, ["203.0.113.1"]);
    }

    /// Lists or watches one Node, which changes every few milliseconds.
    fn list_or_watch(query: &BTreeMap<String, String>) -> Response {
        let metadata = json!({"name": "n1", "uid": "u1", "resourceVersion": "1"});
        if !query.contains_key("watch") {
            let list = json!({
                "apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"},
                "items": [{"metadata": metadata}],
            });
            return axum::Json(list).into_response();
        }
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
        let line = json!({"type": "MODIFIED", "object": node}).to_string() + "\n";
        let lines = futures::stream::unfold(line, |line| async move {
            sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, Infallible>(line.clone()), line))
        });
        Body::from_stream(lines).into_response()
    }

    /// An API server that never answers a request for one Node.
    async fn hanging() -> Client {
        let nodes = |Query(query): Query<BTreeMap<_, _>>| async move { list_or_watch(&query) };
        let routes = Router::new()
            .route("/api/v1/nodes", get(nodes))
            .route("/api/v1/nodes/n1", get(std::future::pending::<Response>));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Client::try_from(kube::Config::new(uri.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn a_store_check_that_hangs_delays_no_event() {
        let client = hanging().await;
        let (sender, mut changes) = mpsc::channel(64);
        let watching = tokio::spawn(async move {
            let (own, mut backoff) = (NodeName::new("n1"), BACKOFF.0);
            watch_once(&client, &own, &sender, &mut backoff, Duration::from_millis(50)).await
        });
        assert!(matches!(changes.recv().await, Some(Change::Listed(_))));
        let events = async {
            for _ in 0..20 {
                assert!(matches!(changes.recv().await, Some(Change::Applied(_))));
            }
        };
        assert!(timeout(API_TIMEOUT / 2, events).await.is_ok(), "the events wait for the store check");
        watching.abort();
    }
}
