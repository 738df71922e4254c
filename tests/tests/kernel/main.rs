//! meshd with the kernel's WireGuard: devices are adopted, repaired, mixed with engines, and replaced by them, without a
//! lost packet.
//!
//! All of them need WireGuard in the kernel and are therefore marked as ignored; `make test-kernel` runs them in a
//! virtual machine, emulated in software. The limits are those of the documentation unless a comment says otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod adopted;
mod contested;
mod mixed;
mod noisy;
mod recorded;
mod repaired;
mod scale;
mod selection;

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::require::{self, Need};
use lab::{End, IpVersion, Lab, Node, Stream};

/// Timeout of steps that a test does not measure.
const WITHIN: Duration = Duration::from_mins(1);
/// Short timeouts, so that a rotation takes seconds; the conditions are the same.
const QUICK: [&str; 4] = ["--rotation-drain", "500ms", "--rotation-timeout", "20s"];
/// A node with the kernel's WireGuard, and one with an engine.
const KERNEL: [&str; 2] = ["--backend", "kernel"];
const USERSPACE: [&str; 2] = ["--backend", "userspace"];

/// A mesh with this many nodes, each started with these flags and those for quick rotations.
fn mesh(flags: &[&[&str]]) -> Mesh {
    require::all(&[Need::Namespaces, Need::Tun, Need::Nftables, Need::WireGuardTools, Need::KernelWireguard]);
    let nodes = u8::try_from(flags.len()).unwrap();
    let mut mesh = Mesh::idle(Lab::builder().nodes(nodes).build().unwrap());
    for (node, flags) in mesh.node_names().iter().zip(flags) {
        mesh.start_with(node, &[&QUICK, *flags].concat()).unwrap();
    }
    formed(&mesh);
    // Until then devices and routes change without a fault.
    mesh.wait_settled();
    mesh
}

/// Waits until every node is ready and has all others as peers; emulation makes this slow.
fn formed(mesh: &Mesh) {
    let nodes = mesh.node_names();
    for node in &nodes {
        mesh.wait(node, "the mesh is formed", WITHIN, |status| lab::mesh::is_formed(status, nodes.len() - 1));
    }
}

fn pods(mesh: &Mesh) -> Vec<End> {
    mesh.pods(&["a"]).unwrap().iter().map(lab::Pod::end).collect()
}

/// A stream in each direction between every two of them.
fn streams(ends: &[End], per_second: u32) -> Vec<Stream> {
    let mut streams = Vec::new();
    for (n, from) in ends.iter().enumerate() {
        for (_, to) in ends.iter().enumerate().filter(|(m, _)| *m != n) {
            streams.push(Stream::start(from, to, IpVersion::V4, per_second).unwrap());
        }
    }
    streams
}

/// Stops streams and checks that none lost a packet; packets that this process had no time to read do not count.
fn none_lost(streams: Vec<Stream>) {
    // Wait for packets in flight.
    std::thread::sleep(Duration::from_millis(500));
    let reports: Vec<_> = streams.into_iter().map(Stream::stop).collect();
    for report in &reports {
        assert!(report.received > 100, "{report:?}");
        assert!(report.lost == report.overflowed && report.duplicated == 0, "{report:?} in {reports:#?}");
    }
}

/// Rotates a node's keys, which must succeed.
fn rotate(mesh: &Mesh, node: &str) {
    let before = &mesh.status(node).unwrap()["rotation"];
    let wanted = before["finished"].as_u64().unwrap() + 1;
    mesh.request(node, "rotate").unwrap();
    mesh.wait(node, "new keys", WITHIN * 2, |status| {
        let rotation = &status["rotation"];
        assert_eq!(rotation["rolled_back"], before["rolled_back"], "{rotation:#}");
        rotation["step"] == "steady" && rotation["finished"] == wanted
    });
}

fn shell(node: &Node, script: &str) -> String {
    node.command("sh").args(["-c", script]).run().unwrap()
}

/// The output of a program, whether it succeeds or not.
fn said(node: &Node, command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = node.command(words.next().unwrap()).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a program prints the expected text; returns how long that took, including the last call.
fn wait_said(node: &Node, command: &str, wanted: impl Fn(&str) -> bool) -> Duration {
    let since = Instant::now();
    loop {
        let answer = said(node, command);
        if wanted(&answer) {
            return since.elapsed();
        }
        assert!(since.elapsed() < WITHIN, "{command}: {answer}");
    }
}
