//! Two nodes with a machine each, WireGuard as far as paths notice it, and a relay.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use keyring::{PerSlot, Slot};
use plan::admission::World as Peers;
use plan::node::NodeName;
use plan::paths::{Action, Event, Kind, Paths};

use super::network::Nat;
use super::node::{Device, Node, Probe, Seen, leg, own, uid};

/// A step of the model.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// How long a session is used.
const SESSION: Duration = Duration::from_mins(3);
/// Between two initiations of a device's own.
const REKEY: Duration = Duration::from_secs(5);
/// How long it takes until a change of a node's endpoints is known to the other one.
const PUBLISHED_AFTER: Duration = Duration::from_secs(2);
/// After how long a relay that does not answer is left.
const SILENT: Duration = Duration::from_millis(1_600);
/// How long it takes until both ends have a relay's ports once both want them.
const LEASED_AFTER: Duration = Duration::from_millis(700);

/// What the model is told about chance.
pub(crate) trait Chance {
    /// Whether this datagram is lost.
    fn loses(&mut self) -> bool;
    /// Ticks until it arrives.
    fn delay(&mut self) -> u64;
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Initiation(u64),
    Response(u64),
    /// A packet of a session; with the number of a probe or of an echo.
    Data(u64, Option<(Probe, u64)>),
}

#[derive(Clone, Debug)]
struct Datagram {
    arrives: u64,
    from: SocketAddr,
    to: SocketAddr,
    slot: Slot,
    content: Content,
}

/// The pair.
pub(crate) struct World<C> {
    pub(crate) nodes: [Node; 2],
    pub(crate) now: Duration,
    pub(crate) relay: bool,
    pub(crate) slow: bool,
    pub(crate) traffic: bool,
    pub(crate) api_away: bool,
    pub(crate) chance: C,
    tick: u64,
    wire: Vec<Datagram>,
    next_session: u64,
    wanted_since: PerSlot<Option<Duration>>,
    /// Number of the relay that leases are at: another one is taken when that one is silent.
    relay_number: u8,
    /// The relay that has died.
    dead_relay: Option<u8>,
    /// When a node asked the relay that is dead.
    asked: Option<Duration>,
    /// The addresses that the relay forwards to, by leg and slot.
    legs: BTreeMap<(usize, Slot), SocketAddr>,
    /// Endpoints that were set on a slot with which packets were carried, although its path was up.
    pub(crate) disturbed: Vec<String>,
    /// For how long both slots have been tried at once, by either or both ends, and the longest such time.
    both_tried: Duration,
    pub(crate) longest_both_tried: Duration,
}

impl<C: Chance> World<C> {
    pub(crate) fn new(nats: [Nat; 2], relay: bool, chance: C) -> Self {
        Self {
            nodes: [Node::new(1, nats[0]), Node::new(2, nats[1])],
            now: Duration::ZERO,
            relay,
            slow: false,
            traffic: false,
            api_away: false,
            chance,
            tick: 0,
            wire: Vec::new(),
            next_session: 0,
            wanted_since: PerSlot::default(),
            relay_number: 0,
            dead_relay: None,
            asked: None,
            legs: BTreeMap::new(),
            disturbed: Vec::new(),
            both_tried: Duration::ZERO,
            longest_both_tried: Duration::ZERO,
        }
    }

    /// Runs for a while.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// Runs until both ends have a path on the slot that they carry packets on, or until the time is over; returns how
    /// long that took.
    pub(crate) fn run_until_up(
        &mut self,
        limit: Duration,
        wanted: impl Fn(Kind) -> bool,
    ) -> Option<Duration> {
        let since = self.now;
        while self.now < since + limit {
            self.step();
            let up = |index: usize| self.nodes[index].kind(1 - index).is_some_and(&wanted);
            if up(0) && up(1) && self.passes() {
                return Some(self.now.saturating_sub(since));
            }
        }
        None
    }

    /// Runs until the paths of both slots are as wanted at both ends, or until the time is over.
    pub(crate) fn run_until_both_slots(&mut self, limit: Duration, wanted: impl Fn(Kind) -> bool) {
        let end = self.now + limit;
        while self.now < end {
            self.step();
            let slots = (0..2).flat_map(|index| Slot::ALL.map(|slot| (index, slot)));
            let mut kinds = slots.map(|(index, slot)| self.nodes[index].paths.up(&uid(1 - index), slot));
            if kinds.all(|kind| kind.is_some_and(&wanted)) {
                return;
            }
        }
    }

    /// A daemon that starts anew: its devices stay, its memory is gone.
    pub(crate) fn restart(&mut self, index: usize) {
        let nonce = (u64::from(u8::try_from(index).unwrap()) << 32) + self.tick;
        self.nodes[index].paths = Paths::new(nonce);
    }

    /// A node that boots: its devices are new as well.
    pub(crate) fn reboot(&mut self, index: usize) {
        self.restart(index);
        self.nodes[index].devices = PerSlot::default();
    }

    /// The relay forgets its legs' addresses, as after a restart.
    pub(crate) fn kill_relay(&mut self) {
        self.legs.clear();
    }

    /// The relay dies for good; another one is there.
    pub(crate) fn lose_relay(&mut self) {
        self.dead_relay = Some(self.relay_number);
        self.legs.clear();
    }

    /// Whether a packet of either end would arrive at the other one on the slot that it is sent on.
    pub(crate) fn passes(&self) -> bool {
        (0..2).all(|index| {
            let node = &self.nodes[index];
            let slot = node.carrying;
            let Some(to) = node.devices.get(slot).endpoint else { return false };
            let Some(from) = node.site.clone().leave(node.socket(slot), to) else { return false };
            self.arrives(from, to, slot).is_some_and(|(at, _)| at == 1 - index)
        })
    }

    /// Whose port of the living relay an address is.
    fn leg_at(&self, to: SocketAddr, slot: Slot) -> Option<usize> {
        let lives = self.relay && self.dead_relay != Some(self.relay_number);
        (0..2).find(|index| leg(self.relay_number, *index, slot) == to).filter(|_| lives)
    }

    fn arrives(&self, from: SocketAddr, to: SocketAddr, slot: Slot) -> Option<(usize, SocketAddr)> {
        if let Some(index) = self.leg_at(to, slot) {
            let onward = *self.legs.get(&(1 - index, slot))?;
            let source = leg(self.relay_number, 1 - index, slot);
            return self.nodes[1 - index].site.enter(source, onward).map(|_| (1 - index, source));
        }
        (0..2).find_map(|index| self.nodes[index].site.enter(from, to).map(|_| (index, from)))
    }

    fn send(&mut self, index: usize, slot: Slot, content: Content) {
        let node = &mut self.nodes[index];
        let from = node.socket(slot);
        let device = node.devices.get_mut(slot);
        let Some(to) = device.endpoint else { return };
        device.sent += 100;
        let Some(from) = node.site.leave(from, to) else { return };
        self.carry(from, to, slot, content);
    }

    fn carry(&mut self, from: SocketAddr, to: SocketAddr, slot: Slot, content: Content) {
        if !self.chance.loses() {
            let arrives = self.tick + self.chance.delay();
            self.wire.push(Datagram { arrives, from, to, slot, content });
        }
    }

    fn initiate(&mut self, index: usize, slot: Slot) {
        let now = self.now;
        let pause = if self.slow { Duration::from_secs(5) } else { Duration::from_millis(900) };
        let device = self.nodes[index].devices.get_mut(slot);
        if self.slow && device.pending.is_some_and(|(_, at)| now < at + pause) {
            return;
        }
        self.next_session += 1;
        device.pending = Some((self.next_session, now));
        self.send(index, slot, Content::Initiation(self.next_session));
    }

    /// Sends a packet over a slot, or queues it until there is a session.
    fn packet(&mut self, index: usize, slot: Slot, probe: Option<(Probe, u64)>) {
        let now = self.now;
        let device = self.nodes[index].devices.get_mut(slot);
        if let Some((session, at)) = device.session.filter(|(_, at)| now < *at + SESSION) {
            self.send(index, slot, Content::Data(session, probe));
            let idle = self.nodes[index].devices.get(slot).pending.is_none_or(|(_, at)| now >= at + REKEY);
            if now >= at + Duration::from_mins(2) && idle {
                self.initiate(index, slot);
            }
            return;
        }
        device.queued = probe;
        if device.pending.is_none_or(|(_, at)| now >= at + REKEY) {
            self.initiate(index, slot);
        }
    }

    fn receive(&mut self, index: usize, source: SocketAddr, slot: Slot, content: Content) {
        let now = self.now;
        let device = self.nodes[index].devices.get_mut(slot);
        let authenticated = |device: &mut Device| {
            device.received += 100;
            if device.follow || device.endpoint.is_none() {
                device.endpoint = Some(source);
            } else if device.endpoint != Some(source) {
                device.drifts += 1;
            }
        };
        match content {
            Content::Initiation(session) => {
                device.unconfirmed = Some(session);
                device.received += 100;
                if self.slow && device.follow {
                    device.endpoint = Some(source);
                }
                // Answered where it came from.
                let from = self.nodes[index].socket(slot);
                if let Some(from) = self.nodes[index].site.leave(from, source) {
                    self.carry(from, source, slot, Content::Response(session));
                }
            }
            Content::Response(session) => {
                if device.pending.is_none_or(|(pending, _)| pending != session) {
                    return;
                }
                device.pending = None;
                device.establish(session, now);
                authenticated(device);
                let queued = device.queued.take();
                self.send(index, slot, Content::Data(session, queued));
            }
            Content::Data(session, probe) => {
                if device.unconfirmed == Some(session) {
                    device.unconfirmed = None;
                    device.establish(session, now);
                } else if device.session.is_none_or(|(known, _)| known != session)
                    && !device.former.contains(&session)
                {
                    return;
                }
                authenticated(device);
                match probe {
                    Some((Probe::Ask, nonce)) => self.packet(index, slot, Some((Probe::Echo, nonce))),
                    Some((Probe::Echo, nonce)) => {
                        let node = &mut self.nodes[index];
                        node.turn_wanted |= node.paths.echo(&uid(1 - index), slot, nonce);
                    }
                    Some((Probe::Invite, _)) => {
                        let node = &mut self.nodes[index];
                        node.turn_wanted |= node.paths.invite(now, &uid(1 - index), slot.other());
                    }
                    None => {}
                }
            }
        }
    }

    fn deliver(&mut self) {
        let tick = self.tick;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.wire).into_iter().partition(|datagram| datagram.arrives <= tick);
        self.wire = later;
        for Datagram { from, to, slot, content, .. } in due {
            if let Some(index) = self.leg_at(to, slot) {
                self.legs.insert((index, slot), from);
            }
            if let Some((index, source)) = self.arrives(from, to, slot) {
                self.receive(index, source, slot, content);
            }
        }
    }

    /// The API server carries what the nodes publish, and the relay grants what both ask for.
    fn publish(&mut self) {
        for index in 0..2 {
            let node = &mut self.nodes[index];
            let mut current = node.endpoints();
            current.sequence = node.sequence;
            if node.published.last().map(|(_, endpoints)| endpoints) != Some(&current) {
                node.sequence += 1;
                current.sequence = node.sequence;
                // The first list is there when the nodes meet.
                let delay = if node.sequence == 1 { Duration::ZERO } else { PUBLISHED_AFTER };
                node.published.push((self.now + delay, current));
            }
            if !self.api_away {
                let known = node.published.iter().rev().find(|(at, _)| *at <= self.now);
                if let Some((_, endpoints)) = known {
                    node.known = endpoints.clone();
                }
            }
        }
        if self.asked.is_some_and(|asked| self.now >= asked + SILENT) && self.dead_relay.is_some() {
            // Both ends have left it.
            self.relay_number += 1;
            (self.asked, self.dead_relay, self.wanted_since) = (None, None, PerSlot::default());
            self.nodes.iter_mut().for_each(|node| node.leased = PerSlot::default());
        }
        let lives = self.dead_relay.is_none();
        self.asked = self.asked.filter(|_| !lives);
        for slot in Slot::ALL {
            let wanted = (0..2).all(|index| self.nodes[index].paths.needs_relay(&uid(1 - index), slot));
            let since = self.wanted_since.get_mut(slot);
            *since = if wanted { since.or(Some(self.now)) } else { None };
            // A lease that is wanted is asked for.
            self.asked = self.asked.or(Some(self.now)).filter(|_| !lives && (wanted || self.asked.is_some()));
            let granted = self.relay && lives && since.is_some_and(|since| self.now >= since + LEASED_AFTER);
            for index in 0..2 {
                let node = &mut self.nodes[index];
                let kept =
                    self.relay && *node.leased.get(slot) && node.paths.needs_relay(&uid(1 - index), slot);
                *node.leased.get_mut(slot) = granted || kept;
            }
        }
    }

    fn step(&mut self) {
        self.now += TICK;
        self.tick += 1;
        self.publish();
        self.deliver();
        for index in 0..2 {
            let turn = self.tick % 10 == (index as u64) * 3;
            let due = self.nodes[index].paths.due().is_some_and(|due| due <= self.now);
            let wanted = std::mem::take(&mut self.nodes[index].turn_wanted);
            if turn || due || wanted {
                self.turn(index);
            }
            if self.traffic && self.tick.is_multiple_of(5) {
                self.packet(index, self.nodes[index].carrying, None);
            }
            for slot in Slot::ALL {
                self.keep_alive(index, slot);
            }
        }
        let trying = |slot| (0..2).any(|index| self.nodes[index].paths.is_trying(&uid(1 - index), slot));
        self.both_tried =
            if trying(Slot::A) && trying(Slot::B) { self.both_tried + TICK } else { Duration::ZERO };
        self.longest_both_tried = self.longest_both_tried.max(self.both_tried);
    }

    fn keep_alive(&mut self, index: usize, slot: Slot) {
        if self.tick.is_multiple_of(250) {
            self.packet(index, slot, None);
        }
        let now = self.now;
        let device = self.nodes[index].devices.get(slot);
        let retry = device.pending.is_some_and(|(_, at)| now >= at + Duration::from_millis(5_300));
        if retry {
            self.initiate(index, slot);
        }
    }

    fn turn(&mut self, index: usize) {
        let other = 1 - index;
        let member = self.nodes[other].member(other);
        let mut peers = Peers { own: Some(own(index)), ..Peers::default() };
        peers.peers.insert(NodeName::new(format!("n{other}")), member);
        let node = &self.nodes[index];
        let mut paths = node.paths.clone();
        let seen = Seen { now: self.now, node, index, slow: self.slow, relay: self.relay_number };
        let tried = PerSlot::from_fn(|slot| node.paths.is_trying(&uid(other), slot));
        let steps = paths.step(self.now, &peers, node.surroundings(), &seen);
        self.nodes[index].paths = paths;
        for step in steps {
            if let Some(event) = step.event {
                if event == Event::Lost(Kind::Relayed) {
                    self.asked = self.asked.or(Some(self.now));
                }
                self.nodes[index].events.push((self.now, step.slot, event));
            }
            for action in step.actions {
                match action {
                    Action::Aim { to, follow } => {
                        let node = &mut self.nodes[index];
                        let up = node.paths.up(&uid(other), step.slot).is_some();
                        if up
                            && !*tried.get(step.slot)
                            && node.carrying == step.slot
                            && node.devices.get(step.slot).endpoint != Some(to)
                        {
                            self.disturbed.push(format!("{:?}: {index} {:?} to {to}", self.now, step.slot));
                        }
                        let device = node.devices.get_mut(step.slot);
                        (device.endpoint, device.follow) = (Some(to), follow);
                        self.initiate(index, step.slot);
                    }
                    Action::Initiate => self.initiate(index, step.slot),
                    Action::Probe(nonce) => self.packet(index, step.slot, Some((Probe::Ask, nonce))),
                    Action::AskRelay | Action::Doubt => self.asked = self.asked.or(Some(self.now)),
                    Action::Invite => self.packet(index, step.slot.other(), Some((Probe::Invite, 0))),
                }
            }
        }
        // The plan: where the machine says, and pinned unless it follows.
        let node = &mut self.nodes[index];
        for ((_, slot), path) in node.paths.paths() {
            let device = node.devices.get_mut(slot);
            device.follow = path.follow;
            if device.endpoint.is_none() || (!path.follow && path.endpoint.is_some()) {
                device.endpoint = path.endpoint;
            }
        }
        node.carrying = node.paths.steer(self.now, &uid(other), node.pq_prefers);
    }
}
