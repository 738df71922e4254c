//! `make prove-suite`: the end-to-end suite on networks that are broken in one way each (`broken.toml`): it has to fail in
//! exactly the rows that the break is about. Takes about a quarter of an hour; `ONLY=name` takes one of them.
//!
//! `prove-suite ARGUMENTS` passes its arguments to `cluster create`.

mod networks;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use lab::cluster::Records;
use serde::Deserialize;

use networks::{Network, Step};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A network that is mended passes after so long, also on a busy machine: a daemon whose container ended may have to wait for
/// the kubelet to start it again.
const MENDED_WITHIN: Duration = Duration::from_mins(5);
/// The row that shows it: pods of different nodes.
const MENDED_ROW: &str = "N4";

fn main() -> ExitCode {
    let since = Instant::now();
    match prove() {
        Ok(()) => {
            say(&format!("passed after {} s", since.elapsed().as_secs()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("FAILED: {}", lab::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn prove() -> Result<(), Failure> {
    let only = std::env::var("ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|name| !name.is_empty()).collect();
    let (with_meshd, without): (Vec<_>, Vec<_>) =
        networks::read(&only)?.into_iter().partition(|network| network.meshd);
    let mut wrong = Vec::new();
    if !with_meshd.is_empty() {
        let cluster = Cluster::create("meshd", &[])?;
        let healthy = cluster.suite("healthy", &["--keep"])?;
        if !healthy.is_empty() {
            return Err(format!("before anything was broken these rows failed: {}", list(&healthy)).into());
        }
        let namespace = cluster.namespace()?;
        for (place, network) in with_meshd.iter().enumerate() {
            cluster.take(&network.breaking)?;
            wrong.extend(judge(network, &cluster.suite(&network.name, &["--again", &namespace])?));
            cluster.take(&network.mend)?;
            if place + 1 < with_meshd.len() {
                cluster.wait_until_mended(network, &namespace)?;
            }
        }
    }
    for network in without {
        let cluster = Cluster::create(&network.name, &["--without-meshd"])?;
        cluster.take(&network.breaking)?;
        wrong.extend(judge(&network, &cluster.suite(&network.name, &[])?));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

/// What is not as it should be.
fn judge(network: &Network, failed: &BTreeSet<String>) -> Option<String> {
    let name = &network.name;
    say(&format!("{name}, {}: failed {}", network.what, list(failed)));
    let lacking: BTreeSet<String> = &network.fails - failed;
    let beyond: BTreeSet<String> = failed - &network.fails;
    (*failed != network.fails)
        .then(|| format!("{name}: not failed {}, failed besides {}", list(&lacking), list(&beyond)))
}

fn list(rows: &BTreeSet<String>) -> String {
    if rows.is_empty() {
        return "none".to_owned();
    }
    rows.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// A cluster of this program. Deleted when dropped.
struct Cluster {
    program: PathBuf,
    records: Records,
    id: String,
}

impl Cluster {
    fn create(name: &str, settings: &[&str]) -> Result<Self, Failure> {
        let id = format!("suite-{}-{name}", std::process::id());
        let own = Self { program: lab::bin("cluster")?, records: Records::open()?, id };
        let mut create = Command::new(&own.program);
        create.args(["create", "--id", &own.id]).args(settings).args(std::env::args_os().skip(1));
        succeed(&mut create)?;
        Ok(own)
    }

    /// A program on one of its hosts.
    fn enter(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["enter", "--id", &self.id]).args(arguments);
        command
    }

    fn take(&self, steps: &[Step]) -> Result<(), Failure> {
        let record = self.records.load(&self.id)?.ok_or("the cluster has no record")?;
        let names = record.hosts.iter().map(|host| host.name.as_str());
        // The control plane's host and the one outside are no nodes.
        let nodes: Vec<&str> = names.filter(|name| !["api", "outside"].contains(name)).collect();
        for step in steps {
            let own = [step.on.as_str()];
            let hosts = if step.on == "nodes" { nodes.as_slice() } else { own.as_slice() };
            for host in hosts {
                succeed(&mut self.enter(&[host, "sh", "-ec", &step.run]))?;
            }
        }
        Ok(())
    }

    /// The namespace in which `--keep` has left the suite's pods.
    fn namespace(&self) -> Result<String, Failure> {
        let label = "app.kubernetes.io/name=meshd-e2e";
        let path = "jsonpath={.items[0].metadata.name}";
        let output =
            self.enter(&["api", "kubectl", "get", "namespaces", "-l", label, "-o", path]).output()?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if name.is_empty() { Err("the suite has left no namespace".into()) } else { Ok(name) }
    }

    /// Runs the suite; the rows that did not pass and were not skipped.
    fn suite(&self, name: &str, arguments: &[&str]) -> Result<BTreeSet<String>, Failure> {
        #[derive(Deserialize)]
        struct Report {
            cases: Vec<Case>,
        }
        #[derive(Deserialize)]
        struct Case {
            row: String,
            verdict: String,
        }
        let path = self.records.directory(&self.id).join(format!("{name}.json"));
        let mut suite = self.enter(&["--net", "outside"]);
        suite.arg(lab::bin("e2e")?).arg("--out").arg(&path).args(arguments);
        let status = suite.status()?;
        let Report { cases } = read(&path)
            .map_err(|error| format!("the suite on {name}: {status}, without a report: {error}"))?;
        let failed = |case: &&Case| ["fail", "not-determined"].contains(&case.verdict.as_str());
        let failed: BTreeSet<String> = cases.iter().filter(failed).map(|case| case.row.clone()).collect();
        if failed.is_empty() == status.success() {
            Ok(failed)
        } else {
            Err(format!("the suite on {name}: {status}, and failed rows {}", list(&failed)).into())
        }
    }

    fn wait_until_mended(&self, network: &Network, namespace: &str) -> Result<(), Failure> {
        let since = Instant::now();
        loop {
            let arguments = ["--again", namespace, "--only", MENDED_ROW];
            if self.suite("mended", &arguments)?.is_empty() {
                return Ok(());
            }
            if since.elapsed() >= MENDED_WITHIN {
                return Err(format!("{}: {MENDED_ROW} still fails after mending", network.name).into());
            }
            thread::sleep(Duration::from_secs(2));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.records.delete(&self.id) {
            say(&format!("cluster {} is left: {}", self.id, lab::chain(&error)));
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn succeed(command: &mut Command) -> Result<(), Failure> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

fn say(text: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "prove-suite: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_too_many_is_as_wrong_as_one_too_few() {
        let network = networks::read(&["no-guard"]).unwrap().remove(0);
        let rows = |rows: &[&str]| rows.iter().map(|row| (*row).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(judge(&network, &rows(&["N16", "E1"])), None);
        assert!(judge(&network, &rows(&["N16"])).unwrap().contains("not failed E1"));
        assert!(judge(&network, &rows(&["N16", "E1", "N4"])).unwrap().contains("failed besides N4"));
    }
}
