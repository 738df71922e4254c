//! Nodes with their state machines, a network that loses, duplicates and reorders, and an API server that may
//! be unreachable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::rotation::{
    Cause, Effect, Input, Journal, Note, Now, PeerId, Rotation, RotationPolicy, RotationSettings, Stance,
    slot_for,
};
use keyring::{PerSlot, PublicKey, Slot};

mod claims;

/// What one node can see of another's announcement.
type Announced = Journal;

/// One datagram inside the tunnel. It arrives only if both ends have the keys that it was encrypted with.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    from: usize,
    to: usize,
    over: Slot,
    sealed: (PublicKey, PublicKey),
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Ask { nonce: u64 },
    Answer { nonce: u64, seen: u64, tx: Slot },
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// Time passes at all nodes.
    Wait(u16),
    /// A node's loop brings devices and routes in line with what it knows, and acknowledges.
    Turn(u8),
    /// A node learns from the API server what another one announces.
    Watch(u8, u8),
    /// A node's announcement reaches the API server.
    Publish(u8),
    /// The datagram at this place in the queue arrives.
    Deliver(u8),
    /// It arrives, and will arrive once more.
    Repeat(u8),
    /// It is lost.
    Lose(u8),
    /// A node is requested to rotate.
    Rotate(u8),
    /// A node is killed; its disk stays.
    Crash(u8),
    /// A node that was killed starts.
    Start(u8),
    /// The API server becomes unreachable, or reachable again.
    Api(bool),
    /// From here on a node never answers, or answers again.
    Mute(u8, bool),
    /// The next write to a node's disk fails.
    DiskFull(u8),
}

/// What stays when the process is killed.
struct Node {
    id: PeerId,
    disk: Journal,
    /// The last known announcements, as on disk.
    known: BTreeMap<usize, Announced>,
    life: Option<Life>,
    mute: bool,
    disk_full: bool,
}

struct Life {
    machine: Rotation,
    /// None until the first turn created the devices.
    up: bool,
    device: PerSlot<PublicKey>,
    /// The keys that each device has for each peer.
    peers: BTreeMap<usize, PerSlot<PublicKey>>,
    routes: BTreeMap<usize, Slot>,
    /// Generations as of the last turn.
    applied: BTreeMap<usize, u64>,
    /// Pairs of keys over which the peer has answered.
    answered: BTreeSet<(usize, Slot, PublicKey, PublicKey)>,
    applying: bool,
    announcing: bool,
}

/// The whole model.
pub(crate) struct World {
    nodes: Vec<Node>,
    api: BTreeMap<usize, Announced>,
    api_up: bool,
    now: Duration,
    queue: Vec<Datagram>,
    /// Pairs of which one end took the other for dead: broken until both know each other again.
    excused: BTreeSet<(usize, usize)>,
    pub(crate) finished: usize,
    pub(crate) rolled_back: usize,
    key_of_all: u16,
}

const CALM: usize = 4000;

impl World {
    /// Nodes that have known each other for long.
    pub(crate) fn new(count: usize) -> Self {
        let mut world = Self {
            nodes: Vec::new(),
            api: BTreeMap::new(),
            api_up: true,
            now: Duration::ZERO,
            queue: Vec::new(),
            excused: BTreeSet::new(),
            finished: 0,
            rolled_back: 0,
            key_of_all: 0,
        };
        for index in 0..count {
            let keys = PerSlot::from_fn(|_| world.fresh_key());
            let mut disk = Journal::cold(1, keys, 1_000_000);
            // Some have rotated before.
            disk.prefer = if index % 2 == 0 { Slot::A } else { Slot::B };
            world.api.insert(index, disk.clone());
            let id = PeerId::new(format!("uid-{index}"));
            let (known, life) = (BTreeMap::new(), None);
            world.nodes.push(Node { id, disk, known, life, mute: false, disk_full: false });
        }
        for index in 0..count {
            world.nodes[index].known = (0..count)
                .filter(|peer| *peer != index)
                .map(|peer| (peer, world.api[&peer].clone()))
                .collect();
            world.start(index);
        }
        for _ in 0..3 {
            for index in 0..count {
                world.turn(index);
            }
        }
        world
    }

    fn fresh_key(&mut self) -> PublicKey {
        self.key_of_all += 1;
        let [high, low] = self.key_of_all.to_be_bytes();
        let mut bytes = [9; 32];
        (bytes[0], bytes[1]) = (high, low);
        PublicKey::from_bytes(&bytes).unwrap()
    }

    fn index(&self, id: &PeerId) -> usize {
        self.nodes.iter().position(|node| node.id == *id).unwrap()
    }

    fn moment(&self) -> Now {
        Now { elapsed: self.now, unix: 1_000_000 + self.now.as_secs() }
    }

    fn policy() -> RotationPolicy {
        let settings = RotationSettings {
            interval: Duration::from_hours(1),
            drain: Duration::from_secs(2),
            timeout: Duration::from_secs(30),
            ..RotationSettings::default()
        };
        RotationPolicy::new(settings).unwrap()
    }

    /// Performs one action and checks all that must always hold.
    pub(crate) fn act(&mut self, action: Action) {
        let count = self.nodes.len();
        let node = |index: u8| usize::from(index) % count;
        match action {
            Action::Wait(millis) => {
                self.now += Duration::from_millis(u64::from(millis));
                for index in 0..count {
                    self.tick(index);
                }
            }
            Action::Turn(index) => self.turn(node(index)),
            Action::Watch(index, peer) => self.watch(node(index), node(peer)),
            Action::Publish(index) => self.publish(node(index)),
            Action::Deliver(at) => self.deliver(at, false),
            Action::Repeat(at) => self.deliver(at, true),
            Action::Lose(at) => {
                if !self.queue.is_empty() {
                    self.queue.remove(usize::from(at) % self.queue.len());
                }
            }
            Action::Rotate(index) => self.handle(node(index), Input::Rotate(Cause::Request)),
            Action::Crash(index) => self.crash(node(index)),
            Action::Start(index) => self.start(node(index)),
            Action::Api(up) => self.api_up = up,
            Action::Mute(index, mute) => self.nodes[node(index)].mute = mute,
            Action::DiskFull(index) => self.nodes[node(index)].disk_full = true,
        }
        self.check();
    }

    fn crash(&mut self, index: usize) {
        self.nodes[index].life = None;
    }

    fn start(&mut self, index: usize) {
        if self.nodes[index].life.is_some() {
            return;
        }
        let now = self.moment();
        let node = &mut self.nodes[index];
        let (machine, effects) =
            Rotation::resume(Self::policy(), node.id.clone(), node.disk.clone(), index as u64, now);
        node.life = Some(Life {
            machine,
            up: false,
            device: PerSlot::from_fn(|slot| node.disk.slots.get(slot).key),
            peers: BTreeMap::new(),
            routes: BTreeMap::new(),
            applied: BTreeMap::new(),
            answered: BTreeSet::new(),
            applying: false,
            announcing: false,
        });
        self.perform(index, effects);
        let peers = (0..self.nodes.len()).filter(|peer| *peer != index);
        let peers = peers.map(|peer| self.nodes[peer].id.clone()).collect();
        self.handle(index, Input::Peers(peers));
        for (peer, known) in self.nodes[index].known.clone() {
            let stance = known.stance(&self.nodes[peer].id);
            self.handle(index, Input::Stance(stance));
        }
    }

    fn handle(&mut self, index: usize, input: Input) {
        let now = self.moment();
        if let Some(life) = &mut self.nodes[index].life {
            let effects = life.machine.handle(now, input);
            self.perform(index, effects);
        }
    }

    fn tick(&mut self, index: usize) {
        let due = self.nodes[index].life.as_ref().and_then(|life| life.machine.poll_timeout());
        if due.is_some_and(|due| due <= self.now) {
            self.handle(index, Input::Tick);
        }
    }

    fn perform(&mut self, index: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Generate(count) => {
                    let keys = (0..count).map(|_| self.fresh_key()).collect();
                    self.handle(index, Input::Generated(keys));
                }
                Effect::Persist(journal) => {
                    let node = &mut self.nodes[index];
                    let full = std::mem::take(&mut node.disk_full);
                    if !full {
                        assert!(journal.generation > node.disk.generation, "{index}: generation went back");
                        node.disk = journal;
                    }
                    self.handle(index, if full { Input::PersistFailed } else { Input::Persisted });
                }
                Effect::Apply => self.alive(index, |life| life.applying = true),
                Effect::Announce => self.alive(index, |life| life.announcing = true),
                Effect::Ask(ask) => {
                    let to = self.index(&ask.peer);
                    self.send(index, to, ask.over, Body::Ask { nonce: ask.nonce });
                }
                Effect::Destroy(record) => {
                    let kept = self.nodes[index].disk.keys().any(|key| key == record.key);
                    assert!(!kept, "{index}: a key that the journal names was destroyed");
                    self.check_unneeded(index, &record.key);
                }
                Effect::Note(note) => self.note(index, &note),
            }
        }
    }

    fn note(&mut self, index: usize, note: &Note) {
        match note {
            Note::Skipped(peer) | Note::Forced(peer) => {
                let peer = self.index(peer);
                self.excused.insert((index.min(peer), index.max(peer)));
            }
            Note::Finished(_) => self.finished += 1,
            Note::RolledBack(..) => self.rolled_back += 1,
            _ => {}
        }
    }

    fn alive(&mut self, index: usize, change: impl FnOnce(&mut Life)) {
        if let Some(life) = &mut self.nodes[index].life {
            change(life);
        }
    }

    fn send(&mut self, from: usize, to: usize, over: Slot, body: Body) {
        let Some(life) = &self.nodes[from].life else { return };
        let Some(keys) = life.peers.get(&to) else { return };
        if life.up && self.queue.len() < 64 {
            let sealed = (*life.device.get(over), *keys.get(over));
            self.queue.push(Datagram { from, to, over, sealed, body });
        }
    }

    fn deliver(&mut self, at: u8, again: bool) {
        if self.queue.is_empty() {
            return;
        }
        let at = usize::from(at) % self.queue.len();
        let datagram = if again { self.queue[at].clone() } else { self.queue.remove(at) };
        let Datagram { from, to, over, sealed: (sender, receiver), body } = datagram;
        let now_opens = |life: &Life| {
            life.up
                && *life.device.get(over) == receiver
                && life.peers.get(&from).is_some_and(|keys| *keys.get(over) == sender)
        };
        let (id, mute) = (self.nodes[from].id.clone(), self.nodes[to].mute);
        let Some(life) = self.nodes[to].life.as_mut().filter(|life| now_opens(life)) else { return };
        match body {
            Body::Ask { nonce } => {
                let seen = life.applied.get(&from).copied().unwrap_or_default();
                let tx = life.routes.get(&from).copied();
                if let Some(tx) = tx.filter(|_| !mute) {
                    self.send(to, from, over, Body::Answer { nonce, seen, tx });
                }
                self.handle(to, Input::PeerAlive(id));
            }
            Body::Answer { nonce, seen, tx } => {
                life.answered.insert((from, over, receiver, sender));
                self.handle(to, Input::Answer { peer: id, nonce, seen, tx, over, protected: true });
            }
        }
    }

    /// One turn of the daemon's loop: keys, peers, routes; then the cache; only then are announcements
    /// acknowledged.
    fn turn(&mut self, index: usize) {
        let up = self.api_up;
        self.handle(index, Input::Connected(up));
        let stances: BTreeMap<usize, Stance> = self.nodes[index]
            .known
            .iter()
            .map(|(peer, known)| (*peer, known.stance(&self.nodes[*peer].id)))
            .collect();
        let known = self.nodes[index].known.clone();
        let generation = self.nodes[index].disk.generation;
        let Some(life) = &mut self.nodes[index].life else { return };
        let own = life.machine.stance();
        life.device = PerSlot::from_fn(|slot| life.machine.journal().slots.get(slot).key);
        life.up = true;
        for (peer, announced) in &known {
            let keys = PerSlot::from_fn(|slot| announced.slots.get(slot).key);
            life.peers.insert(*peer, keys);
            let answers = PerSlot::from_fn(|slot| {
                life.answered.contains(&(*peer, slot, *life.device.get(slot), *keys.get(slot)))
            });
            life.routes.insert(*peer, slot_for(&own, &stances[peer], answers));
            life.applied.insert(*peer, announced.generation);
        }
        if std::mem::take(&mut life.applying) {
            self.handle(index, Input::Applied(generation));
        }
        if self.api_up && self.api[&index] == self.nodes[index].disk {
            self.handle(index, Input::Published(generation));
        }
        self.tick(index);
    }

    fn publish(&mut self, index: usize) {
        if !self.api_up || !self.nodes[index].life.as_ref().is_some_and(|life| life.announcing) {
            return;
        }
        let journal = self.nodes[index].disk.clone();
        assert!(journal.generation >= self.api[&index].generation, "{index}: an older announcement");
        self.api.insert(index, journal);
        self.handle(index, Input::Published(self.nodes[index].disk.generation));
    }

    fn watch(&mut self, index: usize, peer: usize) {
        if index == peer || !self.api_up || self.nodes[index].life.is_none() {
            return;
        }
        let announced = self.api[&peer].clone();
        let stance = announced.stance(&self.nodes[peer].id);
        self.nodes[index].known.insert(peer, announced);
        self.handle(index, Input::Stance(stance));
    }

    /// No more faults: after some time every rotation is complete, and every slot of every pair works.
    pub(crate) fn calm(&mut self) {
        self.api_up = true;
        for index in 0..self.nodes.len() {
            self.nodes[index].mute = false;
            self.nodes[index].disk_full = false;
            self.start(index);
        }
        let mut quiet = 0;
        for round in 0..CALM {
            // Straight to the next time at which a state machine is due.
            let machines = self.nodes.iter().filter_map(|node| node.life.as_ref());
            let due = machines.filter_map(|life| life.machine.poll_timeout()).min();
            let pause = due.map_or(Duration::ZERO, |due| due.saturating_sub(self.now));
            let millis = pause.as_millis().clamp(1, 5000);
            self.act(Action::Wait(u16::try_from(millis).unwrap()));
            for index in 0..self.nodes.len() {
                self.turn(index);
                self.publish(index);
                for peer in 0..self.nodes.len() {
                    self.watch(index, peer);
                }
                self.turn(index);
            }
            while !self.queue.is_empty() {
                self.deliver(0, false);
                self.check();
            }
            // The last announcement must be applied too.
            quiet = if self.at_rest() { quiet + 1 } else { 0 };
            if quiet > 2 {
                return self.check_rest();
            }
            assert!(
                round + 1 < CALM,
                "no rest: {:#?}",
                self.nodes.iter().map(|n| &n.disk).collect::<Vec<_>>()
            );
        }
    }
}
