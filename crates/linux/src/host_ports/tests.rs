//! The table in a network namespace of the test's own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use super::*;
use crate::nft::test_namespace::{in_namespace, nft};

fn mapping(protocol: Protocol, host: Option<&str>, host_port: u16, pod: &str) -> Mapping {
    Mapping {
        protocol,
        host_address: host.map(|text| text.parse().unwrap()),
        host_port,
        pod_address: pod.parse().unwrap(),
        pod_port: 80,
    }
}

fn ports() -> HostPorts {
    HostPorts {
        mappings: [
            mapping(Protocol::Tcp, None, 8080, "10.244.1.5"),
            mapping(Protocol::Tcp, None, 8080, "fd00:10:244:1::5"),
            mapping(Protocol::Udp, Some("192.0.2.1"), 53, "10.244.1.6"),
            mapping(Protocol::Sctp, Some("2001:db8::1"), 36412, "fd00:10:244:1::6"),
        ]
        .into(),
        services: ["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()].into(),
        own: [
            OwnPorts { protocol: Protocol::Udp, first: 51840, last: 51840 },
            OwnPorts { protocol: Protocol::Udp, first: 24000, last: 28095 },
        ]
        .into(),
    }
}

#[test]
fn what_was_set_is_in_place_and_nft_lists_it() {
    in_namespace(|| {
        assert!(!is_in_place(&ports()).unwrap());
        assert!(is_in_place(&HostPorts::default()).unwrap(), "no ports, no table");
        set(&ports()).unwrap();
        let listing = nft("list table inet meshd-ports");
        assert!(is_in_place(&ports()).unwrap(), "{listing}");
        for part in [
            "tcp . 8080 : 10.244.1.5 . 80",
            "tcp . 8080 : fd00:10:244:1::5 . 80",
            "192.0.2.1 . udp . 53 : 10.244.1.6 . 80",
            "2001:db8::1 . sctp . 36412 : fd00:10:244:1::6 . 80",
            "dnat ip to ip daddr . meta l4proto . th dport map @bound4",
            "fib daddr type != local accept",
            "ip daddr 10.96.0.0/16 accept",
            "udp dport 51840 accept",
            "udp dport 24000-28095 accept",
        ] {
            assert!(listing.contains(part), "{part} in\n{listing}");
        }
        assert!(!is_in_place(&HostPorts::default()).unwrap());
        set(&HostPorts::default()).unwrap();
        assert!(is_in_place(&HostPorts::default()).unwrap());
        assert!(!remove().unwrap());
    });
}

#[test]
fn any_change_by_others_is_noticed() {
    in_namespace(|| {
        for change in [
            "flush ruleset",
            "flush chain inet meshd-ports output",
            "delete element inet meshd-ports ports4 { tcp . 8080 }",
            "add element inet meshd-ports ports4 { tcp . 22 : 10.244.1.5 . 22 }",
            "add rule inet meshd-ports postrouting masquerade",
            "insert rule inet meshd-ports prerouting accept",
            "add chain inet meshd-ports extra { type nat hook input priority 0 ; }",
            "add table inet meshd-ports { flags dormant ; }",
        ] {
            set(&ports()).unwrap();
            assert!(is_in_place(&ports()).unwrap());
            nft(change);
            assert!(!is_in_place(&ports()).unwrap(), "{change}");
        }
        let mut others = ports();
        others.mappings.pop_first();
        set(&ports()).unwrap();
        assert!(!is_in_place(&others).unwrap());
        let other_pod = mapping(Protocol::Tcp, None, 8080, "10.244.1.9");
        others = ports();
        others.mappings.remove(&mapping(Protocol::Tcp, None, 8080, "10.244.1.5"));
        others.mappings.insert(other_pod);
        assert!(!is_in_place(&others).unwrap(), "the port leads to another pod");
    });
}

#[test]
fn hundreds_of_ports_fit() {
    in_namespace(|| {
        let mapped = |port| mapping(Protocol::Tcp, Some("2001:db8::1"), port, "fd00:10:244:1::6");
        let many = HostPorts { mappings: (1..=3000).map(mapped).collect(), ..HostPorts::default() };
        set(&many).unwrap();
        assert!(is_in_place(&many).unwrap());
    });
}

#[test]
fn mappings_conflict_where_a_packet_could_belong_to_either() {
    let all = mapping(Protocol::Tcp, None, 80, "10.244.1.5");
    let one = mapping(Protocol::Tcp, Some("192.0.2.1"), 80, "10.244.1.6");
    let other = mapping(Protocol::Tcp, Some("192.0.2.2"), 80, "10.244.1.7");
    assert!(all.conflicts_with(&one) && one.conflicts_with(&all) && all.conflicts_with(&all));
    assert!(!one.conflicts_with(&other));
    assert!(!all.conflicts_with(&mapping(Protocol::Udp, None, 80, "10.244.1.6")));
    assert!(!all.conflicts_with(&mapping(Protocol::Tcp, None, 81, "10.244.1.6")));
    assert!(!all.conflicts_with(&mapping(Protocol::Tcp, None, 80, "fd00::6")), "another family");
    assert!(!all.conflicts_with(&mapping(Protocol::Tcp, Some("2001:db8::1"), 80, "fd00::6")));
}
