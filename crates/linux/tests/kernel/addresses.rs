//! Addresses on links, of both families.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::namespace::{Namespace, ip, link};

const ADDRESSES: [&str; 2] = ["10.244.1.1/32", "fd00:10:244:1::1/128"];

async fn has(host: &linux::Handle, address: IpNetwork) -> bool {
    let found = host.link_addresses(&[&link("two")]).await.unwrap();
    let found = found.iter().find(|found| found.address == address);
    found.is_some_and(|found| found.kind.as_deref() == Some("veth"))
}

fn namespace() -> Namespace {
    let namespace = Namespace::new();
    namespace.ip("link add one type veth peer name two");
    namespace.ip("link set one up");
    namespace.ip("link set two up");
    namespace
}

#[test]
fn an_address_is_added_twice_and_removed_twice_alike() {
    let namespace = namespace();
    namespace.host(async |host| {
        for address in ADDRESSES.map(ip::<IpNetwork>) {
            let found = async || host.link(&link("one")).await.unwrap().unwrap().addresses;
            for _ in 0..2 {
                host.add_address(&link("one"), address).await.unwrap();
                assert_eq!(found().await, BTreeSet::from([address]), "link-local addresses don't count");
            }
            assert!(has(host, address).await);
            for _ in 0..2 {
                host.remove_address(&link("one"), address).await.unwrap();
                assert_eq!(found().await, BTreeSet::new());
            }
            assert!(!has(host, address).await);
        }
    });
}

#[test]
fn the_prefix_length_is_part_of_an_address() {
    let namespace = namespace();
    namespace.host(async |host| {
        for (host_address, network) in [("10.244.1.1/32", "10.244.1.1/24"), ("fd00:1::1/128", "fd00:1::1/64")]
            .map(|(a, b)| (ip(a), ip(b)))
        {
            host.add_address(&link("one"), network).await.unwrap();
            host.remove_address(&link("one"), host_address).await.unwrap();
            let found = host.link(&link("one")).await.unwrap().unwrap().addresses;
            assert_eq!(
                found,
                BTreeSet::from([network]),
                "removing {host_address} is not meant for {network}"
            );
            host.remove_address(&link("one"), network).await.unwrap();
        }
    });
}

#[test]
fn an_ipv6_address_can_be_used_at_once() {
    let namespace = namespace();
    let address: IpNetwork = ip(ADDRESSES[1]);
    namespace.host(async |host| host.add_address(&link("one"), address).await.unwrap());
    let shown = namespace.ip("-6 addr show dev one");
    assert!(shown.contains("nodad"), "{shown}");
    // Binding to an address that is still being tried out fails.
    drop(namespace.udp(address.ip(), 0));
}

#[test]
fn adding_an_address_again_leaves_routes_from_it_alone() {
    let namespace = namespace();
    namespace.host(async |host| {
        for (address, there) in [(ADDRESSES[0], "10.244.2.0/24"), (ADDRESSES[1], "fd00:10:244:2::/64")] {
            let address: IpNetwork = ip(address);
            host.add_address(&link("one"), address).await.unwrap();
            namespace.ip(&format!("route add {there} dev one src {}", address.ip()));
            host.add_address(&link("one"), address).await.unwrap();
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            let shown = namespace.ip(&format!("{family} route show {there}"));
            assert!(shown.contains(&address.ip().to_string()), "{there}: {shown:?}");
        }
    });
}
