//! The end with the lower name: begins exchanges, offers, and confirms.

use std::time::Duration;

use super::agreement::same;
use super::event::{Effect, Mode, Note};
use super::exchange::{Exchange, FRESH, From, PROVE, REPEAT, Stage, TRY};
use super::message::{Accept, Message, Offer, Refusal};
use super::pairing::Pairing;
use super::provider::PskProvider;
use super::slot::{Held, Quality};
use crate::Slot;

impl Pairing {
    /// When an exchange for this slot may begin, if nothing but time is missing. It runs over the other slot, which must
    /// work and must not be the worse one: pods' packets take it meanwhile.
    pub(super) fn begins_at(&self, now: Duration, slot: Slot) -> Option<Duration> {
        let ready = self.leads()
            && self.exchange.is_none()
            && self.terms.mode != Mode::Off
            && self.willing() == Some(true)
            && self.drained != Some(slot.other())
            && self.slots.get(slot).statics.is_some()
            && self.answers(now, slot.other());
        let quality = self.qualities(now);
        let other = *quality.get(slot.other());
        if !ready || other < Quality::Plain || other < *quality.get(slot) {
            return None;
        }
        let state = self.slots.get(slot);
        match self.renews_at(slot) {
            Some(renewal) if !state.differs => Some(renewal.max(state.not_before)),
            _ => Some(state.not_before),
        }
    }

    /// Begins an exchange for the slot that needs one most: one that carries no packets comes first.
    fn begin(&mut self, now: Duration) {
        let due = Slot::ALL.into_iter().filter_map(|slot| {
            let at = self.begins_at(now, slot).filter(|at| *at <= now)?;
            Some((self.tx() == Some(slot), at, slot))
        });
        if let Some((_, _, slot)) = due.min() {
            self.newest = self.newest.saturating_add(1);
            self.exchange = Some(Exchange { slot, epoch: self.newest, since: now, stage: Stage::Leaving });
        }
    }

    /// Takes whatever step is due.
    pub(super) fn advance(&mut self, now: Duration, provider: &dyn PskProvider, out: &mut Vec<Effect>) {
        if self.exchange.is_none() {
            self.begin(now);
        }
        let Some(exchange) = &self.exchange else { return };
        let state = self.slots.get(exchange.slot);
        let idle = state.idle_at(self.terms.linger).is_some_and(|at| at <= now);
        let proven = state.proven.is_some();
        let since = exchange.since;
        match &exchange.stage {
            Stage::Leaving if idle => self.make_offer(now, provider, out),
            Stage::Leaving | Stage::Offering { .. } if now >= since + TRY => self.put_off(now, out),
            Stage::Offering { next, .. } if *next <= now => self.send_offer(now, out),
            Stage::Yielding { .. } if idle => self.accept(now, provider, out),
            Stage::Yielding { heard, .. } if now >= *heard + TRY => self.exchange = None,
            Stage::Accepted(accepted) if now >= accepted.until => self.resolve(now),
            Stage::Confirming { .. } | Stage::Proving if proven => self.exchange = None,
            Stage::Confirming { .. } | Stage::Proving if now >= since + PROVE => self.put_off(now, out),
            Stage::Confirming { next, .. } if state.applied && *next <= now => self.send_confirm(now, out),
            _ => {}
        }
    }

    fn make_offer(&mut self, now: Duration, provider: &dyn PskProvider, out: &mut Vec<Effect>) {
        let Some(exchange) = &mut self.exchange else { return };
        match provider.begin() {
            Ok(begun) => {
                exchange.since = now;
                exchange.stage = Stage::Offering { begun, sent: Vec::new(), next: now };
                self.send_offer(now, out);
            }
            Err(error) => {
                out.push(Effect::Note(Note::Failed(exchange.slot, error)));
                self.put_off(now, out);
            }
        }
    }

    fn send_offer(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some((slot, epoch)) = self.exchange.as_ref().map(|exchange| (exchange.slot, exchange.epoch))
        else {
            return;
        };
        let Some(context) = self.context(slot, epoch) else { return };
        let Some(Exchange { stage: Stage::Offering { begun, sent, next }, .. }) = &mut self.exchange else {
            return;
        };
        let attempt = u32::try_from(sent.len()).unwrap_or(u32::MAX);
        sent.push((attempt, now));
        *next = now + REPEAT;
        let material = begun.material().to_vec();
        let offer = Offer { slot, epoch, attempt, context: context.digest(), material };
        out.push(Effect::Send { over: slot.other(), message: Message::Offer(offer) });
    }

    /// The peer has the key. Whether it is ours too shows its tag.
    pub(super) fn hear_accept(&mut self, now: Duration, over: Slot, accept: &Accept, out: &mut Vec<Effect>) {
        let (slot, epoch) = (accept.slot, accept.epoch);
        if !self.leads() || over == slot {
            return;
        }
        let current =
            self.exchange.as_ref().filter(|exchange| (exchange.slot, exchange.epoch) == (slot, epoch));
        let Some(Exchange { stage: Stage::Offering { begun, sent, .. }, .. }) = current else {
            // An offer that was taken back; if its key is in use the peer hears so again by itself.
            if current.is_none() && self.slots.get(slot).epoch < epoch {
                out.push(Effect::Send { over, message: Message::Cancel { slot, epoch } });
            }
            return;
        };
        let sent = sent.iter().find(|(attempt, _)| *attempt == accept.attempt).map(|(_, at)| *at);
        let Some(sent) = sent.filter(|sent| now <= *sent + FRESH) else { return };
        let idle = self.slots.get(slot).idle_at(self.terms.linger).is_some_and(|at| at <= now);
        let statics = self.slots.get(slot).statics;
        let Some((context, statics)) = self.context(slot, epoch).zip(statics).filter(|_| idle) else {
            return;
        };
        let agreement = begun
            .finish(&accept.material)
            .map(|secret| context.agree(&secret, begun.material(), &accept.material));
        match agreement {
            Ok(Ok(agreement)) if same(&agreement.accept, &accept.tag) => {
                let id = agreement.key.id();
                let held = Held { key: agreement.key, id, epoch, statics, since: now };
                let from = From::Offer { sent, confirm: agreement.confirm };
                self.keep(Stage::Persisting { held, from }, out);
            }
            Ok(_) | Err(_) => {
                out.push(Effect::Note(Note::Forged(slot, epoch)));
                self.refuse(Refusal::Changed);
                self.put_off(now, out);
            }
        }
    }

    pub(super) fn keep(&mut self, stage: Stage, out: &mut Vec<Effect>) {
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
        *next = now + REPEAT;
        let message = Message::Confirm { slot: *slot, epoch: *epoch, tag: *confirm };
        out.push(Effect::Send { over: slot.other(), message });
    }

    pub(super) fn hear_refusal(
        &mut self,
        now: Duration,
        (slot, epoch): (Slot, u64),
        why: Refusal,
        out: &mut Vec<Effect>,
    ) {
        let current =
            self.exchange.as_ref().filter(|exchange| (exchange.slot, exchange.epoch) == (slot, epoch));
        let Some(exchange) = current.filter(|_| self.leads()) else { return };
        let confirming = matches!(exchange.stage, Stage::Confirming { .. });
        if !confirming && exchange.may_be_in_use() {
            return;
        }
        out.push(Effect::Note(Note::Refused(slot, epoch, why)));
        self.refuse(why);
        if confirming {
            if matches!(why, Refusal::Unknown | Refusal::Changed) {
                // We use a key that the peer has not: the slot is of no use until there is another one.
                self.exchange = None;
                self.suspect(now, slot);
                self.slots.get_mut(slot).back_off(now);
            }
            return;
        }
        self.exchange = None;
        let state = self.slots.get_mut(slot);
        match why {
            Refusal::Stale { epoch } => {
                self.newest = self.newest.max(epoch);
                state.not_before = now;
            }
            // The peer hears of the change as soon as it looks.
            Refusal::Keys | Refusal::Busy => state.not_before = now + REPEAT,
            Refusal::Off | Refusal::Unknown | Refusal::Changed => state.back_off(now),
        }
    }

    /// Lets an exchange go and tries again later.
    pub(super) fn put_off(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if let Some(slot) = self.exchange.as_ref().map(|exchange| exchange.slot) {
            self.slots.get_mut(slot).back_off(now);
            self.cancel(now, out);
        }
    }

    /// Lets an exchange go. The peer is told so if it might wait for us, unless the key is in use here.
    pub(super) fn cancel(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(exchange) = self.exchange.take() else { return };
        let (slot, epoch, over) = (exchange.slot, exchange.epoch, exchange.slot.other());
        match exchange.stage {
            Stage::Offering { .. } => {
                out.push(Effect::Send { over, message: Message::Cancel { slot, epoch } });
            }
            Stage::Persisting { from, .. } => {
                if matches!(from, From::Offer { .. }) {
                    out.push(Effect::Send { over, message: Message::Cancel { slot, epoch } });
                }
                // The disk may have it already.
                out.push(Effect::Persist);
            }
            Stage::Yielding { .. } => {
                let message = Message::Refuse { slot, epoch, why: Refusal::Busy };
                out.push(Effect::Send { over, message });
            }
            Stage::Leaving => {}
            // The other end may use the new key, or may not.
            Stage::Accepted(_) | Stage::Confirming { .. } | Stage::Proving => self.suspect(now, slot),
        }
    }

    /// A slot is drained. An exchange that has changed nothing yet makes room for that; any other one is soon over, and
    /// until then its slot is not used.
    pub(super) fn take_drained(&mut self, now: Duration, drained: Option<Slot>, out: &mut Vec<Effect>) {
        self.drained = drained;
        let gives_way = self
            .exchange
            .as_ref()
            .is_some_and(|exchange| drained == Some(exchange.slot.other()) && !exchange.may_be_in_use());
        if gives_way {
            let slot = self.exchange.as_ref().map(|exchange| exchange.slot);
            self.cancel(now, out);
            if let Some(slot) = slot {
                self.slots.get_mut(slot).not_before = now;
            }
        }
    }
}
