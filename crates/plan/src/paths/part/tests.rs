//! Steps with some peers lead to the same as steps with all.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use keyring::{PerSlot, PublicKey};
use proptest::prelude::*;

use super::*;
use crate::admission::{Own, World};
use crate::annotation::{Endpoints, Phase, SlotState, State};
use crate::node::NodeName;
use crate::paths::{Action, View};

const PEERS: u8 = 3;

/// What happens to a peer's slot between two steps.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Received,
    Sent,
    Both,
    Handshake,
    SessionEnds,
    Drift,
    /// The peer sends from elsewhere and is followed.
    Moves(u8),
    Echo,
    Relay(bool),
    Carried,
    Invitation,
    Meeting,
    /// It publishes another list of endpoints.
    Publishes(u8),
    /// It leaves, or comes back.
    Leaves,
}

#[derive(Clone, Debug, Default)]
struct Device {
    endpoint: Option<SocketAddr>,
    handshake: Option<Duration>,
    counts: [u64; 3],
    leased: bool,
}

/// Endpoint, handshake and counters.
type Said = (Option<SocketAddr>, Option<Duration>, [u64; 3]);

struct Devices {
    now: Duration,
    slots: BTreeMap<(NodeUid, Slot), Device>,
    carrying: Slot,
}

impl Outlook for Devices {
    fn view(&self, member: &Member, slot: Slot) -> Option<View> {
        let device = &self.slots[&(member.uid.clone(), slot)];
        let [received, sent, drifts] = device.counts;
        let handshake = device.handshake.map(|at| self.now.saturating_sub(at));
        Some(View { endpoint: device.endpoint, handshake, received, sent, drifts })
    }

    fn relayed(&self, uid: &NodeUid, slot: Slot) -> Option<SocketAddr> {
        self.slots[&(uid.clone(), slot)].leased.then(|| ([192, 0, 2, 99], 24_000).into())
    }

    fn is_relay(&self, endpoint: SocketAddr) -> bool {
        endpoint.port() == 24_000
    }

    fn carrying(&self, _: &NodeUid) -> Option<Slot> {
        Some(self.carrying)
    }

    fn is_limited(&self, _: Slot) -> bool {
        false
    }
}

fn uid(number: u8) -> NodeUid {
    NodeUid::new(format!("u{number}"))
}

fn member(number: u8) -> Member {
    let slot = |slot: Slot| SlotState {
        key: PublicKey::from_bytes(&[number * 2 + 3 + u8::from(slot == Slot::B); 32]).unwrap(),
        generation: 1,
        port: 51840,
    };
    let address = IpAddr::from([198, 51, 100, number]);
    Member {
        uid: uid(number),
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        state: State {
            uid: uid(number),
            generation: 1,
            slots: PerSlot::from_fn(slot),
            prefer: Slot::A,
            drain: None,
            phase: Phase::Steady,
            proofs: None,
        },
        endpoint: None,
        prescribed: None,
        name: None,
        reach: Endpoints {
            addresses: vec![address],
            observed: PerSlot::from_fn(|_| vec![SocketAddr::new([203, 0, 113, number].into(), 4000)]),
            ..Endpoints::default()
        },
        published: 0,
        location: None,
        nat: false,
        relay: false,
        keepalive: None,
    }
}

fn happens() -> impl Strategy<Value = Option<Happens>> {
    prop_oneof![
        12 => Just(None),
        3 => Just(Some(Happens::Received)),
        4 => Just(Some(Happens::Sent)),
        4 => Just(Some(Happens::Both)),
        3 => Just(Some(Happens::Handshake)),
        1 => Just(Some(Happens::SessionEnds)),
        1 => Just(Some(Happens::Drift)),
        1 => (0..4_u8).prop_map(|number| Some(Happens::Moves(number))),
        6 => Just(Some(Happens::Echo)),
        1 => any::<bool>().prop_map(|leased| Some(Happens::Relay(leased))),
        1 => Just(Some(Happens::Carried)),
        1 => Just(Some(Happens::Invitation)),
        1 => Just(Some(Happens::Meeting)),
        1 => (0..4_u8).prop_map(|list| Some(Happens::Publishes(list))),
        1 => Just(Some(Happens::Leaves)),
    ]
}

/// Steps without the numbers of their probes, which count the steps.
fn masked(steps: &[Step]) -> Vec<Step> {
    let mut steps = steps.to_vec();
    for action in steps.iter_mut().flat_map(|step| &mut step.actions) {
        if let Action::Probe(nonce) = action {
            *nonce = 0;
        }
    }
    steps
}

/// The probes that steps send.
fn note(probes: &mut BTreeMap<(NodeUid, Slot), u64>, steps: &[Step]) {
    for step in steps {
        for action in &step.actions {
            if let Action::Probe(nonce) = action {
                probes.insert((step.uid.clone(), step.slot), *nonce);
            }
        }
    }
}

struct Run {
    world: World,
    devices: Devices,
    whole: (Paths, BTreeMap<(NodeUid, Slot), u64>),
    parts: (Paths, BTreeMap<(NodeUid, Slot), u64>),
    /// What the devices said at the last step.
    seen: BTreeMap<(NodeUid, Slot), Said>,
    /// Members that are away.
    away: BTreeMap<NodeName, Member>,
    /// Peers with which a step is wanted; all if they are not known.
    wanted: Option<BTreeSet<NodeUid>>,
    gone: BTreeSet<NodeUid>,
    partial: u32,
}

impl Run {
    fn new() -> Self {
        let own = Own {
            uid: NodeUid::new("u1x"),
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            location: None,
            relay: false,
            renewal: None,
        };
        let peers = (0..PEERS).map(|number| (NodeName::new(format!("n{number}")), member(number)));
        let world = World { own: Some(own), peers: peers.collect(), ..World::default() };
        let places = (0..PEERS).flat_map(|number| Slot::ALL.map(|slot| (uid(number), slot)));
        let slots = places.map(|place| (place, Device::default())).collect();
        Self {
            world,
            devices: Devices { now: Duration::ZERO, slots, carrying: Slot::A },
            whole: (Paths::new(0), BTreeMap::new()),
            parts: (Paths::new(1 << 32), BTreeMap::new()),
            seen: BTreeMap::new(),
            away: BTreeMap::new(),
            wanted: None,
            gone: BTreeSet::new(),
            partial: 0,
        }
    }

    /// A step with a peer is wanted.
    fn want(&mut self, uid: &NodeUid) {
        if let Some(wanted) = &mut self.wanted {
            wanted.insert(uid.clone());
        }
    }

    fn happen(&mut self, number: u8, slot: Slot, event: Happens) {
        let now = self.devices.now;
        let place = (uid(number), slot);
        let device = self.devices.slots.get_mut(&place).unwrap();
        match event {
            Happens::Received => device.counts[0] += 100,
            Happens::Sent => device.counts[1] += 100,
            Happens::Both => {
                device.counts = [device.counts[0] + 100, device.counts[1] + 100, device.counts[2]];
            }
            Happens::Handshake => device.handshake = Some(now),
            Happens::SessionEnds => device.handshake = None,
            Happens::Drift => {
                device.counts[0] += 100;
                device.counts[2] += 1;
            }
            Happens::Moves(to) => {
                // By a datagram that it has authenticated. Where it ends up may be where it was at the last step.
                device.counts[0] += 100;
                device.endpoint = Some(SocketAddr::new([203, 0, 113, 50 + to].into(), 4000));
            }
            Happens::Relay(leased) => {
                device.leased = leased;
                self.want(&place.0);
            }
            Happens::Carried => {
                self.devices.carrying = self.devices.carrying.other();
                for number in 0..PEERS {
                    self.want(&uid(number));
                }
            }
            Happens::Echo => {
                // It is a datagram as well.
                device.counts[0] += 100;
                for (paths, probes) in [&mut self.whole, &mut self.parts] {
                    let nonce = probes.get(&place).copied().unwrap_or_default();
                    paths.echo(&place.0, slot, nonce);
                }
                self.want(&place.0);
            }
            Happens::Invitation => {
                for (paths, _) in [&mut self.whole, &mut self.parts] {
                    paths.invite(now, &place.0, slot);
                }
                self.want(&place.0);
            }
            Happens::Meeting => {
                for (paths, _) in [&mut self.whole, &mut self.parts] {
                    paths.meet(now, &place.0);
                }
                self.want(&place.0);
            }
            Happens::Publishes(list) => {
                let name = NodeName::new(format!("n{number}"));
                if let Some(member) = self.world.peers.get_mut(&name) {
                    member.reach.addresses =
                        (0..list).map(|last| IpAddr::from([198, 51, 100, last])).collect();
                    member.published += 1;
                    self.want(&place.0);
                }
            }
            Happens::Leaves => {
                let name = NodeName::new(format!("n{number}"));
                if let Some(member) = self.away.remove(&name) {
                    self.world.peers.insert(name, member);
                    self.gone.remove(&place.0);
                    self.want(&place.0);
                } else if let Some(member) = self.world.peers.remove(&name) {
                    self.away.insert(name, member);
                    self.gone.insert(place.0);
                }
            }
        }
    }

    fn step(&mut self) {
        let now = self.devices.now;
        let said = |device: &Device| (device.endpoint, device.handshake, device.counts);
        let saying: BTreeMap<_, _> =
            self.devices.slots.iter().map(|(place, device)| (place.clone(), said(device))).collect();
        let before = std::mem::replace(&mut self.seen, saying);
        let own = Surroundings::default();
        let steps = self.whole.0.step(now, &self.world, own.clone(), &self.devices);
        let gone = std::mem::take(&mut self.gone);
        let other = match self.wanted.replace(BTreeSet::new()) {
            None => self.parts.0.step(now, &self.world, own, &self.devices),
            Some(wanted) => {
                self.partial += 1;
                let moved = self.seen.iter().filter(|(place, said)| before.get(*place) != Some(*said));
                let mut uids: BTreeSet<NodeUid> = moved.map(|((uid, _), _)| uid.clone()).collect();
                uids.extend(self.parts.0.due_peers(now).into_iter().cloned());
                let is_known_alike = wanted.is_empty() && gone.is_empty();
                uids.extend(wanted);
                let members = self.world.peers.values().filter(|member| uids.contains(&member.uid));
                let own_uid = self.world.own.as_ref().map(|own| &own.uid);
                if is_known_alike {
                    self.parts.0.step_some(now, own_uid, members, &self.devices).steps
                } else {
                    self.parts.0.step_changed(now, own_uid, gone.iter(), members, &self.devices)
                }
            }
        };
        assert_eq!(masked(&steps), masked(&other), "at {now:?}");
        note(&mut self.whole.1, &steps);
        note(&mut self.parts.1, &other);
        for place in self.devices.slots.keys() {
            let of = |paths: &Paths| {
                let (uid, slot) = (&place.0, place.1);
                let wanted = paths.steer(now, uid, Slot::A);
                (paths.up(uid, slot), paths.endpoint(uid, slot), paths.is_trying(uid, slot), wanted)
            };
            assert_eq!(of(&self.whole.0), of(&self.parts.0), "{place:?} at {now:?}");
        }
        for step in &steps {
            for action in &step.actions {
                if let Action::Aim { to, .. } = action {
                    self.devices.slots.get_mut(&(step.uid.clone(), step.slot)).unwrap().endpoint = Some(*to);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_with_some_peers_lead_to_the_same_as_steps_with_all(
        ticks in prop::collection::vec((200..2_500_u64, prop::collection::vec(happens(), 6)), 1..120),
    ) {
        let mut run = Run::new();
        for (millis, events) in ticks {
            run.devices.now += Duration::from_millis(millis);
            let slots = (0..PEERS).flat_map(|number| Slot::ALL.map(|slot| (number, slot)));
            for ((number, slot), event) in slots.zip(events) {
                if let Some(event) = event {
                    run.happen(number, slot, event);
                }
            }
            run.step();
        }
    }
}

#[test]
fn a_peer_that_answers_and_says_nothing_new_takes_no_steps() {
    let mut run = Run::new();
    for second in 1..200 {
        run.devices.now = Duration::from_secs(second);
        if second % 10 == 1 && second < 20 {
            for number in 0..PEERS {
                for slot in Slot::ALL {
                    run.happen(number, slot, Happens::Handshake);
                    run.happen(number, slot, Happens::Received);
                }
            }
        }
        run.step();
    }
    assert!(run.partial > 150, "{}", run.partial);
    assert_eq!(run.parts.0.due_peers(run.devices.now), BTreeSet::new());
}
