//! Tests whether the cluster's admission policy really restricts this daemon to its own Node.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use plan::annotation::names;
use plan::node::NodeName;
use serde_json::json;
use status::Fence;
use status::verify::evidence::{Forged, Forgery};
use tokio::time::timeout;

use super::{API_TIMEOUT, FIELD_MANAGER};
use crate::chain::Chain;

/// Tries, as a dry run, to change an annotation of `other`. Nothing is written whatever the answer.
pub async fn test(client: &Client, other: &NodeName) -> Result<Fence, kube::Error> {
    match forge(client, other, Forged::Keys).await {
        Ok(()) => Ok(Fence::Missing),
        Err(kube::Error::Api(status)) if is_refusal(status.code) => Ok(Fence::InPlace),
        Err(error) => Err(error),
    }
}

/// Tries each forgery of `other`, as a dry run, and says who has refused it.
pub async fn forgeries(client: &Client, other: &NodeName) -> Vec<Forgery> {
    let mut forgeries = Vec::new();
    for what in Forged::ALL {
        let (refused, words) = match timeout(API_TIMEOUT, forge(client, other, what)).await {
            Ok(Ok(())) => (Some(false), "accepted".to_owned()),
            Ok(Err(kube::Error::Api(status))) if is_refusal(status.code) => (Some(true), status.message),
            Ok(Err(error)) => (None, Chain(&error).to_string()),
            Err(_) => (None, format!("no answer within {} s", API_TIMEOUT.as_secs())),
        };
        forgeries.push(Forgery { what, refused, words });
    }
    forgeries
}

/// 403 by RBAC or a policy, 422 by a policy whose reason is Invalid.
const fn is_refusal(code: u16) -> bool {
    code == 403 || code == 422
}

async fn forge(client: &Client, other: &NodeName, what: Forged) -> Result<(), kube::Error> {
    let parameters = PatchParams {
        dry_run: true,
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let nodes = Api::<Node>::all(client.clone());
    match what {
        Forged::Keys => {
            let body = json!({"metadata": {"annotations": {names::STATE: "fence"}}});
            nodes.patch_metadata(other.as_str(), &parameters, &Patch::Merge(&body)).await.map(drop)
        }
        Forged::Address => {
            // For documentation (RFC 5737): of no node.
            let body = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
            nodes.patch_status(other.as_str(), &parameters, &Patch::Merge(&body)).await.map(drop)
        }
    }
}
