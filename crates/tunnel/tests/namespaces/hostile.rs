//! A million datagrams of garbage, mutated traffic and replays at the socket, while honest packets go on.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tunnel::{DropReason, Health, Interface};
use wireguard::{PeerChange, PeerOp};

use super::lab::{Family, Lab};

const TOTAL: usize = 1_000_000;
/// Between two pauses; a burst of so many fits the socket's buffer beside the honest packets.
const BURST: usize = 64;
/// The engine may take so much more memory afterwards: buffers grow to the largest batch, and then no more.
const GROWTH_KB: u64 = 16 * 1024;

/// A generator of numbers that is the same in each run (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}

/// Resident memory of this process in KB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Lets the first packets of the tunnel pass through `wire`, which keeps what it sees: real messages to mutate. Then the
/// two talk to one another directly.
fn genuine(lab: &Lab, (a, b): (&Interface, &Interface), wire: &UdpSocket) -> Vec<Vec<u8>> {
    let ends = [(&lab.a, a), (&lab.b, b)]
        .map(|(host, interface)| host.endpoint(Family::V4, interface.state().port).parse().unwrap());
    let their_key = b.state().key.unwrap();
    let point_to = |endpoint: SocketAddr| {
        let settings = PeerChange { endpoint: Some(endpoint), ..Default::default() };
        a.apply(vec![PeerOp::update(their_key, settings)]).unwrap();
    };
    point_to(wire.local_addr().unwrap());
    wire.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let messages = std::thread::scope(|scope| {
        let pings = scope.spawn(|| lab.a.reaches(&lab.b.inner(Family::V4), 56));
        let (mut messages, mut buffer) = (Vec::new(), [0; 2_048]);
        while !pings.is_finished() {
            let Ok((len, from)) = wire.recv_from(&mut buffer) else { continue };
            let to = if from == ends[0] { ends[1] } else { ends[0] };
            wire.send_to(&buffer[..len], to).unwrap();
            messages.push(buffer[..len].to_vec());
        }
        assert!(pings.join().unwrap(), "the packets pass through the wire");
        messages
    });
    for kind in [1, 2, 4] {
        assert!(messages.iter().any(|message| message[0] == kind), "no message of type {kind}");
    }
    point_to(ends[1]);
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
    messages
}

/// A bad datagram: garbage, something with the right outside, or a genuine message, replayed, changed or cut.
fn bad(genuine: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = match numbers.below(4) {
        0 => vec![0; numbers.below(1_400)],
        1 => {
            let mut bytes = vec![0; [148, 92, 64, 32, 48, 1_452][numbers.below(6)]];
            numbers.fill(&mut bytes);
            bytes[..4].copy_from_slice(&[numbers.next().to_le_bytes()[0] % 6, 0, 0, 0]);
            bytes
        }
        _ => genuine[numbers.below(genuine.len())].clone(),
    };
    match numbers.below(3) {
        0 => {}
        1 if !bytes.is_empty() => {
            let at = numbers.below(bytes.len());
            bytes[at] ^= 1 << numbers.below(8);
        }
        _ => bytes.truncate(numbers.below(bytes.len() + 1)),
    }
    bytes
}

#[test]
fn a_million_bad_datagrams_neither_stop_nor_swell_it() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V4);
    let attacker = lab.a.enter(|| UdpSocket::bind("192.0.2.1:0").unwrap());
    let genuine = genuine(&lab, (&a, &b), &attacker);
    let target = lab.b.endpoint(Family::V4, b.state().port);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let over = AtomicBool::new(false);
    let mut half = 0;
    let (asked, answered) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let (mut asked, mut answered) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                asked += 50;
                answered += lab.a.answers_from(&lab.b.inner(Family::V4), 50);
            }
            (asked, answered)
        });
        for sent in (0..TOTAL).step_by(BURST) {
            for _ in 0..BURST {
                // A full buffer on the path drops a datagram.
                let _ = attacker.send_to(&bad(&genuine, &mut numbers), &target);
            }
            // Leaves the socket's buffer room for the honest packets: the point is what is received.
            std::thread::sleep(Duration::from_millis(1));
            if sent >= TOTAL / 2 && half == 0 {
                half = resident();
            }
        }
        over.store(true, Ordering::Relaxed);
        pings.join().unwrap()
    });
    // A machine that is busy with something else may let the buffer run over for a moment.
    assert!(answered * 10 >= asked * 8, "{answered} of {asked} honest packets");
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
    let grown = resident().saturating_sub(half);
    assert!(grown < GROWTH_KB, "{grown} KB more in the second half");
    assert_eq!((a.health(), b.health()), (Health::Running, Health::Running));
    let counters = b.counters();
    let dropped: u64 = counters.iter().map(|(_, count)| count).sum();
    assert!(dropped > TOTAL as u64 / 2, "most of it has to arrive to be refused: {counters:?}");
    for reason in [DropReason::Replay, DropReason::Forged, DropReason::InvalidMac, DropReason::UnknownIndex] {
        assert!(counters.dropped(reason) > 1_000, "{reason:?}: {counters:?}");
    }
    assert_eq!(counters.dropped(DropReason::SourceMismatch), 0, "nothing made up was taken: {counters:?}");
}
