use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::rotation::{Cause, Note, PeerId, Stance};
use crate::{PerSlot, PrivateKey, PublicKey, Slot};

fn node(name: &str) -> NodeRef {
    NodeRef { uid: PeerId::new(format!("uid-{name}")), name: name.to_owned() }
}

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public()
}

/// A complete rotation as the state machine reports it.
fn rotation(old: PerSlot<PublicKey>, new: PerSlot<PublicKey>) -> Vec<Event> {
    let peer = PeerId::new("uid-n2");
    let mut notes = vec![Note::Begun(Cause::Request)];
    for slot in [Slot::B, Slot::A] {
        notes.extend([
            Note::Staged(slot, *new.get(slot)),
            Note::Draining(slot, *old.get(slot)),
            Note::Acknowledged(peer.clone(), slot),
            Note::Installed(slot, *new.get(slot)),
            Note::Verified(peer.clone(), slot, *new.get(slot)),
            Note::Destroyed(slot, *old.get(slot), Duration::from_hours(24)),
        ]);
        if slot == Slot::B {
            notes.push(Note::Active(slot, *new.get(slot)));
        }
    }
    notes.push(Note::Finished(Duration::from_secs(3)));
    notes.iter().map(|note| Event::of(note, 3)).collect()
}

fn started(keys: PerSlot<PublicKey>) -> Event {
    Event::Started {
        version: "0".to_owned(),
        generation: 1,
        keys: keys.map(|key| key.fingerprint()),
        created: PerSlot { a: 100, b: 100 },
        prefer: Slot::A,
    }
}

/// A trail with a rotation in it, as the text of its only file.
fn trail(name: &str) -> (tempfile::TempDir, String, PerSlot<PublicKey>, PerSlot<PublicKey>) {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (PerSlot::from_fn(|_| key()), PerSlot::from_fn(|_| key()));
    let (mut trail, _) = Trail::open(directory.path(), 1 << 20, 2).unwrap();
    trail.append(200_000, "boot", &node(name), &[started(old)]).unwrap();
    trail.append(201_000, "boot", &node(name), &rotation(old, new)).unwrap();
    drop(trail);
    let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    (directory, text, old, new)
}

fn check(text: &str) -> CheckedTrail {
    verify(&[(PathBuf::from("audit.jsonl"), text.to_owned())])
}

#[test]
fn an_intact_trail_has_no_findings() {
    let (_folder, text, ..) = trail("n1");
    let verdict = check(&text);
    assert_eq!(verdict.findings, []);
    assert_eq!(verdict.lines.len(), 16);
    assert_eq!(verdict.node, Some(node("n1")));
}

#[test]
fn the_hash_is_what_sha256sum_says() {
    let (_folder, text, ..) = trail("n1");
    let line = text.lines().nth(3).unwrap();
    let (hashed, rest) = line.split_once(",\"hash\":\"").unwrap();
    let mut hash = String::new();
    for byte in Sha256::digest(hashed) {
        write!(hash, "{byte:02x}").unwrap();
    }
    assert_eq!(rest, format!("{hash}\"}}"));
}

#[test]
fn every_changed_byte_is_detected_at_its_line() {
    let (_folder, text, ..) = trail("n1");
    let whole: Vec<&str> = text.lines().collect();
    for (at, line) in whole.iter().enumerate() {
        for byte in (0..line.len()).step_by(7) {
            let mut bytes = line.as_bytes().to_vec();
            bytes[byte] ^= 1;
            let changed = String::from_utf8_lossy(&bytes).into_owned();
            let lines: Vec<&str> =
                whole.iter().enumerate().map(|(i, line)| if i == at { &changed } else { *line }).collect();
            let findings = check(&lines.join("\n")).findings;
            let first = findings.first().map(ToString::to_string).unwrap_or_default();
            assert!(first.starts_with(&format!("audit.jsonl:{}:", at + 1)), "{at} {byte}: {first}");
        }
    }
}

#[test]
fn deleted_swapped_repeated_and_foreign_lines_are_detected() {
    let (_folder, text, ..) = trail("n1");
    let (_other, foreign, ..) = trail("n1");
    let whole: Vec<&str> = text.lines().collect();
    for at in 1..whole.len() - 1 {
        let mut deleted = whole.clone();
        deleted.remove(at);
        let mut swapped = whole.clone();
        swapped.swap(at, at + 1);
        let mut repeated = whole.clone();
        repeated.insert(at, whole[at]);
        let mut strange = whole.clone();
        strange[at] = foreign.lines().nth(at).unwrap();
        for (what, lines) in
            [("deleted", deleted), ("swapped", swapped), ("repeated", repeated), ("strange", strange)]
        {
            let findings = check(&lines.join("\n")).findings;
            assert!(!findings.is_empty(), "{what} at {at}");
            let first = findings[0].to_string();
            assert!(
                first.starts_with(&format!("audit.jsonl:{}:", at + 1 + usize::from(what == "repeated"))),
                "{what} at {at}: {first}"
            );
        }
    }
    let appended = format!("{text}{}", text.lines().next().unwrap());
    assert!(matches!(check(&appended).findings[..], [Finding::Order { .. }]));
    assert_eq!(check("").findings, [Finding::Empty]);
}

#[test]
fn a_truncated_an_older_and_a_rewritten_trail_are_detected_by_a_witness() {
    let (_folder, text, old, _) = trail("n1");
    let whole = check(&text);
    let directory = tempfile::tempdir().unwrap();
    let (mut witness, _) = Trail::open(directory.path(), 1 << 20, 2).unwrap();
    let seen = Event::head_of(PeerId::new("uid-n1"), &whole.head());
    witness.append(1, "boot", &node("n2"), &[started(old), seen]).unwrap();
    let witness = verify(&read(directory.path()).unwrap());
    assert_eq!(against_witness(&whole, &witness), []);
    for keep in 1..16 {
        let cut: Vec<&str> = text.lines().take(keep).collect();
        let cut = check(&cut.join("\n"));
        assert_eq!(cut.findings, [], "the chain alone can't tell");
        let finding = WitnessFinding::CutOff {
            witness: "n2".to_owned(),
            seen: 16,
            found: u64::try_from(keep).unwrap(),
        };
        assert_eq!(against_witness(&cut, &witness), [finding]);
    }
    // The owner rewrites everything, with one event replaced.
    let rewritten = tempfile::tempdir().unwrap();
    let (mut trail, _) = Trail::open(rewritten.path(), 1 << 20, 2).unwrap();
    for line in &whole.lines {
        let event = match &line.event {
            Event::Begun { .. } => Event::Begun { cause: Cause::Age },
            event => event.clone(),
        };
        trail.append(line.time, &line.boot, &line.node, &[event]).unwrap();
    }
    let forged = verify(&read(rewritten.path()).unwrap());
    assert_eq!(forged.findings, []);
    let finding = WitnessFinding::Forked { witness: "n2".to_owned(), seq: 16 };
    assert_eq!(against_witness(&forged, &witness), [finding]);
}

#[test]
fn full_files_are_archived_without_breaking_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    for start in 0..4 {
        let (mut trail, opening) = Trail::open(directory.path(), 2000, 100).unwrap();
        assert_eq!((trail.head().seq, opening), (start * 10, Opening::default()));
        for _ in 0..10 {
            trail.append(1, "boot", &node("n1"), &[Event::Begun { cause: Cause::Age }]).unwrap();
        }
    }
    let files = read(directory.path()).unwrap();
    assert!(files.len() > 3);
    let verdict = verify(&files);
    assert_eq!((verdict.findings.len(), verdict.lines.len()), (0, 40));
    let (mut trail, _) = Trail::open(directory.path(), 2000, 1).unwrap();
    for _ in 0..20 {
        trail.append(1, "boot", &node("n1"), &[Event::Begun { cause: Cause::Age }]).unwrap();
    }
    let files = read(directory.path()).unwrap();
    assert_eq!(files.len(), 2, "one beside the one that grows");
    assert_eq!(verify(&files).findings, []);
}

#[test]
fn an_incomplete_last_line_is_removed_and_the_chain_continues() {
    let (directory, text, ..) = trail("n1");
    let path = directory.path().join("audit.jsonl");
    let whole = text.lines().count() as u64;
    for left in [1, 10, 100] {
        let torn = format!("{text}{}", &text.lines().next().unwrap()[..left]);
        std::fs::write(&path, torn).unwrap();
        let (mut trail, opening) = Trail::open(directory.path(), 1 << 20, 2).unwrap();
        assert_eq!(opening, Opening { torn: left as u64, damaged: None });
        assert_eq!(trail.head().seq, whole);
        trail.append(1, "boot", &node("n1"), &[Event::Repaired { bytes: opening.torn }]).unwrap();
        assert_eq!(verify(&read(directory.path()).unwrap()).findings, []);
    }
}

/// A small trail of an archived file and a current one, each with two lines.
fn small(directory: &std::path::Path) {
    let (mut trail, _) = Trail::open(directory, 500, 8).unwrap();
    for _ in 0..4 {
        trail.append(1, "boot", &node("n1"), &[Event::Begun { cause: Cause::Age }]).unwrap();
    }
    assert_eq!(files(directory).unwrap().len(), 2);
}

/// A directory in memory, if there is such a place: thousands of files are synced.
fn quick_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Opens a damaged trail and continues it. What is found must never be less than what can still be read, and the new line
/// must be read back.
fn continued(directory: &std::path::Path, what: &str) -> (Opening, CheckedTrail) {
    let readable = verify(&read(directory).unwrap()).lines;
    let last = readable.iter().map(|line| line.seq).max().unwrap_or_default();
    let (mut trail, opening) =
        Trail::open(directory, 500, 8).unwrap_or_else(|error| panic!("{what}: {error}"));
    let head = trail.append(2, "boot", &node("n1"), &[Event::Begun { cause: Cause::Request }]).unwrap();
    assert!(head.seq > last, "{what}: line {} after line {last}", head.seq);
    drop(trail);
    let verdict = verify(&read(directory).unwrap());
    assert_eq!(verdict.head(), head, "{what}");
    for line in &readable {
        assert!(verdict.lines.contains(line), "{what}: line {} is gone", line.seq);
    }
    let (trail, again) = Trail::open(directory, 500, 8).unwrap();
    assert_eq!((trail.head(), again), (head, Opening::default()), "{what}: reported once");
    (opening, verdict)
}

#[test]
fn a_trail_that_is_damaged_at_any_byte_goes_on_and_the_damaged_file_is_kept() {
    let original = tempfile::tempdir().unwrap();
    small(original.path());
    for file in files(original.path()).unwrap() {
        let whole = std::fs::read(&file).unwrap();
        let is_current = file.ends_with("audit.jsonl");
        for at in 0..whole.len() {
            let changed = |byte: u8| {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                bytes
            };
            let cut = whole[..at].to_vec();
            for (kind, bytes) in [("flip", changed(whole[at] ^ 1)), ("no text", changed(0xff)), ("cut", cut)]
            {
                let what = format!("{kind} at {at} of {}", file.display());
                let directory = quick_directory();
                for other in files(original.path()).unwrap() {
                    std::fs::copy(&other, directory.path().join(other.file_name().unwrap())).unwrap();
                }
                std::fs::write(directory.path().join(file.file_name().unwrap()), &bytes).unwrap();
                let (opening, verdict) = continued(directory.path(), &what);
                if kind != "cut" && whole[at] != b'\n' {
                    assert_eq!(verdict.head().seq, 5, "{what}: a line that can't be read keeps its number");
                }
                // At the end of a line only a witness notices it.
                let ends = |at: Option<usize>| at.is_none_or(|at| whole[at] == b'\n');
                let whole_lines = kind == "cut" && (ends(at.checked_sub(1)) || ends(Some(at)));
                let is_said = opening.torn > 0 || opening.damaged.is_some() || !verdict.findings.is_empty();
                assert!(is_said || whole_lines, "{what}: {opening:?}");
                if is_current && kind != "cut" && at + 1 < whole.len() {
                    let (name, lines) = opening.damaged.unwrap();
                    assert_eq!(std::fs::read(directory.path().join(name)).unwrap(), bytes, "{what}");
                    assert!((1..=2).contains(&lines), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_trail_of_nothing_but_garbage_goes_on() {
    for garbage in [&b"\n"[..], b"\n\n\n", b"\0\0\0\n", b"{}\n{}\n", &[0xff; 5_000], b"\xff\n\xfe\n"] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("audit.jsonl"), garbage).unwrap();
        continued(directory.path(), "garbage");
        let directory = tempfile::tempdir().unwrap();
        small(directory.path());
        std::fs::write(directory.path().join("audit.jsonl"), garbage).unwrap();
        continued(directory.path(), "garbage behind archived files");
    }
}

#[test]
fn what_a_trail_says_is_missing_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (mut trail, _) = Trail::open(directory.path(), 500, 1).unwrap();
    let omitted = Event::Omitted { subject: "uid-n2".to_owned(), lines: 7 };
    for event in [&Event::Lost { events: 3 }, &omitted, &omitted].into_iter().cycle().take(9) {
        trail.append(1, "boot", &node("n1"), std::slice::from_ref(event)).unwrap();
    }
    let verdict = verify(&read(directory.path()).unwrap());
    assert_eq!(verdict.findings, []);
    let first = verdict.lines[0].seq;
    assert!(first > 1);
    let gaps = verdict.gaps();
    assert_eq!(gaps[0], format!("lines 1 to {} were deleted with the oldest files", first - 1));
    assert!(gaps.iter().any(|gap| gap.starts_with("3 events before line ")), "{gaps:?}");
    let about = gaps.last().unwrap();
    assert!(about.ends_with("lines about uid-n2 were left out: it exceeded its quota"), "{gaps:?}");
}

#[test]
fn a_witness_trail_that_was_cut_off_or_rewritten_contradicts_the_own_trail() {
    let places = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [(mut own, _), (mut witness, _)] =
        [0, 1].map(|at: usize| Trail::open(places[at].path(), 1 << 20, 2).unwrap());
    for seq in 1..=4 {
        let seen = Event::head_of(PeerId::new("uid-n2"), &Head { seq, hash: [1; 32] });
        let head = witness.append(1, "boot", &node("n1"), &[seen]).unwrap();
        own.append(1, "boot", &node("n1"), &[Event::witness_head(&head)]).unwrap();
    }
    let [own, whole] = [0, 1].map(|at: usize| verify(&read(places[at].path()).unwrap()));
    assert_eq!(against_own(&whole, &own), []);
    let mut cut = whole.clone();
    cut.lines.truncate(3);
    assert!(matches!(against_own(&cut, &own)[..], [WitnessFinding::CutOff { seen: 4, found: 3, .. }]));
    let mut rewritten = whole;
    rewritten.lines[1].hash = rewritten.lines[2].hash.clone();
    assert!(matches!(against_own(&rewritten, &own)[..], [WitnessFinding::Forked { seq: 2, .. }]));
}

#[test]
fn a_trail_is_removed_with_its_archived_files_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join(DIRECTORY);
    assert!(!remove(&directory).unwrap(), "nothing to remove");
    for foreign in [true, false] {
        let (mut trail, _) = Trail::open(&directory, 500, 100).unwrap();
        for _ in 0..10 {
            trail.append(1, "boot", &node("n1"), &[Event::Begun { cause: Cause::Age }]).unwrap();
        }
        drop(trail);
        assert!(read(&directory).unwrap().len() > 2);
        let witness = directory.join(WITNESS_DIRECTORY);
        drop(Trail::open(&witness, 500, 100).unwrap());
        let note = directory.join("note.txt");
        if foreign {
            std::fs::write(&note, "not ours").unwrap();
        }
        assert!(remove(&directory).unwrap());
        assert_eq!(directory.exists(), foreign);
        if foreign {
            assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
            std::fs::remove_file(&note).unwrap();
        }
    }
}

#[test]
fn of_a_linked_trail_only_the_link_is_removed() {
    let (target, text, ..) = trail("n1");
    let state = tempfile::tempdir().unwrap();
    let link = state.path().join(DIRECTORY);
    for leads_to in [target.path().to_owned(), state.path().join("nowhere")] {
        std::os::unix::fs::symlink(&leads_to, &link).unwrap();
        assert!(remove(&link).unwrap());
        assert!(link.symlink_metadata().is_err(), "the link is gone");
        assert!(!remove(&link).unwrap(), "nothing to remove");
    }
    assert_eq!(std::fs::read_to_string(target.path().join("audit.jsonl")).unwrap(), text);
}

#[test]
fn a_trail_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let (_trail, _) = Trail::open(directory.path(), 1000, 1).unwrap();
    let error = Trail::open(directory.path(), 1000, 1).unwrap_err();
    assert!(error.to_string().contains("another daemon"), "{error}");
}

#[test]
fn the_report_has_each_key_s_history_and_what_is_not_proven() {
    let (_folder, text, old, new) = trail("n1");
    let lines = check(&text).lines;
    let found = report(&[&lines], 1_201_000, 10_000);
    let [n1] = &found.nodes[..] else { panic!("{found:?}") };
    assert_eq!((n1.node.as_str(), n1.own_trail, n1.rotations.as_slice()), ("n1", true, [3000].as_slice()));
    let life =
        |key: &PublicKey| n1.keys.iter().find(|life| life.key == key.fingerprint().to_string()).unwrap();
    for slot in Slot::ALL {
        let (old, new) = (life(old.get(slot)), life(new.get(slot)));
        assert_eq!((old.since, old.replaced, old.destroyed), (100_000, Some(201_000), Some(201_000)));
        assert_eq!((new.since, new.replaced, new.destroyed), (201_000, None, None));
        assert!(new.verified_by.contains("uid-n2"));
    }
    assert_eq!((life(&old.a).active.len(), life(&new.b).active.len()), (1, 1));
    assert_eq!(found.oldest.as_ref().map(|(_, _, age)| *age), Some(1000));
    assert!(found.overdue.is_empty() && found.not_proven_destroyed.is_empty());
    assert_eq!(report(&[&lines], 1_201_000, 999).overdue.len(), 2);
    // Without the destruction of one key the report lists it.
    let without: Vec<Line> = lines
        .into_iter()
        .filter(|line| !matches!(line.event, Event::Destroyed { slot: Slot::A, .. }))
        .collect();
    let found = report(&[&without], 1_201_000, 10_000);
    assert_eq!(found.not_proven_destroyed, [("n1".to_owned(), old.a.fingerprint().to_string())]);
}

#[test]
fn keys_not_destroyed_are_found_for_the_node_itself_only() {
    let (_folder, text, old, new) = trail("n1");
    let lines = check(&text).lines;
    let found = |lines: &[Line], node| -> Vec<String> {
        let mut keys: Vec<String> =
            not_destroyed(lines, &PeerId::new(node)).into_iter().map(|life| life.key).collect();
        keys.sort();
        keys
    };
    let text = |keys: &[PublicKey]| {
        let mut keys: Vec<String> = keys.iter().map(|key| key.fingerprint().to_string()).collect();
        keys.sort();
        keys
    };
    assert_eq!(found(&lines, "uid-n1"), text(&[new.a, new.b]));
    assert_eq!(found(&lines, "uid-n2"), [] as [String; 0]);
    // A crash happened between the last step and the destruction of a key.
    let crashed: Vec<Line> = lines
        .into_iter()
        .filter(|line| line.event.is_of_own_keys())
        .filter(|line| !matches!(line.event, Event::Destroyed { slot: Slot::A, .. }))
        .collect();
    assert_eq!(found(&crashed, "uid-n1"), text(&[new.a, new.b, old.a]));
}

#[test]
fn a_rotation_can_be_read_from_a_peer_s_trail_alone() {
    let (old, new) = (PerSlot::from_fn(|_| key()), PerSlot::from_fn(|_| key()));
    let directory = tempfile::tempdir().unwrap();
    let (mut trail, _) = Trail::open(directory.path(), 1 << 20, 2).unwrap();
    let steps = [
        (old, Slot::A, None, false),
        (old, Slot::A, Some(Slot::B), false),
        (PerSlot { a: old.a, b: new.b }, Slot::A, Some(Slot::B), true),
        (PerSlot { a: old.a, b: new.b }, Slot::B, None, false),
        (PerSlot { a: old.a, b: new.b }, Slot::B, Some(Slot::A), false),
        (new, Slot::B, Some(Slot::A), true),
        (new, Slot::B, None, false),
    ];
    for (at, (keys, prefer, drain, installed)) in (1..).zip(steps) {
        let stance = Stance { id: PeerId::new("uid-n1"), generation: at, prefer, drain, installed };
        let event = Event::announced("n1", &stance, keys.map(|key| key.fingerprint()));
        trail.append(at * 1000, "boot", &node("n2"), &[event]).unwrap();
    }
    let lines = verify(&read(directory.path()).unwrap()).lines;
    let found = report(&[&lines], 10_000, 60);
    let n1 = found.nodes.iter().find(|node| node.node == "n1").unwrap();
    assert!(!n1.own_trail);
    let times: Vec<_> = n1.keys.iter().map(|key| (key.since, key.replaced, key.active.clone())).collect();
    assert_eq!(
        times,
        [
            (1000, Some(6000), vec![1000]),
            (1000, Some(3000), vec![]),
            (3000, None, vec![4000]),
            (6000, None, vec![]),
        ]
    );
    assert_eq!(found.not_proven_destroyed.len(), 2, "only its own trail could prove it");
}

#[test]
fn exports_have_every_line_and_no_secret_can_be_among_them() {
    let (_folder, text, ..) = trail("n1");
    let lines = check(&text).lines;
    let all: Vec<&Line> = lines.iter().collect();
    let jsonl = export(&all, Format::Jsonl);
    assert_eq!(jsonl.lines().count(), 16);
    let csv = export(&all, Format::Csv);
    assert_eq!(csv.lines().count(), 17);
    assert!(csv.lines().all(|line| line.contains(',')));
    let ocsf: Vec<serde_json::Value> =
        export(&all, Format::Ocsf).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |activity| ocsf.iter().filter(|event| event["activity_id"] == activity).count();
    assert_eq!((count(1), count(3), count(4)), (2, 3, 2));
    assert!(
        ocsf.iter()
            .all(|event| event["type_uid"].as_u64() == event["activity_id"].as_u64().map(|id| 300_400 + id))
    );
}

#[test]
fn the_trail_corpus_passes() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/trail");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        crate::fuzzing::trail(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 10, "only {count} files: the corpus is missing");
}
