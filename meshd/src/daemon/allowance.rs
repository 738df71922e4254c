//! How often something may be done: so many times a second, and as many at once after a second in which it was not. Pure.

use std::time::Duration;

/// What may still be done.
#[derive(Debug)]
pub(super) struct Allowance {
    /// The time for one.
    cost: Duration,
    credit: Duration,
    at: Duration,
}

impl Allowance {
    /// So many in a second.
    pub(super) const fn per_second(count: u32) -> Self {
        let second = Duration::from_secs(1);
        Self { cost: Duration::from_nanos(1_000_000_000 / count as u64), credit: second, at: Duration::ZERO }
    }

    /// Takes up to `wanted`; returns how many.
    pub(super) fn take(&mut self, now: Duration, wanted: usize) -> usize {
        self.credit = (self.credit + now.saturating_sub(self.at)).min(Duration::from_secs(1));
        self.at = now;
        let most = usize::try_from(self.credit.as_nanos() / self.cost.as_nanos()).unwrap_or(usize::MAX);
        let taken = most.min(wanted);
        self.credit -= self.cost * u32::try_from(taken).unwrap_or(u32::MAX);
        taken
    }

    /// When one more may be done.
    pub(super) fn next(&self, now: Duration) -> Duration {
        now.max(self.at + self.cost.saturating_sub(self.credit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_allowed_a_second_and_none_are_saved_for_longer() {
        let mut allowance = Allowance::per_second(50);
        let at = Duration::from_millis;
        assert_eq!(allowance.take(at(5000), 80), 50);
        assert_eq!(allowance.take(at(5000), 1), 0);
        assert_eq!(allowance.next(at(5000)), at(5020));
        assert_eq!(allowance.take(at(5019), 1), 0);
        assert_eq!(allowance.take(at(5040), 80), 2);
        assert_eq!(allowance.take(at(90_000), 80), 50, "as many as in one second");
        let taken: usize = (0..100).map(|tenth| allowance.take(at(90_100 + tenth * 100), 80)).sum();
        assert_eq!(taken, 500, "in ten seconds");
    }
}
