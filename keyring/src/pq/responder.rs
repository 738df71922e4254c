//! The end with the higher UID: answers offers, and does not use a slot until it knows their outcome.

use std::time::Duration;

use super::agreement::{Tag, same};
use super::event::{Effect, Mode, Note};
use super::exchange::{Accepted, Exchange, Origin, RESPONDER_HOLD, Stage};
use super::message::{Accept, Message, Offer, Refusal};
use super::pairing::Pairing;
use super::provider::PskProvider;
use super::slot::{Held, Quality};
use crate::{PresharedKey, Slot};

impl Pairing {
    pub(super) fn on_offer(&mut self, now: Duration, over: Slot, offer: Offer, out: &mut Vec<Effect>) {
        let (slot, epoch) = (offer.slot, offer.epoch);
        // An offer arrives over the slot that works; over its own slot it could not be answered once the key
        // has changed.
        if self.is_initiator() || over == slot {
            return;
        }
        if let Some(why) = self.refusal(now, &offer) {
            let message = Message::Refuse { slot, epoch, why };
            out.push(Effect::Send { over, message });
            return;
        }
        if epoch == self.epochs.newest() {
            self.on_repeated_offer(now, over, offer, out);
            return;
        }
        // The initiator runs one exchange at a time: it has abandoned any previous one.
        self.cancel(now, out);
        self.epochs.accept(epoch);
        self.exchange = Some(Exchange {
            slot,
            epoch,
            since: now,
            stage: Stage::WaitingToAccept { offer, received_at: now },
        });
    }

    /// A repeated offer: the answer may have been lost.
    fn on_repeated_offer(&mut self, now: Duration, over: Slot, offer: Offer, out: &mut Vec<Effect>) {
        match self.exchange.as_mut().map(|exchange| &mut exchange.stage) {
            Some(Stage::WaitingToAccept { offer: known, received_at })
                if known.material == offer.material =>
            {
                *known = offer;
                *received_at = now;
            }
            Some(Stage::Accepted(accepted)) if accepted.offer.material == offer.material => {
                accepted.accept.attempt = offer.attempt;
                accepted.until = accepted.until.max(now + RESPONDER_HOLD);
                accepted.resolved_from = None;
                let message = Message::Accept(accepted.accept.clone());
                out.push(Effect::Send { over, message });
            }
            _ => {}
        }
    }

    fn refusal(&self, now: Duration, offer: &Offer) -> Option<Refusal> {
        let (slot, epoch) = (offer.slot, offer.epoch);
        let current =
            self.exchange.as_ref().is_some_and(|exchange| (exchange.slot, exchange.epoch) == (slot, epoch));
        // Pod traffic is about to move to the other slot.
        let quality = self.qualities(now);
        let unprotected =
            *quality.get(slot) == Quality::Proven && *quality.get(slot.other()) != Quality::Proven;
        if self.settings.mode == Mode::Off {
            Some(Refusal::Off)
        } else if self.context(slot, epoch).is_none_or(|context| context.digest() != offer.context) {
            Some(Refusal::Keys)
        } else if !current && !self.epochs.is_next(epoch) {
            Some(Refusal::Stale { epoch: self.epochs.newest() })
        } else if !current && (unprotected || self.is_wanted(slot)) {
            Some(Refusal::Busy)
        } else {
            None
        }
    }

    /// This node's packets have left the slot: computes the answer.
    pub(super) fn accept(&mut self, now: Duration, provider: &dyn PskProvider, out: &mut Vec<Effect>) {
        let Some(Exchange { slot, epoch, stage, .. }) = self.exchange.take() else { return };
        let Stage::WaitingToAccept { offer, .. } = stage else { return };
        let statics = self.slots.get(slot).statics;
        let Some((context, statics)) = self.context(slot, epoch).zip(statics) else { return };
        let answer = provider.answer(&offer.material);
        let agreed = answer.map(|(material, secret)| {
            let agreement = context.agree(&secret, &offer.material, &material);
            agreement.map(|agreement| (material, agreement))
        });
        let Ok(Ok((material, agreement))) = agreed else {
            if let Err(error) = agreed {
                out.push(Effect::Note(Note::Failed(slot, error)));
            }
            let message = Message::Refuse { slot, epoch, why: Refusal::Changed };
            out.push(Effect::Send { over: slot.other(), message });
            return;
        };
        let accept = Accept { slot, epoch, attempt: offer.attempt, material, tag: agreement.accept };
        out.push(Effect::Send { over: slot.other(), message: Message::Accept(accept.clone()) });
        let accepted = Accepted {
            offer,
            accept,
            agreement,
            statics,
            until: now + RESPONDER_HOLD,
            confirmed: false,
            resolved_from: None,
        };
        let stage = Stage::Accepted(Box::new(accepted));
        self.exchange = Some(Exchange { slot, epoch, since: now, stage });
    }

    /// The initiator uses the key. So does this end, once the key is on disk.
    pub(super) fn on_confirm(
        &mut self,
        now: Duration,
        over: Slot,
        (slot, epoch): (Slot, u64),
        tag: &Tag,
        out: &mut Vec<Effect>,
    ) {
        if self.is_initiator() || over == slot || self.slots.get(slot).epoch == epoch {
            return;
        }
        let current =
            self.exchange.as_mut().filter(|exchange| (exchange.slot, exchange.epoch) == (slot, epoch));
        let refuse = |why| Effect::Send { over, message: Message::Refuse { slot, epoch, why } };
        let Some(exchange) = current else {
            out.push(refuse(Refusal::Unknown));
            return;
        };
        let stage = std::mem::replace(&mut exchange.stage, Stage::Proving);
        match stage {
            Stage::Accepted(mut accepted) if same(&accepted.agreement.confirm, tag) => {
                // Even if the write fails: the initiator uses the new key.
                accepted.confirmed = true;
                accepted.until = Duration::MAX;
                let key: PresharedKey = accepted.agreement.key.duplicate();
                let held = Held { id: key.id(), key, epoch, statics: accepted.statics, since: now };
                self.persist(Stage::Persisting { held, from: Origin::Peer(accepted) }, out);
            }
            Stage::Accepted(accepted) => {
                exchange.stage = Stage::Accepted(accepted);
                out.extend([Effect::Note(Note::ConfirmationFailed(slot, epoch)), refuse(Refusal::Changed)]);
            }
            other => exchange.stage = other,
        }
    }

    /// The initiator cancels its offer.
    pub(super) fn on_cancel(&mut self, now: Duration, slot: Slot, epoch: u64) {
        let taken_back = self.exchange.as_ref().is_some_and(|exchange| {
            let same = (exchange.slot, exchange.epoch) == (slot, epoch);
            let open = match &exchange.stage {
                Stage::WaitingToAccept { .. } => true,
                Stage::Accepted(accepted) => !accepted.confirmed,
                _ => false,
            };
            same && open
        });
        if taken_back && !self.is_initiator() {
            self.exchange = None;
            let number = self.next_number();
            self.slots.get_mut(slot).hello.restart(now, number);
        }
    }

    /// The initiator has been silent for so long that it either uses the key by now or never will: its next
    /// hello shows which.
    pub(super) fn resolve(&mut self, now: Duration) {
        let number = self.next_number();
        if let Some(Exchange { stage: Stage::Accepted(accepted), .. }) = &mut self.exchange
            && accepted.resolved_from.is_none()
        {
            accepted.resolved_from = Some(number);
            for slot in Slot::ALL {
                self.slots.get_mut(slot).hello.restart(now, number);
            }
        }
    }

    /// The initiator has reported its state, in a hello that was sent after `answers`.
    pub(super) fn take_resolution(&mut self, answers: u64) {
        if let Some(Exchange { stage: Stage::Accepted(accepted), .. }) = &self.exchange
            && accepted.resolved_from.is_some_and(|from| answers >= from)
        {
            self.exchange = None;
        }
    }
}
