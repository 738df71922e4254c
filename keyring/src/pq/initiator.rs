//! The end with the lower UID: starts exchanges, offers, and confirms.

use std::time::Duration;

use super::agreement::same;
use super::event::{Effect, Mode, Note};
use super::exchange::{
    ATTEMPT_TIMEOUT, Exchange, FIRST_PAUSE, LONGEST_OWN_PAUSE, LONGEST_PAUSE, OFFER_LIFETIME, Origin,
    PROOF_TIMEOUT, RESEND_INTERVAL, Stage,
};
use super::message::{Accept, Message, Offer, Refusal};
use super::pairing::Pairing;
use super::provider::PskProvider;
use super::slot::{Held, Quality};
use crate::Slot;

impl Pairing {
    /// Sets the age at which keys are renewed from now on; zero: only with a static key.
    pub const fn set_interval(&mut self, interval: Duration) {
        self.settings.interval = interval;
    }

    /// Whether the next input begins a scheduled renewal that was not put off yet. First agreements, and those after a static
    /// key was replaced or the peer has lost a key, are none.
    pub fn renewal_is_due(&self, now: Duration) -> bool {
        let due = |slot: Slot| {
            let scheduled = self.slots.get(slot).held.is_some() && !self.slots.get(slot).differs;
            scheduled && self.begins_at(now, slot).is_some_and(|at| at <= now)
        };
        self.renewal_from.is_none() && Slot::ALL.into_iter().any(due)
    }

    /// Puts off the next scheduled renewal until a time, at which it needs no further leave.
    pub const fn put_off_renewal(&mut self, until: Duration) {
        self.renewal_from = Some(until);
    }

    /// When an exchange for this slot may start, if nothing but time is missing. It runs over the other slot,
    /// which must work and must not be the worse one: pod traffic takes it meanwhile.
    pub(super) fn begins_at(&self, now: Duration, slot: Slot) -> Option<Duration> {
        let ready = self.is_initiator()
            && self.exchange.is_none()
            && self.settings.mode != Mode::Off
            && self.willing() == Some(true)
            && !self.is_wanted(slot)
            && self.slots.get(slot).statics.is_some()
            && self.answers(now, slot.other());
        let quality = self.qualities(now);
        let other = *quality.get(slot.other());
        if !ready || other < Quality::Plain || other < *quality.get(slot) {
            return None;
        }
        let state = self.slots.get(slot);
        match self.renews_at(slot) {
            Some(renewal) if !state.differs => {
                Some(renewal.max(state.not_before).max(self.renewal_from.unwrap_or_default()))
            }
            _ => Some(state.not_before),
        }
    }

    /// Starts an exchange for the slot that needs it most; a slot that carries no traffic comes first.
    fn begin(&mut self, now: Duration) {
        let due = Slot::ALL.into_iter().filter_map(|slot| {
            let at = self.begins_at(now, slot).filter(|at| *at <= now)?;
            Some((self.tx() == Some(slot), at, slot))
        });
        if let Some((_, _, slot)) = due.min() {
            let epoch = self.epochs.next();
            if self.slots.get(slot).held.is_some() {
                self.renewal_from = None;
            }
            self.exchange = Some(Exchange { slot, epoch, since: now, stage: Stage::WaitingToOffer });
        }
    }

    /// Takes the step that is due.
    pub(super) fn advance(&mut self, now: Duration, provider: &dyn PskProvider, out: &mut Vec<Effect>) {
        if self.exchange.is_none() {
            self.begin(now);
        }
        let Some(exchange) = &self.exchange else { return };
        let state = self.slots.get(exchange.slot);
        let idle = state.idle_at(self.settings.drain).is_some_and(|at| at <= now);
        let proven = state.proven.is_some();
        let since = exchange.since;
        match &exchange.stage {
            Stage::WaitingToOffer if idle => self.make_offer(now, provider, out),
            Stage::WaitingToOffer | Stage::Offering { .. } if now >= since + ATTEMPT_TIMEOUT => {
                self.postpone(now, LONGEST_PAUSE, out);
            }
            Stage::Offering { next, .. } if *next <= now => self.send_offer(now, out),
            Stage::WaitingToAccept { .. } if idle => self.accept(now, provider, out),
            Stage::WaitingToAccept { received_at, .. } if now >= *received_at + ATTEMPT_TIMEOUT => {
                self.exchange = None;
            }
            Stage::Accepted(accepted) if now >= accepted.until => self.resolve(now),
            Stage::Confirming { .. } | Stage::Proving if proven => self.exchange = None,
            Stage::Confirming { .. } | Stage::Proving if now >= since + PROOF_TIMEOUT => {
                self.postpone(now, LONGEST_PAUSE, out);
            }
            Stage::Confirming { next, .. } if state.applied && *next <= now => self.send_confirm(now, out),
            _ => {}
        }
    }

    fn make_offer(&mut self, now: Duration, provider: &dyn PskProvider, out: &mut Vec<Effect>) {
        let Some(exchange) = &mut self.exchange else { return };
        match provider.begin() {
            Ok(pending) => {
                exchange.since = now;
                exchange.stage = Stage::Offering { pending, sent: Vec::new(), next: now };
                self.send_offer(now, out);
            }
            Err(error) => {
                out.push(Effect::Note(Note::Failed(exchange.slot, error)));
                self.postpone(now, LONGEST_OWN_PAUSE, out);
            }
        }
    }

    fn send_offer(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some((slot, epoch)) = self.exchange.as_ref().map(|exchange| (exchange.slot, exchange.epoch))
        else {
            return;
        };
        let Some(context) = self.context(slot, epoch) else { return };
        let Some(Exchange { stage: Stage::Offering { pending, sent, next }, .. }) = &mut self.exchange else {
            return;
        };
        let attempt = u32::try_from(sent.len()).unwrap_or(u32::MAX);
        sent.push((attempt, now));
        *next = now + RESEND_INTERVAL;
        let material = pending.material().to_vec();
        let offer = Offer { slot, epoch, attempt, context: context.digest(), material };
        out.push(Effect::Send { over: slot.other(), message: Message::Offer(offer) });
    }

    /// The peer has a key; its tag shows whether it is the same.
    pub(super) fn on_accept(&mut self, now: Duration, over: Slot, accept: &Accept, out: &mut Vec<Effect>) {
        let (slot, epoch) = (accept.slot, accept.epoch);
        if !self.is_initiator() || over == slot {
            return;
        }
        let current =
            self.exchange.as_ref().filter(|exchange| (exchange.slot, exchange.epoch) == (slot, epoch));
        let Some(Exchange { stage: Stage::Offering { pending, sent, .. }, .. }) = current else {
            // An offer that was cancelled; if its key is in use the peer is sent confirmations anyway.
            if current.is_none() && self.slots.get(slot).epoch != epoch {
                out.push(Effect::Send { over, message: Message::Cancel { slot, epoch } });
            }
            return;
        };
        let sent = sent.iter().find(|(attempt, _)| *attempt == accept.attempt).map(|(_, at)| *at);
        let Some(sent) = sent.filter(|sent| now <= *sent + OFFER_LIFETIME) else { return };
        let idle = self.slots.get(slot).idle_at(self.settings.drain).is_some_and(|at| at <= now);
        let statics = self.slots.get(slot).statics;
        let Some((context, statics)) = self.context(slot, epoch).zip(statics).filter(|_| idle) else {
            return;
        };
        let agreement = pending
            .finish(&accept.material)
            .map(|secret| context.agree(&secret, pending.material(), &accept.material));
        match agreement {
            Ok(Ok(agreement)) if same(&agreement.accept, &accept.tag) => {
                let id = agreement.key.id();
                let held = Held { key: agreement.key, id, epoch, statics, since: now };
                let from = Origin::Offer { sent, confirm: agreement.confirm };
                self.persist(Stage::Persisting { held, from }, out);
            }
            Ok(_) | Err(_) => {
                out.push(Effect::Note(Note::ConfirmationFailed(slot, epoch)));
                self.record_refusal(Refusal::Changed);
                self.postpone(now, LONGEST_PAUSE, out);
            }
        }
    }

    pub(super) fn persist(&mut self, stage: Stage, out: &mut Vec<Effect>) {
        if let Some(exchange) = &mut self.exchange {
            exchange.stage = stage;
            out.push(Effect::Persist);
        }
    }

    fn send_confirm(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(Exchange { slot, epoch, stage: Stage::Confirming { confirm, next }, .. }) =
            &mut self.exchange
        else {
            return;
        };
        *next = now + RESEND_INTERVAL;
        let message = Message::Confirm { slot: *slot, epoch: *epoch, tag: *confirm };
        out.push(Effect::Send { over: slot.other(), message });
    }

    pub(super) fn on_refusal(
        &mut self,
        now: Duration,
        (slot, epoch): (Slot, u64),
        why: Refusal,
        out: &mut Vec<Effect>,
    ) {
        let current =
            self.exchange.as_ref().filter(|exchange| (exchange.slot, exchange.epoch) == (slot, epoch));
        let Some(exchange) = current.filter(|_| self.is_initiator()) else { return };
        let confirming = matches!(exchange.stage, Stage::Confirming { .. });
        if !confirming && exchange.may_be_in_use() {
            return;
        }
        out.push(Effect::Note(Note::Refused(slot, epoch, why)));
        self.record_refusal(why);
        if confirming {
            if matches!(why, Refusal::Unknown | Refusal::Changed) {
                // This node uses a key that the peer does not have: the slot is unusable until there is
                // another one.
                self.exchange = None;
                self.mark_differing(now, slot);
                self.slots.get_mut(slot).back_off(now, FIRST_PAUSE, LONGEST_PAUSE);
            }
            return;
        }
        self.exchange = None;
        let first = match why {
            Refusal::Stale { epoch } => {
                self.follow(epoch);
                RESEND_INTERVAL
            }
            // The peer learns of the change at its next turn.
            Refusal::Keys | Refusal::Busy => RESEND_INTERVAL,
            Refusal::Off | Refusal::Unknown | Refusal::Changed => FIRST_PAUSE,
        };
        self.slots.get_mut(slot).back_off(now, first, LONGEST_PAUSE);
    }

    /// Follows the responder's epoch, if it may be the right one.
    fn follow(&mut self, epoch: u64) {
        if self.epochs.follow(epoch) {
            // Only the numbers: keys in use stay in use.
            for slot in Slot::ALL {
                let state = self.slots.get_mut(slot);
                state.epoch = state.epoch.min(epoch);
                if let Some(held) = &mut state.held {
                    held.epoch = held.epoch.min(epoch);
                }
            }
        }
    }

    /// Aborts an exchange and tries again later.
    pub(super) fn postpone(&mut self, now: Duration, longest: Duration, out: &mut Vec<Effect>) {
        if let Some(slot) = self.exchange.as_ref().map(|exchange| exchange.slot) {
            self.slots.get_mut(slot).back_off(now, FIRST_PAUSE, longest);
            self.cancel(now, out);
        }
    }

    /// Aborts an exchange. The peer is informed if it may be waiting, unless the key is in use here.
    pub(super) fn cancel(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(exchange) = self.exchange.take() else { return };
        let (slot, epoch, over) = (exchange.slot, exchange.epoch, exchange.slot.other());
        match exchange.stage {
            Stage::Offering { .. } => {
                out.push(Effect::Send { over, message: Message::Cancel { slot, epoch } });
            }
            Stage::Persisting { from, .. } => {
                if matches!(from, Origin::Offer { .. }) {
                    out.push(Effect::Send { over, message: Message::Cancel { slot, epoch } });
                }
                // It may already be on disk.
                out.push(Effect::Persist);
            }
            Stage::WaitingToAccept { .. } => {
                let message = Message::Refuse { slot, epoch, why: Refusal::Busy };
                out.push(Effect::Send { over, message });
            }
            Stage::WaitingToOffer => {}
            // The other end may or may not use the new key.
            Stage::Accepted(_) | Stage::Confirming { .. } | Stage::Proving => self.mark_differing(now, slot),
        }
    }

    /// A slot is drained. An exchange that has changed nothing yet is cancelled for that; any other one
    /// completes soon, and until then its slot is not used.
    pub(super) fn on_drained(&mut self, now: Duration, drained: Option<Slot>, out: &mut Vec<Effect>) {
        self.drained = drained;
        let gives_way = self
            .exchange
            .as_ref()
            .is_some_and(|exchange| self.is_wanted(exchange.slot) && !exchange.may_be_in_use());
        if gives_way {
            let slot = self.exchange.as_ref().map(|exchange| exchange.slot);
            self.cancel(now, out);
            if let Some(slot) = slot {
                self.slots.get_mut(slot).not_before = now;
            }
        }
    }
}
