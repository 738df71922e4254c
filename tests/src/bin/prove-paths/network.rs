//! Seven nodes on five networks, and the mesh that runs there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::nat::{Nat, Site};
use lab::{ApiKind, Lab};
use serde_json::{Value, json};

use crate::Failure;

/// Annotation by which an operator prescribes an endpoint.
const ENDPOINT: &str = "config.meshd.dev/endpoint";

/// How the program was asked to run, by variables of the environment.
pub(crate) struct Settings {
    /// `QUICK=1`: shorter measurements.
    pub(crate) quick: bool,
    /// `BACKEND`: as the daemon's option, or `mixed`: `kernel` on nodes with odd numbers, `userspace` on the others. The
    /// kernel's is there in an emulated machine only, where times say nothing.
    pub(crate) backend: String,
    /// `PQ`: as the daemon's option.
    pub(crate) pq: String,
    /// `CARRIER=1`: the second home is behind a carrier's NAT as well.
    pub(crate) carrier: bool,
    /// `HELP=1`: an operator annotates the clouds' nodes with their public addresses and tells the others that they are
    /// behind NAT. Shows that the lab lets through what it should.
    pub(crate) help: bool,
    /// `LOGS`: a directory for the daemons' logs, which stay there.
    logs: Option<PathBuf>,
    /// `ONLY`: names of the scenarios to run, separated by commas; all if there are none.
    only: Vec<String>,
}

impl Settings {
    pub(crate) fn from_environment() -> Self {
        let read = |name: &str| std::env::var(name).unwrap_or_default();
        let or = |value: String, default: &str| if value.is_empty() { default.to_owned() } else { value };
        Self {
            quick: read("QUICK") == "1",
            backend: or(read("BACKEND"), "userspace"),
            pq: or(read("PQ"), "prefer"),
            carrier: read("CARRIER") == "1",
            help: read("HELP") == "1",
            logs: std::env::var_os("LOGS").filter(|logs| !logs.is_empty()).map(PathBuf::from),
            only: read("ONLY").split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect(),
        }
    }

    /// Whether a scenario is to be run.
    pub(crate) fn runs(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == scenario)
    }

    /// How long something may be waited for.
    pub(crate) fn patience(&self, time: Duration) -> Duration {
        if self.is_emulated() { 12 * time } else { time }
    }

    /// Time between two echoes of a pair.
    pub(crate) fn period(&self) -> Duration {
        Duration::from_millis(if self.is_emulated() { 400 } else { 100 })
    }

    /// Packets a second each way, and bytes a second of a TCP connection, under which a path is moved: what an emulated machine
    /// can carry through three NATs and a relay there.
    pub(crate) fn load(&self) -> (u32, u32) {
        if self.is_emulated() { (50, 20_000) } else { (1_000, 500_000) }
    }

    /// Time between two questions to all daemons.
    pub(crate) fn look_period(&self) -> Duration {
        Duration::from_millis(if self.is_emulated() { 5_000 } else { 200 })
    }

    /// Whether something that took this long met its goal.
    pub(crate) fn in_time(&self, time: Duration, goal: Duration) -> bool {
        time <= goal || self.is_emulated()
    }

    /// Whether it runs in an emulated machine, where times and CPU say nothing.
    pub(crate) fn is_emulated(&self) -> bool {
        self.backend != "userspace"
    }
}

/// The main lab: `home1` has two nodes, `home2` one. Both homes have the same private range.
pub(crate) fn seven_nodes(carrier: bool) -> Result<Vec<Site>, Failure> {
    let mut sites = vec![
        cloud("cloudA", "172.31.0.0/20", &[1, 2])?,
        cloud("cloudB", "10.128.0.0/20", &[3])?,
        Site::new("home1", Nat::Home, "192.168.1.0/24".parse()?, &[4, 5]),
    ];
    let home2 = Site::new("home2", Nat::Home, "192.168.1.0/24".parse()?, &[6]);
    if carrier {
        sites.push(Site::new("carrier", Nat::Home, "100.64.0.0/16".parse()?, &[]));
        sites.push(home2.behind("carrier"));
    } else {
        sites.push(home2);
    }
    sites.push(Site::new("office", Nat::Symmetric, "10.20.0.0/24".parse()?, &[7]));
    Ok(sites)
}

/// A smaller lab, in which nodes join: n1 and n2 in clouds, n3 in a home, n4 behind a symmetric NAT.
pub(crate) fn four_nodes() -> Result<Vec<Site>, Failure> {
    Ok(vec![
        cloud("cloudA", "172.31.0.0/20", &[1])?,
        cloud("cloudB", "10.128.0.0/20", &[2])?,
        Site::new("home", Nat::Home, "192.168.1.0/24".parse()?, &[3]),
        Site::new("office", Nat::Symmetric, "10.20.0.0/24".parse()?, &[4]),
    ])
}

/// 1:1 NAT with a security group that has the ports of both slots and of relays.
fn cloud(name: &str, lan: &str, nodes: &[u8]) -> Result<Site, Failure> {
    Ok(Site::new(name, Nat::OneToOne(vec![51840..=51841, 24000..=28095]), lan.parse()?, nodes))
}

/// A site's name, and what its router does.
pub(crate) fn describe(site: &Site) -> String {
    let nat = match site.nat() {
        Nat::OneToOne(_) => "1:1 NAT",
        Nat::Symmetric => "symmetric",
        _ => "NAT",
    };
    format!("{}, {nat}", site.name())
}

/// A mesh without running daemons on such a network, in which one node may relay.
pub(crate) fn mesh(sites: Vec<Site>, settings: &Settings, logs_in: &str) -> Result<Mesh, Failure> {
    let mut lab = Lab::builder().sites(sites).api(ApiKind::Fake);
    if let Some(logs) = &settings.logs {
        lab = lab.dir(logs.join(logs_in));
    }
    let mesh = Mesh::idle(lab.build()?);
    mesh.set_relay("n1", true)?;
    Ok(mesh)
}

/// Starts the daemon of a node.
pub(crate) fn start(mesh: &mut Mesh, node: &str, settings: &Settings) -> Result<(), Failure> {
    let backend = match settings.backend.as_str() {
        "mixed" if mesh.node(node)?.number() % 2 == 1 => "kernel",
        "mixed" => "userspace",
        backend => backend,
    };
    let mut flags = vec!["--backend", backend, "--pq", &settings.pq];
    if settings.help {
        match mesh.node(node)?.external_addresses().first() {
            Some(address) => {
                let annotations = json!({ENDPOINT: address});
                mesh.api().patch_node(node, &json!({"metadata": {"annotations": annotations}}))?;
            }
            None => flags.extend(["--nat", "true"]),
        }
    }
    Ok(mesh.start_with(node, &flags)?)
}

/// What a node's daemon says about its path to another node, of the peer or of the slot that it sends on, if it says
/// anything: the kind of the path, and the relay as in `relayed via n1`.
pub(crate) fn path(status: &Value, to: &str) -> Option<String> {
    let peer = status["peers"].as_array()?.iter().find(|peer| peer["node"] == to)?;
    let of_slot = peer["active"].as_str().map(|slot| &peer["slots"][slot]["path"]);
    let path = [Some(&peer["path"]), of_slot].into_iter().flatten().find(|path| !path.is_null())?;
    match (path.as_str(), path["kind"].as_str(), path["via"].as_str()) {
        (Some(text), _, _) => Some(text.to_owned()),
        (None, Some(kind), Some(via)) => Some(format!("{kind} via {via}")),
        (None, kind, _) => kind.map(ToOwned::to_owned),
    }
}

/// Whether a path of this kind leads to the peer without another node in between.
pub(crate) fn is_direct(path: &str) -> bool {
    ["prescribed", "named", "link", "site", "global", "external", "punched", "private"].contains(&path)
}

/// The node that relays, of a path that is relayed.
pub(crate) fn relay_of(path: &str) -> Option<&str> {
    path.strip_prefix("relayed via ")
}

/// Polls until a condition holds; says when it did.
pub(crate) fn wait(within: Duration, mut holds: impl FnMut() -> bool) -> Option<Duration> {
    let since = Instant::now();
    while since.elapsed() < within {
        if holds() {
            return Some(since.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_the_peer_or_from_its_active_slot() {
        let said = |peer: Value| path(&json!({"peers": [peer]}), "n2");
        assert_eq!(said(json!({"node": "n2", "path": "relayed via n1"})).as_deref(), Some("relayed via n1"));
        let slots =
            json!({"a": {"path": {"kind": "punched"}}, "b": {"path": {"kind": "relayed", "via": "n1"}}});
        assert_eq!(said(json!({"node": "n2", "active": "a", "slots": slots})).as_deref(), Some("punched"));
        assert_eq!(
            said(json!({"node": "n2", "active": "b", "slots": slots})).as_deref(),
            Some("relayed via n1")
        );
        assert_eq!(said(json!({"node": "n2", "active": "a", "slots": {"a": {}}})), None);
        assert_eq!(said(json!({"node": "n3", "path": "link"})), None);
        assert_eq!(relay_of("relayed via n1"), Some("n1"));
        assert!(is_direct("punched") && !is_direct("relayed via n1") && !is_direct("searching"));
    }
}
