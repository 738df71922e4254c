//! The preshared keys of one pair of nodes: the state machine's state, its results, and how each input
//! changes it.

use std::time::Duration;

use super::agreement::{Context, StaticKeys};
use super::epoch::{self, Epochs};
use super::event::{Effect, Entry, Input, Mode, Note, PqSettings, SlotReport};
use super::exchange::{Exchange, FIRST_PAUSE, LONGEST_OWN_PAUSE, Stage};
use super::message::{Hello, Message, Refusal};
use super::provider::PskProvider;
use super::slot::{Held, Quality, SlotState};
use crate::rotation::PeerId;
use crate::{PerSlot, PresharedId, PresharedKey, Slot};

/// Longest retry interval of a hello where an answer can be expected.
const MAX_RETRY: Duration = Duration::from_secs(5);

/// What must be on disk for one slot of a pair.
#[derive(Debug, Default)]
pub struct StoredPreshared {
    /// The epoch of the last key.
    pub epoch: u64,
    /// The key, with the static keys that it is bound to.
    pub key: Option<(PresharedKey, StaticKeys)>,
}

/// The preshared keys of this node and one peer. See the diagram in the module's documentation.
#[derive(Debug)]
pub struct Pairing {
    pub(super) settings: PqSettings,
    own: PeerId,
    peer: PeerId,
    pub(super) slots: PerSlot<SlotState>,
    pub(super) exchange: Option<Exchange>,
    /// The last epoch that was offered. Epochs count the exchanges of both slots, so that an offer that was
    /// superseded is recognized whatever slot it is for.
    pub(super) epochs: Epochs,
    tx: Option<Slot>,
    pub(super) drained: Option<Slot>,
    /// Whether the peer uses preshared keys; none while that is unknown.
    willing: Option<bool>,
    /// Number of the next hello.
    number: u64,
    /// Number of the peer's last hello.
    last_peer_hello: u64,
    refused: Option<Refusal>,
    /// The results at the last [`Effect::Apply`].
    last_desired: Desired,
    /// Spreads the renewal of keys over time, in thousandths of the interval.
    renewal_jitter: u32,
    /// When the next scheduled renewal may begin, if the caller has put it off.
    pub(super) renewal_from: Option<Duration>,
}

/// The results that the caller must apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Desired {
    preshared: PerSlot<Option<PresharedId>>,
    avoid: Option<Slot>,
    carries: PerSlot<bool>,
}

impl Pairing {
    /// Continues from what is on disk. `jitter_seed` is an unpredictable number.
    pub fn resume(
        settings: PqSettings,
        own: PeerId,
        peer: PeerId,
        kept: PerSlot<StoredPreshared>,
        jitter_seed: u64,
        now: Duration,
    ) -> Self {
        let slots = kept.map(|kept| SlotState::new(now, epoch::restored(kept.epoch), kept.key));
        let newest = slots.a.epoch.max(slots.b.epoch);
        let mut pairing = Self {
            settings,
            own,
            peer,
            slots,
            exchange: None,
            epochs: Epochs::new(newest),
            tx: None,
            drained: None,
            willing: None,
            number: (jitter_seed & !u64::from(u32::MAX)) | 1,
            last_peer_hello: 0,
            refused: None,
            last_desired: Desired::default(),
            renewal_jitter: u32::try_from(jitter_seed % 200).unwrap_or_default(),
            renewal_from: None,
        };
        for slot in Slot::ALL {
            pairing.slots.get_mut(slot).hello.from = pairing.number;
        }
        pairing.last_desired = pairing.desired(now);
        pairing
    }

    /// The preshared key that the device of a slot must have for the peer.
    pub fn preshared(&self, slot: Slot) -> Option<PresharedId> {
        self.slots.get(slot).id()
    }

    /// The key with that ID, if it is in use.
    pub fn key(&self, id: &PresharedId) -> Option<&PresharedKey> {
        let held = self.slots.iter().filter_map(|(_, state)| state.held.as_ref());
        held.into_iter().find(|held| held.id == *id).map(|held| &held.key)
    }

    /// The slot that must not carry pod traffic to the peer: its key is about to change, or the other slot is
    /// better protected and works, or may work while nothing shows that this one does. If the other slot is
    /// being drained, a slot is returned only if it does not work at all.
    pub fn avoid(&self, now: Duration) -> Option<Slot> {
        if let Some(exchange) = &self.exchange {
            return Some(exchange.slot);
        }
        let quality = self.qualities(now);
        let worse = |slot: Slot| {
            let must_do = self.drained == Some(slot.other()) && *quality.get(slot) > Quality::Differs;
            // If a slot with an unproven key worked, the hellos over it would have proven the key. Where the
            // other slot is only slow to answer nothing is gained by avoiding this one.
            let no_loss = *quality.get(slot) <= Quality::Unproven || self.answers(now, slot.other());
            !must_do && quality.get(slot) < quality.get(slot.other()) && no_loss
        };
        Slot::ALL.into_iter().find(|slot| worse(*slot))
    }

    /// Whether a handshake with the preshared key of a slot has completed.
    pub fn proven(&self, slot: Slot) -> bool {
        self.slots.get(slot).proven.is_some()
    }

    /// Whether a slot may carry pod traffic at all. With a key it may before this end has seen it proven: a
    /// peer is added to the device together with its key, so no session exists without it, and the other end
    /// may have completed the handshake first.
    pub fn carries(&self, slot: Slot) -> bool {
        self.settings.mode != Mode::Require || self.slots.get(slot).held.is_some()
    }

    /// Whether a rotation may rely on a slot: it is as protected as it will be.
    pub fn protected(&self, slot: Slot, now: Duration) -> bool {
        match self.settings.mode {
            Mode::Off => true,
            Mode::Require => self.proven(slot),
            Mode::Prefer => {
                let waited = now >= self.slots.get(slot).statics_since + self.settings.rotation_wait;
                self.proven(slot) || self.willing != Some(true) || waited
            }
        }
    }

    /// The status of each slot.
    pub fn report(&self, now: Duration) -> PerSlot<SlotReport> {
        let offered = self.exchange.as_ref().map(|exchange| exchange.slot);
        PerSlot::from_fn(|slot| self.slots.get(slot).report(now, offered == Some(slot)))
    }

    /// Whether the peer uses preshared keys; none while that is unknown.
    pub const fn willing(&self) -> Option<bool> {
        self.willing
    }

    /// The peer's last refusal, if there has been no agreement since.
    pub const fn refused(&self) -> Option<Refusal> {
        self.refused
    }

    /// What must be on disk, with a copy of each secret.
    pub fn to_store(&self) -> PerSlot<StoredPreshared> {
        let next = self.exchange.as_ref().and_then(|exchange| Some((exchange.slot, exchange.to_persist()?)));
        PerSlot::from_fn(|slot| {
            let held = match &next {
                Some((of, held)) if *of == slot => Some(*held),
                _ => self.slots.get(slot).held.as_ref(),
            };
            let epoch = held.map_or_else(|| self.slots.get(slot).epoch, |held| held.epoch);
            StoredPreshared { epoch, key: held.map(|held| (held.key.duplicate(), held.statics)) }
        })
    }

    /// When [`Input::Tick`] is due, on the caller's clock, if nothing else happens before.
    pub fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        let sends_hello = Slot::ALL.into_iter().filter(|slot| self.sends_hello(*slot));
        let hello = sends_hello.map(|slot| self.slots.get(slot).hello.next);
        let exchange = self.exchange.as_ref().map(|exchange| exchange.due(&self.slots, &self.settings));
        let begins = Slot::ALL.into_iter().filter_map(|slot| self.begins_at(now, slot));
        hello.chain(exchange).chain(begins).min()
    }

    /// Processes an input and returns what to do.
    pub fn handle(&mut self, now: Duration, provider: &dyn PskProvider, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Tick => {}
            Input::Ids { own, peer } => self.on_ids(now, own, peer, &mut out),
            Input::StaticKeys(statics) => self.on_static_keys(now, statics, &mut out),
            Input::Engine(entries) => self.on_engine(now, entries, &mut out),
            Input::Tx(tx) => self.on_tx(now, tx),
            Input::Drained(drained) => self.on_drained(now, drained, &mut out),
            Input::Received { over, message } => self.on_message(now, over, message, &mut out),
            Input::Persisted => self.on_persisted(now, &mut out),
            Input::PersistFailed => self.on_persist_failed(now, &mut out),
        }
        self.send_hellos(now, &mut out);
        self.drop_silent_key(now, &mut out);
        self.advance(now, provider, &mut out);
        let desired = self.desired(now);
        if desired != self.last_desired {
            self.last_desired = desired;
            out.push(Effect::Apply);
        }
        out
    }

    /// Whether this node sends the offers.
    pub(super) fn is_initiator(&self) -> bool {
        self.own < self.peer
    }

    pub(super) fn context(&self, slot: Slot, epoch: u64) -> Option<Context> {
        let statics = self.slots.get(slot).statics.as_ref()?;
        Some(Context::new(&self.own, &self.peer, statics, slot, epoch))
    }

    fn desired(&self, now: Duration) -> Desired {
        Desired {
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

    /// Keys are bound to static keys and stay; a running exchange is bound to the UIDs.
    fn on_ids(&mut self, now: Duration, own: PeerId, peer: PeerId, out: &mut Vec<Effect>) {
        if (&self.own, &self.peer) != (&own, &peer) {
            self.cancel(now, out);
            (self.own, self.peer) = (own, peer);
        }
    }

    /// Whether one of the keys is bound to these static keys.
    pub fn is_bound_to(&self, statics: &PerSlot<Option<StaticKeys>>) -> bool {
        Slot::ALL.into_iter().any(|slot| {
            let held = self.slots.get(slot).held.as_ref();
            held.is_some_and(|held| *statics.get(slot) == Some(held.statics))
        })
    }

    fn on_static_keys(&mut self, now: Duration, statics: PerSlot<Option<StaticKeys>>, out: &mut Vec<Effect>) {
        for slot in Slot::ALL {
            let found = *statics.get(slot);
            let number = self.number;
            let state = self.slots.get_mut(slot);
            let bound = state.held.as_ref().map(|held| held.statics);
            let unbound = found.zip(bound).is_some_and(|(found, bound)| found != bound);
            if state.statics == found && !unbound {
                continue;
            }
            state.statics = found;
            state.statics_since = now;
            state.hello.restart(now, number);
            state.hello.answered = None;
            (state.differs, state.failures, state.not_before) = (false, 0, now);
            if unbound {
                out.push(Effect::Note(Note::StaticKeyReplaced(slot, state.epoch)));
                self.drop_key(slot, out);
            }
            if self.exchange.as_ref().is_some_and(|exchange| exchange.slot == slot) {
                self.cancel(now, out);
            }
        }
    }

    /// Drops a key, from disk too.
    fn drop_key(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let state = self.slots.get_mut(slot);
        state.held = None;
        state.proven = None;
        state.applied = false;
        out.push(Effect::Persist);
    }

    fn on_engine(&mut self, now: Duration, entries: PerSlot<Option<Entry>>, out: &mut Vec<Effect>) {
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
            // Earlier answers refer to the previous state.
            if was_proven != state.proven.is_some() || was_applied != state.applied {
                state.hello.restart(now, number);
            }
        }
    }

    fn on_tx(&mut self, now: Duration, tx: Option<Slot>) {
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

    fn on_message(&mut self, now: Duration, over: Slot, message: Message, out: &mut Vec<Effect>) {
        match message {
            Message::Hello(hello) => self.on_hello(now, over, &hello, out),
            Message::Offer(offer) => self.on_offer(now, over, offer, out),
            Message::Accept(accept) => self.on_accept(now, over, &accept, out),
            Message::Confirm { slot, epoch, tag } => self.on_confirm(now, over, (slot, epoch), &tag, out),
            Message::Refuse { slot, epoch, why } => self.on_refusal(now, (slot, epoch), why, out),
            Message::Cancel { slot, epoch } => self.on_cancel(now, slot, epoch),
        }
    }

    fn on_hello(&mut self, now: Duration, over: Slot, hello: &Hello, out: &mut Vec<Effect>) {
        self.willing = Some(hello.willing);
        if hello.answers.is_none() {
            let own = self.make_hello(Some(hello.number));
            out.push(Effect::Send { over, message: Message::Hello(own) });
        }
        // A hello that was overtaken by a later one is outdated. One from before the peer's restart can't be
        // told from one after it; the next one corrects it.
        let life = |number: u64| number >> 32;
        if life(hello.number) == life(self.last_peer_hello) && hello.number < self.last_peer_hello {
            return;
        }
        self.last_peer_hello = hello.number;
        let Some(answers) = hello.answers else { return };
        let is_ours = |from: u64| answers >= from && answers < self.number;
        if is_ours(self.slots.get(over).hello.from) {
            let check = self.settings.hello_interval;
            let state = self.slots.get_mut(over);
            state.hello.answer(now, check);
            // There was a handshake: the daemon need not wait for its next poll.
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

    fn make_hello(&mut self, answers: Option<u64>) -> Hello {
        let number = self.number;
        self.number += 1;
        let held = PerSlot::from_fn(|slot| self.preshared(slot));
        Hello { number, answers, willing: self.settings.mode != Mode::Off, held }
    }

    /// Whether this node sends hellos over a slot by itself.
    fn sends_hello(&self, slot: Slot) -> bool {
        let holds = Slot::ALL.into_iter().any(|slot| self.slots.get(slot).held.is_some());
        self.slots.get(slot).statics.is_some() && (self.settings.mode != Mode::Off || holds)
    }

    fn send_hellos(&mut self, now: Duration, out: &mut Vec<Effect>) {
        for slot in Slot::ALL {
            if self.sends_hello(slot) && self.slots.get(slot).hello.next <= now {
                let message = Message::Hello(self.make_hello(None));
                out.push(Effect::Send { over: slot, message });
                // A peer that has never answered may not support preshared keys.
                let known = self.willing == Some(true) || self.slots.get(slot).held.is_some();
                let most = if known {
                    MAX_RETRY.min(self.settings.hello_interval)
                } else {
                    self.settings.hello_interval
                };
                self.slots.get_mut(slot).hello.ask(now, most);
            }
        }
    }

    /// Two nodes with different keys on both slots can't even exchange hellos: after a while both drop the
    /// key of the same slot, over which they agree on a new one. Pod traffic takes such a slot only if no key
    /// is required.
    fn drop_silent_key(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let silent = |slot: Slot| {
            let since = self.slots.get(slot).hello.silent_since();
            since.is_some_and(|since| now >= since + self.settings.silence_timeout)
        };
        if self.slots.a.held.is_some() && self.slots.a.statics.is_some() && silent(Slot::A) && silent(Slot::B)
        {
            out.push(Effect::Note(Note::GivenUp(Slot::A, self.slots.a.epoch)));
            if self.exchange.as_ref().is_some_and(|exchange| exchange.slot == Slot::A) {
                self.exchange = None;
            }
            self.drop_key(Slot::A, out);
            self.mark_differing(now, Slot::A);
        }
    }

    fn on_persisted(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(exchange) = &mut self.exchange else { return };
        let slot = exchange.slot;
        let Some(persisted) = exchange.take_persisted(now) else { return };
        let Ok(held) = persisted else {
            // It took so long that the peer may use the slot again: the new key is not used.
            let epoch = self.exchange.take().map_or(0, |exchange| exchange.epoch);
            self.slots.get_mut(slot).back_off(now, FIRST_PAUSE, LONGEST_OWN_PAUSE);
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
        state.hello.restart(now, number);
    }

    fn on_persist_failed(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Some(exchange) = &mut self.exchange else { return };
        if !matches!(exchange.stage, Stage::Persisting { .. }) {
            return;
        }
        out.push(Effect::Note(Note::NotStored(exchange.slot, exchange.epoch)));
        if !exchange.step_back() {
            self.postpone(now, LONGEST_OWN_PAUSE, out);
        }
    }

    /// Whether pod traffic is about to move to this slot because the other one is being drained.
    pub(super) fn is_wanted(&self, slot: Slot) -> bool {
        self.drained == Some(slot.other()) && self.carries(slot)
    }

    pub(super) const fn record_refusal(&mut self, why: Refusal) {
        self.refused = Some(why);
    }

    /// The peer may have started to use another key on a slot: the slot is not used before a hello shows that
    /// it has not.
    pub(super) fn mark_differing(&mut self, now: Duration, slot: Slot) {
        let number = self.number;
        let state = self.slots.get_mut(slot);
        state.differs = true;
        state.hello.restart(now, number);
    }

    pub(super) const fn next_number(&self) -> u64 {
        self.number
    }

    /// The initiator's jitter keeps pairs that started together from renewing together.
    pub(super) fn renews_at(&self, slot: Slot) -> Option<Duration> {
        let held = self.slots.get(slot).held.as_ref()?;
        if self.settings.interval.is_zero() {
            return Some(Duration::MAX);
        }
        Some(held.since + self.settings.interval * (900 + self.renewal_jitter) / 1000)
    }

    /// The slot that carries pod traffic.
    pub(super) const fn tx(&self) -> Option<Slot> {
        self.tx
    }
}
