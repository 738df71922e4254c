//! Writes this node's own annotations: only if they differ, and only to the Node with the UID that we know.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
pub use plan::publication::Publication;
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{FIELD_MANAGER, WRITE_TIMEOUT, WriteError, written};
use crate::chain::Chain;
use crate::fault;

/// Shortest and longest time between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// After how long it is written again: `wanted` holds it only until the Node shows it, and somebody may have overwritten it
/// before that was seen.
const REPEAT: Duration = Duration::from_secs(10);

/// Publishes what `wanted` holds until its sender is dropped; after a failure it tries again with exponential backoff.
pub async fn run(client: Client, mut wanted: watch::Receiver<Option<Publication>>) {
    let mut backoff = BACKOFF.0;
    let mut logged = None;
    loop {
        let publication = wanted.borrow_and_update().clone();
        let failed = match &publication {
            None => false,
            Some(publication) => match publish(&client, publication).await {
                Ok(()) => {
                    if logged.as_ref() != Some(publication) {
                        info!(
                            event = "AnnotationsPublished", node = %publication.node,
                            "published own annotations"
                        );
                        logged = Some(publication.clone());
                    }
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
            let next = tokio::time::timeout(backoff, wanted.changed()).await;
            backoff = (backoff * 2).min(BACKOFF.1);
            next.unwrap_or(Ok(()))
        } else {
            backoff = BACKOFF.0;
            let repeated = if publication.is_some() { REPEAT } else { Duration::MAX };
            tokio::time::timeout(repeated, wanted.changed()).await.unwrap_or(Ok(()))
        };
        if next.is_err() {
            return;
        }
    }
}

async fn publish(client: &Client, publication: &Publication) -> Result<(), WriteError> {
    fault::point("publish.before");
    let patched = patch(client, publication).await;
    fault::point("publish.after");
    patched
}

/// Patches the annotations once.
pub async fn patch(client: &Client, publication: &Publication) -> Result<(), WriteError> {
    let body = json!({"metadata": {"uid": publication.uid, "annotations": publication.annotations}});
    let nodes = Api::<Node>::all(client.clone());
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let body = Patch::Merge(&body);
    let patched = nodes.patch_metadata(publication.node.as_str(), &parameters, &body);
    written("patch annotations", WRITE_TIMEOUT, patched).await.map(drop)
}
