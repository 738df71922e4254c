//! What a pairing knows of one slot.

use std::time::Duration;

use super::agreement::Statics;
use super::event::{Entry, Protection, SlotReport};
use crate::{PresharedId, PresharedKey};

/// How long until a question that has no answer is asked again for the first time; then twice as long each time.
const AGAIN: Duration = Duration::from_millis(250);
/// Questions without an answer after which a slot counts as silent, if they took at least this long.
const SILENT: (u32, Duration) = (3, Duration::from_secs(5));

/// A preshared key in use.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: PresharedKey,
    pub(super) id: PresharedId,
    pub(super) epoch: u64,
    /// What it is bound to.
    pub(super) statics: Statics,
    pub(super) since: Duration,
}

/// How good a slot is for pods' packets, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quality {
    /// The peer holds another key, or may do so.
    Differs,
    /// There is a preshared key, but nothing shows that the peer has it.
    Unproven,
    /// The peer answers over the other slot and not over this one.
    Silent,
    /// There is no preshared key.
    Plain,
    /// A handshake with the preshared key has been seen.
    Proven,
}

#[derive(Debug)]
pub(super) struct SlotState {
    pub(super) statics: Option<Statics>,
    pub(super) statics_since: Duration,
    /// The epoch of the last key that was used.
    pub(super) epoch: u64,
    pub(super) held: Option<Held>,
    /// Whether the engine has what is held.
    pub(super) applied: bool,
    /// Since when a handshake with the held key has been seen.
    pub(super) proven: Option<Duration>,
    /// Since when no pod's packet takes this slot.
    pub(super) idle_since: Option<Duration>,
    /// Whether the peer said that it holds another key, or may have taken one up since it was last heard.
    pub(super) differs: bool,
    /// Before this an exchange is not begun again.
    pub(super) not_before: Duration,
    pub(super) failures: u32,
    pub(super) hello: Asking,
}

/// The questions over a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asking {
    /// Answers to questions before this one are from another time.
    pub(super) from: u64,
    /// When the next one is due.
    pub(super) next: Duration,
    unanswered: u32,
    unanswered_since: Option<Duration>,
    pub(super) answered: Option<Duration>,
}

impl SlotState {
    pub(super) fn new(now: Duration, epoch: u64, held: Option<(PresharedKey, Statics)>) -> Self {
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
            hello: Asking { next: now, ..Asking::default() },
        }
    }

    pub(super) fn id(&self) -> Option<PresharedId> {
        self.held.as_ref().map(|held| held.id)
    }

    /// Takes what the engine shows. Says whether the key has just been proven.
    pub(super) fn take_entry(&mut self, now: Duration, entry: Option<Entry>) -> bool {
        let preshared = entry.and_then(|entry| entry.preshared);
        let applied = entry.is_some() && preshared == self.id();
        if !applied {
            // Somebody took the key away, or it is not there yet: what was seen was another state.
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

    /// Whether nothing of this node's is under way on the slot any more.
    pub(super) fn idle_at(&self, linger: Duration) -> Option<Duration> {
        self.idle_since.map(|since| since + linger)
    }

    /// Puts off the next exchange, longer each time.
    pub(super) fn back_off(&mut self, now: Duration) {
        let pause = Duration::from_secs(1) * 2_u32.pow(self.failures.min(6));
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + pause;
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

impl Asking {
    /// A question goes out; the next one follows after `most` at the latest.
    pub(super) fn ask(&mut self, now: Duration, most: Duration) {
        let pause = AGAIN * 2_u32.pow(self.unanswered.min(8));
        self.next = now + pause.min(most);
        self.unanswered = self.unanswered.saturating_add(1);
        self.unanswered_since.get_or_insert(now);
    }

    pub(super) fn answer(&mut self, now: Duration, check: Duration) {
        (self.unanswered, self.unanswered_since) = (0, None);
        self.answered = Some(now);
        self.next = now + check;
    }

    /// Only answers to questions from this number on count, and the next question is due at once.
    pub(super) const fn anew(&mut self, now: Duration, from: u64) {
        self.from = from;
        self.next = now;
        (self.unanswered, self.unanswered_since) = (0, None);
    }

    pub(super) fn is_silent(&self, now: Duration) -> bool {
        let long = |since: Duration| now.saturating_sub(since) >= SILENT.1;
        self.unanswered >= SILENT.0 && self.unanswered_since.is_some_and(long)
    }

    /// Since when there has been no answer, if there are questions that should have one.
    pub(super) fn silent_since(&self) -> Option<Duration> {
        self.unanswered_since.filter(|_| self.unanswered >= SILENT.0)
    }
}
