//! What runs on a node of a cluster: containerd, kubelet, kube-proxy.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use serde_json::Value;

use super::ClusterError;
use super::cgroups::{self, Cgroups};
use super::config::{self, DIRECTORY, Shape};
use super::control_plane::{ControlPlane, kubelet_user};
use super::programs::Programs;
use crate::command::Command;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::mounts::mount_failed;
use crate::node::Node;

/// What a node has for itself besides [`PRIVATE`](crate::PRIVATE).
pub(super) const PRIVATE: [&str; 3] = ["/var/lib/kubelet", "/var/lib/containerd", "/var/log"];

/// Copies each layer. Images are small, and it works on every file system.
const SNAPSHOTTER: &str = "native";

/// containerd has needed 20 s beside a compiler.
const CONTAINERD_WITHIN: Duration = Duration::from_mins(2);

/// Settings of the whole machine that a kubelet sets unless they are as it wants them (`setupKernelTunables` in its container
/// manager). A file with the value is mounted over each, so that it finds nothing to change.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The processes of a node. Ends them when dropped.
#[derive(Debug)]
pub(super) struct Worker {
    containerd: Daemon,
    others: Vec<Daemon>,
}

impl Worker {
    /// Prepares the node and starts containerd.
    pub(super) fn start(node: &Node, cgroups: &Cgroups, programs: &Programs) -> Result<Self, ClusterError> {
        cgroups.create(node.name())?;
        node.run(|| {
            cgroups.mount(node.name())?;
            hide_tunables()?;
            // As systemd has it: what a pod mounts with mountPropagation has to arrive elsewhere.
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED)
                .map_err(|errno| mount_failed("shared root", Path::new("/"), errno.into()))
        })??;
        node.write(Path::new(DIRECTORY).join("containerd.toml"), config::containerd(SNAPSHOTTER))?;
        let config = format!("--config={DIRECTORY}/containerd.toml");
        let containerd = command(node, programs, "containerd")?.arg(config).daemon("containerd")?;
        Ok(Self { containerd, others: Vec::new() })
    }

    /// Waits for containerd and gives it images.
    pub(super) fn import(
        &self,
        node: &Node,
        programs: &Programs,
        images: &[PathBuf],
    ) -> Result<(), ClusterError> {
        let ctr = |arguments: &[&str]| -> Result<String, ClusterError> {
            let ctr = node.command(programs.path("ctr")?).args(["--namespace", "k8s.io"]);
            Ok(ctr.args(arguments).run()?)
        };
        let since = Instant::now();
        while let Err(error) = ctr(&["version"]) {
            if since.elapsed() >= CONTAINERD_WITHIN || self.containerd.ended()?.is_some() {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(100));
        }
        for image in images {
            ctr(&["images", "import", "--snapshotter", SNAPSHOTTER, &image.display().to_string()])?;
        }
        Ok(())
    }

    /// Starts kubelet and kube-proxy.
    pub(super) fn join(
        &mut self,
        node: &Node,
        shape: Shape,
        programs: &Programs,
        control: &ControlPlane,
    ) -> Result<(), ClusterError> {
        let write =
            |name: &str, value: &Value| node.write(Path::new(DIRECTORY).join(name), value.to_string());
        let kubeconfig = control.kubeconfig(&kubelet_user(node.name()), None)?;
        node.write(Path::new(DIRECTORY).join("kubelet.kubeconfig"), kubeconfig)?;
        write("kubelet.json", &shape.kubelet_config())?;
        let kubelet = command(node, programs, "kubelet")?;
        let kubelet = kubelet.args(shape.kubelet(node.name(), &node.addresses()));
        self.others.push(kubelet.daemon("kubelet")?);

        let kubeconfig = control.kubeconfig("system:kube-proxy", None)?;
        node.write(Path::new(DIRECTORY).join("kube-proxy.kubeconfig"), kubeconfig)?;
        write("kube-proxy.json", &shape.proxy_config(node.name()))?;
        let proxy = command(node, programs, "kube-proxy")?;
        let proxy = proxy.arg(format!("--config={DIRECTORY}/kube-proxy.json"));
        self.others.push(proxy.daemon("kube-proxy")?);
        Ok(())
    }

    /// All of them.
    pub(super) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.others.iter().chain([&self.containerd])
    }
}

/// A program in the node's cgroups that finds the others.
fn command<'a>(
    node: &'a Node,
    programs: &Programs,
    program: &'static str,
) -> Result<Command<'a>, ClusterError> {
    let command = node.command("sh").args(cgroups::enter()).arg(programs.path(program)?);
    Ok(command.env("PATH", programs.search_path()))
}

fn hide_tunables() -> Result<(), Error> {
    let failed = |path: &Path, source| Error::File { action: "write", path: path.into(), source };
    for (name, value) in TUNABLES {
        let setting = Path::new("/proc/sys").join(name);
        if !setting.exists() {
            continue;
        }
        let own = Path::new(DIRECTORY).join("tunables").join(name.replace('/', "."));
        let above = own.parent().unwrap_or_else(|| Path::new("/"));
        std::fs::create_dir_all(above).map_err(|source| failed(above, source))?;
        std::fs::write(&own, value).map_err(|source| failed(&own, source))?;
        mount_bind(&own, &setting).map_err(|errno| mount_failed("a setting", &setting, errno.into()))?;
    }
    Ok(())
}
