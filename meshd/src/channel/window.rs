//! Which counters of a sender were received: the highest one, and those shortly before it (RFC 6479).

use std::time::Duration;

/// How far a counter may be behind the highest one: more than can overtake each other.
const SIZE: u64 = 128;
/// How long after a higher counter a lower one is still taken: somebody may withhold a message, and deliver it when it is
/// out of date.
const LATEST: Duration = Duration::from_secs(2);

/// The counters of one sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    highest: u64,
    /// When that one was received.
    at: Duration,
    /// Bit n: the counter `highest - n` was received, or would be too late.
    received: u128,
}

impl Window {
    /// Takes a counter, the first being 1; returns whether it is new.
    pub(super) fn admit(&mut self, now: Duration, counter: u64) -> bool {
        let in_time = now <= self.at + LATEST;
        if counter > self.highest {
            let before = if in_time { self.received } else { u128::MAX };
            let by = counter - self.highest;
            self.received = if by < SIZE { before << by | 1 } else { 1 };
            (self.highest, self.at) = (counter, now);
            return true;
        }
        let behind = self.highest - counter;
        if counter == 0 || !in_time || behind >= SIZE || self.received >> behind & 1 == 1 {
            return false;
        }
        self.received |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_taken_once_in_any_order_within_the_window() {
        let mut window = Window::default();
        let mut admit = |counter| window.admit(Duration::from_secs(1), counter);
        assert!(!admit(0));
        for counter in [1, 3, 2, 130, 129, 4, 200, 73] {
            assert!(admit(counter), "{counter}");
        }
        for counter in [0, 1, 2, 3, 4, 72, 73, 129, 130, 200] {
            assert!(!admit(counter), "{counter}");
        }
        assert!(admit(u64::MAX) && !admit(u64::MAX) && admit(u64::MAX - 127));
        assert!(!admit(u64::MAX - 128) && !admit(200));
    }

    #[test]
    fn a_counter_that_comes_late_is_not_taken() {
        let mut window = Window::default();
        let second = Duration::from_secs;
        assert!(window.admit(second(10), 2) && window.admit(second(12), 1));
        assert!(window.admit(second(20), 5) && !window.admit(second(23), 4));
        // Nor after the next higher one.
        assert!(window.admit(second(23), 7) && !window.admit(second(23), 4) && window.admit(second(23), 6));
    }
}
