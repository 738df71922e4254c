//! Probes of the path to each peer: round-trip time, and which sizes of packets arrive. Pure; time is an argument.
//!
//! A round is a small probe and those of the sizes that the search for the path MTU wants. The slot in use is probed once per
//! interval, sooner while much is sent on it and when what is sent stays unanswered; the other one when its path is new.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};
use plan::path_mtu::search::{Limits, Search, Source};

use super::allowance::Allowance;
use crate::channel::MAX_PROBE_LEN;
use status::reach::ProbeRecord;
use status::totals::RoundTrips;

/// How many regular rounds begin in a second at most. Those about a path in doubt, of which there is something to be repaired, are
/// not limited.
const ROUNDS_PER_SECOND: u32 = 50;
/// The largest packet in bytes that is asked for: a probe's payload with the headers of IPv4 and UDP. What a route allows
/// beyond that is believed.
const LARGEST_PROBED: u32 = 9028;
const _: () = assert!(LARGEST_PROBED as usize == MAX_PROBE_LEN + 28);
/// Answers that take longer count as lost.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How much later than the small probe's answer that of a larger one may come: at least this, else as long as the round trip.
const GRACE: Duration = Duration::from_secs(1);
/// How many small probes in a row must be lost before it is reported: single losses are normal.
const LOSSES_BEFORE_REPORT: u8 = 3;
/// How many intervals after a search larger sizes are tried again: 10 min with 30 s (RFC 8899 section 5.1.1).
const RAISE_AFTER: u32 = 20;
/// A slot on which so many bytes are sent is probed this often: less than one percent of what is sent.
const BUSY: (u64, Duration) = (256 << 10, Duration::from_secs(3));
/// A slot on which so many bytes are sent while nothing is received is probed after this time, and no more often.
const STALLED: (u64, Duration) = (1200, Duration::from_secs(2));

/// Measurements of the path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PathStats {
    /// From probe to answer, including both daemons' processing; none if the last probe was not answered.
    pub(super) round_trip: Option<Duration>,
    /// Whether packets of the route's MTU arrive; none while unknown.
    pub(super) full_size: Option<bool>,
    /// What the MTU of the routes comes from.
    pub(super) source: Source,
}

/// A probe to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// The peer.
    pub(super) peer: PeerId,
    /// The slot to send it over.
    pub(super) over: Slot,
    /// Identifies the probe; the answer repeats it.
    pub(super) nonce: u64,
    /// Its size in bytes as an IP packet; none for the smallest.
    pub(super) size: Option<u32>,
}

/// The path to a peer's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Where datagrams go.
    pub(super) endpoint: Option<std::net::SocketAddr>,
    /// Whether the peer answers there.
    pub(super) up: bool,
    /// Bounds of the MTU.
    pub(super) limits: Limits,
    /// Bytes sent and received so far.
    pub(super) traffic: (u64, u64),
}

/// The probes of all peers.
#[derive(Debug)]
pub(super) struct Probes {
    /// As configured; none if there are no probes.
    configured: Option<Duration>,
    /// The same, or longer where there are many peers.
    interval: Option<Duration>,
    allowance: Allowance,
    jitter_seed: u64,
    next: u64,
    peers: BTreeMap<PeerId, PeerProbes>,
    round_trips: RoundTrips,
}

#[derive(Clone, Debug, Default)]
struct PeerProbes {
    due: Duration,
    active: Option<Slot>,
    slots: PerSlot<Option<SlotProbes>>,
    /// Small probes lost in a row, and when the first of them was sent.
    unanswered: u8,
    unanswered_since: Option<Duration>,
    /// When the last answer came.
    answered: Option<Duration>,
    round_trip: Option<Duration>,
}

#[derive(Clone, Debug)]
struct SlotProbes {
    way: Way,
    search: Search,
    interval: Duration,
    round: Option<Round>,
    /// The round before, whose answers may still come.
    late: Vec<Sent>,
    /// Rounds in a row whose small probe was lost.
    lost: u8,
    /// Bytes sent and when, at the last round.
    probed: (u64, Duration),
    /// Bytes sent when something was last received, and when it is looked into that nothing was since.
    silent: (u64, Duration),
}

#[derive(Clone, Debug)]
struct Round {
    small: Sent,
    /// When the small one was answered, and how long that took.
    answered: Option<(Duration, Duration)>,
    sizes: Vec<Sent>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    nonce: u64,
    at: Duration,
    size: u32,
}

impl Probes {
    /// Probes every peer once per `interval`, none if it is zero. `jitter_seed` is an unpredictable number: nonces start at
    /// it, and it decides when within the interval each peer is probed.
    pub(super) fn new(interval: Duration, jitter_seed: u64) -> Self {
        let interval = (!interval.is_zero()).then_some(interval);
        Self {
            configured: interval,
            interval,
            allowance: Allowance::per_second(ROUNDS_PER_SECOND),
            jitter_seed,
            next: jitter_seed,
            peers: BTreeMap::new(),
            round_trips: RoundTrips::default(),
        }
    }

    /// Takes the paths to all peers; forgets the others.
    pub(super) fn set_ways(&mut self, now: Duration, ways: BTreeMap<PeerId, PerSlot<Way>>) {
        let Some(configured) = self.configured else { return };
        let interval = configured.max(least_interval(ways.len()));
        self.interval = Some(interval);
        let mut former = std::mem::take(&mut self.peers);
        for (peer, ways) in ways {
            let mut watched = former.remove(&peer).unwrap_or_default();
            for (slot, way) in ways.iter() {
                let active = watched.active == Some(slot);
                match watched.slots.get_mut(slot) {
                    Some(probes) => {
                        let wanted = probes.set_way(now, *way, interval);
                        if wanted && active {
                            watched.due = now;
                        }
                    }
                    empty => *empty = Some(SlotProbes::new(now, *way, interval)),
                }
            }
            self.peers.insert(peer, watched);
        }
    }

    /// Takes the bytes sent to and received from a peer so far, on paths that are as they were.
    pub(super) fn set_traffic(&mut self, now: Duration, peer: &PeerId, traffic: PerSlot<Option<(u64, u64)>>) {
        let (Some(interval), Some(watched)) = (self.interval, self.peers.get_mut(peer)) else { return };
        for (slot, traffic) in traffic.iter() {
            let active = watched.active == Some(slot);
            if let (Some(traffic), Some(probes)) = (*traffic, watched.slots.get_mut(slot)) {
                let way = Way { traffic, ..probes.way };
                if probes.set_way(now, way, interval) && active {
                    watched.due = now;
                }
            }
        }
    }

    /// The probes due at `now` for these peers, by the slot in use. A new peer is probed as soon as others leave room, and from
    /// then on at its phase of the interval: all peers at the same time would fill queues and have every daemon answer at once.
    pub(super) fn due<'a>(
        &mut self,
        now: Duration,
        peers: impl Iterator<Item = (&'a PeerId, Slot)>,
    ) -> Vec<Probe> {
        let Some(interval) = self.interval else { return Vec::new() };
        let earliest = now + PROBE_TIMEOUT.min(interval);
        let mut probes = Vec::new();
        // Also those of peers that can't be asked anything at the moment: the loop waits for the end of each round.
        for watched in self.peers.values_mut() {
            for slot in Slot::ALL {
                watched.conclude(now, slot);
            }
        }
        let (mut wanted, mut regular) = (Vec::new(), Vec::new());
        for (peer, active) in peers {
            let Some(watched) = self.peers.get_mut(peer) else { continue };
            if watched.active != Some(active) {
                // Whether its path still lets packets of that size pass is known best by asking.
                watched.due = if watched.active.is_some() { now } else { watched.due };
                watched.active = Some(active);
            }
            for slot in Slot::ALL {
                let is_active = slot == active;
                if !watched.wants_round(now, slot, is_active) {
                    continue;
                }
                if is_active && watched.due <= now && !watched.is_in_doubt(slot) {
                    regular.push((watched.due, peer, slot));
                } else {
                    wanted.push((peer, slot, is_active));
                }
            }
        }
        // Who has waited longest comes first.
        regular.sort_unstable();
        let room = self.allowance.take(now, regular.len());
        wanted.extend(regular.into_iter().take(room).map(|(_, peer, slot)| (peer, slot, true)));
        for (peer, slot, is_active) in wanted {
            let Some(watched) = self.peers.get_mut(peer) else { continue };
            if is_active {
                watched.due = next_due(phase(self.jitter_seed, interval, peer), interval, earliest);
            }
            let Some(on_slot) = watched.slots.get_mut(slot) else { continue };
            let mut send = |size: Option<u32>| {
                let nonce = self.next;
                self.next = nonce.wrapping_add(1);
                probes.push(Probe { peer: peer.clone(), over: slot, nonce, size });
                Sent { nonce, at: now, size: size.unwrap_or_default() }
            };
            let small = send(None);
            let sizes = on_slot.search.begin(now).into_iter().map(|size| send(Some(size))).collect();
            on_slot.round = Some(Round { small, answered: None, sizes });
            on_slot.probed = (on_slot.way.traffic.0, now);
        }
        probes
    }

    /// When the next round ends or begins, besides the regular ones.
    pub(super) fn next_step(&self, now: Duration) -> Option<Duration> {
        self.peers.values().filter_map(|watched| watched.ends(now)).min()
    }

    /// The same of one peer.
    pub(super) fn next_step_of(&self, now: Duration, peer: &PeerId) -> Option<Duration> {
        self.peers.get(peer)?.ends(now)
    }

    /// Processes an answer that came over a slot. Unexpected and late ones are ignored. Returns whether the MTU has changed.
    pub(super) fn receive(&mut self, now: Duration, peer: &PeerId, over: Slot, nonce: u64) -> bool {
        let Some(watched) = self.peers.get_mut(peer) else { return false };
        let Some(slot) = watched.slots.get_mut(over) else { return false };
        let in_time = |sent: &Sent| sent.nonce == nonce && now.saturating_sub(sent.at) <= PROBE_TIMEOUT;
        if let Some(round) = slot.round.as_mut().filter(|round| in_time(&round.small)) {
            let took = now.saturating_sub(round.small.at);
            round.answered = Some((now, took));
            self.round_trips.observe(took);
            slot.lost = 0;
            watched.answered = Some(now);
            // What comes over the other slot says nothing about the path in use.
            if watched.active == Some(over) {
                (watched.unanswered, watched.unanswered_since) = (0, None);
                watched.round_trip = Some(took);
            }
            return false;
        }
        let in_round = slot.round.iter().flat_map(|round| &round.sizes);
        let Some(sent) = in_round.chain(&slot.late).copied().find(|sent| in_time(sent)) else { return false };
        let before = slot.search.size();
        slot.search.answered(now, sent.size);
        if let Some(round) = &mut slot.round {
            round.sizes.retain(|one| one.nonce != nonce);
        }
        slot.search.size() != before
    }

    /// What passes to each slot of each peer, where that is less than its route allows. A slot whose path is lost says
    /// nothing: packets take the other one.
    pub(super) fn passes(&self) -> impl Iterator<Item = (&PeerId, Slot, u32)> {
        self.peers.iter().flat_map(|(peer, watched)| {
            let slots = watched.slots.iter().filter_map(|(slot, probes)| Some((slot, probes.as_ref()?)));
            let used = slots.filter(|(slot, probes)| probes.way.up || watched.active == Some(*slot));
            let narrow = used.filter(|(_, probes)| probes.search.size() < probes.way.limits.largest);
            narrow.map(move |(slot, probes)| (peer, slot, probes.search.size()))
        })
    }

    /// Round-trip times of all probes that were answered.
    pub(super) const fn round_trips(&self) -> RoundTrips {
        self.round_trips
    }

    /// Whether packets of the present MTU pass along the path to a peer's slot that leads to `endpoint`. Without probes nobody
    /// could tell.
    pub(super) fn is_measured(&self, peer: &PeerId, slot: Slot, endpoint: std::net::SocketAddr) -> bool {
        if self.interval.is_none() {
            return true;
        }
        let on_slot = self.peers.get(peer).and_then(|watched| watched.slots.get(slot).as_ref());
        on_slot.is_some_and(|probes| probes.way.endpoint == Some(endpoint) && probes.search.is_settled())
    }

    /// Which probes the peer has answered.
    pub(super) fn record(&self, now: Duration, peer: &PeerId) -> ProbeRecord {
        let Some(watched) = self.peers.get(peer) else {
            return ProbeRecord { interval: self.interval, ..ProbeRecord::default() };
        };
        let lost = watched.unanswered_since.filter(|_| watched.unanswered >= LOSSES_BEFORE_REPORT);
        ProbeRecord {
            interval: self.interval,
            since_answer: watched.answered.map(|at| now.saturating_sub(at)),
            unanswered_for: lost.map(|at| now.saturating_sub(at)),
        }
    }

    /// Measurements of the path to a peer.
    pub(super) fn path(&self, peer: &PeerId) -> PathStats {
        let Some(watched) = self.peers.get(peer) else { return PathStats::default() };
        let slots = watched.slots.iter().filter_map(|(_, probes)| Some(&probes.as_ref()?.search));
        let narrowest = slots.min_by_key(|search| search.size());
        let active = watched.active.and_then(|slot| watched.slots.get(slot).as_ref());
        let at_route = |search: &Search| matches!(search.source(), Source::Route | Source::Unknown);
        // Where neither slot is narrower than its route, the one in use says whether that is known.
        let source =
            narrowest.filter(|search| !at_route(search)).or_else(|| active.map(|probes| &probes.search));
        PathStats {
            round_trip: watched.round_trip,
            full_size: active.and_then(|probes| probes.search.passes()),
            source: source.map(Search::source).unwrap_or_default(),
        }
    }
}

/// The interval with which so many peers need no more rounds than begin in a second.
fn least_interval(peers: usize) -> Duration {
    Duration::from_secs((peers as u64).div_ceil(u64::from(ROUNDS_PER_SECOND)))
}

/// The first time from `earliest` on that has this phase of the interval. Probes in between, after a loss, do not move it.
fn next_due(phase: Duration, interval: Duration, earliest: Duration) -> Duration {
    let intervals = earliest.saturating_sub(phase).as_nanos().div_ceil(interval.as_nanos());
    phase + interval.saturating_mul(u32::try_from(intervals).unwrap_or(u32::MAX))
}

/// When within the interval a peer is probed.
fn phase(jitter_seed: u64, interval: Duration, peer: &PeerId) -> Duration {
    const STEPS: u32 = 10_000;
    let mut hasher = DefaultHasher::new();
    (jitter_seed, peer).hash(&mut hasher);
    let step = u32::try_from(hasher.finish() % u64::from(STEPS)).unwrap_or_default();
    (interval / STEPS).saturating_mul(step)
}

impl PeerProbes {
    /// When the first of its rounds ends.
    fn ends(&self, now: Duration) -> Option<Duration> {
        let rounds = self.slots.iter().filter_map(|(_, slot)| slot.as_ref()?.round.as_ref());
        rounds.map(|round| round.ends().max(now)).min()
    }

    /// Whether single losses and a broken path have to be told apart.
    fn is_in_doubt(&self, slot: Slot) -> bool {
        self.slots.get(slot).as_ref().is_some_and(|probes| (1..LOSSES_BEFORE_REPORT).contains(&probes.lost))
    }

    fn wants_round(&self, now: Duration, slot: Slot, active: bool) -> bool {
        let Some(probes) = self.slots.get(slot) else { return false };
        if probes.round.is_some() {
            return false;
        }
        // At once.
        let in_doubt = self.is_in_doubt(slot);
        // A daemon that was away for a moment is asked again, once per interval.
        let patient = probes.lost < LOSSES_BEFORE_REPORT || now >= probes.probed.1 + probes.interval;
        let search = probes.search.due().is_some_and(|due| due <= now) && patient;
        if active { self.due <= now || in_doubt || search } else { probes.way.up && search }
    }

    /// Ends the round of a slot if nothing more is expected of it.
    fn conclude(&mut self, now: Duration, slot: Slot) {
        let Some(probes) = self.slots.get_mut(slot) else { return };
        let Some(round) = probes.round.take_if(|round| round.ends() <= now) else { return };
        let answered = round.answered.is_some();
        if !answered {
            probes.lost = probes.lost.saturating_add(1);
            if self.active == Some(slot) {
                // Without any answer nothing is known about sizes.
                self.round_trip = None;
                self.unanswered = self.unanswered.saturating_add(1);
                self.unanswered_since.get_or_insert(round.small.at);
            }
        }
        probes.late = round.sizes;
        probes.search.end(now, answered);
    }
}

impl Round {
    /// When it ends: at once if all were answered, soon after the small one was, else after the time for any answer.
    fn ends(&self) -> Duration {
        match self.answered {
            Some((at, _)) if self.sizes.is_empty() => at,
            Some((at, took)) => (at + GRACE.max(took)).min(self.small.at + PROBE_TIMEOUT),
            None => self.small.at + PROBE_TIMEOUT,
        }
    }
}

impl Way {
    /// With limits that probes can explore.
    fn bounded(self) -> Self {
        let largest = self.limits.largest.min(LARGEST_PROBED);
        Self { limits: Limits { largest, ..self.limits }, ..self }
    }
}

impl SlotProbes {
    fn new(now: Duration, way: Way, interval: Duration) -> Self {
        let way = way.bounded();
        Self {
            way,
            search: Search::new(way.limits, interval * RAISE_AFTER),
            interval,
            round: None,
            late: Vec::new(),
            lost: 0,
            probed: (way.traffic.0, now),
            silent: (way.traffic.0, now + STALLED.1),
        }
    }

    /// Takes the present path; returns whether the slot should be probed now because of what is sent on it.
    fn set_way(&mut self, now: Duration, way: Way, interval: Duration) -> bool {
        let way = way.bounded();
        self.interval = interval;
        let former = std::mem::replace(&mut self.way, way);
        let moved = former.endpoint != way.endpoint;
        if moved || (way.up && !former.up) {
            self.lost = 0;
        }
        if moved && former.endpoint.is_some() {
            (self.round, self.late) = (None, Vec::new());
            self.search.move_to_other_path();
        }
        self.search.set_limits(way.limits);
        let (sent, received) = way.traffic;
        if received != former.traffic.1 || sent < former.traffic.0 {
            self.silent = (sent, now + STALLED.1);
        }
        let stalled = sent.saturating_sub(self.silent.0) >= STALLED.0 && now >= self.silent.1;
        let busy = sent.saturating_sub(self.probed.0) >= BUSY.0 && now >= self.probed.1 + BUSY.1;
        (stalled || busy) && now >= self.probed.1 + STALLED.1.min(interval)
    }
}

#[cfg(test)]
mod tests;
