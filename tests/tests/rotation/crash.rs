//! The daemon is killed at every boundary of a rotation, and recovers each time.

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{IpVersion, Lab, Signal, Stream};

use super::{QUICK, WITHIN, keys, must_pass, wait_accounted, wait_whole};

/// All boundaries take minutes, so usually every fifth is tested. `CRASHES=all` tests all.
fn stride() -> usize {
    if std::env::var("CRASHES").is_ok_and(|value| value == "all") { 1 } else { 5 }
}

/// Nothing may be left behind: no devices, peers, routes or keys that are not needed.
const ORPHANS: &str = "
    ip -o link show type tun | wc -l
    wg show all peers | wc -l
    ip route show proto 84 | wc -l
    grep -o '\"keys\":\\[[^]]*\\]' /run/meshd/keys/keys.json | tr -cd ',' | wc -c
    ls /run/meshd/keys
";

fn left(mesh: &Mesh) -> String {
    let output = mesh.node("n1").unwrap().command("sh").args(["-c", ORPHANS]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_crash_around_a_write_of_the_journal_leaves_a_mesh_that_works() {
    crash_at(&["journal.before", "journal.after"]);
}

#[test]
fn a_crash_before_a_step_leaves_a_mesh_that_works() {
    crash_at(&["step.before"]);
}

#[test]
fn a_crash_around_publication_or_destruction_leaves_a_mesh_that_works() {
    crash_at(&["publish.before", "publish.after", "destroy.before"]);
}

/// Kills the daemon at boundaries of some kinds, before or after something persistent, and restarts it each time.
#[expect(clippy::print_stdout, reason = "says at which boundaries, for those who run the long form")]
fn crash_at(places: &[&str]) {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &QUICK).unwrap();
    }
    mesh.wait_formed();
    let capture = mesh.capture().unwrap();
    for pod in ["n1", "n2"] {
        mesh.node(pod).unwrap().pod("a").unwrap();
    }
    let ends = ["n1", "n2"].map(|node| mesh.node(node).unwrap().pods()[0].end());
    let stream = Stream::start(&ends[1], &ends[0], IpVersion::V4, 100).unwrap();
    let clean = left(&mesh);
    let mut deaths = Vec::new();
    for place in places {
        for count in (1..).step_by(stride()) {
            mesh.stop("n1", Signal::TERM).unwrap();
            let at = format!("{place}:{count}");
            mesh.start_in("n1", &QUICK, &[("MESHD_DIE_AT", &at)]).unwrap();
            mesh.wait_formed();
            let before = keys(&mesh, "n1");
            let rotate = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap());
            // It fails when the daemon dies meanwhile.
            let survived = rotate.args(["rotate", "-o", "json"]).output().unwrap().status.success();
            if survived {
                assert!(count > 1, "{place}: the daemon never came by");
                break;
            }
            mesh.daemon("n1").wait(Duration::from_secs(5)).unwrap();
            let since = Instant::now();
            mesh.stop("n1", Signal::KILL).unwrap();
            mesh.start_with("n1", &QUICK).unwrap();
            wait_whole(&mesh);
            must_pass(&mesh);
            assert!(since.elapsed() < WITHIN, "{at}: {:?}", since.elapsed());
            let after = keys(&mesh, "n1");
            // Both keys old or both new: the rotation was not started, or it was completed.
            let kept = after.iter().filter(|key| before.contains(key)).count();
            assert!(kept == 0 || kept == 2, "{at}: {before:?} {after:?}");
            assert_eq!(left(&mesh), clean, "{at}");
            wait_accounted(&mesh, "n1");
            deaths.push((at, since.elapsed()));
        }
    }
    println!("{} deaths: {deaths:?}", deaths.len());
    assert!(deaths.len() >= places.len(), "{deaths:?}");
    assert!(stream.stop().received > 0);
    capture.report().assert_sealed();
}
