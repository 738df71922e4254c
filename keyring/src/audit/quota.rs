//! How many lines a witness records about each peer: what a peer does may cost it no more than that.

use std::collections::BTreeMap;
use std::time::Duration;

/// Subjects that are counted at most, beyond the largest cluster. While there are so many, another one gets no line.
const SUBJECTS: usize = 16_384;

/// A number of lines at once for each subject, and then one more at a time.
#[derive(Debug)]
pub struct Quota {
    burst: u32,
    refill: Duration,
    subjects: BTreeMap<String, Account>,
}

/// What a subject has used.
#[derive(Debug, Default)]
struct Account {
    /// When the whole burst is available again.
    paid: Duration,
    omitted: u64,
}

/// What to do with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Record it. So many were omitted before it.
    Record {
        /// Lines that were not recorded since the last one that was.
        omitted: u64,
    },
    /// Leave it out.
    Omit {
        /// Whether the line before it was recorded.
        first: bool,
    },
}

impl Quota {
    /// `burst` lines at once, and one more after each `refill`.
    pub const fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, subjects: BTreeMap::new() }
    }

    /// Whether a line about `subject` would be recorded at `now`.
    pub fn allows(&self, subject: &str, now: Duration) -> bool {
        let paid = self.subjects.get(subject).map_or(now, |account| account.paid.max(now));
        paid + self.refill <= now + self.refill * self.burst
    }

    /// Takes a line about `subject` at `now`, a time since any fixed moment.
    pub fn take(&mut self, subject: &str, now: Duration) -> Decision {
        if !self.subjects.contains_key(subject) && self.subjects.len() >= SUBJECTS {
            // Those that have paid have nothing to remember.
            self.subjects.retain(|_, account| account.paid > now || account.omitted > 0);
            if self.subjects.len() >= SUBJECTS {
                return Decision::Omit { first: false };
            }
        }
        let allowed = self.allows(subject, now);
        let account = self.subjects.entry(subject.to_owned()).or_default();
        let paid = account.paid.max(now) + self.refill;
        if !allowed {
            account.omitted += 1;
            return Decision::Omit { first: account.omitted == 1 };
        }
        account.paid = paid;
        Decision::Record { omitted: std::mem::take(&mut account.omitted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn a_burst_then_one_line_per_interval_and_what_was_omitted_is_counted() {
        let mut quota = Quota::new(3, MINUTE);
        let start = Duration::from_hours(5);
        for _ in 0..3 {
            assert_eq!(quota.take("n2", start), Decision::Record { omitted: 0 });
        }
        assert_eq!(quota.take("n2", start), Decision::Omit { first: true });
        assert_eq!(quota.take("n2", start + MINUTE / 2), Decision::Omit { first: false });
        assert_eq!(quota.take("n3", start), Decision::Record { omitted: 0 }, "each has its own");
        assert_eq!(quota.take("n2", start + MINUTE), Decision::Record { omitted: 2 });
        assert_eq!(quota.take("n2", start + MINUTE), Decision::Omit { first: true });
        for _ in 0..3 {
            assert!(matches!(quota.take("n2", start + 10 * MINUTE), Decision::Record { .. }));
        }
        assert_eq!(quota.take("n2", start + 10 * MINUTE), Decision::Omit { first: true });
    }

    #[test]
    fn the_number_of_subjects_is_bounded_and_those_without_debt_are_forgotten() {
        let mut quota = Quota::new(1, MINUTE);
        for number in 0..SUBJECTS {
            assert!(matches!(quota.take(&number.to_string(), Duration::ZERO), Decision::Record { .. }));
        }
        assert_eq!(quota.take("another", Duration::ZERO), Decision::Omit { first: false });
        assert_eq!(quota.take("another", 2 * MINUTE), Decision::Record { omitted: 0 });
        assert_eq!(quota.subjects.len(), 1);
    }
}
