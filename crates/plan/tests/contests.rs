//! How long liars can keep a node from an address that it can prove: admission and tests in a model of time, at an observer that
//! knows nothing yet.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::IpAddr;
use std::time::Duration;

use keyring::{PerSlot, PublicKey, Slot};
use plan::admission::{AdmissionPolicy, Ledger, admit};
use plan::annotation::{Phase, SlotState, State};
use plan::evidence::{MAX_POSTPONED, MAX_UNDECIDED, Tests};
use plan::node::{NodeName, NodeRecord, NodeUid};
use proptest::prelude::*;

/// Seconds that a test takes which nobody answers: three tries of a second.
const TEST: u64 = 3;
/// Nodes that are tested at the same time.
const AT_A_TIME: usize = 16;
/// Number of the node that has the address; liars are before it in every order.
const VICTIM: u8 = 200;

/// How a liar lists the victim's address.
#[derive(Clone, Debug)]
struct Liar {
    /// Listed for `on` seconds, then not for `off`, and so on; begun earlier by `shift`.
    on: u64,
    off: u64,
    shift: u64,
    /// Says that it rotates its keys all the time.
    rotates: bool,
    /// Changes its ports every second.
    changes: bool,
    /// Other addresses that all liars list.
    more: u8,
}

impl Liar {
    const STEADY: Self = Self { on: 1, off: 0, shift: 0, rotates: false, changes: false, more: 0 };

    const fn lists(&self, second: u64) -> bool {
        (second + self.shift) % (self.on + self.off) < self.on
    }
}

fn address(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn node(number: u8, port: u16, addresses: &[IpAddr]) -> NodeRecord {
    let key = |slot| {
        PublicKey::from_bytes(
            &[number ^ if slot == Slot::A { 0 } else { 128 }; 32].map(|byte: u8| byte.max(1)),
        )
    };
    let slot = |slot, port| SlotState { key: key(slot).unwrap(), generation: 1, port };
    let state = State {
        uid: NodeUid::new(format!("u{number:03}")),
        generation: 1,
        slots: PerSlot { a: slot(Slot::A, port), b: slot(Slot::B, port + 1) },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    };
    NodeRecord {
        name: NodeName::new(format!("n{number:03}")),
        uid: state.uid.clone(),
        pod_cidrs: vec![format!("10.244.{number}.0/24")],
        addresses: addresses.iter().map(ToString::to_string).collect(),
        state: Some(state.render()),
        ..NodeRecord::default()
    }
}

/// Runs the contest for this many seconds; returns when the victim got its address for good.
fn decided(liars: &[Liar], seconds: u64) -> Option<u64> {
    let number = |index: usize| u8::try_from(index + 2).unwrap();
    let uid = |number: u8| NodeUid::new(format!("u{number:03}"));
    let rotates = |uid_: &NodeUid| {
        liars.iter().enumerate().any(|(index, liar)| liar.rotates && uid(number(index)) == *uid_)
    };
    let mut policy = AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        accept_unproven: true,
        ipv4: true,
        ..AdmissionPolicy::default()
    };
    let (mut tests, mut ledger) = (Tests::default(), Ledger::default());
    let mut running = Vec::new();
    let mut since = None;
    for second in 0..seconds {
        let now = Duration::from_secs(second);
        for (at, claim, completes) in std::mem::take(&mut running) {
            if at <= second {
                tests.conclude(now, &claim, completes);
            } else {
                running.push((at, claim, completes));
            }
        }
        let of_liar = |(index, liar): (usize, &Liar)| {
            let port = if liar.changes { 2000 + 2 * u16::try_from(second).unwrap() } else { 51840 };
            let lies = std::iter::once(VICTIM)
                .filter(|_| liar.lists(second))
                .chain((0..liar.more).map(|more| 210 + more));
            let listed: Vec<IpAddr> = std::iter::once(number(index)).chain(lies).map(address).collect();
            node(number(index), port, &listed)
        };
        let others = liars.iter().enumerate().map(of_liar);
        let records: Vec<NodeRecord> =
            [node(1, 51840, &[address(1)]), node(VICTIM, 51840, &[address(VICTIM)])]
                .into_iter()
                .chain(others)
                .collect();
        (policy.evidence, policy.waited_for) = (tests.evidence(), tests.waited_for(now));
        let admission = admit(&policy, &NodeName::new("n001"), &records, &ledger);
        tests.set_claims(now, &admission.to_test);
        for claim in tests.start(now, rotates) {
            let completes = claim.uid == uid(VICTIM);
            running.push((second + if completes { 1 } else { TEST }, claim, completes));
        }
        let mut holders =
            admission.world.peers.values().filter(|member| member.addresses.contains(&address(VICTIM)));
        let holder = holders.next().map(|member| member.uid.clone());
        assert!(holder.as_ref().is_none_or(|holder| *holder == uid(VICTIM)), "{holder:?} at {second} s");
        assert!(holder.is_some() || since.is_none(), "lost after {second} s: {liars:?}");
        since = since.or_else(|| holder.map(|_| second));
        ledger = admission.ledger;
    }
    since
}

/// When the victim has its address at the latest: once each liar has been tested before it, and after its own proof.
fn latest(liars: usize) -> u64 {
    let before = u64::try_from(liars.div_ceil(AT_A_TIME)).unwrap() * TEST;
    before + 2 + MAX_UNDECIDED.as_secs()
}

#[test]
fn liars_that_take_turns_or_put_tests_off_keep_an_address_from_its_node_for_half_a_minute_at_most() {
    let turn = |shift| Liar { on: 16, off: 12, shift, rotates: true, ..Liar::STEADY };
    let table: [(&str, Vec<Liar>); 6] = [
        ("one that lists it", vec![Liar::STEADY]),
        ("one that rotates for ever", vec![Liar { rotates: true, ..Liar::STEADY }]),
        ("one that changes its ports", vec![Liar { changes: true, rotates: true, ..Liar::STEADY }]),
        ("two that take turns", vec![turn(0), turn(14)]),
        ("many with many addresses", vec![Liar { more: 14, rotates: true, ..Liar::STEADY }; 20]),
        (
            "many that come and go",
            (0..20).map(|shift| Liar { on: 2, off: 1, shift, ..Liar::STEADY }).collect(),
        ),
    ];
    assert!(MAX_POSTPONED < MAX_UNDECIDED, "an honest node that rotates is tested in time");
    for (case, liars) in table {
        let at = decided(&liars, 45);
        assert!(at.is_some_and(|at| at <= latest(liars.len())), "{case}: {at:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_liars_keep_an_address_from_its_node_for_longer(
        liars in prop::collection::vec((1..40_u64, 0..40_u64, 0..40_u64, any::<[bool; 2]>(), 0..4_u8), 1..4),
    ) {
        let liar = |(on, off, shift, [rotates, changes], more): (u64, u64, u64, [bool; 2], u8)| Liar { on, off, shift, rotates, changes, more };
        let liars: Vec<Liar> = liars.into_iter().map(liar).collect();
        let at = decided(&liars, 60);
        prop_assert!(at.is_some_and(|at| at <= latest(liars.len())), "{at:?}");
    }
}
