//! Much data at once, so that the kernel keeps packets together on both sides, and every byte arrives as it was.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use tunnel::DropReason;

use super::interop::{First, Other, pair};
use super::lab::{Family, Host, Lab};

const TOTAL: usize = 8 << 20;

/// Bytes that differ from place to place.
fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()[0]).collect()
}

/// Sends [`TOTAL`] bytes over TCP between the inner addresses.
fn tcp(from: &Host, to: &Host, family: Family) {
    let address: IpAddr = to.inner(family).parse().unwrap();
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let received = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut all = Vec::with_capacity(TOTAL);
            stream.read_to_end(&mut all).unwrap();
            all
        });
        let mut stream = from.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap());
        // Uneven pieces, so that segments of every length occur.
        let mut sent = 0;
        for len in [1usize, 1_369, 70_001, 13, 300_000].into_iter().cycle() {
            let len = len.min(TOTAL - sent);
            stream.write_all(&pattern(sent, len)).unwrap();
            sent += len;
            if sent == TOTAL {
                break;
            }
        }
        drop(stream);
        assert!(received.join().unwrap() == pattern(0, TOTAL), "every byte as it was sent");
    });
}

/// Sends 40 bursts of 20 datagrams, each burst of another length, and counts those that arrive, all of which must be
/// as they were.
fn udp(from: &Host, to: &Host, family: Family) -> usize {
    let bind = |host: &Host| {
        let address: IpAddr = host.inner(family).parse().unwrap();
        host.enter(|| UdpSocket::bind(SocketAddr::new(address, 0)).unwrap())
    };
    let (sender, receiver) = (bind(from), bind(to));
    receiver.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let target = receiver.local_addr().unwrap();
    let mut buffer = [0; 2_000];
    let mut arrived = 0;
    for burst in 0..40 {
        let len = 1 + burst * 33;
        for number in 0..20usize {
            let mut bytes = pattern(number, len);
            bytes[0] = number.to_le_bytes()[0];
            sender.send_to(&bytes, target).unwrap();
        }
        for _ in 0..20 {
            let Ok(got) = receiver.recv(&mut buffer) else { break };
            let mut expected = pattern(usize::from(buffer[0]), len);
            expected[0] = buffer[0];
            assert_eq!(buffer[..got], expected);
            arrived += 1;
        }
    }
    arrived
}

#[test]
fn between_two_of_ours() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V4);
    for family in [Family::V4, Family::V6] {
        tcp(&lab.a, &lab.b, family);
        tcp(&lab.b, &lab.a, family);
        assert_eq!(udp(&lab.a, &lab.b, family), 800, "bursts that fit every buffer are not lost");
    }
    for interface in [&a, &b] {
        let counters = interface.counters();
        // The kernel solicits routers and multicast groups, and no peer owns those addresses.
        let others = counters.iter().filter(|(reason, _)| *reason != DropReason::NoPeer);
        assert_eq!(others.map(|(_, dropped)| dropped).sum::<u64>(), 0, "{counters:?}");
    }
}

#[test]
fn with_every_size_of_packet_on_the_way() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V6);
    for mtu in [1_280, 1_333, 9_000] {
        // Larger than the cable's: datagrams are sent one by one and in fragments.
        a.set_mtu(mtu).unwrap();
        b.set_mtu(mtu).unwrap();
        tcp(&lab.a, &lab.b, Family::V4);
    }
}

fn with_another(other: Other) {
    let pair = pair(other, First::Ours, Family::V4);
    for family in [Family::V4, Family::V6] {
        tcp(&pair.lab.a, &pair.lab.b, family);
        tcp(&pair.lab.b, &pair.lab.a, family);
    }
    assert!(udp(&pair.lab.b, &pair.lab.a, Family::V4) > 700);
}

#[test]
fn with_wireguard_go() {
    with_another(Other::WireguardGo);
}

#[test]
fn with_gotatun() {
    with_another(Other::GotaTun);
}
