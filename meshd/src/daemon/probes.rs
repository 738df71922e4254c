//! Probes of the path to each peer: round-trip time, and whether full-size packets arrive. Pure; time is an argument.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use keyring::rotation::PeerId;

use crate::status::reach::ProbeRecord;

/// Answers that take longer count as lost.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many probes in a row must be lost before it is reported: single losses are normal. For full-size ones only those
/// count whose small one was answered.
const LOSSES_BEFORE_REPORT: u8 = 3;

/// Measurements of the path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PathStats {
    /// From probe to answer, including both daemons' processing; none if the last probe was not answered.
    pub(super) round_trip: Option<Duration>,
    /// Whether packets of the route's MTU arrive; none while unknown.
    pub(super) full_size: Option<bool>,
}

/// A probe to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// The peer.
    pub(super) peer: PeerId,
    /// Identifies the probe; the answer repeats it.
    pub(super) nonce: u64,
    /// Whether it has the size of the route's MTU.
    pub(super) full: bool,
}

/// The probes of all peers.
#[derive(Debug)]
pub(super) struct Probes {
    interval: Option<Duration>,
    jitter_seed: u64,
    next: u64,
    peers: BTreeMap<PeerId, PeerProbes>,
}

#[derive(Clone, Copy, Debug, Default)]
struct PeerProbes {
    due: Duration,
    small: Option<Sent>,
    full: Option<Sent>,
    /// Full-size probes lost in a row.
    lost: u8,
    /// Small probes lost in a row, and when the first of them was sent.
    unanswered: u8,
    unanswered_since: Option<Duration>,
    /// When the last answer came.
    answered: Option<Duration>,
    stats: PathStats,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    nonce: u64,
    at: Duration,
    answered: bool,
}

impl Probes {
    /// Probes every peer once per `interval`, none if it is zero. `jitter_seed` is an unpredictable number: nonces start at
    /// it, and it decides when within the interval each peer is probed.
    pub(super) fn new(interval: Duration, jitter_seed: u64) -> Self {
        let interval = (!interval.is_zero()).then_some(interval);
        Self { interval, jitter_seed, next: jitter_seed, peers: BTreeMap::new() }
    }

    /// The probes due at `now` for these peers. A new peer is probed at once, and from then on at its phase of the
    /// interval: all peers at the same time would fill queues and have every daemon answer at once.
    pub(super) fn due<'a>(&mut self, now: Duration, peers: impl Iterator<Item = &'a PeerId>) -> Vec<Probe> {
        let Some(interval) = self.interval else { return Vec::new() };
        let pause = PROBE_TIMEOUT.min(interval);
        let former = std::mem::take(&mut self.peers);
        let mut probes = Vec::new();
        for peer in peers {
            let mut watched = former.get(peer).copied().unwrap_or_default();
            if watched.due <= now || watched.in_doubt(now) {
                watched.evaluate();
                let mut send = |full| {
                    let nonce = self.next;
                    self.next = nonce.wrapping_add(1);
                    probes.push(Probe { peer: peer.clone(), nonce, full });
                    Some(Sent { nonce, at: now, answered: false })
                };
                (watched.small, watched.full) = (send(false), send(true));
                // Sooner after a loss, to tell a single loss from a broken path.
                watched.due =
                    if watched.lost > 0 { now + pause } else { self.next_due(interval, now + pause, peer) };
            }
            self.peers.insert(peer.clone(), watched);
        }
        probes
    }

    /// The first time from `earliest` on that has the peer's phase. Probes in between, after a loss, do not move it.
    fn next_due(&self, interval: Duration, earliest: Duration, peer: &PeerId) -> Duration {
        let phase = self.phase(interval, peer);
        let intervals = earliest.saturating_sub(phase).as_nanos().div_ceil(interval.as_nanos());
        phase + interval.saturating_mul(u32::try_from(intervals).unwrap_or(u32::MAX))
    }

    /// When within the interval a peer is probed.
    fn phase(&self, interval: Duration, peer: &PeerId) -> Duration {
        const STEPS: u32 = 10_000;
        let mut hasher = DefaultHasher::new();
        (self.jitter_seed, peer).hash(&mut hasher);
        let step = u32::try_from(hasher.finish() % u64::from(STEPS)).unwrap_or_default();
        (interval / STEPS).saturating_mul(step)
    }

    /// Processes an answer. Unexpected and late ones are ignored.
    pub(super) fn receive(&mut self, now: Duration, peer: &PeerId, nonce: u64) {
        let Some(watched) = self.peers.get_mut(peer) else { return };
        let in_time = |sent: &&mut Sent| sent.nonce == nonce && now.saturating_sub(sent.at) <= PROBE_TIMEOUT;
        if let Some(sent) = watched.small.as_mut().filter(in_time) {
            sent.answered = true;
            watched.answered = Some(now);
            (watched.unanswered, watched.unanswered_since) = (0, None);
            watched.stats.round_trip = Some(now.saturating_sub(sent.at));
        }
        if let Some(sent) = watched.full.as_mut().filter(in_time) {
            sent.answered = true;
            watched.lost = 0;
            watched.stats.full_size = Some(true);
        }
    }

    /// Which probes the peer has answered.
    pub(super) fn record(&self, now: Duration, peer: &PeerId) -> ProbeRecord {
        let watched = self.peers.get(peer).copied().unwrap_or_default();
        let lost = watched.unanswered_since.filter(|_| watched.unanswered >= LOSSES_BEFORE_REPORT);
        ProbeRecord {
            interval: self.interval,
            since_answer: watched.answered.map(|at| now.saturating_sub(at)),
            unanswered_for: lost.map(|at| now.saturating_sub(at)),
        }
    }

    /// Measurements of the path to a peer.
    pub(super) fn path(&self, peer: &PeerId) -> PathStats {
        self.peers.get(peer).map(|watched| watched.stats).unwrap_or_default()
    }
}

impl PeerProbes {
    /// Whether the last probe was lost, and another one is needed at once to tell chance from a broken path.
    fn in_doubt(&self, now: Duration) -> bool {
        let lost = self.small.is_some_and(|sent| !sent.answered && now >= sent.at + PROBE_TIMEOUT);
        lost && self.unanswered < LOSSES_BEFORE_REPORT
    }

    /// Evaluates the previous pair of probes before the next one is sent.
    fn evaluate(&mut self) {
        let (Some(small), Some(full)) = (self.small, self.full) else { return };
        if !small.answered {
            // Without any answer nothing is known about sizes.
            self.stats.round_trip = None;
            self.unanswered = self.unanswered.saturating_add(1);
            self.unanswered_since.get_or_insert(small.at);
        } else if !full.answered {
            self.lost = self.lost.saturating_add(1);
            if self.lost >= LOSSES_BEFORE_REPORT {
                self.stats.full_size = Some(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    /// A time in seconds since the phase of n2, at whose multiples of the interval it is probed.
    fn at(probes: &Probes, second: u64) -> Duration {
        probes.phase(INTERVAL, &PeerId::new("n2")) + Duration::from_secs(second)
    }

    /// Runs `seconds` on a path that answers, after 3 ms, the probes that `passes` lets through.
    fn play(probes: &mut Probes, from: u64, seconds: u64, passes: impl Fn(&Probe) -> bool) -> usize {
        let peer = PeerId::new("n2");
        let mut sent = 0;
        for second in from..from + seconds {
            let now = at(probes, second);
            for probe in probes.due(now, [&peer].into_iter()) {
                sent += 1;
                if passes(&probe) {
                    probes.receive(now + Duration::from_millis(3), &peer, probe.nonce);
                }
            }
        }
        sent
    }

    #[test]
    fn a_working_path_is_measured_once_per_interval() {
        let mut probes = Probes::new(INTERVAL, u64::MAX);
        assert_eq!(play(&mut probes, 0, 300, |_| true), 20);
        let stats = PathStats { round_trip: Some(Duration::from_millis(3)), full_size: Some(true) };
        assert_eq!(probes.path(&PeerId::new("n2")), stats);
        assert_eq!(probes.path(&PeerId::new("n3")), PathStats::default());
    }

    #[test]
    fn peers_are_probed_at_once_and_then_each_at_its_own_time() {
        let peers: Vec<PeerId> = (0..1000).map(|number| PeerId::new(format!("n{number}"))).collect();
        let mut probes = Probes::new(INTERVAL, 7);
        let mut sent: BTreeMap<PeerId, Vec<u64>> = BTreeMap::new();
        let mut busiest = 0;
        for second in 100..300 {
            let now = Duration::from_secs(second);
            let due = probes.due(now, peers.iter());
            if second == 100 {
                assert_eq!(due.len(), 2 * peers.len(), "a new peer is not kept waiting");
            } else {
                busiest = busiest.max(due.len());
            }
            for probe in due {
                probes.receive(now, &probe.peer, probe.nonce);
                if !probe.full {
                    sent.entry(probe.peer).or_default().push(second);
                }
            }
        }
        assert!(busiest < 2 * 3 * peers.len() / 30, "{busiest} in one second, of 67 on average");
        for (peer, times) in sent {
            assert!((2..=32).contains(&(times[1] - times[0])), "{peer:?}: {times:?}");
            assert!(times[1..].windows(2).all(|pair| pair[1] - pair[0] == 30), "{peer:?}: {times:?}");
        }
        let phase = |seed| Probes::new(INTERVAL, seed).phase(INTERVAL, &peers[2]);
        assert_eq!(phase(7), phase(7));
        assert_ne!(phase(7), phase(8), "nodes that start together do not probe a peer together");
    }

    #[test]
    fn losses_do_not_move_a_peers_time() {
        let mut probes = Probes::new(INTERVAL, 7);
        let peer = PeerId::new("n2");
        play(&mut probes, 0, 31, |_| true);
        play(&mut probes, 31, 45, |_| false);
        let before = at(&probes, 89) + Duration::from_millis(999);
        assert!(probes.due(before, [&peer].into_iter()).is_empty());
        assert_eq!(probes.due(at(&probes, 90), [&peer].into_iter()).len(), 2);
    }

    #[test]
    fn loss_of_full_size_packets_is_detected_within_a_minute_and_cleared_again() {
        let mut probes = Probes::new(INTERVAL, 7);
        play(&mut probes, 0, 30, |_| true);
        play(&mut probes, 30, 60, |probe| !probe.full);
        assert_eq!(probes.path(&PeerId::new("n2")).full_size, Some(false));
        play(&mut probes, 90, 30, |_| true);
        assert_eq!(probes.path(&PeerId::new("n2")).full_size, Some(true));
    }

    #[test]
    fn a_single_loss_or_no_answer_says_nothing_about_sizes() {
        let mut probes = Probes::new(INTERVAL, 7);
        play(&mut probes, 0, 30, |_| true);
        play(&mut probes, 30, 1, |probe| !probe.full);
        play(&mut probes, 31, 29, |_| true);
        play(&mut probes, 60, 600, |_| false);
        assert_eq!(probes.path(&PeerId::new("n2")), PathStats { round_trip: None, full_size: Some(true) });
    }

    #[test]
    fn three_lost_probes_within_seconds_are_evidence_until_one_is_answered() {
        let mut probes = Probes::new(INTERVAL, 7);
        let peer = PeerId::new("n2");
        let record = |probes: &Probes, second| probes.record(at(probes, second), &peer);
        play(&mut probes, 0, 31, |_| true);
        let none_lost = record(&probes, 31);
        assert_eq!((none_lost.interval, none_lost.unanswered_for), (Some(INTERVAL), None));
        assert!(none_lost.since_answer.is_some_and(|since| since < Duration::from_secs(1)));
        // The next one is sent at 60 s, and then every 2 s.
        play(&mut probes, 31, 35, |_| false);
        assert_eq!(record(&probes, 65).unanswered_for, None);
        play(&mut probes, 66, 1, |_| false);
        assert_eq!(record(&probes, 66).unanswered_for, Some(Duration::from_secs(6)));
        // No more than one per interval from then on: two probes each.
        assert_eq!(play(&mut probes, 67, 300, |_| false), 20);
        assert_eq!(record(&probes, 367).unanswered_for, Some(Duration::from_secs(307)));
        play(&mut probes, 367, 30, |_| true);
        assert_eq!(record(&probes, 397).unanswered_for, None);
    }

    #[test]
    fn late_answers_are_none_and_zero_switches_probes_off() {
        let mut probes = Probes::new(INTERVAL, 7);
        let peer = PeerId::new("n2");
        let sent = probes.due(Duration::ZERO, [&peer].into_iter());
        probes.receive(Duration::from_secs(3), &peer, sent[0].nonce);
        assert_eq!(probes.path(&peer), PathStats::default());
        assert_eq!(play(&mut Probes::new(Duration::ZERO, 7), 0, 100, |_| true), 0);
    }
}
