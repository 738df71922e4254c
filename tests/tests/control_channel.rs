//! A process without privileges in a node's network namespace speaks on the control channel: nothing changes, and
//! everything is counted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use lab::Lab;
use lab::mesh::Mesh;
use serde_json::Value;

/// Records what a link carries to and from the port of the control channel, for some seconds: one datagram per line, the
/// source address and the payload in hexadecimal.
const RECORD: &str = "
import socket, sys, time
link, seconds = sys.argv[1], float(sys.argv[2])
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
s.bind((link, 0))
s.settimeout(0.2)
end = time.time() + seconds
while time.time() < end:
    try:
        p = s.recv(65535)
    except TimeoutError:
        continue
    h = (p[0] & 15) * 4
    if p[0] >> 4 == 4 and p[9] == 17 and int.from_bytes(p[h + 2:h + 4], 'big') == 51842:
        print('.'.join(str(b) for b in p[12:16]), p[h + 8:].hex())
";

/// As nobody, without capabilities, sends the payloads of standard input as the node does: from its mesh address, over a link, with the highest TTL, and
/// from the port of the channel if the kernel allows. Prints how many left.
const SEND: &str = "
import os, socket, sys, time
link, own, to = sys.argv[1:4]
# Python itself may be where only root can read it.
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
assert 'CapEff:\\t0000000000000000' in open('/proc/self/status').read()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
s.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    s.bind((own, 51842))
except OSError:
    s.bind((own, 0))
sent = 0
for line in sys.stdin:
    s.sendto(bytes.fromhex(line.strip()), (to, 51842))
    sent += 1
    time.sleep(0.003)
print(sent)
";

/// An address that only forged messages name.
const FORGED_PLACE: &str = "203.0.113.66";

/// Every kind of message without authentication, the first six as a daemon of version 0.1 sends them.
fn unauthenticated() -> Vec<Vec<u8>> {
    let offer = [&[2, 0][..], &u64::MAX.to_be_bytes(), &[0; 4], &[7; 16], &[4, 160], &[9; 1184]].concat();
    let refusal = [&[5, 0][..], &1_u64.to_be_bytes(), &[4], &u64::MAX.to_be_bytes()].concat();
    let hello = [&[1, 0][..], &u64::MAX.to_be_bytes()].concat();
    let pair = |message: Vec<u8>| {
        let len = message.len();
        let mut out = vec![1, 5];
        if len < 128 {
            out.push(u8::try_from(len).unwrap());
        } else {
            out.extend([u8::try_from(len & 127).unwrap() | 128, u8::try_from(len >> 7).unwrap()]);
        }
        out.extend(message);
        out
    };
    let head = [&[1, 4, 99][..], &[0xa5; 32]].concat();
    let mut messages = vec![vec![1, 0, 7], vec![1, 1, 7, 9, 0], vec![1, 2, 7, 0], vec![1, 3, 7], head];
    messages.extend([offer, refusal, hello].map(pair));
    // Where datagrams come from, an invitation, damaged datagrams, leases, and where nodes are.
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    let list = text(&format!(r#"{{"v":1,"addresses":["{FORGED_PLACE}"],"nat":true}}"#));
    let peer = text("d5e0ae7b-7d5e-4f0c-9b1a-0f1e2d3c4b5a");
    messages.extend([
        vec![1, 6, 0, 203, 0, 113, 66, 128, 149, 3],
        vec![1, 7, 1],
        vec![1, 8, 0, 99],
        [&[1, 9][..], &peer, &[0, 0, 1]].concat(),
        [&[1, 10][..], &peer, &[0, 0, 192, 187, 1, 1, 0]].concat(),
        [&[1, 11][..], &list].concat(),
        [&[1, 12][..], &peer, &list].concat(),
        [&[1, 13][..], &peer, &list].concat(),
    ]);
    messages
}

/// The same as bodies of authenticated datagrams with a MAC that is none, with other kinds, and what is no message at all.
fn badly_authenticated() -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = unauthenticated()
        .into_iter()
        .map(|message| [&[2, 0][..], &[7; 24], &message[1..], &[0x5a; 16]].concat())
        .collect();
    messages.extend([1, 2].map(|kind| [&[2, kind][..], &[7; 16], &[0x5a; 16]].concat()));
    messages.extend([vec![], vec![2], vec![2, 3], vec![2; 9000], vec![0; 100], vec![255; 50]]);
    messages
}

/// A recorded message of the present session, with a counter that was not used yet.
fn renumbered(datagram: &[u8]) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    // Version, kind, receiver and sender number come before it.
    if let Some(counter) = datagram.get_mut(18..22) {
        counter[0] = 1;
    }
    datagram
}

/// What must not change: keys, rotation, preshared keys with their epochs, the audit trail.
fn essence(mesh: &Mesh, node: &str) -> Value {
    let status = mesh.status(node).unwrap();
    let peers = status["peers"].as_array().unwrap().iter();
    let preshared: Vec<Value> = peers
        .map(|peer| {
            let slots = ["a", "b"].map(|slot| {
                let pq = &peer["slots"][slot]["pq"];
                serde_json::json!([pq["key"], pq["epoch"], pq["protection"]])
            });
            serde_json::json!([peer["node"], peer["active"], peer["pq"], slots])
        })
        .collect();
    // Without what changes as time passes.
    let mut rotation = status["rotation"].clone();
    rotation.as_object_mut().unwrap().remove("due_in_seconds");
    for key in rotation["keys"].as_array_mut().unwrap() {
        key.as_object_mut().unwrap().remove("age_seconds");
    }
    let trail = "/var/lib/meshd/audit/audit.jsonl";
    let trail = mesh.node(node).unwrap().command("sha256sum").args([trail]).run().unwrap();
    serde_json::json!([status["slots"]["a"]["key"], status["slots"]["b"]["key"], rotation, preshared, trail])
}

/// Counted at a node: messages that were acted on, and everything else.
fn counted(mesh: &Mesh, node: &str) -> (u64, u64) {
    let control = mesh.status(node).unwrap()["control"].clone();
    let refused: u64 =
        control["refused"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    let other = control["unknown_senders"].as_u64().unwrap() + control["session_messages"].as_u64().unwrap();
    (control["received"].as_u64().unwrap(), refused + other)
}

/// As nobody on n1, sends datagrams to n2 over a link; returns how many.
fn send(mesh: &Mesh, link: &str, datagrams: &[Vec<u8>]) -> u64 {
    let mut lines = String::new();
    for datagram in datagrams {
        for byte in datagram {
            write!(lines, "{byte:02x}").unwrap();
        }
        lines.push('\n');
    }
    let command = mesh.node("n1").unwrap().command("python3");
    let sent = command.args(["-c", SEND, link, "10.244.1.1", "10.244.2.1"]).input(lines).run().unwrap();
    sent.trim().parse().unwrap()
}

#[test]
fn what_nobody_sends_changes_nothing_and_is_counted() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    for node in mesh.node_names() {
        let quick = ["--rotation-drain", "500ms", "--rotation-timeout", "10s", "--probe-interval", "0s"];
        mesh.start_with(&node, &quick).unwrap();
    }
    mesh.wait_formed();
    // Every kind of message is recorded while n1 rotates and the pair agrees on preshared keys.
    let recorded: Vec<Vec<(String, Vec<u8>)>> = thread::scope(|scope| {
        let mesh = &mesh;
        let recorders = ["mesh-a", "mesh-b"].map(|link| {
            scope.spawn(move || {
                let command = mesh.node("n1").unwrap().command("python3");
                command.args(["-c", RECORD, link, "12"]).run().unwrap()
            })
        });
        let rotate = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap()).args(["rotate"]);
        rotate.run().unwrap();
        mesh.wait_proven();
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        let line =
            |line: &str| line.split_once(' ').map(|(from, hex)| (from.to_owned(), bytes(hex))).unwrap();
        recorders.map(|recorder| recorder.join().unwrap().lines().map(line).collect()).into()
    });
    let all = recorded.iter().flatten();
    assert!(all.clone().all(|(_, datagram)| datagram[0] == 2), "a message without authentication");
    let from_both =
        ["10.244.1.1", "10.244.2.1"].map(|address| all.clone().filter(|(from, _)| from == address).count());
    assert!(from_both.iter().all(|count| *count > 15), "{from_both:?} recorded");
    mesh.wait_proven();
    thread::sleep(Duration::from_secs(3));

    let before = ["n1", "n2"].map(|node| essence(&mesh, node));
    let count = counted(&mesh, "n2");
    let mut sent = 0;
    for link in ["mesh-a", "mesh-b"] {
        // What either end sent over either link.
        let replayed: Vec<Vec<u8>> =
            recorded.iter().flatten().map(|(_, datagram)| datagram.clone()).collect();
        let renumbered = replayed.iter().map(|datagram| renumbered(datagram)).collect();
        for datagrams in [unauthenticated(), badly_authenticated(), renumbered, replayed.clone(), replayed] {
            sent += send(&mesh, link, &datagrams);
        }
    }
    thread::sleep(Duration::from_secs(1));
    let after = counted(&mesh, "n2");
    assert!(after.1 - count.1 >= sent, "{sent} sent, {} counted", after.1 - count.1);
    // The nodes' own messages, such as a hello per slot and minute.
    assert!(after.0 - count.0 <= 10, "{} messages accepted", after.0 - count.0);
    assert_eq!(["n1", "n2"].map(|node| essence(&mesh, node)), before);
    for node in ["n1", "n2"] {
        let status = mesh.status(node).unwrap();
        assert!(!status.to_string().contains(FORGED_PLACE) && status["leases"] == serde_json::json!([]));
    }
    // The daemons still hear each other.
    let rotate = mesh.node("n2").unwrap().command(lab::bin("meshd").unwrap()).args(["rotate"]);
    rotate.run().unwrap();
    mesh.wait_proven();
    assert_ne!(essence(&mesh, "n1"), before[0]);
}

/// An offer of a preshared key is longer than a packet of the smallest MTU.
#[test]
fn messages_pass_that_do_not_fit_the_smallest_mtu() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    for node in mesh.node_names() {
        mesh.start_with(&node, &["--mtu", "1280"]).unwrap();
    }
    mesh.wait_formed();
    mesh.wait_proven();
    assert_eq!(mesh.status("n1").unwrap()["peers"][0]["mtu"], 1280);
}
