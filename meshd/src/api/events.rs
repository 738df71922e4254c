//! Kubernetes Events about this node's own Node: what an operator sees with `kubectl get events`.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use plan::node::{NodeName, NodeUid};
use tokio::sync::mpsc;
use tracing::warn;

use super::FIELD_MANAGER;
use crate::chain::Chain;

/// Events about objects without a namespace stand here.
const NAMESPACE: &str = "default";
/// Longest message that the API server takes (`pkg/apis/core/validation/events.go`).
const LONGEST: usize = 1024;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// The Node that it is about.
    pub uid: NodeUid,
    /// Whether somebody should look.
    pub warning: bool,
    /// One word for programs, such as `RotationBlocked`.
    pub reason: &'static str,
    /// One sentence for people.
    pub message: String,
}

/// Publishes until the sender is gone. An Event that the API server refuses is only logged: nothing depends on it.
pub async fn run(client: Client, node: NodeName, mut tellings: mpsc::Receiver<Telling>) {
    let events = Api::<Event>::namespaced(client, NAMESPACE);
    while let Some(telling) = tellings.recv().await {
        let reason = telling.reason;
        if let Err(error) = events.create(&PostParams::default(), &event(&node, &telling)).await {
            warn!(reason, cause = %Chain(&error), "Event not published");
        }
    }
}

fn event(node: &NodeName, telling: &Telling) -> Event {
    let now = Time(Timestamp::now());
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{node}.meshd.")),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.as_str().to_owned()),
            uid: Some(telling.uid.as_str().to_owned()),
            ..ObjectReference::default()
        },
        reason: Some(telling.reason.to_owned()),
        message: Some(telling.message.chars().take(LONGEST).collect()),
        type_: Some(if telling.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource {
            component: Some(FIELD_MANAGER.to_owned()),
            host: Some(node.as_str().to_owned()),
        }),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        ..Event::default()
    }
}
