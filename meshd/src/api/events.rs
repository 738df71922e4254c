//! Kubernetes Events about this node's own Node, shown by `kubectl get events`.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use plan::node::{NodeName, NodeUid};
use tokio::sync::mpsc;
use tracing::warn;

use super::{FIELD_MANAGER, WRITE_TIMEOUT, written};
use crate::chain::Chain;

/// The namespace of Events about cluster-scoped objects.
const NAMESPACE: &str = "default";
/// Longest message that the API server accepts, in bytes (`pkg/apis/core/validation/events.go`).
pub(crate) const MAX_MESSAGE_LEN: usize = 1024;

/// An Event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// The Node that it is about.
    pub uid: NodeUid,
    /// Whether its type is `Warning` rather than `Normal`.
    pub warning: bool,
    /// Machine-readable reason, such as `RotationBlocked`.
    pub reason: &'static str,
    /// Human-readable message, one sentence.
    pub message: String,
}

/// Publishes until the sender is dropped. A failure is only logged: nothing depends on an Event.
pub async fn run(client: Client, node: NodeName, mut node_events: mpsc::Receiver<NodeEvent>) {
    let events = Api::<Event>::namespaced(client, NAMESPACE);
    while let Some(node_event) = node_events.recv().await {
        let reason = node_event.reason;
        let (parameters, event) = (PostParams::default(), event(&node, &node_event));
        let created = events.create(&parameters, &event);
        if let Err(error) = written("create an Event", WRITE_TIMEOUT, created).await {
            warn!(
                event = "KubernetesEventNotPublished", reason, error = %Chain(&error),
                "Kubernetes Event not published"
            );
        }
    }
}

fn event(node: &NodeName, node_event: &NodeEvent) -> Event {
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
            uid: Some(node_event.uid.as_str().to_owned()),
            ..ObjectReference::default()
        },
        reason: Some(node_event.reason.to_owned()),
        message: Some(node_event.message.chars().take(MAX_MESSAGE_LEN).collect()),
        type_: Some(if node_event.warning { "Warning" } else { "Normal" }.to_owned()),
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
