//! Counters over all peers, which never go back: what a peer adds stays when it leaves. Pure.

use std::time::Duration;

use keyring::{PerSlot, PublicKey};
use serde::{Deserialize, Serialize};
use wireguard::DeviceState;

/// What was exchanged with all peers over both slots since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTotals {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Authenticated packets from another address than the endpoint, while the peer is not followed.
    pub endpoint_drifts: u64,
    /// Datagrams that did not authenticate.
    pub forged: u64,
}

impl PeerTotals {
    /// Adds what was counted since `before`. A counter below the former one is that of a peer that was added anew.
    const fn add(&mut self, before: &Self, now: &Self) {
        const fn since(before: u64, now: u64) -> u64 {
            if now < before { now } else { now - before }
        }
        self.received = self.received.wrapping_add(since(before.received, now.received));
        self.sent = self.sent.wrapping_add(since(before.sent, now.sent));
        self.endpoint_drifts =
            self.endpoint_drifts.wrapping_add(since(before.endpoint_drifts, now.endpoint_drifts));
        self.forged = self.forged.wrapping_add(since(before.forged, now.forged));
    }
}

/// Sums up the counters of both devices.
#[derive(Debug, Default)]
pub struct Totals {
    sum: PeerTotals,
    /// The counters of each peer at the last time, by its key.
    seen: PerSlot<Vec<(PublicKey, PeerTotals)>>,
}

impl Totals {
    /// Takes the states of the devices; of one that can't be read, nothing changes.
    pub fn update(&mut self, devices: &PerSlot<Option<DeviceState>>) {
        for (slot, device) in devices.iter() {
            let Some(device) = device else { continue };
            let seen = self.seen.get_mut(slot);
            let mut former = std::mem::take(seen).into_iter().peekable();
            // Both are sorted by key.
            *seen = device
                .peers
                .iter()
                .map(|(key, peer)| {
                    while former.next_if(|(known, _)| known < key).is_some() {}
                    let before = former.next_if(|(known, _)| known == key).map(|(_, counts)| counts);
                    let now = PeerTotals {
                        received: peer.received,
                        sent: peer.sent,
                        endpoint_drifts: peer.endpoint_drifts,
                        forged: peer.forged,
                    };
                    self.sum.add(&before.unwrap_or_default(), &now);
                    (*key, now)
                })
                .collect();
        }
    }

    /// The sum.
    pub const fn sum(&self) -> PeerTotals {
        self.sum
    }
}

/// Round-trip times as a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// How many took at most as long as each of [`RoundTrips::BOUNDS`] and longer than the one before; the last number
    /// is that of those which took longer than all.
    pub counts: [u64; 6],
    /// Their sum in microseconds.
    pub sum_microseconds: u64,
}

impl RoundTrips {
    /// Upper bounds in milliseconds: within a rack, a zone, a region, a continent, the world.
    pub const BOUNDS: [u32; 5] = [1, 5, 20, 80, 320];

    /// Counts an answered probe.
    pub fn observe(&mut self, took: Duration) {
        let longer = |bound: u32| took > Duration::from_millis(u64::from(bound));
        let bucket = Self::BOUNDS.into_iter().take_while(|bound| longer(*bound)).count();
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_microseconds = self.sum_microseconds.saturating_add(took);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wireguard::PeerState;

    use super::*;

    /// A device whose peers have received these bytes.
    fn device(received: &[(u8, u64)]) -> PerSlot<Option<DeviceState>> {
        let peer = |(key, received): &(u8, u64)| {
            let key = PublicKey::from_bytes(&[*key; 32]).unwrap();
            (key, PeerState { received: *received, sent: 2 * received, ..PeerState::default() })
        };
        let peers: BTreeMap<_, _> = received.iter().map(peer).collect();
        PerSlot { a: Some(DeviceState { peers, ..DeviceState::default() }), b: None }
    }

    #[test]
    fn totals_never_go_back_when_peers_leave_or_are_added_anew() {
        let mut totals = Totals::default();
        for (counters, expected) in [
            (&[(7, 10), (9, 100)][..], 110),
            (&[(7, 15), (9, 100)], 115),
            // One has left, another has come.
            (&[(8, 1), (9, 101)], 117),
            // The first is back with a new device entry.
            (&[(7, 3), (8, 1), (9, 101)], 120),
            // Its counters start anew although it was there all the time.
            (&[(7, 2), (8, 1), (9, 101)], 122),
            (&[], 122),
        ] {
            totals.update(&device(counters));
            assert_eq!((totals.sum().received, totals.sum().sent), (expected, 2 * expected), "{counters:?}");
        }
        totals.update(&device(&[(9, 5)]));
        totals.update(&PerSlot { a: None, b: None });
        totals.update(&device(&[(9, 6)]));
        assert_eq!(
            totals.sum().received,
            122 + 6,
            "a device that can't be read for a moment is not a new one"
        );
    }

    #[test]
    fn round_trips_are_counted_in_the_first_bucket_that_holds_them() {
        let mut trips = RoundTrips::default();
        for micros in [1, 1000, 1001, 20_000, 320_000, 320_001, 5_000_000] {
            trips.observe(Duration::from_micros(micros));
        }
        assert_eq!(trips.counts, [2, 1, 1, 0, 1, 2]);
        assert_eq!(trips.sum_microseconds, 5_662_003);
    }
}
