//! Links: read, change, delete.

use linux::HostError;

use crate::namespace::{Namespace, link};

#[test]
fn a_link_is_read_as_it_is() {
    let namespace = Namespace::new();
    namespace.ip("link add one mtu 1410 type veth peer name two");
    namespace.ip("link set two up");
    namespace.host(async |host| {
        let one = host.link(&link("one")).await.unwrap().unwrap();
        assert_eq!((one.kind.as_deref(), one.mtu, one.up), (Some("veth"), 1410, false));
        let two = host.link(&link("two")).await.unwrap().unwrap();
        assert!(two.up);
        assert_ne!(one.index, two.index);
        assert_eq!(host.link(&link("none")).await.unwrap(), None);
    });
}

#[test]
fn a_link_is_set_up_and_its_mtu_changed_twice_alike() {
    let namespace = Namespace::new();
    namespace.ip("link add one type veth peer name two");
    namespace.host(async |host| {
        for _ in 0..2 {
            host.set_mtu(&link("one"), 1380).await.unwrap();
            host.set_up(&link("one")).await.unwrap();
            let found = host.link(&link("one")).await.unwrap().unwrap();
            assert_eq!((found.mtu, found.up), (1380, true));
        }
    });
    let shown = namespace.ip("link show dev one");
    assert!(shown.contains("qlen 2000"), "{shown}");
}

#[test]
fn a_link_is_deleted_once() {
    let namespace = Namespace::new();
    namespace.ip("link add one type veth peer name two");
    namespace.host(async |host| {
        assert!(host.delete_link(&link("one")).await.unwrap());
        assert!(!host.delete_link(&link("one")).await.unwrap());
        assert_eq!(host.link(&link("two")).await.unwrap(), None, "both ends go");
    });
}

#[test]
fn failures_name_what_was_tried_on_what_and_why() {
    let namespace = Namespace::new();
    namespace.ip("link add one type veth peer name two");
    namespace.host(async |host| {
        let missing = host.set_up(&link("none")).await.unwrap_err();
        assert!(matches!(missing, HostError::NoLink { .. }));
        assert_eq!(missing.to_string(), "set up: there is no link none");
        let refused = host.set_mtu(&link("one"), 1_000_000).await.unwrap_err();
        assert_eq!(refused.to_string(), "set the MTU of: link one");
        assert_eq!(refused.errno(), Some(rustix::io::Errno::INVAL.raw_os_error()));
        let cause = std::error::Error::source(&refused).expect("the kernel's error is the cause");
        assert!(cause.to_string().contains("Invalid argument"), "{cause}");
    });
}
