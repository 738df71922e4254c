//! The daemon's routes: set, replace, remove, in both families and in the main table and one of our own.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ipnetwork::IpNetwork;
use linux::{Handle, HostError};
use plan::network::{Route, Via};

use crate::namespace::{Namespace, TIMEOUT, ip, link};

const DESTINATIONS: [&str; 4] = ["10.244.2.0/24", "192.0.2.7/32", "fd00:10:244:2::/64", "2001:db8::7/128"];
const TABLES: [u32; 2] = [254, 5184];

/// Two links that are up and the addresses that routes name as their source.
fn namespace() -> Namespace {
    let namespace = Namespace::new();
    for name in ["mesh-a", "mesh-b"] {
        namespace.ip(&format!("link add {name} type veth peer name {name}-peer"));
        // No neighbour has to be found, as on a device of WireGuard: a sender that waits for one is asleep.
        namespace.ip(&format!("link set {name} arp off up"));
        namespace.ip(&format!("link set {name}-peer up"));
    }
    namespace.ip("addr add 10.244.1.1/32 dev mesh-a");
    namespace.ip("-6 addr add fd00:10:244:1::1/128 dev mesh-a nodad");
    namespace
}

fn route(table: u32, destination: &str, via: Via) -> Route {
    Route { table, destination: ip(destination), metric: 84, via }
}

fn by(name: &str, destination: &str) -> Via {
    let source = if ip::<IpNetwork>(destination).is_ipv4() { "10.244.1.1" } else { "fd00:10:244:1::1" };
    Via::Link { link: link(name), source: Some(ip(source)), mtu: Some(1380) }
}

/// Each place that a route can have.
fn places() -> impl Iterator<Item = (u32, &'static str)> {
    TABLES.into_iter().flat_map(|table| DESTINATIONS.map(|destination| (table, destination)))
}

/// Checks which routes of ours there are.
async fn expect<const N: usize>(host: &Handle, wanted: [&Route; N], after: &str) {
    let found = host.routes().await.unwrap();
    assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "after {after}");
}

#[test]
fn a_route_is_set_twice_and_removed_twice_alike() {
    let namespace = namespace();
    namespace.host(async |host| {
        for (table, destination) in places() {
            let plain = Via::Link { link: link("mesh-b"), source: None, mtu: None };
            for via in [by("mesh-a", destination), plain, Via::Unreachable] {
                let route = route(table, destination, via);
                for _ in 0..2 {
                    host.set_route(&route).await.unwrap();
                    expect(host, [&route], "it was set").await;
                }
                for _ in 0..2 {
                    host.remove_route(&route).await.unwrap();
                    expect(host, [], &format!("{route} was removed")).await;
                }
            }
        }
    });
}

#[test]
fn the_kernel_has_the_route_as_it_is_meant() {
    let namespace = namespace();
    namespace.host(async |host| {
        for destination in ["10.244.2.0/24", "fd00:10:244:2::/64"] {
            host.set_route(&route(254, destination, by("mesh-a", destination))).await.unwrap();
        }
        for destination in ["10.244.3.0/24", "fd00:10:244:3::/64"] {
            host.set_route(&route(5184, destination, Via::Unreachable)).await.unwrap();
        }
    });
    for (arguments, wanted) in [
        ("-4 route show proto 84", "10.244.2.0/24 dev mesh-a scope link src 10.244.1.1 metric 84 mtu 1380"),
        (
            "-6 route show proto 84",
            "fd00:10:244:2::/64 dev mesh-a src fd00:10:244:1::1 metric 84 mtu 1380 pref medium",
        ),
        ("-4 route show table 5184", "unreachable 10.244.3.0/24 proto 84 metric 84"),
        ("-6 route show table 5184", "unreachable fd00:10:244:3::/64 dev lo proto 84 metric 84 pref medium"),
    ] {
        assert_eq!(namespace.ip(arguments).trim(), wanted);
    }
}

#[test]
fn a_route_to_the_same_place_is_replaced_and_never_doubled() {
    let namespace = namespace();
    namespace.host(async |host| {
        for (table, destination) in places() {
            let vias = [
                by("mesh-a", destination),
                by("mesh-b", destination),
                Via::Unreachable,
                by("mesh-a", destination),
                Via::Link { link: link("mesh-a"), source: None, mtu: Some(1280) },
                Via::Unreachable,
            ];
            for via in vias {
                let route = route(table, destination, via);
                host.set_route(&route).await.unwrap();
                expect(host, [&route], "it was set in place of another").await;
            }
            host.remove_route(&route(table, destination, Via::Unreachable)).await.unwrap();
        }
    });
}

#[test]
fn removing_a_route_leaves_another_one_in_the_same_place() {
    let namespace = namespace();
    namespace.host(async |host| {
        for (table, destination) in places() {
            let vias = [by("mesh-a", destination), by("mesh-b", destination), Via::Unreachable];
            for stays in &vias {
                let stays = route(table, destination, stays.clone());
                host.set_route(&stays).await.unwrap();
                for goes in vias.iter().filter(|via| **via != stays.via) {
                    let goes = route(table, destination, goes.clone());
                    host.remove_route(&goes).await.unwrap();
                    expect(host, [&stays], &format!("{goes} was removed")).await;
                }
                host.remove_route(&stays).await.unwrap();
            }
        }
    });
}

#[test]
fn routes_of_others_are_neither_seen_nor_removed() {
    let namespace = namespace();
    namespace.ip("link add mveth0 type veth peer name pod");
    namespace.ip("link set mveth0 up");
    let mut before = Vec::new();
    for destination in DESTINATIONS {
        namespace.ip(&format!("route add {destination} dev mesh-a metric 84 proto static"));
    }
    for pod in ["10.244.1.5/32", "fd00:10:244:1::5/128"] {
        namespace.ip(&format!("route add {pod} dev mveth0 metric 84 proto 84"));
    }
    for family in ["-4", "-6"] {
        before.push(namespace.ip(&format!("{family} route show table all")));
    }
    namespace.host(async |host| {
        expect(host, [], "others set theirs").await;
        for destination in DESTINATIONS {
            for via in [Via::Unreachable, Via::Link { link: link("mesh-a"), source: None, mtu: None }] {
                host.remove_route(&route(254, destination, via)).await.unwrap();
            }
        }
    });
    let after: Vec<String> =
        ["-4", "-6"].iter().map(|family| namespace.ip(&format!("{family} route show table all"))).collect();
    assert_eq!(after, before);
}

#[test]
fn a_route_by_a_link_that_is_gone_is_gone() {
    let namespace = namespace();
    namespace.host(async |host| {
        let route = route(254, DESTINATIONS[0], by("mesh-b", DESTINATIONS[0]));
        host.set_route(&route).await.unwrap();
        host.delete_link(&link("mesh-b")).await.unwrap();
        expect(host, [], "its link was deleted").await;
        host.remove_route(&route).await.unwrap();
        let error = host.set_route(&route).await.unwrap_err();
        assert!(matches!(&error, HostError::NoLink { .. }), "{error}");
    });
}

#[test]
fn failures_name_the_route_and_keep_the_kernel_s_number() {
    let namespace = namespace();
    namespace.host(async |host| {
        let stranger = Via::Link { link: link("mesh-a"), source: Some(ip("10.99.99.99")), mtu: None };
        let error = host.set_route(&route(254, "10.244.2.0/24", stranger)).await.unwrap_err();
        assert!(error.to_string().starts_with("set: route 10.244.2.0/24"), "{error}");
        assert_eq!(error.errno(), Some(rustix::io::Errno::INVAL.raw_os_error()));
    });
}

/// Sends continuously while `change` runs; returns how often there was no route.
fn without_route(
    namespace: &Namespace,
    destination: IpNetwork,
    change: impl AsyncFnMut(&Handle) + Send,
) -> u64 {
    let target = match destination.ip() {
        std::net::IpAddr::V4(_) => "10.244.2.9:9",
        std::net::IpAddr::V6(_) => "[fd00:10:244:2::9]:9",
    };
    let own = ip(if destination.is_ipv4() { "10.244.1.1" } else { "fd00:10:244:1::1" });
    let socket = namespace.udp(own, 0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut failures = 0;
            while !done.load(Ordering::Relaxed) {
                if let Err(error) = socket.send_to(b"x", target) {
                    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
                    failures += 1;
                }
            }
            failures
        });
        let mut change = change;
        namespace.host(async |host| change(host).await);
        done.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    })
}

#[test]
fn no_packet_finds_no_route_while_it_is_replaced() {
    let namespace = namespace();
    for [destination, others @ ..] in [
        ["10.244.2.0/24", "10.244.3.0/24", "10.244.4.0/24"],
        ["fd00:10:244:2::/64", "fd00:10:244:3::/64", "fd00:10:244:4::/64"],
    ] {
        let vias = ["mesh-a", "mesh-b"].map(|name| route(254, destination, by(name, destination)));
        // A sender on another core that has just found a route passes over it if its next hop (`fib_info`) is marked dead
        // meanwhile, which happens once no route has it (fib_table_lookup in net/ipv4/fib_trie.c). In a mesh, routes of
        // other peers have it too. So do these, which leaves the way of replacing as the only cause of a gap.
        for (via, other) in vias.iter().zip(others) {
            let other = Route { destination: ip(other), ..via.clone() };
            namespace.host(async |host| host.set_route(&other).await.unwrap());
        }
        namespace.host(async |host| host.set_route(&vias[0]).await.unwrap());
        let missed = without_route(&namespace, ip(destination), async |host| {
            for turn in 0..300 {
                host.set_route(&vias[(turn + 1) % 2]).await.unwrap();
            }
        });
        assert_eq!(missed, 0, "{destination}");
        // The sender does notice: routes that are removed and set again leave a gap.
        let end = Instant::now() + TIMEOUT;
        let mut missed = 0;
        while missed == 0 {
            assert!(Instant::now() < end, "the sender never noticed that there was no route");
            missed = without_route(&namespace, ip(destination), async |host| {
                for _ in 0..100 {
                    host.remove_route(&vias[0]).await.unwrap();
                    // Long enough for the sender to get a core.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    host.set_route(&vias[0]).await.unwrap();
                }
            });
        }
    }
}
