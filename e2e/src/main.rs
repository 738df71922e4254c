//! `make e2e`: runs the scenarios in `e2e/scenarios` against a cluster and writes a report to `target/e2e`.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use e2e::capture::{self, Capture, Found};
use e2e::cases::{Case, Family, Inventory, Pod, Skip};
use e2e::change::{Change, NOT_ASKED_FOR};
use e2e::kubectl::{self, Kubectl, KubectlError};
use e2e::outside::Outside;
use e2e::report::{Carried, Cluster, NotHere, Report, Seen, Uplinks, Verdict};
use e2e::scenario::{self, Check, Row};
use e2e::services::{self, ENDPOINTS, NODE_LABEL};
use e2e::versions::{self, Versions};
use e2e::{junit, page, pcap, ports, traffic};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Images may have to be pulled.
const PODS_WITHIN: Duration = Duration::from_mins(10);
/// What is still missing is said so often.
const SAID_EVERY: Duration = Duration::from_secs(20);
/// kube-proxy has to know the services on all nodes.
const SERVICES_WITHIN: Duration = Duration::from_mins(2);
/// The `DaemonSet` of pods in the nodes' own network.
const AGENTS: &str = "agent";
/// Why what the uplinks carry can't be said.
const NO_CAPTURE: &str = "no capture on the nodes' uplinks was given (--capture)";
const NO_MESHD: &str = "the cluster has no DaemonSet meshd in namespace meshd";
/// Beside these files are the scenarios.
const OWN: &str = env!("CARGO_MANIFEST_DIR");

fn main() -> ExitCode {
    match run(&cli().get_matches()) {
        Ok(report) if report.verdict == Verdict::Pass => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let mut text = format!("e2e: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            say(&text);
            ExitCode::from(2)
        }
    }
}

fn cli() -> clap::Command {
    let path = |name: &'static str| Arg::new(name).long(name).value_parser(value_parser!(PathBuf));
    clap::Command::new("e2e").about("run scenarios against a cluster").args([
        path("kubeconfig").help("of an administrator of the cluster; by default kubectl's own"),
        path("kubectl").env("KUBECTL").default_value("kubectl"),
        path("out")
            .default_value("target/e2e/report.json")
            .help("where the report goes; beside it JUnit XML and a page, with .xml and .html"),
        Arg::new("image")
            .long("image")
            .env("E2E_IMAGE")
            .default_value("localhost/e2e-pod:1")
            .help("the image of the suite's pods, as the cluster's nodes know it or can pull it"),
        path("pod-program").help("e2e-pod for this machine; by default the one beside this program"),
        path("not-here").help("a list of what may be skipped; anything else that is skipped is a failure"),
        path("capture")
            .env("E2E_CAPTURE")
            .help("the socket of a capture on the uplinks of all nodes; without one row E1 is skipped"),
        path("with")
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help("reports (JSON) of former runs in the same directory, which the page shows too"),
        Arg::new("only").long("only").value_delimiter(',').help("rows, such as N3,N4"),
        Arg::new("disturb")
            .long("disturb")
            .action(ArgAction::SetTrue)
            .help("try rows that restart meshd or replace keys, too"),
        Arg::new("keep")
            .long("keep")
            .action(ArgAction::SetTrue)
            .help("leave the suite's pods in the cluster"),
        Arg::new("again").long("again").value_name("NAMESPACE").help(
            "use the pods and services that --keep left in this namespace, as they are, and leave them",
        ),
    ])
}

fn run(arguments: &ArgMatches) -> Result<Report, Failure> {
    let path = |name: &str| arguments.get_one::<PathBuf>(name).cloned();
    let kubectl = Kubectl {
        program: path("kubectl").unwrap_or_else(|| "kubectl".into()),
        kubeconfig: path("kubeconfig"),
    };
    let only: Vec<&String> = arguments.get_many("only").into_iter().flatten().collect();
    let mut rows = scenario::load(&Path::new(OWN).join("scenarios"))?;
    rows.retain(|row| only.is_empty() || only.contains(&&row.row));
    if rows.is_empty() {
        return Err("no such row".into());
    }
    let started = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let since = Instant::now();
    let not_here = path("not-here").map(|path| NotHere::read(&path)).transpose()?;
    let former = arguments.get_many::<PathBuf>("with").into_iter().flatten();
    let former: Vec<Report> = former.map(|path| Report::read(path)).collect::<Result<_, _>>()?;
    // Two runs on one cluster are kept apart.
    let new = format!("e2e-{:x}-{:x}", started.as_millis(), std::process::id());
    let again = arguments.get_one::<String>("again");
    let namespace = again.unwrap_or(&new);
    let image = arguments.get_one::<String>("image").map(String::as_str).unwrap_or_default();
    let beside = || Some(std::env::current_exe().ok()?.with_file_name("e2e-pod"));
    let outside = Outside::start(path("pod-program").or_else(beside).unwrap_or_else(|| "e2e-pod".into()))?;
    let capture = path("capture").filter(|path| !path.as_os_str().is_empty()).map(Capture::at);
    let disturb = arguments.get_flag("disturb");
    let suite = Suite { kubectl: &kubectl, namespace, outside: &outside, capture: capture.as_ref(), disturb };
    let outcome =
        suite.prepare(image, again.is_some()).and_then(|inventory| suite.try_all(&rows, &inventory));
    if arguments.get_flag("keep") || again.is_some() {
        say(&format!("==> the pods are left in namespace {namespace}"));
    } else {
        kubectl.run(&["delete", "namespace", namespace, "--wait=false", "--ignore-not-found"], "")?;
    }
    let mut outcome = outcome?;
    if let Some(list) = not_here {
        list.settle(&mut outcome.cases);
    }
    outcome.cluster.versions = Versions::read(&kubectl, image)?;
    let Outcome { cases, carried, mut uplinks, found, cluster } = outcome;
    let out = path("out").unwrap_or_default();
    if let Some(above) = out.parent() {
        std::fs::create_dir_all(above)?;
    }
    let files = pcap::write(&found, &out)?;
    if let Some(uplinks) = &mut uplinks {
        uplinks.files = files;
    }
    let report = Report::new(cases, &carried, cluster, started.as_secs(), since.elapsed().as_secs());
    let report = Report { uplinks, ..report };
    write(&report, &former, &out)?;
    print(&report, &out)?;
    Ok(report)
}

/// Writes the report, and what others read of it beside.
fn write(report: &Report, former: &[Report], out: &Path) -> Result<(), Failure> {
    std::fs::write(out, serde_json::to_vec_pretty(report)?)?;
    std::fs::write(out.with_extension("xml"), junit::xml(report)?)?;
    std::fs::write(
        out.with_extension("html"),
        page::html(&former.iter().chain([report]).collect::<Vec<_>>()),
    )?;
    Ok(())
}

/// What a run found.
struct Outcome {
    cases: Vec<Seen>,
    carried: Vec<Carried>,
    uplinks: Option<Uplinks>,
    /// Packets in the clear.
    found: Vec<Found>,
    cluster: Cluster,
}

/// A run: where its pods are, and the machine that it runs on.
struct Suite<'a> {
    kubectl: &'a Kubectl,
    namespace: &'a str,
    outside: &'a Outside,
    capture: Option<&'a Capture>,
    disturb: bool,
}

impl Suite<'_> {
    /// Creates the suite's pods and services, and waits for them; or finds them, as a run before has left them.
    fn prepare(&self, image: &str, again: bool) -> Result<Inventory, Failure> {
        if !again {
            ports::check(self.kubectl)?;
            let manifest = std::fs::read_to_string(Path::new(OWN).join("pods.yaml"))?;
            let manifest = manifest.replace("NAMESPACE", self.namespace).replace("IMAGE", image);
            say(&format!("==> creating pods on all nodes, in namespace {}", self.namespace));
            self.kubectl.run(&["apply", "-f", "-"], &manifest)?;
            self.wait_for_pods()?;
        }
        let mut inventory = self.kubectl.inventory(self.namespace)?;
        self.create_services(&mut inventory)?;
        inventory.protocols = self.protocols(&inventory)?;
        inventory.unchanging = self.unchanging()?;
        let agents: Vec<Pod> = inventory.pods.iter().filter(|pod| pod.set == AGENTS).cloned().collect();
        for agent in &agents {
            let node = inventory.nodes.iter().find(|node| node.name == agent.node);
            let seen = node.and_then(|node| self.outside.towards(node, agent.port));
            inventory.pods.extend(seen);
        }
        if !again {
            self.wait_for_services(&inventory, &agents)?;
        }
        Ok(inventory)
    }

    /// Waits for the pods, and says now and then what is missing.
    fn wait_for_pods(&self) -> Result<(), KubectlError> {
        let since = Instant::now();
        loop {
            match self.kubectl.wait_ready(self.namespace, SAID_EVERY) {
                Err(KubectlError::NotReady { said, .. }) if since.elapsed() < PODS_WITHIN => {
                    say(&format!("==> {} s: pods are not ready yet: {said}", since.elapsed().as_secs()));
                }
                done => return done,
            }
        }
    }

    fn create_services(&self, inventory: &mut Inventory) -> Result<(), KubectlError> {
        for (place, node) in inventory.nodes.iter().enumerate() {
            for pod in inventory.pods.iter().filter(|pod| pod.set == ENDPOINTS && pod.node == node.name) {
                let label = format!("{NODE_LABEL}={place}");
                self.kubectl
                    .run(&["-n", self.namespace, "label", "--overwrite", "pod", &pod.name, &label], "")?;
            }
        }
        let count = inventory.nodes.len();
        let manifest = services::manifest(self.namespace, count).to_string();
        self.kubectl.run(&["apply", "-f", "-"], &manifest)?;
        inventory.services = services::read(&self.kubectl.list(&["services", "-n", self.namespace])?, count);
        Ok(())
    }

    /// Why nothing may be changed, or can be.
    fn unchanging(&self) -> Result<Option<&'static str>, KubectlError> {
        if !self.disturb {
            return Ok(Some(NOT_ASKED_FOR));
        }
        let meshd = self.kubectl.output(&["-n", "meshd", "get", "daemonset", "meshd"], "")?;
        Ok((!meshd.status.success()).then_some(NO_MESHD))
    }

    /// The protocols that the kernels of all nodes have.
    fn protocols(&self, inventory: &Inventory) -> Result<Vec<String>, KubectlError> {
        let mut common: Option<BTreeSet<String>> = None;
        for agent in inventory.pods.iter().filter(|pod| pod.set == AGENTS) {
            let said = self.kubectl.run(&self.exec(&agent.name, &["e2e-pod", "protocols"]), "")?;
            let own: BTreeSet<String> = said.split_whitespace().map(str::to_owned).collect();
            common = Some(common.map_or_else(|| own.clone(), |common| &common & &own));
        }
        Ok(common.unwrap_or_default().into_iter().collect())
    }

    /// Waits until every node forwards to every service, or time is up: then the rows show what is missing.
    fn wait_for_services(&self, inventory: &Inventory, agents: &[Pod]) -> Result<(), KubectlError> {
        let since = Instant::now();
        for family in inventory.families() {
            let servers = inventory.services.values().filter_map(|service| service.address(family));
            let servers: Vec<String> = servers.map(|server| server.to_string()).collect();
            for agent in agents {
                for server in &servers {
                    let ask = self.exec(&agent.name, &["e2e-pod", "ask", "tcp", server, "2"]);
                    while !self.kubectl.output(&ask, "")?.status.success() {
                        if since.elapsed() >= SERVICES_WITHIN {
                            say(&format!("{server} does not answer on {}", agent.node));
                            return Ok(());
                        }
                        thread::sleep(Duration::from_millis(500));
                    }
                }
            }
        }
        Ok(())
    }

    fn exec<'a>(&'a self, pod: &'a str, command: &[&'a str]) -> Vec<&'a str> {
        kubectl::exec(self.namespace, pod, command)
    }

    /// All rows, and what the nodes' uplinks carried meanwhile.
    fn try_all(&self, rows: &[Row], inventory: &Inventory) -> Result<Outcome, Failure> {
        let agents: Vec<Pod> = inventory.pods.iter().filter(|pod| pod.set == AGENTS).cloned().collect();
        let cluster = Cluster {
            nodes: inventory.nodes.len(),
            families: inventory.families().into_iter().map(Family::as_str).collect(),
            proxy_mode: versions::proxy_mode(self.kubectl, self.namespace, &agents)?,
            versions: Versions::default(),
        };
        let (cases, carried, found) = (Vec::new(), Vec::new(), Vec::new());
        let mut outcome = Outcome { cases, carried, uplinks: None, found, cluster };
        let of_uplinks = |row: &Row| row.check == Some(Check::Uplinks);
        let uplinks = rows.iter().find(|row| of_uplinks(row));
        let others: Vec<Row> = rows.iter().filter(|row| !of_uplinks(row)).cloned().collect();
        let (Some(row), Some(capture)) = (uplinks, self.capture) else {
            self.try_rows(&others, inventory, &mut outcome)?;
            outcome.cases.extend(
                uplinks.map(|row| skipped(row, "", Skip { about: String::new(), reason: NO_CAPTURE })),
            );
            return Ok(outcome);
        };
        let controls = capture.controls(inventory)?;
        let before = capture.counts()?;
        self.try_rows(&others, inventory, &mut outcome)?;
        let after = capture.counts()?;
        outcome.cases.push(uplinks_row(row, &controls, &before, &after));
        outcome.uplinks = Some(Uplinks {
            since_the_beginning: after.frames(),
            in_this_run: after.frames().since(before.frames()),
            missed: after.missed,
            controls,
            files: Vec::new(),
        });
        outcome.found = after.found;
        Ok(outcome)
    }

    fn try_rows(&self, rows: &[Row], inventory: &Inventory, outcome: &mut Outcome) -> Result<(), Failure> {
        for row in rows {
            let before = outcome.cases.len();
            if row.check == Some(Check::Addresses) {
                outcome.cases.push(addresses(row, self.namespace, inventory));
            }
            for family in inventory.families().into_iter().filter(|_| row.check.is_none()) {
                let (cases, skips) = inventory.cases(row, family);
                let family = family.as_str();
                let counts = || self.capture.map(Capture::counts).transpose();
                let frames = counts()?;
                for case in cases {
                    outcome.cases.push(self.try_case(row, case)?);
                }
                if let (Some(before), Some(after)) = (frames, counts()?) {
                    let frames = after.frames().since(before.frames());
                    outcome.carried.push(Carried { row: row.row.clone(), family, frames });
                }
                outcome.cases.extend(skips.into_iter().map(|skip| skipped(row, family, skip)));
            }
            let new = outcome.cases.get(before..).unwrap_or_default();
            let passed = new.iter().filter(|seen| seen.verdict == Verdict::Pass).count();
            say(&format!("{:4} {passed:3} of {:3}  {}", row.row, new.len(), row.claim));
        }
        Ok(())
    }

    fn try_case(&self, row: &Row, case: Case) -> Result<Seen, KubectlError> {
        let since = Instant::now();
        let words: Vec<&str> = case.command.iter().map(String::as_str).collect();
        let change =
            (!case.meanwhile.is_empty()).then(|| Change::start(self.kubectl.clone(), case.meanwhile.clone()));
        let (output, command) = match &case.pod {
            Some(pod) => {
                let arguments = self.exec(pod, &words);
                (self.kubectl.output(&arguments, "")?, format!("kubectl {}", arguments.join(" ")))
            }
            None => (self.here(&words)?, words.join(" ")),
        };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let changed = change.map_or(Ok(()), Change::complete);
        let passed = case.expected.is_met(output.status.success(), &printed) && changed.is_ok();
        let errors = String::from_utf8_lossy(&output.stderr);
        let meanwhile = case.meanwhile.iter().map(|step| format!("; meanwhile kubectl {}", step.join(" ")));
        let command = format!("{command}{}", meanwhile.collect::<String>());
        Ok(Seen {
            row: row.row.clone(),
            claim: row.claim.clone(),
            family: case.family.as_str(),
            about: case.about,
            command,
            expected: case.expected.describe(),
            seen: if passed && output.status.success() {
                printed.trim().to_owned()
            } else {
                format!("{} {} {}", printed.trim(), errors.trim(), changed.err().unwrap_or_default())
            },
            verdict: if passed { Verdict::Pass } else { Verdict::Fail },
            reason: None,
            traffic: traffic::of(&words, &case.expected, output.status.success(), &printed),
            milliseconds: since.elapsed().as_millis(),
        })
    }

    /// Runs a command of a row on this machine, where e2e-pod is not in the search path.
    fn here(&self, words: &[&str]) -> Result<std::process::Output, KubectlError> {
        let (program, arguments) = words.split_first().unwrap_or((&"e2e-pod", &[]));
        let program = match *program {
            "e2e-pod" => self.outside.program().clone(),
            other => other.into(),
        };
        let output = Command::new(&program).args(arguments).output();
        output.map_err(|source| KubectlError::Start { program, source })
    }
}

fn addresses(row: &Row, namespace: &str, inventory: &Inventory) -> Seen {
    let wrong = inventory.wrong_addresses();
    Seen {
        row: row.row.clone(),
        claim: row.claim.clone(),
        family: "",
        about: "all pods of the suite".to_owned(),
        command: format!(
            "kubectl get pods -n {namespace} -o wide; kubectl get nodes -o jsonpath={{..podCIDRs}}"
        ),
        expected: "addresses that no two pods share, in the podCIDRs of their nodes".to_owned(),
        verdict: if wrong.is_empty() { Verdict::Pass } else { Verdict::Fail },
        seen: if wrong.is_empty() { format!("{} pods", inventory.pods.len()) } else { wrong.join("; ") },
        reason: None,
        traffic: None,
        milliseconds: 0,
    }
}

fn uplinks_row(
    row: &Row,
    controls: &[capture::Control],
    before: &capture::Counts,
    after: &capture::Counts,
) -> Seen {
    let (verdict, seen) = capture::judge(controls, before, after);
    say(&format!("{:4} {seen}", row.row));
    Seen {
        row: row.row.clone(),
        claim: row.claim.clone(),
        family: "",
        about: "uplinks of all nodes".to_owned(),
        command: "make e2e, on a cluster of make cluster".to_owned(),
        expected:
            "in the clear 0; some of a tunnel, none missed, each control seen and dropped as it has to be"
                .to_owned(),
        seen,
        verdict,
        reason: None,
        traffic: None,
        milliseconds: 0,
    }
}

fn skipped(row: &Row, family: &'static str, skip: Skip) -> Seen {
    Seen {
        row: row.row.clone(),
        claim: row.claim.clone(),
        family,
        about: skip.about,
        command: String::new(),
        expected: String::new(),
        seen: String::new(),
        verdict: Verdict::Skipped,
        reason: Some(skip.reason.to_owned()),
        traffic: None,
        milliseconds: 0,
    }
}

fn print(report: &Report, out: &Path) -> io::Result<()> {
    let mut stdout = io::stdout();
    for case in report.cases.iter().filter(|case| case.verdict > Verdict::Pass) {
        writeln!(stdout, "{} {} {} {}", word(case.verdict), case.row, case.family, case.about)?;
        writeln!(stdout, "  {}\n  expected {}\n  seen     {}", case.command, case.expected, case.seen)?;
    }
    for cell in &report.cells {
        let verdict = word(cell.verdict);
        writeln!(stdout, "{:4} {:4} {verdict} ({} of {})", cell.row, cell.family, cell.passed, cell.tried)?;
    }
    writeln!(stdout, "{} s; {}, {}", report.seconds, out.display(), out.with_extension("html").display())
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::NotDetermined => "NOT DETERMINED",
        Verdict::Skipped => "skipped",
    }
}

fn say(text: &str) {
    let _nobody_listens = writeln!(io::stderr(), "{text}");
}
