//! Recorded handshakes of keys that are still in use, sent again after their preshared keys were renewed.

use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::Mesh;

use super::{KERNEL, mesh};

/// Records the initiations that leave this node (148 bytes, first byte 1: section 5.4.2 of the WireGuard paper) for so many
/// seconds: the destination's port and the message, one a line.
const RECORD: &str = "
import socket, sys, time
# Sockets for one protocol see only what arrives.
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    s.settimeout(max(end - time.monotonic(), 0.01))
    try:
        p, (link, protocol, kind, *_) = s.recvfrom(65535)
    except TimeoutError:
        break
    h = (p[0] & 15) * 4
    if protocol == 0x0800 and kind == socket.PACKET_OUTGOING and p[9] == 17 and len(p) == h + 156 and p[h + 8] == 1:
        print(int.from_bytes(p[h + 2:h + 4], 'big'), p[h + 8:].hex())
";
/// Sends such lines to an address; prints how many there were and how many were answered with a response (first byte 2). The
/// kernel takes 50 a second of each peer.
const REPLAY: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.4)
sent = answered = 0
for line in sys.stdin:
    port, message = line.split()
    s.sendto(bytes.fromhex(message), (sys.argv[1], int(port)))
    sent += 1
    try:
        while s.recv(2048)[0] != 2: pass
        answered += 1
    except TimeoutError:
        pass
print(sent, answered)
";
/// The shortest that can be configured.
const INTERVAL: &str = "10s";
/// Timeout of a renewal of both slots.
const RENEWED: Duration = Duration::from_mins(3);

/// The epochs of the keys of both slots that a node has proven with its peer.
fn epochs(mesh: &Mesh, node: &str) -> Option<[u64; 2]> {
    let status = mesh.status(node).unwrap();
    let slot = |slot: &str| {
        let slot = &status["peers"][0]["slots"][slot]["pq"];
        (slot["protection"] == "proven").then(|| slot["epoch"].as_u64())?
    };
    Some([slot("a")?, slot("b")?])
}

/// Waits until both slots of both nodes have a proven key of a later epoch than these.
fn renewed(mesh: &Mesh, after: [u64; 2]) {
    let end = Instant::now() + RENEWED;
    for node in ["n1", "n2"] {
        while !epochs(mesh, node).is_some_and(|now| now[0] > after[0] && now[1] > after[1]) {
            let status = || mesh.status(node).unwrap()["peers"][0].clone();
            assert!(Instant::now() < end, "{node}: not renewed since {after:?}: {}", status());
            thread::sleep(Duration::from_millis(300));
        }
    }
}

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn handshakes_recorded_before_a_renewal_of_preshared_keys_are_not_answered() {
    let flags = [&KERNEL[..], &["--pq", "require", "--pq-interval", INTERVAL]].concat();
    let mesh = mesh(&[&flags, &flags]);
    mesh.wait_proven();
    let first = epochs(&mesh, "n1").unwrap_or_default();
    let keys = |node: &str| mesh.status(node).unwrap()["slots"].clone();
    let before = ["n1", "n2"].map(keys);
    let recorded: Vec<String> = thread::scope(|scope| {
        let record = |node: &'static str| {
            let node = mesh.node(node).unwrap();
            scope.spawn(move || node.command("python3").args(["-c", RECORD, "30"]).run().unwrap())
        };
        ["n1", "n2"].map(record).into_iter().map(|recorder| recorder.join().unwrap()).collect()
    });
    renewed(&mesh, first);
    renewed(&mesh, epochs(&mesh, "n1").unwrap_or_default());
    assert_eq!(["n1", "n2"].map(keys), before, "the static keys are the same, or the test shows nothing");
    let mut sent = 0;
    for (lines, (from, to)) in recorded.iter().zip([("n1", "n2"), ("n2", "n1")]) {
        let file = mesh.dir().join(format!("from-{from}"));
        std::fs::write(&file, lines).unwrap();
        let address = mesh.node(to).unwrap().addresses()[0].to_string();
        let replay = format!("python3 -c \"$1\" {address} < {}", file.display());
        let output =
            mesh.node(from).unwrap().command("sh").args(["-c", &replay, "sh", REPLAY]).run().unwrap();
        let counts: Vec<usize> = output.split_whitespace().map(|count| count.parse().unwrap()).collect();
        assert_eq!(counts[1], 0, "{} of {} recorded handshakes were answered by {to}", counts[1], counts[0]);
        sent += counts[0];
    }
    // Each renewal of a slot begins a handshake at one end or both.
    assert!(sent >= 2, "{recorded:?}");
    let peers = |node: &str| mesh.status(node).unwrap()["peers"][0]["state"] == "up";
    assert!(peers("n1") && peers("n2"));
}
