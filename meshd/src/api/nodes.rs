//! Watches all Nodes and reports what changed, trimmed to the few fields that the mesh reads.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt as _;
use kube::runtime::watcher;
use kube::{Api, Client};
use plan::node::{NodeName, NodeRecord, NodeUid};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::API_TIMEOUT;
use super::observed_node::ObservedNode;

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
    let mut events = pin!(watcher(Api::<ObservedNode>::all(client.clone()), config));
    let mut seen = Seen::new(own.clone());
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
    /// A digest of the last record of each Node, by one of its name. The seeds are this process's own, so nobody can choose a
    /// record that looks like another one.
    digests: HashMap<u64, u64>,
    seeds: RandomState,
}

impl Seen {
    fn new(own: NodeName) -> Self {
        Self {
            own,
            own_uid: None,
            since: None,
            listing: BTreeMap::new(),
            digests: HashMap::new(),
            seeds: RandomState::new(),
        }
    }

    /// Takes an event; a list is one change once it is complete. A record that is as the last one is no change: kubelets
    /// report the state of their Nodes every few minutes, in fields that nobody here reads.
    fn change(&mut self, event: watcher::Event<ObservedNode>) -> Option<Change> {
        let gone = matches!(event, watcher::Event::Delete(_));
        match event {
            watcher::Event::Init => {
                self.listing.clear();
                self.digests.clear();
                self.own_uid = None;
                self.since = None;
                None
            }
            watcher::Event::InitApply(node) => {
                let record = self.record(node, gone);
                self.is_new(&record);
                self.listing.insert(record.name.clone(), record);
                None
            }
            watcher::Event::InitDone => {
                self.since = Some(Instant::now());
                Some(Change::Listed(std::mem::take(&mut self.listing)))
            }
            watcher::Event::Apply(node) => {
                let record = self.record(node, gone);
                self.is_new(&record).then(|| Change::Applied(Box::new(record)))
            }
            watcher::Event::Delete(node) => {
                let record = self.record(node, gone);
                self.digests.remove(&self.seeds.hash_one(&record.name));
                Some(Change::Deleted(record.name, record.uid))
            }
        }
    }

    /// Whether a record is another one than the last of its Node.
    fn is_new(&mut self, record: &NodeRecord) -> bool {
        let digest = self.seeds.hash_one(record);
        self.digests.insert(self.seeds.hash_one(&record.name), digest) != Some(digest)
    }

    fn record(&mut self, node: ObservedNode, gone: bool) -> NodeRecord {
        let record = node.into_record();
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
    let found = Api::<ObservedNode>::all(client.clone()).get_opt(name.as_str()).await?;
    Ok(found.map(ObservedNode::into_record))
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
    use serde_json::json;

    use super::*;

    fn node(uid: &str) -> ObservedNode {
        serde_json::from_value(json!({"metadata": {"name": "n1", "uid": uid}})).unwrap()
    }

    #[test]
    fn only_an_answer_to_a_later_question_contradicts_the_watch() {
        let own = NodeName::new("n1");
        let mut seen = Seen::new(own);
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
    fn a_node_that_is_as_it_was_is_no_change() {
        let mut seen = Seen::new(NodeName::new("n9"));
        let observed = |version: &str, podcidr: &str| -> ObservedNode {
            let metadata = json!({"name": "n1", "uid": "u1", "resourceVersion": version});
            let status = json!({"conditions": [{"type": "Ready", "lastHeartbeatTime": version}]});
            serde_json::from_value(
                json!({"metadata": metadata, "spec": {"podCIDR": podcidr}, "status": status}),
            )
            .unwrap()
        };
        seen.change(watcher::Event::Init);
        seen.change(watcher::Event::InitApply(observed("1", "10.244.1.0/24")));
        seen.change(watcher::Event::InitDone);
        let mut is_change = |event| seen.change(event).is_some();
        assert!(!is_change(watcher::Event::Apply(observed("2", "10.244.1.0/24"))), "a kubelet's report");
        assert!(is_change(watcher::Event::Apply(observed("3", "10.244.2.0/24"))));
        assert!(!is_change(watcher::Event::Apply(observed("4", "10.244.2.0/24"))));
        assert!(is_change(watcher::Event::Apply(observed("5", "10.244.1.0/24"))), "back again");
        assert!(is_change(watcher::Event::Delete(observed("6", "10.244.1.0/24"))));
        assert!(is_change(watcher::Event::Apply(observed("7", "10.244.1.0/24"))), "after it was deleted");
    }

    /// Lists or watches one Node, whose pod range changes every few milliseconds.
    fn list_or_watch(query: &BTreeMap<String, String>) -> Response {
        let metadata = json!({"name": "n1", "uid": "u1", "resourceVersion": "1"});
        if !query.contains_key("watch") {
            let list = json!({
                "apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"},
                "items": [{"metadata": metadata}],
            });
            return axum::Json(list).into_response();
        }
        let lines = futures::stream::unfold((metadata, 0_u8), |(metadata, number)| async move {
            sleep(Duration::from_millis(20)).await;
            let spec = json!({"podCIDR": format!("10.244.{number}.0/24")});
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
            let line = json!({"type": "MODIFIED", "object": node}).to_string() + "\n";
            Some((Ok::<_, Infallible>(line), (metadata, number.wrapping_add(1))))
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
