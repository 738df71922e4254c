//! One exchange for one slot, and how far it is.

use std::time::Duration;

use super::agreement::{Agreement, Statics, Tag};
use super::event::Terms;
use super::message::{Accept, Offer};
use super::provider::Begun;
use super::slot::{Held, SlotState};
use crate::PerSlot;
use crate::Slot;

/// How often an offer and a confirmation are repeated.
pub(super) const REPEAT: Duration = Duration::from_millis(500);
/// How old an offer may be when its answer comes: the peer keeps off the slot for [`HOLD`] after it.
pub(super) const FRESH: Duration = Duration::from_secs(3);
/// How old the offer may be when the key is on disk.
pub(super) const WRITTEN: Duration = Duration::from_secs(10);
/// How long after an offer its answerer keeps off the slot at least: longer than [`WRITTEN`] and what it then takes to
/// bring the key into the engine.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// How long the beginner tries before it lets go.
pub(super) const TRY: Duration = Duration::from_secs(10);
/// How long either waits for a handshake with the new key.
pub(super) const PROVE: Duration = Duration::from_mins(1);

/// An exchange. While there is one its slot is avoided.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) slot: Slot,
    pub(super) epoch: u64,
    pub(super) since: Duration,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Beginner: waits until its own packets have left the slot.
    Leaving,
    /// Beginner: has offered.
    Offering { begun: Box<dyn Begun>, sent: Vec<(u32, Duration)>, next: Duration },
    /// Answerer: waits until its own packets have left the slot.
    Yielding { offer: Offer, heard: Duration },
    /// Answerer: has accepted, and keeps off the slot until it knows whether the beginner uses the key.
    Accepted(Box<Accepted>),
    /// Both: the new key is on its way to the disk.
    Persisting { held: Held, from: From },
    /// Beginner: uses the key, and says so until it is proven.
    Confirming { confirm: Tag, next: Duration },
    /// Answerer: uses the key.
    Proving,
}

#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) offer: Offer,
    pub(super) accept: Accept,
    pub(super) agreement: Agreement,
    pub(super) statics: Statics,
    /// Until when the beginner may take the key up without another word.
    pub(super) until: Duration,
    /// Whether the beginner has said that it uses the key.
    pub(super) confirmed: bool,
    /// The number from which a greeting's answer was written after [`Self::until`].
    pub(super) resolved_from: Option<u64>,
}

/// Where a key came from that is on its way to the disk.
#[derive(Debug)]
pub(super) enum From {
    /// Our offer, which was sent then; the tag tells the peer.
    Offer { sent: Duration, confirm: Tag },
    /// The peer's; what to go back to if the disk refuses.
    Peer(Box<Accepted>),
}

impl Exchange {
    /// The key that must be on disk before it is used.
    pub(super) const fn to_keep(&self) -> Option<&Held> {
        match &self.stage {
            Stage::Persisting { held, .. } => Some(held),
            _ => None,
        }
    }

    /// The key that is on disk now, to be used; an error if it is too late for that.
    pub(super) fn take_persisted(&mut self, now: Duration) -> Option<Result<Held, ()>> {
        let stage = std::mem::replace(&mut self.stage, Stage::Proving);
        match stage {
            Stage::Persisting { from: From::Offer { sent, .. }, .. } if now > sent + WRITTEN => Some(Err(())),
            Stage::Persisting { held, from: From::Offer { confirm, .. } } => {
                self.stage = Stage::Confirming { confirm, next: now };
                self.since = now;
                Some(Ok(held))
            }
            Stage::Persisting { held, from: From::Peer(_) } => {
                self.since = now;
                Some(Ok(held))
            }
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Goes back to before the write, if the beginner's next word can repeat it.
    pub(super) fn step_back(&mut self) -> bool {
        let stage = std::mem::replace(&mut self.stage, Stage::Proving);
        match stage {
            Stage::Persisting { from: From::Peer(accepted), .. } => {
                self.stage = Stage::Accepted(accepted);
                true
            }
            other => {
                self.stage = other;
                false
            }
        }
    }

    /// Whether either end may already use the key that this exchange is about.
    pub(super) const fn may_be_in_use(&self) -> bool {
        match self.stage {
            Stage::Leaving | Stage::Offering { .. } | Stage::Yielding { .. } => false,
            Stage::Accepted(_) | Stage::Persisting { .. } | Stage::Confirming { .. } | Stage::Proving => true,
        }
    }

    /// When time alone takes it further.
    pub(super) fn due(&self, slots: &PerSlot<SlotState>, terms: &Terms) -> Duration {
        let idle = slots.get(self.slot).idle_at(terms.linger);
        match &self.stage {
            Stage::Leaving => idle.unwrap_or(Duration::MAX).min(self.since + TRY),
            Stage::Offering { next, .. } => (*next).min(self.since + TRY),
            Stage::Yielding { heard, .. } => idle.unwrap_or(Duration::MAX).min(*heard + TRY),
            Stage::Accepted(accepted) if accepted.resolved_from.is_none() => accepted.until,
            Stage::Accepted(_) | Stage::Persisting { .. } => Duration::MAX,
            Stage::Confirming { next, .. } if slots.get(self.slot).applied => (*next).min(self.since + PROVE),
            Stage::Confirming { .. } | Stage::Proving => self.since + PROVE,
        }
    }
}
