//! A Node as the API server sends it, decoded to the few fields that the mesh reads. The rest (images, conditions, who manages
//! which field) is most of its 10 kB, and is passed over without being stored.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::core::ClusterResourceScope;
use plan::annotation::names;
use plan::node::{NodeName, NodeRecord, NodeUid, RELAY_LABEL};
use serde::Deserialize;

/// The fields of a Node that the mesh reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Fields")]
pub(super) struct ObservedNode {
    /// Name, UID and resource version, for the watch.
    metadata: ObjectMeta,
    record: NodeRecord,
}

/// The same as in JSON (core/v1 `Node`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Option<Vec<Address>>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    #[serde(rename = "type")]
    kind: String,
}

impl ObservedNode {
    /// What the mesh knows of the Node.
    pub(super) fn into_record(self) -> NodeRecord {
        self.record
    }
}

impl From<Fields> for ObservedNode {
    fn from(Fields { metadata, spec, status }: Fields) -> Self {
        let Metadata { name, uid, resource_version, creation_timestamp, labels, annotations } = metadata;
        let (labels, mut annotations) = (labels.unwrap_or_default(), annotations.unwrap_or_default());
        let mut annotation = |name: &str| annotations.remove(name);
        let spec = spec.unwrap_or_default();
        let addresses = status.and_then(|status| status.addresses).unwrap_or_default();
        let of_types = |types: &[&str]| -> Vec<String> {
            let found = addresses.iter().filter(|address| types.contains(&address.kind.as_str()));
            found.map(|address| address.address.clone()).collect()
        };
        let (internal, mut external) = (of_types(&["InternalIP"]), of_types(&["ExternalIP"]));
        external.retain(|address| !internal.contains(address));
        let record = NodeRecord {
            name: NodeName::new(name.clone().unwrap_or_default()),
            uid: NodeUid::new(uid.clone().unwrap_or_default()),
            created: creation_timestamp.map(|time| time.0.to_string()).unwrap_or_default(),
            pod_cidrs: spec.pod_cidrs.unwrap_or_else(|| spec.pod_cidr.into_iter().collect()),
            addresses: of_types(&["InternalIP", "ExternalIP"]),
            external,
            location: annotation(names::CONFIG_LOCATION).or_else(|| location(&labels)),
            control_plane: ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"]
                .iter()
                .any(|role| labels.contains_key(*role)),
            relay: labels.get(RELAY_LABEL).is_some_and(|value| value == "true"),
            state: annotation(names::STATE),
            endpoints: annotation(names::ENDPOINTS),
            config_endpoint: annotation(names::CONFIG_ENDPOINT),
            config_keepalive: annotation(names::CONFIG_KEEPALIVE),
            config_renewal: annotation(names::CONFIG_RENEWAL),
        };
        Self { metadata: ObjectMeta { name, uid, resource_version, ..ObjectMeta::default() }, record }
    }
}

/// Region and zone, as a cloud's controller labels a Node.
fn location(labels: &BTreeMap<String, String>) -> Option<String> {
    let region = labels.get("topology.kubernetes.io/region")?;
    let zone = labels.get("topology.kubernetes.io/zone");
    Some(zone.map_or_else(|| region.clone(), |zone| format!("{region}/{zone}")))
}

impl Resource for ObservedNode {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn record(node: Value) -> NodeRecord {
        serde_json::from_value::<ObservedNode>(node).unwrap().into_record()
    }

    #[test]
    fn what_the_mesh_reads_of_a_node_is_kept_and_the_rest_is_passed_over() {
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": "n1",
                "uid": "u1",
                "resourceVersion": "7",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {
                    "node-role.kubernetes.io/control-plane": "",
                    (RELAY_LABEL): "true",
                    "topology.kubernetes.io/region": "r",
                    "topology.kubernetes.io/zone": "z",
                },
                "annotations": { (names::STATE): "{}", "example.com/other": "x" },
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"], "taints": []},
            "status": {"images": [{"names": ["a"], "sizeBytes": 5}], "addresses": [], "conditions": null},
        });
        let observed: ObservedNode = serde_json::from_value(node.clone()).unwrap();
        assert_eq!(observed.meta().resource_version.as_deref(), Some("7"));
        let found = record(node);
        assert_eq!((found.name.as_str(), found.uid.as_str()), ("n1", "u1"));
        assert_eq!(found.created, "2026-01-02T03:04:05Z");
        assert_eq!(found.pod_cidrs, ["10.244.1.0/24", "fd00::/64"]);
        assert_eq!((found.location.as_deref(), found.state.as_deref()), (Some("r/z"), Some("{}")));
        assert!(found.control_plane && found.relay);
        let single = record(json!({"metadata": {"name": "n2"}, "spec": {"podCIDR": "10.244.2.0/24"}}));
        assert_eq!(single.pod_cidrs, ["10.244.2.0/24"]);
    }

    #[test]
    fn an_address_is_external_if_it_is_not_listed_as_internal_too() {
        let found = record(json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "Hostname", "address": "n1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "ExternalIP", "address": "192.0.2.1"},
        ]}}));
        assert_eq!(found.addresses, ["203.0.113.1", "192.0.2.1", "192.0.2.1"]);
        assert_eq!(found.external, ["203.0.113.1"]);
    }
}
