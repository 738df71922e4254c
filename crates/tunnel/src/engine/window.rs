//! Which counters of a session were received: each may pass once, in any order within a span (RFC 6479).

/// Words of the map. With 8,192 counters, what several queues or cores of a sender mix up is no replay; the
/// kernel's own map has the same size (`COUNTER_BITS_TOTAL` in `drivers/net/wireguard/noise.h`).
const WORDS: usize = 128;
const BITS: u64 = 64;

/// The counters received so far. One word of the map is always the one being filled, so the span is at least 8,128.
pub(crate) struct Window {
    /// One more than the greatest counter received.
    next: u64,
    map: [u64; WORDS],
}

impl Window {
    pub(crate) const fn new() -> Self {
        Self { next: 0, map: [0; WORDS] }
    }

    /// Cheap check before decrypting: whether `counter` is neither too old nor received before.
    pub(crate) fn allows(&self, counter: u64) -> bool {
        counter >= self.next || (self.reaches(counter) && self.map[place(counter)] & bit(counter) == 0)
    }

    /// Records an authenticated `counter`. Returns whether it was allowed, as another thread may have been faster.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if !self.allows(counter) {
            return false;
        }
        if counter >= self.next {
            let (newest, last) = (counter / BITS, self.next.saturating_sub(1) / BITS);
            // Words between hold counters of long ago. More than all of them need not be cleared.
            for word in (newest.saturating_sub(WORDS as u64 - 1)).max(last + 1)..=newest {
                self.map[place(word * BITS)] = 0;
            }
            self.next = counter + 1;
        }
        self.map[place(counter)] |= bit(counter);
        true
    }

    /// Whether the map still has a place for `counter`, which is smaller than the greatest.
    const fn reaches(&self, counter: u64) -> bool {
        counter / BITS + WORDS as u64 > (self.next - 1) / BITS
    }
}

fn place(counter: u64) -> usize {
    usize::try_from(counter / BITS % WORDS as u64).unwrap_or_default()
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_passes_once_and_late_ones_within_the_span() {
        let mut window = Window::new();
        for counter in [0, 1, 63, 64, 62, 5_000, 4_999, 65, 13_000] {
            assert!(window.accept(counter), "{counter}");
            assert!(!window.accept(counter) && !window.allows(counter), "{counter} again");
        }
        assert!(!window.accept(66), "more than 8,192 behind");
        assert!(window.accept(13_000 - 8_100));
        assert!(window.accept(u64::MAX - 1) && !window.accept(13_001));
    }

    proptest! {
        /// Against a set that forgets nothing.
        #[test]
        fn agrees_with_a_set_of_all_counters(
            steps in prop::collection::vec((0u64..4, 0u64..9_000), 1..300),
        ) {
            let (mut window, mut seen, mut greatest) = (Window::new(), BTreeSet::new(), 0u64);
            for (kind, distance) in steps {
                let counter = match kind {
                    0 => greatest + distance % 3,
                    1 => greatest + distance,
                    2 => greatest.saturating_sub(distance % 70),
                    _ => greatest.saturating_sub(distance),
                };
                let accepted = window.accept(counter);
                let (fresh, age) = (seen.insert(counter), greatest.saturating_sub(counter));
                prop_assert!(!accepted || fresh, "{counter} passed twice");
                prop_assert!(accepted || !fresh || age > 8_127, "{counter} was refused, greatest {greatest}");
                if !accepted && fresh {
                    seen.remove(&counter);
                }
                greatest = greatest.max(counter);
            }
        }
    }
}
