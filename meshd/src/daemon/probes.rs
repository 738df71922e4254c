//! Probes of the way to each peer: how long it takes, and whether packets of full size pass. Pure; time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use keyring::rotation::PeerId;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many probes of full size must be lost, while small ones are answered, before it is said: one may be lost anywhere.
const LOST: u8 = 3;

/// What is known of the way to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// From a question to its answer, both daemons' share included; none if the last one got no answer.
    pub(super) round_trip: Option<Duration>,
    /// Whether packets of the size of the route's MTU arrive; none while that is not known.
    pub(super) full_size: Option<bool>,
}

/// A probe that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// To whom.
    pub(super) peer: PeerId,
    /// Its number; the answer repeats it.
    pub(super) nonce: u64,
    /// Whether it is to be as large as the route lets it be.
    pub(super) full: bool,
}

/// The probes of all peers.
#[derive(Debug)]
pub(super) struct Probes {
    interval: Option<Duration>,
    next: u64,
    peers: BTreeMap<PeerId, Watched>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    due: Duration,
    small: Option<Sent>,
    full: Option<Sent>,
    lost: u8,
    way: Way,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    nonce: u64,
    at: Duration,
    answered: bool,
}

impl Probes {
    /// Probes every peer once in `interval`, none if it is zero. `chance` is where the numbers begin.
    pub(super) fn new(interval: Duration, chance: u64) -> Self {
        let interval = (!interval.is_zero()).then_some(interval);
        Self { interval, next: chance, peers: BTreeMap::new() }
    }

    /// What is to be sent at `now`, to these peers.
    pub(super) fn due<'a>(&mut self, now: Duration, peers: impl Iterator<Item = &'a PeerId>) -> Vec<Probe> {
        let Some(interval) = self.interval else { return Vec::new() };
        let former = std::mem::take(&mut self.peers);
        let mut probes = Vec::new();
        for peer in peers {
            let mut watched = former.get(peer).copied().unwrap_or_default();
            if watched.due <= now {
                watched.judge();
                let mut send = |full| {
                    let nonce = self.next;
                    self.next = nonce.wrapping_add(1);
                    probes.push(Probe { peer: peer.clone(), nonce, full });
                    Some(Sent { nonce, at: now, answered: false })
                };
                (watched.small, watched.full) = (send(false), send(true));
                // After a loss sooner, to know whether it was one.
                watched.due = now + if watched.lost > 0 { PATIENCE.min(interval) } else { interval };
            }
            self.peers.insert(peer.clone(), watched);
        }
        probes
    }

    /// Takes an answer. One that nobody waits for is passed over.
    pub(super) fn hear(&mut self, now: Duration, peer: &PeerId, nonce: u64) {
        let Some(watched) = self.peers.get_mut(peer) else { return };
        let in_time = |sent: &&mut Sent| sent.nonce == nonce && now.saturating_sub(sent.at) <= PATIENCE;
        if let Some(sent) = watched.small.as_mut().filter(in_time) {
            sent.answered = true;
            watched.way.round_trip = Some(now.saturating_sub(sent.at));
        }
        if let Some(sent) = watched.full.as_mut().filter(in_time) {
            sent.answered = true;
            watched.lost = 0;
            watched.way.full_size = Some(true);
        }
    }

    /// What is known of the way to a peer.
    pub(super) fn way(&self, peer: &PeerId) -> Way {
        self.peers.get(peer).map(|watched| watched.way).unwrap_or_default()
    }
}

impl Watched {
    /// What the last two probes say once the next two are sent.
    fn judge(&mut self) {
        let (Some(small), Some(full)) = (self.small, self.full) else { return };
        if !small.answered {
            // Silence says nothing about sizes.
            self.way.round_trip = None;
        } else if !full.answered {
            self.lost = self.lost.saturating_add(1);
            if self.lost >= LOST {
                self.way.full_size = Some(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    /// Plays `seconds`, with a way that answers what `passes` lets through after 3 ms.
    fn play(probes: &mut Probes, from: u64, seconds: u64, passes: impl Fn(&Probe) -> bool) -> usize {
        let peer = PeerId::new("n2");
        let mut sent = 0;
        for second in from..from + seconds {
            let now = Duration::from_secs(second);
            for probe in probes.due(now, [&peer].into_iter()) {
                sent += 1;
                if passes(&probe) {
                    probes.hear(now + Duration::from_millis(3), &peer, probe.nonce);
                }
            }
        }
        sent
    }

    #[test]
    fn a_way_that_lets_all_pass_is_measured_now_and_then() {
        let mut probes = Probes::new(INTERVAL, u64::MAX);
        assert_eq!(play(&mut probes, 0, 300, |_| true), 20);
        let way = Way { round_trip: Some(Duration::from_millis(3)), full_size: Some(true) };
        assert_eq!(probes.way(&PeerId::new("n2")), way);
        assert_eq!(probes.way(&PeerId::new("n3")), Way::default());
    }

    #[test]
    fn a_way_that_loses_large_packets_is_known_within_a_minute_and_believed_again() {
        let mut probes = Probes::new(INTERVAL, 7);
        play(&mut probes, 0, 30, |_| true);
        play(&mut probes, 30, 60, |probe| !probe.full);
        assert_eq!(probes.way(&PeerId::new("n2")).full_size, Some(false));
        play(&mut probes, 90, 30, |_| true);
        assert_eq!(probes.way(&PeerId::new("n2")).full_size, Some(true));
    }

    #[test]
    fn one_loss_and_silence_say_nothing_about_sizes() {
        let mut probes = Probes::new(INTERVAL, 7);
        play(&mut probes, 0, 30, |_| true);
        play(&mut probes, 30, 1, |probe| !probe.full);
        play(&mut probes, 31, 29, |_| true);
        play(&mut probes, 60, 600, |_| false);
        assert_eq!(probes.way(&PeerId::new("n2")), Way { round_trip: None, full_size: Some(true) });
    }

    #[test]
    fn late_answers_are_none_and_zero_switches_probes_off() {
        let mut probes = Probes::new(INTERVAL, 7);
        let peer = PeerId::new("n2");
        let sent = probes.due(Duration::ZERO, [&peer].into_iter());
        probes.hear(Duration::from_secs(3), &peer, sent[0].nonce);
        assert_eq!(probes.way(&peer), Way::default());
        assert_eq!(play(&mut Probes::new(Duration::ZERO, 7), 0, 100, |_| true), 0);
    }
}
