//! When keys are replaced and how long each step may take: one validated value.

use std::time::Duration;

/// How a node replaces its keys. All times are lengths; none depends on a clock that others share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    interval: Duration,
    jitter: u32,
    max_age: Duration,
    drain: Duration,
    timeout: Duration,
}

/// What a policy is made of. [`Default`] is what a cluster gets that sets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Age at which a key is replaced; zero replaces keys on request only.
    pub interval: Duration,
    /// How far the age may differ from the interval by chance, in percent, so that nodes that started together
    /// do not rotate together. At most 50.
    pub jitter: u32,
    /// Age at which a rotation no longer waits for a peer that is alive but does not follow. None is twice the
    /// interval.
    pub max_age: Option<Duration>,
    /// How long nothing must have arrived on a slot, after every peer has said that it sends on the other one,
    /// before its key is taken away.
    pub drain: Duration,
    /// How long a peer may take to acknowledge or to verify.
    pub timeout: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            interval: Duration::from_hours(24),
            jitter: 20,
            max_age: None,
            drain: Duration::from_secs(10),
            timeout: Duration::from_mins(1),
        }
    }
}

impl Policy {
    /// Checks the terms.
    pub fn new(terms: Terms) -> Result<Self, PolicyError> {
        let Terms { interval, jitter, drain, timeout, .. } = terms;
        if timeout.is_zero() {
            return Err(PolicyError::Timeout);
        }
        if jitter > 50 {
            return Err(PolicyError::Jitter { found: jitter });
        }
        // A rotation waits for its peers up to four times and drains twice.
        let least = timeout * 4 + drain * 2;
        if !interval.is_zero() && interval < least {
            return Err(PolicyError::Interval { found: interval, least });
        }
        let max_age =
            terms.max_age.unwrap_or_else(|| if interval.is_zero() { Duration::MAX } else { interval * 2 });
        if max_age < interval {
            return Err(PolicyError::MaxAge { found: max_age, interval });
        }
        Ok(Self { interval, jitter, max_age, drain, timeout })
    }

    /// The age at which a key is replaced, for a number drawn by chance. None if keys are replaced on request only.
    pub fn due(&self, chance: u64) -> Option<Duration> {
        if self.interval.is_zero() {
            return None;
        }
        let swing = self.interval * self.jitter / 100;
        // 0 to 2,000 thousandths of the swing, taken off its whole.
        let offset = swing * u32::try_from(chance % 2001).unwrap_or_default() / 1000;
        Some(self.interval.saturating_sub(swing) + offset)
    }

    /// Age at which a rotation no longer waits for peers that are alive.
    pub const fn max_age(&self) -> Duration {
        self.max_age
    }

    /// The age at which a key is replaced but for chance; zero if only on request.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// How long a drained slot must have been quiet.
    pub const fn drain(&self) -> Duration {
        self.drain
    }

    /// How long a peer may take.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// Terms that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No time at all for peers.
    #[error("rotation timeout: expected more than nothing")]
    Timeout,
    /// Too much chance.
    #[error("rotation jitter {found} %: expected at most 50 %")]
    Jitter {
        /// The jitter in percent.
        found: u32,
    },
    /// The next rotation would be due before this one can be over.
    #[error(
        "rotation interval {found:?}: expected 0 (on request only) or at least {least:?}, four timeouts and two drains"
    )]
    Interval {
        /// The interval.
        found: Duration,
        /// The least one.
        least: Duration,
    },
    /// Keys would be too old before they are due.
    #[error("greatest key age {found:?}: expected at least the rotation interval {interval:?}")]
    MaxAge {
        /// The age.
        found: Duration,
        /// The interval.
        interval: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(interval: u64) -> Terms {
        Terms { interval: Duration::from_secs(interval), ..Terms::default() }
    }

    #[test]
    fn terms_that_contradict_each_other_are_refused() {
        assert!(Policy::new(Terms::default()).is_ok());
        assert!(Policy::new(terms(0)).is_ok());
        assert!(Policy::new(terms(260)).is_ok());
        assert!(matches!(Policy::new(terms(259)), Err(PolicyError::Interval { .. })));
        let zero = Terms { timeout: Duration::ZERO, ..Terms::default() };
        assert_eq!(Policy::new(zero), Err(PolicyError::Timeout));
        let wild = Terms { jitter: 51, ..Terms::default() };
        assert_eq!(Policy::new(wild), Err(PolicyError::Jitter { found: 51 }));
        let young = Terms { max_age: Some(Duration::from_hours(23)), ..Terms::default() };
        assert!(matches!(Policy::new(young), Err(PolicyError::MaxAge { .. })));
    }

    #[test]
    fn chance_moves_the_age_by_the_jitter_and_no_further() {
        let policy = Policy::new(terms(1000)).unwrap();
        assert_eq!(policy.due(0), Some(Duration::from_secs(800)));
        assert_eq!(policy.due(1000), Some(Duration::from_secs(1000)));
        assert_eq!(policy.due(2000), Some(Duration::from_mins(20)));
        assert_eq!(policy.due(2001), policy.due(0));
        assert_eq!(Policy::new(terms(0)).unwrap().due(7), None);
    }
}
