//! The forwarder with sockets of the machine's loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use keyring::Slot;
use keyring::rotation::PeerId;
use relay::{Forwarder, Limits, Relay};

fn limits(ports: std::ops::RangeInclusive<u16>) -> Limits {
    Limits { ports, bytes_per_second: 1 << 30, pair_bytes_per_second: 1 << 30 }
}

fn end(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket
}

/// Transport data of a session.
fn data(counter: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[0] = 4;
    bytes[4] = 7;
    bytes[8..16].copy_from_slice(&counter.to_le_bytes());
    bytes
}

fn lease(forwarder: &Forwarder, ends: [SocketAddr; 2]) -> [u16; 2] {
    let names = [PeerId::new("u1"), PeerId::new("u2")];
    let ask = |of: usize| {
        let asked =
            forwarder.with(|now, relay| relay.ask(now, &names[of], &names[1 - of], Slot::A, Some(ends[of])));
        asked.unwrap().port
    };
    [ask(0), ask(1)]
}

fn send_until_received(
    from: &UdpSocket,
    port: u16,
    at: &UdpSocket,
    datagram: &[u8],
) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let to = SocketAddr::new(from.local_addr().unwrap().ip(), port);
    for _ in 0..20 {
        from.send_to(datagram, to).unwrap();
        if let Ok((len, source)) = at.recv_from(&mut buffer) {
            return (buffer[..len].to_vec(), source);
        }
    }
    panic!("nothing arrived over port {port}");
}

#[test]
fn datagrams_pass_between_the_families_and_back() {
    let relay = Relay::new(Duration::ZERO, limits(24_100..=24_107));
    let forwarder = Forwarder::start(relay, Instant::now()).unwrap();
    let (v4, v6) = (end("127.0.0.1:0"), end("[::1]:0"));
    let ports = lease(&forwarder, [v4.local_addr().unwrap(), v6.local_addr().unwrap()]);
    let (got, source) = send_until_received(&v4, ports[0], &v6, &data(1, 1452));
    assert_eq!((got, source), (data(1, 1452), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], ports[1]))));
    let (got, source) = send_until_received(&v6, ports[1], &v4, &data(2, 32));
    assert_eq!((got, source), (data(2, 32), SocketAddr::from(([127, 0, 0, 1], ports[0]))));
    // Somebody else is not forwarded, and not answered.
    let other = end("127.0.0.1:0");
    other.send_to(&data(9, 100), ("127.0.0.1", ports[0])).unwrap();
    assert!(other.recv_from(&mut [0; 10]).is_err() && v6.recv_from(&mut [0; 10]).is_err());
    let counters = forwarder.counters();
    assert_eq!(counters.dropped["unproven"], 1);
    assert!(counters.bytes >= 1484 && counters.datagrams >= 2);
    // Without the lease the ports are closed.
    let names = [PeerId::new("u1"), PeerId::new("u2")];
    forwarder.with(|_, relay| relay.release(&names[0], &names[1], Slot::A));
    let free = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        UdpSocket::bind(("127.0.0.1", ports[0])).is_ok()
    });
    assert!(free && forwarder.is_running());
}

#[test]
fn a_burst_arrives_whole_and_in_order() {
    let relay = Relay::new(Duration::ZERO, limits(24_110..=24_117));
    let forwarder = Forwarder::start(relay, Instant::now()).unwrap();
    let (one, two) = (end("127.0.0.1:0"), end("127.0.0.1:0"));
    let ports = lease(&forwarder, [one.local_addr().unwrap(), two.local_addr().unwrap()]);
    send_until_received(&one, ports[0], &two, &data(1, 100));
    let mut buffer = [0; 2048];
    while two.recv_from(&mut buffer).is_ok() {}
    // Within what the receiver's buffer holds.
    for counter in 0..64 {
        let len = if counter % 7 == 0 { 200 } else { 1000 };
        one.send_to(&data(100 + counter, len), ("127.0.0.1", ports[0])).unwrap();
    }
    for counter in 0..64 {
        let (len, _) = two.recv_from(&mut buffer).unwrap();
        let expected = if counter % 7 == 0 { 200 } else { 1000 };
        assert_eq!(buffer[..len], data(100 + counter, expected), "datagram {counter}");
    }
}

#[test]
fn a_port_that_another_process_has_is_reported() {
    let taken = end("127.0.0.1:24120");
    let relay = Relay::new(Duration::ZERO, limits(24_120..=24_123));
    let forwarder = Forwarder::start(relay, Instant::now()).unwrap();
    let ports = lease(&forwarder, [taken.local_addr().unwrap(), "127.0.0.1:9".parse().unwrap()]);
    assert_eq!(ports[0], 24_120);
    let reported = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        forwarder.closed_ports().contains_key(&24_120)
    });
    assert!(reported, "{:?}", forwarder.closed_ports());
}
