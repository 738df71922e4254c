//! The paths to all peers: which endpoint each slot of each peer is reached at. Pure: time and what the devices say are
//! arguments, what to do is the result.
//!
//! AllowedIPs, keys and the guard never depend on a path. An endpoint is no claim to anything: only the holder of a key can
//! answer there.

mod candidate;
mod observations;
mod part;
mod search;
mod slot;
mod standing;
mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use keyring::{PerSlot, Slot};

use crate::admission::{Member, World};
use crate::annotation::Endpoints;
use crate::desired::Path;
use crate::node::NodeUid;

pub use candidate::{Candidate, Kind, Surroundings, candidates, is_public, socket};
pub use observations::{Observations, endpoints, published_addresses};
pub use part::Part;
pub use slot::{Action, Event, SlotPath, View};
use slot::{Context, OtherSlot};
pub use standing::Standing;

/// How long after the end with the lower UID the other one tries a direct path: longer than most trials take.
const TRIALS_APART: Duration = Duration::from_secs(10);

/// How long what worked before the start is remembered of nodes that are not in the mesh.
const REMEMBERED: Duration = Duration::from_mins(10);

/// What to do about a slot of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// UID of the peer's Node.
    pub uid: NodeUid,
    /// The slot.
    pub slot: Slot,
    /// What to do, in this order.
    pub actions: Vec<Action>,
    /// What has happened.
    pub event: Option<Event>,
}

/// What the steps depend on besides the members and this node's place.
pub trait Outlook {
    /// What the device says of a peer's slot; none if it has no such peer.
    fn view(&self, member: &Member, slot: Slot) -> Option<View>;

    /// The relay's port that leads to a peer's slot.
    fn relayed(&self, uid: &NodeUid, slot: Slot) -> Option<SocketAddr>;

    /// Whether an endpoint is a port of a relay.
    fn is_relay(&self, endpoint: SocketAddr) -> bool;

    /// The slot that carries pods' packets to a peer.
    fn carrying(&self, uid: &NodeUid) -> Option<Slot>;

    /// Whether the device of a slot begins a handshake with a peer only every 5 s.
    fn is_limited(&self, slot: Slot) -> bool;

    /// Whether packets of the present path MTU have been answered along the path to a peer's slot that leads to `endpoint`.
    fn is_measured(&self, _uid: &NodeUid, _slot: Slot, _endpoint: SocketAddr) -> bool {
        true
    }
}

/// The paths to all peers.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    pairs: BTreeMap<NodeUid, Pair>,
    own: Surroundings,
    next_nonce: u64,
    /// The paths that worked before this daemon started, of peers that are not known yet.
    remembered: Remembered,
    /// When the last step was taken.
    stepped: Option<Duration>,
}

/// The path to each slot of each peer that worked last.
pub type Remembered = BTreeMap<(NodeUid, Slot), Candidate>;

#[derive(Clone, Debug)]
struct Pair {
    /// What the candidates were computed from.
    reach: Endpoints,
    basis: Basis,
    candidates: PerSlot<Vec<Candidate>>,
    /// The relay's port that was there at the last step.
    relayed: PerSlot<Option<SocketAddr>>,
    slots: PerSlot<SlotPath>,
    /// Whether packets may be moved to a slot by choice: those of the present path MTU pass there.
    measured: PerSlot<bool>,
}

/// What a peer's candidates depend on besides its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Basis {
    prescribed: Option<Vec<crate::admission::Endpoint>>,
    location: Option<String>,
    ports: PerSlot<u16>,
}

impl Basis {
    fn of(member: &Member) -> Self {
        Self {
            prescribed: member.prescribed.clone(),
            location: member.location.clone(),
            ports: member.state.slots.map(|slot| slot.port),
        }
    }
}

impl Paths {
    /// No paths yet. Probes are numbered from `first_nonce`.
    pub fn new(first_nonce: u64) -> Self {
        Self { next_nonce: first_nonce, ..Self::default() }
    }

    /// The same, with paths that are tried first.
    pub fn remembering(first_nonce: u64, remembered: Remembered) -> Self {
        Self { remembered, ..Self::new(first_nonce) }
    }

    /// What a daemon that starts anew should remember.
    pub fn remembered(&self) -> Remembered {
        let of_slot = |(uid, pair): (&NodeUid, &Pair), slot: Slot| {
            let worked = pair.slots.get(slot).worked()?;
            Some(((uid.clone(), slot), worked))
        };
        let known = self.pairs.iter().flat_map(|pair| Slot::ALL.map(|slot| of_slot(pair, slot)));
        let unknown = self.remembered.iter().map(|(place, path)| (place.clone(), *path));
        unknown.chain(known.flatten()).collect()
    }

    /// Takes a step with each peer in `world`; forgets the others.
    pub fn step(
        &mut self,
        now: Duration,
        world: &World,
        own: Surroundings,
        outlook: &impl Outlook,
    ) -> Vec<Step> {
        let moved = self.own.links != own.links;
        let other_place = self.own != own;
        self.own = own;
        self.stepped = Some(now);
        let own_uid = world.own.as_ref().map(|own| &own.uid);
        let mut former = std::mem::take(&mut self.pairs);
        let mut steps = Vec::new();
        for member in world.peers.values() {
            let pair = former.remove(&member.uid);
            steps.extend(self.step_member(now, (pair, member), own_uid, (moved, other_place), outlook));
        }
        if now >= REMEMBERED {
            self.remembered.clear();
        }
        steps
    }

    /// Takes a step with one member, of which `pair` is known; says whether this node has `moved`, or seems to be elsewhere.
    fn step_member(
        &mut self,
        now: Duration,
        (pair, member): (Option<Pair>, &Member),
        own_uid: Option<&NodeUid>,
        (moved, other_place): (bool, bool),
        outlook: &impl Outlook,
    ) -> Vec<Step> {
        let mut pair = pair.unwrap_or_else(|| Pair::new(now, member, &self.own, &mut self.remembered));
        let reached_otherwise = pair.reach != member.reach || pair.basis != Basis::of(member);
        let mut others = PerSlot { a: false, b: false };
        if reached_otherwise || other_place {
            let former = pair.candidates.clone();
            pair.consider(member, &self.own);
            others = PerSlot::from_fn(|slot| former.get(slot) != pair.candidates.get(slot));
        }
        let mut steps = Vec::new();
        for slot in Slot::ALL {
            if *others.get(slot) {
                pair.slots.get_mut(slot).retry(now, pair.candidates.get(slot));
            }
            if moved {
                pair.slots.get_mut(slot).suspect(now);
            }
            let (actions, event) =
                pair.step(now, (member, own_uid < Some(&member.uid)), slot, outlook, self.next_nonce);
            self.next_nonce = self.next_nonce.wrapping_add(1);
            if !actions.is_empty() || event.is_some() {
                steps.push(Step { uid: member.uid.clone(), slot, actions, event });
            }
        }
        self.pairs.insert(member.uid.clone(), pair);
        steps
    }

    /// A peer has echoed a probe over a slot. Returns whether it may show a path that was searched for.
    pub fn echo(&mut self, uid: &NodeUid, slot: Slot, nonce: u64) -> bool {
        self.pairs.get_mut(uid).is_some_and(|pair| pair.slots.get_mut(slot).echo(nonce))
    }

    /// A peer sends to our mapped address of a slot now. Returns whether that is news.
    pub fn invite(&mut self, now: Duration, uid: &NodeUid, slot: Slot) -> bool {
        self.pairs.get_mut(uid).is_some_and(|pair| pair.slots.get_mut(slot).invite(now))
    }

    /// A neighbour says that a peer looks for us: its mapped addresses are tried at once where there is no path, and a path
    /// that seems to work is probed.
    pub fn meet(&mut self, now: Duration, uid: &NodeUid) {
        if let Some(pair) = self.pairs.get_mut(uid) {
            pair.slots.a.meet(now);
            pair.slots.b.meet(now);
        }
    }

    /// The path to each slot of each peer, for the plan.
    pub fn paths(&self) -> BTreeMap<(NodeUid, Slot), Path> {
        let of_slot = |(uid, pair): (&NodeUid, &Pair), slot| ((uid.clone(), slot), pair.path(slot));
        self.pairs.iter().flat_map(|pair| Slot::ALL.map(|slot| of_slot(pair, slot))).collect()
    }

    /// The path to a peer's slot, for the plan; none if no step was taken with the peer.
    pub fn path(&self, uid: &NodeUid, slot: Slot) -> Option<Path> {
        self.pairs.get(uid).map(|pair| pair.path(slot))
    }

    /// Where datagrams for a peer's slot go.
    pub fn endpoint(&self, uid: &NodeUid, slot: Slot) -> Option<SocketAddr> {
        self.pairs.get(uid).and_then(|pair| pair.slots.get(slot).endpoint().0)
    }

    /// What kind of path there is to a peer's slot; none while there is none.
    pub fn up(&self, uid: &NodeUid, slot: Slot) -> Option<Kind> {
        self.pairs.get(uid).and_then(|pair| pair.slots.get(slot).up())
    }

    /// The slot to send to instead of `wanted`, where only the other one has a path, or a direct one.
    /// A slot on which the peer waits for us to try a direct path is left. No path is taken by choice before packets of the
    /// present path MTU have been answered there; a route's MTU that is lowered for a moment would stay in pods for minutes.
    pub fn steer(&self, now: Duration, uid: &NodeUid, wanted: Slot) -> Slot {
        let Some(pair) = self.pairs.get(uid) else { return wanted };
        let rank = |slot| {
            let (path, measured) = (pair.slots.get(slot), *pair.measured.get(slot));
            let better = |kind: Kind| kind.is_direct() && measured;
            path.up().map(|kind| (better(kind), !path.is_trying(), measured, !path.is_invited(now)))
        };
        if rank(wanted.other()) > rank(wanted) { wanted.other() } else { wanted }
    }

    /// Whether a better path to a peer's slot is tried instead of the one that there is.
    pub fn is_trying(&self, uid: &NodeUid, slot: Slot) -> bool {
        self.pairs.get(uid).is_some_and(|pair| pair.slots.get(slot).is_trying())
    }

    /// Whether a peer's slot needs a relay: no direct path was found, or both ends are behind NAT and none is known yet.
    pub fn needs_relay(&self, uid: &NodeUid, slot: Slot) -> bool {
        let Some(pair) = self.pairs.get(uid) else { return false };
        if pair.basis.prescribed.is_some() {
            return false;
        }
        let path = pair.slots.get(slot);
        let both_mapped = self.own.mapping.is_mapped() && (pair.reach.mapping.is_mapped() || pair.reach.nat);
        let beside = |one: &Candidate| matches!(one.kind, Kind::Link | Kind::Site);
        match path.up() {
            Some(kind) => !kind.is_direct(),
            None if path.has_failed() => true,
            None => both_mapped && slot == Slot::B && !pair.candidates.get(slot).iter().any(beside),
        }
    }

    /// When the next step is due, if one is. What was due at the last one has been taken.
    pub fn due(&self) -> Option<Duration> {
        let slots = self.pairs.values().flat_map(|pair| Slot::ALL.map(|slot| pair.slots.get(slot)));
        slots.filter_map(SlotPath::due).filter(|due| Some(*due) > self.stepped).min()
    }
}

impl Pair {
    fn new(now: Duration, member: &Member, own: &Surroundings, remembered: &mut Remembered) -> Self {
        let slots = PerSlot::from_fn(|slot| match remembered.remove(&(member.uid.clone(), slot)) {
            Some(last) => SlotPath::remembered(now, last),
            None => SlotPath::new(now),
        });
        let mut pair = Self {
            reach: Endpoints::default(),
            basis: Basis::of(member),
            candidates: PerSlot::default(),
            relayed: PerSlot::default(),
            slots,
            measured: PerSlot::default(),
        };
        pair.consider(member, own);
        pair
    }

    fn path(&self, slot: Slot) -> Path {
        let (endpoint, follow) = self.slots.get(slot).endpoint();
        let first = || self.candidates.get(slot).first().map(|candidate| candidate.to);
        Path { endpoint: endpoint.or_else(first), follow }
    }

    fn consider(&mut self, member: &Member, own: &Surroundings) {
        self.reach = member.reach.clone();
        self.basis = Basis::of(member);
        self.candidates = PerSlot::from_fn(|slot| candidates(own, member, slot));
    }

    fn step(
        &mut self,
        now: Duration,
        (member, leads): (&Member, bool),
        slot: Slot,
        outlook: &impl Outlook,
        nonce: u64,
    ) -> (Vec<Action>, Option<Event>) {
        let view = outlook.view(member, slot);
        let direct = self.candidates.get(slot);
        let relayed = outlook.relayed(&member.uid, slot).filter(|_| member.prescribed.is_none());
        if std::mem::replace(self.relayed.get_mut(slot), relayed) != relayed && relayed.is_some() {
            let first = slot == Slot::B && self.slots.a.up().is_none();
            self.slots.get_mut(slot).relay_offered(now, first);
        }
        let with_relay;
        let candidates = match relayed.map(|to| Candidate { kind: Kind::Relayed, to }) {
            None => direct.as_slice(),
            Some(relay) => {
                // While the one slot tries to get through, the other one takes the relay.
                let first = slot == Slot::B && self.slots.a.up().is_none();
                with_relay =
                    if first { prepended(relay, direct) } else { [direct.as_slice(), &[relay]].concat() };
                with_relay.as_slice()
            }
        };
        let carries = outlook.carrying(&member.uid) == Some(slot);
        let at_relay = view.and_then(|view| view.endpoint).is_some_and(|endpoint| outlook.is_relay(endpoint));
        let trial_after = if leads { Duration::ZERO } else { TRIALS_APART };
        let limited = outlook.is_limited(slot);
        let other = self.slots.get(slot.other());
        let by_peer = other.is_tried_by_peer(now, limited);
        let other = match by_peer {
            true if !leads => OtherSlot::TriedFirst,
            false if !other.is_trying() => OtherSlot::Rests,
            _ => OtherSlot::Tried,
        };
        let context = Context { candidates, carries, limited, trial_after, at_relay, other, nonce };
        let path = self.slots.get_mut(slot);
        let was_doubted = path.is_doubted();
        let (actions, event) = path.step(now, view.as_ref(), context);
        let doubted = path.is_doubted() && !was_doubted;
        let endpoint = path.endpoint().0;
        let passes = |endpoint| outlook.is_measured(&member.uid, slot, endpoint);
        *self.measured.get_mut(slot) = carries || endpoint.is_some_and(passes);
        if doubted {
            self.slots.get_mut(slot.other()).suspect_too(now);
        }
        // There is no endpoint yet to try in vain.
        let is_looked_up = member.prescribed.as_ref().is_some_and(Vec::is_empty);
        (actions, event.filter(|event| !(is_looked_up && *event == Event::Unreachable)))
    }
}

fn prepended(first: Candidate, rest: &[Candidate]) -> Vec<Candidate> {
    std::iter::once(first).chain(rest.iter().copied()).collect()
}

#[cfg(test)]
mod tests;
