//! `make prove-cluster`: two clusters at once on this machine, the suite on both, and nothing left of either: one is deleted,
//! the other one's process is killed first. Takes some minutes.
//!
//! `prove-cluster ARGUMENTS` passes its arguments to `cluster create`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use lab::Signal;
use lab::cluster::Records;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What kubelet, containerd and kube-proxy write by default, and would on the machine if a node did not hide it.
const DIRECTORIES: [&str; 9] = [
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/kube-proxy",
    "/var/lib/meshd",
    "/var/log/pods",
    "/run/containerd",
    "/opt/containerd",
    "/opt/cni",
    "/usr/libexec/kubernetes",
];
/// Settings of the whole machine that they change by default.
const SETTINGS: [&str; 7] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/netfilter/nf_conntrack_max",
];
/// What the plugin for kubectl is asked for; all of it has to end well.
const VERBS: [&[&str]; 7] = [
    &["status", "--wait"],
    &["doctor"],
    &["peers", "-o", "wide"],
    &["keys"],
    &["netcheck"],
    &["ping", "n1", "n2", "--count", "1"],
    &["audit", "verify"],
];
/// The last processes of a killed cluster end after so long at most.
const ENDED_WITHIN: Duration = Duration::from_mins(1);

fn main() -> ExitCode {
    let since = Instant::now();
    match prove() {
        Ok(()) => {
            say(&format!("passed after {} s: nothing is left", since.elapsed().as_secs()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("FAILED: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn prove() -> Result<(), Failure> {
    let records = Records::open()?;
    let own = std::process::id();
    let ids = [format!("prove-{own}-a"), format!("prove-{own}-b")];
    let before = Footprint::of(&ids);
    let proven = with_clusters(&records, &ids);
    if proven.is_err() {
        for id in &ids {
            let _its_own_error_is_told = records.delete(id);
        }
    }
    proven?;
    let since = Instant::now();
    loop {
        let left = Footprint::of(&ids).0.symmetric_difference(&before.0).cloned().collect::<Vec<_>>();
        if left.is_empty() {
            return Ok(());
        }
        if since.elapsed() >= ENDED_WITHIN {
            return Err(format!("not as before: {}", left.join("; ")).into());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn with_clusters(records: &Records, ids: &[String; 2]) -> Result<(), Failure> {
    let program = lab::bin("cluster")?;
    let created: Vec<Result<(), Failure>> = thread::scope(|scope| {
        let creating = ids.each_ref().map(|id| {
            let mut create = Command::new(&program);
            create.args(["create", "--id", id]).args(std::env::args_os().skip(1));
            scope.spawn(move || succeed(&mut create))
        });
        let joined = creating.map(|create| match create.join() {
            Ok(created) => created,
            Err(_panic) => Err("a thread panicked".into()),
        });
        joined.into()
    });
    created.into_iter().collect::<Result<(), _>>()?;
    // Otherwise that they are missing later would say nothing.
    let during = Footprint::of(ids);
    for id in ids {
        let found =
            |kind: &str| during.0.iter().any(|trace| trace.starts_with(kind) && trace.contains(id.as_str()));
        if !found("cgroup ") || !found("process ") {
            return Err(format!("no trace of cluster {id} was found while it ran").into());
        }
    }
    // They outlive the clusters. The page of the second run shows both.
    let reports = lab::target_dir()?.join("e2e");
    let [first, second] = ["first.json", "second.json"].map(|name| reports.join(name));
    for (id, report) in ids.iter().zip([&first, &second]) {
        let mut suite = Command::new(&program);
        suite.args(["enter", "--net", "--id", id, "outside"]).arg(lab::bin("e2e")?).arg("--out").arg(report);
        suite.args(["--not-here", concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/not-here.toml")]);
        if report == &second {
            suite.arg("--with").arg(&first);
        } else if std::env::var("DISTURB").is_ok_and(|disturb| disturb == "1") {
            // Rows that restart daemons take minutes.
            suite.arg("--disturb");
        }
        succeed(&mut suite)?;
        // It asks the kubelets by way of the API server; nothing else here does that for meshd's pods.
        for verb in VERBS {
            let mut command = Command::new(lab::bin("kubectl-meshd")?);
            command.args(verb).arg("--kubeconfig").arg(records.directory(id).join("kubeconfig"));
            succeed(&mut command)?;
        }
    }
    let [deleted, killed] = ids;
    records.delete(deleted)?;
    let process = records.load(killed)?.ok_or("a cluster has no record")?.process;
    let pid =
        i32::try_from(process.pid).ok().and_then(rustix::process::Pid::from_raw).ok_or("no process id")?;
    rustix::process::kill_process(pid, Signal::KILL)?;
    Ok(records.delete(killed)?)
}

/// Whatever a cluster may leave on the machine, one line each.
struct Footprint(BTreeSet<String>);

impl Footprint {
    fn of(ids: &[String; 2]) -> Self {
        let mut traces = BTreeSet::new();
        for id in ids {
            let name = format!("meshd-cluster-{id}");
            let hierarchies = entries(Path::new("/sys/fs/cgroup"));
            let cgroups =
                hierarchies.into_iter().map(|hierarchy| hierarchy.join(&name)).filter(|path| path.exists());
            traces.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
            for process in entries(Path::new("/proc")) {
                let cgroups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
                if cgroups.contains(&name) {
                    traces.insert(format!("process {} of {id}", process.display()));
                }
            }
        }
        let links = entries(Path::new("/sys/class/net"));
        traces.extend(links.iter().map(|path| format!("link {}", path.display())));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        traces.extend(
            mounts.lines().filter(|line| line.contains("prove-")).map(|line| format!("mount {line}")),
        );
        for directory in DIRECTORIES.map(Path::new) {
            traces.extend(directory.exists().then(|| format!("directory {}", directory.display())));
            traces.extend(entries(directory).iter().map(|path| format!("file {}", path.display())));
        }
        for name in SETTINGS {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
            traces.insert(format!("setting {name} {}", value.trim()));
        }
        Self(traces)
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn succeed(command: &mut Command) -> Result<(), Failure> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

fn say(text: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "prove-cluster: {text}");
}
