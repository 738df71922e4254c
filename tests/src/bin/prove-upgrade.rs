//! `make test-upgrade`: nodes move from an earlier version of the daemon to this one, one after another, while all pairs
//! of pods send to each other, and every packet is counted.
//!
//! ```text
//! prove-upgrade DIRECTORY BACKEND    the earlier version's meshd and mesh-cni are in DIRECTORY; kernel or userspace
//! ```
//!
//! A mesh is upgraded twice, in opposite orders of its nodes: which node of a pair begins an exchange depends on that.
//! In each mixture of versions the keys of one node of each version are rotated. The first node also goes back to the
//! earlier version once, while all others still run that.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::{self, Mesh};
use lab::stream::StreamReport;
use lab::{IpVersion, Lab, Node, Signal, Stream, sandbox};

/// Nodes with userspace engines, and with the kernel's backend, which is tested under emulation.
const NODES: (u8, u8) = (3, 2);
/// A shorter idle time, so that a rotation takes seconds; the conditions are the same.
const QUICK: [&str; 2] = ["--rotation-drain", "500ms"];
/// What a daemon needs that is to accept peers of version 0.1; given only to versions that know it.
const ACCEPT: &str = "accept-unproven";
/// Timeout of steps that are not measured.
const WITHIN: Duration = Duration::from_mins(5);
/// How long a userspace engine may interrupt traffic while its daemon is replaced.
const INTERRUPTION: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    // Before anything else: a process with threads can't change its namespaces.
    let proved = sandbox::enter().map_err(Into::into).and_then(|_| prove());
    match proved {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("\nprove-upgrade: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn prove() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, backend] = &arguments[..] else {
        return Err("usage: prove-upgrade DIRECTORY kernel|userspace".into());
    };
    let since = Instant::now();
    let nodes = if backend == "kernel" { NODES.1 } else { NODES.0 };
    let names: Vec<String> = (1..=nodes).map(|number| format!("n{number}")).collect();
    let backwards: Vec<String> = names.iter().rev().cloned().collect();
    let mut counts = Counts::default();
    for order in [&names, &backwards] {
        say(&format!(
            "\nfrom {directory} to this version, backend {backend}, in the order {}",
            order.join(", ")
        ));
        let mut upgrade = Upgrade::start(nodes, PathBuf::from(directory), backend, since)?;
        upgrade.run(order)?;
        counts.add(&upgrade.counts);
    }
    let Counts { sent, lost, interruption, encrypted } = counts;
    say(&format!(
        "\nbackend {backend}: {sent} packets sent, {lost} lost while a daemon was replaced (longest interruption \
         {} ms), 0 at other times; {encrypted} captured, 0 unencrypted",
        interruption.as_millis()
    ));
    Ok(())
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    sent: u64,
    lost: u64,
    interruption: Duration,
    encrypted: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.interruption = self.interruption.max(other.interruption);
        self.encrypted += other.encrypted;
    }
}

/// One version of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Earlier,
    This,
}

/// A mesh that is being upgraded.
struct Upgrade {
    mesh: Mesh,
    capture: lab::Capture,
    earlier: PathBuf,
    backend: String,
    /// Flags that only this version knows.
    accept: Vec<String>,
    /// Whether this version's daemons own the table of their guard, as they do by default.
    owning: bool,
    since: Instant,
    counts: Counts,
}

impl Upgrade {
    /// A mesh in which every node runs the earlier version.
    fn start(nodes: u8, earlier: PathBuf, backend: &str, since: Instant) -> Result<Self, Failure> {
        let options = Command::new(lab::bin("meshd")?).arg("options").output()?;
        let known = String::from_utf8_lossy(&options.stdout).contains(&format!("| `{ACCEPT}` |"));
        let accept = if known { vec![format!("--{ACCEPT}"), "true".to_owned()] } else { Vec::new() };
        let lab = Lab::builder().nodes(nodes).build()?;
        let capture = lab.capture()?;
        let mesh = Mesh::idle(lab);
        let backend = backend.to_owned();
        let counts = Counts::default();
        let mut upgrade = Self { mesh, capture, earlier, backend, accept, owning: true, since, counts };
        for node in upgrade.mesh.node_names() {
            upgrade.start_node(&node, Version::Earlier)?;
        }
        upgrade.settle();
        upgrade.mesh.pods(&["a"])?;
        upgrade.step("all nodes run the earlier version");
        Ok(upgrade)
    }

    fn run(&mut self, order: &[String]) -> Result<(), Failure> {
        let first = &order[0];
        // Version 0.1 can't replace a table that had an owner (docs/upgrade.md, "Going back").
        self.owning = false;
        self.replace(first, Version::This)?;
        self.replace(first, Version::Earlier)?;
        self.owning = true;
        for (at, node) in order.iter().enumerate() {
            self.replace(node, Version::This)?;
            // One node of each version.
            let upgraded = order.get(at).into_iter();
            self.rotate(&upgraded.chain(order.get(at + 1)).map(String::as_str).collect::<Vec<_>>())?;
        }
        self.capture.report().assert_sealed();
        self.counts.encrypted = self.capture.report().wireguard();
        Ok(())
    }

    /// Replaces the daemon of a node. With the kernel's backend nothing may be lost; with the engine only what that node
    /// sends and receives, for a short time.
    fn replace(&mut self, node: &str, version: Version) -> Result<(), Failure> {
        let streams = self.streams()?;
        thread::sleep(Duration::from_millis(500));
        self.mesh.stop(node, Signal::TERM)?;
        self.start_node(node, version)?;
        self.settle();
        let reports = stopped(streams);
        for (from, to, report) in &reports {
            let is_its_own = from == node || to == node;
            let lost = report.lost - report.overflowed;
            let allowed = self.backend == "userspace" && is_its_own && report.longest_silence <= INTERRUPTION;
            if (lost > 0 && !allowed) || report.received == 0 {
                return Err(format!("{version:?} on {node}: {from} to {to}: {report:?}").into());
            }
            self.counts.sent += report.sent;
            self.counts.lost += lost;
            if lost > 0 {
                self.counts.interruption = self.counts.interruption.max(report.longest_silence);
            }
        }
        let lost: u64 = reports.iter().map(|(_, _, report)| report.lost - report.overflowed).sum();
        self.step(&format!("{node} runs {}; {lost} packets lost", version.text()));
        Ok(())
    }

    /// Rotates the keys of these nodes, one after the other. Nothing may be lost.
    fn rotate(&mut self, nodes: &[&str]) -> Result<(), Failure> {
        let streams = self.streams()?;
        for node in nodes {
            let rotation = self.mesh.status(node).unwrap_or_default()["rotation"].clone();
            let wanted = rotation["finished"].as_u64().unwrap_or_default() + 1;
            self.mesh.request(node, "rotate");
            self.mesh.wait(node, "new keys", WITHIN, |status| {
                let now = &status["rotation"];
                assert_eq!(now["rolled_back"], rotation["rolled_back"], "{now:#}");
                now["step"] == "steady" && now["finished"] == wanted
            });
        }
        self.settle();
        for (from, to, report) in stopped(streams) {
            if report.lost > report.overflowed || report.duplicated > 0 || report.received < 50 {
                return Err(format!("rotation of {nodes:?}: {from} to {to}: {report:?}").into());
            }
            self.counts.sent += report.sent;
        }
        self.step(&format!("{} rotated; 0 packets lost", nodes.join(" and ")));
        Ok(())
    }

    fn start_node(&mut self, node: &str, version: Version) -> Result<(), Failure> {
        let program = match version {
            Version::Earlier => self.earlier.join("meshd"),
            Version::This => lab::bin("meshd")?,
        };
        let mut flags = QUICK.to_vec();
        flags.extend(["--backend", &self.backend]);
        if version == Version::This {
            flags.extend(self.accept.iter().map(String::as_str));
            if !self.owning {
                flags.extend(mesh::UNOWNED);
            }
        }
        Ok(self.mesh.start_program(&program, node, &flags, &[])?)
    }

    /// Waits until every node has all others as peers, and has proven its preshared keys with them.
    fn settle(&self) {
        let nodes = self.mesh.node_names();
        for node in &nodes {
            self.mesh.wait(node, "all others are peers with proven keys", WITHIN, |status| {
                mesh::is_formed(status, nodes.len() - 1)
                    && mesh::is_proven(status)
                    && status["rotation"]["step"] == "steady"
                    && status["rotation"]["busy"] == false
                    && status["rejected"].as_array().is_some_and(Vec::is_empty)
            });
        }
    }

    /// A stream in each direction between every two nodes' pods, with the names of the nodes.
    fn streams(&self) -> Result<Vec<(String, String, Stream)>, Failure> {
        let pods: Vec<_> = self.mesh.nodes().iter().flat_map(Node::pods).collect();
        let mut streams = Vec::new();
        for from in &pods {
            for to in pods.iter().filter(|to| to.node().name() != from.node().name()) {
                // Slowly enough for two engines under emulation.
                let stream = Stream::start(&from.end(), &to.end(), IpVersion::V4, 20)?;
                streams.push((from.node().name().to_owned(), to.node().name().to_owned(), stream));
            }
        }
        Ok(streams)
    }

    fn step(&self, text: &str) {
        say(&format!("[{:5.1} s] {text}", self.since.elapsed().as_secs_f32()));
    }
}

impl Version {
    const fn text(self) -> &'static str {
        match self {
            Self::Earlier => "the earlier version",
            Self::This => "this version",
        }
    }
}

/// Stops streams once what is in flight has arrived.
fn stopped(streams: Vec<(String, String, Stream)>) -> Vec<(String, String, StreamReport)> {
    thread::sleep(Duration::from_millis(500));
    streams.into_iter().map(|(from, to, stream)| (from, to, stream.stop())).collect()
}

fn say(text: &str) {
    // The terminal may be closed.
    let _ = writeln!(std::io::stdout(), "{text}");
}
