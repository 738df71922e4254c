//! The kernel's route to an address.

use std::net::IpAddr;

use crate::namespace::{Namespace, ip, link};

/// A node with an underlay of 1,400 bytes and one route of 1,300.
fn namespace() -> Namespace {
    let namespace = Namespace::new();
    namespace.ip("link add eth0 mtu 1400 type veth peer name out");
    namespace.ip("link set eth0 up");
    namespace.ip("link set out up");
    namespace.ip("addr add 192.0.2.1/24 dev eth0");
    namespace.ip("-6 addr add 2001:db8::1/64 dev eth0 nodad");
    namespace.ip("route add 198.51.100.0/24 via 192.0.2.254 mtu 1300");
    namespace.ip("route add 2001:db8:1::/48 via 2001:db8::fe mtu 1300");
    namespace
}

#[test]
fn the_way_has_the_mtu_of_its_route_else_of_its_link() {
    let namespace = namespace();
    namespace.host(async |host| {
        for (to, mtu, source) in [
            ("192.0.2.7", 1400, "192.0.2.1"),
            ("198.51.100.7", 1300, "192.0.2.1"),
            ("2001:db8::7", 1400, "2001:db8::1"),
            ("2001:db8:1::7", 1300, "2001:db8::1"),
        ] {
            let route = host.underlay(ip(to)).await.unwrap().unwrap();
            assert_eq!((route.mtu, route.source), (mtu, Some(ip(source))), "to {to}");
        }
        host.set_mtu(&link("eth0"), 1420).await.unwrap();
        assert_eq!(host.underlay(ip("192.0.2.7")).await.unwrap().unwrap().mtu, 1420);
    });
}

#[test]
fn no_address_is_an_error_whatever_the_routes_say() {
    let namespace = namespace();
    for kind in ["unreachable", "blackhole", "prohibit", "throw"] {
        namespace.ip(&format!("route add {kind} 203.0.113.0/24 metric 1"));
        namespace.ip(&format!("route add {kind} 2001:db8:bad::/48 metric 1"));
        namespace.host(async |host| {
            for to in ["203.0.113.7", "2001:db8:bad::7"] {
                assert_eq!(host.underlay(ip(to)).await.unwrap(), None, "{kind} to {to}");
            }
        });
        namespace.ip(&format!("route del {kind} 203.0.113.0/24 metric 1"));
        namespace.ip(&format!("route del {kind} 2001:db8:bad::/48 metric 1"));
    }
    // An address may come from another node: none of them may stop the daemon.
    let odd = [
        "0.0.0.0",
        "0.0.0.1",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "203.0.113.9",
        "::",
        "::1",
        "::ffff:192.0.2.7",
        "::192.0.2.7",
        "fe80::1",
        "ff02::1",
        "ff05::1",
        "2001:db8:2::1",
        "100::1",
    ];
    namespace.host(async |host| {
        for to in odd.map(ip::<IpAddr>) {
            let route = host.underlay(to).await;
            assert!(route.is_ok(), "{to}: {route:?}");
        }
    });
}

#[test]
fn the_underlay_s_mtu_is_that_of_the_link_with_the_node_s_address() {
    let namespace = namespace();
    namespace.host(async |host| {
        for own in ["192.0.2.1", "2001:db8::1"] {
            assert_eq!(host.mtu_at(&[ip("192.0.2.99"), ip(own)]).await.unwrap(), Some(1400), "{own}");
        }
        assert_eq!(host.mtu_at(&[ip("192.0.2.99")]).await.unwrap(), None);
        assert_eq!(host.mtu_at(&[]).await.unwrap(), None);
    });
}
