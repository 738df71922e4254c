//! The preshared keys of one pair of nodes: the state machine's state, its answers, and how each input changes it.

use std::time::Duration;

use super::agreement::{Context, Statics};
use super::event::{Effect, Entry, Input, Mode, Note, SlotReport, Terms};
use super::exchange::{Exchange, Stage};
use super::message::{Hello, Message, Refusal};
use super::provider::PskProvider;
use super::slot::{Held, Quality, SlotState};
use crate::rotation::PeerId;
use crate::{PerSlot, PresharedId, PresharedKey, Slot};

/// How long a question that has no answer waits at most before it is asked again, where an answer can be expected.
const URGENT: Duration = Duration::from_secs(5);

/// What must be on disk of one slot of a pair.
#[derive(Debug, Default)]
pub struct Kept {
    /// The last epoch that a key came from. Never goes back while the pair exists.
    pub epoch: u64,
    /// The key, with the static keys that it is bound to.
    pub key: Option<(PresharedKey, Statics)>,
}

/// The preshared keys of this node and one peer. See the module's picture.
#[derive(Debug)]
pub struct Pairing {
    pub(super) terms: Terms,
    own: PeerId,
    peer: PeerId,
    pub(super) slots: PerSlot<SlotState>,
    pub(super) exchange: Option<Exchange>,
    /// The highest epoch that has been offered. Epochs count the exchanges of both slots, so that an offer that was
    /// overtaken by a later one is known as such whatever it is for.
    pub(super) newest: u64,
    tx: Option<Slot>,
    pub(super) drained: Option<Slot>,
    /// Whether the peer agrees on keys; none while it has said nothing.
    willing: Option<bool>,
    /// Number of the next greeting.
    number: u64,
    /// Number of the peer's last one.
    heard: u64,
    refused: Option<Refusal>,
    /// What the daemon was last asked to bring about.
    asked: Wishes,
    /// Spreads the renewal of keys, in thousandths of the interval.
    spread: u32,
}

/// What the shell brings about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wishes {
    preshared: PerSlot<Option<PresharedId>>,
    avoid: Option<Slot>,
    carries: PerSlot<bool>,
}

impl Pairing {
    /// Goes on from what is on disk. `chance` is a number that nobody can foretell.
    pub fn resume(
        terms: Terms,
        own: PeerId,
        peer: PeerId,
        kept: PerSlot<Kept>,
        chance: u64,
        now: Duration,
    ) -> Self {
        let newest = kept.a.epoch.max(kept.b.epoch);
        let slots = kept.map(|kept| SlotState::new(now, kept.epoch, kept.key));
        let mut pairing = Self {
            terms,
            own,
            peer,
            slots,
            exchange: None,
            newest,
            tx: None,
            drained: None,
            willing: None,
            number: (chance & !u64::from(u32::MAX)) | 1,
            heard: 0,
            refused: None,
            asked: Wishes::default(),
            spread: u32::try_from(chance % 200).unwrap_or_default(),
        };
        for slot in Slot::ALL {
            pairing.slots.get_mut(slot).hello.from = pairing.number;
        }
        pairing.asked = pairing.wishes(now);
        pairing
    }

    /// The preshared key that the engine of a slot must have with the peer.
    pub fn preshared(&self, slot: Slot) -> Option<PresharedId> {
        self.slots.get(slot).id()
    }

    /// The key of that name, if it is to be in an engine.
    pub fn key(&self, id: &PresharedId) -> Option<&PresharedKey> {
        let held = self.slots.iter().filter_map(|(_, state)| state.held.as_ref());
        held.into_iter().find(|held| held.id == *id).map(|held| &held.key)
    }

    /// The slot that pods' packets to the peer must not take: its key is about to change, or the other slot is better
    /// protected and works, or may work while nothing shows that this one does. Names a slot whose other one is being
    /// drained only if it does not work at all.
    pub fn avoid(&self, now: Duration) -> Option<Slot> {
        if let Some(exchange) = &self.exchange {
            return Some(exchange.slot);
        }
        let quality = self.qualities(now);
        let worse = |slot: Slot| {
            let must_do = self.drained == Some(slot.other()) && *quality.get(slot) > Quality::Differs;
            // If a slot with an unproven key worked, the questions over it would have proven the key: where the other one
            // is only slow to answer, nothing is gained here.
            let no_loss = *quality.get(slot) <= Quality::Unproven || self.answers(now, slot.other());
            !must_do && quality.get(slot) < quality.get(slot.other()) && no_loss
        };
        Slot::ALL.into_iter().find(|slot| worse(*slot))
    }

    /// Whether a handshake with the preshared key of a slot has been seen.
    pub fn proven(&self, slot: Slot) -> bool {
        self.slots.get(slot).proven.is_some()
    }

    /// Whether pods' packets may pass on a slot at all. With a key they may before this end has seen that it is proven:
    /// a peer is put into the device together with its key, so no session is made there without it, and the other end
    /// may have seen it first.
    pub fn carries(&self, slot: Slot) -> bool {
        self.terms.mode != Mode::Require || self.slots.get(slot).held.is_some()
    }

    /// Whether a rotation may count on a slot: it is as protected as it will be.
    pub fn protected(&self, slot: Slot, now: Duration) -> bool {
        match self.terms.mode {
            Mode::Off => true,
            Mode::Require => self.proven(slot),
            Mode::Prefer => {
                let waited = now >= self.slots.get(slot).statics_since + self.terms.patience;
                self.proven(slot) || self.willing != Some(true) || waited
            }
        }
    }

    /// What can be said of each slot.
    pub fn report(&self, now: Duration) -> PerSlot<SlotReport> {
        let offered = self.exchange.as_ref().map(|exchange| exchange.slot);
        PerSlot::from_fn(|slot| self.slots.get(slot).report(now, offered == Some(slot)))
    }

    /// Whether the peer agrees on keys; none while it has not said so.
    pub const fn willing(&self) -> Option<bool> {
        self.willing
    }

    /// Why the peer refused last, if nothing has been agreed on since.
    pub const fn refused(&self) -> Option<Refusal> {
        self.refused
    }

    /// What must be on disk. A second copy of each secret.
    pub fn kept(&self) -> PerSlot<Kept> {
        let next = self.exchange.as_ref().and_then(|exchange| Some((exchange.slot, exchange.to_keep()?)));
        PerSlot::from_fn(|slot| {
            let held = match &next {
                Some((of, held)) if *of == slot => Some(*held),
                _ => self.slots.get(slot).held.as_ref(),
            };
            let epoch = held.map_or(0, |held| held.epoch).max(self.slots.get(slot).epoch);
            Kept { epoch, key: held.map(|held| (held.key.duplicate(), held.statics)) }
        })
    }

    /// When [`Input::Tick`] is due, on the caller's clock, if nothing else happens before.
    pub fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        let greets = Slot::ALL.into_iter().filter(|slot| self.greets(*slot));
        let hello = greets.map(|slot| self.slots.get(slot).hello.next);
        let exchange = self.exchange.as_ref().map(|exchange| exchange.due(&self.slots, &self.terms));
        let begins = Slot::ALL.into_iter().filter_map(|slot| self.begins_at(now, slot));
        hello.chain(exchange).chain(begins).min()
    }

    /// Takes an input and says what to do about it.
    pub fn handle(&mut self, now: Duration, provider: &dyn PskProvider, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Tick => {}
            Input::Names { own, peer } => self.take_names(now, own, peer, &mut out),
            Input::Statics(statics) => self.take_statics(now, statics, &mut out),
            Input::Engine(entries) => self.take_engine(now, entries, &mut out),
            Input::Tx(tx) => self.take_tx(now, tx),
            Input::Drained(drained) => self.take_drained(now, drained, &mut out),
            Input::Heard { over, message } => self.hear(now, over, message, &mut out),
            Input::Persisted => self.take_disk(now, &mut out),
            Input::PersistFailed => self.disk_refused(now, &mut out),
        }
        self.greet(now, &mut out);
        self.give_up(now, &mut out);
        self.advance(now, provider, &mut out);
        let wishes = self.wishes(now);
        if wishes != self.asked {
            self.asked = wishes;
            out.push(Effect::Apply);
        }
        out
    }

    /// Whether this node makes the offers.
    pub(super) fn leads(&self) -> bool {
        self.own < self.peer
    }

    pub(super) fn context(&self, slot: Slot, epoch: u64) -> Option<Context> {
        let statics = self.slots.get(slot).statics.as_ref()?;
        Some(Context::new(&self.own, &self.peer, statics, slot, epoch))
    }

    fn wishes(&self, now: Duration) -> Wishes {
        Wishes {
            preshared: PerSlot::from_fn(|slot| self.preshared(slot)),
            avoid: self.avoid(now),
            carries: PerSlot::from_fn(|slot| self.carries(slot)),
        }
    }

    pub(super) fn qualities(&self, now: Duration) -> PerSlot<Quality> {
        PerSlot::from_fn(|slot| self.slots.get(slot).quality(now, self.answers(now, slot.other())))
    }

    /// Whether the peer answers over a slot.
    pub(super) fn answers(&self, now: Duration, slot: Slot) -> bool {
        let hello = &self.slots.get(slot).hello;
        hello.answered.is_some() && !hello.is_silent(now)
    }

    /// Keys are bound to static keys and stay; an exchange under way is bound to the names.
    fn take_names(&mut self, now: Duration, own: PeerId, peer: PeerId, out: &mut Vec<Effect>) {
        if (&self.own, &self.peer) != (&own, &peer) {
            self.cancel(now, out);
            (self.own, self.peer) = (own, peer);
        }
    }

    /// Whether a key that is held is bound to these static keys.
    pub fn is_bound_to(&self, statics: &PerSlot<Option<Statics>>) -> bool {
        Slot::ALL.into_iter().any(|slot| {
            let held = self.slots.get(slot).held.as_ref();
            held.is_some_and(|held| *statics.get(slot) == Some(held.statics))
        })
    }

    fn take_statics(&mut self, now: Duration, statics: PerSlot<Option<Statics>>, out: &mut Vec<Effect>) {
        for slot in Slot::ALL {
            let found = *statics.get(slot);
            let number = self.number;
            let state = self.slots.get_mut(slot);
            let bound = state.held.as_ref().map(|held| held.statics);
            let outlived = found.zip(bound).is_some_and(|(found, bound)| found != bound);
            if state.statics == found && !outlived {
                continue;
            }
            state.statics = found;
            state.statics_since = now;
            state.hello.anew(now, number);
            state.hello.answered = None;
            (state.differs, state.failures, state.not_before) = (false, 0, now);
            if outlived {
                out.push(Effect::Note(Note::Outlived(slot, state.epoch)));
                self.drop_key(slot, out);
            }
            if self.exchange.as_ref().is_some_and(|exchange| exchange.slot == slot) {
                self.cancel(now, out);
            }
        }
    }

    /// Lets a key go; the disk lets go of it too.
    fn drop_key(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let state = self.slots.get_mut(slot);
        state.held = None;
        state.proven = None;
        state.applied = false;
        out.push(Effect::Persist);
    }

    fn take_engine(&mut self, now: Duration, entries: PerSlot<Option<Entry>>, out: &mut Vec<Effect>) {
        for slot in Slot::ALL {
            let number = self.number;
            let state = self.slots.get_mut(slot);
            let (was_proven, was_applied) = (state.proven.is_some(), state.applied);
            if state.take_entry(now, *entries.get(slot)) {
                if let Some(held) = &state.held {
                    out.push(Effect::Note(Note::Proven(slot, held.epoch, held.id)));
                }
                self.refused = None;
            }
            let state = self.slots.get_mut(slot);
            // What the peer said before this is about another state of things.
            if was_proven != state.proven.is_some() || was_applied != state.applied {
                state.hello.anew(now, number);
            }
        }
    }

    fn take_tx(&mut self, now: Duration, tx: Option<Slot>) {
        self.tx = tx;
        for slot in Slot::ALL {
            let state = self.slots.get_mut(slot);
            if tx == Some(slot) {
                state.idle_since = None;
            } else {
                state.idle_since.get_or_insert(now);
            }
        }
    }

    fn hear(&mut self, now: Duration, over: Slot, message: Message, out: &mut Vec<Effect>) {
        match message {
            Message::Hello(hello) => self.hear_hello(now, over, &hello, out),
            Message::Offer(offer) => self.hear_offer(now, over, offer, out),
            Message::Accept(accept) => self.hear_accept(now, over, &accept, out),
            Message::Confirm { slot, epoch, tag } => self.hear_confirm(now, over, (slot, epoch), &tag, out),
            Message::Refuse { slot, epoch, why } => self.hear_refusal(now, (slot, epoch), why, out),
            Message::Cancel { slot, epoch } => self.hear_cancel(now, slot, epoch),
        }
    }

    fn hear_hello(&mut self, now: Duration, over: Slot, hello: &Hello, out: &mut Vec<Effect>) {
        self.willing = Some(hello.willing);
        if hello.answers.is_none() {
            let own = self.own_hello(Some(hello.number));
            out.push(Effect::Send { over, message: Message::Hello(own) });
        }
        // One that was overtaken says what no longer holds; one from before the peer's last start can't be told from one
        // after it, and the next one sets it right.
        let life = |number: u64| number >> 32;
        if life(hello.number) == life(self.heard) && hello.number < self.heard {
            return;
        }
        self.heard = hello.number;
        let Some(answers) = hello.answers else { return };
        let is_ours = |from: u64| answers >= from && answers < self.number;
        if is_ours(self.slots.get(over).hello.from) {
            let check = self.terms.check;
            let state = self.slots.get_mut(over);
            state.hello.answer(now, check);
            // There has been a handshake: the daemon need not wait until it looks by itself.
            if state.held.is_some() && state.proven.is_none() {
                out.push(Effect::Apply);
            }
        }
        for slot in Slot::ALL {
            let from = self.slots.get(slot).hello.from;
            if !(answers >= from && answers < self.number) {
                continue;
            }
            self.take_resolution(answers);
            let in_exchange = self.exchange.as_ref().is_some_and(|exchange| exchange.slot == slot);
            let state = self.slots.get_mut(slot);
            let differs = state.id() != *hello.held.get(slot);
            if differs && !state.differs && !in_exchange {
                out.push(Effect::Note(Note::Differs(slot)));
            }
            state.differs = differs;
        }
    }

    fn own_hello(&mut self, answers: Option<u64>) -> Hello {
        let number = self.number;
        self.number += 1;
        let held = PerSlot::from_fn(|slot| self.preshared(slot));
        Hello { number, answers, willing: self.terms.mode != Mode::Off, held }
    }

    /// Whether this node asks over a slot by itself.
    fn greets(&self, slot: Slot) -> bool {
        let holds = Slot::ALL.into_iter().any(|slot| self.slots.get(slot).held.is_some());
        self.slots.get(slot).statics.is_some() && (self.terms.mode != Mode::Off || holds)
    }

    fn greet(&mut self, now: Duration, out: &mut Vec<Effect>) {
        for slot in Slot::ALL {
            if self.greets(slot) && self.slots.get(slot).hello.next <= now {
                let message = Message::Hello(self.own_hello(None));
                out.push(Effect::Send { over: slot, message });
                // A peer that has never answered may not speak of preshared keys at all.
                let known = self.willing == Some(true) || self.slots.get(slot).held.is_some();
                let most = if known { URGENT.min(self.terms.check) } else { self.terms.check };
                self.slots.get_mut(slot).hello.ask(now, most);
            }
        }
    }

    /// Two nodes that hold different keys on both slots can't even say so: after a while both go back to no key on the
    /// same slot, over which they agree anew. Pods' packets take such a slot only if none is required.
    fn give_up(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let silent = |slot: Slot| {
            let since = self.slots.get(slot).hello.silent_since();
            since.is_some_and(|since| now >= since + self.terms.silence)
        };
        if self.slots.a.held.is_some() && self.slots.a.statics.is_some() && silent(Slot::A) && silent(Slot::B)
        {
            out.push(Effect::Note(Note::GivenUp(Slot::A, self.slots.a.epoch)));
            if self.exchange.as_ref().is_some_and(|exchange| exchange.slot == Slot::A) {
                self.exchange = None;
            }
            self.drop_key(Slot::A, out);
            self.suspect(now, Slot::A);
        }
    }

    fn take_disk(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(exchange) = &mut self.exchange else { return };
        let slot = exchange.slot;
        let Some(persisted) = exchange.take_persisted(now) else { return };
        let Ok(held) = persisted else {
            // It took so long that the peer may be back on the slot: the new key is not used.
            let epoch = self.exchange.take().map_or(0, |exchange| exchange.epoch);
            self.slots.get_mut(slot).back_off(now);
            out.push(Effect::Send { over: slot.other(), message: Message::Cancel { slot, epoch } });
            out.push(Effect::Persist);
            return;
        };
        out.push(Effect::Note(Note::Agreed(slot, held.epoch, held.id)));
        let number = self.number;
        let state = self.slots.get_mut(slot);
        state.epoch = held.epoch;
        (state.proven, state.applied, state.differs) = (None, false, false);
        state.held = Some(Held { since: now, ..held });
        state.hello.anew(now, number);
    }

    fn disk_refused(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(exchange) = &mut self.exchange else { return };
        if !matches!(exchange.stage, Stage::Persisting { .. }) {
            return;
        }
        out.push(Effect::Note(Note::NotKept(exchange.slot, exchange.epoch)));
        if !exchange.step_back() {
            self.put_off(now, out);
        }
    }

    /// Whether pods' packets are about to take this slot because the other one is being drained.
    pub(super) fn is_wanted(&self, slot: Slot) -> bool {
        self.drained == Some(slot.other()) && self.carries(slot)
    }

    pub(super) const fn refuse(&mut self, why: Refusal) {
        self.refused = Some(why);
    }

    /// The peer may have taken up another key on a slot: it is not used before a greeting says that it has not.
    pub(super) fn suspect(&mut self, now: Duration, slot: Slot) {
        let number = self.number;
        let state = self.slots.get_mut(slot);
        state.differs = true;
        state.hello.anew(now, number);
    }

    pub(super) const fn next_number(&self) -> u64 {
        self.number
    }

    /// The lower name's spread keeps pairs that began together from renewing together.
    pub(super) fn renews_at(&self, slot: Slot) -> Option<Duration> {
        let held = self.slots.get(slot).held.as_ref()?;
        if self.terms.interval.is_zero() {
            return Some(Duration::MAX);
        }
        Some(held.since + self.terms.interval * (900 + self.spread) / 1000)
    }

    /// The slot that pods' packets take.
    pub(super) const fn tx(&self) -> Option<Slot> {
        self.tx
    }
}
