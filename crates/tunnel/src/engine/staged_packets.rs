//! Packets that wait for a handshake: bounded per peer, and over all peers of the interface.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::counters::DropReason;

/// Packets that wait for one peer at most.
const PEER_LIMIT: usize = 256;
/// Packets that wait for one peer however many wait for others: the first ones of a connection.
const RESERVED: usize = 4;
/// Packets that wait for all peers together before each is held to [`RESERVED`]: 32 full queues, 12 MB of Ethernet's MTU.
const TOTAL_LIMIT: usize = 8_192;

/// How many packets wait for any peer of the interface.
pub(crate) type StagedTotal = Arc<AtomicUsize>;

/// Padded packets that wait for a session with one peer.
#[derive(Debug)]
pub(super) struct StagedPackets {
    packets: VecDeque<Vec<u8>>,
    total: StagedTotal,
}

impl StagedPackets {
    pub(super) const fn new(total: StagedTotal) -> Self {
        Self { packets: VecDeque::new(), total }
    }

    /// Adds a packet. When too many wait, the oldest is dropped, and the error says which limit was reached.
    pub(super) fn push(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let len = self.packets.len();
        let refused = if len >= PEER_LIMIT {
            Err(DropReason::NoSession)
        } else if len >= RESERVED && self.total.load(Ordering::Relaxed) >= TOTAL_LIMIT {
            Err(DropReason::StagedPacketsLimited)
        } else {
            Ok(())
        };
        if refused.is_err() {
            self.packets.pop_front();
        } else {
            self.total.fetch_add(1, Ordering::Relaxed);
        }
        self.packets.push_back(packet.to_vec());
        refused
    }

    /// Takes all packets out, oldest first.
    pub(super) fn take(&mut self) -> VecDeque<Vec<u8>> {
        self.total.fetch_sub(self.packets.len(), Ordering::Relaxed);
        std::mem::take(&mut self.packets)
    }
}

impl Drop for StagedPackets {
    fn drop(&mut self) {
        self.total.fetch_sub(self.packets.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_queues_together_are_bounded_and_each_peer_may_still_begin() {
        let total = StagedTotal::default();
        let mut peers: Vec<_> = (0..1_000).map(|_| StagedPackets::new(Arc::clone(&total))).collect();
        let mut limited = 0;
        for round in 0..2 * PEER_LIMIT {
            for peer in &mut peers {
                let pushed = peer.push(&[u8::try_from(round % 256).unwrap()]);
                limited += usize::from(pushed == Err(DropReason::StagedPacketsLimited));
            }
        }
        let waiting: usize = peers.iter().map(|peer| peer.packets.len()).sum();
        assert_eq!((waiting, total.load(Ordering::Relaxed)), (TOTAL_LIMIT, TOTAL_LIMIT));
        assert_eq!(waiting + limited, 2 * PEER_LIMIT * 1_000, "each drop is counted");
        let mut newcomer = StagedPackets::new(Arc::clone(&total));
        for number in 0..10 {
            assert_eq!(newcomer.push(&[number]).is_ok(), usize::from(number) < RESERVED);
        }
        assert_eq!(
            newcomer.take(),
            (6..10).map(|number| vec![number]).collect::<VecDeque<_>>(),
            "the newest"
        );
        drop(peers);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_queue_is_bounded() {
        let mut peer = StagedPackets::new(StagedTotal::default());
        for number in 0..=255_u8 {
            assert_eq!(peer.push(&[number]), Ok(()));
        }
        assert_eq!(peer.push(&[7]), Err(DropReason::NoSession));
        let taken = peer.take();
        assert_eq!((taken.len(), taken.front()), (PEER_LIMIT, Some(&vec![1])));
        assert_eq!(peer.total.load(Ordering::Relaxed), 0);
    }
}
