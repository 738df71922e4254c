use std::collections::BTreeMap;

use super::*;
use crate::reach::Reach;
use crate::rotation::{KeyStatus, RotationStatus};
use crate::summary::{PresharedCounts, Summary};
use crate::{ApiStatus, FindingStatus, GuardStatus, PeerStatus, RejectedStatus};

fn peer(node: &str, state: Reach) -> PeerStatus {
    let text = format!(
        r#"{{"node":"{node}","pod_cidrs":[],"addresses":[],"active":null,"mtu":1280,"generation":1,
        "round_trip_microseconds":null,"full_size_passes":true,"slots":{{"a":null,"b":null}}}}"#
    );
    let peer: PeerStatus = serde_json::from_str(&text).unwrap();
    PeerStatus { state, ..peer }
}

/// A node that is well, and does not reach `down`.
pub(super) fn node(name: &str, all: &[&str], down: &[&str]) -> Status {
    let peers: Vec<PeerStatus> = all
        .iter()
        .filter(|other| **other != name)
        .map(|other| peer(other, if down.contains(other) { Reach::Down } else { Reach::Up }))
        .collect();
    let reach = peers.iter().map(|peer| peer.state).collect();
    let preshared_keys = PresharedCounts { proven: 2 * peers.len() as u64, ..PresharedCounts::default() };
    Status {
        node: name.to_owned(),
        version: "0.2.0".to_owned(),
        backend: "userspace".to_owned(),
        ready: true,
        guard: GuardStatus { in_place: true, ..GuardStatus::default() },
        api: ApiStatus { listed: true, published: true, trust_policy: Fence::InPlace, error: None },
        summary: Summary { reach, preshared_keys, ..Summary::default() },
        peers,
        ..Status::default()
    }
}

pub(super) fn mesh(statuses: Vec<Status>) -> BTreeMap<String, Answer> {
    statuses.into_iter().map(|status| (status.node.clone(), Answer::Said(Box::new(status)))).collect()
}

fn found(mesh: &Mesh) -> Vec<(&str, Code)> {
    mesh.problems.iter().map(|problem| (problem.node.as_str(), problem.code)).collect()
}

const FOUR: [&str; 4] = ["n1", "n2", "n3", "n4"];

#[test]
fn a_mesh_without_problems_is_good_and_says_so_within_80_columns() {
    let mesh = Mesh::new(&mesh(FOUR.map(|name| node(name, &FOUR, &[])).into()));
    assert_eq!(mesh.verdict(true), Verdict::Good);
    assert_eq!(
        (mesh.totals.pairs, mesh.totals.reached, mesh.totals.slots, mesh.totals.proven),
        (12, 12, 24, 24)
    );
    let text = render(&mesh, Shown::Usual, Paint::None);
    assert!(text.starts_with("mesh      OK: 4 of 4 nodes ready, 12 of 12 pairs reached\n"), "{text}");
    assert!(text.contains("n4    ready  3/3    6/6  in place"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(render(&mesh, Shown::Problems, Paint::None), "");
}

#[test]
fn a_pair_that_does_not_reach_each_other_is_named_at_both_ends() {
    let statuses = vec![
        node("n1", &FOUR, &["n2"]),
        node("n2", &FOUR, &["n1"]),
        node("n3", &FOUR, &[]),
        node("n4", &FOUR, &["n1"]),
    ];
    let mesh = Mesh::new(&mesh(statuses));
    assert_eq!(found(&mesh), [("n1", Code::Unreached), ("n2", Code::Unreached), ("n4", Code::Unreached)]);
    assert_eq!(mesh.problems[0].what, "does not reach n2");
    assert_eq!((mesh.totals.reached, mesh.verdict(false)), (9, Verdict::Failed));
}

#[test]
fn what_follows_from_a_broken_node_is_not_said_by_the_others() {
    // n4 reaches nobody.
    let others = ["n1", "n2", "n3"].map(|name| node(name, &FOUR, &["n4"]));
    let whole = |fourth: Answer| {
        let mut answers = mesh(others.clone().into());
        answers.insert("n4".to_owned(), fourth);
        Mesh::new(&answers)
    };
    let cut_off = whole(Answer::Said(Box::new(node("n4", &FOUR, &["n1", "n2", "n3"]))));
    assert_eq!(found(&cut_off), [("n4", Code::Unreached)]);
    // Its daemon does not answer, and so on: that alone is said.
    let silent = whole(Answer::Silent("timed out after 5 s".to_owned()));
    assert_eq!(found(&silent), [("n4", Code::NoAnswer)]);
    assert_eq!(silent.verdict(false), Verdict::Unknown);
    let absent = whole(Answer::Absent("no pod of the DaemonSet is there".to_owned()));
    assert_eq!(found(&absent), [("n4", Code::NoDaemon)]);
    let waits = Status {
        ready: false,
        waiting_for: vec!["a podCIDR".to_owned()],
        ..node("n4", &FOUR, &["n1", "n2", "n3"])
    };
    let not_ready = whole(Answer::Said(Box::new(waits)));
    // What it says itself stays: it may be the cause.
    assert_eq!(found(&not_ready), [("n4", Code::NotReady), ("n4", Code::Unreached)]);
}

#[test]
fn if_nobody_reaches_anybody_all_say_so() {
    let all = FOUR.map(|name| node(name, &FOUR, &FOUR));
    assert_eq!(found(&Mesh::new(&mesh(all.into()))).len(), 4);
}

#[test]
fn each_kind_of_trouble_has_its_code_and_severity() {
    let well = || node("n1", &["n1", "n2"], &[]);
    let peers = |change: &dyn Fn(&mut PeerStatus)| {
        let mut status = well();
        change(&mut status.peers[0]);
        status
    };
    let text = |text: &str| vec![text.to_owned()];
    let api = |change: &dyn Fn(&mut ApiStatus)| {
        let mut status = well();
        change(&mut status.api);
        status
    };
    let rejected = RejectedStatus {
        node: "n9".to_owned(),
        code: "address".to_owned(),
        reason: "n2 has this address".to_owned(),
        stays: false,
    };
    let finding = FindingStatus {
        code: "clock".to_owned(),
        sentence: "The clock is wrong.".to_owned(),
        fix: "timedatectl set-ntp true".to_owned(),
    };
    for (status, code, verdict) in vec![
        (Status { guard: GuardStatus::default(), ..well() }, Code::GuardMissing, Verdict::Failed),
        (Status { ready: false, ..well() }, Code::NotReady, Verdict::Failed),
        (peers(&|peer| peer.pq.blocked = true), Code::PresharedBlocked, Verdict::Failed),
        (peers(&|peer| peer.pq.stripped_seconds = Some(40)), Code::PresharedStripped, Verdict::Failed),
        (peers(&|peer| peer.full_size_passes = Some(false)), Code::PathTooSmall, Verdict::Failed),
        (Status { rejected: vec![rejected], ..well() }, Code::Rejected, Verdict::Failed),
        (Status { failures: text("add route"), ..well() }, Code::StepFailed, Verdict::Failed),
        (Status { findings: vec![finding], ..well() }, Code::Host, Verdict::Good),
        (api(&|api| api.trust_policy = Fence::Missing), Code::FenceMissing, Verdict::Good),
        (api(&|api| api.error = Some("refused".to_owned())), Code::ApiAway, Verdict::Good),
        (api(&|api| api.published = false), Code::Unpublished, Verdict::Good),
        (Status { pending: text("n7"), ..well() }, Code::Pending, Verdict::Good),
        (Status { pods_outside: 3, ..well() }, Code::PodsOutside, Verdict::Good),
        (Status { damaged_files: text("ledger"), ..well() }, Code::FileDamaged, Verdict::Good),
        (Status { missing_protections: text("mlock"), ..well() }, Code::MemoryExposed, Verdict::Good),
        (
            Status {
                rotation: RotationStatus { blocked_by: text("n2"), ..RotationStatus::default() },
                ..well()
            },
            Code::RotationBlocked,
            Verdict::Good,
        ),
    ] {
        let mesh = Mesh::new(&mesh(vec![status, node("n2", &["n1", "n2"], &[])]));
        assert_eq!(found(&mesh), [("n1", code)]);
        assert_eq!(mesh.nodes[0].problems, [code]);
        assert_eq!(mesh.verdict(false), verdict, "{}", code.as_str());
        assert_eq!(mesh.verdict(true), Verdict::Failed, "{}", code.as_str());
        let text = render(&mesh, Shown::Problems, Paint::None);
        assert!(text.contains(&format!(" {}\n  n1: ", code.as_str())) && text.contains("do: "), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

#[test]
fn the_page_has_a_row_for_each_code_with_its_severity() {
    let page = include_str!("../../../../docs/problems.md");
    let rows: Vec<(&str, &str)> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            Some((cells.next()?.trim_end_matches('`'), cells.next()?))
        })
        .collect();
    let word = |severity| match severity {
        Severity::Error => "error",
        Severity::Unknown => "unknown",
        Severity::Warning => "warning",
    };
    let known: Vec<(&str, &str)> = Code::ALL.map(|code| (code.as_str(), word(code.severity()))).into();
    assert_eq!(rows, known);
}

#[test]
fn names_of_codes_are_the_same_in_text_and_json() {
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
}

#[test]
fn of_a_large_mesh_only_nodes_with_a_problem_are_shown() {
    let names: Vec<String> = (0..500).map(|number| format!("n{number:03}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let statuses = all.iter().map(|name| {
        let mut status = node(name, &all[..1], &[]);
        status.guard.in_place = !name.ends_with('7');
        status
    });
    let mesh = Mesh::new(&mesh(statuses.collect()));
    let text = render(&mesh, Shown::Usual, Paint::None);
    assert!(text.contains("450 nodes have no problem: --all shows them"), "{text}");
    assert!(text.contains("n007, n017, n027, n037, n047 and 45 more: "), "{text}");
    assert!(text.lines().count() < 80, "{text}");
    assert!(render(&mesh, Shown::All, Paint::None).lines().count() > 500);
    let one = mesh.only("n007");
    assert_eq!((one.nodes.len(), one.problems.len()), (1, 1));
}

#[test]
fn the_oldest_key_in_use_counts_and_former_ones_do_not() {
    let key = |state: &str, age_seconds| KeyStatus {
        slot: keyring::Slot::A,
        key: keyring::PublicKey::from_bytes(&[1; 32]).unwrap(),
        state: state.to_owned(),
        generation: 1,
        age_seconds,
    };
    let mut status = node("n1", &["n1"], &[]);
    status.rotation.keys = vec![key("active", 100), key("standby", 3_000), key("former", 900_000)];
    assert_eq!(Mesh::new(&mesh(vec![status])).totals.oldest_key_seconds, Some(3_000));
}

#[test]
fn colours_are_there_only_if_wanted() {
    let mut status = node("n1", &["n1"], &[]);
    status.ready = false;
    let mesh = Mesh::new(&mesh(vec![status]));
    assert!(!render(&mesh, Shown::Usual, Paint::None).contains('\u{1b}'));
    assert!(render(&mesh, Shown::Usual, Paint::Colours).contains("\u{1b}[31mERROR\u{1b}[0m not-ready"));
}
