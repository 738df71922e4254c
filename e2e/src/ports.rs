//! Whether the nodes' ports that the suite uses are free: a pod that holds one keeps the suite's own pods from being started,
//! and nothing says so.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cases::HOST_PORT;
use crate::kubectl::{HOST_NETWORK_PORT, Kubectl, KubectlError};

/// The ports of every node that the suite's pods need.
const PORTS: [u16; 2] = [HOST_NETWORK_PORT, HOST_PORT];

/// Ports that the suite needs are in use.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// The cluster can't be asked.
    #[error("ask which ports of the nodes are in use")]
    Kubectl(#[from] KubectlError),
    /// Other pods have them.
    #[error(
        "the suite needs ports {} and {} of each node, and other pods have them: {}; if a former run left them, delete its \
         namespace (kubectl delete namespace NAME)",
        PORTS[0], PORTS[1], .0.join(", ")
    )]
    Held(Vec<String>),
}

/// Fails if pods of others have ports that the suite needs. Pods that are being deleted are none: they will be gone.
pub fn check(kubectl: &Kubectl) -> Result<(), PortsError> {
    let pods = kubectl.list(&["pods", "--all-namespaces"])?;
    let held = holders(&kubectl.list(&["namespaces"])?, &pods);
    if held.is_empty() { Ok(()) } else { Err(PortsError::Held(held)) }
}

/// The pods that have one of the ports, in words.
fn holders(namespaces: &[Value], pods: &[Value]) -> Vec<String> {
    let ending: BTreeSet<&str> = namespaces
        .iter()
        .filter(|namespace| namespace["status"]["phase"] == "Terminating")
        .filter_map(|namespace| namespace["metadata"]["name"].as_str())
        .collect();
    let mut held = Vec::new();
    for pod in pods {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let namespace = text("/metadata/namespace");
        let ends = !text("/metadata/deletionTimestamp").is_empty() || ending.contains(namespace);
        // Those that have ended have given their ports back.
        if ends || ["Succeeded", "Failed"].contains(&text("/status/phase")) {
            continue;
        }
        for port in host_ports(pod).filter(|port| PORTS.contains(port)) {
            let (name, node) = (text("/metadata/name"), text("/spec/nodeName"));
            let place = if node.is_empty() { "waiting for a node".to_owned() } else { format!("on {node}") };
            held.push(format!("{port} by {namespace}/{name} {place}"));
        }
    }
    held
}

/// The ports of its node that a pod has. The API server fills them in for pods in the node's own network.
fn host_ports(pod: &Value) -> impl Iterator<Item = u16> {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports.filter_map(|port| port["hostPort"].as_u64()?.try_into().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, port: u16, metadata: &Value) -> Value {
        let mut pod = json!({
            "metadata": metadata.clone(),
            "spec": {"nodeName": "n1", "containers": [{}, {"ports": [{"containerPort": 8080}, {"hostPort": port}]}]},
            "status": {"phase": "Running"},
        });
        pod["metadata"]["namespace"] = namespace.into();
        pod["metadata"]["name"] = "one-x".into();
        pod
    }

    #[test]
    fn pods_that_have_the_ports_are_named() {
        let namespaces = [json!({"metadata": {"name": "old"}, "status": {"phase": "Active"}})];
        let pods = [pod("old", HOST_PORT, &json!({})), pod("old", 80, &json!({}))];
        assert_eq!(holders(&namespaces, &pods), ["18081 by old/one-x on n1"]);
        let mut waits = pod("old", HOST_NETWORK_PORT, &json!({}));
        waits["spec"]["nodeName"] = Value::Null;
        assert_eq!(holders(&namespaces, &[waits]), ["18080 by old/one-x waiting for a node"]);
        let error = PortsError::Held(holders(&namespaces, &pods)).to_string();
        assert!(error.contains("18080 and 18081") && error.contains("old/one-x"), "{error}");
    }

    #[test]
    fn pods_that_will_be_gone_hold_nothing() {
        let namespaces = [json!({"metadata": {"name": "old"}, "status": {"phase": "Terminating"}})];
        let mut ended = pod("new", HOST_PORT, &json!({}));
        ended["status"]["phase"] = "Succeeded".into();
        let deleted = pod("new", HOST_PORT, &json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(holders(&namespaces, &[pod("old", HOST_PORT, &json!({})), ended, deleted]), [""; 0]);
    }
}
