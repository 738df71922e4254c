//! Calls that are killed, and disks that are full.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, Pod};

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

/// How long a call takes that nobody disturbs: the longest of a few.
fn duration(mut call: impl FnMut()) -> Duration {
    let one = |_| {
        let since = Instant::now();
        call();
        since.elapsed()
    };
    (0..5).map(one).max().unwrap()
}

#[test]
fn an_add_that_is_killed_anywhere_leaves_nothing_after_del_or_gc() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    let whole = duration(|| {
        node.add(&pod).addresses();
        node.del(&pod);
    });
    let random = RandomState::new();
    let (mut killed, mut left) = (0, 0);
    for round in 0..100_u32 {
        let mut child = node.pod_call("ADD", &pod).start();
        let part = u32::try_from(random.hash_one(round) % 1000).unwrap();
        std::thread::sleep(whole * part / 1000);
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        left += u32::from(!node.reservations().is_empty());
        if round % 2 == 0 {
            node.del(&pod);
        } else {
            node.gc(&[]).silent();
        }
        node.assert_clean(&before);
        assert_eq!(pod.ip("link").as_array().unwrap().len(), 1, "round {round}: the pod has a link");
    }
    // Otherwise the calls were killed before they had begun or after they had ended, and this shows nothing.
    assert!(killed >= 10 && left >= 10, "killed {killed}, left something behind {left} of 100");
    node.add(&pod).addresses();
}

#[test]
fn a_del_that_is_killed_anywhere_can_be_repeated() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    node.add(&pod).addresses();
    let whole = duration(|| node.del(&pod)) * 3;
    let random = RandomState::new();
    for round in 0..30_u32 {
        node.add(&pod).addresses();
        let mut child = node.pod_call("DEL", &pod).start();
        let part = u32::try_from(random.hash_one(round) % 1000).unwrap();
        std::thread::sleep(whole * part / 1000);
        child.kill().unwrap();
        child.wait().unwrap();
        node.del(&pod);
        node.assert_clean(&before);
    }
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
    let with_one = node.listing();
    let filler = inside.join("filler");
    let full = std::fs::write(&filler, vec![1; 1 << 17]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    let refused = node.add(&b);
    assert_eq!(refused.code(), 5);
    assert!(refused.json["details"].as_str().unwrap().contains("No space left"), "{refused:?}");
    assert_eq!(node.listing(), with_one);
    assert_eq!(node.reservations().len(), 1, "an empty file is left: {:?}", node.reservations());
    node.del(&a);
    node.assert_clean(&before);

    std::fs::remove_file(&filler).unwrap();
    node.add(&b).addresses();
}

/// A read-only state folder can't hide what is there: DEL says that it could not free the address.
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
