//! Whether this node reaches a peer: by sessions, which exist where packets are sent, and by probes, which ask. Pure.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Age at which a session ends: `REJECT_AFTER_TIME` (the WireGuard paper, section 6.1).
const SESSION: Duration = Duration::from_mins(3);

/// Whether this node reaches a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// It has a session on at least one slot.
    Up,
    /// It has no session, because nothing has been sent for a while, and nothing says that it would not answer.
    Idle,
    /// It has never answered, or no longer does.
    #[default]
    Down,
}

/// The answers of a peer to its probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeRecord {
    /// Time from one probe to the next; none if probes are off.
    pub interval: Option<Duration>,
    /// Time since the last answer.
    pub since_answer: Option<Duration>,
    /// Time since the first of the probes that were lost since then, if so many were that it can't be chance.
    pub unanswered_for: Option<Duration>,
}

impl Reach {
    /// The newest sign decides: a handshake takes packets both ways, as an answered probe does, and so proves more than
    /// probes that were lost before it.
    pub fn of(since_handshake: Option<Duration>, probes: ProbeRecord) -> Self {
        let lost_since_handshake = match (probes.unanswered_for, since_handshake) {
            (Some(unanswered_for), Some(age)) => age >= unanswered_for,
            (unanswered_for, _) => unanswered_for.is_some(),
        };
        if lost_since_handshake {
            return Self::Down;
        }
        if since_handshake.is_some_and(|age| age < SESSION) {
            return Self::Up;
        }
        let answers = match probes.interval {
            // One probe may be lost.
            Some(interval) => probes.since_answer.is_some_and(|since| since <= interval * 2),
            // Nobody asks, so a peer that has answered once is not said to be down for its silence.
            None => since_handshake.is_some(),
        };
        if answers { Self::Idle } else { Self::Down }
    }

    /// Its name in the status, in metrics and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Idle => "idle",
            Self::Down => "down",
        }
    }
}

/// How many peers there are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachCounts {
    /// Those with a session.
    pub up: u64,
    /// Those without one that answer.
    pub idle: u64,
    /// Those that don't answer.
    pub down: u64,
}

impl ReachCounts {
    /// The peers that are reached.
    pub const fn reached(self) -> u64 {
        self.up + self.idle
    }

    /// All peers.
    pub const fn all(self) -> u64 {
        self.reached() + self.down
    }

    /// Counts a peer.
    pub const fn add(&mut self, reach: Reach) {
        *match reach {
            Reach::Up => &mut self.up,
            Reach::Idle => &mut self.idle,
            Reach::Down => &mut self.down,
        } += 1;
    }
}

impl FromIterator<Reach> for ReachCounts {
    fn from_iter<T: IntoIterator<Item = Reach>>(peers: T) -> Self {
        let mut counts = Self::default();
        for reach in peers {
            counts.add(reach);
        }
        counts
    }
}

impl fmt::Display for ReachCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { up, idle, down } = self;
        write!(f, "{} of {} reached ({up} up, {idle} idle, {down} down)", self.reached(), self.all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What a peer is with a last handshake, a last answer and probes lost so many seconds ago.
    fn reach(interval: u32, handshake: Option<u32>, answer: Option<u32>, lost: Option<u32>) -> Reach {
        let ago = |seconds: Option<u32>| seconds.map(|seconds| seconds * SECOND);
        let interval = (interval > 0).then_some(interval * SECOND);
        let probes = ProbeRecord { interval, since_answer: ago(answer), unanswered_for: ago(lost) };
        Reach::of(ago(handshake), probes)
    }

    #[test]
    fn the_newest_sign_of_a_peer_decides() {
        for (interval, handshake, answer, lost, expected, why) in [
            (30, None, None, None, Reach::Down, "never heard of"),
            (30, None, None, Some(6), Reach::Down, "never heard of, and probes are lost"),
            (30, Some(5), None, None, Reach::Up, "a session before the first probe"),
            (30, Some(179), Some(20), None, Reach::Up, "a session"),
            (30, Some(180), None, None, Reach::Down, "the session has ended, and no probe was answered"),
            (30, Some(180), Some(20), None, Reach::Idle, "the session has ended, the probe was answered"),
            (30, None, Some(20), None, Reach::Idle, "the peer was added to the device again"),
            (30, Some(300), Some(60), None, Reach::Idle, "one probe was lost"),
            (30, Some(300), Some(61), None, Reach::Down, "the answer is too old"),
            (30, Some(100), Some(40), Some(6), Reach::Down, "a session, and nobody there any more"),
            (30, Some(6), Some(40), Some(6), Reach::Down, "lost probes are not older than the handshake"),
            (30, Some(5), Some(40), Some(6), Reach::Up, "a handshake after the lost probes"),
            (30, Some(300), Some(400), Some(360), Reach::Down, "a handshake after them, long ago"),
            (600, Some(500), Some(500), None, Reach::Idle, "sessions end between two probes"),
            (0, None, None, None, Reach::Down, "without probes: never heard of"),
            (0, Some(100), None, None, Reach::Up, "without probes: a session"),
            (0, Some(4000), None, None, Reach::Idle, "without probes: the session has ended"),
        ] {
            assert_eq!(reach(interval, handshake, answer, lost), expected, "{why}");
        }
    }

    #[test]
    fn counts_say_how_many_of_all_peers_are_reached() {
        let peers = [Reach::Up, Reach::Down, Reach::Up, Reach::Idle];
        let counts: ReachCounts = peers.into_iter().collect();
        assert_eq!(counts.to_string(), "3 of 4 reached (2 up, 1 idle, 1 down)");
    }
}
