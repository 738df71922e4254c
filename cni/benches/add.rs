//! How long an ADD and a DEL take compared with Debian's `ptp` with `host-local`, in one run; and those of a pod with a host
//! port, compared with `portmap` after them.
//!
//! `cargo bench -p cni --bench add` runs the plugins alternately in namespaces of its own, prints the medians
//! of every round and of all of them, writes `target/bench/cni.json`, and fails if an ADD takes more than half of
//! theirs takes. Times are those that a runtime sees: from the start of the process to its end. It needs
//! root and the package `containernetworking-plugins`. Without `--bench`, as `cargo test` calls it, it makes a
//! few calls and judges nothing.

#![expect(clippy::print_stdout, reason = "it prints its findings")]

use std::collections::BTreeSet;
use std::error::Error;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Rounds, and pairs of ADD and DEL of each plugin in a round.
const ROUNDS: usize = 7;
const PAIRS: usize = 20;
/// The largest part of their time that an ADD of ours may take.
const AT_MOST: f64 = 0.5;
/// What is compared: a name, and the host port of each pod.
const CASES: [(&str, Option<u16>); 2] = [("without ports", None), ("with a host port", Some(8080))];
/// Where Debian puts the plugins.
const THEIR_DIR: &str = "/usr/lib/cni";
/// Set once the process is in its own namespaces.
const INSIDE: &str = "CNI_BENCH_INSIDE";

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<ExitCode> {
    let judge = std::env::args().any(|argument| argument == "--bench");
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--net", "--mount", "--propagation=private"]).arg(std::env::current_exe()?);
        return Err(again.args(judge.then_some("--bench")).env(INSIDE, "1").exec().into());
    }
    let (rounds, pairs) = if judge { (ROUNDS, PAIRS) } else { (1, 2) };
    let directory = tempfile::tempdir()?;
    prepare(directory.path())?;
    let mut rows = Vec::new();
    for (case, port) in CASES {
        let contenders = contenders(directory.path(), port);
        println!("{case}: {pairs} ADD and DEL a round, medians in ms");
        rows.extend(report(case, port.is_some(), &compare(&contenders, rounds, pairs)?));
    }
    if !judge {
        return Ok(ExitCode::SUCCESS);
    }
    let path = write(&json!({"rows": rows}))?;
    println!("written to {}", path.display());
    let mut outcome = ExitCode::SUCCESS;
    for row in &rows {
        let (ratio, at_most) = (row["ratio"].as_f64().unwrap_or(f64::MAX), row["at_most"].as_f64());
        if let Some(at_most) = at_most.filter(|at_most| ratio > *at_most) {
            println!("{} takes {ratio:.2} of theirs: expected at most {at_most}", row["name"]);
            outcome = ExitCode::FAILURE;
        }
    }
    Ok(outcome)
}

/// Runs both alternately.
fn compare([ours, theirs]: &[Network; 2], rounds: usize, pairs: usize) -> Outcome<[Times; 2]> {
    let mut all = [Times::default(), Times::default()];
    println!("round  ADD ours  theirs  ratio   DEL ours  theirs  ratio");
    for round in 1..=rounds {
        let mut times = [Times::default(), Times::default()];
        for number in 0..pairs {
            for (network, times) in [ours, theirs].into_iter().zip(&mut times) {
                let container = format!("bench-{round}-{number}");
                let (added, result) = network.add(&container)?;
                times.add.push(added);
                times.del.push(network.del(&container, &result)?);
            }
        }
        row(&round.to_string(), &times);
        for (all, times) in all.iter_mut().zip(times) {
            all.add.extend(times.add);
            all.del.extend(times.del);
        }
    }
    row("all", &all);
    Ok(all)
}

/// Plugins that a runtime calls one after the other.
struct Network {
    plugins: Vec<Plugin>,
}

impl Network {
    /// Attaches a container; how long that took, and the result.
    fn add(&self, container: &str) -> Outcome<(Duration, Value)> {
        let (mut took, mut result) = (Duration::ZERO, Value::Null);
        for plugin in &self.plugins {
            let (more, output) = plugin.call("ADD", container, &result)?;
            took += more;
            result = serde_json::from_slice(&output)?;
        }
        Ok((took, result))
    }

    /// Detaches a container; how long that took.
    fn del(&self, container: &str, result: &Value) -> Outcome<Duration> {
        let mut took = Duration::ZERO;
        for plugin in self.plugins.iter().rev() {
            took += plugin.call("DEL", container, result)?.0;
        }
        Ok(took)
    }
}

/// A plugin with what it is called with.
struct Plugin {
    binary: PathBuf,
    conf: Value,
    netns: PathBuf,
}

impl Plugin {
    /// Performs one call that must succeed; returns how long it took, and what was printed. `previous` is the result so far.
    fn call(&self, command: &str, container: &str, previous: &Value) -> Outcome<(Duration, Vec<u8>)> {
        let mut conf = self.conf.clone();
        if !previous.is_null() {
            conf["prevResult"] = previous.clone();
        }
        let conf = conf.to_string();
        let since = Instant::now();
        let mut child = Command::new(&self.binary)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", &self.netns)
            .env("CNI_PATH", THEIR_DIR)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.binary.display()))?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(conf.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let took = since.elapsed();
        if output.status.success() {
            return Ok((took, output.stdout));
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        Err(format!("{} {command}: {said}", self.binary.display()).into())
    }
}

/// What both need: namespaces, the node file and the guard.
fn prepare(directory: &Path) -> Outcome<()> {
    // The names of namespaces are this process's own.
    sh("mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up")?;
    sh("ip netns add ours && ip netns add theirs && sysctl -qw net.ipv4.ip_forward=1")?;
    let node_file = directory.join("node.json");
    let node = cni::node_file::NodeFile {
        ready: true,
        reason: None,
        guard: true,
        cluster_cidrs: ["10.244.0.0/16".parse()?, "fd00:10:244::/48".parse()?].into(),
        service_cidrs: ["10.96.0.0/16".parse()?].into(),
        own_ports: BTreeSet::new(),
        mesh_links: ["mesh-a".parse()?, "mesh-b".parse()?].into(),
        pod_cidrs: vec!["10.244.1.0/24".parse()?],
        mesh_addresses: vec!["10.244.1.1".parse()?],
        source: None,
        mtu: 1400,
    };
    std::fs::write(&node_file, node.render())?;
    // The plugin looks for it, whoever runs.
    linux::guard::set(&plan::network::Guard {
        cluster: node.cluster_cidrs.clone(),
        mesh_links: node.mesh_links.clone(),
        local_pods: node.pod_cidrs.iter().copied().collect(),
        ..plan::network::Guard::default()
    })?;
    Ok(())
}

/// Both networks, ready to be called: one IPv4 address a pod, the same MTU, state on the same disk; with a host port if
/// there is one.
fn contenders(directory: &Path, port: Option<u16>) -> [Network; 2] {
    let ports = port.map(|port| json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]));
    let mut ours = json!({
        "cniVersion": "1.0.0", "name": "meshd", "type": "mesh-cni",
        "nodeFile": directory.join("node.json"), "stateDir": directory.join("ours"),
    });
    if let Some(ports) = &ports {
        ours["runtimeConfig"] = json!({"portMappings": ports});
    }
    let theirs = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "ptp", "mtu": 1400,
        "ipam": {
            "type": "host-local", "subnet": "10.245.1.0/24",
            "routes": [{"dst": "0.0.0.0/0"}], "dataDir": directory.join("theirs"),
        },
    });
    let plugin = |binary: PathBuf, conf: Value, netns: &str| Plugin {
        binary,
        conf,
        netns: Path::new("/run/netns").join(netns),
    };
    let ours = plugin(env!("CARGO_BIN_EXE_mesh-cni").into(), ours, "ours");
    let mut chain = vec![plugin(Path::new(THEIR_DIR).join("ptp"), theirs, "theirs")];
    if let Some(ports) = ports {
        let portmap = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": "portmap", "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": ports},
        });
        chain.push(plugin(Path::new(THEIR_DIR).join("portmap"), portmap, "theirs"));
    }
    [Network { plugins: vec![ours] }, Network { plugins: chain }]
}

/// How long calls took.
#[derive(Default)]
struct Times {
    add: Vec<Duration>,
    del: Vec<Duration>,
}

/// The median in milliseconds.
fn median(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn row(name: &str, [ours, theirs]: &[Times; 2]) {
    let columns = |ours: &[Duration], theirs: &[Duration]| {
        let (ours, theirs) = (median(ours), median(theirs));
        format!("{ours:>8.2}{theirs:>8.2}{:>7.2}", ours / theirs)
    };
    println!("{name:>5}  {}   {}", columns(&ours.add, &theirs.add), columns(&ours.del, &theirs.del));
}

/// Rows for the report. DEL has no limit: nearly all of it is the kernel taking a link away.
fn report(case: &str, with_port: bool, [ours, theirs]: &[Times; 2]) -> [Value; 2] {
    let peer = if with_port { "ptp + host-local + portmap" } else { "ptp + host-local" };
    let row = |command: &str, ours: &[Duration], theirs: &[Duration], at_most: Option<f64>| {
        let (ours, theirs) = (median(ours), median(theirs));
        json!({
            "name": format!("CNI {command}, {case}"), "unit": "ms", "ours": ours, "theirs": theirs, "peer": peer,
            "ratio": ours / theirs, "at_most": at_most, "better": "lower",
        })
    };
    [row("ADD", &ours.add, &theirs.add, Some(AT_MOST)), row("DEL", &ours.del, &theirs.del, None)]
}

/// Writes the report into the build's directory, in which the binary lies one level down.
fn write(report: &Value) -> Outcome<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_mesh-cni")).ancestors().nth(2).ok_or("no target directory")?;
    std::fs::create_dir_all(target.join("bench"))?;
    let path = target.join("bench/cni.json");
    std::fs::write(&path, format!("{report:#}\n"))?;
    Ok(path)
}

fn sh(line: &str) -> Outcome<()> {
    let status = Command::new("sh").args(["-ec", line]).status()?;
    if status.success() { Ok(()) } else { Err(format!("{line}: {status}").into()) }
}
