//! A lab whose nodes run meshd: started, watched through `meshd status`, killed and started again.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rustix::process::Signal;
use serde_json::Value;

use crate::address::{self, IpVersion};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::End;
use crate::lab::Lab;
use crate::node::{KUBECONFIG, Pod};
use crate::{bin, flow};

/// How long a mesh may take until all nodes see each other. Far more than it takes on an idle machine.
pub const FORMED_WITHIN: Duration = Duration::from_mins(1);
/// How long nodes may take to agree on preshared keys.
pub const PROVEN_WITHIN: Duration = Duration::from_mins(1);

/// Flags of a daemon whose guard anybody can change, as on kernels before 6.9: for tests that do.
pub const UNOWNED: [&str; 2] = ["--guard-owner", "false"];

/// A lab with a daemon on each node.
#[derive(Debug)]
pub struct Mesh {
    // Before the lab: the daemons end before their nodes do.
    daemons: BTreeMap<String, Daemon>,
    lab: Lab,
}

/// An end of a flow with its description for reports.
#[derive(Clone, Debug)]
pub struct NamedEnd {
    /// `n1/a` for pod a on node n1, `n1` for the node itself, `outside`.
    pub name: String,
    /// The node that it is on; none outside.
    pub node: Option<String>,
    /// Whether it is a pod.
    pub is_pod: bool,
    /// The end itself.
    pub end: End,
    /// The addresses that a node has in its own podCIDRs.
    pub mesh: Vec<IpAddr>,
}

impl Mesh {
    /// Starts a daemon on every node, and waits until the mesh has formed.
    pub fn form(lab: Lab) -> Result<Self, Error> {
        Self::form_with(lab, &[])
    }

    /// The same with further flags for every daemon.
    pub fn form_with(lab: Lab, flags: &[&str]) -> Result<Self, Error> {
        let mut mesh = Self::idle(lab);
        for name in mesh.node_names() {
            mesh.start_with(&name, flags)?;
        }
        mesh.wait_formed();
        Ok(mesh)
    }

    /// A mesh without running daemons.
    pub fn idle(lab: Lab) -> Self {
        Self { daemons: BTreeMap::new(), lab }
    }

    /// Starts the daemon of a node.
    pub fn start(&mut self, node: &str) -> Result<(), Error> {
        self.start_with(node, &[])
    }

    /// Starts the daemon of a node with further flags.
    pub fn start_with(&mut self, node: &str, flags: &[&str]) -> Result<(), Error> {
        self.start_in(node, flags, &[])
    }

    /// Starts the daemon of a node with further flags and variables of the environment.
    pub fn start_in(
        &mut self,
        node: &str,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<(), Error> {
        self.start_program(&bin("meshd")?, node, flags, environment)
    }

    /// Starts another build of the daemon on a node, with further flags and variables of the environment.
    pub fn start_program(
        &mut self,
        program: &Path,
        node: &str,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<(), Error> {
        let arguments = self.arguments(node, flags);
        let command = self.lab.node(node)?.command(program).arg("run").args(&arguments);
        let command = environment.iter().fold(command, |command, (name, value)| command.env(name, value));
        let daemon = command.daemon(&format!("meshd-{node}"))?;
        self.daemons.insert(node.to_owned(), daemon);
        Ok(())
    }

    /// The flags that every command with a configuration gets in this lab, unless `flags` say otherwise.
    pub fn arguments(&self, node: &str, flags: &[&str]) -> Vec<String> {
        let versions = self.lab.family().versions();
        let join = |ranges: Vec<String>| ranges.join(",");
        let cluster =
            join(versions.iter().map(|version| address::cluster_range(*version).to_string()).collect());
        let services =
            join(versions.iter().map(|version| address::service_range(*version).to_string()).collect());
        let own = [
            ("--node-name", node.to_owned()),
            ("--cluster-cidr", cluster),
            ("--service-cidr", services),
            ("--kubeconfig", KUBECONFIG.to_owned()),
            ("--log-format", "json".to_owned()),
            ("--log-level", "info,boringtun=off,kube=off".to_owned()),
        ];
        let kept = own.into_iter().filter(|(flag, _)| !flags.contains(flag));
        let pairs = kept.flat_map(|(flag, value)| [flag.to_owned(), value]);
        pairs.chain(flags.iter().map(|flag| (*flag).to_owned())).collect()
    }

    /// The daemon of a node.
    ///
    /// # Panics
    ///
    /// If it was not started.
    pub fn daemon(&self, node: &str) -> &Daemon {
        self.daemons.get(node).unwrap_or_else(|| panic!("meshd was not started on {node}"))
    }

    /// Ends the daemon of a node and waits until it is gone.
    pub fn stop(&mut self, node: &str, signal: Signal) -> Result<(), Error> {
        if let Some(daemon) = self.daemons.remove(node) {
            daemon.kill(signal)?;
            daemon.wait(Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// What `meshd status -o json` says on a node; none while no daemon answers. Reads the daemon's socket
    /// directly: callers that wait for something poll often, and a process for each poll would take CPU from the daemons.
    pub fn status(&self, node: &str) -> Option<Value> {
        self.request(node, "status")
    }

    /// The answer of a node's daemon to a request line on its socket, such as `status` or `rotate`; none while no
    /// daemon answers.
    pub fn request(&self, node: &str, line: &str) -> Option<Value> {
        let ask = || -> std::io::Result<Vec<u8>> {
            let mut stream = UnixStream::connect("/run/meshd/meshd.sock")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(format!("{line}\n").as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = self.lab.node(node).ok()?.run(ask).ok()?.ok()?;
        serde_json::from_slice(&answer).ok()
    }

    /// Waits until the status of a node meets a condition; returns how long that took.
    ///
    /// # Panics
    ///
    /// If it does not in time, with the last status.
    #[track_caller]
    pub fn wait(
        &self,
        node: &str,
        what: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Duration {
        let since = Instant::now();
        loop {
            let status = self.status(node);
            if status.as_ref().is_some_and(&wanted) {
                return since.elapsed();
            }
            if since.elapsed() > within {
                let log = self.daemons.get(node).and_then(|daemon| daemon.log().ok()).unwrap_or_default();
                let from = log.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
                panic!(
                    "{node}: {what}: not within {within:?}\nstatus: {:#}\nlog: {}",
                    status.unwrap_or_default(),
                    &log[from..]
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until every node with a daemon is ready and has all others as peers.
    #[track_caller]
    pub fn wait_formed(&self) {
        let peers = self.daemons.len() - 1;
        for node in self.daemons.keys() {
            self.wait(node, "the mesh has formed", FORMED_WITHIN, |status| is_formed(status, peers));
        }
    }

    /// Waits until every node with a daemon has proven its preshared keys with all others on both slots. Until then
    /// peers are removed from devices and added again, and the active slot changes.
    #[track_caller]
    pub fn wait_proven(&self) {
        for node in self.daemons.keys() {
            self.wait(node, "every preshared key is proven", PROVEN_WITHIN, |status| {
                is_proven(status)
                    && status["rotation"]["step"] == "steady"
                    && status["rotation"]["busy"] == false
            });
        }
    }

    /// Waits until every preshared key of nodes that have not rotated yet is proven and every pair sends on slot a. The first
    /// agreement moves them from slot to slot.
    pub fn wait_settled(&self) {
        self.wait_proven();
        for node in self.daemons.keys() {
            self.wait(node, "every pair sends on slot a", PROVEN_WITHIN, |status| {
                status["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["active"] == "a"))
            });
        }
    }

    /// Names of all nodes, in the order of their numbers.
    pub fn node_names(&self) -> Vec<String> {
        self.lab.nodes().iter().map(|node| node.name().to_owned()).collect()
    }

    /// Creates pods of these names on every node.
    pub fn pods(&self, names: &[&str]) -> Result<Vec<Pod<'_>>, Error> {
        let nodes = self.lab.nodes().iter();
        nodes.flat_map(|node| names.iter().map(move |name| node.pod(name))).collect()
    }

    /// All pods and all nodes as ends of flows.
    pub fn ends(&self) -> Vec<NamedEnd> {
        let mut ends = Vec::new();
        for node in self.lab.nodes() {
            let owner = Some(node.name().to_owned());
            let name = node.name().to_owned();
            let mesh = node.pod_ranges().iter().map(|range| first_usable(*range)).collect();
            ends.push(NamedEnd { name, node: owner.clone(), is_pod: false, end: node.end(), mesh });
            for pod in node.pods() {
                let name = format!("{}/{}", node.name(), pod.name());
                ends.push(NamedEnd {
                    name,
                    node: owner.clone(),
                    is_pod: true,
                    end: pod.end(),
                    mesh: Vec::new(),
                });
            }
        }
        ends
    }
}

impl Deref for Mesh {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for Mesh {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

/// Whether a status says that every peer's preshared key is proven on both slots.
pub fn is_proven(status: &Value) -> bool {
    let proven =
        |peer: &Value| ["a", "b"].iter().all(|slot| peer["slots"][slot]["pq"]["protection"] == "proven");
    status["peers"].as_array().is_some_and(|peers| peers.iter().all(proven))
}

/// Whether a status says that the node is ready, published, and has so many peers with an endpoint.
pub fn is_formed(status: &Value, peers: usize) -> bool {
    status["ready"] == true
        && status["api"]["published"] == true
        && status["peers"].as_array().is_some_and(|found| found.len() == peers)
}

/// The codes of all refusals of one node in a status, sorted.
pub fn refusals(status: &Value, node: &str) -> Vec<String> {
    let rejected = status["rejected"].as_array().cloned().unwrap_or_default();
    let of_node = rejected.iter().filter(|refusal| refusal["node"] == node);
    let mut codes: Vec<String> =
        of_node.filter_map(|refusal| refusal["code"].as_str()).map(ToOwned::to_owned).collect();
    codes.sort();
    codes
}

/// The source addresses that the Kubernetes network model promises the server of a flow inside the cluster: the
/// client's own. A node that talks to a pod of its own may use its mesh address as well, which is as much its own;
/// with IPv6 the kernel prefers it, because it is closer to the pod's (RFC 6724 section 5, rule 8).
pub fn promised_sources(from: &NamedEnd, to: &NamedEnd, version: IpVersion) -> Result<Vec<IpAddr>, Error> {
    let mut promised = vec![from.end.address(version)?];
    if !from.is_pod && from.node == to.node {
        let pod = to.end.address(version)?;
        promised.extend(from.mesh.iter().filter(|address| address.is_ipv4() == pod.is_ipv4()));
    }
    Ok(promised)
}

/// One line about a flow, as reports and failures print it.
pub fn describe(from: &NamedEnd, to: &NamedEnd, version: IpVersion, protocol: flow::Protocol) -> String {
    format!("{} -> {} ({}, {})", from.name, to.name, version.as_str(), protocol.as_str())
}

fn first_usable(range: IpNetwork) -> IpAddr {
    range.iter().nth(1).unwrap_or_else(|| range.ip())
}
