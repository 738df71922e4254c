//! Which probes a verification sends to whom, and when: pure, time is an argument.
//!
//! Each slot of each peer is asked by a small probe, which wakes an idle pair, until one is answered. Then one of the MTU's size
//! follows, a few times if it is lost.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};

/// Between two probes of the same kind. A session takes a round trip if the handshake is not lost, which is tried again after 5 s
/// (`REKEY_TIMEOUT`, the WireGuard paper, section 6.1).
const AGAIN: Duration = Duration::from_secs(1);
/// How many small probes are sent, and how many of the full size.
const SMALL: u32 = 8;
const LARGE: u32 = 4;
/// How many probes are sent at once, and how long until the next ones: all peers at once would fill queues.
const AT_ONCE: usize = 200;
const BETWEEN: Duration = Duration::from_millis(20);

/// A probe to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Wanted {
    /// The peer.
    pub(in crate::daemon) peer: PeerId,
    /// The slot to send it over.
    pub(in crate::daemon) over: Slot,
    /// Identifies it.
    pub(in crate::daemon) nonce: u64,
    /// Its size as an IP packet; none for the smallest.
    pub(in crate::daemon) size: Option<u32>,
}

/// What has become of the probes of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Tried {
    /// How many small probes were sent.
    pub(in crate::daemon) tries: u32,
    /// Time until the first was answered, and where the answer came from.
    pub(in crate::daemon) echo: Option<(Duration, IpAddr)>,
    /// Whether one of the full size was answered; none if none was sent.
    pub(in crate::daemon) full_size: Option<bool>,
    /// Bytes of the probes of the full size that were answered, and so were sent.
    pub(in crate::daemon) answered_bytes: u64,
    large: u32,
    next: Duration,
    size: u32,
    /// Probes by their number: when they were sent, and whether of the full size.
    open: BTreeMap<u64, (Duration, bool)>,
}

impl Tried {
    /// Whether nothing more is sent, and no answer can come in time.
    fn is_over(&self, now: Duration) -> bool {
        if self.full_size == Some(true) {
            return true;
        }
        let spent = match self.echo {
            Some(_) => self.large >= LARGE,
            None => self.tries >= SMALL,
        };
        spent && now >= self.next
    }
}

/// All probes of one verification.
#[derive(Debug)]
pub(in crate::daemon) struct Rounds {
    next_nonce: u64,
    again: Duration,
    slots: BTreeMap<(PeerId, Slot), Tried>,
}

impl Rounds {
    /// Probes these peers, each with the MTU of the routes to it in bytes. Numbers begin at `nonce`.
    pub(in crate::daemon) fn new(
        nonce: u64,
        now: Duration,
        peers: impl IntoIterator<Item = (PeerId, u32)>,
    ) -> Self {
        let of_peer = |(peer, size): (PeerId, u32)| {
            Slot::ALL.map(|slot| ((peer.clone(), slot), Tried { size, next: now, ..Tried::default() }))
        };
        Self { next_nonce: nonce, again: now, slots: peers.into_iter().flat_map(of_peer).collect() }
    }

    /// The probes to send now.
    pub(in crate::daemon) fn wanted(&mut self, now: Duration) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        if now < self.again {
            return wanted;
        }
        for ((peer, slot), tried) in &mut self.slots {
            if wanted.len() >= AT_ONCE {
                break;
            }
            if tried.next > now || tried.is_over(now) {
                continue;
            }
            let size = tried.echo.is_some().then_some(tried.size);
            match size {
                Some(_) => {
                    tried.large += 1;
                    tried.full_size.get_or_insert(false);
                }
                None => tried.tries += 1,
            }
            let nonce = self.next_nonce;
            self.next_nonce = nonce.wrapping_add(1);
            tried.open.insert(nonce, (now, size.is_some()));
            tried.next = now + AGAIN;
            wanted.push(Wanted { peer: peer.clone(), over: *slot, nonce, size });
        }
        self.again = now + BETWEEN;
        wanted
    }

    /// Takes an answer that came over a slot from an address. Others' answers are ignored.
    pub(in crate::daemon) fn echo(
        &mut self,
        now: Duration,
        peer: &PeerId,
        over: Slot,
        nonce: u64,
        from: IpAddr,
    ) {
        let Some(tried) = self.slots.get_mut(&(peer.clone(), over)) else { return };
        let Some((sent, large)) = tried.open.remove(&nonce) else { return };
        if large {
            tried.full_size = Some(true);
            tried.answered_bytes += u64::from(tried.size);
        } else if tried.echo.is_none() {
            tried.echo = Some((now.saturating_sub(sent), from));
            // The one of the full size follows at once.
            tried.next = now;
        }
    }

    /// Whether nothing more is expected.
    pub(in crate::daemon) fn is_over(&self, now: Duration) -> bool {
        self.slots.values().all(|tried| tried.is_over(now))
    }

    /// When something is to be sent, or is over.
    pub(in crate::daemon) fn due(&self, now: Duration) -> Duration {
        let open = self.slots.values().filter(|tried| !tried.is_over(now));
        open.map(|tried| tried.next).min().unwrap_or(now).max(self.again)
    }

    /// How many slots are done with, and how many there are.
    pub(in crate::daemon) fn progress(&self, now: Duration) -> (usize, usize) {
        (self.slots.values().filter(|tried| tried.is_over(now)).count(), self.slots.len())
    }

    /// What has become of the probes of a peer.
    pub(in crate::daemon) fn of(&self, peer: &PeerId) -> PerSlot<Tried> {
        PerSlot::from_fn(|slot| self.slots.get(&(peer.clone(), slot)).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address() -> IpAddr {
        "10.244.2.1".parse().unwrap()
    }

    /// Runs until all is over; `answers` says which probes are answered. Returns the time that it took.
    fn run(rounds: &mut Rounds, answers: impl Fn(&Wanted) -> bool) -> Duration {
        let mut now = Duration::ZERO;
        while !rounds.is_over(now) {
            for wanted in rounds.wanted(now) {
                if answers(&wanted) {
                    rounds.echo(now + SECOND / 1000, &wanted.peer, wanted.over, wanted.nonce, address());
                }
            }
            let due = rounds.due(now);
            assert!(due > now || rounds.is_over(now), "it would be busy at {now:?}");
            now = due.max(now + SECOND / 1000);
            assert!(now < 60 * SECOND, "it never ends");
        }
        now
    }

    #[test]
    fn a_peer_that_answers_is_done_with_at_once_and_both_sizes_are_asked() {
        let peer = PeerId::new("u2");
        let mut rounds = Rounds::new(7, Duration::ZERO, [(peer.clone(), 1420)]);
        assert!(run(&mut rounds, |_| true) < SECOND / 10);
        for (_, tried) in rounds.of(&peer).iter() {
            assert_eq!((tried.tries, tried.echo), (1, Some((SECOND / 1000, address()))));
            assert_eq!((tried.full_size, tried.answered_bytes), (Some(true), 1420));
        }
        assert_eq!(rounds.progress(60 * SECOND), (2, 2));
    }

    #[test]
    fn what_is_not_answered_is_given_up_after_seconds_and_nothing_else_waits() {
        let [silent, narrow] = ["u2", "u3"].map(PeerId::new);
        let mut rounds = Rounds::new(7, Duration::ZERO, [(silent.clone(), 1420), (narrow.clone(), 1420)]);
        let took = run(&mut rounds, |wanted| wanted.peer == narrow && wanted.size.is_none());
        assert!(took >= 8 * SECOND && took < 10 * SECOND, "{took:?}");
        let tried = rounds.of(&silent);
        assert_eq!((tried.a.tries, tried.a.echo, tried.a.full_size), (SMALL, None, None));
        let tried = rounds.of(&narrow);
        assert_eq!((tried.b.tries, tried.b.full_size, tried.b.answered_bytes), (1, Some(false), 0));
    }

    #[test]
    fn a_lost_probe_is_sent_again_and_a_late_answer_counts() {
        let peer = PeerId::new("u2");
        let mut rounds = Rounds::new(7, Duration::ZERO, [(peer.clone(), 1420)]);
        let first = rounds.wanted(Duration::ZERO);
        assert_eq!(rounds.wanted(SECOND).len(), 2, "both slots are asked again");
        let late = first.iter().find(|wanted| wanted.over == Slot::B).unwrap();
        rounds.echo(SECOND * 3 / 2, &peer, Slot::A, late.nonce, address());
        assert_eq!(rounds.of(&peer).a.echo, None, "it is the answer on the other slot");
        rounds.echo(SECOND * 3 / 2, &peer, Slot::B, late.nonce, address());
        rounds.echo(SECOND * 3 / 2, &peer, Slot::B, late.nonce, address());
        assert_eq!(rounds.of(&peer).b.echo, Some((SECOND * 3 / 2, address())));
        assert_eq!(rounds.of(&peer).b.answered_bytes, 0);
    }

    #[test]
    fn many_peers_are_asked_some_at_a_time() {
        let peers = (0..1000).map(|number| (PeerId::new(format!("u{number}")), 1420));
        let mut rounds = Rounds::new(7, Duration::ZERO, peers);
        assert_eq!(rounds.wanted(Duration::ZERO).len(), AT_ONCE);
        assert_eq!(rounds.wanted(Duration::ZERO).len(), 0, "not at the same moment");
        assert!(run(&mut rounds, |_| true) < 2 * SECOND);
    }
}
