//! When keys are replaced and how long each step may take: one validated value.

use std::time::Duration;

/// How a node replaces its keys. All times are durations; none depends on a clock that is shared with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationPolicy {
    interval: Duration,
    jitter: u32,
    max_age: Duration,
    drain: Duration,
    timeout: Duration,
}

/// The settings of a policy. [`Default`] has the values for a cluster that sets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationSettings {
    /// Age at which a key is replaced; zero: only on request.
    pub interval: Duration,
    /// By how many percent the age varies at random, so that nodes that started together do not rotate
    /// together. At most 50.
    pub jitter: u32,
    /// Age of keys from which a rotation no longer waits for peers that are alive but do not follow. Defaults
    /// to twice the interval.
    pub max_age: Option<Duration>,
    /// How long no traffic must have arrived on a slot, after every peer has confirmed that it sends on the
    /// other one, before its key is removed.
    pub drain: Duration,
    /// How long a peer may take to acknowledge or verify.
    pub timeout: Duration,
}

impl Default for RotationSettings {
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

impl RotationPolicy {
    /// Validates the settings.
    pub fn new(settings: RotationSettings) -> Result<Self, RotationPolicyError> {
        let RotationSettings { interval, jitter, drain, timeout, .. } = settings;
        if timeout.is_zero() {
            return Err(RotationPolicyError::Timeout);
        }
        if jitter > 50 {
            return Err(RotationPolicyError::Jitter { found: jitter });
        }
        // A rotation waits for peers up to four times and drains twice.
        let least = timeout * 4 + drain * 2;
        if !interval.is_zero() && interval < least {
            return Err(RotationPolicyError::Interval { found: interval, least });
        }
        let max_age =
            settings.max_age.unwrap_or_else(|| if interval.is_zero() { Duration::MAX } else { interval * 2 });
        if max_age < interval {
            return Err(RotationPolicyError::MaxAge { found: max_age, interval });
        }
        Ok(Self { interval, jitter, max_age, drain, timeout })
    }

    /// The age at which a key is replaced, for a random number. None if keys are replaced on request only.
    pub fn due(&self, jitter_seed: u64) -> Option<Duration> {
        if self.interval.is_zero() {
            return None;
        }
        let swing = self.interval * self.jitter / 100;
        // 0 to 2,000 thousandths of the swing, from its lower end.
        let offset = swing * u32::try_from(jitter_seed % 2001).unwrap_or_default() / 1000;
        Some(self.interval.saturating_sub(swing) + offset)
    }

    /// Age of keys from which a rotation no longer waits for peers that are alive.
    pub const fn max_age(&self) -> Duration {
        self.max_age
    }

    /// The age at which a key is replaced, without jitter; zero: only on request.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// How long a drained slot must have been idle.
    pub const fn drain(&self) -> Duration {
        self.drain
    }

    /// How long a peer may take.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// Settings that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationPolicyError {
    /// The timeout is zero.
    #[error("rotation timeout: expected more than 0")]
    Timeout,
    /// The jitter is too large.
    #[error("rotation jitter {found} %: expected at most 50 %")]
    Jitter {
        /// The jitter in percent.
        found: u32,
    },
    /// The next rotation would be due before this one can complete.
    #[error(
        "rotation interval {found:?}: expected 0 (on request only) or at least {least:?}, four timeouts and two drains"
    )]
    Interval {
        /// The interval.
        found: Duration,
        /// The shortest one allowed.
        least: Duration,
    },
    /// Keys would be too old before they are due.
    #[error("maximum key age {found:?}: expected at least the rotation interval {interval:?}")]
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

    fn settings(interval: u64) -> RotationSettings {
        RotationSettings { interval: Duration::from_secs(interval), ..RotationSettings::default() }
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        assert!(RotationPolicy::new(RotationSettings::default()).is_ok());
        assert!(RotationPolicy::new(settings(0)).is_ok());
        assert!(RotationPolicy::new(settings(260)).is_ok());
        assert!(matches!(RotationPolicy::new(settings(259)), Err(RotationPolicyError::Interval { .. })));
        let zero = RotationSettings { timeout: Duration::ZERO, ..RotationSettings::default() };
        assert_eq!(RotationPolicy::new(zero), Err(RotationPolicyError::Timeout));
        let wild = RotationSettings { jitter: 51, ..RotationSettings::default() };
        assert_eq!(RotationPolicy::new(wild), Err(RotationPolicyError::Jitter { found: 51 }));
        let young =
            RotationSettings { max_age: Some(Duration::from_hours(23)), ..RotationSettings::default() };
        assert!(matches!(RotationPolicy::new(young), Err(RotationPolicyError::MaxAge { .. })));
    }

    #[test]
    fn the_age_varies_by_at_most_the_jitter() {
        let policy = RotationPolicy::new(settings(1000)).unwrap();
        assert_eq!(policy.due(0), Some(Duration::from_secs(800)));
        assert_eq!(policy.due(1000), Some(Duration::from_secs(1000)));
        assert_eq!(policy.due(2000), Some(Duration::from_mins(20)));
        assert_eq!(policy.due(2001), policy.due(0));
        assert_eq!(RotationPolicy::new(settings(0)).unwrap().due(7), None);
    }
}
