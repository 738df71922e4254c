//! Tests whether the cluster's admission policy really restricts this daemon to its own Node.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use plan::annotation::names;
use plan::node::NodeName;
use serde_json::json;
use status::Fence;

use super::FIELD_MANAGER;

/// Tries, as a dry run, to change an annotation of `other`. Nothing is written whatever the answer.
pub async fn test(client: &Client, other: &NodeName) -> Result<Fence, kube::Error> {
    let parameters = PatchParams {
        dry_run: true,
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let body = json!({"metadata": {"annotations": {names::STATE: "fence"}}});
    let nodes = Api::<Node>::all(client.clone());
    match nodes.patch_metadata(other.as_str(), &parameters, &Patch::Merge(&body)).await {
        Ok(_) => Ok(Fence::Missing),
        // 403 by RBAC or a policy, 422 by a policy whose reason is Invalid.
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => Ok(Fence::InPlace),
        Err(error) => Err(error),
    }
}
