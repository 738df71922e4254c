//! The API server's own addresses: only control-plane nodes may claim one of them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Endpoints;
use kube::{Api, Client};

/// Reads the endpoints of the service `kubernetes`, which the API servers keep themselves.
///
/// Endpoints rather than `EndpointSlices`: the API server still writes both, and this kind exists in every
/// supported version.
pub async fn addresses(client: &Client) -> Result<BTreeSet<IpAddr>, kube::Error> {
    let endpoints = Api::<Endpoints>::namespaced(client.clone(), "default").get("kubernetes").await?;
    let subsets = endpoints.subsets.into_iter().flatten();
    Ok(subsets
        .flat_map(|subset| subset.addresses.into_iter().flatten())
        .filter_map(|address| address.ip.parse().ok())
        .collect())
}
