//! `meshd verify` on every node, with the evidence of all judged together: encrypted with no fault, and with each fault not, by its
//! name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use keyring::Slot;
use lab::mesh::{Mesh, UNOWNED};
use lab::{Daemon, Lab, Node, Signal};
use status::mesh::Paint;
use status::verify::{Code, Finding, Gathered, Report, Verdict, render};

/// How long a mesh may take to be well again after a fault, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Asks every node at once, as `kubectl meshd verify` does.
fn verify(mesh: &Mesh) -> Report {
    let names = mesh.node_names();
    let gathered: BTreeMap<String, Gathered> = thread::scope(|scope| {
        let asked: Vec<_> =
            names.iter().map(|name| scope.spawn(|| evidence(mesh.node(name).unwrap()))).collect();
        names.iter().cloned().zip(asked.into_iter().map(|asked| asked.join().unwrap())).collect()
    });
    Report::of_mesh(0, gathered)
}

fn evidence(node: &Node) -> Gathered {
    let output = node.command(lab::bin("meshd").unwrap()).args(["verify", "-o", "json"]).output().unwrap();
    match serde_json::from_slice(&output.stdout) {
        Ok(evidence) => Gathered::Evidence(Box::new(evidence)),
        Err(_) => Gathered::Nothing(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn codes(report: &Report) -> BTreeSet<Code> {
    report.findings.iter().map(|finding| finding.code).collect()
}

/// Verifies until the mesh is proven encrypted.
#[track_caller]
fn wait_encrypted(mesh: &Mesh) -> Report {
    let since = Instant::now();
    loop {
        let report = verify(mesh);
        if report.verdict == Verdict::Encrypted {
            return report;
        }
        assert!(since.elapsed() < PATIENCE, "{}", render(&report, true, Paint::None));
    }
}

/// Verifies with a fault; it has to be called so, at this node, and the mesh not encrypted.
#[track_caller]
fn expect(mesh: &Mesh, node: &str, code: Code) -> Report {
    let report = verify(mesh);
    let text = render(&report, true, Paint::None);
    let found = report.findings.iter().any(|finding| finding.code == code && finding.node == node);
    assert!(found && report.verdict != Verdict::Encrypted, "{} at {node} is not in\n{text}", code.as_str());
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    report
}

/// The same while a fault comes and goes, since the daemon undoes it: one look may fall between. None of them says that the mesh
/// is encrypted.
fn expect_again_and_again(mesh: &Mesh, node: &str, code: Code) -> Report {
    let end = Instant::now() + PATIENCE;
    loop {
        let report = verify(mesh);
        assert_ne!(report.verdict, Verdict::Encrypted, "{} at {node}", code.as_str());
        let found = report.findings.iter().any(|finding| finding.code == code && finding.node == node);
        if found || Instant::now() > end {
            assert!(found, "{} at {node} is not in\n{}", code.as_str(), render(&report, true, Paint::None));
            return report;
        }
    }
}

fn nft(node: &Node, rules: &[&str]) {
    for rule in rules {
        node.command("nft").args([rule]).run().unwrap();
    }
}

/// A change that is made again and again, since the daemon undoes it.
fn again_and_again(node: &Node, change: &str) -> Daemon {
    let script = format!("while :; do {change}; sleep 0.02; done");
    node.command("sh").args(["-c", &script]).daemon("changes").unwrap()
}

#[test]
fn a_mesh_is_encrypted_and_with_each_fault_it_is_not_by_its_name() {
    let mut mesh = Mesh::form_with(Lab::builder().nodes(3).build().unwrap(), &UNOWNED).unwrap();
    mesh.wait_settled();
    let report = wait_encrypted(&mesh);
    assert_eq!((report.totals.proven, report.totals.pairs, report.exit_code()), (6, 6, 0));
    assert_eq!((report.totals.preshared, report.totals.slots), (12, 12));
    assert_eq!(report.totals.witnesses, 6, "each node has recorded the others' trails");
    let since = Instant::now();
    verify(&mesh);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());

    // One UDP port is blocked, one way.
    let first = mesh.node("n1").unwrap().addresses()[0];
    let n2 = mesh.node("n2").unwrap();
    nft(
        n2,
        &["add table inet faults", "add chain inet faults in { type filter hook prerouting priority -350; }"],
    );
    nft(n2, &[&format!("add rule inet faults in ip saddr {first} udp dport 51841 drop")]);
    let report = expect(&mesh, "n1", Code::NoEcho);
    let slots = report.findings.iter().filter(|finding| finding.code == Code::NoEcho).map(|found| found.slot);
    assert!(slots.clone().count() > 0 && slots.flatten().all(|slot| slot == Slot::B), "{report:#?}");
    nft(n2, &["flush chain inet faults in"]);
    wait_encrypted(&mesh);

    // Both are.
    nft(n2, &[&format!("add rule inet faults in ip saddr {first} udp dport {{ 51840, 51841 }} drop")]);
    let report = expect(&mesh, "n1", Code::NoEcho);
    assert!(report.totals.proven <= 4, "neither direction of the pair is proven: {report:#?}");
    nft(n2, &["flush chain inet faults in"]);
    wait_encrypted(&mesh);

    // The path has a smaller MTU, and says nothing.
    nft(n2, &["add rule inet faults in udp dport { 51840, 51841 } ip length > 1400 drop"]);
    // The routes of one of the two may follow before it is asked, since the pair has just come back.
    let report = verify(&mesh);
    let lost =
        |finding: &&Finding| finding.code == Code::FullSizeLost && finding.peer.as_deref() == Some("n2");
    let found = report.findings.iter().find(lost).map(|finding| finding.node.clone());
    let from = found.unwrap_or_else(|| panic!("{}", render(&report, true, Paint::None)));
    assert!(["n1", "n3"].contains(&from.as_str()) && report.verdict != Verdict::Encrypted);
    nft(n2, &["delete table inet faults"]);
    wait_encrypted(&mesh);

    // The key of one end is another one.
    let swapped = again_and_again(n2, "wg genkey > /tmp/key; wg set mesh-b private-key /tmp/key");
    let report = expect_again_and_again(&mesh, "n2", Code::OwnKeyDiffers);
    let disagree = report.findings.iter().filter(|finding| finding.code == Code::KeysDisagree);
    assert!(disagree.clone().any(|finding| finding.node == "n1" && finding.peer.as_deref() == Some("n2")));
    drop(swapped);
    wait_encrypted(&mesh);

    // A daemon is dead.
    mesh.stop("n3", Signal::KILL).unwrap();
    let report = expect(&mesh, "n3", Code::NoEvidence);
    assert!(codes(&report).contains(&Code::NoEcho), "its peers have no answers");
    mesh.start_with("n3", &UNOWNED).unwrap();
    mesh.wait_formed();
    wait_encrypted(&mesh);

    // The guard is gone for a moment.
    let n1 = mesh.node("n1").unwrap();
    nft(n1, &["delete table inet meshd"]);
    let report = verify(&mesh);
    assert_ne!(report.verdict, Verdict::Encrypted);
    let found = codes(&report);
    assert!(found.contains(&Code::GuardChanged) || found.contains(&Code::GuardWasAway), "{found:?}");
    mesh.wait("n1", "the guard to be back", PATIENCE, |status| status["guard"]["in_place"] == true);
    expect(&mesh, "n1", Code::GuardWasAway);

    // It lets everything pass, and a pod's packets leave unencrypted.
    let n2 = mesh.node("n2").unwrap();
    let pod = n2.pod("a").unwrap();
    let opened = again_and_again(n2, "nft insert rule inet meshd egress accept");
    let report = expect_again_and_again(&mesh, "n2", Code::ControlNotCaught);
    assert_eq!(report.verdict, Verdict::NotProven, "no packet of a pod has left: {report:#?}");
    n2.command("ip").args(["route", "add", "10.244.77.0/24", "via", &first.to_string()]).run().unwrap();
    let ping = |pod: &lab::Pod<'_>| {
        pod.command("ping").args(["-c", "20", "-i", "0.1", "-W", "1", "10.244.77.1"]).output()
    };
    drop(ping(&pod).unwrap());
    let report = expect(&mesh, "n2", Code::SentInTheClear);
    assert_eq!((report.verdict, report.exit_code()), (Verdict::Leak, 1));
    drop(opened);

    // A line of an audit trail is another one.
    let n3 = mesh.node("n3").unwrap();
    let change = "sed -i '2s/\"time\":1/\"time\":2/' /var/lib/meshd/audit/audit.jsonl";
    n3.command("sh").args(["-c", change]).run().unwrap();
    expect(&mesh, "n3", Code::TrailChanged);
}

#[test]
fn a_token_that_may_change_other_nodes_is_named() {
    let mesh = Mesh::form(Lab::builder().nodes(2).fence(false).build().unwrap()).unwrap();
    mesh.wait_proven();
    let report = expect(&mesh, "n1", Code::ForgeryAccepted);
    assert_eq!(codes(&report), BTreeSet::from([Code::ForgeryAccepted]), "{report:#?}");
}
