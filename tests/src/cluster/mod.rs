//! A whole Kubernetes cluster on one machine: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on a host of
//! the lab, and on each node containerd, kubelet and kube-proxy, all of them as they are released. Pods are real pods.
//!
//! It lives in the namespaces of a [`Lab`], and ends with the process that started it. All that is left then are directories
//! of cgroups and of logs, which [`Records::delete`] removes.

mod cgroups;
mod config;
mod control_plane;
mod deployment;
mod error;
mod image;
mod policy;
mod programs;
mod record;
mod relay;
mod spoof;
mod uplinks;
mod verb;
mod worker;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

pub use config::ProxyMode;
pub use error::ClusterError;
pub use image::Image;
pub use programs::{Programs, Version};
pub use record::{HostRecord, Process, Record, Records};

use crate::address::Family;
use crate::command::Command;
use crate::host::Host;
use crate::kube::ApiKind;
use crate::lab::Lab;
use cgroups::Cgroups;
use config::Shape;
use control_plane::ControlPlane;
use uplinks::Uplinks;
use worker::Worker;

/// The pause image, which every cluster needs.
pub const PAUSE_IMAGE: &str = config::PAUSE_IMAGE;

/// Three nodes have needed 40 s alone on two cores, and five minutes beside two compilers.
const READY_WITHIN: Duration = Duration::from_mins(10);

/// How many nodes more than at the start a cluster may have.
const MORE_NODES: u8 = 5;

/// What cluster to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its id, which names its cgroups.
    pub id: String,
    /// How many nodes, without the control plane's host.
    pub nodes: u8,
    /// Which IP versions underlay, pods and services have.
    pub family: Family,
    /// kube-proxy's mode.
    pub proxy_mode: ProxyMode,
    /// Archives of images for all nodes; [`PAUSE_IMAGE`] has to be among them.
    pub images: Vec<PathBuf>,
    /// Where logs, kubeconfig and manifests go.
    pub directory: PathBuf,
    /// meshd's manifests, `deploy` in the repository. Without them nothing is deployed, and nodes stay without pod network.
    pub manifests: Option<PathBuf>,
}

/// A running cluster. Ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in order: users come before what they use.
    workers: Vec<Worker>,
    control: ControlPlane,
    uplinks: Uplinks,
    lab: Lab,
    programs: Programs,
    cgroups: Cgroups,
    shape: Shape,
    settings: Settings,
}

/// Whether this machine can run a cluster at all: it needs root, and cgroups that its kubelet and containerd know.
pub fn check() -> Result<(), ClusterError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ClusterError::NotRoot);
    }
    Cgroups::of("")?.check()
}

impl Cluster {
    /// Starts the processes of all hosts, and says what it does.
    pub fn start(settings: Settings, say: &mut dyn FnMut(&str)) -> Result<Self, ClusterError> {
        check()?;
        let programs = Programs::find()?;
        let cgroups = Cgroups::of(&settings.id)?;
        let shape =
            Shape { version: programs.version, family: settings.family, proxy_mode: settings.proxy_mode };
        let lab = Lab::builder()
            .nodes(settings.nodes)
            .family(settings.family)
            .api(ApiKind::None)
            .private(&worker::PRIVATE)
            .dir(settings.directory.join("logs"))
            .keep(false)
            .build()?;
        // Before anything runs on the nodes: nothing that they send is missed.
        let uplinks = Uplinks::start(&lab)?;
        say(&format!("starting etcd, kube-apiserver, controller manager and scheduler ({})", shape.version));
        let names: Vec<String> = lab.nodes().iter().map(|node| node.name().to_owned()).collect();
        // Its list of users is read at its start alone.
        let known: Vec<String> =
            (1..=settings.nodes.saturating_add(MORE_NODES)).map(|number| format!("n{number}")).collect();
        let control = ControlPlane::start(lab.api_host()?, shape, &programs, &known)?;
        say(&format!(
            "starting containerd on {} nodes, and giving it {} images",
            names.len(),
            settings.images.len()
        ));
        let workers: Result<Vec<_>, _> =
            lab.nodes().iter().map(|node| Worker::start(node, &cgroups, &programs)).collect();
        let workers = workers?;
        let mut own = Self { workers, control, uplinks, lab, programs, cgroups, shape, settings };
        for (worker, node) in own.workers.iter().zip(own.lab.nodes()) {
            worker.import(node, &own.programs, &own.settings.images)?;
        }
        say("starting kubelet and kube-proxy on all nodes");
        for (worker, node) in own.workers.iter_mut().zip(own.lab.nodes()) {
            worker.join(node, shape, &own.programs, &own.control)?;
        }
        for node in &names {
            own.wait(
                &format!("Node {node}"),
                &["get", "node", node, "-o", "jsonpath={.spec.podCIDR}"],
                |said| !said.is_empty(),
            )?;
        }
        Ok(own)
    }

    /// Applies meshd's manifests, and waits until it runs and all nodes are ready.
    pub fn deploy(&self, say: &mut dyn FnMut(&str)) -> Result<(), ClusterError> {
        let Some(manifests) = &self.settings.manifests else { return Ok(()) };
        let to = self.settings.directory.join(deployment::MANIFESTS);
        let overlay = deployment::write(manifests, &to, self.shape, self.programs.kubectl_version()?)?;
        let overlay = overlay.display().to_string();
        say(&format!("kubectl apply -k {overlay}"));
        // Namespaces get their default service account a moment after they are created.
        self.wait("applying meshd's manifests", &["apply", "-k", &overlay], |_| true)?;
        say("waiting for meshd on all nodes");
        self.wait_deployed()?;
        say("waiting for all nodes to be ready");
        let template = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status} {end}"#;
        let wanted = "True ".repeat(self.workers.len());
        self.wait("ready nodes", &["get", "nodes", "-o", template], |said| said.trim() == wanted.trim())
    }

    /// Waits until meshd runs on all nodes.
    fn wait_deployed(&self) -> Result<(), ClusterError> {
        let template = "jsonpath={.status.desiredNumberScheduled} {.status.numberReady}";
        let wanted = format!("{0} {0}", self.workers.len());
        let get = ["-n", "meshd", "get", "daemonset", "meshd", "-o", template];
        self.wait("the DaemonSet meshd", &get, |said| said == wanted)
    }

    /// A port of the machine's loopback that leads to the API server, and an administrator's kubeconfig that uses it.
    pub fn publish(&self) -> Result<String, ClusterError> {
        let address = relay::start(self.control.address()?, self.control.host().net())?;
        self.control.kubeconfig(crate::kube::ADMIN, Some(address))
    }

    /// An administrator's kubeconfig for programs on the cluster's hosts.
    pub fn kubeconfig_for_hosts(&self) -> Result<String, ClusterError> {
        self.control.kubeconfig(crate::kube::ADMIN, None)
    }

    /// kubectl, as the administrator.
    pub fn kubectl(&self) -> Result<Command<'_>, ClusterError> {
        self.control.kubectl(&self.programs)
    }

    /// The machines.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What others have to know to enter it.
    pub fn record(&self) -> Record {
        let hosts = self.lab.nodes().iter().map(|node| &**node);
        let hosts = hosts.chain([self.control.host(), self.lab.outside()]);
        let gone = |pid| Process { pid, started: 0 };
        let process = |pid| Process::of(pid).unwrap_or_else(|| gone(pid));
        let host = |host: &Host| HostRecord { name: host.name().to_owned(), holder: process(host.pid()) };
        let family = match self.shape.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
            Family::Dual => "dual",
        };
        Record {
            id: self.settings.id.clone(),
            process: process(std::process::id()),
            hosts: hosts.map(host).collect(),
            version: self.shape.version.to_string(),
            family: family.to_owned(),
            proxy_mode: self.shape.proxy_mode.as_str().to_owned(),
            search_path: self.programs.search_path(),
        }
    }

    /// Asks kubectl until the answer is as wanted. Fails early if a process of the cluster has ended.
    pub fn wait(
        &self,
        step: &str,
        arguments: &[&str],
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), ClusterError> {
        let since = Instant::now();
        loop {
            let output = self.kubectl()?.args(arguments).output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && wanted(&said) {
                return Ok(());
            }
            let ended = self.ended()?;
            if ended.is_some() || since.elapsed() >= READY_WITHIN {
                let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                let ended = ended.map(|name| format!("{name} ended; ")).unwrap_or_default();
                return Err(ClusterError::NotReady {
                    step: step.to_owned(),
                    id: self.settings.id.clone(),
                    seconds: since.elapsed().as_secs(),
                    said: format!("{ended}kubectl said last: {} {}", said.trim(), errors.trim()),
                    logs: self.settings.directory.join("logs"),
                });
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// A process that has to run and does not.
    fn ended(&self) -> Result<Option<String>, ClusterError> {
        for daemon in self.workers.iter().flat_map(Worker::daemons).chain(self.control.daemons()) {
            if let Some(status) = daemon.ended()? {
                return Ok(Some(format!("{} ({status})", daemon.err_path().display())));
            }
        }
        Ok(None)
    }
}
