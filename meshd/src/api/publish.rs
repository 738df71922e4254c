//! Writes this node's own annotations: only when they differ, only on the Node whose UID we know.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use plan::node::{NodeName, NodeUid};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::FIELD_MANAGER;
use crate::chain::Chain;
use crate::fault;

/// What a node wants its annotations to be. `None` removes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The Node's name.
    pub node: NodeName,
    /// Its UID: a Node that was deleted and made again is not patched by mistake.
    pub uid: NodeUid,
    /// Annotations by name.
    pub annotations: BTreeMap<String, Option<String>>,
}

/// Shortest and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Publishes whatever stands in `wanted` until its sender is gone; tries again with growing pauses.
pub async fn run(client: Client, mut wanted: watch::Receiver<Option<Publication>>) {
    let mut pause = PAUSES.0;
    loop {
        let publication = wanted.borrow_and_update().clone();
        let failed = match &publication {
            None => false,
            Some(publication) => match publish(&client, publication).await {
                Ok(()) => {
                    info!(
                        event = "AnnotationsPublished", node = %publication.node,
                        "published own annotations"
                    );
                    false
                }
                Err(error) => {
                    warn!(
                        event = "AnnotationsNotPublished", node = %publication.node,
                        error = %Chain(&error),
                        "own annotations not published; will try again"
                    );
                    true
                }
            },
        };
        let next = if failed {
            let next = tokio::time::timeout(pause, wanted.changed()).await;
            pause = (pause * 2).min(PAUSES.1);
            next.unwrap_or(Ok(()))
        } else {
            pause = PAUSES.0;
            wanted.changed().await
        };
        if next.is_err() {
            return;
        }
    }
}

async fn publish(client: &Client, publication: &Publication) -> Result<(), kube::Error> {
    fault::point("publish.before");
    let patched = patch(client, publication).await;
    fault::point("publish.after");
    patched
}

/// Patches the annotations once.
pub async fn patch(client: &Client, publication: &Publication) -> Result<(), kube::Error> {
    let body = json!({"metadata": {"uid": publication.uid, "annotations": publication.annotations}});
    let nodes = Api::<Node>::all(client.clone());
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    nodes.patch_metadata(publication.node.as_str(), &parameters, &Patch::Merge(&body)).await.map(drop)
}
