//! Calls that are killed, and disks that are full.

use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, Pod};

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

/// How often a call is killed.
const KILLS: u32 = 100;

/// How long an undisturbed `call` takes: the median of a few. `after` undoes what it did.
fn duration(call: impl Fn(), after: impl Fn()) -> Duration {
    let one = |_| {
        let since = Instant::now();
        call();
        let took = since.elapsed();
        after();
        took
    };
    let mut took: Vec<Duration> = (0..5).map(one).collect();
    took.sort_unstable();
    took[2]
}

/// Calls until [`KILLS`] calls were killed before they ended, each at a random moment of its `duration`.
/// `inspect` gets the state that each call left, and whether it was killed, and clears it.
fn kill(duration: Duration, start: impl Fn() -> Child, mut inspect: impl FnMut(u32, bool)) {
    let random = RandomState::new();
    let mut killed = 0;
    for round in 0.. {
        assert!(round < 20 * KILLS, "only {killed} of {round} calls could be killed before they ended");
        let mut child = start();
        let part = u32::try_from(random.hash_one(round) % 1000).unwrap();
        std::thread::sleep(duration * part / 1000);
        child.kill().unwrap();
        let by_us = child.wait().unwrap().signal() == Some(9);
        killed += u32::from(by_us);
        inspect(round, by_us);
        if killed == KILLS {
            return;
        }
    }
}

#[test]
fn an_add_that_is_killed_anywhere_leaves_nothing_after_del_or_gc() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let attached = node.attached();
    let pod = Pod::new("a");
    let undisturbed = duration(|| drop(node.add(&pod).addresses()), || node.del(&pod));
    let (mut reservations, mut links) = (0, 0);
    let add = || node.pod_call("ADD", &pod).start();
    kill(undisturbed, add, |round, killed| {
        reservations += u32::from(killed && !node.reservations().is_empty());
        links += u32::from(killed && node.attached() != attached);
        if round % 2 == 0 {
            node.del(&pod);
        } else {
            node.gc(&[]).silent();
        }
        node.assert_clean(&before);
        assert_eq!(pod.ip("link").as_array().unwrap().len(), 1, "round {round}: the pod has a link");
    });
    // Otherwise all were killed before they had begun, and this shows nothing.
    assert!(reservations >= 10 && links >= 5, "{reservations} left reservations and {links} links behind");
    node.add(&pod).addresses();
}

#[test]
fn a_del_that_is_killed_anywhere_can_be_repeated() {
    let node = Node::new(&DUAL);
    let pod = Pod::new("a");
    let before = node.listing();
    let add = || drop(node.add(&pod).addresses());
    add();
    let undisturbed = duration(|| node.del(&pod), add);
    let del = || node.pod_call("DEL", &pod).start();
    kill(undisturbed, del, |_, _| {
        node.del(&pod);
        node.assert_clean(&before);
        add();
    });
}

#[test]
fn a_full_disk_is_told_and_leaves_no_empty_file() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let state = node.state_dir();
    std::fs::create_dir(&state).unwrap();
    node.sh(&format!("mount -t tmpfs -o size=64k tmpfs {}", state.display()));
    let inside = node.outside(&state);
    node.add(&a).addresses();
    let with_one = node.attached();
    let filler = inside.join("filler");
    let full = std::fs::write(&filler, vec![1; 1 << 17]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    let refused = node.add(&b);
    assert_eq!(refused.code(), 5);
    assert!(refused.json["details"].as_str().unwrap().contains("No space left"), "{refused:?}");
    assert_eq!(node.attached(), with_one);
    assert_eq!(node.reservations().len(), 1, "an empty file is left: {:?}", node.reservations());
    node.del(&a);
    node.assert_clean(&before);

    std::fs::remove_file(&filler).unwrap();
    node.add(&b).addresses();
}

/// A read-only state directory can't hide what is there: DEL reports that it could not free the address.
#[test]
fn a_disk_that_can_not_be_written_is_told() {
    let node = Node::new(&DUAL);
    let pod = Pod::new("a");
    let state = node.state_dir();
    std::fs::create_dir(&state).unwrap();
    node.sh(&format!("mount -t tmpfs tmpfs {}", state.display()));
    node.add(&pod).addresses();
    node.sh(&format!("mount -o remount,ro {}", state.display()));
    let refused = node.pod_call("DEL", &pod).run();
    assert_eq!(refused.code(), 5);
    assert_ne!(refused.json["details"], Value::Null);
    node.sh(&format!("mount -o remount,rw {}", state.display()));
    node.del(&pod);
    assert_eq!(node.reservations(), Vec::<String>::new());
}
