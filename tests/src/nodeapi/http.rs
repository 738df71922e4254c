//! The HTTP side of the fake API server: requests in, objects, errors and watch streams out.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query as QueryPairs, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::request::{Query, Target, encode_page, qualified};
use super::status::Status;
use super::store::{Part, RequestContext, Store, merge, text};
use super::{PORT, Shared};

/// How often a watch that asked for bookmarks gets one.
const BOOKMARK_INTERVAL: Duration = Duration::from_mins(1);

/// How long before the end of a watch its last bookmark comes.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// How long a watch without a timeout lasts; the real server picks a time between 30 and 60 minutes.
const WATCH_TIME: Duration = Duration::from_mins(30);

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let router = Router::new().fallback(answer).with_state(shared);
    axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
}

/// A request of an authenticated and authorized user.
struct Request {
    method: Method,
    target: Target,
    query: Query,
    media: String,
    body: Bytes,
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    QueryPairs(pairs): QueryPairs<BTreeMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // For an API group that is not served, the real server does not answer with a Status object either.
    if uri.path().starts_with("/apis/") && !uri.path().starts_with("/apis/events.k8s.io/v1/") {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    let request = authorize(&shared, method, &uri, &pairs, &headers, body);
    if let Ok(request) = &request
        && request.method == Method::GET
        && matches!(request.target, Target::Node { .. } | Target::Endpoints { .. })
        && shared.hangs.load(Ordering::Relaxed)
    {
        std::future::pending::<()>().await;
    }
    if let Ok(request) = &request
        && request.method == Method::PATCH
        && matches!(request.target, Target::Node { .. })
        && shared.hangs_on_patches.load(Ordering::Relaxed)
    {
        std::future::pending::<()>().await;
    }
    let outcome = request.and_then(|request| respond(&shared, &request));
    outcome.unwrap_or_else(|status| object(status.code(), &status.body()))
}

/// Authenticates and authorizes a request.
fn authorize(
    shared: &Shared,
    method: Method,
    uri: &Uri,
    pairs: &BTreeMap<String, String>,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Request, Status> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // A request without a token is anonymous; one with an unknown token is refused.
    let token = header(header::AUTHORIZATION).and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
    let user = token.filter(|token| !token.is_empty());
    let user =
        user.map(|token| shared.users.with_token(token).ok_or_else(Status::unauthorized)).transpose()?;
    let target = Target::parse(uri.path())?;
    let watches = matches!(pairs.get("watch").map(String::as_str), Some("true" | "1"));
    let verb = verb(&method, &target, watches)?;
    let key = format!("{verb} {}", target.resource().0);
    *shared.lock().requests.entry(key).or_default() += 1;
    target.authorize(verb, user, shared.fence)?;
    let query = Query::parse(pairs)?;
    let media = header(header::CONTENT_TYPE).unwrap_or_default();
    let media = media.split(';').next().unwrap_or_default().trim().to_owned();
    Ok(Request { method, target, query, media, body })
}

/// Kubernetes' verb for an HTTP method.
fn verb(method: &Method, target: &Target, watches: bool) -> Result<&'static str, Status> {
    let collection = matches!(target, Target::Nodes | Target::Events { name: None, .. });
    Ok(match *method {
        Method::GET if collection && watches => "watch",
        Method::GET if collection => "list",
        Method::GET => "get",
        Method::POST if collection => "create",
        Method::PATCH if !collection => "patch",
        Method::DELETE if !collection => "delete",
        _ => return Err(Status::method_not_allowed()),
    })
}

fn respond(shared: &Arc<Shared>, request: &Request) -> Result<Response, Status> {
    match &request.target {
        Target::Version => {
            let version =
                json!({"major": "1", "minor": "20", "gitVersion": "v1.20.2+lab", "platform": "linux/amd64"});
            Ok(object(200, &version))
        }
        Target::Health => Ok("ok".into_response()),
        Target::Endpoints { namespace, name } => endpoints(shared, namespace, name),
        Target::Events { group, namespace, name } => {
            events(shared, request, group, namespace.as_deref(), name.as_deref())
        }
        Target::Nodes if request.method == Method::GET && request.query.watch => {
            Ok(watch(shared, &request.query))
        }
        Target::Nodes if request.method == Method::GET => list(&mut shared.lock().nodes, &request.query),
        Target::Nodes => change(shared, request, |nodes, context| {
            nodes.create(parse(&request.body)?, context).map(|node| object(201, &node))
        }),
        Target::Node { name, .. } if request.method == Method::GET => {
            shared.lock().nodes.get(name).map(|node| object(200, &node))
        }
        Target::Node { name, status } if request.method == Method::PATCH => {
            let patch = merge_patch(request)?;
            let part = if *status { Part::Status } else { Part::Main };
            change(shared, request, |nodes, context| {
                nodes.patch(name, part, &patch, context.dry_run).map(|node| object(200, &node))
            })
        }
        Target::Node { name, .. } => change(shared, request, |nodes, context| {
            let options = if request.body.is_empty() { json!({}) } else { parse(&request.body)? };
            let dry_run = context.dry_run || options["dryRun"].get(0) == Some(&json!("All"));
            let node = nodes.delete(name, text(&options, "/preconditions/uid"), dry_run)?;
            let details = json!({"name": name, "kind": "nodes", "uid": node["metadata"]["uid"]});
            let body = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            });
            Ok(object(200, &body))
        }),
    }
}

/// Changes the Nodes and notifies the watches.
fn change(
    shared: &Shared,
    request: &Request,
    work: impl FnOnce(&mut Store, RequestContext<'_>) -> Result<Response, Status>,
) -> Result<Response, Status> {
    let (now, uid) = (now(), fresh_uid());
    let mut state = shared.lock();
    let response =
        work(&mut state.nodes, RequestContext { now: &now, uid: &uid, dry_run: request.query.dry_run })?;
    shared.changed.send_replace(state.nodes.revision());
    Ok(response)
}

fn list(nodes: &mut Store, query: &Query) -> Result<Response, Status> {
    if let Some(asked) = query.revision.filter(|asked| *asked > nodes.revision()) {
        return Err(Status::too_large_version(asked, nodes.revision()));
    }
    // Version 0 means "whatever the cache has", and the cache gives no pages.
    let limit = if query.revision == Some(0) { 0 } else { query.limit };
    let from = query.page.as_ref().map(|(revision, start)| (*revision, start.as_str()));
    let page = nodes.list(|name, node| query.matches(name, node), limit, from)?;
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some((start, left)) = page.rest {
        metadata["continue"] = json!(encode_page(page.revision, &start));
        // The real server does not count what a selector might leave out.
        if query.name.is_none() && query.labels.is_empty() {
            metadata["remainingItemCount"] = json!(left);
        }
    }
    let items: Vec<Value> = page.items.iter().map(|node| without_kind(node)).collect();
    Ok(object(200, &json!({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items})))
}

/// Items of a list say neither kind nor version: the list does.
fn without_kind(node: &Value) -> Value {
    let mut node = node.clone();
    if let Some(object) = node.as_object_mut() {
        object.remove("kind");
        object.remove("apiVersion");
    }
    node
}

/// A running watch.
struct Watch {
    shared: Arc<Shared>,
    changes: tokio::sync::watch::Receiver<u64>,
    query: Query,
    /// The latest revision that was sent or passed over.
    reached: u64,
    /// The revision at which the watch began to wait.
    began: u64,
    /// Events that wait to be sent, as lines.
    pending: Vec<Value>,
    next_bookmark: Option<Instant>,
    end: Instant,
    over: bool,
}

fn watch(shared: &Arc<Shared>, query: &Query) -> Response {
    // Subscribed first, so that no change falls between the state and the waiting.
    let changes = shared.changed.subscribe();
    let state = shared.lock();
    let began = state.nodes.revision();
    let start = Instant::now();
    let end = start + query.timeout_seconds.map_or(WATCH_TIME, Duration::from_secs);
    let first = (start + BOOKMARK_INTERVAL).min(end.checked_sub(LAST_BOOKMARK).unwrap_or(end));
    let (reached, pending, over) = match query.revision {
        None | Some(0) => {
            let matching = state
                .nodes
                .all()
                .filter(|node| query.matches(text(node, "/metadata/name").unwrap_or_default(), node));
            let added = matching.map(|node| json!({"type": "ADDED", "object": **node})).collect();
            (state.nodes.revision(), added, false)
        }
        // Once a watch is accepted, its errors are sent in the stream.
        Some(revision) => match state.nodes.since(revision) {
            Ok(_) => (revision, Vec::new(), false),
            Err(expired) => (revision, vec![expired.event()], true),
        },
    };
    drop(state);
    let watch = Watch {
        shared: Arc::clone(shared),
        changes,
        query: query.clone(),
        reached,
        began,
        pending,
        next_bookmark: query.bookmarks.then_some(first),
        end,
        over,
    };
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, Body::from_stream(watch.into_stream())).into_response()
}

impl Watch {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        futures::stream::unfold(self, |mut watch| async move {
            watch.fill().await;
            if watch.pending.is_empty() {
                return None;
            }
            let lines = watch.pending.drain(..).flat_map(|event| [event.to_string(), "\n".to_owned()]);
            Some((Ok(Bytes::from(lines.collect::<String>())), watch))
        })
    }

    /// Waits until there is something to send, or until the watch is over.
    async fn fill(&mut self) {
        while self.pending.is_empty() && !self.over {
            self.changes.borrow_and_update();
            self.collect();
            if !self.pending.is_empty() {
                return;
            }
            let wake = self.next_bookmark.unwrap_or(self.end).min(self.end);
            tokio::select! {
                changed = self.changes.changed() => self.over = changed.is_err(),
                () = sleep_until(wake) => self.tick(),
            }
        }
    }

    /// Takes the changes since the last time.
    fn collect(&mut self) {
        let state = self.shared.lock();
        match state.nodes.since(self.reached) {
            Ok(changes) => {
                for change in changes {
                    let name = text(&change.object, "/metadata/name").unwrap_or_default();
                    if self.query.matches(name, &change.object) {
                        self.pending.push(json!({"type": change.kind, "object": *change.object}));
                    }
                    self.reached = change.revision;
                }
            }
            Err(expired) => {
                self.pending.push(expired.event());
                self.over = true;
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.next_bookmark.is_some_and(|due| due <= now) {
            // Only what happened since the watch began to wait makes a bookmark.
            if self.reached > self.began {
                let metadata =
                    json!({"resourceVersion": self.reached.to_string(), "creationTimestamp": null});
                let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {}});
                self.pending.push(json!({"type": "BOOKMARK", "object": node}));
            }
            let last = self.end.checked_sub(LAST_BOOKMARK).unwrap_or(self.end);
            self.next_bookmark = (now < last).then(|| (now + BOOKMARK_INTERVAL).min(last));
        }
        self.over = now >= self.end;
    }
}

fn endpoints(shared: &Shared, namespace: &str, name: &str) -> Result<Response, Status> {
    if (namespace, name) != ("default", "kubernetes") {
        return Err(Status::not_found("endpoints", name));
    }
    let subset = json!({
        "addresses": [{"ip": shared.address}],
        "ports": [{"name": "https", "port": PORT, "protocol": "TCP"}],
    });
    let metadata = json!({"name": name, "namespace": namespace, "uid": "lab", "resourceVersion": "1"});
    Ok(object(
        200,
        &json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": metadata, "subsets": [subset]}),
    ))
}

fn events(
    shared: &Shared,
    request: &Request,
    group: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<Response, Status> {
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    let mut state = shared.lock();
    if request.method == Method::GET {
        let of_group = |event: &&Value| event["apiVersion"] == json!(version);
        let here = |key: &str| namespace.is_none_or(|namespace| namespace == key);
        let items = state.events.iter().filter(|((key, _), _)| here(key)).map(|(_, event)| event);
        let items: Vec<_> = items.filter(of_group).cloned().collect();
        let metadata = json!({"resourceVersion": state.nodes.revision().to_string()});
        let list = json!({"kind": "EventList", "apiVersion": version, "metadata": metadata, "items": items});
        return Ok(object(200, &list));
    }
    let namespace = namespace.ok_or_else(Status::method_not_allowed)?;
    if let Some(name) = name {
        let key = (namespace.to_owned(), name.to_owned());
        let mut event = state
            .events
            .get(&key)
            .cloned()
            .ok_or_else(|| Status::not_found(&qualified("events", group), name))?;
        if request.method == Method::DELETE {
            state.events.remove(&key);
        } else {
            merge(&mut event, &merge_patch(request)?);
            state.events.insert(key, event.clone());
        }
        return Ok(object(200, &event));
    }
    let mut event = parse(&request.body)?;
    let uid = fresh_uid();
    let generated = text(&event, "/metadata/generateName").map(|prefix| format!("{prefix}{}", &uid[..5]));
    let name = text(&event, "/metadata/name").map(str::to_owned).or(generated);
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
        Status::invalid("Event", "", "metadata.name", "Required value: name or generateName is required")
    })?;
    let said = text(&event, "/metadata/namespace").unwrap_or(namespace);
    if said != namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(message));
    }
    // Where the events about objects without a namespace have to be differs between the groups, up to 1.20 at least.
    let (about, home) =
        if group.is_empty() { ("involvedObject", "default") } else { ("regarding", "kube-system") };
    let placed = event[about]["namespace"].as_str().is_some_and(|namespace| !namespace.is_empty());
    if !placed && namespace != home {
        let cause = "Invalid value: \"\": does not match event.namespace";
        return Err(Status::invalid("Event", &name, "involvedObject.namespace", cause));
    }
    let key = (namespace.to_owned(), name.clone());
    if state.events.contains_key(&key) {
        return Err(Status::already_exists(&qualified("events", group), &name));
    }
    let added = json!({
        "kind": "Event", "apiVersion": version,
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": now()},
    });
    merge(&mut event, &added);
    if !request.query.dry_run {
        state.events.insert(key, event.clone());
    }
    Ok(object(201, &event))
}

fn merge_patch(request: &Request) -> Result<Value, Status> {
    let accepted = "application/merge-patch+json";
    if request.media != accepted {
        return Err(Status::unsupported_media_type(accepted));
    }
    let patch: Value =
        serde_json::from_slice(&request.body).map_err(|_error| Status::internal("Invalid JSON Patch"))?;
    if patch.is_object() { Ok(patch) } else { Err(Status::unprocessable("a patch has to be an object")) }
}

/// The object that a request creates.
fn parse(body: &Bytes) -> Result<Value, Status> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Status::bad_request(format!("error decoding the body: {error}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Status::bad_request("error decoding the body: not an object"))
    }
}

fn object(code: u16, value: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// An id in the form of RFC 4122, version 4, from the kernel.
fn fresh_uid() -> String {
    let uid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    uid.trim().to_owned()
}

/// The time as Kubernetes writes it: RFC 3339, UTC, in seconds.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    k8s_openapi::jiff::Timestamp::from_second(i64::try_from(since).unwrap_or_default())
        .map_or_else(|_out_of_range| String::new(), |time| time.to_string())
}
