//! Time of the pure steps of one turn of the loop on an unchanged cluster, by the number of nodes.
//!
//! `make bench-plan`, or `QUICK=1 make bench-plan` for fewer repetitions.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking and prints its table"
)]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock and its own settings")]

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::{Duration, Instant};

use keyring::{PerSlot, PrivateKey, PublicKey, Slot};
use plan::admission::{Admission, AdmissionPolicy, Ledger, admit};
use plan::annotation::{Endpoints, Phase, SlotState, State};
use plan::check::check;
use plan::desired::{Setup, Underlay};
use plan::network::MeshInput;
use plan::node::{NodeName, NodeRecord, NodeUid};
use plan::{desired, diff};

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
    ]
}

fn median<T>(runs: usize, step: impl Fn() -> T) -> Duration {
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
    Setup {
        cluster_cidrs: policy().cluster_cidrs.into_iter().collect(),
        service_cidrs: policy().service_cidrs.into_iter().collect(),
        open_node_cidrs: BTreeSet::new(),
        keys: PerSlot { a: key(0), b: key(1) },
        ports: PerSlot { a: 51840, b: 51841 },
        links: PerSlot { a: "mesh-a".parse().unwrap(), b: "mesh-b".parse().unwrap() },
        table: 5184,
        rule_priority: 5184,
        router_links: BTreeSet::new(),
        input: MeshInput::Everything,
        nat: false,
        paths: BTreeMap::new(),
        steer,
        preshared,
        barred: BTreeSet::new(),
    }
}

fn underlay(admission: &Admission) -> Underlay {
    let endpoints = admission.world.peers.values().filter_map(|member| member.endpoint);
    let mtu_to = endpoints.map(|endpoint| (endpoint.address, 1500)).collect();
    Underlay { mtu: 1500, mtu_to, passes: BTreeMap::new() }
}
