//! The lab: nodes, an underlay, a host outside and an API server, created together and removed together.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use ipnetwork::IpNetwork;
use plan::node::RELAY_LABEL;
use serde_json::json;

use crate::address::{self, Family, IpVersion, OUTSIDE};
use crate::bin_path;
use crate::capture::{Capture, Rules};
use crate::error::Error;
use crate::host::{End, Host};
use crate::kube::{ApiKind, ApiServer};
use crate::nat::{Backbone, Site};
use crate::node::{KUBECONFIG, Node};
use crate::plain;
use crate::space;
use crate::underlay::{Switch, Underlay};

/// A cluster's machines in namespaces. Everything ends when it is dropped; nothing of it is visible outside.
#[derive(Debug)]
pub struct Lab {
    // Fields are dropped in order: users come before what they use.
    api: Option<ApiServer>,
    nodes: Vec<Node>,
    outside: Host,
    underlay: Underlay,
    family: Family,
    dir: PathBuf,
    keep: bool,
    keep_dir: bool,
}

/// The settings of a lab; see [`Lab::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: u8,
    family: Family,
    api: ApiKind,
    register: bool,
    fence: bool,
    mtu: Vec<(String, u32)>,
    sites: Vec<Site>,
    dir: Option<PathBuf>,
    keep: bool,
    private: Vec<&'static str>,
}

impl Lab {
    /// Three nodes, dual stack, the fake API server, all nodes registered. Methods of the builder change that.
    pub fn builder() -> Builder {
        Builder {
            nodes: 3,
            family: Family::Dual,
            api: ApiKind::Fake,
            register: true,
            fence: true,
            mtu: Vec::new(),
            sites: Vec::new(),
            dir: None,
            keep: std::env::var_os("LAB_KEEP").is_some_and(|value| value == "1"),
            private: Vec::new(),
        }
    }

    /// A node by name: `n1`, `n2` and so on.
    pub fn node(&self, name: &str) -> Result<&Node, Error> {
        self.nodes.iter().find(|node| node.name() == name).ok_or_else(|| Error::NoNode(name.to_owned()))
    }

    /// All nodes, in the order of their numbers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The host outside the cluster: on the underlay, and every other host's default gateway.
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// The outside host, reached by an address beyond the underlay's subnet: what the internet is to a pod.
    pub fn internet(&self) -> End {
        let version = self.family.versions();
        let addresses: Vec<IpAddr> = version.iter().map(|&version| address::internet(version)).collect();
        End::new(self.outside.net(), addresses)
    }

    /// The API server.
    ///
    /// # Panics
    ///
    /// If the lab was built with [`ApiKind::None`].
    pub fn api(&self) -> &ApiServer {
        match &self.api {
            Some(api) => api,
            None => panic!("this lab was built without an API server"),
        }
    }

    /// The sites that the nodes are in, and what connects them.
    ///
    /// # Panics
    ///
    /// If the lab was built without [`sites`](Builder::sites).
    pub fn backbone(&self) -> &Backbone {
        match &self.underlay {
            Underlay::Backbone(backbone) => backbone,
            Underlay::Switch(_) => panic!("this lab was built on one switch"),
        }
    }

    /// The IP versions of the lab.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The ranges that all pods are in, IPv4 first.
    pub fn cluster_ranges(&self) -> Vec<IpNetwork> {
        self.family.versions().iter().map(|&version| address::cluster_range(version)).collect()
    }

    /// The directory of logs and other files; removed with the lab unless the test failed or the lab is kept.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts capturing on the underlay interface of every node that exists now, and between all routers.
    pub fn capture(&self) -> Result<Capture, Error> {
        let hosts: Vec<&Host> = self.nodes.iter().map(|node| &**node).collect();
        let rules = Rules::new(self.cluster_ranges());
        let mut capture = Capture::start(&hosts, "eth0", &rules)?;
        if let Underlay::Backbone(backbone) = &self.underlay {
            for router in backbone.routers() {
                capture.add(router, "wan", &rules)?;
            }
        }
        Ok(capture)
    }

    /// Adds a node and, if `register`, its Node object.
    pub fn add_node(&mut self, register: bool) -> Result<&Node, Error> {
        let number = self.nodes.iter().map(|node| node.number()).max().unwrap_or(0) + 1;
        let node = self.make_node(number, 1500)?;
        if register {
            self.register(&node)?;
        }
        self.nodes.push(node);
        self.nodes.last().ok_or_else(|| Error::NoNode(format!("n{number}")))
    }

    /// Removes a node as when its power fails: its processes are killed, its interfaces are gone. Its Node object stays.
    pub fn remove_node(&mut self, name: &str) -> Result<(), Error> {
        let gone = self.nodes.iter().position(|node| node.name() == name);
        let node = self.nodes.remove(gone.ok_or_else(|| Error::NoNode(name.to_owned()))?);
        self.underlay.unplug(&node)
    }

    /// Removes a node that was powered off.
    pub fn forget(&mut self, name: &str) -> Result<(), Error> {
        self.node(name)?;
        self.nodes.retain(|node| node.name() != name);
        Ok(())
    }

    /// Stops a node as when its power fails: its processes are killed, its interfaces are gone. What it had on its disks can
    /// still be read by [`boot`](Self::boot).
    pub fn power_off(&self, name: &str) -> Result<(), Error> {
        let node = self.node(name)?;
        self.underlay.unplug(node)?;
        // All but the first process of its namespace and the shell.
        node.command("sh").args(["-c", "kill -9 -1 || true"]).run()?;
        Ok(())
    }

    /// Starts a node that was powered off: with an empty network, and with what these directories held. Its addresses are the
    /// former ones, or `elsewhere` others. Returns the node, on which nothing runs yet.
    ///
    /// # Panics
    ///
    /// If the lab was built with [`sites`](Builder::sites).
    pub fn boot(&mut self, name: &str, disks: &[&str], elsewhere: bool) -> Result<&Node, Error> {
        let place = self.nodes.iter().position(|node| node.name() == name);
        let old = place.and_then(|place| self.nodes.get(place)).ok_or_else(|| Error::NoNode(name.into()))?;
        let last = last_of(old, elsewhere);
        let host = self.switch().plug(name, old.number(), last, 1500, &self.dir)?;
        for disk in disks {
            let of = |host: &Host| format!("/proc/{}/root{disk}", host.pid());
            copy(&of(old), &of(&host))?;
        }
        let node = Node::new(host, old.pod_ranges().to_vec());
        let place = place.unwrap_or_default();
        if let Some(entry) = self.nodes.get_mut(place) {
            *entry = node;
        }
        self.node(name)
    }

    /// Gives a running node other addresses on the underlay, as a new lease by DHCP does.
    ///
    /// # Panics
    ///
    /// If the lab was built with [`sites`](Builder::sites).
    pub fn renumber(&self, name: &str) -> Result<(), Error> {
        let node = self.node(name)?;
        self.switch().renumber(node, last_of(node, true))
    }

    fn switch(&self) -> &Switch {
        match &self.underlay {
            Underlay::Switch(switch) => switch,
            Underlay::Backbone(_) => panic!("this lab was built with sites"),
        }
    }

    /// Creates the Node object of a node, as a control plane does.
    pub fn register(&self, node: &Node) -> Result<(), Error> {
        self.api().create_node(node.object())?;
        Ok(())
    }

    /// Updates the addresses in a node's Node object, as kubelets and a cloud's controller do after a change.
    pub fn report_addresses(&self, node: &Node) -> Result<(), Error> {
        let patch = json!({"status": {"addresses": node.listed_addresses()}});
        self.api().patch_node_status(node.name(), &patch)?;
        Ok(())
    }

    /// Permits a node to relay by the label of its Node, or forbids it again.
    pub fn set_relay(&self, node: &str, may: bool) -> Result<(), Error> {
        let value = may.then_some("true");
        self.api().patch_node(node, &json!({"metadata": {"labels": {RELAY_LABEL: value}}}))?;
        Ok(())
    }

    /// Deletes the Node object of a node, as an operator does.
    pub fn unregister(&self, name: &str) -> Result<(), Error> {
        Ok(self.api().delete_node(name)?)
    }

    /// Cuts a host off the underlay, or connects it again.
    pub fn set_cable(&self, host: &Host, up: bool) -> Result<(), Error> {
        self.underlay.set_cable(host, up)
    }

    /// Routes the podCIDRs of all nodes over the underlay unencrypted, on every node and on the outside host: the
    /// network of [`plain pods`](Node::plain_pod), and the positive control for captures.
    pub fn connect_plainly(&self) -> Result<(), Error> {
        let own = |host: &Host, node: &Node| host.number() == node.number();
        let hosts = self.nodes.iter().map(|node| &**node).chain([&self.outside]);
        for host in hosts {
            plain::enable_forwarding(host)?;
            let mut lines = String::new();
            for node in self.nodes.iter().filter(|node| !own(host, node)) {
                for range in node.pod_ranges() {
                    let gateway = node.address(IpVersion::of(range.ip()))?;
                    let _infallible = writeln!(lines, "route replace {range} via {gateway}");
                }
            }
            host.ip(&lines)?;
        }
        Ok(())
    }

    /// Lines that say how to enter each host from another terminal.
    pub fn how_to_enter(&self) -> Vec<String> {
        let user = if is_mapped() { " -U --preserve-credentials" } else { "" };
        let hosts = self.nodes.iter().map(|node| &**node).chain([&self.outside]);
        hosts.map(|host| format!("{}: nsenter -t {}{user} -n -m -u", host.name(), host.pid())).collect()
    }

    /// Prints how to enter the hosts, and blocks until the process is killed, which removes everything.
    pub fn hold(&self) -> ! {
        eprintln!("The lab stays up until this process (pid {}) ends. To enter a host:", std::process::id());
        for line in self.how_to_enter() {
            eprintln!("  {line}");
        }
        eprintln!("  logs: {}", self.dir.display());
        loop {
            thread::sleep(Duration::from_hours(1));
        }
    }

    /// The host that an API server is to run on, where the lab has started none.
    pub(crate) fn api_host(&self) -> Result<Host, Error> {
        self.underlay.plug("api", address::API, 1500, &self.dir)
    }

    fn make_node(&self, number: u8, mtu: u32) -> Result<Node, Error> {
        let host = self.underlay.plug(&format!("n{number}"), number, mtu, &self.dir)?;
        let ranges = self.family.versions().iter().map(|&version| address::pod_range(number, version));
        let node = Node::new(host, ranges.collect());
        if let Some(api) = &self.api {
            // A node's first address is one of IPv4 unless it has none.
            let version = node.addresses().first().map_or(IpVersion::V4, |address| IpVersion::of(*address));
            node.write(KUBECONFIG, api.kubeconfig_over(version, node.name())?)?;
        }
        Ok(node)
    }
}

impl Builder {
    /// How many nodes there are at the start, at most [`LAST_NODE`](address::LAST_NODE).
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes.min(address::LAST_NODE);
        self
    }

    /// Which IP versions underlay and pods have.
    #[must_use]
    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Which API server the nodes talk to.
    #[must_use]
    pub fn api(mut self, api: ApiKind) -> Self {
        self.api = api;
        self
    }

    /// Whether Node objects are created for all nodes at the start.
    #[must_use]
    pub fn register(mut self, register: bool) -> Self {
        self.register = register;
        self
    }

    /// Whether a node's user may change its own Node only.
    #[must_use]
    pub fn fence(mut self, fence: bool) -> Self {
        self.fence = fence;
        self
    }

    /// MTU in bytes of a node's underlay interface, 1500 by default.
    #[must_use]
    pub fn mtu(mut self, node: &str, mtu: u32) -> Self {
        self.mtu.push((node.to_owned(), mtu));
        self
    }

    /// Puts the nodes into these sites instead of one network. The lab has as many nodes as the highest number in them. Pods
    /// have IPv4 only, unless [`family`](Self::family) says otherwise afterwards.
    #[must_use]
    pub fn sites(mut self, sites: Vec<Site>) -> Self {
        self.nodes = sites.iter().flat_map(Site::nodes).copied().max().unwrap_or_default();
        self.family = Family::V4;
        self.sites = sites;
        self
    }

    /// The directory of logs, instead of one below `target/lab`. It is not removed with the lab.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Directories that each host has for itself and empty at the start, besides [`PRIVATE`](crate::PRIVATE). Not with
    /// [`sites`](Self::sites).
    #[must_use]
    pub fn private(mut self, private: &[&'static str]) -> Self {
        self.private = private.to_vec();
        self
    }

    /// Whether the lab stays up (see [`Lab::hold`]) when it is dropped. Also set by `LAB_KEEP=1` in the environment.
    #[must_use]
    pub fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Creates the lab: namespaces, links, API server, Node objects.
    pub fn build(self) -> Result<Lab, Error> {
        let keep_dir = self.dir.is_some();
        let dir = self.dir.map_or_else(fresh_dir, Ok)?;
        std::fs::create_dir_all(&dir).map_err(|source| Error::File {
            action: "create",
            path: dir.clone(),
            source,
        })?;
        let underlay = if self.sites.is_empty() {
            Underlay::Switch(Switch::create(self.family, self.private)?)
        } else {
            Underlay::Backbone(Backbone::create(&self.sites, &dir)?)
        };
        let outside = underlay.plug("outside", OUTSIDE, 1500, &dir)?;
        equip_outside(&outside, self.family)?;
        if let (Underlay::Backbone(backbone), IpAddr::V4(internet)) =
            (&underlay, address::internet(IpVersion::V4))
        {
            backbone.route_to(&outside, internet)?;
        }
        let mut lab = Lab {
            api: None,
            nodes: Vec::new(),
            outside,
            underlay,
            family: self.family,
            dir,
            keep: self.keep,
            keep_dir,
        };
        let names: Vec<String> = (1..=self.nodes).map(|number| format!("n{number}")).collect();
        lab.api = match self.api {
            ApiKind::None => None,
            kind => {
                let host = lab.underlay.plug("api", address::API, 1500, &lab.dir)?;
                Some(ApiServer::start(kind, host, self.nodes, self.fence)?)
            }
        };
        for (name, number) in names.iter().zip(1..) {
            let mtu = self.mtu.iter().find(|(node, _)| node == name).map_or(1500, |(_, mtu)| *mtu);
            let node = lab.make_node(number, mtu)?;
            if self.register && lab.api.is_some() {
                lab.register(&node)?;
            }
            lab.nodes.push(node);
        }
        Ok(lab)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            self.hold();
        }
        if thread::panicking() {
            eprintln!("logs of the lab: {}", self.dir.display());
        } else if !self.keep_dir {
            let _nothing_depends_on_it = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// The outside host forwards, has the addresses that stand for the internet, and drops what is for pods: answering
/// that they are unreachable would put their addresses on the wire where a capture searches for them.
fn equip_outside(outside: &Host, family: Family) -> Result<(), Error> {
    plain::enable_forwarding(outside)?;
    let mut lines = String::new();
    for &version in family.versions() {
        let bits = if version == IpVersion::V4 { 32 } else { 128 };
        let _infallible = writeln!(lines, "addr add {}/{bits} dev lo", address::internet(version));
        let _infallible = writeln!(lines, "route add blackhole {}", address::cluster_range(version));
    }
    outside.ip(&lines)
}

/// What a node's addresses end in, or are to end in: its number, or, every other time that it is `elsewhere`, a number that
/// no node has.
fn last_of(node: &Node, elsewhere: bool) -> u8 {
    let number = node.number();
    let at_home = node.addresses().iter().any(|&own| {
        let version = IpVersion::of(own);
        own == address::underlay(number, version).ip()
    });
    if at_home == elsewhere { address::elsewhere(number) } else { number }
}

/// Copies what is in a directory, but not what is mounted below it, which no reboot survives.
fn copy(from: &str, to: &str) -> Result<(), Error> {
    let mut command = std::process::Command::new("cp");
    command.args(["-a", "-x", &format!("{from}/."), to]);
    let (program, host) = (space::program(&command), "the lab".to_owned());
    let output = match command.output() {
        Ok(output) => output,
        Err(source) => return Err(Error::Run { program, host, source }),
    };
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Failed { program, host, status: output.status, stderr })
}

/// A directory that no other lab has: named by this process, and numbered within it.
fn fresh_dir() -> Result<PathBuf, Error> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    Ok(bin_path::target_dir()?.join("lab").join(format!("{}-{number}", std::process::id())))
}

/// Whether root here is an ordinary user outside.
fn is_mapped() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(1).is_some_and(|outside| outside != "0")
}
