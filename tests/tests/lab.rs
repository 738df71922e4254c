//! The lab itself: it has to be right about networks that are known before its results about the mesh count.
#![expect(clippy::unwrap_used, reason = "functions that tests share fail as tests do")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lab::frame::{self, Link};
use lab::inventory::Change;
use lab::needle::{Secret, in_host};
use lab::ping::{PingOutcome, ping};
use lab::require::{self, Need};
use lab::{
    ApiKind, Connection, Family, Flow, Inventory, IpVersion, Lab, Node, Protocol, Signal, Sink, Stream,
};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

/// How long a packet may take on a busy machine.
const ARRIVED_WITHIN: Duration = Duration::from_secs(5);

fn plain(nodes: u8, family: Family) -> Lab {
    require::all(&[Need::Namespaces]);
    Lab::builder().nodes(nodes).family(family).api(ApiKind::None).build().unwrap()
}

#[test]
fn every_host_reaches_every_other_over_the_underlay() {
    for family in [Family::V4, Family::V6, Family::Dual] {
        let lab = plain(3, family);
        let ends: Vec<_> = lab.nodes().iter().map(|node| node.end()).chain([lab.outside().end()]).collect();
        for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to))) {
            for &version in family.versions() {
                let seen = Flow::new(from, to, version, Protocol::Udp).must_pass();
                // A host that talks to itself uses the address that it talks to.
                assert_eq!(seen, from.address(version).unwrap(), "{from:?} {to:?}");
            }
        }
    }
}

#[test]
fn a_family_that_a_lab_does_not_have_is_not_there() {
    let lab = plain(1, Family::V6);
    assert!(lab.node("n1").unwrap().address(IpVersion::V4).is_err());
    let routes = lab.node("n1").unwrap().command("ip").args(["-4", "route"]).run().unwrap();
    assert_eq!(routes, "");
    assert!(lab.node("n9").is_err());
}

#[test]
fn plain_pods_reach_each_other_over_every_protocol_under_their_own_addresses() {
    let lab = plain(2, Family::Dual);
    lab.connect_plainly().unwrap();
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    let (a, b, c) = (n1.plain_pod("a").unwrap(), n1.plain_pod("b").unwrap(), n2.plain_pod("c").unwrap());
    for (from, to) in [(&a, &b), (&a, &c), (&c, &a)] {
        for protocol in Protocol::ALL {
            for &version in Family::Dual.versions() {
                let seen = Flow::new(&from.end(), &to.end(), version, protocol).must_pass();
                assert_eq!(seen, from.address(version).unwrap());
            }
        }
    }
}

#[test]
fn a_flow_without_a_route_gets_no_answer() {
    let lab = plain(2, Family::Dual);
    let pod = lab.node("n1").unwrap().plain_pod("a").unwrap();
    let other = lab.node("n2").unwrap().plain_pod("b").unwrap();
    for protocol in Protocol::ALL {
        for &version in Family::Dual.versions() {
            let flow = Flow::new(&pod.end(), &other.end(), version, protocol);
            let seen = flow.timeout(Duration::from_millis(300)).probe().unwrap();
            assert_eq!((seen.source, seen.answered), (None, false), "{protocol:?} {version:?}");
        }
    }
}

#[test]
fn a_capture_sees_unencrypted_pod_addresses_on_both_sides() {
    let lab = plain(2, Family::Dual);
    lab.connect_plainly().unwrap();
    let a = lab.node("n1").unwrap().plain_pod("a").unwrap();
    let b = lab.node("n2").unwrap().plain_pod("b").unwrap();
    let capture = lab.capture().unwrap();
    assert_eq!(capture.report().pod_addresses(), 0);
    for (round, &version) in Family::Dual.versions().iter().enumerate() {
        Flow::new(&a.end(), &b.end(), version, Protocol::Udp).must_pass();
        let report = capture.report();
        let least = 2 * (u64::try_from(round).unwrap() + 1);
        assert!(report.leaked >= least && report.arrived >= least, "{version:?}: {report}");
        assert_eq!((report.wireguard(), report.dropped), (0, 0));
        assert!(report.marked >= 2 * least, "{report}");
    }
    let sender = capture.report_of(lab.node("n1").unwrap());
    assert!(sender.violations[0].outgoing && sender.violations[0].host == "n1");
}

#[test]
#[should_panic(expected = "pod addresses outside WireGuard")]
fn a_leak_fails_the_assertion() {
    let lab = plain(2, Family::V4);
    let pod = lab.node("n1").unwrap().plain_pod("a").unwrap();
    let capture = lab.capture().unwrap();
    // It takes the default route, as unencrypted traffic leaves a node without a guard.
    let nowhere = pod.end().at("10.244.77.7".parse().unwrap());
    Flow::new(&pod.end(), &nowhere, IpVersion::V4, Protocol::Udp)
        .timeout(Duration::from_millis(300))
        .probe()
        .unwrap();
    // On a busy machine the packet may still be on its way to the underlay.
    let since = Instant::now();
    while capture.report().leaked == 0 && since.elapsed() < ARRIVED_WITHIN {
        std::thread::sleep(Duration::from_millis(10));
    }
    capture.report().assert_sealed();
}

#[test]
fn injected_frames_arrive_and_are_distinguished_from_leaks() {
    let lab = plain(1, Family::Dual);
    let node = lab.node("n1").unwrap();
    let pod = node.plain_pod("a").unwrap();
    let link = Link { from: lab.outside().mac(), to: node.mac() };
    for &version in Family::Dual.versions() {
        let capture = lab.capture().unwrap();
        let sink = Sink::open(&pod.end(), version).unwrap();
        let source = match version {
            IpVersion::V4 => "10.244.2.5",
            IpVersion::V6 => "fd00:10:244:2::5",
        };
        let to = (pod.address(version).unwrap(), sink.port());
        let frame = frame::udp(link, (source.parse().unwrap(), 4000), to, frame::MARKER);
        lab.outside().inject(&frame).unwrap();
        let (since, mut sources) = (Instant::now(), Vec::new());
        while sources.is_empty() && since.elapsed() < ARRIVED_WITHIN {
            sources = sink.drain(Duration::from_millis(200));
        }
        assert_eq!(sources.len(), 1);
        assert_eq!(sources[0].ip().to_string(), source);
        let report = capture.report();
        assert_eq!((report.leaked, report.arrived), (0, 1), "{report}");
    }
}

#[test]
fn streams_count_what_is_lost_and_connections_survive_it() {
    let lab = plain(2, Family::V4);
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    let stream = Stream::start(&n1.end(), &n2.end(), IpVersion::V4, 500).unwrap();
    let connection = Connection::open(&n1.end(), &n2.end(), IpVersion::V4, Some(100_000)).unwrap();
    stream.wait_arrival(Instant::now(), Duration::from_secs(2)).unwrap();
    lab.set_cable(n2, false).unwrap();
    let cut = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    lab.set_cable(n2, true).unwrap();
    let outage = stream.wait_arrival(cut + Duration::from_millis(100), Duration::from_secs(5)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let report = stream.stop();
    assert!(outage >= Duration::from_millis(200), "{outage:?}");
    assert!(
        report.lost > 50 && report.received > 50 && report.sent == report.lost + report.received,
        "{report:?}"
    );
    assert_eq!(report.duplicated, 0);
    assert!(report.longest_silence >= Duration::from_millis(250), "{report:?}");
    let closed = connection.close();
    assert!(closed.broken.is_none() && closed.sent == closed.received && closed.sent > 10_000, "{closed:?}");
}

#[test]
fn an_undisturbed_stream_loses_nothing() {
    let lab = plain(2, Family::V6);
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    // The kernel queues only some packets while it resolves a neighbour's link address, which takes long on a busy machine.
    Flow::new(&n1.end(), &n2.end(), IpVersion::V6, Protocol::Udp).must_pass();
    let stream = Stream::start(&n1.end(), &n2.end(), IpVersion::V6, 2000).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let report = stream.stop();
    assert_eq!(
        (report.lost, report.duplicated, report.refused, report.overflowed),
        (0, 0, 0, 0),
        "{report:?}"
    );
    assert!(report.sent > 1000, "{report:?}");
    lab::stream::transfer(&n1.end(), &n2.end(), IpVersion::V6, 10 << 20).unwrap();
}

#[test]
fn whole_pings_pass_up_to_the_mtu_and_fail_locally_beyond_it() {
    require::all(&[Need::Namespaces]);
    let lab = Lab::builder().nodes(2).api(ApiKind::None).mtu("n1", 1400).build().unwrap();
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    for (version, headers) in [(IpVersion::V4, 28), (IpVersion::V6, 48)] {
        let to = n2.address(version).unwrap();
        let send = |size| ping(&n1.end(), to, size, true, Duration::from_millis(500)).unwrap();
        assert_eq!(send(1400 - headers), PingOutcome::Answered);
        assert_eq!(send(1401 - headers), PingOutcome::TooLong);
    }
}

#[test]
fn the_internet_is_behind_the_gateway_and_unreachable_without_a_cable() {
    let lab = plain(1, Family::Dual);
    let node = lab.node("n1").unwrap();
    for &version in Family::Dual.versions() {
        let flow = Flow::new(&node.end(), &lab.internet(), version, Protocol::Tcp);
        assert_eq!(flow.must_pass(), node.address(version).unwrap());
        lab.set_cable(node, false).unwrap();
        assert!(!flow.clone().timeout(Duration::from_millis(200)).probe().unwrap().answered);
        lab.set_cable(node, true).unwrap();
    }
}

#[test]
fn nodes_have_their_own_files_and_the_machine_sees_none_of_them() {
    let lab = plain(2, Family::V4);
    let (n1, n2) = (lab.node("n1").unwrap(), lab.node("n2").unwrap());
    for directory in lab::PRIVATE {
        let file = format!("{directory}/lab-was-here");
        n1.write(&file, "n1").unwrap();
        assert_eq!(n1.read(&file).unwrap(), b"n1");
        assert!(n2.read(&file).is_err(), "{file}");
        assert!(!std::path::Path::new(&file).exists(), "{file}");
    }
    assert!(!n1.read("/etc/passwd").unwrap().is_empty(), "the rest of /etc is the machine's");
    assert_eq!(n1.command("hostname").run().unwrap().trim(), "n1");
    let links = |path: &str| n1.run(|| std::fs::read_dir(path).unwrap().count()).unwrap();
    assert_eq!(links("/sys/class/net"), 2, "lo and eth0");
}

/// `/var/lib` of a machine, in mounts that only the calling thread and its hosts see: with the given shell commands
/// run on an empty one.
fn with_machine(prepare: &str, check: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let machine = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
            let script = format!(
                "set -e; mount -t tmpfs machine /var
                 mkdir -p /var/lib/other/deep; echo text >/var/lib/file; ln -s file /var/lib/relative
                 mount -t tmpfs below /var/lib/other/deep; touch /var/lib/other/deep/mounted
                 {prepare}"
            );
            assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
            check();
        });
        machine.join().unwrap();
    });
}

/// What `find` finds of the planted files, outside the lab's own directory.
fn find<'a>(node: &'a Node, path: &str) -> lab::Command<'a> {
    node.command("find").args([path, "-path", "/run/lab", "-prune", "-o", "-name", "planted", "-print"])
}

/// The same machine in each state: what it holds is left alone, and every host sees directories of its own.
#[test]
fn private_directories_are_directories_whatever_the_machine_has() {
    require::all(&[Need::Namespaces]);
    for prepare in [
        ":",
        "mkdir /var/lib/cni /var/lib/meshd; touch /var/lib/cni/machine /var/lib/meshd/machine",
        "mkdir /var/lib/cni; touch /var/lib/cni/machine",
        "mkdir /var/lib/meshd; touch /var/lib/meshd/machine",
        "mkdir /var/data; touch /var/data/machine; ln -s ../data /var/lib/cni; ln -s nowhere /var/lib/meshd",
        "mv /var/lib /var/moved; ln -s moved /var/lib",
    ] {
        with_machine(prepare, || {
            let before = std::process::Command::new("find").args(["/var", "-ls"]).output().unwrap().stdout;
            let lab = Lab::builder().nodes(1).api(ApiKind::None).build().unwrap();
            let node = lab.node("n1").unwrap();
            for path in lab::PRIVATE {
                node.run(|| {
                    for part in std::path::Path::new(path).ancestors() {
                        assert!(part.symlink_metadata().unwrap().is_dir(), "{prepare}: {}", part.display());
                    }
                    assert!(!std::path::Path::new(path).join("machine").exists(), "{prepare}: {path}");
                })
                .unwrap();
            }
            assert_eq!(node.read("/var/lib/relative").unwrap(), b"text\n", "{prepare}");
            assert_eq!(node.read("/var/lib/other/deep/mounted").unwrap(), b"", "{prepare}");
            // The positive control for every test that lists files.
            let empty = Inventory::take(node).unwrap();
            let planted = lab::PRIVATE.map(|path| format!("{path}/a/b/planted"));
            for path in &planted {
                node.write(path, "here").unwrap();
            }
            let mut expected = planted.map(|path| Change::Added(path.into()));
            expected.sort();
            assert_eq!(Inventory::take(node).unwrap().changes_since(&empty), expected, "{prepare}");
            for path in lab::PRIVATE {
                assert_eq!(find(node, path).run().unwrap(), format!("{path}/a/b/planted\n"), "{prepare}");
            }
            let after = std::process::Command::new("find").args(["/var", "-ls"]).output().unwrap().stdout;
            assert_eq!(String::from_utf8_lossy(&after), String::from_utf8_lossy(&before), "{prepare}");
        });
    }
}

#[test]
fn a_secret_is_found_in_each_private_directory() {
    let lab = plain(1, Family::V4);
    let node = lab.node("n1").unwrap();
    let secret = Secret::new(&[0x5a; 32]);
    assert_eq!(in_host(node, &secret).unwrap(), Vec::<std::path::PathBuf>::new());
    let planted = lab::PRIVATE.map(|path| std::path::PathBuf::from(format!("{path}/deep/secret")));
    for path in &planted {
        node.write(path, secret.forms()[1].clone()).unwrap();
    }
    let mut found = in_host(node, &secret).unwrap();
    found.sort();
    let mut expected = planted.to_vec();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn daemons_log_take_signals_and_end_with_the_lab() {
    let lab = plain(1, Family::V4);
    let node = lab.node("n1").unwrap();
    let script = r#"echo '{"at": 1}'; trap 'echo "{\"at\": 2}"; exit 7' TERM; while :; do sleep 0.01; done"#;
    let daemon = node.command("sh").args(["-c", script]).daemon("script").unwrap();
    daemon.wait_log("\"at\": 1", Duration::from_secs(5)).unwrap();
    assert!(daemon.wait(Duration::from_millis(50)).is_err(), "it is still running");
    daemon.kill(Signal::TERM).unwrap();
    assert_eq!(daemon.wait(Duration::from_secs(5)).unwrap().code(), Some(7));
    assert_eq!(daemon.json_log().unwrap().len(), 2);

    let forgotten = node.command("sleep").arg("1000").daemon("sleep").unwrap();
    let pid = forgotten.pid();
    drop(lab);
    assert!(forgotten.ended().unwrap().is_some());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// Network namespaces that some process of ours is in, and our child processes.
fn footprint() -> (BTreeSet<String>, BTreeSet<String>) {
    let mut nets = BTreeSet::new();
    let mut children = BTreeSet::new();
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent == Some(own.as_str()) {
            children.insert(stat.clone());
            nets.extend(std::fs::read_link(entry.path().join("ns/net")).map(|net| net.display().to_string()));
        }
    }
    (nets, children)
}

#[test]
fn nothing_is_left_when_a_lab_is_dropped() {
    // Other tests of this program run in the same process, so this one gets a process of its own.
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "alone::leaves_nothing", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(String::from_utf8_lossy(&run.stdout).contains("1 passed"));
}

mod alone {
    use super::*;

    #[test]
    #[ignore = "run by nothing_is_left_when_a_lab_is_dropped in a process of its own"]
    fn leaves_nothing() {
        let files = |dir: &str| std::fs::read_dir(dir).map_or(0, Iterator::count);
        let before = (footprint(), files("/proc/self/fd"), files("/run/netns"), files("/proc/self/task"));
        let lab = plain(3, Family::Dual);
        lab.connect_plainly().unwrap();
        let dir = lab.dir().to_owned();
        {
            let (a, b) = (lab.nodes()[0].plain_pod("a").unwrap(), lab.nodes()[1].plain_pod("b").unwrap());
            let _capture = lab.capture().unwrap();
            let _daemon = lab.nodes()[2].command("sleep").arg("1000").daemon("sleep").unwrap();
            Flow::new(&a.end(), &b.end(), IpVersion::V4, Protocol::Tcp).must_pass();
            assert_ne!(before.0, footprint());
            a.delete().unwrap();
        }
        drop(lab);
        let after = (footprint(), files("/proc/self/fd"), files("/run/netns"), files("/proc/self/task"));
        assert_eq!(before, after);
        assert!(!dir.exists());
    }
}

#[test]
fn labs_run_in_parallel_with_the_same_addresses() {
    let labs: Vec<_> = (0..3).map(|_| plain(2, Family::Dual)).collect();
    std::thread::scope(|scope| {
        for lab in &labs {
            scope.spawn(|| {
                lab.connect_plainly().unwrap();
                let (a, b) = (lab.nodes()[0].plain_pod("a").unwrap(), lab.nodes()[1].plain_pod("b").unwrap());
                for _ in 0..5 {
                    Flow::new(&a.end(), &b.end(), IpVersion::V4, Protocol::Tcp).must_pass();
                }
            });
        }
    });
}

#[test]
fn nodes_join_and_leave() {
    let mut lab = plain(1, Family::V4);
    assert_eq!(lab.add_node(false).unwrap().name(), "n2");
    let pid = lab.node("n2").unwrap().pid();
    let flow = Flow::new(&lab.nodes()[0].end(), &lab.nodes()[1].end(), IpVersion::V4, Protocol::Udp);
    flow.must_pass();
    lab.remove_node("n2").unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(lab.nodes().len(), 1);
}
