//! One end of a lease: where it is, and what shows that it is there.
//!
//! A relay has no key, so it can authenticate nothing itself. It reads two things off the exchange of both ends. An end
//! that is named by the index that it announced has been answered at the address that it announced it from. And only who
//! sees the packets of a session knows its index and how far its counter has come.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::bucket::Bucket;

/// Addresses of a leg that are heard before one is proven.
pub(crate) const MAX_SOURCES: usize = 4;
/// Handshake messages that such addresses together may pass in a second; those with the IP address at which the relay
/// itself reaches the node have as many of their own.
pub(crate) const UNPROVEN_PER_SECOND: u64 = 10;
/// Sessions of one end whose index is remembered: WireGuard keeps three (`struct noise_keypairs`), and one is being made.
const MAX_SESSIONS: usize = 4;
/// Indices that were named once and are taken for replays from then on: two hours of sessions of two minutes.
const MAX_SPENT: usize = 64;
/// How long an end is not looked for elsewhere after it was heard where the relay's own tunnel sees it: as long as a session
/// lasts (`REJECT_AFTER_TIME`, WireGuard paper, section 6.1).
const PRESENT: Duration = Duration::from_mins(3);
/// The same for an end that was heard elsewhere, as one whose lease has another address family than its tunnel, and for what
/// continues a session: it has not moved within this time.
const THERE: Duration = Duration::from_secs(1);
/// Announcements that are remembered from each address: each try of a handshake makes one.
const MAX_ANNOUNCED: usize = 4;

/// A session of this end.
#[derive(Clone, Copy, Debug)]
struct Session {
    /// The index under which this end receives.
    index: u32,
    /// The highest counter that was sent to it.
    newest: Option<u64>,
}

/// What was announced from one address.
#[derive(Clone, Debug)]
struct Source {
    address: SocketAddr,
    indices: Vec<u32>,
    heard: Duration,
}

/// One end of a lease.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    /// When its node asked for the lease last.
    pub(crate) asked: Option<Duration>,
    /// When its node was told last that the other end asked.
    pub(crate) offered: Option<Duration>,
    /// Where the relay's own tunnel, which is authenticated, sees the slot of this node.
    observed: Option<SocketAddr>,
    /// An address from which an index was announced that the far end has named.
    proven: Option<SocketAddr>,
    /// A later address, that counts until `proven` is heard again.
    moved: Option<SocketAddr>,
    /// When this end was heard last at a known address, with something that others can't make up, and at which IP address.
    present: Option<(Duration, IpAddr)>,
    sessions: Vec<Session>,
    /// Indices that have been named.
    spent: Vec<u32>,
    announced: Vec<Source>,
    unproven: Bucket,
    likely: Bucket,
}

impl Leg {
    pub(crate) fn new(now: Duration) -> Self {
        let bucket = || Bucket::new(now, UNPROVEN_PER_SECOND, UNPROVEN_PER_SECOND);
        Self {
            asked: None,
            offered: None,
            observed: None,
            proven: None,
            moved: None,
            present: None,
            sessions: Vec::new(),
            spent: Vec::new(),
            announced: Vec::new(),
            unproven: bucket(),
            likely: bucket(),
        }
    }

    /// A leg at an address that was saved.
    pub(crate) fn at(now: Duration, address: Option<SocketAddr>) -> Self {
        Self { proven: address, ..Self::new(now) }
    }

    /// Takes the address at which the relay's own tunnel sees this node. A new one is newer than what was proven before.
    pub(crate) fn observe(&mut self, address: Option<SocketAddr>) {
        if address.is_some() && address != self.observed {
            self.observed = address;
            let same_ip = |known: &SocketAddr| address.is_some_and(|seen| seen.ip() == known.ip());
            self.proven = self.proven.filter(same_ip);
            self.moved = self.moved.filter(same_ip);
        }
    }

    /// Where datagrams for this end go.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.moved.or(self.proven).or(self.observed)
    }

    /// Where handshake messages for this end go: before an address is proven, to the one from which its IP address was
    /// heard last, since its NAT may map the port anew; else to each one that is heard in turn.
    pub(crate) fn address_to_try(&mut self) -> Option<SocketAddr> {
        let likely = self.announced.iter().filter(|source| self.is_likely(source.address.ip()));
        let likely = likely.max_by_key(|source| source.heard).map(|source| source.address);
        if let Some(address) = self.moved.or(self.proven).or(likely).or(self.observed) {
            return Some(address);
        }
        let source = self.announced.first()?.address;
        // The next one has its turn at the next datagram.
        self.announced.rotate_left(1);
        Some(source)
    }

    /// Whether datagrams from there are this end's, as far as anybody can tell without keys.
    pub(crate) fn is_known(&self, from: SocketAddr) -> bool {
        [self.moved, self.proven, self.observed].contains(&Some(from))
    }

    /// Whether what comes from there may show where the far end is. Recorded messages of both ends, replayed from anywhere,
    /// must not.
    pub(crate) fn may_name(&self, from: SocketAddr) -> bool {
        !self.is_strange(from) || self.address().is_none()
    }

    /// Whether nothing suggests that datagrams from there are this end's.
    fn is_strange(&self, from: SocketAddr) -> bool {
        !self.is_known(from) && !self.is_likely(from.ip())
    }

    fn is_likely(&self, ip: IpAddr) -> bool {
        self.observed.is_some_and(|observed| observed.ip() == ip)
    }

    /// Whether one more handshake message from an address that is not known may pass.
    pub(crate) fn admit_unproven(&mut self, now: Duration, from: SocketAddr) -> bool {
        if self.is_likely(from.ip()) { self.likely.take(now, 1) } else { self.unproven.take(now, 1) }
    }

    /// Remembers that an index was announced from an address. The first one that announces an index keeps it, since later
    /// ones can be copies, unless the later one is known or likely and the first was not.
    ///
    /// While the relay's own tunnel sees the end and it is present, nobody else announces anything: who forges the far end's
    /// source could name his own index. An end that moves goes on with its session, which only it and those on the path know.
    pub(crate) fn announce(&mut self, now: Duration, from: SocketAddr, index: u32) {
        if self.spent.contains(&index) || self.is_elsewhere(now, from, PRESENT) {
            return;
        }
        let rank = |leg: &Self, address: SocketAddr| (leg.is_known(address), leg.is_likely(address.ip()));
        if let Some(holder) = self.announced.iter().position(|source| source.indices.contains(&index)) {
            if rank(self, self.announced[holder].address) >= rank(self, from) {
                return;
            }
            self.announced[holder].indices.retain(|held| *held != index);
        }
        if let Some(place) = self.place_for(now, from) {
            let source = &mut self.announced[place];
            source.heard = now;
            push(&mut source.indices, index, MAX_ANNOUNCED);
        }
    }

    /// Where announcements from an address are kept. The unlikely give way to it, of those the one that was silent for
    /// longest; none if it is unlikely itself, and the others are not.
    fn place_for(&mut self, now: Duration, from: SocketAddr) -> Option<usize> {
        let place = self.announced.iter().position(|source| source.address == from);
        if place.is_some() {
            return place;
        }
        let unknown = |(_, source): &(usize, &Source)| !self.is_known(source.address);
        let others = self.announced.iter().enumerate().filter(unknown);
        if others.clone().count() >= MAX_SOURCES && !self.is_known(from) {
            let worst = others.min_by_key(|(_, source)| (self.is_likely(source.address.ip()), source.heard));
            let (worst, source) = worst?;
            if self.is_likely(source.address.ip()) && !self.is_likely(from.ip()) {
                return None;
            }
            self.announced.remove(worst);
        }
        self.announced.push(Source { address: from, indices: Vec::new(), heard: now });
        Some(self.announced.len() - 1)
    }

    /// Whether this end has announced an index, or has a session of that index.
    pub(crate) fn has(&self, index: u32) -> bool {
        self.sessions.iter().any(|session| session.index == index)
            || self.announced.iter().any(|source| source.indices.contains(&index))
    }

    /// The far end named an index: the address from which it was announced is this end's.
    pub(crate) fn named(&mut self, index: u32) -> bool {
        let Some(at) = self.announced.iter().position(|source| source.indices.contains(&index)) else {
            return false;
        };
        let address = self.announced[at].address;
        self.announced[at].indices.retain(|held| *held != index);
        push(&mut self.spent, index, MAX_SPENT);
        push(&mut self.sessions, Session { index, newest: None }, MAX_SESSIONS);
        let changed = self.address() != Some(address);
        self.proven = Some(address);
        self.moved = None;
        // What else claimed to be this end has lost.
        self.announced.retain(|source| source.address == address);
        changed
    }

    /// Whether a counter is above any that was sent to a session of this end, which is noted if `count`.
    pub(crate) fn is_newest(&mut self, index: u32, counter: u64, count: bool) -> bool {
        let Some(session) = self.sessions.iter_mut().find(|session| session.index == index) else {
            return false;
        };
        let newest = session.newest.is_none_or(|newest| counter > newest);
        if newest && count {
            session.newest = Some(counter);
        }
        newest
    }

    /// Whether an address can't be this end's, which was heard at another one within this time, and the relay's own tunnel
    /// sees it there. If the tunnel sees it elsewhere, that time is short: nothing would tell the relay that the end has
    /// moved, as a new address of its tunnel does.
    fn is_elsewhere(&self, now: Duration, from: SocketAddr, within: Duration) -> bool {
        let (Some((heard, at)), true) = (self.present, self.observed.is_some()) else { return false };
        let within = if self.is_likely(at) { within } else { within.min(THERE) };
        self.is_strange(from) && now.saturating_sub(heard) < within
    }

    /// Whether this end may send from there now. Who forges both ends' sources could make up a session and its counter.
    pub(crate) fn may_move_to(&self, now: Duration, from: SocketAddr) -> bool {
        !self.is_elsewhere(now, from, THERE)
    }

    /// This end was heard at a known address, with an index or a counter that only those on the path know.
    pub(crate) fn note_present(&mut self, now: Duration, from: SocketAddr) {
        self.present = Some((now, from.ip()));
    }

    /// This end sends from another address now.
    pub(crate) fn move_to(&mut self, address: SocketAddr) {
        self.moved = Some(address);
    }

    /// A known address was heard. Where the end has been proven to be weighs more than where its counter was seen last.
    pub(crate) fn heard(&mut self, from: SocketAddr) {
        if self.moved.is_some_and(|moved| moved != from) && self.is_known(from) {
            self.moved = None;
        }
    }
}

/// Adds to a list of bounded length; the oldest goes.
fn push<T>(list: &mut Vec<T>, item: T, most: usize) {
    if list.len() >= most {
        list.remove(0);
    }
    list.push(item);
}
