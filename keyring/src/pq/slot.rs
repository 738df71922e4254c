//! The state of one slot of a pairing.

use std::time::Duration;

use super::agreement::StaticKeys;
use super::event::{Entry, Protection, SlotReport};
use crate::{PresharedId, PresharedKey};

/// First retry interval of a hello that is not answered; it doubles each time.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// After how many unanswered hellos, over at least how long, a slot counts as silent.
const SILENT_AFTER: (u32, Duration) = (3, Duration::from_secs(5));

/// After how many failed exchanges the pause before the next one gets longer.
const PROMPT_RETRIES: u32 = 3;

/// A preshared key in use.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: PresharedKey,
    pub(super) id: PresharedId,
    pub(super) epoch: u64,
    /// What it is bound to.
    pub(super) statics: StaticKeys,
    pub(super) since: Duration,
}

/// How suitable a slot is for pod traffic, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quality {
    /// The peer holds a different key, or may do so.
    Differs,
    /// There is a preshared key, but no handshake with it has completed.
    Unproven,
    /// The peer answers over the other slot but not over this one.
    Silent,
    /// There is no preshared key.
    Plain,
    /// A handshake with the preshared key has completed.
    Proven,
}

#[derive(Debug)]
pub(super) struct SlotState {
    pub(super) statics: Option<StaticKeys>,
    pub(super) statics_since: Duration,
    /// The epoch of the last key that was used.
    pub(super) epoch: u64,
    pub(super) held: Option<Held>,
    /// Whether the device has the key.
    pub(super) applied: bool,
    /// Since when the key is proven by a handshake.
    pub(super) proven: Option<Duration>,
    /// Since when the slot carries no pod traffic.
    pub(super) idle_since: Option<Duration>,
    /// Whether the peer has reported a different key, or may have started to use one since its last message.
    pub(super) differs: bool,
    /// No exchange is started again before this.
    pub(super) not_before: Duration,
    pub(super) failures: u32,
    pub(super) hello: HelloTimer,
}

/// When hellos are sent over a slot, and whether they are answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HelloTimer {
    /// Answers to hellos before this number are outdated.
    pub(super) from: u64,
    /// When the next hello is due.
    pub(super) next: Duration,
    unanswered: u32,
    unanswered_since: Option<Duration>,
    pub(super) answered: Option<Duration>,
}

impl SlotState {
    pub(super) fn new(now: Duration, epoch: u64, held: Option<(PresharedKey, StaticKeys)>) -> Self {
        let held = held.map(|(key, statics)| {
            let id = key.id();
            Held { key, id, epoch, statics, since: now }
        });
        Self {
            statics: None,
            statics_since: now,
            epoch,
            held,
            applied: false,
            proven: None,
            idle_since: None,
            differs: false,
            not_before: now,
            failures: 0,
            hello: HelloTimer { next: now, ..HelloTimer::default() },
        }
    }

    pub(super) fn id(&self) -> Option<PresharedId> {
        self.held.as_ref().map(|held| held.id)
    }

    /// Updates the state from the device; returns whether the key has just been proven.
    pub(super) fn take_entry(&mut self, now: Duration, entry: Option<Entry>) -> bool {
        let preshared = entry.and_then(|entry| entry.preshared);
        let applied = entry.is_some() && preshared == self.id();
        if !applied {
            // The key was removed, or is not set yet: earlier observations refer to another state.
            self.proven = None;
        }
        self.applied = applied;
        let handshake = entry.is_some_and(|entry| entry.handshake);
        if applied && handshake && self.held.is_some() && self.proven.is_none() {
            self.proven = Some(now);
            self.differs = false;
            self.failures = 0;
            return true;
        }
        false
    }

    pub(super) fn quality(&self, now: Duration, other_answers: bool) -> Quality {
        if self.differs {
            Quality::Differs
        } else if self.held.is_some() && self.proven.is_none() {
            Quality::Unproven
        } else if other_answers && self.hello.is_silent(now) {
            Quality::Silent
        } else if self.proven.is_some() {
            Quality::Proven
        } else {
            Quality::Plain
        }
    }

    /// When none of this node's packets is in flight on the slot any more.
    pub(super) fn idle_at(&self, drain: Duration) -> Option<Duration> {
        self.idle_since.map(|since| since + drain)
    }

    /// Delays the next exchange by `first`, longer from the fourth failure on, and by `longest` at most.
    pub(super) fn back_off(&mut self, now: Duration, first: Duration, longest: Duration) {
        let doubled = self.failures.saturating_sub(PROMPT_RETRIES).min(6);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + (first * 2_u32.pow(doubled)).min(longest);
    }

    pub(super) fn report(&self, now: Duration, offered: bool) -> SlotReport {
        let protection = match (&self.held, self.proven) {
            (Some(_), Some(_)) => Protection::Proven,
            (Some(_), None) => Protection::Set,
            (None, _) if offered => Protection::Offered,
            (None, _) => Protection::None,
        };
        let age = self.proven.map(|since| now.saturating_sub(since));
        SlotReport { protection, id: self.id(), epoch: self.epoch, age }
    }
}

impl HelloTimer {
    /// A hello is sent; the next one follows after `most` at the latest.
    pub(super) fn ask(&mut self, now: Duration, most: Duration) {
        let pause = FIRST_RETRY * 2_u32.pow(self.unanswered.min(8));
        self.next = now + pause.min(most);
        self.unanswered = self.unanswered.saturating_add(1);
        self.unanswered_since.get_or_insert(now);
    }

    pub(super) fn answer(&mut self, now: Duration, check: Duration) {
        (self.unanswered, self.unanswered_since) = (0, None);
        self.answered = Some(now);
        self.next = now + check;
    }

    /// Only answers to hellos from this number on count, and the next hello is due at once.
    pub(super) const fn restart(&mut self, now: Duration, from: u64) {
        self.from = from;
        self.next = now;
        (self.unanswered, self.unanswered_since) = (0, None);
    }

    pub(super) fn is_silent(&self, now: Duration) -> bool {
        let long = |since: Duration| now.saturating_sub(since) >= SILENT_AFTER.1;
        self.unanswered >= SILENT_AFTER.0 && self.unanswered_since.is_some_and(long)
    }

    /// Since when hellos have not been answered, if they should have been.
    pub(super) fn silent_since(&self) -> Option<Duration> {
        self.unanswered_since.filter(|_| self.unanswered >= SILENT_AFTER.0)
    }
}
