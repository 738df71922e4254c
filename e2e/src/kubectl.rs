//! The cluster, as kubectl shows it: any kubectl and any kubeconfig will do.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::cases::{Inventory, Node, PORT, Pod};

/// The port that the suite's pods in a node's own network serve.
pub(crate) const HOST_NETWORK_PORT: u16 = 18_080;

/// kubectl failed, or a command of a row could not be started.
#[derive(Debug, thiserror::Error)]
pub enum KubectlError {
    /// It can't be started.
    #[error("run {program}; install it, or name another kubectl by KUBECTL", program = program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It ran, and failed.
    #[error("kubectl {arguments}: {said}")]
    Failed {
        /// Its arguments.
        arguments: String,
        /// What it printed.
        said: String,
    },
    /// It printed something else than JSON.
    #[error("kubectl {arguments}: expected JSON")]
    Json {
        /// Its arguments.
        arguments: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Pods did not become ready.
    #[error("wait for the suite's pods in {namespace}: not ready within {} s: {said}", within.as_secs())]
    NotReady {
        /// Their namespace.
        namespace: String,
        /// How long was waited.
        within: Duration,
        /// What is missing.
        said: String,
    },
}

/// kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    /// The program.
    pub program: PathBuf,
    /// The file; kubectl's own default if there is none.
    pub kubeconfig: Option<PathBuf>,
}

/// The container of each pod that commands run in.
const CONTAINER: &str = "pod";

/// Arguments that run a command in a pod of the suite.
pub fn exec<'a>(namespace: &'a str, pod: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [["-n", namespace, "exec", pod, "-c", CONTAINER, "--"].as_slice(), command].concat()
}

impl Kubectl {
    /// Runs it to its end.
    pub fn output(&self, arguments: &[&str], input: &str) -> Result<Output, KubectlError> {
        let failed = |source| KubectlError::Start { program: self.program.clone(), source };
        let mut command = Command::new(&self.program);
        if let Some(kubeconfig) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading says why itself.
            let _it_ended = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().map_err(failed)
    }

    /// Runs it and returns what it printed; it has to succeed.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<String, KubectlError> {
        let output = self.output(arguments, input)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(KubectlError::Failed { arguments: arguments.join(" "), said })
    }

    /// Lists objects.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>, KubectlError> {
        let text = self.run(&[&["get", "-o", "json"], arguments].concat(), "")?;
        let list: Value = serde_json::from_str(&text)
            .map_err(|source| KubectlError::Json { arguments: arguments.join(" "), source })?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until every `DaemonSet` of a namespace has a ready pod on each node.
    pub fn wait_ready(&self, namespace: &str, within: Duration) -> Result<(), KubectlError> {
        let since = Instant::now();
        loop {
            let sets = self.list(&["daemonsets", "-n", namespace])?;
            let waiting: Vec<String> = sets.iter().filter_map(unready).collect();
            if waiting.is_empty() && !sets.is_empty() {
                return Ok(());
            }
            if since.elapsed() >= within {
                let said = waiting.join(", ");
                return Err(KubectlError::NotReady { namespace: namespace.to_owned(), within, said });
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// The nodes, and the suite's pods; no services and no protocols yet.
    pub fn inventory(&self, namespace: &str) -> Result<Inventory, KubectlError> {
        let nodes: Vec<Node> = self.list(&["nodes"])?.iter().map(node).collect();
        let mut pods: Vec<Pod> = self.list(&["pods", "-n", namespace])?.iter().map(pod).collect();
        // Those of a node that was deleted stay for a minute.
        pods.retain(|pod| nodes.iter().any(|node| node.name == pod.node));
        // By nodes, and not by names, which are random: a row about one pair is always about the same nodes.
        pods.sort_by(|one, other| (&one.node, &one.set).cmp(&(&other.node, &other.set)));
        Ok(Inventory { nodes, pods, namespace: namespace.to_owned(), ..Inventory::default() })
    }
}

/// A `DaemonSet` that lacks pods, with how many it has.
fn unready(set: &Value) -> Option<String> {
    let status = &set["status"];
    let number = |field: &str| status[field].as_u64();
    let seen = status["observedGeneration"] == set["metadata"]["generation"];
    let wanted = number("desiredNumberScheduled").filter(|&wanted| wanted > 0 && seen);
    (wanted.is_none() || number("numberReady") != wanted).then(|| {
        let name = set["metadata"]["name"].as_str().unwrap_or_default();
        format!("{name}: {} of {}", number("numberReady").unwrap_or(0), wanted.unwrap_or(0))
    })
}

fn strings<'a>(list: &'a Value, field: &'a str) -> impl Iterator<Item = &'a str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(move |entry| if field.is_empty() { entry.as_str() } else { entry[field].as_str() })
}

fn node(object: &Value) -> Node {
    let spec = &object["spec"];
    let mut ranges: Vec<_> = strings(&spec["podCIDRs"], "").filter_map(|range| range.parse().ok()).collect();
    if ranges.is_empty() {
        ranges.extend(spec["podCIDR"].as_str().and_then(|range| range.parse::<IpNetwork>().ok()));
    }
    let addresses = strings(&object["status"]["addresses"], "address").filter_map(|text| text.parse().ok());
    // The first address of a podCIDR is commonly on the node itself; for its own pods it may be the node's address.
    let own = ranges.iter().filter_map(|range: &IpNetwork| range.iter().nth(1));
    Node {
        name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        addresses: addresses.chain(own).collect(),
        ranges,
    }
}

fn pod(object: &Value) -> Pod {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Pod {
        name: text("/metadata/name"),
        set: text("/metadata/labels/pod"),
        node: text("/spec/nodeName"),
        addresses: strings(&object["status"]["podIPs"], "ip").filter_map(|ip| ip.parse().ok()).collect(),
        port: if object["spec"]["hostNetwork"] == true { HOST_NETWORK_PORT } else { PORT },
        host_network: object["spec"]["hostNetwork"] == true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_and_pods_are_read() {
        let object = json!({
            "metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "198.18.0.1"}, {"type": "Hostname", "address": "n1"}]},
        });
        let read = node(&object);
        assert_eq!(read.ranges.len(), 2);
        let addresses: Vec<String> = read.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["198.18.0.1", "10.244.0.1", "fd00::1"]);
        let read = pod(&json!({
            "metadata": {"name": "one-x", "labels": {"pod": "one"}}, "spec": {"nodeName": "n1"},
            "status": {"podIPs": [{"ip": "10.244.0.2"}]},
        }));
        assert_eq!((read.set.as_str(), read.addresses.len(), read.host_network), ("one", 1, false));
    }

    #[test]
    fn a_set_is_ready_with_a_pod_on_each_node() {
        let set = |generation: u64, wanted: u64, ready: u64| {
            json!({
                "metadata": {"name": "one", "generation": 2},
                "status": {"observedGeneration": generation, "desiredNumberScheduled": wanted, "numberReady": ready},
            })
        };
        assert_eq!(unready(&set(2, 3, 3)), None);
        assert_eq!(unready(&set(2, 3, 1)).as_deref(), Some("one: 1 of 3"));
        assert!(unready(&set(1, 3, 3)).is_some() && unready(&set(2, 0, 0)).is_some());
    }
}
