//! The daemon may die, restart and be replaced: the kernel's devices keep working, and nothing is written that is set
//! already.

use std::time::Duration;

use lab::netlink::Monitor;
use lab::{IpVersion, Signal, Stream};

use super::{KERNEL, QUICK, formed, mesh, none_lost, pods, shell, streams};

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn a_killed_daemon_loses_no_packet_and_writes_nothing_when_it_is_back() {
    let mut mesh = mesh(&[&KERNEL, &KERNEL]);
    let ends = pods(&mesh);
    let capture = mesh.capture().unwrap();
    let streams = vec![Stream::start(&ends[1], &ends[0], IpVersion::V4, 500).unwrap()];
    for signal in [Signal::KILL, Signal::TERM] {
        let monitor = Monitor::start(mesh.node("n1").unwrap()).unwrap();
        mesh.stop("n1", signal).unwrap();
        std::thread::sleep(Duration::from_secs(3));
        mesh.start_with("n1", &[QUICK.as_slice(), &KERNEL].concat()).unwrap();
        formed(&mesh);
        // For a few turns of the loop.
        std::thread::sleep(Duration::from_secs(3));
        let node = mesh.node("n1").unwrap();
        let steps = &mesh.status("n1").unwrap()["counters"]["steps"];
        let seen = monitor.changes();
        assert_eq!(seen, [], "{signal:?}: the interface was written to");
        assert_eq!(steps, 0, "{signal:?}");
        // Positive control: the monitor sees changes.
        shell(node, "wg set mesh-a fwmark 7; wg set mesh-a fwmark 0");
        let seen = monitor.stop(node).unwrap();
        assert!(seen.len() == 2 && seen.iter().all(|seen| seen.link == "mesh-a"), "{seen:?}");
    }
    none_lost(streams);
    capture.report().assert_sealed();
}

/// The daemon is killed at boundaries of a rotation and restarted; the kernel's devices keep working.
#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn a_rotation_with_crashes_at_its_boundaries_loses_nothing() {
    let mut mesh = mesh(&[&KERNEL, &KERNEL]);
    let ends = pods(&mesh);
    let capture = mesh.capture().unwrap();
    let streams = streams(&ends, 50);
    let flags = [QUICK.as_slice(), &KERNEL].concat();
    // Each takes half a minute in an emulated machine. All kinds are tried with the userspace backend.
    for place in ["journal.after:1", "step.before:2", "destroy.before:1"] {
        mesh.stop("n1", Signal::TERM).unwrap();
        mesh.start_in("n1", &flags, &[("MESHD_DIE_AT", place)]).unwrap();
        formed(&mesh);
        // No answer if the daemon dies before it can give one.
        mesh.request("n1", "rotate");
        let died = mesh.daemon("n1").wait(super::WITHIN);
        died.unwrap_or_else(|error| panic!("{place}: the daemon never came by: {error}"));
        mesh.stop("n1", Signal::KILL).unwrap();
        mesh.start_with("n1", &flags).unwrap();
        formed(&mesh);
        mesh.wait("n1", "no rotation", super::WITHIN, |status| {
            status["rotation"]["step"] == "steady" && status["rotation"]["busy"] == false
        });
    }
    none_lost(streams);
    capture.report().assert_sealed();
}
