//! `make e2e`: runs the scenarios in `e2e/scenarios` against a cluster and writes a report to `target/e2e`.

mod suite;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use e2e::acting::Acting;
use e2e::capture::{self, Capture, Found};
use e2e::cases::{Case, Family, Inventory, Skip};
use e2e::change::Change;
use e2e::kubectl::{Kubectl, KubectlError};
use e2e::outside::Outside;
use e2e::report::{Carried, Cluster, NotHere, Report, Seen, Uplinks, Verdict};
use e2e::scenario::{self, Check, Row, STREAM, Step};
use e2e::versions::{self, Versions};
use e2e::{junit, page, pcap, traffic};

use suite::Suite;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A kubelet that was just started, or an API server, answers after so long.
const COLLECTED_WITHIN: Duration = Duration::from_mins(1);
/// Why what the uplinks carry can't be said.
const NO_CAPTURE: &str = "no capture on the nodes' uplinks was given (--capture)";
/// Why nothing of a row was tried.
const NO_FAMILY: &str = "there is no IP version that all pods have an address of";
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
        path("verbs").env("E2E_VERBS").help(
            "the socket of a cluster that adds and reboots nodes; without it rows that need that are skipped",
        ),
        path("with")
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help("reports (JSON) of former runs in the same directory, which the page shows too"),
        Arg::new("only").long("only").value_delimiter(',').help("rows, such as N3,N4"),
        Arg::new("policies").long("policies").action(ArgAction::SetTrue).help(
            "the cluster enforces NetworkPolicies; one that carries out verbs does so when it is told to",
        ),
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
    let socket = |name: &str| path(name).filter(|path| !path.as_os_str().is_empty());
    let (capture, acting) = (socket("capture").map(Capture::at), socket("verbs").map(Acting::at));
    let disturb = arguments.get_flag("disturb");
    let (capture, acting) = (capture.as_ref(), acting.as_ref());
    let policies = arguments.get_flag("policies");
    let suite = Suite { kubectl: &kubectl, namespace, outside: &outside, capture, acting, disturb, policies };
    let outcome =
        suite.prepare(image, again.is_some()).and_then(|inventory| suite.try_all(&rows, &inventory));
    if arguments.get_flag("keep") || again.is_some() {
        say(&format!("==> the pods are left in namespace {namespace}"));
    } else {
        // Other pods will have the addresses that rules for them are about.
        kubectl.run(&["-n", namespace, "delete", "networkpolicies", "--all"], "")?;
        suite.enforce_policies()?;
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

impl Suite<'_> {
    /// All rows, and what the nodes' uplinks carried meanwhile.
    fn try_all(&self, rows: &[Row], inventory: &Inventory) -> Result<Outcome, Failure> {
        let agents = suite::agents(inventory);
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
        let mut inventory = inventory.clone();
        for row in rows {
            let before = outcome.cases.len();
            if row.check == Some(Check::Addresses) {
                outcome.cases.push(addresses(row, self.namespace, &inventory));
            }
            if row.check == Some(Check::Spoofed) {
                outcome.cases.push(self.spoofed(row, &inventory)?);
            }
            for family in inventory.families().into_iter().filter(|_| row.check.is_none()) {
                let (cases, skips) = inventory.cases(row, family);
                let family = family.as_str();
                let counts = || self.capture.map(Capture::counts).transpose();
                let frames = counts()?;
                let acted = cases.iter().any(|case| case.meanwhile.iter().any(is_of_cluster));
                for case in cases {
                    outcome.cases.push(self.try_case(row, case)?);
                }
                if let (Some(before), Some(after)) = (frames, counts()?) {
                    let frames = after.frames().since(before.frames());
                    outcome.carried.push(Carried { row: row.row.clone(), family, frames });
                }
                outcome.cases.extend(skips.into_iter().map(|skip| skipped(row, family, skip)));
                if acted {
                    inventory = self.settle(&inventory)?;
                }
            }
            if outcome.cases.len() == before {
                outcome.cases.push(skipped(row, "", Skip { about: String::new(), reason: NO_FAMILY }));
            }
            let new = outcome.cases.get(before..).unwrap_or_default();
            let passed = new.iter().filter(|seen| seen.verdict == Verdict::Pass).count();
            say(&format!("{:4} {passed:3} of {:3}  {}", row.row, new.len(), row.claim));
        }
        Ok(())
    }

    fn spoofed(&self, row: &Row, inventory: &Inventory) -> Result<Seen, Failure> {
        let Some(capture) = self.capture else {
            return Ok(skipped(row, "", Skip { about: String::new(), reason: NO_CAPTURE }));
        };
        let since = Instant::now();
        let (verdict, seen) = capture::judge_spoofed(&capture.spoof(inventory)?);
        Ok(Seen {
            row: row.row.clone(),
            claim: row.claim.clone(),
            family: "",
            about: "the tunnel between two nodes".to_owned(),
            command: "make e2e, on a cluster of make cluster".to_owned(),
            expected: "a packet from a pod of the sender arrives, and one from another node's pod does not"
                .to_owned(),
            seen,
            verdict,
            reason: None,
            traffic: None,
            milliseconds: since.elapsed().as_millis(),
        })
    }

    fn try_case(&self, row: &Row, case: Case) -> Result<Seen, KubectlError> {
        let since = Instant::now();
        let words: Vec<&str> = case.command.iter().map(String::as_str).collect();
        let change = || Change::start(self.kubectl.clone(), self.acting.cloned(), case.meanwhile.clone());
        let (output, changed, command) = match &case.pod {
            Some(pod) if case.detached => {
                let (output, changed) = self.detached(pod, &words, change)?;
                (output, changed, format!("kubectl {}", self.exec(pod, &words).join(" ")))
            }
            Some(pod) => {
                let arguments = self.exec(pod, &words);
                let change = (!case.meanwhile.is_empty()).then(change);
                let output = self.kubectl.output(&arguments, "")?;
                let changed = change.map_or(Ok(()), Change::complete);
                (output, changed, format!("kubectl {}", arguments.join(" ")))
            }
            None => {
                let change = (!case.meanwhile.is_empty()).then(change);
                let output = self.here(&words)?;
                (output, change.map_or(Ok(()), Change::complete), words.join(" "))
            }
        };
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let passed = case.expected.is_met(output.status.success(), &printed) && changed.is_ok();
        let errors = String::from_utf8_lossy(&output.stderr);
        let meanwhile = case.meanwhile.iter().map(|step| format!("; meanwhile {step}"));
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

    /// Has a stream go on in a pod until a change is over; what it said, and what is wrong with the change.
    fn detached(
        &self,
        pod: &str,
        words: &[&str],
        change: impl FnOnce() -> Change,
    ) -> Result<(Output, Result<(), String>), KubectlError> {
        let arguments = [&["e2e-pod", "detach"], words.get(STREAM.len()..).unwrap_or_default()].concat();
        let number = self.kubectl.run(&self.exec(pod, &arguments), "")?;
        let changed = change().wait();
        let since = Instant::now();
        loop {
            let output = self.kubectl.output(&self.exec(pod, &["e2e-pod", "collect", number.trim()]), "")?;
            // What a stream has lost is said by it. A kubelet that has just been started is asked again.
            let said = String::from_utf8_lossy(&output.stderr).contains(" sent, ");
            if output.status.success() || said || since.elapsed() >= COLLECTED_WITHIN {
                return Ok((output, changed));
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Runs a command of a row on this machine, where e2e-pod is not in the search path.
    fn here(&self, words: &[&str]) -> Result<Output, KubectlError> {
        let (program, arguments) = words.split_first().unwrap_or((&"e2e-pod", &[]));
        let program = match *program {
            "e2e-pod" => self.outside.program().clone(),
            other => other.into(),
        };
        let output = Command::new(&program).args(arguments).output();
        output.map_err(|source| KubectlError::Start { program, source })
    }
}

fn is_of_cluster(step: &Step) -> bool {
    matches!(step, Step::Cluster { .. })
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
