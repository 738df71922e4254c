//! The leases of a relay, and the decision about each datagram.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::PeerId;
use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::header::Header;
use crate::leg::Leg;

/// How often an end asks for its lease again.
pub const REFRESH: Duration = Duration::from_mins(1);
/// How long a lease lives that an end does not ask for again (RFC 8656, section 3.2: the lifetime of an allocation).
pub const LIFE: Duration = Duration::from_mins(10);
/// An end that asked no longer ago than this is there: two refreshes may be lost.
const FRESH: Duration = Duration::from_secs(150);
/// Leases that one node may have asked for first: more are refused, so that no node takes all ports. Whether the other end
/// comes does not matter, since honest ones come to every offer.
pub const MAX_LEASES: usize = 256;
/// Least time between two offers of one lease to the same end.
const OFFER_PERIOD: Duration = Duration::from_millis(300);
/// What a bucket holds at least: one batch of the largest messages, in bytes.
const LEAST_BURST: u64 = 4 << 20;

/// What a relay is allowed to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// UDP ports, two for each lease.
    pub ports: RangeInclusive<u16>,
    /// Bytes a second for all leases together.
    pub bytes_per_second: u64,
    /// Bytes a second for both slots' leases of a pair, each.
    pub pair_bytes_per_second: u64,
}

/// Why a lease is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Every port is leased.
    Full,
    /// The node has asked for too many leases.
    TooMany,
    /// A node needs no lease with itself.
    Itself,
}

/// A lease, as one of its ends sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where this end sends to.
    pub port: u16,
    /// Whether the other end has asked as well: only then is anything forwarded.
    pub both: bool,
    /// Whether the other end is to be told that this one asked.
    pub offer: bool,
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The port from which it is sent.
    pub from_port: u16,
    /// Where to.
    pub to: SocketAddr,
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Dropped {
    /// The port belongs to no lease.
    NoLease,
    /// Only one end has asked for the lease.
    OneEnd,
    /// No message of WireGuard.
    NotWireGuard,
    /// From an address at which no end has been proven to be.
    Unproven,
    /// A handshake message from such an address, over the limit.
    HandshakeLimited,
    /// It answers nothing that the other end announced.
    UnknownIndex,
    /// The other end has not been heard yet.
    NoAddress,
    /// Over the limit of the pair.
    PairLimited,
    /// Over the limit of the relay.
    Limited,
    /// The socket refused it.
    Send,
}

impl Dropped {
    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 10] = [
        Self::NoLease,
        Self::OneEnd,
        Self::NotWireGuard,
        Self::Unproven,
        Self::HandshakeLimited,
        Self::UnknownIndex,
        Self::NoAddress,
        Self::PairLimited,
        Self::Limited,
        Self::Send,
    ];

    /// The reason as text, for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoLease => "no_lease",
            Self::OneEnd => "one_end",
            Self::NotWireGuard => "not_wireguard",
            Self::Unproven => "unproven",
            Self::HandshakeLimited => "handshake_limited",
            Self::UnknownIndex => "unknown_index",
            Self::NoAddress => "no_address",
            Self::PairLimited => "pair_limited",
            Self::Limited => "limited",
            Self::Send => "send",
        }
    }
}

/// What a lease is for: a pair of nodes, in order, and the slot of their tunnel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Subject {
    low: PeerId,
    high: PeerId,
    slot: Slot,
}

/// The ports and ends of a pair's slot. End 0 is that of the lower UID.
#[derive(Clone, Debug)]
struct Lease {
    subject: Subject,
    /// The end that asked first.
    first: usize,
    ports: [u16; 2],
    legs: [Leg; 2],
    bytes: Bucket,
}

impl Lease {
    fn has_asked(&self, end: usize, now: Duration, within: Duration) -> bool {
        self.legs[end].asked.is_some_and(|asked| now.saturating_sub(asked) <= within)
    }
}

/// A lease that is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLease {
    low: PeerId,
    high: PeerId,
    slot: Slot,
    /// Whether the end with the higher UID asked first.
    #[serde(default)]
    high_first: bool,
    /// The ports of both ends.
    ports: [u16; 2],
    /// Which ends have asked.
    asked: [bool; 2],
    /// Where they are.
    addresses: [Option<SocketAddr>; 2],
}

/// All leases. It does no I/O. Times are monotonic since any fixed moment.
#[derive(Clone, Debug)]
pub struct Relay {
    limits: Limits,
    /// Addresses of relays: a leased port of another relay, or of this one, is nobody's end, and what came from there
    /// could go round for ever.
    relays: BTreeSet<IpAddr>,
    leases: Vec<Option<Lease>>,
    by_subject: BTreeMap<Subject, usize>,
    /// Lease and end by port, from the first one on.
    by_port: Vec<Option<(usize, usize)>>,
    bytes: Bucket,
}

impl Relay {
    /// Starts without leases.
    pub fn new(now: Duration, limits: Limits) -> Self {
        let rate = limits.bytes_per_second;
        Self {
            relays: BTreeSet::new(),
            leases: Vec::new(),
            by_subject: BTreeMap::new(),
            by_port: vec![None; limits.ports.len()],
            bytes: Bucket::new(now, rate, burst(rate)),
            limits,
        }
    }

    /// Sets the addresses of all relays, this one's included.
    pub fn set_relays(&mut self, relays: BTreeSet<IpAddr>) {
        self.relays = relays;
    }

    /// A node asks for a lease with a peer. `observed` is where the relay's own tunnel sees this slot of the node: the
    /// address is authenticated, and the node's datagrams come from there unless its NAT maps each destination anew.
    pub fn ask(
        &mut self,
        now: Duration,
        from: &PeerId,
        peer: &PeerId,
        slot: Slot,
        observed: Option<SocketAddr>,
    ) -> Result<Grant, Refusal> {
        let (subject, end) = subject(from, peer, slot).ok_or(Refusal::Itself)?;
        let place = match self.by_subject.get(&subject) {
            Some(place) => *place,
            None => self.create(now, subject, from)?,
        };
        let Some(Some(lease)) = self.leases.get_mut(place) else { return Err(Refusal::Full) };
        lease.legs[end].asked = Some(now);
        lease.legs[end].observe(observed.filter(|address| !is_relay(&self.relays, &self.limits, *address)));
        let other = 1 - end;
        let both = lease.has_asked(other, now, FRESH);
        let told = lease.legs[other].offered;
        let offer = told.is_none_or(|told| now.saturating_sub(told) >= OFFER_PERIOD);
        if offer {
            lease.legs[other].offered = Some(now);
        }
        Ok(Grant { port: lease.ports[end], both, offer })
    }

    /// A node does not need its lease with a peer any more. Returns whether it had one.
    pub fn release(&mut self, from: &PeerId, peer: &PeerId, slot: Slot) -> bool {
        let Some((subject, end)) = subject(from, peer, slot) else { return false };
        let Some(place) = self.by_subject.get(&subject).copied() else { return false };
        let Some(Some(lease)) = self.leases.get_mut(place) else { return false };
        let had = lease.legs[end].asked.take().is_some();
        if lease.legs.iter().all(|leg| leg.asked.is_none()) {
            self.remove(place);
        }
        had
    }

    /// Removes what nobody has asked for in time, and leases of nodes that are not members any more.
    pub fn expire(&mut self, now: Duration, is_member: impl Fn(&PeerId) -> bool) {
        for place in 0..self.leases.len() {
            let Some(Some(lease)) = self.leases.get_mut(place) else { continue };
            for end in 0..2 {
                if !lease.has_asked(end, now, LIFE) {
                    lease.legs[end].asked = None;
                }
            }
            let unused = lease.legs.iter().all(|leg| leg.asked.is_none());
            if unused || ![&lease.subject.low, &lease.subject.high].into_iter().all(&is_member) {
                self.remove(place);
            }
        }
    }

    /// Decides about one datagram that arrived at a leased port: at most one goes out for it, of the same length.
    pub fn handle(
        &mut self,
        now: Duration,
        port: u16,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<Forward, Dropped> {
        let at = port.checked_sub(*self.limits.ports.start()).ok_or(Dropped::NoLease)?;
        let (place, end) = self.by_port.get(usize::from(at)).copied().flatten().ok_or(Dropped::NoLease)?;
        let lease = self.leases.get_mut(place).and_then(Option::as_mut).ok_or(Dropped::NoLease)?;
        if !lease.has_asked(0, now, LIFE) || !lease.has_asked(1, now, LIFE) {
            return Err(Dropped::OneEnd);
        }
        let header = Header::read(datagram).ok_or(Dropped::NotWireGuard)?;
        if is_relay(&self.relays, &self.limits, from) {
            return Err(Dropped::Unproven);
        }
        let [low, high] = &mut lease.legs;
        let (near, far) = if end == 0 { (low, high) } else { (high, low) };
        let to = decide(now, near, far, from, header)?;
        let len = datagram.len() as u64;
        if !lease.bytes.take(now, len) {
            return Err(Dropped::PairLimited);
        }
        if !self.bytes.take(now, len) {
            return Err(Dropped::Limited);
        }
        Ok(Forward { from_port: lease.ports[1 - end], to })
    }

    /// The ports on which datagrams are to be received: those of leases that both ends have asked for.
    pub fn open_ports(&self) -> BTreeSet<u16> {
        let leases = self.leases.iter().flatten();
        let open = leases.filter(|lease| lease.legs.iter().all(|leg| leg.asked.is_some()));
        open.flat_map(|lease| lease.ports).collect()
    }

    /// Number of leases: those that both ends have asked for, and the others.
    pub fn count(&self) -> (usize, usize) {
        let both = self.open_ports().len() / 2;
        (both, self.by_subject.len() - both)
    }

    /// What is to be restored after a restart.
    pub fn saved(&self) -> Vec<SavedLease> {
        let saved = |lease: &Lease| SavedLease {
            low: lease.subject.low.clone(),
            high: lease.subject.high.clone(),
            slot: lease.subject.slot,
            high_first: lease.first == 1,
            ports: lease.ports,
            asked: [0, 1].map(|end: usize| lease.legs[end].asked.is_some()),
            addresses: [0, 1].map(|end: usize| lease.legs[end].address()),
        };
        self.by_subject.values().filter_map(|place| self.leases.get(*place)?.as_ref().map(saved)).collect()
    }

    /// Restores what was saved, as far as it fits: each lease lives as long as if its ends had just asked.
    pub fn restore(&mut self, now: Duration, saved: Vec<SavedLease>) {
        for SavedLease { low, high, slot, high_first, ports, asked, addresses } in saved {
            let free = |port: &u16| self.limits.ports.contains(port) && self.lease_at(*port).is_none();
            let subject = Subject { low, high, slot };
            let fits = subject.low < subject.high
                && ports[0] != ports[1]
                && ports.iter().all(free)
                && !self.by_subject.contains_key(&subject)
                && asked.contains(&true);
            if !fits {
                continue;
            }
            let mut lease = self.lease(now, subject, high_first.into(), ports);
            for end in 0..2 {
                lease.legs[end] = Leg::at(now, addresses[end]);
                lease.legs[end].asked = asked[end].then_some(now);
            }
            self.insert(lease);
        }
    }

    fn lease_at(&self, port: u16) -> Option<(usize, usize)> {
        let at = port.checked_sub(*self.limits.ports.start())?;
        self.by_port.get(usize::from(at)).copied().flatten()
    }

    fn create(&mut self, now: Duration, subject: Subject, from: &PeerId) -> Result<usize, Refusal> {
        let first = usize::from(subject.high == *from);
        let asked_first = |lease: &&Lease| {
            let one = if lease.first == 1 { &lease.subject.high } else { &lease.subject.low };
            one == from && lease.legs[lease.first].asked.is_some()
        };
        if self.leases.iter().flatten().filter(asked_first).count() >= MAX_LEASES {
            return Err(Refusal::TooMany);
        }
        let mut ports = self.free_ports();
        if ports.is_none() {
            // Those that wait for their other end give way, the oldest first.
            let waiting = |lease: &Lease| {
                let asked = lease.legs.iter().filter_map(|leg| leg.asked);
                (asked.clone().count() < 2).then(|| asked.max())
            };
            let leases = self.leases.iter().enumerate();
            let waiting = leases.filter_map(|(place, lease)| Some((waiting(lease.as_ref()?)?, place)));
            if let Some((_, place)) = waiting.min() {
                self.remove(place);
                ports = self.free_ports();
            }
        }
        let lease = self.lease(now, subject, first, ports.ok_or(Refusal::Full)?);
        Ok(self.insert(lease))
    }

    fn lease(&self, now: Duration, subject: Subject, first: usize, ports: [u16; 2]) -> Lease {
        let rate = self.limits.pair_bytes_per_second;
        let bytes = Bucket::new(now, rate, burst(rate));
        Lease { subject, first, ports, legs: [Leg::new(now), Leg::new(now)], bytes }
    }

    /// Two ports that are not leased.
    fn free_ports(&self) -> Option<[u16; 2]> {
        let ports = self.limits.ports.clone().zip(&self.by_port);
        let mut free = ports.filter(|(_, lease)| lease.is_none()).map(|(port, _)| port);
        Some([free.next()?, free.next()?])
    }

    fn insert(&mut self, lease: Lease) -> usize {
        let place = self.leases.iter().position(Option::is_none).unwrap_or_else(|| {
            self.leases.push(None);
            self.leases.len() - 1
        });
        for (end, port) in lease.ports.into_iter().enumerate() {
            if let Some(entry) = self.entry(port) {
                *entry = Some((place, end));
            }
        }
        self.by_subject.insert(lease.subject.clone(), place);
        self.leases[place] = Some(lease);
        place
    }

    fn remove(&mut self, place: usize) {
        let Some(lease) = self.leases.get_mut(place).and_then(Option::take) else { return };
        for port in lease.ports {
            if let Some(entry) = self.entry(port) {
                *entry = None;
            }
        }
        self.by_subject.remove(&lease.subject);
    }

    fn entry(&mut self, port: u16) -> Option<&mut Option<(usize, usize)>> {
        let at = port.checked_sub(*self.limits.ports.start())?;
        self.by_port.get_mut(usize::from(at))
    }
}

/// Where a datagram of one end goes, if anywhere, and what both legs learn from it.
fn decide(
    now: Duration,
    near: &mut Leg,
    far: &mut Leg,
    from: SocketAddr,
    header: Header,
) -> Result<SocketAddr, Dropped> {
    let known = near.is_known(from);
    match header {
        Header::Data { receiver, counter } => {
            if known {
                near.heard(from);
                // The end that sends has taken the index from a handshake message that reached it.
                far.named(receiver);
                // Anybody can send from its address, but not know how far its session has come.
                if far.is_newest(receiver, counter, true) {
                    near.note_present(now, from);
                }
            } else if near.may_move_to(now, from) && far.is_newest(receiver, counter, true) {
                near.move_to(from);
            } else {
                return Err(Dropped::Unproven);
            }
            far.address().ok_or(Dropped::NoAddress)
        }
        Header::Initiation { sender } => {
            if !known && !near.admit_unproven(now, from) {
                return Err(Dropped::HandshakeLimited);
            }
            near.announce(now, from, sender);
            far.address_to_try().ok_or(Dropped::NoAddress)
        }
        Header::Response { receiver, .. } | Header::Cookie { receiver } => {
            if !far.has(receiver) {
                return Err(Dropped::UnknownIndex);
            }
            if !known && !near.admit_unproven(now, from) {
                return Err(Dropped::HandshakeLimited);
            }
            if known {
                near.note_present(now, from);
            }
            if let Header::Response { sender, .. } = header {
                near.announce(now, from, sender);
            }
            if near.may_name(from) {
                far.named(receiver);
            }
            far.address().ok_or(Dropped::NoAddress)
        }
    }
}

/// Whether an address is a leased port of a relay.
fn is_relay(relays: &BTreeSet<IpAddr>, limits: &Limits, address: SocketAddr) -> bool {
    limits.ports.contains(&address.port()) && relays.contains(&address.ip())
}

/// The lease of a pair and slot, and which of its ends `from` is.
fn subject(from: &PeerId, peer: &PeerId, slot: Slot) -> Option<(Subject, usize)> {
    let end = match from.cmp(peer) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => 1,
    };
    let (low, high) = if end == 0 { (from, peer) } else { (peer, from) };
    Some((Subject { low: low.clone(), high: high.clone(), slot }, end))
}

/// A twentieth of a second, and at least one batch.
const fn burst(per_second: u64) -> u64 {
    let burst = per_second / 20;
    if burst > LEAST_BURST { burst } else { LEAST_BURST }
}
