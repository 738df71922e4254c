//! What is removed or changed by hand is restored within two seconds; what is in place is never written again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::{Mesh, UNOWNED};
use lab::{ApiKind, Family, Inventory, IpVersion, Lab, Node, Signal, Stream};

/// The time that a repair takes.
const REPAIRED_WITHIN: Duration = Duration::from_secs(2);
/// How long it is waited for: a busy machine delays any of them.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a daemon at rest is watched for writes. Longer than a minute: peers announce the heads of their audit trails
/// again a minute after a start.
const WATCHED_FOR: Duration = Duration::from_secs(80);

/// What the kernel holds of meshd on a node, as the usual tools print it, without counters.
fn fingerprint(node: &Node) -> String {
    let script = "
        for family in -4 -6; do
            ip $family route show table all proto 84 | sort
            ip $family rule show | grep 518[45]
            ip $family neigh show nud permanent | sort
        done
        for link in mesh-a mesh-b; do ip -br link show $link; ip -br addr show $link | grep -o '10.244[^ ]*\\|fd00[^ ]*'; done
        nft list table inet meshd | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'
        wg show all dump | awk '{print $1, $2, $3, $4, $5, $NF}' | cut -d' ' -f1-4 | sort
    ";
    let output = node.command("sh").args(["-c", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // Interface indexes, and flags that follow the engine's start, differ after a link was recreated.
    text.lines()
        .map(|line| line.split(" linkdown").next().unwrap_or(line).trim_end())
        .collect::<Vec<_>>()
        .join("\n")
}

fn settled(node: &Node) -> String {
    let mut last = fingerprint(node);
    loop {
        thread::sleep(Duration::from_millis(500));
        let next = fingerprint(node);
        if next == last {
            return next;
        }
        last = next;
    }
}

#[test]
fn whatever_is_removed_by_hand_is_restored_within_two_seconds() {
    let lab = Lab::builder().nodes(2).family(Family::Dual).build().unwrap();
    let mesh = Mesh::form_with(lab, &UNOWNED).unwrap();
    mesh.wait_proven();
    let node = mesh.node("n1").unwrap();
    let pod = node.pod("a").unwrap();
    let whole = settled(node);
    for address in pod.addresses() {
        let lines = whole.lines().filter(|line| line.starts_with(&format!("{address} "))).count();
        assert_eq!(lines, 2, "a route and a neighbour entry for {address} in\n{whole}");
    }
    for part in ["10.244.2.0/24 dev mesh-a", "unreachable", "lookup 5184", "chain egress", "mesh-b"] {
        assert!(whole.contains(part), "{part} in\n{whole}");
    }
    let mut took = Vec::new();
    for change in [
        "ip route del 10.244.2.0/24",
        "ip -6 route del fd00:10:244:2::/64",
        "ip route flush table 5184",
        "ip route flush proto 84; ip -6 route flush proto 84",
        "ip -6 route flush dev $(ip -o link | grep -o 'mveth[0-9a-f]*')",
        "link=$(ip -o link | grep -o 'mveth[0-9a-f]*'); ip link set $link down; ip link set $link up",
        "ip route replace 10.244.2.0/24 dev mesh-b metric 84 proto 84",
        "ip route del unreachable 10.244.0.0/16 metric 50000",
        "ip rule del from 10.244.1.0/24 table 5184",
        "ip -6 rule del from fd00:10:244:1::/64 table 5184",
        "ip rule del to 10.244.0.0/16 table main",
        "ip -6 rule del to fd00:10:244::/48 table main",
        "ip addr flush dev mesh-a",
        "ip link set mesh-a mtu 1300",
        "ip link set mesh-b down",
        "ip link del mesh-a",
        "nft delete table inet meshd",
        "nft flush table inet meshd",
        "nft insert rule inet meshd egress accept",
        "nft flush set inet meshd nodes4",
        "wg set mesh-a peer $(wg show mesh-a peers) remove",
        "wg set mesh-a peer $(wg show mesh-a peers) endpoint 192.0.2.9:1",
        "wg set mesh-a peer $(wg show mesh-a peers) allowed-ips 10.9.9.0/24",
        "wg set mesh-a listen-port 5555",
        "ip route add 10.99.0.0/16 dev mesh-a proto 84",
    ] {
        node.command("sh").args(["-c", change]).run().unwrap();
        let since = Instant::now();
        loop {
            let now = fingerprint(node);
            if now == whole {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{change}\nis:\n{now}\nshould be:\n{whole}");
            thread::sleep(Duration::from_millis(20));
        }
        took.push(since.elapsed());
    }
    pod.check().unwrap();
    took.sort();
    assert!(took[took.len() / 2] < REPAIRED_WITHIN, "half of them took longer: {took:?}");
}

/// Waits until each of the two nodes has recorded the head that the other one announced for its audit trail.
fn wait_heads_recorded(mesh: &Mesh) {
    let since = Instant::now();
    for name in ["n1", "n2"] {
        loop {
            let trail = mesh.node(name).unwrap().read("/var/lib/meshd/audit/witness/audit.jsonl").unwrap();
            if String::from_utf8_lossy(&trail).contains("\"event\":\"peer-head\"") {
                break;
            }
            assert!(since.elapsed() < Duration::from_mins(1), "{name} has recorded no head");
            thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Every file that the daemon reads when it starts and that is no key.
const READ_AT_START: [&str; 6] = [
    "/var/lib/meshd/peers.json",
    "/var/lib/meshd/paths.json",
    "/var/lib/meshd/audit/audit.jsonl",
    "/var/lib/meshd/audit/witness/audit.jsonl",
    "/run/meshd/node.json",
    "/etc/cni/net.d/10-meshd.conflist",
];

#[test]
fn a_daemon_whose_files_are_all_damaged_starts_keeps_them_and_says_so() {
    let mut mesh =
        Mesh::form(Lab::builder().nodes(2).family(Family::V4).api(ApiKind::Fake).build().unwrap()).unwrap();
    wait_heads_recorded(&mesh);
    mesh.stop("n1", Signal::TERM).unwrap();
    let read = |mesh: &Mesh, path: &str| mesh.node("n1").unwrap().read(path).unwrap();
    let damaged = READ_AT_START.map(|path| {
        let mut bytes = read(&mesh, path);
        // No text in any encoding, in the middle of the first line.
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        bytes[end / 2] = 0xff;
        mesh.node("n1").unwrap().write(path, &bytes).unwrap();
        bytes
    });
    mesh.start("n1").unwrap();
    mesh.wait_formed();
    let kept = |path: &str, bytes: &[u8]| assert_eq!(read(&mesh, path), bytes, "{path}");
    kept("/var/lib/meshd/peers.json.damaged.1", &damaged[0]);
    kept("/var/lib/meshd/paths.json.damaged.1", &damaged[1]);
    // Named after the first line that can be read.
    kept("/var/lib/meshd/audit/audit-00000000000000000002.jsonl", &damaged[2]);
    kept("/var/lib/meshd/audit/witness/audit-00000000000000000002.jsonl", &damaged[3]);
    for (path, former) in READ_AT_START.iter().zip(&damaged) {
        assert_ne!(read(&mesh, path), *former, "{path} is as good as new");
    }
    let status = mesh.status("n1").unwrap();
    assert_eq!(status["damaged_files"].as_array().unwrap().len(), 4, "{status:#}");
    let log = mesh.daemon("n1").log().unwrap();
    for event in ["PeersNotRestored", "PathsNotRestored", "FileDamaged"] {
        assert!(log.contains(event), "{event} in\n{log}");
    }
    let meshd = lab::bin("meshd").unwrap();
    let verified = mesh.node("n1").unwrap().command(meshd).args(["audit", "verify"]).output().unwrap();
    let verified = String::from_utf8_lossy(&verified.stdout).into_owned();
    for part in ["NOT INTACT", "audit-00000000000000000002.jsonl:1: not a line of an audit trail"] {
        assert!(verified.contains(part), "{part} in\n{verified}");
    }
}

/// Starts two nodes at rest, with a pod each.
fn at_rest() -> Mesh {
    let mesh =
        Mesh::form(Lab::builder().nodes(2).family(Family::V4).api(ApiKind::Fake).build().unwrap()).unwrap();
    for name in ["n1", "n2"] {
        mesh.node(name).unwrap().pod("a").unwrap();
    }
    mesh.wait_proven();
    for name in ["n1", "n2"] {
        let told = "peers have told it where its datagrams come from";
        mesh.wait(name, told, Duration::from_secs(20), |status| status["nat"] == "none");
    }
    // What they have told is published a second later.
    thread::sleep(Duration::from_secs(3));
    settled(mesh.node("n1").unwrap());
    mesh
}

fn counter(mesh: &Mesh, name: &str) -> u64 {
    mesh.status("n1").unwrap()["counters"][name].as_u64().unwrap()
}

/// Has the loop take turns on n1, each triggered by a change that does not concern meshd, until there were that many in at
/// least that time. None may perform a step.
fn take_turns(mesh: &Mesh, turns: u64, at_least: Duration) {
    let (steps, before, since) = (counter(mesh, "steps"), counter(mesh, "reconciles"), Instant::now());
    while counter(mesh, "reconciles") - before < turns || since.elapsed() < at_least {
        let wake = "for i in $(seq 20); do ip addr add 203.0.113.1/32 dev lo; sleep 0.05; ip addr del 203.0.113.1/32 dev lo; sleep 0.05; done";
        mesh.node("n1").unwrap().command("sh").args(["-c", wake]).run().unwrap();
        assert!(since.elapsed() < Duration::from_secs(270), "the loop does not turn");
    }
    assert_eq!(counter(mesh, "steps"), steps, "steps were performed");
    assert_eq!(counter(mesh, "failed_steps"), 0);
}

#[test]
fn a_thousand_turns_without_a_difference_write_nothing() {
    let mesh = at_rest();
    let node = mesh.node("n1").unwrap();
    wait_heads_recorded(&mesh);
    let writes = || {
        let requests = mesh.api().requests().unwrap();
        let of = |method: &str| {
            requests.iter().filter(|(name, _)| name.starts_with(method)).map(|(_, n)| n).sum::<u64>()
        };
        of("patch ") + of("create ") + of("delete ")
    };
    let (files_before, writes_before) = (Inventory::take(node).unwrap(), writes());
    take_turns(&mesh, 1000, WATCHED_FOR);
    assert_eq!(Inventory::take(node).unwrap().changes_since(&files_before), [], "files were written");
    assert_eq!(writes(), writes_before, "the API server was written to");
}

#[test]
fn turns_without_a_difference_lose_nothing() {
    let mesh = at_rest();
    let ends = ["n1", "n2"].map(|node| mesh.node(node).unwrap().pods()[0].end());
    let stream = Stream::start(&ends[0], &ends[1], IpVersion::V4, 5000).unwrap();
    take_turns(&mesh, 200, Duration::from_secs(15));
    let report = stream.stop();
    assert!(report.sent > 50_000, "{report:?}");
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}
