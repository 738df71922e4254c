//! Manual changes are repaired, and interfaces of other software are left alone.

use std::thread;
use std::time::{Duration, Instant};

use lab::{IpVersion, Signal, Stream};

use super::{mesh, pods, said, shell, wait_said};

/// Anybody can change the guard.
const FLAGS: [&str; 4] = ["--backend", "kernel", "--guard-owner", "false"];

/// The time that a repair takes, if nothing else delays the machine: most of them have to meet it.
const REPAIRED_WITHIN: Duration = Duration::from_secs(2);

/// A manual change, and commands whose output must return to what it was before: that of the first within the time above, that
/// of the others as soon as it has been observed. Each is one program, since starting one is slow under emulation.
const INJURIES: [(&str, &[&str]); 9] = [
    (
        "ip link del mesh-a",
        &[
            "ip route show proto 84",
            "wg show mesh-a allowed-ips",
            "ip -6 route show proto 84",
            "ip -br addr show mesh-a",
        ],
    ),
    (
        "wg set mesh-a peer $(wg show mesh-a peers) remove",
        &["wg show mesh-a allowed-ips", "wg show mesh-a endpoints"],
    ),
    ("wg set mesh-a peer $(wg show mesh-a peers) allowed-ips 10.9.9.0/24", &["wg show mesh-a allowed-ips"]),
    ("wg set mesh-b peer $(wg show mesh-b peers) endpoint 192.0.2.9:1", &["wg show mesh-b endpoints"]),
    ("wg set mesh-b listen-port 5555", &["wg show mesh-b listen-port"]),
    ("ip route del 10.244.2.0/24", &["ip route show proto 84"]),
    ("ip rule del from 10.244.1.0/24 table 5184", &["ip rule show"]),
    ("nft delete table inet meshd", &["nft list tables"]),
    ("ip link set mesh-a down", &["ip -br link show mesh-a", "ip route show proto 84"]),
];

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn whatever_is_removed_by_hand_is_restored_within_two_seconds_without_unencrypted_packets() {
    let mesh = mesh(&[&FLAGS, &FLAGS]);
    let node = mesh.node("n1").unwrap();
    let ends = pods(&mesh);
    let capture = mesh.capture().unwrap();
    let stream = Stream::start(&ends[0], &ends[1], IpVersion::V4, 20).unwrap();
    // The order of lines and flags that depend on the link do not matter.
    let canonical = |text: &str| {
        let mut lines: Vec<String> =
            text.lines().map(|line| line.replace(" linkdown", "").trim_end().to_owned()).collect();
        lines.sort();
        lines
    };
    let mut first = Vec::new();
    for (injury, questions) in INJURIES {
        let whole: Vec<_> = questions.iter().map(|question| canonical(&said(node, question))).collect();
        assert!(whole.iter().all(|answer| !answer.is_empty()), "{whole:?}");
        shell(node, injury);
        let mut took = Vec::new();
        for (question, whole) in questions.iter().zip(&whole) {
            took.push(wait_said(node, question, |answer| canonical(answer) == *whole));
        }
        first.push(took[0]);
        stream
            .wait_arrival(Instant::now(), super::WITHIN)
            .unwrap_or_else(|error| panic!("{injury}: {error}"));
        println!("{injury}: {took:?}");
    }
    first.sort();
    assert!(first[first.len() / 2] < REPAIRED_WITHIN, "half of them took longer: {first:?}");
    let status = mesh.status("n1").unwrap();
    assert_eq!(status["peers"][0]["slots"]["b"]["endpoint_drifts"], 1, "{status:#}");
    stream.stop();
    capture.report().assert_sealed();
}

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn a_foreign_wireguard_interface_is_never_touched() {
    let mut mesh = mesh(&[&FLAGS, &FLAGS]);
    let node = mesh.node("n1").unwrap();
    let make = "
        wg genkey >/tmp/foreign.key
        ip link add wg0 type wireguard
        wg set wg0 listen-port 51820 private-key /tmp/foreign.key peer $(wg genkey | wg pubkey) \
            endpoint 198.18.0.2:51820 allowed-ips 10.7.0.0/24 persistent-keepalive 25
        ip addr add 10.7.0.1/24 dev wg0
        ip link set wg0 up
    ";
    shell(node, make);
    let ask = "wg showconf wg0; ip -br addr show wg0; ip -br link show wg0; ip route show dev wg0";
    let before = shell(node, ask);
    assert!(before.contains("51820") && before.contains("10.7.0.0/24"), "{before}");
    for injury in ["ip link del mesh-a", "nft delete table inet meshd", "ip link del mesh-b"] {
        shell(node, injury);
        wait_said(node, "wg show mesh-a peers", |answer| answer.lines().count() == 1);
        wait_said(node, "wg show mesh-b peers", |answer| answer.lines().count() == 1);
        thread::sleep(Duration::from_secs(1));
        assert_eq!(shell(node, ask), before, "{injury}");
    }
    mesh.stop("n1", Signal::TERM).unwrap();
    let node = mesh.node("n1").unwrap();
    let uninstall = node.command(lab::bin("meshd").unwrap()).arg("uninstall").args(mesh.arguments("n1", &[]));
    uninstall.run().unwrap();
    assert_eq!(said(node, "wg show interfaces").trim(), "wg0");
    assert_eq!(shell(node, ask), before, "uninstall");
}
