//! What runs on a node of a cluster: containerd, kubelet, kube-proxy.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

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
pub(super) const SNAPSHOTTER: &str = "native";

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
    node: String,
    // Dropped in order: a kubelet would complain about a containerd that is gone.
    kubelet: Option<Daemon>,
    proxy: Option<Daemon>,
    containerd: Daemon,
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
        Ok(Self { node: node.name().to_owned(), kubelet: None, proxy: None, containerd })
    }

    /// The name of its node.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Waits for containerd.
    pub(super) fn wait(&self, node: &Node, programs: &Programs) -> Result<(), ClusterError> {
        let since = Instant::now();
        while let Err(error) = ctr(node, programs, &["version"]) {
            if since.elapsed() >= CONTAINERD_WITHIN || self.containerd.ended()?.is_some() {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits for containerd and gives it images.
    pub(super) fn import(
        &self,
        node: &Node,
        programs: &Programs,
        images: &[PathBuf],
    ) -> Result<(), ClusterError> {
        self.wait(node, programs)?;
        for image in images {
            let image = image.display().to_string();
            ctr(node, programs, &["images", "import", "--snapshotter", SNAPSHOTTER, &image])?;
        }
        Ok(())
    }

    /// Starts kubelet and kube-proxy, again if they run: they read the node's addresses at their start alone.
    pub(super) fn join(
        &mut self,
        node: &Node,
        shape: Shape,
        programs: &Programs,
        control: &ControlPlane,
    ) -> Result<(), ClusterError> {
        self.start_kubelet(node, shape, programs, control)?;
        let kubeconfig = control.kubeconfig("system:kube-proxy", None)?;
        write(node, "kube-proxy.kubeconfig", &kubeconfig)?;
        write(node, "kube-proxy.json", &shape.proxy_config(node.name()).to_string())?;
        let proxy = command(node, programs, "kube-proxy")?;
        let proxy = proxy.arg(format!("--config={DIRECTORY}/kube-proxy.json"));
        self.proxy = None;
        self.proxy = Some(proxy.daemon("kube-proxy")?);
        Ok(())
    }

    /// Kills the kubelet. The containers run on.
    pub(super) fn stop_kubelet(&mut self) {
        self.kubelet = None;
    }

    /// Starts the kubelet, again if it runs.
    pub(super) fn start_kubelet(
        &mut self,
        node: &Node,
        shape: Shape,
        programs: &Programs,
        control: &ControlPlane,
    ) -> Result<(), ClusterError> {
        self.stop_kubelet();
        let kubeconfig = control.kubeconfig(&kubelet_user(node.name()), None)?;
        write(node, "kubelet.kubeconfig", &kubeconfig)?;
        write(node, "kubelet.json", &shape.kubelet_config().to_string())?;
        let kubelet = command(node, programs, "kubelet")?;
        let kubelet = kubelet.args(shape.kubelet(node.name(), &node.addresses()));
        self.kubelet = Some(kubelet.daemon("kubelet")?);
        Ok(())
    }

    /// All of them.
    pub(super) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.kubelet.iter().chain(&self.proxy).chain([&self.containerd])
    }
}

fn write(node: &Node, name: &str, text: &str) -> Result<(), Error> {
    node.write(Path::new(DIRECTORY).join(name), text)
}

/// Runs `ctr` in the node's containerd, in the namespace that kubelets use; what it printed.
pub(super) fn ctr(node: &Node, programs: &Programs, arguments: &[&str]) -> Result<String, ClusterError> {
    let ctr = node.command(programs.path("ctr")?).args(["--namespace", "k8s.io"]);
    Ok(ctr.args(arguments).run()?)
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
