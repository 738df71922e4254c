//! The lab of a run: nodes, pods, traffic between all of them, and how it is judged.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::mesh::{self, Mesh};
use lab::nat::{Nat, Site};
use lab::{ApiKind, Capture, Inventory, IpVersion, Lab, Node, Signal, Stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Failure;
use crate::schedule::{Network, SITES};

/// The node that may relay.
const RELAY_NODE: &str = "n1";
/// Datagrams a second from each pod to each other.
const RATE: u32 = 20;
/// Rotations take seconds; the conditions are the same.
const FLAGS: [&str; 4] = ["--rotation-drain", "500ms", "--rotation-timeout", "20s"];
/// How long all traffic has to pass to count as converged.
const STEADY: Duration = Duration::from_secs(2);

/// A mesh with a pod on each node, and a stream between every two pods in each direction.
pub(crate) struct Cluster {
    // Before the mesh: streams and captures use its namespaces.
    pub(crate) streams: Vec<((String, String), Stream)>,
    pub(crate) capture: Capture,
    pub(crate) mesh: Mesh,
    /// What each node's network was before the daemons.
    before: Vec<(String, String)>,
}

/// What the traffic saw.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) longest_silence: Duration,
}

impl Cluster {
    /// Builds the lab, starts the daemons, waits until all traffic passes.
    pub(crate) fn start(network: Network) -> Result<Self, Failure> {
        let builder = Lab::builder().api(ApiKind::Fake);
        let lab = match network {
            Network::Switch => builder.nodes(network.nodes()).build()?,
            Network::Sites => builder.sites(sites()?).build()?,
        };
        let capture = lab.capture()?;
        let mut mesh = Mesh::idle(lab);
        let before = mesh.nodes().iter().map(|node| Ok((node.name().to_owned(), Inventory::network(node)?)));
        let before = before.collect::<Result<Vec<_>, Failure>>()?;
        mesh.set_relay(RELAY_NODE, true)?;
        for name in mesh.node_names() {
            start(&mut mesh, &name)?;
        }
        for node in mesh.nodes() {
            node.wait_network(mesh::FORMED_WITHIN)?;
        }
        let pods = mesh.pods(&["a"])?;
        let mut streams = Vec::new();
        for from in &pods {
            for to in pods.iter().filter(|to| to.node().name() != from.node().name()) {
                let pair = (from.node().name().to_owned(), to.node().name().to_owned());
                // IPv6 pods are another half of the pairs where there are any.
                let six = to.addresses().len() > 1 && from.node().number() < to.node().number();
                let version = if six { IpVersion::V6 } else { IpVersion::V4 };
                streams.push((pair, Stream::start(&from.end(), &to.end(), version, RATE)?));
            }
        }
        drop(pods);
        let cluster = Self { streams, capture, mesh, before };
        match cluster.converge(2 * mesh::FORMED_WITHIN) {
            Ok(_) => Ok(cluster),
            Err(missing) => Err(format!("before any fault: {missing}").into()),
        }
    }

    /// Frames with a pod's address outside WireGuard, on any link, so far; fails if the capture missed frames.
    pub(crate) fn leaks(&self) -> (u64, u64) {
        let seen = self.capture.report();
        (seen.pod_addresses(), seen.dropped)
    }

    /// Waits until all pairs exchange packets without a loss for some time and all daemons say that all is well; says how
    /// long that took, or what is missing.
    pub(crate) fn converge(&self, within: Duration) -> Result<Duration, String> {
        let since = Instant::now();
        loop {
            let at = since.elapsed();
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(at);
            }
            if since.elapsed() > within {
                return Err(missing.join("; "));
            }
        }
    }

    /// Which pairs lose packets within the next seconds, and what daemons say is not well.
    fn missing(&self) -> Vec<String> {
        let count = || self.streams.iter().map(|(_, stream)| stream.arrived()).collect::<Vec<_>>();
        let before = count();
        std::thread::sleep(STEADY);
        let wanted = u64::from(RATE) * STEADY.as_secs() * 9 / 10;
        let pairs = self.streams.iter().zip(before.into_iter().zip(count()));
        let silent: Vec<_> = pairs
            .filter(|(_, (before, after))| after - before < wanted)
            .map(|(((from, to), _), (before, after))| {
                format!("{from} to {to}: {} of {} packets", after - before, wanted * 10 / 9)
            })
            .collect();
        let names = self.mesh.node_names();
        let complaints = names.iter().filter_map(|name| match self.mesh.status(name) {
            None => Some(format!("{name}: no status")),
            Some(status) => complaint(&status, names.len() - 1).map(|what| format!("{name}: {what}")),
        });
        silent.into_iter().chain(complaints).collect()
    }

    /// Pods that no longer have what they were given: each must pass CHECK, and new pods must get addresses of their own.
    pub(crate) fn lost_addresses(&self) -> Vec<String> {
        let mut lost = Vec::new();
        let mut seen = BTreeSet::new();
        for node in self.mesh.nodes() {
            if let Err(error) = node.pod("new") {
                lost.push(format!("{}/new: {}", node.name(), lab::chain(&error)));
            }
            for pod in node.pods() {
                let name = format!("{}/{}", node.name(), pod.name());
                if let Err(error) = pod.check() {
                    lost.push(format!("{name}: {}", lab::chain(&error)));
                }
                let twice = pod.addresses().iter().filter(|address| !seen.insert(**address));
                lost.extend(twice.map(|address| format!("{name}: {address} is another pod's")));
            }
        }
        lost
    }

    /// Copies the logs of all daemons, and what they say of themselves, to a directory.
    pub(crate) fn keep_logs(&self, directory: &Path) -> Result<(), Failure> {
        std::fs::create_dir_all(directory)?;
        for entry in std::fs::read_dir(self.mesh.dir())? {
            let entry = entry?;
            std::fs::copy(entry.path(), directory.join(entry.file_name()))?;
        }
        for name in self.mesh.node_names() {
            let status = self.mesh.status(&name).unwrap_or_default();
            std::fs::write(directory.join(format!("{name}.json")), serde_json::to_string_pretty(&status)?)?;
            let network = Inventory::network(self.mesh.node(&name)?)?;
            std::fs::write(directory.join(format!("{name}.network")), network)?;
        }
        Ok(())
    }

    /// Ends traffic and daemons, uninstalls; says what the traffic saw and what is left on the nodes that was not there before.
    pub(crate) fn stop(self) -> Result<(Traffic, Vec<String>), Failure> {
        let Self { streams, capture, mut mesh, before } = self;
        let mut traffic = Traffic::default();
        for (_, stream) in streams {
            let report = stream.stop();
            traffic.sent += report.sent;
            traffic.lost += report.lost - report.overflowed;
            traffic.duplicated += report.duplicated;
            traffic.longest_silence = traffic.longest_silence.max(report.longest_silence);
        }
        drop(capture);
        let mut left = Vec::new();
        for (name, before) in before {
            mesh.stop(&name, Signal::TERM)?;
            let node = mesh.node(&name)?;
            node.pods().into_iter().try_for_each(lab::Pod::delete)?;
            uninstall(&mesh, node)?;
            let after = Inventory::network(node)?;
            let known: BTreeSet<&str> = before.lines().collect();
            // A link-local address appears once a duplicate has been searched for.
            let new = after.lines().filter(|line| !known.contains(line) && !line.contains("fe80:"));
            left.extend(new.map(|line| format!("{name}: {}", line.trim())));
        }
        Ok((traffic, left))
    }
}

/// Starts a node's daemon.
pub(crate) fn start(mesh: &mut Mesh, node: &str) -> Result<(), Failure> {
    Ok(mesh.start_with(node, &FLAGS)?)
}

/// Creates a Node object again, with the label that it had.
pub(crate) fn register(mesh: &Mesh, node: &str) -> Result<(), Failure> {
    mesh.register(mesh.node(node)?)?;
    if node == RELAY_NODE {
        mesh.set_relay(RELAY_NODE, true)?;
    }
    Ok(())
}

/// A site gets another public address, or each of its nodes does, and a cloud's controller tells the API server if it can.
pub(crate) fn renumber(mesh: &Mesh, site: &str) -> Result<(), Failure> {
    if !site.starts_with("cloud") {
        return Ok(mesh.backbone().renumber(site)?);
    }
    let numbers = SITES.iter().find(|(name, _)| *name == site).map(|(_, nodes)| *nodes).unwrap_or_default();
    for number in numbers {
        let node = mesh.node(&format!("n{number}"))?;
        mesh.backbone().renumber_public(node)?;
        // Told when the API server is there again.
        let _told_later = mesh.report_addresses(node);
    }
    Ok(())
}

fn sites() -> Result<Vec<Site>, Failure> {
    let cloud = Nat::OneToOne(vec![51840..=51841, 24000..=28095]);
    let kinds = [
        (cloud.clone(), "172.31.0.0/20"),
        (cloud, "10.128.0.0/20"),
        (Nat::Home, "192.168.1.0/24"),
        (Nat::Symmetric, "10.20.0.0/24"),
    ];
    let all = SITES.iter().zip(kinds);
    all.map(|((name, nodes), (nat, lan))| Ok(Site::new(name, nat, lan.parse()?, nodes))).collect()
}

/// What is not well with a node by its own status.
fn complaint(status: &Value, peers: usize) -> Option<String> {
    let all = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if status["ready"] != true || status["api"]["published"] != true || status["api"]["listed"] != true {
        return Some(format!("ready {}, api {}", status["ready"], status["api"]));
    }
    if all.len() != peers {
        return Some(format!("{} of {peers} peers", all.len()));
    }
    if let Some(down) = all.iter().find(|peer| peer["state"] == "down") {
        return Some(format!("{} is down", down["node"]));
    }
    if status["pending"].as_array().is_some_and(|pending| !pending.is_empty()) {
        return Some(format!("pending {}", status["pending"]));
    }
    (status["rotation"]["step"] != "steady" || status["rotation"]["busy"] != false)
        .then(|| format!("rotation {}", status["rotation"]))
}

fn uninstall(mesh: &Mesh, node: &Node) -> Result<(), Failure> {
    let command = node.command(lab::bin("meshd")?).arg("uninstall").arg("--purge-audit");
    Ok(command.args(mesh.arguments(node.name(), &[])).run().map(drop)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_with_all_peers_and_nothing_to_do_is_well() {
        let well = json!({
            "ready": true,
            "api": {"published": true, "listed": true},
            "peers": [{"node": "n2", "state": "up"}, {"node": "n3", "state": "idle"}],
            "pending": [],
            "rotation": {"step": "steady", "busy": false},
        });
        assert_eq!(complaint(&well, 2), None);
        let with = |key: &str, value: Value| {
            let mut status = well.clone();
            status[key] = value;
            complaint(&status, 2)
        };
        assert!(complaint(&well, 3).is_some());
        assert!(with("ready", json!(false)).is_some());
        assert!(with("api", json!({"published": true, "listed": false})).is_some());
        assert!(
            with("peers", json!([{"node": "n2", "state": "down"}, {"node": "n3", "state": "up"}])).is_some()
        );
        assert!(with("pending", json!(["+ route"])).is_some());
        assert!(with("rotation", json!({"step": "moving", "busy": false})).is_some());
    }
}
