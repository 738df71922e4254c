//! A limit per second with room for bursts.

use std::time::Duration;

/// Parts of one unit that are counted: at any rate, time that has passed is never lost to rounding.
const PARTS: u128 = 1_000_000_000;

/// A token bucket. Times are monotonic since any fixed moment.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    per_second: u64,
    most: u128,
    level: u128,
    filled: Duration,
}

impl Bucket {
    /// A full bucket: `burst` units at once, `per_second` in the long run.
    pub(crate) fn new(now: Duration, per_second: u64, burst: u64) -> Self {
        let most = u128::from(burst) * PARTS;
        Self { per_second, most, level: most, filled: now }
    }

    /// Takes `units` if they are there.
    pub(crate) fn take(&mut self, now: Duration, units: u64) -> bool {
        if let Some(passed) = now.checked_sub(self.filled).filter(|passed| !passed.is_zero()) {
            self.level = (self.level + passed.as_nanos() * u128::from(self.per_second)).min(self.most);
            self.filled = now;
        }
        let taken = self.level.checked_sub(u128::from(units) * PARTS);
        self.level = taken.unwrap_or(self.level);
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = Bucket::new(Duration::ZERO, 10, 3);
        assert_eq!((0..10).filter(|_| bucket.take(Duration::ZERO, 1)).count(), 3);
        let passed = (1..=100_000).filter(|step| bucket.take(Duration::from_micros(step * 100), 1)).count();
        assert_eq!(passed, 100, "ten seconds");
        assert!(!bucket.take(Duration::from_hours(1), 4), "never more than the burst");
        assert!(bucket.take(Duration::from_hours(1), 3));
    }
}
