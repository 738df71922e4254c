use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PrivateKey, PublicKey, Slot};

use super::evidence::{
    Control, FenceEvidence, Forged, Forgery, GuardEvidence, OwnKey, PeerEvidence, SlotEvidence,
    TrailEvidence, WitnessedLine,
};
use super::*;
use crate::mesh::Paint;
use crate::pq::{PairStatus, PqSlotStatus};

const FOUR: [&str; 4] = ["n1", "n2", "n3", "n4"];

fn key(node: &str, slot: Slot) -> PublicKey {
    let mut bytes = [7; 32];
    for (at, byte) in node.bytes().chain(slot.to_string().bytes()).enumerate() {
        bytes[at + 1] = byte;
    }
    PrivateKey::from_bytes(&bytes).unwrap().public()
}

fn slot(node: &str, slot: Slot) -> SlotEvidence {
    SlotEvidence {
        announced: Some(key(node, slot)),
        held: Some(key(node, slot)),
        handshake_age: Some(17),
        tries: 1,
        echo_microseconds: Some(300),
        echo_from: Some("10.244.1.1".parse().unwrap()),
        full_size_passes: Some(true),
        larger_refused: Some(true),
        probed: 2000,
        sent: Some(2500),
        received: Some(700),
        pq: PqSlotStatus { protection: Protection::Proven, ..PqSlotStatus::default() },
    }
}

/// A node that is well.
fn well(name: &str, all: &[&str]) -> Evidence {
    let others = || all.iter().copied().filter(|other| *other != name);
    let range: IpNetwork = "10.244.0.0/16".parse().unwrap();
    let control = Control { range, link: "eth0".into(), sent: 1, seen: 1, dropped: 1, error: None };
    let refused = |what| Forgery { what, refused: Some(true), words: "meshd-own-node".into() };
    Evidence {
        node: name.into(),
        uid: format!("uid-{name}"),
        running_seconds: 4000,
        keys: PerSlot::from_fn(|slot| OwnKey {
            announced: Some(key(name, slot)),
            held: Some(key(name, slot)),
        }),
        guard: GuardEvidence { in_place: Some(true), controls: vec![control], ..GuardEvidence::default() },
        fence: FenceEvidence {
            other: others().next().map(ToOwned::to_owned),
            forgeries: Forged::ALL.map(refused).into(),
        },
        trail: TrailEvidence {
            first: 1,
            last: 2,
            lines: [(1, format!("{name}-1")), (2, format!("{name}-2"))].into(),
            witnessed: others()
                .map(|other| (format!("uid-{other}"), WitnessedLine { line: 2, hash: format!("{other}-2") }))
                .collect(),
            ..TrailEvidence::default()
        },
        peers: others()
            .map(|other| PeerEvidence {
                node: other.into(),
                uid: format!("uid-{other}"),
                address: Some("10.244.1.1".parse().unwrap()),
                active: Some(Slot::A),
                mtu: 1420,
                pq: PairStatus { enabled: Some(true), ..PairStatus::default() },
                slots: PerSlot::from_fn(|of| slot(other, of)),
            })
            .collect(),
        ..Evidence::default()
    }
}

fn gathered(change: impl FnOnce(&mut BTreeMap<String, Evidence>)) -> Report {
    let mut all: BTreeMap<String, Evidence> =
        FOUR.iter().map(|name| ((*name).to_owned(), well(name, &FOUR))).collect();
    change(&mut all);
    Report::of_mesh(7, all.into_iter().map(|(name, one)| (name, Gathered::Evidence(Box::new(one)))).collect())
}

fn found(report: &Report) -> Vec<(Weight, Code, &str, Option<&str>)> {
    let of = |finding: &'_ Finding| (finding.weight, finding.code);
    report
        .findings
        .iter()
        .map(|finding| (of(finding).0, of(finding).1, finding.node.as_str(), finding.peer.as_deref()))
        .collect()
}

#[test]
fn what_nothing_speaks_against_is_encrypted() {
    let report = gathered(|_| {});
    assert_eq!(found(&report), []);
    assert_eq!((report.verdict, report.exit_code()), (Verdict::Encrypted, 0));
    assert_eq!(
        render(&report, false, Paint::None),
        "ENCRYPTED 12/12 pairs, 4 nodes, PQ 24/24 slots\n  no pod address left a node in the clear for 66 min, and packets that were sent\n  \
         so on purpose were caught on each\n"
    );
    assert_eq!(report.totals.witnesses, 12);
    assert_eq!(Report::of_mesh(7, BTreeMap::new()).exit_code(), 2, "of nothing nothing is proven");
}

/// A name, a change of the evidence of n2, and what it has to be called.
type Case = (&'static str, fn(&mut Evidence), Code, Verdict, u8);

/// What a node can find by itself.
fn cases() -> Vec<Case> {
    let not_proven = Verdict::NotProven;
    vec![
        ("escaped", |node| node.guard.escaped = 3, Code::SentInTheClear, Verdict::Leak, 1),
        ("guard changed", |node| node.guard.in_place = Some(false), Code::GuardChanged, not_proven, 1),
        ("guard unreadable", |node| node.guard.in_place = None, Code::GuardChanged, not_proven, 1),
        ("guard away", |node| node.guard.repaired_seconds_ago = Some(599), Code::GuardWasAway, not_proven, 1),
        ("not dropped", |node| node.guard.controls[0].dropped = 0, Code::ControlNotCaught, not_proven, 1),
        ("not seen", |node| node.guard.controls[0].seen = 0, Code::ControlNotCaught, not_proven, 1),
        ("not sent", |node| node.guard.controls[0].sent = 0, Code::ControlNotSent, not_proven, 2),
        ("no control", |node| node.guard.controls.clear(), Code::ControlNotSent, not_proven, 2),
        (
            "accepted",
            |node| node.fence.forgeries[1].refused = Some(false),
            Code::ForgeryAccepted,
            not_proven,
            1,
        ),
        ("not asked", |node| node.fence.forgeries[0].refused = None, Code::ForgeryUntested, not_proven, 2),
        ("never asked", |node| node.fence.forgeries.clear(), Code::ForgeryUntested, not_proven, 2),
        ("trail", |node| node.trail.problems.push("x".into()), Code::TrailChanged, not_proven, 1),
        ("trail unread", |node| node.trail.error = Some("x".into()), Code::TrailUnread, not_proven, 2),
        ("own key", |node| node.keys.a.announced = None, Code::OwnKeyDiffers, not_proven, 1),
        ("held", |node| node.peers[0].slots.b.announced = None, Code::KeyNotHeld, not_proven, 1),
        ("echo", |node| node.peers[0].slots.b.echo_microseconds = None, Code::NoEcho, not_proven, 1),
        ("source", |node| node.peers[0].slots.a.echo_from = None, Code::WrongSource, not_proven, 1),
        ("session", |node| node.peers[0].slots.a.handshake_age = Some(181), Code::NoSession, not_proven, 1),
        ("no session", |node| node.peers[0].slots.a.handshake_age = None, Code::NoSession, not_proven, 1),
        (
            "size",
            |node| node.peers[0].slots.a.full_size_passes = Some(false),
            Code::FullSizeLost,
            not_proven,
            1,
        ),
        (
            "size unknown",
            |node| node.peers[0].slots.a.full_size_passes = None,
            Code::FullSizeLost,
            not_proven,
            1,
        ),
        (
            "larger",
            |node| node.peers[0].slots.a.larger_refused = Some(false),
            Code::SizeNotLimited,
            not_proven,
            1,
        ),
        ("sent", |node| node.peers[0].slots.a.sent = Some(1999), Code::BytesMissing, not_proven, 1),
        ("added anew", |node| node.peers[0].slots.a.received = None, Code::BytesMissing, not_proven, 1),
        ("blocked", |node| node.peers[0].pq.blocked = true, Code::PresharedMissing, not_proven, 1),
        (
            "stripped",
            |node| node.peers[0].pq.stripped_seconds = Some(31),
            Code::PresharedMissing,
            not_proven,
            1,
        ),
        (
            "unproven",
            |node| node.peers[0].slots.b.pq.protection = Protection::Set,
            Code::PresharedUnproven,
            Verdict::Encrypted,
            0,
        ),
        ("arrived", |node| node.guard.arrived = 3, Code::ArrivedInTheClear, Verdict::Encrypted, 0),
    ]
}

#[test]
fn each_thing_that_speaks_against_it_has_its_code_and_changes_the_verdict() {
    let cases = cases();
    let mut codes: BTreeSet<Code> = cases.iter().map(|case| case.2).collect();
    for (name, change, code, verdict, exit) in cases {
        let report = gathered(|all| change(all.get_mut("n2").unwrap()));
        let all: Vec<(Code, &str)> = found(&report).iter().map(|found| (found.1, found.2)).collect();
        assert_eq!(all, [(code, "n2")], "{name}");
        assert_eq!((report.verdict, report.exit_code()), (verdict, exit), "{name}");
        let text = render(&report, false, Paint::None);
        assert!(
            text.contains(code.as_str()) && text.contains(code.advice().split(' ').next().unwrap()),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    // By the tests below.
    codes.extend([Code::NoEvidence, Code::NotAPeer, Code::KeysDisagree, Code::TrailDisagrees]);
    assert_eq!(codes.len(), Code::ALL.len());
}

#[test]
fn ends_that_mean_different_keys_are_both_named() {
    let report = gathered(|all| {
        let other = key("x", Slot::B);
        // Both the device and the announcement, as n2 sees them.
        let node = all.get_mut("n2").unwrap();
        (node.keys.b.held, node.keys.b.announced) = (Some(other), Some(other));
    });
    assert_eq!(
        found(&report),
        ["n1", "n3", "n4"].map(|node| (Weight::Failed, Code::KeysDisagree, node, Some("n2")))
    );
    assert_eq!(report.totals.proven, 9);
    let what = &report.findings[0].what;
    assert!(what.starts_with("n1 has ") && what.contains("n2 itself has "), "{what}");
    // While n2 replaces its keys that is not known to be wrong, whoever finds it.
    let report = gathered(|all| {
        let node = all.get_mut("n2").unwrap();
        (node.keys.b.held, node.rotating) = (Some(key("x", Slot::B)), true);
        all.get_mut("n1").unwrap().peers[0].slots.b.echo_microseconds = None;
    });
    assert!(found(&report).contains(&(Weight::Unknown, Code::NoEcho, "n1", Some("n2"))), "{report:#?}");
    assert_eq!((report.verdict, report.exit_code()), (Verdict::NotProven, 2));
}

#[test]
fn a_node_without_evidence_takes_its_pairs_along() {
    let mut all: BTreeMap<String, Gathered> = FOUR
        .iter()
        .map(|name| ((*name).to_owned(), Gathered::Evidence(Box::new(well(name, &FOUR)))))
        .collect();
    all.insert("n4".into(), Gathered::Nothing("the DaemonSet has no pod there".into()));
    let report = Report::of_mesh(7, all);
    assert_eq!(found(&report), [(Weight::Unknown, Code::NoEvidence, "n4", None)]);
    assert_eq!((report.totals.proven, report.totals.pairs, report.exit_code()), (6, 12, 2));
    let line = verdict_line(&report);
    assert_eq!(line, "NOT PROVEN 6/12 pairs, 4 nodes of which 1 gave no evidence, PQ 18/18 slots");
}

#[test]
fn a_node_that_leaves_another_one_out_is_named() {
    let report = gathered(|all| all.get_mut("n1").unwrap().peers.retain(|peer| peer.node != "n3"));
    assert_eq!(found(&report), [(Weight::Failed, Code::NotAPeer, "n1", Some("n3"))]);
    assert_eq!(report.totals.proven, 11);
}

#[test]
fn a_trail_that_is_not_what_a_witness_has_recorded_is_named_with_the_witness() {
    for (line, hash, words) in [(2, "other", "has recorded another line 2"), (3, "n1-3", "ends at line 2")] {
        let report = gathered(|all| {
            let seen = WitnessedLine { line, hash: hash.into() };
            all.get_mut("n3").unwrap().trail.witnessed.insert("uid-n1".into(), seen);
        });
        assert_eq!(found(&report), [(Weight::Failed, Code::TrailDisagrees, "n1", Some("n3"))]);
        assert!(report.findings[0].what.contains(words), "{}", report.findings[0].what);
        assert_eq!((report.totals.proven, report.totals.witnesses), (12, 11));
    }
}

#[test]
fn digests_notice_every_change_and_can_be_checked_with_other_tools() {
    let report = gathered(|_| {});
    let text = serde_json::to_string(&report).unwrap();
    let read: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(read, report);
    assert_eq!(read.changed(), [] as [String; 0]);
    for (from, to, what) in [
        ("\"escaped\":0", "\"escaped\":1", "n1"),
        ("\"verdict\":\"encrypted\"", "\"verdict\":\"leak\"", "the whole"),
    ] {
        let changed: Report = serde_json::from_str(&text.replacen(from, to, 1)).unwrap();
        assert_eq!(changed.changed()[0], what);
        assert_eq!(changed.changed().last().unwrap(), "the whole");
    }
}

#[test]
fn one_node_judges_its_own_end() {
    let report = Report::of_node(7, well("n1", &FOUR));
    assert_eq!(verdict_line(&report), "ENCRYPTED 3/3 pairs, 1 nodes, PQ 6/6 slots");
    let mut node = well("n1", &FOUR);
    node.peers[0].slots.b.echo_microseconds = None;
    let report = Report::of_node(7, node);
    assert_eq!((report.totals.proven, report.exit_code()), (2, 1));
    assert_eq!(report.changed(), [] as [String; 0]);
}

#[test]
fn the_page_has_a_row_for_each_code_with_its_weight() {
    let page = include_str!("../../../../docs/verify.md");
    let rows: Vec<(String, String)> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            Some((cells.next()?.strip_suffix('`')?.to_owned(), cells.next()?.to_owned()))
        })
        .filter(|(code, _)| !code.contains(' '))
        .collect();
    let word = |code: Code| serde_json::to_value(code.weight()).unwrap().as_str().unwrap().to_owned();
    let known: Vec<(String, String)> = Code::ALL.map(|code| (code.as_str().to_owned(), word(code))).into();
    assert_eq!(rows, known);
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
    }
}
