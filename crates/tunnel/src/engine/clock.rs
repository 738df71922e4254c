//! Time as the engine counts it: one number, which threads share without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// For intervals: never goes back.
    pub instant: Instant,
    /// For people and for other hosts.
    pub wall: SystemTime,
}

impl ClockReading {
    /// Reads both clocks. For the shell around the engine.
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// Nanoseconds since the engine's first clock reading; never zero.
pub(crate) type Nanos = u64;

/// A clock reading, also as one number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) reading: ClockReading,
    pub(crate) nanos: Nanos,
}

impl Now {
    /// Whether `interval` has passed since `then`.
    pub(crate) fn reached(self, then: Nanos, interval: Duration) -> bool {
        u128::from(self.nanos.saturating_sub(then)) >= interval.as_nanos()
    }
}

/// The zero of an engine's numbers.
#[derive(Debug, Default)]
pub(crate) struct Origin(OnceLock<Instant>);

impl Origin {
    pub(crate) fn now(&self, reading: ClockReading) -> Now {
        let since = reading.instant.saturating_duration_since(*self.0.get_or_init(|| reading.instant));
        Now { reading, nanos: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).saturating_add(1) }
    }
}

/// When something last happened, if ever.
#[derive(Debug, Default)]
pub(crate) struct Stamp(AtomicU64);

impl Stamp {
    pub(crate) fn set(&self, now: Now) {
        self.0.store(now.nanos, Ordering::Relaxed);
    }

    /// Records the time unless an earlier one is recorded already.
    pub(crate) fn begin(&self, now: Now) {
        if self.0.load(Ordering::Relaxed) == 0 {
            self.0.store(now.nanos, Ordering::Relaxed);
        }
    }

    pub(crate) fn clear(&self) {
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it happened, and `interval` has passed since.
    pub(crate) fn due(&self, now: Now, interval: Duration) -> bool {
        let then = self.0.load(Ordering::Relaxed);
        then != 0 && now.reached(then, interval)
    }

    /// Whether it never happened.
    pub(crate) fn never(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}
