//! The guard in a network namespace of the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use plan::network::Guard;

use super::*;
use crate::nft::test_namespace::{in_namespace, nft};

/// Saves the table as people do, changes the text and loads it again.
fn reloaded(change: impl FnOnce(String) -> String) {
    let listing = nft("list table inet meshd");
    let changed = change(listing.clone());
    assert_ne!(listing, changed, "nothing to change in it");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("delete table inet meshd\n{changed}")).unwrap();
    nft(&format!("-f {}", file.path().display()));
}

fn guard() -> Guard {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Guard {
        cluster: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
        mesh_links: ["mesh-a", "mesh-b"].iter().map(|name| name.parse().unwrap()).collect(),
        local_pods: nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
        no_masquerade: nets(&["10.96.0.0/16", "192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"]),
        closed: ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()].into(),
    }
}

#[test]
fn a_guard_that_was_set_is_in_place() {
    in_namespace(|| {
        assert!(!exists().unwrap());
        assert!(!is_in_place(&guard()).unwrap());
        assert_eq!(drops().unwrap(), Drops::default(), "no guard has dropped nothing");
        set(&guard()).unwrap();
        assert!(is_in_place(&guard()).unwrap(), "{}", nft("list table inet meshd"));
        set(&guard()).unwrap();
        assert!(is_in_place(&guard()).unwrap(), "setting it again changes nothing");
        assert_eq!(drops().unwrap(), Drops::default());
        assert!(remove().unwrap());
        assert!(!remove().unwrap());
        assert!(!exists().unwrap());
    });
}

#[test]
fn another_guard_does_not_stand_for_this_one() {
    in_namespace(|| {
        set(&guard()).unwrap();
        let mut other = guard();
        other.no_masquerade.insert("192.0.2.3/32".parse().unwrap());
        assert!(!is_in_place(&other).unwrap(), "a member of a set differs");
        let mut other = guard();
        other.closed.insert("192.0.2.8".parse().unwrap());
        assert!(!is_in_place(&other).unwrap(), "a closed address differs");
        let mut other = guard();
        other.cluster.insert("10.245.0.0/16".parse().unwrap());
        assert!(!is_in_place(&other).unwrap(), "a rule differs");
    });
}

#[test]
fn every_change_by_hand_is_noticed() {
    let handle = |chain: &str| {
        let listed = nft(&format!("-a list chain inet meshd {chain}"));
        let line = listed.lines().find(|line| line.contains("drop")).unwrap().to_owned();
        line.rsplit_once("handle ").unwrap().1.trim().to_owned()
    };
    let changes: Vec<ByHand> = vec![
        Box::new(|| drop(nft("delete table inet meshd"))),
        Box::new(|| drop(nft("flush table inet meshd"))),
        Box::new(|| drop(nft("flush chain inet meshd egress"))),
        Box::new(|| drop(nft("flush set inet meshd nodes4"))),
        Box::new(|| drop(nft("add element inet meshd nodes4 { 203.0.113.9 }"))),
        Box::new(|| drop(nft("add element inet meshd nodes6 { * }"))),
        Box::new(|| drop(nft("flush set inet meshd closed4"))),
        Box::new(|| drop(nft("delete element inet meshd closed6 { 2001:db8::7 }"))),
        Box::new(|| drop(nft("flush chain inet meshd closed"))),
        Box::new(|| drop(nft("insert rule inet meshd ingress accept"))),
        Box::new(|| drop(nft("add rule inet meshd egress accept"))),
        Box::new(|| drop(nft("add chain inet meshd mine"))),
        Box::new(|| drop(nft("add table inet meshd { flags dormant ; }"))),
        Box::new(move || drop(nft(&format!("delete rule inet meshd egress handle {}", handle("egress"))))),
        Box::new(move || {
            drop(nft(&format!("replace rule inet meshd ingress handle {} counter", handle("ingress"))));
        }),
        // The listing keeps the comments; the expressions are edited.
        Box::new(|| reloaded(|listing| listing.replacen("10.244.0.0/16 counter", "10.99.0.0/16 counter", 1))),
        Box::new(|| reloaded(|listing| listing.replace("ip daddr @nodes4", "ip daddr != @nodes4"))),
        Box::new(|| reloaded(|listing| listing.replace("ip daddr @closed4", "ip daddr != @closed4"))),
        Box::new(|| reloaded(|listing| listing.replacen("\"lo\" accept", "\"eth0\" accept", 1))),
        Box::new(|| reloaded(|listing| listing.replace("oif 0", "oif 1"))),
        Box::new(|| reloaded(|listing| listing.replace("masquerade fully-random", "masquerade"))),
        Box::new(|| reloaded(|listing| listing.replace("priority 300", "priority 301"))),
        Box::new(|| reloaded(|listing| listing.replace("hook prerouting", "hook input"))),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        in_namespace(move || {
            set(&guard()).unwrap();
            change();
            let noticed = !is_in_place(&guard()).unwrap();
            assert!(noticed, "change {index}");
            set(&guard()).unwrap();
            assert!(is_in_place(&guard()).unwrap(), "set again after change {index}");
        });
    }
}

/// A change by hand.
type ByHand = Box<dyn Fn() + Send>;

/// What is changed by hand while no daemon runs, and must not count as the guard.
fn breakages() -> Vec<(&'static str, ByHand)> {
    vec![
        ("deleted", Box::new(|| drop(nft("delete table inet meshd")))),
        ("emptied", Box::new(|| drop(nft("flush table inet meshd")))),
        ("emptied chain", Box::new(|| drop(nft("flush chain inet meshd egress")))),
        ("dormant", Box::new(|| drop(nft("add table inet meshd { flags dormant ; }")))),
        ("renamed chain", Box::new(|| drop(nft("rename chain inet meshd egress other")))),
        (
            "missing chain",
            Box::new(|| {
                nft("flush chain inet meshd ingress");
                nft("delete chain inet meshd ingress");
            }),
        ),
        ("an exception first", Box::new(|| drop(nft("insert rule inet meshd egress accept")))),
        ("open closed addresses", Box::new(|| drop(nft("insert rule inet meshd closed accept")))),
        ("other ranges", Box::new(|| reloaded(|text| text.replace("10.244.0.0/16", "10.99.0.0/16")))),
        ("other hook", Box::new(|| reloaded(|text| text.replace("hook prerouting", "hook input")))),
        ("other links", Box::new(|| reloaded(|text| text.replace("\"mesh-a\"", "\"eth0\"")))),
    ]
}

#[test]
fn what_an_earlier_daemon_left_stands_only_with_every_rule_for_the_ranges() {
    let closed = || {
        let Guard { cluster, mesh_links, .. } = guard();
        Guard {
            cluster,
            mesh_links,
            no_masquerade: ["10.96.0.0/16".parse().unwrap()].into(),
            ..Guard::default()
        }
    };
    let filters_stand = || filters_stand(&guard().cluster, &guard().mesh_links).unwrap();
    in_namespace(move || {
        assert!(!stands(&closed()).unwrap() && !filters_stand());
        // It knows more: node addresses, closed ones, and this node's pods.
        set(&guard()).unwrap();
        assert!(stands(&closed()).unwrap() && filters_stand());
        let mut other = closed();
        other.cluster.insert("10.245.0.0/16".parse().unwrap());
        assert!(!stands(&other).unwrap(), "another range");
        let mut other = closed();
        other.no_masquerade.insert("10.97.0.0/16".parse().unwrap());
        assert!(!stands(&other).unwrap(), "another service range");
        set(&closed()).unwrap();
        assert!(stands(&closed()).unwrap() && filters_stand());
    });
    for (what, break_it) in breakages() {
        in_namespace(move || {
            set(&guard()).unwrap();
            break_it();
            assert!(!stands(&closed()).unwrap(), "{what}");
            assert!(!filters_stand(), "{what}");
        });
    }
    in_namespace(move || {
        set(&guard()).unwrap();
        nft("insert rule inet meshd outbound accept");
        assert!(!stands(&closed()).unwrap(), "nothing is masqueraded");
        assert!(filters_stand(), "and nothing leaves with a pod's address");
    });
}

#[test]
fn a_guard_of_nothing_is_refused() {
    assert!(matches!(set(&Guard::default()), Err(HostError::EmptyGuard)));
}

#[test]
fn any_number_of_nodes_fits_in_one_transaction() {
    in_namespace(|| {
        let mut guard = guard();
        for node in 0..20_000_u32 {
            guard.no_masquerade.insert(IpAddr::from((0xc633_0000_u32 + node).to_be_bytes()).into());
            guard
                .no_masquerade
                .insert(IpAddr::from((0x2001_0db8_u128 << 96 | u128::from(node)).to_be_bytes()).into());
        }
        set(&guard).unwrap();
        let begin = std::time::Instant::now();
        assert!(is_in_place(&guard).unwrap());
        // The daemon checks it after every change of anything: the time must not grow with the square of the nodes.
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{:?}", begin.elapsed());
    });
}
