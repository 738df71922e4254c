//! `make e2e`: runs the scenarios in `e2e/scenarios` against a cluster and writes `target/e2e/report.json`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use e2e::cases::{Case, Inventory};
use e2e::kubectl::{Kubectl, KubectlError};
use e2e::report::{Report, Seen, Verdict};
use e2e::scenario::{self, Row};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Images may have to be pulled.
const PODS_WITHIN: Duration = Duration::from_mins(10);
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
        path("out").default_value("target/e2e/report.json").help("where the report goes"),
        Arg::new("image")
            .long("image")
            .env("E2E_IMAGE")
            .default_value("localhost/e2e-pod:1")
            .help("the image of the suite's pods, as the cluster's nodes know it or can pull it"),
        Arg::new("only").long("only").value_delimiter(',').help("rows, such as N3,N4"),
        Arg::new("keep")
            .long("keep")
            .action(ArgAction::SetTrue)
            .help("leave the suite's pods in the cluster"),
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
    // Two runs on one cluster are kept apart.
    let namespace = format!("e2e-{:x}-{:x}", started.as_millis(), std::process::id());
    let image = arguments.get_one::<String>("image").map(String::as_str).unwrap_or_default();
    let cases =
        within(&kubectl, &namespace, image, |inventory| try_rows(&kubectl, &namespace, &rows, inventory));
    if arguments.get_flag("keep") {
        say(&format!("==> the pods are left in namespace {namespace}"));
    } else {
        kubectl.run(&["delete", "namespace", &namespace, "--wait=false", "--ignore-not-found"], "")?;
    }
    let report = Report::new(cases?, versions(&kubectl)?, started.as_secs(), since.elapsed().as_secs());
    let out = path("out").unwrap_or_default();
    if let Some(above) = out.parent() {
        std::fs::create_dir_all(above)?;
    }
    std::fs::write(&out, serde_json::to_vec_pretty(&report)?)?;
    print(&report, &out)?;
    Ok(report)
}

/// Creates the suite's pods, waits for them, and lets a function use them.
fn within<T>(
    kubectl: &Kubectl,
    namespace: &str,
    image: &str,
    work: impl FnOnce(&Inventory) -> Result<T, KubectlError>,
) -> Result<T, Failure> {
    let manifest = std::fs::read_to_string(Path::new(OWN).join("pods.yaml"))?;
    let manifest = manifest.replace("NAMESPACE", namespace).replace("IMAGE", image);
    say(&format!("==> creating pods on all nodes, in namespace {namespace}"));
    kubectl.run(&["apply", "-f", "-"], &manifest)?;
    kubectl.wait_ready(namespace, PODS_WITHIN)?;
    Ok(work(&kubectl.inventory(namespace)?)?)
}

fn try_rows(
    kubectl: &Kubectl,
    namespace: &str,
    rows: &[Row],
    inventory: &Inventory,
) -> Result<Vec<Seen>, KubectlError> {
    let mut seen = Vec::new();
    for row in rows {
        let before = seen.len();
        if row.check.is_some() {
            seen.push(addresses(row, namespace, inventory));
        }
        for family in inventory.families().into_iter().filter(|_| row.check.is_none()) {
            let cases = inventory.cases(row, family);
            if cases.is_empty() {
                seen.push(skipped(row, family.as_str(), "the cluster has too few nodes"));
            }
            for case in cases {
                seen.push(try_case(kubectl, namespace, row, case)?);
            }
        }
        let new = seen.get(before..).unwrap_or_default();
        let passed = new.iter().filter(|seen| seen.verdict == Verdict::Pass).count();
        say(&format!("{:4} {passed:3} of {:3}  {}", row.row, new.len(), row.claim));
    }
    Ok(seen)
}

fn try_case(kubectl: &Kubectl, namespace: &str, row: &Row, case: Case) -> Result<Seen, KubectlError> {
    let since = Instant::now();
    let mut arguments = vec!["-n", namespace, "exec", case.pod.as_str(), "--"];
    arguments.extend(case.command.iter().map(String::as_str));
    let output = kubectl.output(&arguments, "")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let passed = output.status.success() && case.expected.is_met(&printed);
    let errors = String::from_utf8_lossy(&output.stderr);
    Ok(Seen {
        row: row.row.clone(),
        claim: row.claim.clone(),
        family: case.family.as_str(),
        about: case.about,
        command: format!("kubectl {}", arguments.join(" ")),
        expected: case.expected.describe(),
        seen: if passed {
            printed.trim().to_owned()
        } else {
            format!("{} {}", printed.trim(), errors.trim())
        },
        verdict: if passed { Verdict::Pass } else { Verdict::Fail },
        reason: None,
        milliseconds: since.elapsed().as_millis(),
    })
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
        milliseconds: 0,
    }
}

fn skipped(row: &Row, family: &'static str, reason: &str) -> Seen {
    Seen {
        row: row.row.clone(),
        claim: row.claim.clone(),
        family,
        about: String::new(),
        command: String::new(),
        expected: String::new(),
        seen: String::new(),
        verdict: Verdict::Skipped,
        reason: Some(reason.to_owned()),
        milliseconds: 0,
    }
}

/// The versions of the kubelets, each once.
fn versions(kubectl: &Kubectl) -> Result<Vec<String>, KubectlError> {
    let nodes = kubectl.list(&["nodes"])?;
    let info = |field: &str| {
        let pointer = format!("/status/nodeInfo/{field}");
        nodes
            .iter()
            .filter_map(move |node| Some(node.pointer(&pointer)?.as_str()?.to_owned()))
            .collect::<Vec<_>>()
    };
    let mut all: Vec<String> =
        info("kubeletVersion").into_iter().map(|version| format!("kubelet {version}")).collect();
    all.extend(info("containerRuntimeVersion"));
    all.extend(info("kernelVersion").into_iter().map(|version| format!("Linux {version}")));
    all.sort();
    all.dedup();
    Ok(all)
}

fn print(report: &Report, out: &Path) -> io::Result<()> {
    let mut stdout = io::stdout();
    for case in report.cases.iter().filter(|case| case.verdict == Verdict::Fail) {
        writeln!(stdout, "FAIL {} {} {}", case.row, case.family, case.about)?;
        writeln!(stdout, "  {}\n  expected {}\n  seen     {}", case.command, case.expected, case.seen)?;
    }
    for cell in report.cells() {
        let verdict = match cell.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Skipped => "skipped",
        };
        writeln!(stdout, "{:4} {:4} {verdict} ({} of {})", cell.row, cell.family, cell.passed, cell.all)?;
    }
    writeln!(stdout, "{} s; {}", report.seconds, out.display())
}

fn say(text: &str) {
    let _nobody_listens = writeln!(io::stderr(), "{text}");
}
