//! A relay that lies: datagrams of a pair that should go through the relay's own forwarder go through this one instead,
//! which can do with them whatever a relay with bad intentions can.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lab::Host;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, sockopt};

/// First port of its sockets: two for each slot.
const FIRST: u16 = 9000;

/// What it does with what it should forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Lie {
    /// Forwards it.
    None,
    /// Forwards everything twice, and pairs of datagrams the wrong way round.
    DuplicateAndReorder,
    /// Forwards it, and sends copies to a third node.
    TellThird,
    /// Forwards nothing.
    Drop,
}

/// A datagram that came to a relay: the number of its leg, and its bytes.
pub(super) type Passed = (usize, Vec<u8>);

/// An end of a pair on one slot: where it is, and the relay's port that it sends to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    pub(super) at: SocketAddr,
    pub(super) port: u16,
}

/// The running liar. Legs `2 * n` and `2 * n + 1` are the ends of a slot.
pub(super) struct Liar {
    lie: Arc<AtomicU8>,
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Liar {
    /// Takes the relay's place for these legs.
    pub(super) fn start(relay: &Host, legs: &[Leg], third: IpAddr) -> Self {
        let (lie, stop) = (Arc::<AtomicU8>::default(), Arc::<AtomicBool>::default());
        let passed = Arc::<AtomicU64>::default();
        let port = |leg: usize| FIRST + u16::try_from(leg).unwrap();
        let open = |leg| {
            let socket = relay.run(|| UdpSocket::bind(("0.0.0.0", port(leg)))).unwrap().unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            socket
        };
        let sockets: Vec<_> = (0..legs.len()).map(open).collect();
        let threads = (0..legs.len()).map(|leg| {
            let forwarder = Forwarder {
                inbox: sockets[leg].try_clone().unwrap(),
                outbox: sockets[leg ^ 1].try_clone().unwrap(),
                to: legs[leg ^ 1].at,
                third: SocketAddr::new(third, legs[leg].at.port()),
                lie: Arc::clone(&lie),
                stop: Arc::clone(&stop),
                passed: Arc::clone(&passed),
            };
            std::thread::spawn(move || forwarder.run())
        });
        let threads = threads.collect();
        let mut rules = "table ip lie {\nchain in { type filter hook prerouting priority -340;\n".to_owned();
        for (number, leg) in legs.iter().enumerate() {
            writeln!(rules, "ip saddr {} udp dport {} udp dport set {}", leg.at.ip(), leg.port, port(number))
                .unwrap();
        }
        rules += "}\nchain out { type filter hook output priority -350;\n";
        for (number, leg) in legs.iter().enumerate() {
            writeln!(rules, "ip daddr {} udp sport {} udp sport set {}", leg.at.ip(), port(number), leg.port)
                .unwrap();
        }
        rules += "}\n}\n";
        relay.command("nft").args(["-f", "-"]).input(rules).run().unwrap();
        Self { lie, stop, passed, threads }
    }

    pub(super) fn tell(&self, lie: Lie) {
        self.lie.store(lie as u8, Ordering::Release);
    }

    /// How many datagrams have come to it.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Acquire)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

struct Forwarder {
    inbox: UdpSocket,
    outbox: UdpSocket,
    to: SocketAddr,
    third: SocketAddr,
    lie: Arc<AtomicU8>,
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
}

impl Forwarder {
    fn run(&self) {
        let mut buffer = [0; 2048];
        let mut held: Option<Vec<u8>> = None;
        while !self.stop.load(Ordering::Acquire) {
            let received = self.inbox.recv_from(&mut buffer);
            let Ok((length, _)) = received else {
                // Nothing is held back for longer than it takes to see that nothing follows.
                held.take().into_iter().for_each(|first| self.send(&first, self.to));
                continue;
            };
            let datagram = &buffer[..length];
            let lie = self.lie.load(Ordering::Acquire);
            if lie == Lie::DuplicateAndReorder as u8 {
                match held.take() {
                    None => held = Some(datagram.to_vec()),
                    Some(first) => {
                        for one in [datagram, datagram, &first, &first] {
                            self.send(one, self.to);
                        }
                    }
                }
            } else if lie != Lie::Drop as u8 {
                held.take().into_iter().for_each(|first| self.send(&first, self.to));
                self.send(datagram, self.to);
                if lie == Lie::TellThird as u8 {
                    self.send(datagram, self.third);
                }
            }
            self.passed.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn send(&self, datagram: &[u8], to: SocketAddr) {
        // As unreliable as the network.
        let _refused = self.outbox.send_to(datagram, to);
    }
}

/// What is being recorded.
pub(super) struct Recording {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Passed>>,
}

impl Recording {
    /// Ends it; returns what came until then.
    pub(super) fn end(self) -> Vec<Passed> {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Records what comes to a relay, and what it does meanwhile is not changed: a raw socket gets a copy of each packet (raw(7)).
pub(super) fn record(relay: &Host, legs: &[Leg]) -> Recording {
    let open = || {
        let (family, kind) = (AddressFamily::INET, SocketType::RAW);
        rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(ipproto::UDP))
    };
    let socket = relay.run(open).unwrap().unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_millis(20))).unwrap();
    let (legs, ended) = (legs.to_vec(), Arc::new(AtomicBool::new(false)));
    let has_ended = Arc::clone(&ended);
    let thread = std::thread::spawn(move || {
        let (mut passed, mut buffer) = (Vec::new(), [0; 2048]);
        while !has_ended.load(Ordering::Relaxed) {
            let Ok((_, length)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) else {
                continue;
            };
            // An IPv4 header, whose length is in its first byte, and one of UDP (RFC 791, RFC 768).
            let packet = &buffer[..length.min(2048)];
            let datagram = &packet[usize::from(packet[0] & 0xf) * 4..];
            let source = IpAddr::from([packet[12], packet[13], packet[14], packet[15]]);
            let port = u16::from_be_bytes([datagram[2], datagram[3]]);
            if let Some(leg) = legs.iter().position(|leg| leg.port == port && leg.at.ip() == source) {
                passed.push((leg, datagram[8..].to_vec()));
            }
        }
        passed
    });
    Recording { ended, thread }
}
