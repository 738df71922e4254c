//! Ciphertext recorded under a destroyed key is useless.

use std::time::{Duration, Instant};

use lab::{IpVersion, Stream};
use serde_json::Value;

use super::{WITHIN, quick, rotate, wait_whole};

/// Records what arrives at a UDP port as transport data (first byte 4: section 5.4.6 of the WireGuard paper), one
/// datagram per line in hexadecimal.
const RECORD: &str = "
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
found = 0
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
s.settimeout(5)
while found < count:
    p = s.recv(65535)
    h = (p[0] & 15) * 4
    if p[9] == 17 and int.from_bytes(p[h + 2:h + 4], 'big') == port and p[h + 8] == 4 and len(p) > h + 100:
        print(p[h + 8:].hex())
        found += 1
";
/// Sends such lines to an address and port, from the peer's port.
const REPLAY: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for line in sys.stdin:
    s.sendto(bytes.fromhex(line.strip()), (sys.argv[1], int(sys.argv[2])))
";

#[test]
fn ciphertext_under_a_destroyed_key_is_not_accepted() {
    const RECORDED: usize = 50;
    let mesh = quick(2);
    let pods = mesh.pods(&["a"]).unwrap();
    let stream = Stream::start(&pods[1].end(), &pods[0].end(), IpVersion::V4, 200).unwrap();
    let (n1, n2) = (mesh.node("n1").unwrap(), mesh.node("n2").unwrap());
    let recorded = n1.command("python3").args(["-c", RECORD, "51840", &RECORDED.to_string()]).run().unwrap();
    assert_eq!(recorded.lines().count(), RECORDED);
    // They were accepted the first time: nothing of the stream is missing.
    let report = stream.stop();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    assert!(rotate(&mesh, "n1", &[]).0);
    wait_whole(&mesh);
    // Slot b carries the traffic now, and slot a has had time to finish its handshakes.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(mesh.status("n2").unwrap()["peers"][0]["active"], Value::from("b"));
    // No session has the index that they name.
    let refused = || {
        let status = mesh.status("n1").unwrap();
        status["tunnel_dropped"].get("unknown_index").map_or(0, |count| count.as_u64().unwrap())
    };
    let stream = Stream::start(&pods[1].end(), &pods[0].end(), IpVersion::V4, 200).unwrap();
    let before = refused();
    let file = mesh.dir().join("recorded");
    std::fs::write(&file, &recorded).unwrap();
    let address = n1.addresses()[0].to_string();
    let replay = format!("python3 -c \"$1\" {address} 51840 < {}", file.display());
    n2.command("sh").args(["-c", &replay, "sh", REPLAY]).run().unwrap();
    let end = Instant::now() + WITHIN;
    while refused() < before + RECORDED as u64 {
        assert!(Instant::now() < end, "{} of {RECORDED} were refused", refused() - before);
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = stream.stop();
    assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
}
