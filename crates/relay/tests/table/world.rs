//! Two ends of a lease that make sessions and send over the relay, as WireGuard does.

use std::net::SocketAddr;
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::PeerId;
use relay::{Dropped, Forward, Limits, Relay};

pub(crate) const PORTS: std::ops::RangeInclusive<u16> = 24_000..=24_015;
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn limits() -> Limits {
    Limits { ports: PORTS, bytes_per_second: 100_000_000, pair_bytes_per_second: 100_000_000 }
}

pub(crate) fn id(name: &str) -> PeerId {
    PeerId::new(name)
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A message of WireGuard: nothing but what a relay reads.
pub(crate) fn message(kind: u8, first: u32, second: u64) -> Vec<u8> {
    let len = [148, 92, 64, 96][usize::from(kind) - 1];
    let mut bytes = vec![0; len];
    bytes[0] = kind;
    bytes[4..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..16].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// Where the ends are at first.
const AT: [&str; 2] = ["198.51.100.1:51840", "[2001:db8::2]:51840"];

/// An end asks for its lease; returns its port.
fn ask(relay: &mut Relay, now: Duration, end: usize, seen: Option<SocketAddr>) -> u16 {
    let names = [id("u1"), id("u2")];
    relay.ask(now, &names[end], &names[1 - end], Slot::A, seen).unwrap().port
}

/// One end: where it is, its port at the relay, and its session.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) at: SocketAddr,
    pub(crate) port: u16,
    pub(crate) index: u32,
    pub(crate) counter: u64,
}

/// A relay and the two ends of one lease.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) relay: Relay,
    pub(crate) now: Duration,
    pub(crate) ends: [End; 2],
    /// Everything that the ends sent, which an attacker may have recorded: port and datagram.
    pub(crate) sent: Vec<(u16, Vec<u8>)>,
    next_index: u32,
}

impl World {
    /// Both ends have asked; `observed` says whether the relay's own tunnel sees them.
    pub(crate) fn new(observed: bool) -> Self {
        Self::observed_at(AT.map(|at| observed.then(|| address(at))))
    }

    /// Both ends have asked; the relay's own tunnel sees them there, which need not be where their lease's traffic is from.
    pub(crate) fn observed_at(seen: [Option<SocketAddr>; 2]) -> Self {
        let mut relay = Relay::new(Duration::ZERO, limits());
        let at = AT.map(address);
        let ports = [0, 1].map(|end| ask(&mut relay, Duration::ZERO, end, seen[end]));
        let ends = [0, 1].map(|end: usize| End { at: at[end], port: ports[end], index: 0, counter: 0 });
        Self { relay, now: SECOND, ends, sent: Vec::new(), next_index: 1000 }
    }

    /// An end asks again, and the relay's own tunnel sees it where it is now.
    pub(crate) fn observe(&mut self, end: usize) {
        ask(&mut self.relay, self.now, end, Some(self.ends[end].at));
    }

    /// Sends from an end's address to its port.
    pub(crate) fn send(&mut self, end: usize, datagram: Vec<u8>) -> Result<Forward, Dropped> {
        let End { at, port, .. } = self.ends[end];
        let result = self.relay.handle(self.now, port, at, &datagram);
        self.sent.push((port, datagram));
        result
    }

    /// One packet of an end's session.
    pub(crate) fn data(&mut self, end: usize) -> Result<Forward, Dropped> {
        self.ends[end].counter += 1;
        let (receiver, counter) = (self.ends[1 - end].index, self.ends[end].counter);
        self.send(end, message(4, receiver, counter))
    }

    fn index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index
    }

    /// What is forwarded must leave from the other end's port, to where that end is.
    pub(crate) fn reaches(&self, end: usize, forward: Result<Forward, Dropped>) -> bool {
        let other = &self.ends[1 - end];
        forward == Ok(Forward { from_port: other.port, to: other.at })
    }

    /// A handshake begun by `first`; returns whether it and a packet each way arrived.
    pub(crate) fn handshake(&mut self, first: usize) -> bool {
        let (one, two) = (self.index(), self.index());
        let initiation = self.send(first, message(1, one, 0));
        if !self.reaches(first, initiation) {
            return false;
        }
        let response = self.send(1 - first, message(2, two, one.into()));
        self.ends[first].index = one;
        self.ends[1 - first].index = two;
        self.ends.iter_mut().for_each(|end| end.counter = 0);
        self.reaches(1 - first, response) && self.both_pass()
    }

    /// A handshake, tried as WireGuard does: every five seconds, at most `tries` times, by both ends.
    pub(crate) fn connect(&mut self, tries: usize) -> bool {
        (0..tries).any(|_| {
            self.now += SECOND * 5;
            // What an end sends first opens its NAT and says where it is.
            let index = self.index();
            let _ = self.send(1, message(1, index, 0));
            self.handshake(0)
        })
    }

    pub(crate) fn both_pass(&mut self) -> bool {
        [0, 1].into_iter().all(|end| {
            let forward = self.data(end);
            self.reaches(end, forward)
        })
    }
}
