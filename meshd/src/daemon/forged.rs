//! When a peer is told that its datagrams do not authenticate here: its host may damage what it sends in batches. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use keyring::Slot;

/// How many in one period are worth a message. A path that flips bits damages single ones, whose checksums are wrong.
const LEAST: u64 = 8;
/// The period, and the shortest time between two messages about a slot of a peer.
const PERIOD: Duration = Duration::from_secs(5);

/// What was counted at the start of the current period, by peer and slot.
#[derive(Debug, Default)]
pub(super) struct ForgedReports(BTreeMap<(String, Slot), (Duration, u64)>);

impl ForgedReports {
    /// Takes the counters of all slots of all peers; returns the slots of which a peer is to be told, and how many.
    pub(super) fn update<'a>(
        &mut self,
        now: Duration,
        counters: impl Iterator<Item = (&'a str, Slot, u64)>,
    ) -> Vec<(String, Slot, u64)> {
        let mut former = std::mem::take(&mut self.0);
        let mut told = Vec::new();
        for (peer, slot, count) in counters {
            let subject = (peer.to_owned(), slot);
            // A counter below the former one is that of a new device.
            let start = former.remove(&subject).filter(|(_, before)| *before <= count);
            let (since, before) = start.unwrap_or((now, count));
            let period = if now.saturating_sub(since) < PERIOD {
                (since, before)
            } else {
                if count - before >= LEAST {
                    told.push((subject.0.clone(), slot, count - before));
                }
                (now, count)
            };
            self.0.insert(subject, period);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told over 100 s about one slot on which so many datagrams a second are damaged.
    fn told(per_second: u64) -> Vec<(String, Slot, u64)> {
        let mut reports = ForgedReports::default();
        let at = |second| {
            let counters = [("n2", Slot::A, second * per_second), ("n2", Slot::B, 5)];
            reports.update(Duration::from_secs(second), counters.into_iter())
        };
        (0..100).flat_map(at).collect()
    }

    #[test]
    fn many_within_a_period_are_told_and_single_ones_are_not() {
        assert_eq!(told(1), []);
        assert_eq!(told(100), vec![("n2".to_owned(), Slot::A, 500); 19]);
    }

    #[test]
    fn what_was_counted_before_and_counters_that_start_anew_say_nothing() {
        let mut reports = ForgedReports::default();
        let counts = [1_000, 1_000, 0, 0].into_iter().zip(0..);
        for (count, period) in counts {
            let counters = [("n2", Slot::A, count)].into_iter();
            assert_eq!(reports.update(PERIOD * period, counters), [], "{period}");
        }
    }
}
