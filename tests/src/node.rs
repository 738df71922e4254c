//! A node of the cluster: a host with podCIDRs, pods, and a Node object that the API server knows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::address::IpVersion;
use crate::cni::{self, Attachment, NetworkConfig};
use crate::command::Command;
use crate::error::Error;
use crate::host::{End, Host};
use crate::plain;
use crate::space::{NetNs, new_net_at};

/// Where each node finds its kubeconfig; private to the node, and what `KUBECONFIG` says in programs run there.
pub const KUBECONFIG: &str = "/run/lab/kubeconfig";

/// A node of the lab's cluster. Everything that a [`Host`] can do, it can.
#[derive(Debug)]
pub struct Node {
    host: Host,
    pod_ranges: Vec<IpNetwork>,
    pods: Mutex<BTreeMap<String, Arc<PodState>>>,
}

/// A pod on a node; a handle, the pod stays until [`Pod::delete`] or until the node goes.
#[derive(Clone, Debug)]
pub struct Pod<'lab> {
    node: &'lab Node,
    state: Arc<PodState>,
}

#[derive(Debug)]
struct PodState {
    name: String,
    net: NetNs,
    attachment: Attachment,
    addresses: Vec<IpAddr>,
    wiring: Wiring,
}

/// How the pod's network was set up.
#[derive(Debug)]
enum Wiring {
    /// Plugins, by this configuration and with this result.
    Plugins(NetworkConfig, Value),
    /// The lab itself, with plain routes.
    Plain,
}

impl Node {
    pub(crate) fn new(host: Host, pod_ranges: Vec<IpNetwork>) -> Self {
        Self { host, pod_ranges, pods: Mutex::default() }
    }

    /// Its podCIDRs, IPv4 first.
    pub fn pod_ranges(&self) -> &[IpNetwork] {
        &self.pod_ranges
    }

    /// The Node object as a cluster's control plane would create it.
    pub fn object(&self) -> Value {
        let ranges: Vec<_> = self.pod_ranges.iter().map(ToString::to_string).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name(), "labels": {"kubernetes.io/hostname": self.name()}},
            "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
            "status": {"addresses": self.listed_addresses()},
        })
    }

    /// The addresses in its Node object's status, as a kubelet and a cloud's controller write them.
    pub fn listed_addresses(&self) -> Vec<Value> {
        let of_kind = |kind, addresses: Vec<IpAddr>| {
            addresses.into_iter().map(move |address| json!({"type": kind, "address": address}))
        };
        let internal = of_kind("InternalIP", self.addresses());
        let external = of_kind("ExternalIP", self.external_addresses());
        let hostname = std::iter::once(json!({"type": "Hostname", "address": self.name()}));
        internal.chain(external).chain(hostname).collect()
    }

    /// A program to be run on the node, with `KUBECONFIG` and `NODE_NAME` in its environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command<'_> {
        self.host.command(program).env("KUBECONFIG", KUBECONFIG).env("NODE_NAME", self.name())
    }

    /// Installs a CNI plugin's binary where the runtime searches for it.
    pub fn install_plugin(&self, binary: &Path) -> Result<(), Error> {
        let target = Path::new(cni::PLUGIN_DIR).join(binary.file_name().unwrap_or_default());
        let link = || match std::os::unix::fs::symlink(binary, &target) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        self.run(link)?.map_err(|source| Error::File { action: "create", path: target, source })
    }

    /// Waits until a configuration list is there, as a runtime does before it starts pods.
    pub fn wait_network(&self, within: Duration) -> Result<(), Error> {
        let since = Instant::now();
        while since.elapsed() < within {
            if NetworkConfig::load(self).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        NetworkConfig::load(self).map(drop)
    }

    /// The pod of this name: created through the CNI plugins if it does not exist.
    pub fn pod(&self, name: &str) -> Result<Pod<'_>, Error> {
        if let Some(state) = self.lock().get(name).cloned() {
            return Ok(Pod { node: self, state });
        }
        let config = NetworkConfig::load(self)?;
        let (net, attachment) = self.sandbox(name)?;
        let result = match config.add(self, &attachment) {
            Ok(result) => result,
            Err(error) => {
                self.remove_netns(&attachment)?;
                return Err(error);
            }
        };
        let addresses = cni::addresses(&result);
        Ok(self.keep(PodState {
            name: name.to_owned(),
            net,
            attachment,
            addresses,
            wiring: Wiring::Plugins(config, result),
        }))
    }

    /// The pod of this name: connected by the lab itself with plain routes if it does not exist. Together with
    /// [`Lab::connect_plainly`](crate::Lab::connect_plainly) this is a pod network without any encryption.
    pub fn plain_pod(&self, name: &str) -> Result<Pod<'_>, Error> {
        if let Some(state) = self.lock().get(name).cloned() {
            return Ok(Pod { node: self, state });
        }
        let number = u32::try_from(self.lock().len()).unwrap_or(u32::MAX);
        let (net, attachment) = self.sandbox(name)?;
        let path = attachment.netns.clone().unwrap_or_default();
        let addresses = plain::attach(self, &net, &path, number)?;
        Ok(self.keep(PodState { name: name.to_owned(), net, attachment, addresses, wiring: Wiring::Plain }))
    }

    /// The pods that are there, by name.
    pub fn pods(&self) -> Vec<Pod<'_>> {
        self.lock().values().map(|state| Pod { node: self, state: Arc::clone(state) }).collect()
    }

    /// A pod's empty network namespace with `lo` up, at the path that a runtime would choose, and the attachment
    /// that goes with it: for tests that call plugins themselves.
    pub fn sandbox(&self, name: &str) -> Result<(NetNs, Attachment), Error> {
        let path = PathBuf::from("/run/netns").join(name);
        let net = self.run(|| new_net_at(&path, &format!("{}/{name}", self.name())))??;
        let container_id = format!("{}-{name}", self.name());
        Ok((net, Attachment { container_id, netns: Some(path), ifname: "eth0".into() }))
    }

    /// Removes what [`sandbox`](Self::sandbox) created. The namespace itself exists as long as something uses it.
    pub fn remove_netns(&self, attachment: &Attachment) -> Result<(), Error> {
        let Some(path) = &attachment.netns else { return Ok(()) };
        let remove = || {
            rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH)?;
            std::fs::remove_file(path)
        };
        self.run(remove)?.map_err(|source| Error::File { action: "remove", path: path.clone(), source })
    }

    fn keep(&self, state: PodState) -> Pod<'_> {
        let state = Arc::new(state);
        self.lock().insert(state.name.clone(), Arc::clone(&state));
        Pod { node: self, state }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<PodState>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Pod<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The node that it is on.
    pub fn node(&self) -> &Node {
        self.node
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.state.addresses
    }

    /// Its address of one IP version.
    pub fn address(&self, version: IpVersion) -> Result<IpAddr, Error> {
        self.end().address(version)
    }

    /// The pod as an end of traffic.
    pub fn end(&self) -> End {
        End::new(&self.state.net, self.state.addresses.clone())
    }

    /// What the calls about it have in common.
    pub fn attachment(&self) -> &Attachment {
        &self.state.attachment
    }

    /// The result of its CNI ADD; null for a plain pod.
    pub fn result(&self) -> &Value {
        match &self.state.wiring {
            Wiring::Plugins(_, result) => result,
            Wiring::Plain => &Value::Null,
        }
    }

    /// A program to be run in the pod's network namespace, with the node's files.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command<'_> {
        self.node.command_in(&self.state.net, program.as_ref())
    }

    /// CNI CHECK. A plain pod has nothing that could be checked and passes.
    pub fn check(&self) -> Result<(), Error> {
        match &self.state.wiring {
            Wiring::Plugins(config, result) => config.check(self.node, &self.state.attachment, result),
            Wiring::Plain => Ok(()),
        }
    }

    /// CNI DEL, then the namespace goes, as a runtime does it. If DEL fails the pod stays.
    pub fn delete(self) -> Result<(), Error> {
        if let Wiring::Plugins(config, result) = &self.state.wiring {
            config.del(self.node, &self.state.attachment, Some(result))?;
        }
        self.node.remove_netns(&self.state.attachment)?;
        self.node.lock().remove(&self.state.name);
        Ok(())
    }
}
