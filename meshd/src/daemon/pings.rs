//! Echoes that are asked for over the control socket: which of them are still on their way.

use std::collections::BTreeMap;
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::PeerId;
use status::ping::Echo;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long an echo may take; the client waits longer.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// How many may be on their way.
const MOST: usize = 64;

/// The echoes that are on their way, by the number of their probe.
#[derive(Debug)]
pub(super) struct Pings {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    peer: PeerId,
    over: Slot,
    sent: Instant,
    echoed: oneshot::Sender<Duration>,
}

impl Pings {
    /// Numbers probes from `first` on, which are to be others than those that measure paths.
    pub(super) const fn new(first: u64) -> Self {
        Self { next: first, waiting: BTreeMap::new() }
    }

    /// The number of a new probe to a peer over a slot, and its echo once it is back; none if too many are on their way.
    pub(super) fn begin(&mut self, peer: &PeerId, over: Slot) -> Option<(u64, oneshot::Receiver<Duration>)> {
        // Those that nobody waits for any more.
        self.waiting.retain(|_, waiting| !waiting.echoed.is_closed());
        if self.waiting.len() >= MOST {
            return None;
        }
        let nonce = self.next;
        self.next = nonce.wrapping_add(1);
        let (echoed, back) = oneshot::channel();
        self.waiting.insert(nonce, Waiting { peer: peer.clone(), over, sent: Instant::now(), echoed });
        Some((nonce, back))
    }

    /// Takes an echo; returns whether it is of one of these probes.
    pub(super) fn receive(&mut self, peer: &PeerId, over: Slot, nonce: u64) -> bool {
        let matches = self.waiting.get(&nonce).is_some_and(|sent| sent.peer == *peer && sent.over == over);
        let found = if matches { self.waiting.remove(&nonce) } else { None };
        found.map(|waiting| waiting.echoed.send(waiting.sent.elapsed())).is_some()
    }
}

/// Answers once the echo is back, or lost.
pub(super) async fn answer(back: oneshot::Receiver<Duration>, echo: Echo, reply: oneshot::Sender<String>) {
    let took = tokio::time::timeout(LOST_AFTER, back).await.ok().and_then(Result::ok);
    let round_trip_microseconds = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    // The client may have gone away.
    let _ = reply.send(text(&Echo { round_trip_microseconds, ..echo }));
}

/// An answer to the client.
pub(super) fn text(echo: &Echo) -> String {
    // Numbers and strings always serialize.
    serde_json::to_string(echo).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_counts_from_its_peer_over_its_slot_once() {
        let (one, other) = (PeerId::new("u1"), PeerId::new("u2"));
        let mut pings = Pings::new(u64::MAX);
        let (nonce, mut back) = pings.begin(&one, Slot::A).unwrap();
        let (next, _gone) = pings.begin(&one, Slot::A).unwrap();
        assert_eq!((nonce, next), (u64::MAX, 0));
        assert!(!pings.receive(&other, Slot::A, nonce) && !pings.receive(&one, Slot::B, nonce));
        assert!(!pings.receive(&one, Slot::A, 7) && back.try_recv().is_err());
        assert!(pings.receive(&one, Slot::A, nonce) && back.try_recv().is_ok());
        assert!(!pings.receive(&one, Slot::A, nonce), "a second time");
    }

    #[test]
    fn no_more_are_on_their_way_than_are_waited_for() {
        let peer = PeerId::new("u1");
        let mut pings = Pings::new(1);
        let mut waited: Vec<_> = (0..MOST).map(|_| pings.begin(&peer, Slot::B).unwrap()).collect();
        assert!(pings.begin(&peer, Slot::B).is_none());
        drop(waited.pop());
        assert!(pings.begin(&peer, Slot::B).is_some());
    }
}
