//! What can be done to a running cluster, by name: the disturbances of the end-to-end suite, and of a person who tries things.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use plan::annotation::names::{ENDPOINTS, STATE};
use serde::Deserialize;
use serde_json::{Value, json};

use super::worker::{SNAPSHOTTER, Worker, ctr};
use super::{Cluster, ClusterError, deployment};
use crate::node::Node;

/// A daemon that was killed is started again by its kubelet, which may wait before it does.
const RESTARTED_WITHIN: Duration = Duration::from_mins(3);
/// What a node has on disks, and so has again after it was powered off.
const DISKS: [&str; 6] =
    ["/var/lib/kubelet", "/var/lib/containerd", "/var/lib/meshd", "/var/lib/cni", "/etc/cni", "/opt/cni"];
/// The daemon's program, as the kernel calls it.
const DAEMON: &str = "meshd";
/// Where a node has meshd's image mounted to uninstall it, and what it needs for that.
const UNINSTALL: &str = "/run/lab/uninstall";
/// What a node has on its network and of files that meshd may have put there, one a line.
const LEFT: &str = r#"
    ip -br link | sed 's/^/link /'
    for family in -4 -6; do
        ip $family rule | sed "s/^/rule $family /"
        ip $family route show table all | sed "s/^/route $family /"
    done
    nft list ruleset | grep meshd | sed 's/^/nft /'
    find /run/meshd /run/wireguard /var/lib/cni/meshd /var/lib/meshd ! -type d 2>/dev/null | sed 's/^/file /'
    find /etc/cni/net.d /opt/cni/bin -name '*mesh*' | sed 's/^/file /'
"#;
/// Parts of the lines that a node has without meshd: its own link with the routes there, the kernel's rules, and the audit trail,
/// which an uninstall leaves as evidence.
const OWN: [&str; 9] = [
    "link lo ",
    "link eth0",
    "link kube-ipvs0",
    "dev eth0",
    "dev lo",
    "lookup local",
    "lookup main",
    "lookup default",
    "file /var/lib/meshd/audit",
];

/// Something to be done to a cluster. What is done is complete when the answer comes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Verb {
    /// Kills the API server.
    StopApi,
    /// Starts it again, and waits until it is ready.
    StartApi,
    /// Kills the daemon meshd of a node, and waits until the kubelet has started another one.
    KillDaemon {
        /// The node.
        node: String,
    },
    /// Kills the kubelet of a node and starts it again; containers run on.
    RestartKubelet {
        /// The node.
        node: String,
    },
    /// Adds a node, and waits until it is ready.
    AddNode,
    /// Powers a node off for ever. Its Node object stays.
    RemoveNode {
        /// The node.
        node: String,
    },
    /// Powers a node off and on: its memory and its network are empty, its disks are not.
    Reboot {
        /// The node.
        node: String,
    },
    /// The same, and it comes back with another address.
    RebootElsewhere {
        /// The node.
        node: String,
    },
    /// Gives a running node another address, and restarts its kubelet and kube-proxy, which read it at their start.
    Renumber {
        /// The node.
        node: String,
    },
    /// Takes the daemon away from a node, runs `meshd uninstall` there, and fails with a list if anything is left.
    Uninstall {
        /// The node.
        node: String,
    },
    /// Creates another Node, NODE-impostor, with the podCIDRs of a node and the keys that it publishes, as an administrator can. It
    /// is gone when it is deleted.
    Impersonate {
        /// The node.
        node: String,
    },
    /// Enforces the network policies that there are now, by the addresses that pods have now.
    EnforcePolicies,
    /// Lets the daemon run on all nodes again, and waits until it does and the node is ready.
    Reinstall {
        /// The node that it was away from.
        node: String,
    },
}

impl Cluster {
    /// Does it.
    pub(super) fn act(&mut self, verb: &Verb) -> Result<(), ClusterError> {
        match verb {
            Verb::StopApi => {
                self.control.stop_api();
                Ok(())
            }
            Verb::StartApi => self.control.start_api(),
            Verb::KillDaemon { node } => self.kill_daemon(node),
            Verb::RestartKubelet { node } => {
                let place = self.place(node)?;
                let node = self.lab.node(node)?;
                let Some(worker) = self.workers.get_mut(place) else { return Ok(()) };
                worker.start_kubelet(node, self.shape, &self.programs, &self.control)
            }
            Verb::AddNode => self.add_node(),
            Verb::RemoveNode { node } => {
                let place = self.place(node)?;
                drop(self.workers.remove(place));
                self.lab.power_off(node)?;
                Ok(self.lab.forget(node)?)
            }
            Verb::Reboot { node } => self.reboot(node, false),
            Verb::RebootElsewhere { node } => self.reboot(node, true),
            Verb::Renumber { node } => {
                self.lab.renumber(node)?;
                self.join(node)
            }
            Verb::Uninstall { node } => self.uninstall(node),
            Verb::Impersonate { node } => self.impersonate(node),
            Verb::EnforcePolicies => self.enforce_policies(),
            Verb::Reinstall { node } => self.reinstall(node),
        }
    }

    /// Where the processes of a node are in the list.
    fn place(&self, node: &str) -> Result<usize, ClusterError> {
        let place = self.workers.iter().position(|worker| worker.node() == node);
        place.ok_or_else(|| crate::Error::NoNode(node.to_owned()).into())
    }

    /// Starts kubelet and kube-proxy of a node, again if they run.
    fn join(&mut self, node: &str) -> Result<(), ClusterError> {
        let place = self.place(node)?;
        let node = self.lab.node(node)?;
        let Some(worker) = self.workers.get_mut(place) else { return Ok(()) };
        worker.join(node, self.shape, &self.programs, &self.control)
    }

    fn kill_daemon(&self, node: &str) -> Result<(), ClusterError> {
        let node = self.lab.node(node)?;
        let former = daemons(node)?;
        for process in &former {
            node.command("kill").args(["-9", process]).run()?;
        }
        let since = Instant::now();
        while daemons(node)?.is_subset(&former) {
            if since.elapsed() >= RESTARTED_WITHIN {
                let what = format!("another daemon on {}", node.name());
                return Err(crate::Error::Timeout { what, within: RESTARTED_WITHIN }.into());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn add_node(&mut self) -> Result<(), ClusterError> {
        let node = self.lab.add_node(false)?;
        self.uplinks.add(node)?;
        let name = node.name().to_owned();
        let worker = Worker::start(node, &self.cgroups, &self.programs)?;
        worker.import(node, &self.programs, &self.settings.images)?;
        self.workers.push(worker);
        self.join(&name)?;
        self.wait_ready(&name)
    }

    fn reboot(&mut self, name: &str, elsewhere: bool) -> Result<(), ClusterError> {
        let place = self.place(name)?;
        drop(self.workers.remove(place));
        self.lab.power_off(name)?;
        let node = self.lab.boot(name, &DISKS, elsewhere)?;
        self.uplinks.add(node)?;
        let worker = Worker::start(node, &self.cgroups, &self.programs)?;
        worker.wait(node, &self.programs)?;
        self.workers.push(worker);
        self.join(name)?;
        self.wait_ready(name)
    }

    /// Waits until the kubelet of a node says that it is ready: that it has a network for pods. It may have said so before it was
    /// stopped, so what it says has to be new.
    fn wait_ready(&self, node: &str) -> Result<(), ClusterError> {
        let template =
            r#"jsonpath={range .status.conditions[?(@.type=="Ready")]}{.lastHeartbeatTime} {.status}{end}"#;
        let get = ["get", "node", node, "-o", template];
        let said = |output: std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
        let before = said(self.kubectl()?.args(get).output()?);
        self.wait(&format!("node {node}"), &get, |said| said.ends_with(" True") && said != before)
    }

    fn impersonate(&self, node: &str) -> Result<(), ClusterError> {
        let failed = |what: &str| ClusterError::Impersonate { node: node.to_owned(), what: what.to_owned() };
        let get = |name: &str| -> Result<Value, ClusterError> {
            let said = self.kubectl()?.args(["get", "node", name, "-o", "json"]).run()?;
            serde_json::from_str(&said).map_err(|error| failed(&error.to_string()))
        };
        let original = get(node)?;
        let name = format!("{node}-impostor");
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": original["spec"]["podCIDR"], "podCIDRs": original["spec"]["podCIDRs"]},
        });
        self.kubectl()?.args(["create", "-f", "-"]).input(object.to_string()).run()?;
        let annotations = &original["metadata"]["annotations"];
        let state = annotations[STATE].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let mut state = state.ok_or_else(|| failed("it publishes no keys"))?;
        // The keys of the one with the UID of the other: nothing but the proofs can tell.
        state["uid"] = get(&name)?["metadata"]["uid"].clone();
        let mut arguments = vec!["annotate".to_owned(), "node".to_owned(), name, format!("{STATE}={state}")];
        if let Some(endpoints) = annotations[ENDPOINTS].as_str() {
            arguments.push(format!("{ENDPOINTS}={endpoints}"));
        }
        self.kubectl()?.args(arguments).run()?;
        Ok(())
    }

    fn uninstall(&self, name: &str) -> Result<(), ClusterError> {
        let node = self.lab.node(name)?;
        // The daemons of other nodes are not replaced for it, nor when all is as before.
        let rule =
            json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": [name]}]}]);
        let rule = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": rule}});
        self.patch_daemons(&json!({
            "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
            "template": {"spec": {"affinity": {"nodeAffinity": rule}}},
        }))?;
        let since = Instant::now();
        while !daemons(node)?.is_empty() {
            if since.elapsed() >= RESTARTED_WITHIN {
                let what = format!("the end of the daemon on {name}");
                return Err(crate::Error::Timeout { what, within: RESTARTED_WITHIN }.into());
            }
            thread::sleep(Duration::from_millis(100));
        }
        let images = ctr(node, &self.programs, &["images", "ls", "-q"])?;
        let failed = |what: String| ClusterError::Uninstall { node: name.to_owned(), what };
        let image = images.lines().find(|image| image.contains("/meshd:"));
        let image = image.ok_or_else(|| failed(format!("the node has no image of meshd: {images}")))?;
        let mount = format!("{UNINSTALL}/image");
        node.command("mkdir").args(["-p", &mount]).run()?;
        let mounting = ["images", "mount", "--snapshotter", SNAPSHOTTER, image, &mount];
        ctr(node, &self.programs, &mounting)?;
        let config =
            self.settings.directory.join(deployment::MANIFESTS).join(deployment::OVERLAY).join("config.yaml");
        let kubeconfig = Path::new(UNINSTALL).join("kubeconfig");
        node.write(&kubeconfig, self.kubeconfig_for_hosts()?)?;
        let uninstall = node.command(format!("{mount}/meshd")).arg("uninstall");
        let uninstall = uninstall.arg("--config").arg(&config).args(["--node-name", name]);
        uninstall.arg("--kubeconfig").arg(&kubeconfig).run()?;
        node.command("umount").arg(&mount).run()?;
        node.command("rm").args(["-r", UNINSTALL]).run()?;
        let network = node.command("sh").args(["-c", LEFT]).run()?;
        let left = network.lines().filter(|line| !OWN.iter().any(|own| line.contains(own)));
        let mut left: Vec<String> = left.map(str::to_owned).collect();
        let get = ["get", "node", name, "-o", "jsonpath={.metadata.annotations}"];
        let annotations = self.kubectl()?.args(get).run()?;
        let annotations: Value = serde_json::from_str(&annotations).unwrap_or_default();
        let own = annotations.as_object().into_iter().flatten().map(|(key, _)| key);
        left.extend(own.filter(|key| key.starts_with("meshd.dev/")).map(|key| format!("annotation {key}")));
        if left.is_empty() { Ok(()) } else { Err(failed(format!("left: {}", left.join("; ")))) }
    }
}

impl Cluster {
    fn reinstall(&self, node: &str) -> Result<(), ClusterError> {
        self.patch_daemons(&json!({
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"spec": {"affinity": null}},
        }))?;
        self.wait_deployed()?;
        // Its kubelet runs on. Without another change it says the same again after five minutes only.
        let get = ["get", "node", node, "-o", r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#];
        self.wait(&format!("node {node}"), &get, |said| said == "True")
    }

    /// Changes the specification of the `DaemonSet`.
    fn patch_daemons(&self, specification: &Value) -> Result<(), ClusterError> {
        let patch = json!({ "spec": specification }).to_string();
        let patching = ["-n", "meshd", "patch", "daemonset", "meshd", "--type=merge", "-p", &patch];
        self.kubectl()?.args(patching).run()?;
        Ok(())
    }
}

/// The processes of daemons on a node, by the numbers that they have there.
fn daemons(node: &Node) -> Result<BTreeSet<String>, ClusterError> {
    let list = || -> std::io::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let called = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if called.trim() == DAEMON {
                found.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    };
    let failed = |source| crate::Error::File { action: "list", path: "/proc".into(), source };
    Ok(node.run(list)?.map_err(failed)?)
}
