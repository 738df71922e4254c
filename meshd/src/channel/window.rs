//! Which counters of a sender were received: the highest one, and those shortly before it (RFC 6479).

/// How far a counter may be behind the highest one: more than can overtake each other.
const SIZE: u64 = 128;

/// The counters of one sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    highest: u64,
    /// Bit n: the counter `highest - n` was received.
    received: u128,
}

impl Window {
    /// Takes a counter, the first being 1; returns whether it is new.
    pub(super) const fn admit(&mut self, counter: u64) -> bool {
        if counter == 0 {
            return false;
        }
        if counter > self.highest {
            let by = counter - self.highest;
            self.received = if by < SIZE { self.received << by | 1 } else { 1 };
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        if behind >= SIZE || self.received >> behind & 1 == 1 {
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
        assert!(!window.admit(0));
        for counter in [1, 3, 2, 130, 129, 4, 200, 73] {
            assert!(window.admit(counter), "{counter}");
        }
        for counter in [0, 1, 2, 3, 4, 72, 73, 129, 130, 200] {
            assert!(!window.admit(counter), "{counter}");
        }
        assert!(window.admit(u64::MAX) && !window.admit(u64::MAX) && window.admit(u64::MAX - 127));
        assert!(!window.admit(u64::MAX - 128) && !window.admit(200));
    }
}
