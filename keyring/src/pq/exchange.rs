//! One exchange for one slot, and its stage.

use std::time::Duration;

use super::agreement::{Agreement, StaticKeys, Tag};
use super::event::PqSettings;
use super::message::{Accept, Offer};
use super::provider::PendingExchange;
use super::slot::{Held, SlotState};
use crate::PerSlot;
use crate::Slot;

/// How often an offer or a confirmation is resent.
pub(super) const RESEND_INTERVAL: Duration = Duration::from_millis(500);
/// How long the initiator waits after an exchange that failed.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after the peer, or something on the way to it, made an exchange fail: the pair is back soon after that
/// has ended.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// Longest pause after this node itself could not complete one, as when its disk is full.
pub(super) const LONGEST_OWN_PAUSE: Duration = Duration::from_secs(64);
/// How old an offer may be when its answer arrives: the peer does not use the slot for [`RESPONDER_HOLD`]
/// after it.
pub(super) const OFFER_LIFETIME: Duration = Duration::from_secs(3);
/// How old the offer may be when the key is on disk.
pub(super) const PERSIST_DEADLINE: Duration = Duration::from_secs(10);
/// How long after an offer the responder does not use the slot at least: longer than [`PERSIST_DEADLINE`] and
/// the time it then takes to set the key in the device.
pub(super) const RESPONDER_HOLD: Duration = Duration::from_secs(30);
/// How long the initiator tries before it aborts.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long either end waits for a handshake with the new key.
pub(super) const PROOF_TIMEOUT: Duration = Duration::from_mins(1);

/// An exchange. While it runs its slot is avoided.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) slot: Slot,
    pub(super) epoch: u64,
    pub(super) since: Duration,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Initiator: waits until its own packets have left the slot.
    WaitingToOffer,
    /// Initiator: has sent the offer.
    Offering { pending: Box<dyn PendingExchange>, sent: Vec<(u32, Duration)>, next: Duration },
    /// Responder: waits until its own packets have left the slot.
    WaitingToAccept { offer: Offer, received_at: Duration },
    /// Responder: has accepted, and does not use the slot until it knows whether the initiator uses the key.
    Accepted(Box<Accepted>),
    /// Both: the new key is being written to disk.
    Persisting { held: Held, from: Origin },
    /// Initiator: uses the key, and sends confirmations until it is proven.
    Confirming { confirm: Tag, next: Duration },
    /// Responder: uses the key.
    Proving,
}

#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) offer: Offer,
    pub(super) accept: Accept,
    pub(super) agreement: Agreement,
    pub(super) statics: StaticKeys,
    /// Until when the initiator may start to use the key without another message.
    pub(super) until: Duration,
    /// Whether the initiator has confirmed that it uses the key.
    pub(super) confirmed: bool,
    /// Hellos from this number on were sent after [`Self::until`]: their answers resolve the exchange.
    pub(super) resolved_from: Option<u64>,
}

/// The origin of a key that is being written to disk.
#[derive(Debug)]
pub(super) enum Origin {
    /// This node's offer, when it was sent, and the tag that confirms it.
    Offer { sent: Duration, confirm: Tag },
    /// The peer's offer; the stage to return to if the write fails.
    Peer(Box<Accepted>),
}

impl Exchange {
    /// The key that must be on disk before it is used.
    pub(super) const fn to_persist(&self) -> Option<&Held> {
        match &self.stage {
            Stage::Persisting { held, .. } => Some(held),
            _ => None,
        }
    }

    /// The key that is now on disk and to be used; an error if it is too late for that.
    pub(super) fn take_persisted(&mut self, now: Duration) -> Option<Result<Held, ()>> {
        let stage = std::mem::replace(&mut self.stage, Stage::Proving);
        match stage {
            Stage::Persisting { from: Origin::Offer { sent, .. }, .. } if now > sent + PERSIST_DEADLINE => {
                Some(Err(()))
            }
            Stage::Persisting { held, from: Origin::Offer { confirm, .. } } => {
                self.stage = Stage::Confirming { confirm, next: now };
                self.since = now;
                Some(Ok(held))
            }
            Stage::Persisting { held, from: Origin::Peer(_) } => {
                self.since = now;
                Some(Ok(held))
            }
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Returns to the stage before the write, if a repeated confirmation can restart it.
    pub(super) fn step_back(&mut self) -> bool {
        let stage = std::mem::replace(&mut self.stage, Stage::Proving);
        match stage {
            Stage::Persisting { from: Origin::Peer(accepted), .. } => {
                self.stage = Stage::Accepted(accepted);
                true
            }
            other => {
                self.stage = other;
                false
            }
        }
    }

    /// Whether either end may already use the key of this exchange.
    pub(super) const fn may_be_in_use(&self) -> bool {
        match self.stage {
            Stage::WaitingToOffer | Stage::Offering { .. } | Stage::WaitingToAccept { .. } => false,
            Stage::Accepted(_) | Stage::Persisting { .. } | Stage::Confirming { .. } | Stage::Proving => true,
        }
    }

    /// When it continues without further input.
    pub(super) fn due(&self, slots: &PerSlot<SlotState>, settings: &PqSettings) -> Duration {
        let idle = slots.get(self.slot).idle_at(settings.drain);
        match &self.stage {
            Stage::WaitingToOffer => idle.unwrap_or(Duration::MAX).min(self.since + ATTEMPT_TIMEOUT),
            Stage::Offering { next, .. } => (*next).min(self.since + ATTEMPT_TIMEOUT),
            Stage::WaitingToAccept { received_at, .. } => {
                idle.unwrap_or(Duration::MAX).min(*received_at + ATTEMPT_TIMEOUT)
            }
            Stage::Accepted(accepted) if accepted.resolved_from.is_none() => accepted.until,
            Stage::Accepted(_) | Stage::Persisting { .. } => Duration::MAX,
            Stage::Confirming { next, .. } if slots.get(self.slot).applied => {
                (*next).min(self.since + PROOF_TIMEOUT)
            }
            Stage::Confirming { .. } | Stage::Proving => self.since + PROOF_TIMEOUT,
        }
    }
}
