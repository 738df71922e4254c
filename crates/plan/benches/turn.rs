//! Time of the pure steps of one turn of the loop on an unchanged cluster, by the number of nodes.
//!
//! `make bench-plan`, or `QUICK=1 make bench-plan` for fewer repetitions.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking and prints its table"
)]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and its own settings")]

#[path = "../tests/setup/mod.rs"]
mod setup;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use keyring::{PerSlot, PrivateKey, PublicKey, Slot};
use plan::admission::{Admission, AdmissionPolicy, Ledger, Member, admit};
use plan::annotation::{Endpoints, Phase, SlotState, State};
use plan::check::check;
use plan::cluster::Cluster;
use plan::desired::{Setup, Underlay};
use plan::look::moved;
use plan::network::{Network, Peer};
use plan::node::{NodeName, NodeRecord, NodeUid};
use plan::part::desired_share;
use plan::paths::{Outlook, Part, Paths, Surroundings, View};
use plan::{desired, diff};
use wireguard::{DeviceState, PeerState};

const SIZES: [usize; 4] = [50, 500, 1_000, 5_000];

fn main() {
    let quick = std::env::var_os("QUICK").is_some() || std::env::args().any(|argument| argument == "--quick");
    let runs = if quick { 3 } else { 15 };
    println!("milliseconds, median of {runs}; an unchanged cluster, IPv4, both slots");
    let columns: Vec<Vec<(&str, Duration)>> = SIZES.iter().map(|nodes| measure(*nodes, runs)).collect();
    let line = |name: &str, cells: Vec<String>| println!("{name:<14}{}", cells.concat());
    line("nodes", SIZES.iter().map(|nodes| format!("{nodes:>10}")).collect());
    for row in 0..columns[0].len() {
        let cell = |column: &Vec<(&str, Duration)>| format!("{:>10.3}", column[row].1.as_secs_f64() * 1e3);
        line(columns[0][row].0, columns.iter().map(cell).collect());
    }
}

/// The steps with their median times.
fn measure(nodes: usize, runs: usize) -> Vec<(&'static str, Duration)> {
    let records: Vec<NodeRecord> = (0..nodes).map(record).collect();
    let (policy, own) = (policy(), NodeName::new("node-0"));
    let admitted = |ledger: &Ledger| admit(&policy, &own, &records, ledger);
    let ledger = admitted(&Ledger::default()).ledger;
    let admission = admitted(&ledger);
    assert_eq!(admission.world.peers.len(), nodes - 1);
    let (setup, underlay) = (setup(&admission), underlay(&admission));
    let wanted = desired(&admission.world, &setup, &underlay);
    let observed = wanted.clone();
    assert!(check(&wanted, &admission.world).is_empty() && diff(&wanted, &observed).is_empty());
    let active = || {
        let members = admission.world.peers.values();
        members.map(|member| setup.active_slot(member)).collect::<Vec<_>>()
    };
    let turn = || {
        let admission = admitted(&ledger);
        let wanted = desired(&admission.world, &setup, &underlay);
        let ops = diff(&wanted, &observed);
        let violations = check(&wanted, &admission.world);
        let active = admission.world.peers.values().map(|member| setup.active_slot(member));
        (ops, violations, active.collect::<Vec<_>>(), admission.ledger == ledger)
    };
    let (before, after) = (device(&wanted, false), device(&wanted, true));
    let mut paths = settled_paths(&admission, &before);
    let states = || records.iter().filter_map(|record| State::parse(record.state.as_deref()?).ok()).count();
    vec![
        ("parse", median(runs, states)),
        ("admit", median(runs, || admitted(&ledger))),
        ("desired", median(runs, || desired(&admission.world, &setup, &underlay))),
        ("check", median(runs, || check(&wanted, &admission.world))),
        ("diff", median(runs, || diff(&wanted, &observed))),
        ("active slots", median(runs, active)),
        ("ledger compare", median(runs, || admission.ledger == ledger)),
        ("whole turn", median(runs, turn)),
        ("copy admission", median(runs, || admission.clone())),
        ("admit a part", median(runs * 20, one_change(&policy, &own, &records, None))),
        ("one change", median(runs * 20, one_change(&policy, &own, &records, Some((&setup, &underlay))))),
        ("idle look", median(runs, || look(&before, &before, &mut paths, &admission))),
        ("one moved", median(runs, || look(&before, &after, &mut paths, &admission))),
    ]
}

/// What the loop decides when one Node has other endpoints: about that Node and those that compete with it, and with a setup
/// also what this means for the network, which steps lead there, and whether they may be taken.
fn one_change(
    policy: &AdmissionPolicy,
    own: &NodeName,
    records: &[NodeRecord],
    setup: Option<(&Setup, &Underlay)>,
) -> impl FnMut() {
    let mut cluster = Cluster::remembered(own.clone(), Ledger::default(), None);
    let list = records.iter().map(|record| (record.name.clone(), record.clone()));
    cluster.relist(Duration::ZERO, list.collect());
    let mut admission = cluster.admit(policy);
    while cluster.remember(policy, &admission.ledger) {
        admission = cluster.admit(policy);
    }
    let changed = &records[records.len() / 2];
    let listed = Endpoints::parse(changed.endpoints.as_deref().unwrap()).unwrap();
    let other = Endpoints { nat: !listed.nat, sequence: listed.sequence + 1, ..listed };
    let mut next = [NodeRecord { endpoints: Some(other.render()), ..changed.clone() }, changed.clone()];
    let mut wanted = setup.map(|(setup, underlay)| desired(&admission.world, setup, underlay));
    let mut observed = wanted.clone();
    move || {
        assert!(cluster.apply(Duration::ZERO, next[0].clone()));
        next.swap(0, 1);
        let part = cluster.admit_changed(policy).unwrap();
        assert_eq!((part.nodes().len(), part.changed_peers(&admission).count()), (1, 1));
        if let (Some((setup, underlay)), Some(wanted), Some(observed)) = (setup, &mut wanted, &mut observed) {
            let own = admission.world.own.as_ref();
            let share = |of: &Admission| {
                let peers = part.nodes().iter().filter_map(|node| of.world.peers.get_key_value(node));
                desired_share(own, peers, setup, underlay)
            };
            let (before, after) = (share(&admission), share(part.admission()));
            let pending = wanted.replace_share(&before, &after).unwrap();
            assert!(check(&after, &part.admission().world).is_empty());
            let steps = pending.steps(wanted, observed);
            assert_eq!(steps.len(), 2);
            for step in steps {
                observed.apply(&step).unwrap();
            }
        }
        admission.splice(&part);
        assert!(cluster.remember_part(&part));
    }
}

/// What the devices say of peers with a session; `later` one of them has received something.
fn device(wanted: &Network, later: bool) -> DeviceState {
    let device = &wanted.devices[&Slot::A];
    let state = |(key, config): (&PublicKey, &Peer)| {
        let state = PeerState {
            config: config.clone(),
            last_handshake: Some(std::time::SystemTime::UNIX_EPOCH),
            since_handshake: Some(Duration::from_secs(1)),
            received: 1,
            ..PeerState::default()
        };
        (*key, state)
    };
    let mut peers: BTreeMap<PublicKey, PeerState> = device.peers.iter().map(state).collect();
    if let (true, Some(mut peer)) = (later, peers.first_entry()) {
        peer.get_mut().received = 2;
    }
    DeviceState { key: device.key, port: device.port, fwmark: 0, peers }
}

struct Devices<'a>(&'a DeviceState);

impl Outlook for Devices<'_> {
    fn view(&self, member: &Member, slot: Slot) -> Option<View> {
        let peer = self.0.peers.get(&member.state.slots.get(slot).key)?;
        let (endpoint, handshake) = (peer.config.endpoint, peer.since_handshake);
        Some(View { endpoint, handshake, received: peer.received, sent: peer.sent, drifts: 0 })
    }

    fn relayed(&self, _: &NodeUid, _: Slot) -> Option<SocketAddr> {
        None
    }

    fn is_relay(&self, _: SocketAddr) -> bool {
        false
    }

    fn carrying(&self, _: &NodeUid) -> Option<Slot> {
        None
    }

    fn is_limited(&self, _: Slot) -> bool {
        false
    }
}

/// Paths to all peers that work.
fn settled_paths(admission: &Admission, state: &DeviceState) -> Paths {
    let mut paths = Paths::new(0);
    for second in 0..3 {
        paths.step(Duration::from_secs(second), &admission.world, Surroundings::default(), &Devices(state));
    }
    paths
}

/// What the loop does in a second in which it takes no turn: compares the devices, finds which peers want a step.
fn look(before: &DeviceState, after: &DeviceState, paths: &mut Paths, admission: &Admission) -> Part {
    let (now, world) = (Duration::from_secs(9), &admission.world);
    let found = moved(Some(before), Some(after), |_| None);
    let due = paths.due_peers(now);
    let wants = |member: &&Member| {
        let has_moved = |slot| found.peers.contains(&member.state.slots.get(slot).key);
        due.contains(&member.uid) || Slot::ALL.into_iter().any(has_moved)
    };
    let members: Vec<&Member> = world.peers.values().filter(wants).collect();
    let own = world.own.as_ref().map(|own| &own.uid);
    paths.step_some(now, own, members.into_iter(), &Devices(after))
}

fn median<T>(runs: usize, mut step: impl FnMut() -> T) -> Duration {
    black_box(step());
    let time = |_| {
        let started = Instant::now();
        black_box(step());
        started.elapsed()
    };
    let mut times: Vec<Duration> = (0..runs).map(time).collect();
    times.sort();
    times[runs / 2]
}

/// A Node as a kubelet and a daemon write it: a /24 podCIDR, an internal and an external address.
fn record(index: usize) -> NodeRecord {
    let number = u32::try_from(index).unwrap();
    let address = |network: [u8; 4]| std::net::Ipv4Addr::from(u32::from_be_bytes(network) + number + 1);
    let uid = NodeUid::new(format!("8f4b1c1e-0d9a-4a63-9f50-{index:012x}"));
    let slot = |slot: u32, port| SlotState { key: key(number * 2 + slot), generation: 7, port };
    let state = State {
        uid: uid.clone(),
        generation: 7,
        slots: PerSlot { a: slot(0, 51840), b: slot(1, 51841) },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    };
    let endpoints = Endpoints { addresses: vec![address([10, 0, 0, 0]).into()], ..Endpoints::default() };
    let pods = std::net::Ipv4Addr::from(u32::from_be_bytes([100, 64, 0, 0]) + (number << 8));
    NodeRecord {
        name: NodeName::new(format!("node-{index}")),
        uid,
        created: format!("2026-01-{:02}T{:02}:{:02}:00Z", 1 + index % 28, index % 24, index % 60),
        pod_cidrs: vec![format!("{pods}/24")],
        addresses: vec![address([10, 0, 0, 0]).to_string(), address([203, 0, 0, 0]).to_string()],
        state: Some(state.render()),
        endpoints: Some(endpoints.render()),
        ..NodeRecord::default()
    }
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[4..8].copy_from_slice(&number.to_be_bytes());
    PrivateKey::from_bytes(&bytes).unwrap().public()
}

fn policy() -> AdmissionPolicy {
    AdmissionPolicy {
        cluster_cidrs: vec!["100.64.0.0/10".parse().unwrap()],
        service_cidrs: vec!["172.20.0.0/16".parse().unwrap()],
        own_keys: [key(0), key(1)].into(),
        accept_unproven: true,
        ipv4: true,
        ..AdmissionPolicy::default()
    }
}

/// Every peer is steered and has a preshared key on both slots, as in a mesh that has settled.
fn setup(admission: &Admission) -> Setup {
    let mut preshared = BTreeMap::new();
    let mut steer = BTreeMap::new();
    for member in admission.world.peers.values() {
        steer.insert(member.uid.clone(), Slot::A);
        for slot in Slot::ALL {
            preshared.insert((member.uid.clone(), slot), keyring::PresharedId::from_bytes([5; 8]));
        }
    }
    let policy = policy();
    let keys = PerSlot { a: key(0), b: key(1) };
    Setup { steer, preshared, ..setup::setup(&policy.cluster_cidrs, &policy.service_cidrs, keys) }
}

fn underlay(admission: &Admission) -> Underlay {
    let endpoints = admission.world.peers.values().filter_map(|member| member.endpoint);
    let mtu_to = endpoints.map(|endpoint| (endpoint.address, 1500)).collect();
    Underlay { mtu: 1500, mtu_to, passes: BTreeMap::new() }
}
