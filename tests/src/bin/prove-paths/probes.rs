//! Echoes between the pods of all nodes: each pod asks each other one some times a second, so that for every ordered pair
//! and moment it is known whether packets pass.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lab::frame::MARKER;
use lab::{IpVersion, Pod};

use crate::Failure;

/// An echo that was not answered for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// A pair is up again once all echoes of this time were answered.
const STEADY: Duration = Duration::from_secs(2);
/// Port of the pods' sockets.
const PORT: u16 = 7000;
/// A question, an answer.
const ASK: u8 = 0;
const ANSWER: u8 = 1;

/// The echoes of one ordered pair, in the order in which they were sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Track(Vec<Echo>);

/// One echo; times since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo {
    pub(crate) sent: Duration,
    pub(crate) answered: Option<Duration>,
}

/// The running echoes of a lab.
pub(crate) struct Probes {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    begin: Instant,
    period: Duration,
    stop: AtomicBool,
    paused: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Node, and the address of its pod's socket.
    ends: Vec<(String, SocketAddr)>,
    /// By the places of both nodes in `ends`.
    tracks: Vec<Vec<Track>>,
}

impl Probes {
    pub(crate) fn new(begin: Instant, period: Duration) -> Self {
        let state = Mutex::default();
        let (stop, paused) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { shared: Arc::new(Shared { begin, period, stop, paused, state }), threads: Vec::new() }
    }

    /// A pod takes part from now on.
    pub(crate) fn add(&mut self, pod: &Pod<'_>) -> Result<(), Failure> {
        let address = pod.address(IpVersion::V4)?;
        let socket = pod.end().net().run(|| UdpSocket::bind((address, PORT)))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut state = self.shared.lock();
        let own = state.ends.len();
        state.ends.push((pod.node().name().to_owned(), SocketAddr::new(address, PORT)));
        for row in &mut state.tracks {
            row.push(Track::default());
        }
        state.tracks.push(vec![Track::default(); own + 1]);
        drop(state);
        let (outbox, shared) = (socket.try_clone()?, Arc::clone(&self.shared));
        self.threads.push(thread::spawn(move || ask(&outbox, own, &shared)));
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || listen(&socket, own, &shared)));
        Ok(())
    }

    /// Asks nothing until `resume`.
    pub(crate) fn pause(&self) {
        self.shared.paused.store(true, Ordering::Release);
    }

    pub(crate) fn resume(&self) {
        self.shared.paused.store(false, Ordering::Release);
    }

    /// Time since the start.
    pub(crate) fn now(&self) -> Duration {
        self.shared.begin.elapsed()
    }

    /// The names of nodes whose pods take part.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.shared.lock().ends.iter().map(|(node, _)| node.clone()).collect()
    }

    /// The echoes from one node's pod to another's, from a moment on.
    pub(crate) fn track(&self, from: &str, to: &str, since: Duration) -> Option<Track> {
        let state = self.shared.lock();
        let place = |name: &str| state.ends.iter().position(|(node, _)| node == name);
        let echoes = &state.tracks.get(place(from)?)?.get(place(to)?)?.0;
        let first = echoes.partition_point(|echo| echo.sent < since);
        Some(Track(echoes.get(first..).unwrap_or_default().to_vec()))
    }

    /// When the first echo of a pair was answered, since the start.
    pub(crate) fn first(&self, from: &str, to: &str) -> Option<Duration> {
        self.track(from, to, Duration::ZERO)?.0.iter().filter_map(|echo| echo.answered).min()
    }

    /// Whether a pair is up now: every echo of the last two seconds that could have been answered was.
    pub(crate) fn is_up(&self, from: &str, to: &str) -> bool {
        let now = self.now();
        let track = self.track(from, to, now.saturating_sub(STEADY + LOST_AFTER));
        track.is_some_and(|track| track.is_steady(now))
    }

    /// How long a pair was down after an event: until the first echo from which on all were answered. Zero if none was lost;
    /// nothing if it is still down.
    pub(crate) fn outage(&self, from: &str, to: &str, event: Duration) -> Option<Duration> {
        if !self.is_up(from, to) {
            return None;
        }
        self.track(from, to, event)?.outage(event, self.now())
    }
}

impl Track {
    pub(crate) fn echoes(&self) -> &[Echo] {
        &self.0
    }

    /// From an event until the answer from which on nothing was lost.
    fn outage(&self, event: Duration, now: Duration) -> Option<Duration> {
        let Some(last) = self.0.iter().rposition(|echo| echo.is_lost(now)) else {
            return Some(Duration::ZERO);
        };
        self.0.get(last + 1)?.answered.map(|answered| answered.saturating_sub(event))
    }

    fn is_steady(&self, now: Duration) -> bool {
        let due = self.0.iter().filter(|echo| now.saturating_sub(echo.sent) > LOST_AFTER);
        due.clone().count() >= 3 && due.clone().all(|echo| !echo.is_lost(now))
    }
}

impl Echo {
    pub(crate) fn is_lost(&self, now: Duration) -> bool {
        match self.answered {
            Some(answered) => answered.saturating_sub(self.sent) > LOST_AFTER,
            None => now.saturating_sub(self.sent) > LOST_AFTER,
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks all others, one period after another. Not at the same moment, so that queues stay short.
fn ask(outbox: &UdpSocket, own: usize, shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        let began = Instant::now();
        let ends: Vec<_> = shared.lock().ends.iter().map(|(_, end)| *end).enumerate().collect();
        for (other, end) in ends.iter().filter(|(other, _)| *other != own) {
            if shared.paused.load(Ordering::Acquire) {
                break;
            }
            let sent = shared.begin.elapsed();
            let mut state = shared.lock();
            let Some(track) = state.tracks.get_mut(own).and_then(|row| row.get_mut(*other)) else { continue };
            let number = track.0.len();
            track.0.push(Echo { sent, answered: None });
            drop(state);
            // A node without a route refuses it: one of the ways to be down.
            let _refused = outbox.send_to(&message(ASK, own, *other, number), end);
        }
        thread::sleep(shared.period.saturating_sub(began.elapsed()));
    }
}

fn listen(socket: &UdpSocket, own: usize, shared: &Shared) {
    let mut buffer = [0; 64];
    while !shared.stop.load(Ordering::Acquire) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some((kind, asker, target, number)) = buffer.get(..length).and_then(parse) else { continue };
        if kind == ASK {
            let _refused = socket.send_to(&message(ANSWER, asker, target, number), from);
        } else if asker == own {
            let answered = shared.begin.elapsed();
            let mut state = shared.lock();
            let track = state.tracks.get_mut(asker).and_then(|row| row.get_mut(target));
            if let Some(echo) = track.and_then(|track| track.0.get_mut(number)) {
                echo.answered = echo.answered.or(Some(answered));
            }
        }
    }
}

fn message(kind: u8, asker: usize, target: usize, number: usize) -> Vec<u8> {
    let mut bytes = MARKER.to_vec();
    bytes.push(kind);
    for part in [asker, target, number] {
        bytes.extend(u32::try_from(part).unwrap_or(u32::MAX).to_be_bytes());
    }
    bytes
}

fn parse(bytes: &[u8]) -> Option<(u8, usize, usize, usize)> {
    let (kind, rest) = bytes.strip_prefix(MARKER)?.split_first()?;
    let part = |at: usize| {
        let bytes = rest.get(at * 4..)?.first_chunk().copied()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    };
    Some((*kind, part(0)?, part(1)?, part(2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Echoes every 100 ms from 1 s on, of which some are answered 10 ms later.
    fn track(answered: &str) -> Track {
        let echo = |(number, mark)| {
            let sent = Duration::from_millis(1000 + 100 * number);
            Echo { sent, answered: (mark == '+').then(|| sent + Duration::from_millis(10)) }
        };
        Track((0_u64..).zip(answered.chars()).map(echo).collect())
    }

    #[test]
    fn an_outage_lasts_until_the_first_of_the_answers_that_nothing_follows() {
        let (event, now) = (Duration::from_millis(950), Duration::from_secs(10));
        let outage = |answered| track(answered).outage(event, now).map(|outage| outage.as_millis());
        assert_eq!(outage("++++++"), Some(0));
        assert_eq!(outage("++-+++"), Some(360));
        assert_eq!(outage("--+-++"), Some(460));
        assert_eq!(outage("++++--"), None);
    }

    #[test]
    fn what_may_still_be_answered_is_not_lost_and_a_late_answer_is() {
        let sent = Duration::from_secs(1);
        let is_lost = |answered: Option<u64>, now| {
            Echo { sent, answered: answered.map(Duration::from_millis) }.is_lost(Duration::from_millis(now))
        };
        assert!(!is_lost(None, 2000));
        assert!(is_lost(None, 2001));
        assert!(!is_lost(Some(2000), 9000));
        assert!(is_lost(Some(2001), 9000));
    }

    #[test]
    fn a_pair_is_up_once_enough_echoes_were_answered_and_none_is_lost() {
        let now = Duration::from_millis(2400);
        assert!(track("++++++++------").is_steady(now));
        assert!(!track("+-++++++------").is_steady(now));
        assert!(!track("++").is_steady(now));
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        assert_eq!(parse(&message(ANSWER, 3, 6, 70_000)), Some((ANSWER, 3, 6, 70_000)));
        assert_eq!(parse(&message(ASK, 3, 6, 1)[..20]), None);
    }
}
