//! What tests of nftables share: a network namespace of the test's own, and the program `nft` in it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread in a new network namespace, which ends with the thread.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let inside = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace: these tests need root");
        test();
    });
    if let Err(panic) = inside.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `nft`, which has to succeed; returns what it printed.
pub(crate) fn nft(arguments: &str) -> String {
    let output = Command::new("nft").args(arguments.split(' ')).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    text
}
