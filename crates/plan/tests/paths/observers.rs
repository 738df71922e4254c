//! What peers report about this node's datagrams while one among them lies.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keyring::Slot;
use plan::annotation::Mapping;
use plan::node::NodeUid;
use plan::paths::Observations;
use proptest::prelude::*;

use super::network::Nat;
use super::runs;

/// How often honest observers report, and how long it takes at most until what all of them have reported is published.
const PERIOD: u64 = 60;
const PUBLISHED_WITHIN: u64 = 70;
/// It is looked every few seconds.
const STEP: u64 = 5;
/// When the node moves, and when this ends.
const MOVES: u64 = 600;
const END: u64 = 1_200;

const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 5));

/// The observer with this number; all of those that lie are at one address.
fn honest(number: u8) -> (NodeUid, IpAddr) {
    (NodeUid::new(format!("u{number}")), [203, 0, 113, number].into())
}

fn liar(number: u8) -> (NodeUid, IpAddr) {
    (NodeUid::new(format!("liar{number}")), [203, 0, 113, 99].into())
}

/// What the observer with this number sees before and after the move.
fn seen(nat: Nat, observer: u8, moved: bool) -> SocketAddr {
    let public = IpAddr::from([198, 51, 100, 1 + u8::from(moved)]);
    match nat {
        Nat::None | Nat::OneToOne => SocketAddr::new(public, 51840),
        Nat::Home => SocketAddr::new(public, 20_000),
        Nat::Symmetric => SocketAddr::new(public, 30_000 + u16::from(observer)),
    }
}

#[derive(Clone, Debug)]
struct Lie {
    at: u64,
    /// Which of the nodes at the liar's address says it.
    of: u8,
    seen: SocketAddr,
}

/// An address where nobody is, one of a private network, the node's own, and what others have seen or still see.
fn lie() -> impl Strategy<Value = Lie> {
    let elsewhere = (1..4_u8, 1..4_u16).prop_map(|(host, port)| SocketAddr::from(([192, 0, 2, host], port)));
    let known = ["10.9.9.9:51840", "10.0.0.5:51840", "198.51.100.1:51840", "198.51.100.1:20000"];
    let known = proptest::sample::select(known.map(|text| text.parse().unwrap()).to_vec());
    (PERIOD + PUBLISHED_WITHIN..END, 0..40_u8, prop_oneof![elsewhere, known]).prop_map(|(at, of, seen)| Lie {
        at,
        of,
        seen,
    })
}

/// What is published at each step.
fn published(nat: Nat, observers: u8, lies: &[Lie]) -> Vec<(Vec<SocketAddr>, Mapping)> {
    let mut own: BTreeSet<IpAddr> = [OWN].into();
    if nat == Nat::OneToOne {
        own.insert(seen(nat, 0, false).ip());
    }
    let mut observations = Observations::default();
    let mut all = Vec::new();
    for second in (0..END).step_by(usize::try_from(STEP).unwrap()) {
        let now = Duration::from_secs(second);
        let mut report = |(uid, observer), seen| observations.report(now, uid, Slot::A, seen, observer);
        for lie in lies.iter().filter(|lie| lie.at / STEP == second / STEP) {
            report(liar(lie.of), lie.seen);
        }
        for number in 0..observers {
            if second % PERIOD == u64::from(number) * STEP {
                report(honest(number), seen(nat, number, second >= MOVES && nat == Nat::Home));
            }
        }
        observations.retain(now, |_| true);
        let (observed, mapping) = observations.publish(now, &own, None);
        all.push((observed.a, mapping));
    }
    all
}

/// Whoever lies from one address, as whatever number of nodes, changes nothing of what two others agree on. Only in the moment
/// in which the node moves it may be believed that it is still where it was, until two have seen that it is not.
#[test]
fn one_that_lies_changes_nothing_that_two_others_agree_on() {
    let nat = prop_oneof![Just(Nat::OneToOne), Just(Nat::Home), Just(Nat::Symmetric)];
    let strategy = (nat, 2..7_u8, proptest::collection::vec(lie(), 0..120));
    runs::explore("observers", 1, &strategy, |(nat, observers, lies)| {
        let expected = published(nat, observers, &[]);
        let found = published(nat, observers, &lies);
        for (second, (found, expected)) in (0_u64..).map(|step| step * STEP).zip(found.iter().zip(&expected))
        {
            let settled = nat != Nat::Home || !(MOVES..MOVES + PERIOD + PUBLISHED_WITHIN).contains(&second);
            prop_assert!(!settled || found == expected, "{second}: {found:?}, not {expected:?}");
        }
        Ok(())
    });
}

#[test]
fn as_many_as_see_another_address_are_outweighed_by_those_that_see_the_node_s_own() {
    let own: BTreeSet<IpAddr> = [OWN, seen(Nat::OneToOne, 0, false).ip()].into();
    for (direct, mapped, expected) in
        [(1, 1, Mapping::None), (2, 2, Mapping::None), (1, 2, Mapping::Easy), (0, 2, Mapping::Easy)]
    {
        let mut observations = Observations::default();
        for number in 0..direct + mapped {
            let (uid, observer) = honest(number);
            let seen = seen(Nat::OneToOne, number, number >= direct);
            observations.report(Duration::from_secs(1), uid, Slot::A, seen, observer);
        }
        assert_eq!(observations.mapping(&own), expected, "{direct} see its own, {mapped} another one");
    }
}
