//! Two ends with their engines and disks, the network between them, and pod traffic that must not be lost.

use std::time::Duration;

use keyring::pq::{Effect, Entry, Input, Message, Note, Pairing, PqSettings, StaticKeys, StoredPreshared};
use keyring::rotation::PeerId;
use keyring::{PerSlot, PresharedId, PresharedKey, PrivateKey, PublicKey, Slot};

mod network;
mod provider;

use network::{Datagram, short};
use provider::Stand;

/// How long a packet is in flight at most: shorter than a slot must be idle before its key changes.
const UNDER_WAY: Duration = Duration::from_millis(800);

/// How long a message may be delayed before it arrives, if it is not lost.
const SOMEWHERE: Duration = Duration::from_secs(5);

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// Time passes.
    Wait(u16),
    /// An end's loop brings its engine and routes in line with the state machine.
    Turn(bool),
    /// The message at this place in the queue arrives.
    Deliver(u8),
    /// It arrives, and will arrive once more.
    Repeat(u8),
    /// It is lost.
    Lose(u8),
    /// A message that was sent long ago arrives again.
    Replay(u8),
    /// An end is killed; its disk stays.
    Crash(bool),
    /// An end that was killed starts.
    Start(bool),
    /// An end is killed and its disk loses all preshared keys.
    Forget(bool),
    /// An end is killed, and its disk has another epoch: from an older version, or after a thief used its keys.
    Misnumber(bool, u64),
    /// The initiator is told that its offer is outdated.
    Outdate(u64),
    /// A message that was sent long ago arrives with another epoch.
    Renumber(u8, u64),
    /// The next write to an end's disk fails.
    DiskFull(bool),
    /// The network blocks a slot, or passes it again.
    Block(Slot, bool),
    /// The slot that an end prefers to receive on.
    Prefer(bool, Slot),
    /// A rotation drains a slot, or none.
    Drain(Option<Slot>),
    /// An end's Node is recreated with another UID; each end learns of it on its next turn.
    Rename(bool),
}

/// One end's peer entry in the device of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Peer {
    preshared: Option<PresharedId>,
    handshake: bool,
    /// How often the entry was recreated: its sessions are dropped with it.
    life: u32,
}

#[derive(Debug)]
struct End {
    id: PeerId,
    keys: PerSlot<PublicKey>,
    disk: PerSlot<StoredPreshared>,
    disk_full: bool,
    life: Option<Life>,
}

#[derive(Debug)]
struct Life {
    machine: Pairing,
    engine: PerSlot<Peer>,
    tx: Slot,
    turn: bool,
}

pub(crate) struct World {
    ends: [End; 2],
    pub(crate) now: Duration,
    queue: Vec<Datagram>,
    history: Vec<(usize, Slot, Vec<u8>)>,
    blocked: PerSlot<bool>,
    preferred: [Slot; 2],
    drained: Option<Slot>,
    provider: Stand,
    settings: [PqSettings; 2],
    lives: u32,
    /// Since a fault that may lose packets, until everything is proven again.
    excused: bool,
    pub(crate) lost: u32,
    pub(crate) passed: u32,
    pub(crate) notes: Vec<(usize, Note)>,
    pub(crate) seen: std::collections::BTreeSet<PresharedId>,
    /// A log of events, for failures.
    log: Vec<String>,
}

impl World {
    pub(crate) fn new(settings: [PqSettings; 2]) -> Self {
        let key = |byte| PrivateKey::from_bytes(&[byte; 32]).unwrap().public();
        let end = |name: &str, byte| End {
            id: PeerId::new(name),
            keys: PerSlot { a: key(byte), b: key(byte + 100) },
            disk: PerSlot::default(),
            disk_full: false,
            life: None,
        };
        let mut world = Self {
            ends: [end("low", 1), end("nigh", 2)],
            now: Duration::from_secs(1000),
            queue: Vec::new(),
            history: Vec::new(),
            blocked: PerSlot::default(),
            preferred: [Slot::A, Slot::B],
            drained: None,
            provider: Stand::default(),
            settings,
            lives: 0,
            excused: false,
            lost: 0,
            passed: 0,
            notes: Vec::new(),
            seen: std::collections::BTreeSet::new(),
            log: Vec::new(),
        };
        world.start(0);
        world.start(1);
        world
    }

    pub(crate) fn machine(&self, end: usize) -> &Pairing {
        &self.ends[end].life.as_ref().unwrap().machine
    }

    pub(crate) fn machine_mut(&mut self, end: usize) -> &mut Pairing {
        &mut self.ends[end].life.as_mut().unwrap().machine
    }

    pub(crate) fn tx(&self, end: usize) -> Slot {
        self.ends[end].life.as_ref().unwrap().tx
    }

    /// The key that an end's engine has for the other.
    pub(crate) fn engine(&self, end: usize, slot: Slot) -> Option<PresharedId> {
        self.ends[end].life.as_ref().unwrap().engine.get(slot).preshared
    }

    pub(crate) fn secret(&self, end: usize, slot: Slot) -> [u8; 32] {
        let id = self.engine(end, slot).unwrap();
        *self.machine(end).key(&id).unwrap().expose()
    }

    pub(crate) fn act(&mut self, action: Action) {
        let before = Slot::ALL.into_iter().any(|slot| self.usable(slot));
        let calm = !self.excused;
        match action {
            Action::Wait(millis) => self.wait(Duration::from_millis(millis.into())),
            Action::Turn(end) => self.turn(end.into()),
            Action::Deliver(at) => self.deliver(at, false),
            Action::Repeat(at) => self.deliver(at, true),
            Action::Lose(at) => self.lose(at),
            Action::Replay(at) => self.replay(at),
            Action::Crash(end) => self.crash(end.into()),
            Action::Start(end) => self.start(end.into()),
            Action::Forget(end) => {
                self.crash(end.into());
                self.ends[usize::from(end)].disk = PerSlot::default();
            }
            Action::Misnumber(end, epoch) => self.misnumber(end.into(), epoch),
            Action::Outdate(epoch) => self.outdate(epoch),
            Action::Renumber(at, epoch) => self.renumber(at, epoch),
            Action::DiskFull(end) => self.ends[usize::from(end)].disk_full = true,
            Action::Block(slot, blocked) => {
                *self.blocked.get_mut(slot) = blocked;
                self.excused = true;
            }
            Action::Prefer(end, slot) => self.preferred[usize::from(end)] = slot,
            Action::Rename(end) => {
                self.lives += 1;
                // Alternately the lower and the higher of both.
                let first = if self.lives.is_multiple_of(2) { 'a' } else { 'z' };
                self.ends[usize::from(end)].id = PeerId::new(format!("{first}{}", self.lives));
            }
            Action::Drain(drained) => {
                self.drained = drained;
                for end in 0..2 {
                    self.handle(end, Input::Drained(drained));
                }
            }
        }
        if before && calm && !self.excused {
            assert!(Slot::ALL.into_iter().any(|slot| self.usable(slot)), "both slots are dead: {self:?}");
        }
        assert_eq!(self.lost, 0, "a packet was lost: {self:?}");
    }

    /// Whether a packet that either end sends on a slot now arrives.
    fn usable(&self, slot: Slot) -> bool {
        let [Some(low), Some(high)] = [&self.ends[0].life, &self.ends[1].life] else { return false };
        low.engine.get(slot).preshared == high.engine.get(slot).preshared && !self.blocked.get(slot)
    }

    fn statics(&self, end: usize) -> PerSlot<Option<StaticKeys>> {
        let [own, peer] = [&self.ends[end], &self.ends[1 - end]];
        PerSlot::from_fn(|slot| Some(StaticKeys { own: *own.keys.get(slot), peer: *peer.keys.get(slot) }))
    }

    /// An end starts with what is on its disk, with empty engines.
    pub(crate) fn start(&mut self, end: usize) {
        if self.ends[end].life.is_some() {
            return;
        }
        let kept = std::mem::take(&mut self.ends[end].disk);
        self.lives += 1;
        let jitter_seed = u64::from(self.lives) << 40;
        let [own, peer] = [end, 1 - end].map(|end| self.ends[end].id.clone());
        let machine = Pairing::resume(self.settings[end], own, peer, kept, jitter_seed, self.now);
        self.ends[end].disk = machine.to_store();
        let tx = self.preferred[1 - end];
        self.ends[end].life = Some(Life { machine, engine: PerSlot::default(), tx, turn: true });
        self.handle(end, Input::StaticKeys(self.statics(end)));
        self.handle(end, Input::Drained(self.drained));
        self.turn(end);
    }

    pub(crate) fn crash(&mut self, end: usize) {
        if self.ends[end].life.take().is_some() {
            self.excused = true;
        }
    }

    /// An end is killed, and another epoch is on its disk.
    pub(crate) fn misnumber(&mut self, end: usize, epoch: u64) {
        self.crash(end);
        for slot in Slot::ALL {
            self.ends[end].disk.get_mut(slot).epoch = epoch;
        }
    }

    /// How many keys were generated so far.
    pub(crate) fn generated(&self) -> u64 {
        self.provider.count()
    }

    /// Both ends get a new static key on a slot, one after the other.
    pub(crate) fn replace_static(&mut self, end: usize, slot: Slot, byte: u8) {
        *self.ends[end].keys.get_mut(slot) = PrivateKey::from_bytes(&[byte; 32]).unwrap().public();
        for end in 0..2 {
            self.handle(end, Input::StaticKeys(self.statics(end)));
            self.lives += 1;
            let life = self.lives;
            let engine = &mut self.ends[end].life.as_mut().unwrap().engine;
            *engine.get_mut(slot) = Peer { life, ..Peer::default() };
        }
    }

    pub(crate) fn handle(&mut self, end: usize, input: Input) {
        let Some(life) = &mut self.ends[end].life else { return };
        let effects = life.machine.handle(self.now, &self.provider, input);
        for effect in effects {
            self.perform(end, effect);
        }
    }

    fn perform(&mut self, end: usize, effect: Effect) {
        match effect {
            Effect::Send { over, message } => {
                let bytes = message.encode();
                self.log(format_args!("{end} says over {over}: {}", short(&message)));
                self.history.push((1 - end, over, bytes.clone()));
                self.send(end, over, Some(bytes));
            }
            Effect::Persist => {
                let answer = if std::mem::replace(&mut self.ends[end].disk_full, false) {
                    Input::PersistFailed
                } else {
                    self.ends[end].disk = self.machine(end).to_store();
                    Input::Persisted
                };
                self.handle(end, answer);
            }
            Effect::Apply => self.ends[end].life.as_mut().unwrap().turn = true,
            Effect::Note(note) => {
                self.log(format_args!("{end} notes {note:?}"));
                if let Note::Agreed(_, _, id) = note {
                    self.seen.insert(id);
                }
                self.notes.push((end, note));
            }
        }
    }

    /// One turn of the loop.
    pub(crate) fn turn(&mut self, end: usize) {
        let preferred = self.drained.map_or(self.preferred[1 - end], Slot::other);
        let [own, peer] = [end, 1 - end].map(|end| self.ends[end].id.clone());
        self.handle(end, Input::Ids { own, peer });
        let (now, mut lives) = (self.now, self.lives);
        let Some(life) = &mut self.ends[end].life else { return };
        life.turn = false;
        // Peers before routes, as in the plan.
        for slot in Slot::ALL {
            let wanted = life.machine.preshared(slot);
            let entry = life.engine.get_mut(slot);
            if entry.preshared != wanted || entry.life == 0 {
                lives += 1;
                *entry = Peer { preshared: wanted, handshake: false, life: lives };
            }
        }
        life.tx = match life.machine.avoid(now) {
            Some(avoid) if avoid == preferred => preferred.other(),
            _ => preferred,
        };
        let (tx, engine) = (life.tx, life.engine);
        self.lives = lives;
        self.log(format_args!("{end} turns: sends on {tx}, holds {:?}", engine.map(|entry| entry.preshared)));
        self.handle(end, Input::Tx(Some(tx)));
        let entry = |entry: Peer| Some(Entry { preshared: entry.preshared, handshake: entry.handshake });
        self.handle(end, Input::Engine(engine.map(entry)));
    }

    /// Runs an undisturbed world until a message of a kind is in flight, and takes it.
    pub(crate) fn catch(&mut self, wanted: impl Fn(&Message) -> bool) -> Message {
        for _ in 0..100_000 {
            self.now += Duration::from_millis(50);
            for end in 0..2 {
                self.handle(end, Input::Tick);
            }
            while let Some(first) = self.queue.first() {
                let message = first.message.as_ref().and_then(|bytes| Message::decode(bytes).ok());
                if let Some(message) = message.filter(|message| wanted(message)) {
                    self.queue.remove(0);
                    return message;
                }
                self.deliver(0, false);
            }
            for end in 0..2 {
                self.turn(end);
            }
        }
        panic!("never sent: {self:?}");
    }

    /// Advances time in small steps; packets are sent and arrive.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + Duration::from_millis(100)).min(end);
            for end in 0..2 {
                if let Some(life) = &self.ends[end].life {
                    let tx = life.tx;
                    self.send(end, tx, None);
                }
            }
            let now = self.now;
            let late = |datagram: &Datagram| {
                let most = if datagram.message.is_none() { UNDER_WAY } else { SOMEWHERE };
                now >= datagram.sent + most
            };
            while let Some(at) = self.queue.iter().position(late) {
                let datagram = self.queue.remove(at);
                self.arrive(datagram);
            }
            for end in 0..2 {
                self.handle(end, Input::Tick);
            }
        }
    }

    /// No more faults from here on: everything arrives at once, loops turn.
    pub(crate) fn calm(&mut self, time: Duration) {
        self.blocked = PerSlot::default();
        self.drained = None;
        for end in 0..2 {
            self.ends[end].disk_full = false;
            self.start(end);
            self.handle(end, Input::Drained(None));
        }
        self.run(time);
    }

    /// Runs an undisturbed world.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        let mut steps = 0_u32;
        while self.now < until {
            steps += 1;
            self.now += Duration::from_millis(250);
            for end in 0..2 {
                let due = self.ends[end].life.as_ref().and_then(|life| life.machine.poll_timeout(self.now));
                if due.is_some_and(|due| due <= self.now) {
                    self.handle(end, Input::Tick);
                    let after =
                        self.ends[end].life.as_ref().and_then(|life| life.machine.poll_timeout(self.now));
                    if after.is_some_and(|after| after <= self.now) {
                        self.handle(end, Input::Tick);
                        let still = self.machine(end).poll_timeout(self.now);
                        assert!(still.is_none_or(|still| still > self.now), "spins: {self:?}");
                    }
                }
                if let Some(life) = &self.ends[end].life {
                    let tx = life.tx;
                    self.send(end, tx, None);
                }
            }
            while !self.queue.is_empty() {
                self.deliver(0, false);
            }
            for end in 0..2 {
                // A loop turns when it is asked to, and now and then.
                if self.ends[end].life.as_ref().is_some_and(|life| life.turn) || steps.is_multiple_of(4) {
                    self.turn(end);
                }
            }
            assert_eq!(self.lost, 0, "a packet was lost: {self:?}");
            let whole = self.blocked == PerSlot::default();
            if self.excused && whole && self.is_proven() {
                self.excused = false;
            }
        }
    }

    /// Whether a world in the middle of a renewal soon completes it.
    pub(crate) fn is_proven_soon(&mut self) -> bool {
        (0..100).any(|_| {
            self.run(Duration::from_secs(1));
            self.is_proven()
        })
    }

    /// Whether both ends have proven the same key on each slot, and different keys on the two slots.
    pub(crate) fn is_proven(&self) -> bool {
        if self.ends.iter().any(|end| end.life.is_none()) {
            return false;
        }
        let same = |slot| {
            let [low, high] = [0, 1].map(|end| self.machine(end).preshared(slot));
            low.is_some() && low == high && (0..2).all(|end| self.machine(end).proven(slot))
        };
        same(Slot::A) && same(Slot::B) && self.engine(0, Slot::A) != self.engine(0, Slot::B)
    }

    /// What an end would have after a restart.
    pub(crate) fn on_disk(&self, end: usize, slot: Slot) -> Option<PresharedId> {
        self.ends[end].disk.get(slot).key.as_ref().map(|(key, _)| PresharedKey::id(key))
    }
}

impl World {
    fn log(&mut self, what: std::fmt::Arguments<'_>) {
        self.log.push(format!("{:?} {what}", self.now));
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "at {:?}, drained {:?}, blocked {:?}, desired {:?}",
            self.now, self.drained, self.blocked, self.preferred
        )?;
        for (end, state) in self.ends.iter().enumerate() {
            writeln!(f, "end {end}: {:?}", state.life)?;
        }
        let last = self.log.len().saturating_sub(60);
        self.log[last..].iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
