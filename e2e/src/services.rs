//! The services that the suite creates, and what the cluster made of them. Pure.
//!
//! A service of all pods may be answered by any of them, so what is claimed of local and remote endpoints is tried with a
//! service for the pod of each node alone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cases::{Family, PORT};

/// The `DaemonSet` whose pods are the endpoints.
pub const ENDPOINTS: &str = "other";
/// The label by which a service selects the pod of one node; its value is the node's place in the list.
pub const NODE_LABEL: &str = "e2e-node";
/// The port of all services.
const SERVICE_PORT: u16 = 80;
/// What services can carry.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// What a service is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The pod of one node, with a node port that every node forwards.
    OfNode(usize),
    /// The pod of one node, with a node port that only this node answers (`externalTrafficPolicy: Local`).
    LocalOfNode(usize),
    /// All pods.
    All,
    /// All pods, each client always the same one.
    Sticky,
}

/// A service as the API server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its cluster IPs.
    pub addresses: Vec<IpAddr>,
    /// Its node ports, by protocol.
    pub node_ports: BTreeMap<String, u16>,
}

impl Kind {
    fn name(self) -> String {
        match self {
            Self::OfNode(node) => format!("node-{node}"),
            Self::LocalOfNode(node) => format!("local-{node}"),
            Self::All => "all".to_owned(),
            Self::Sticky => "sticky".to_owned(),
        }
    }

    /// All that the suite creates for so many nodes.
    pub fn all(nodes: usize) -> impl Iterator<Item = Self> {
        let of_nodes = (0..nodes).flat_map(|node| [Self::OfNode(node), Self::LocalOfNode(node)]);
        of_nodes.chain([Self::All, Self::Sticky])
    }
}

impl Service {
    /// Its cluster IP of an IP version, and its port.
    pub fn address(&self, family: Family) -> Option<std::net::SocketAddr> {
        let address = self.addresses.iter().copied().find(|&address| family.has(address))?;
        Some((address, SERVICE_PORT).into())
    }
}

/// The manifest of all services, as a `List`.
pub fn manifest(namespace: &str, nodes: usize) -> Value {
    let items: Vec<Value> = Kind::all(nodes).map(|kind| object(namespace, kind)).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn object(namespace: &str, kind: Kind) -> Value {
    let ports: Vec<Value> = PROTOCOLS
        .iter()
        .map(|protocol| {
            json!({"name": protocol, "protocol": protocol.to_uppercase(), "port": SERVICE_PORT, "targetPort": PORT})
        })
        .collect();
    // A cluster that does not know the policy of IP versions ignores it: it has one version.
    let mut spec =
        json!({"selector": {"pod": ENDPOINTS}, "ports": ports, "ipFamilyPolicy": "PreferDualStack"});
    match kind {
        Kind::OfNode(node) | Kind::LocalOfNode(node) => {
            spec["type"] = "NodePort".into();
            spec["selector"][NODE_LABEL] = node.to_string().into();
            if matches!(kind, Kind::LocalOfNode(_)) {
                spec["externalTrafficPolicy"] = "Local".into();
            }
        }
        Kind::Sticky => spec["sessionAffinity"] = "ClientIP".into(),
        Kind::All => {}
    }
    let metadata = json!({"name": kind.name(), "namespace": namespace});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
}

/// Reads what the API server lists. Services of others are left out.
pub fn read(objects: &[Value], nodes: usize) -> BTreeMap<Kind, Service> {
    let named = |kind: Kind| objects.iter().find(|object| object["metadata"]["name"] == kind.name());
    Kind::all(nodes).filter_map(|kind| Some((kind, service(&named(kind)?["spec"])))).collect()
}

fn service(spec: &Value) -> Service {
    // Clusters that know one IP version only have the second field alone, which repeats the first of the list elsewhere.
    let ip = |value: &Value| value.as_str()?.parse().ok();
    let mut addresses: Vec<IpAddr> =
        spec["clusterIPs"].as_array().into_iter().flatten().filter_map(ip).collect();
    if addresses.is_empty() {
        addresses.extend(ip(&spec["clusterIP"]));
    }
    let port = |port: &Value| {
        let number = port["nodePort"].as_u64().and_then(|number| u16::try_from(number).ok())?;
        Some((port["protocol"].as_str()?.to_lowercase(), number))
    };
    let node_ports = spec["ports"].as_array().into_iter().flatten().filter_map(port).collect();
    Service { addresses, node_ports }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_selects_the_pod_of_its_node_and_is_read_back() {
        let manifest = manifest("e2e", 2);
        let items = manifest["items"].as_array().unwrap();
        assert_eq!(items.len(), 2 * 2 + 2);
        let local = items.iter().find(|item| item["metadata"]["name"] == "local-1").unwrap();
        assert_eq!(local["spec"]["selector"], json!({"pod": "other", "e2e-node": "1"}));
        assert_eq!(local["spec"]["externalTrafficPolicy"], "Local");

        let mut made = local.clone();
        made["spec"]["clusterIP"] = "10.96.0.7".into();
        made["spec"]["clusterIPs"] = json!(["10.96.0.7", "fd00::7"]);
        made["spec"]["ports"][1]["nodePort"] = 30_001.into();
        let services = read(&[made], 2);
        let service = &services[&Kind::LocalOfNode(1)];
        assert_eq!(services.len(), 1);
        assert_eq!(service.address(Family::V6).unwrap().to_string(), "[fd00::7]:80");
        assert_eq!(service.addresses.len(), 2, "{service:?}");
        assert_eq!(service.node_ports, BTreeMap::from([("udp".to_owned(), 30_001)]));
    }
}
