//! What a cluster says that it is: the versions of what runs on it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cases::Pod;
use crate::kubectl::{Kubectl, KubectlError, exec};

/// Where kube-proxy says on each node what mode it is in, unless it was told to say so elsewhere.
const PROXY: [&str; 2] = ["127.0.0.1", "::1"];

/// Versions, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Of the API server.
    pub kubernetes: BTreeSet<String>,
    /// Of the kubelets.
    pub kubelets: BTreeSet<String>,
    /// The container runtimes, with their versions.
    pub runtimes: BTreeSet<String>,
    /// Of the nodes' kernels.
    pub kernels: BTreeSet<String>,
    /// The nodes' operating systems.
    pub systems: BTreeSet<String>,
    /// The `DaemonSets` of the cluster, the network plugin among them, with their images.
    pub daemons: BTreeSet<String>,
}

impl Versions {
    /// Asks the cluster. The suite's own pods are known by their image.
    pub fn read(kubectl: &Kubectl, own_image: &str) -> Result<Self, KubectlError> {
        let said = kubectl.run(&["version", "-o", "json"], "")?;
        // What can't be read is not in the report; the run does not depend on it.
        let server: Value = serde_json::from_str(&said).unwrap_or_default();
        let sets = kubectl.list(&["daemonsets", "--all-namespaces"])?;
        Ok(Self::of(&server, &kubectl.list(&["nodes"])?, &sets, own_image))
    }

    fn of(server: &Value, nodes: &[Value], sets: &[Value], own_image: &str) -> Self {
        let info = |field: &str| -> BTreeSet<String> {
            let pointer = format!("/status/nodeInfo/{field}");
            nodes.iter().filter_map(|node| Some(node.pointer(&pointer)?.as_str()?.to_owned())).collect()
        };
        let daemon = |set: &Value| {
            let text = |pointer: &str| set.pointer(pointer).and_then(Value::as_str);
            let containers = set.pointer("/spec/template/spec/containers").and_then(Value::as_array)?;
            let images: Vec<&str> =
                containers.iter().filter_map(|container| container["image"].as_str()).collect();
            let own = images.iter().all(|&image| image == own_image);
            let name = format!("{}/{}", text("/metadata/namespace")?, text("/metadata/name")?);
            (!own).then(|| format!("{name}: {}", images.join(", ")))
        };
        Self {
            kubernetes: server["serverVersion"]["gitVersion"]
                .as_str()
                .map(str::to_owned)
                .into_iter()
                .collect(),
            kubelets: info("kubeletVersion"),
            runtimes: info("containerRuntimeVersion"),
            kernels: info("kernelVersion"),
            systems: info("osImage"),
            daemons: sets.iter().filter_map(daemon).collect(),
        }
    }
}

/// kube-proxy's mode as pods in the network of each node are told; several modes if nodes differ, nothing if none answers.
pub fn proxy_mode(kubectl: &Kubectl, namespace: &str, agents: &[Pod]) -> Result<String, KubectlError> {
    let mut modes = BTreeSet::new();
    for agent in agents {
        for address in PROXY {
            // Not wget: that of a static busybox needs files that the image lacks.
            let ask = format!("printf 'GET /proxyMode HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 10249");
            let output = kubectl.output(&exec(namespace, &agent.name, &["sh", "-c", &ask]), "")?;
            modes.extend(answered(&String::from_utf8_lossy(&output.stdout)));
        }
    }
    Ok(modes.into_iter().collect::<Vec<_>>().join(", "))
}

/// The mode in an HTTP answer; nothing if it is none, or an error.
fn answered(answer: &str) -> Option<String> {
    let (head, mode) = answer.split_once("\r\n\r\n")?;
    let fine = head.split(' ').nth(1) == Some("200");
    (fine && !mode.trim().is_empty()).then(|| mode.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_those_of_server_nodes_and_daemons_without_the_suite() {
        let node = |kernel: &str| {
            let info = json!({"kubeletVersion": "v1.20.2", "containerRuntimeVersion": "containerd://1.6.20",
                "kernelVersion": kernel, "osImage": "Debian GNU/Linux 12 (bookworm)"});
            json!({"status": {"nodeInfo": info}})
        };
        let set = |name: &str, image: &str| {
            let containers = json!([{"image": image}]);
            json!({"metadata": {"namespace": "x", "name": name}, "spec": {"template": {"spec": {"containers": containers}}}})
        };
        let versions = Versions::of(
            &json!({"serverVersion": {"gitVersion": "v1.20.3"}}),
            &[node("6.1"), node("6.1"), node("6.12")],
            &[set("meshd", "localhost/meshd:0.2.0"), set("one", "own")],
            "own",
        );
        let set = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<BTreeSet<_>>();
        let expected = Versions {
            kubernetes: set(&["v1.20.3"]),
            kubelets: set(&["v1.20.2"]),
            runtimes: set(&["containerd://1.6.20"]),
            kernels: set(&["6.1", "6.12"]),
            systems: set(&["Debian GNU/Linux 12 (bookworm)"]),
            daemons: set(&["x/meshd: localhost/meshd:0.2.0"]),
        };
        assert_eq!(versions, expected);
        assert_eq!(Versions::of(&Value::Null, &[], &[], ""), Versions::default());
    }

    #[test]
    fn a_mode_is_read_from_a_good_answer_alone() {
        assert_eq!(answered("HTTP/1.0 200 OK\r\nA: b\r\n\r\niptables").as_deref(), Some("iptables"));
        assert_eq!(answered("HTTP/1.0 404 Not Found\r\n\r\nno such page"), None);
        assert_eq!(answered("HTTP/1.0 200 OK\r\n\r\n"), None);
        assert_eq!(answered(""), None);
    }
}
