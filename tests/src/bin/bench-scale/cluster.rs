//! The cluster's side: Nodes of the played nodes at a real API server, and what kubelets keep writing to them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use keyring::PerSlot;
use keyring::rotation::PeerId;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use lab::kube::{ADMIN, ApiServer};
use plan::annotation::{State, names};
use serde_json::Value;

use crate::Failure;
use crate::bench::NODE;
use crate::fleet::{self, Identity};
use crate::played::Daemon;
use crate::simulator::Simulator;

/// Requests in flight.
const PARALLEL: usize = 16;
/// How often a kubelet writes a status that has not changed (`nodeStatusReportFrequency`).
const REPORTS: Duration = Duration::from_mins(5);
/// How often is looked whether reports are to end.
const LOOK: Duration = Duration::from_millis(20);
/// How often the daemon's Node is read, which a peer's watch would report at once.
const FOLLOW: Duration = Duration::from_millis(100);

/// Creates Nodes with annotations, as kubelets and daemons do; returns who they are.
pub(crate) fn create(api: &ApiServer, indexes: Range<usize>) -> Result<Vec<Identity>, Failure> {
    api.run(ADMIN, |client| async move {
        let nodes: Api<Node> = Api::all(client);
        let create = |index| {
            let nodes = nodes.clone();
            async move {
                let node: Node = serde_json::from_value(fleet::object(index, &now()))?;
                let created = nodes.create(&PostParams::default(), &node).await?;
                let uid = created.metadata.uid.ok_or("a Node without a UID")?;
                let identity = Identity::new(index, &uid)?;
                patch(&nodes, &identity).await?;
                Ok::<_, Failure>(identity)
            }
        };
        stream::iter(indexes).map(create).buffer_unordered(PARALLEL).try_collect().await
    })?
}

/// Deletes Nodes.
pub(crate) fn delete(api: &ApiServer, indexes: Range<usize>) -> Result<(), Failure> {
    api.run(ADMIN, |client| async move {
        let nodes: Api<Node> = Api::all(client);
        let delete = |index| {
            let nodes = nodes.clone();
            async move { nodes.delete(&fleet::name(index), &DeleteParams::default()).await.map(drop) }
        };
        stream::iter(indexes).map(delete).buffer_unordered(PARALLEL).try_collect::<()>().await
    })??;
    Ok(())
}

/// A kubelet's report that nothing has changed.
pub(crate) fn report(api: &ApiServer, index: usize) -> Result<(), Failure> {
    api.patch_node_status(&fleet::name(index), &fleet::refresh(&now()))?;
    Ok(())
}

/// What the daemon's Node says, once it is published.
fn daemon(node: &Value, mesh: Ipv4Addr, underlay: Ipv4Addr) -> Option<Daemon> {
    let state = State::parse(node["metadata"]["annotations"][names::STATE].as_str()?).ok()?;
    Some(Daemon {
        id: PeerId::new(node["metadata"]["uid"].as_str()?),
        mesh,
        underlay,
        keys: PerSlot::from_fn(|slot| state.slots.get(slot).key),
        generation: state.generation,
        prefer: state.prefer,
        drain: state.drain,
    })
}

/// Plays what kubelets write while nothing happens.
#[derive(Debug, Default)]
pub(crate) struct Kubelets {
    ended: AtomicBool,
    nodes: AtomicUsize,
    pub(crate) reports: AtomicU64,
}

impl Kubelets {
    /// How many nodes report.
    pub(crate) fn set_nodes(&self, nodes: usize) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Reports for one node after the other until it is stopped, each once in [`REPORTS`].
    pub(crate) fn run(&self, api: &ApiServer) -> Result<(), Failure> {
        api.run(ADMIN, |client: Client| async move {
            let nodes: Api<Node> = Api::all(client);
            let (mut next, mut due) = (0_usize, Instant::now());
            while !self.ended.load(Ordering::Relaxed) {
                let all = self.nodes.load(Ordering::Relaxed);
                let pause =
                    u32::try_from(all).ok().and_then(|all| REPORTS.checked_div(all)).unwrap_or(REPORTS);
                if all == 0 || due.elapsed() < pause {
                    tokio::time::sleep(pause.min(LOOK)).await;
                    continue;
                }
                due = Instant::now();
                next += 1;
                let name = fleet::name(next % all);
                let report = Patch::Merge(fleet::refresh(&now()));
                // A Node that was deleted meanwhile has no kubelet.
                if nodes.patch_status(&name, &PatchParams::default(), &report).await.is_ok() {
                    self.reports.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        })?
    }
}

/// Requests about Nodes that the API server has served, by verb, from everybody.
pub(crate) fn requests(api: &ApiServer) -> Result<BTreeMap<String, u64>, Failure> {
    let page = api.run(ADMIN, |client| async move {
        let get = axum::http::Request::get("/metrics").body(Vec::new())?;
        Ok::<_, Failure>(client.request_text(get).await?)
    })??;
    let mut counts = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        if !line.contains("resource=\"nodes\"") {
            continue;
        }
        let verb = line.split("verb=\"").nth(1).and_then(|rest| rest.split('"').next());
        let count = line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok());
        if let (Some(verb), Some(count)) = (verb, count) {
            // A count of requests, far below what a float holds exactly.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let count = count as u64;
            *counts.entry(verb.to_owned()).or_default() += count;
        }
    }
    Ok(counts)
}

async fn patch(nodes: &Api<Node>, identity: &Identity) -> kube::Result<()> {
    let patch = Patch::Merge(identity.annotations());
    nodes.patch(&fleet::name(identity.index), &PatchParams::default(), &patch).await.map(drop)
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Tells the simulator what the daemon announces on its Node, until the kubelets stop.
pub(crate) fn follow(
    api: &ApiServer,
    kubelets: &Kubelets,
    simulator: &Simulator,
    (mesh, underlay): (Ipv4Addr, Ipv4Addr),
) -> Result<(), Failure> {
    api.run(ADMIN, |client: Client| async move {
        let nodes: Api<Node> = Api::all(client);
        while !kubelets.ended.load(Ordering::Relaxed) {
            // The API server may be busy; the next question is near.
            if let Ok(node) = nodes.get(NODE).await
                && let Some(daemon) = daemon(&serde_json::to_value(node)?, mesh, underlay)
            {
                simulator.set_daemon(daemon);
            }
            tokio::time::sleep(FOLLOW).await;
        }
        Ok(())
    })?
}
