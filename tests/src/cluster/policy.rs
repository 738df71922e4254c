//! A small enforcer of network policies, for trying whether one sees the sources that it has to judge by: rules in the nodes' own
//! nftables, by the addresses that pods have now. It knows ingress from pods of the same namespace by their labels, no more.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Cluster, ClusterError};

/// The table with its rules, which is nobody else's.
const TABLE: &str = "inet e2e-policies";

impl Cluster {
    /// Enforces the policies that there are now, on all nodes.
    pub(super) fn enforce_policies(&self) -> Result<(), ClusterError> {
        let list = |kind: &str| -> Result<Vec<Value>, ClusterError> {
            let said = self.kubectl()?.args(["get", kind, "--all-namespaces", "-o", "json"]).run()?;
            let list: Value = serde_json::from_str(&said).unwrap_or_default();
            Ok(list["items"].as_array().cloned().unwrap_or_default())
        };
        let (policies, pods) = (list("networkpolicies")?, list("pods")?);
        for node in self.lab().nodes() {
            let rules = rules(&policies, &pods, node.name()).map_err(ClusterError::Policy)?;
            node.command("nft").args(["-f", "-"]).input(rules).run()?;
        }
        Ok(())
    }
}

/// What `nft -f` makes of the policies for the pods of a node.
fn rules(policies: &[Value], pods: &[Value], node: &str) -> Result<String, String> {
    let mut chain =
        String::from("type filter hook forward priority 10\nct state established,related accept\n");
    for policy in policies {
        let text = |pointer: &str| policy.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
        let of_namespace = |pod: &&Value| pod["metadata"]["namespace"] == namespace;
        let selected = |selector: &Value| -> Result<Vec<&Value>, String> {
            let labels = selector["matchLabels"].as_object();
            let known = selector.as_object().is_some_and(|selector| selector.len() == 1);
            let labels = labels
                .filter(|_| known)
                .ok_or_else(|| format!("policy {name}: only matchLabels are known"))?;
            let has =
                |pod: &&Value| labels.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value);
            Ok(pods.iter().filter(of_namespace).filter(has).collect())
        };
        let mut allowed = Vec::new();
        for rule in policy["spec"]["ingress"].as_array().into_iter().flatten() {
            for from in rule["from"].as_array().into_iter().flatten() {
                allowed.extend(selected(&from["podSelector"])?.into_iter().flat_map(addresses));
            }
        }
        let guarded = selected(&policy["spec"]["podSelector"])?;
        for pod in guarded.into_iter().filter(|pod| pod["spec"]["nodeName"] == node).flat_map(addresses) {
            let family = |address: &str| if address.contains(':') { "ip6" } else { "ip" };
            let of = family(pod);
            for source in allowed.iter().filter(|source| family(source) == of) {
                let _infallible = writeln!(chain, "{of} saddr {source} {of} daddr {pod} accept");
            }
            let _infallible = writeln!(chain, "{of} daddr {pod} drop");
        }
    }
    Ok(format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\nchain forward {{\n{chain}}}\n}}\n"))
}

/// The addresses that a pod has by now.
fn addresses(pod: &Value) -> impl Iterator<Item = &str> {
    let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
    addresses.filter_map(|address| address["ip"].as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_of_a_node_take_connections_from_those_that_a_policy_names() {
        let pod = |namespace: &str, label: &str, node: &str, address: &str| {
            json!({
                "metadata": {"namespace": namespace, "labels": {"pod": label}},
                "spec": {"nodeName": node}, "status": {"podIPs": [{"ip": address}]},
            })
        };
        let pods = [
            pod("a", "guarded", "n1", "10.0.1.2"),
            pod("a", "guarded", "n2", "10.0.2.2"),
            pod("a", "one", "n2", "10.0.2.3"),
            pod("a", "one", "n2", "fd00::3"),
            pod("a", "other", "n2", "10.0.2.4"),
            pod("b", "one", "n2", "10.0.2.5"),
        ];
        let policy = |selector: Value| {
            json!({
                "metadata": {"name": "p", "namespace": "a"},
                "spec": {"podSelector": selector,
                         "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "one"}}}]}]},
            })
        };
        let guarded = policy(json!({"matchLabels": {"pod": "guarded"}}));
        let text = rules(&[guarded], &pods, "n1").unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("daddr")).collect();
        assert_eq!(lines, ["ip saddr 10.0.2.3 ip daddr 10.0.1.2 accept", "ip daddr 10.0.1.2 drop"]);
        // What it does not know it does not enforce in part.
        let unknown = policy(json!({"matchExpressions": []}));
        assert!(rules(&[unknown], &pods, "n1").unwrap_err().contains("policy p"));
        assert!(!rules(&[], &pods, "n1").unwrap().contains("drop"));
    }
}
