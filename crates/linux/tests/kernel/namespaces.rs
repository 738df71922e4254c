//! Namespaces of others, and the settings that each has of its own.

use std::path::Path;

use linux::netns::NetworkNamespace;
use linux::{HostError, sysctl};

use crate::namespace::Namespace;

const FORWARD: &str = "net/ipv4/ip_forward";

#[test]
fn work_inside_leaves_the_caller_where_it_was() {
    let (outer, inner) = (Namespace::new(), Namespace::new());
    inner.ip("link add only-here type veth peer name other");
    outer.run(|| {
        assert!(outer.namespace().is_own().unwrap());
        assert!(!inner.namespace().is_own().unwrap());
        let seen = inner.namespace().run(|| {
            assert!(inner.namespace().is_own().unwrap());
            linux::veth::inspect("only-here").unwrap()
        });
        assert!(seen.unwrap().is_some());
        assert!(outer.namespace().is_own().unwrap());
        assert_eq!(linux::veth::inspect("only-here").unwrap(), None);
    });
}

#[test]
fn a_panic_inside_reaches_the_caller() {
    let namespace = Namespace::new();
    let caught = std::panic::catch_unwind(|| namespace.namespace().run(|| panic!("inside")));
    assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"inside"));
}

#[test]
fn only_a_network_namespace_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let missing = NetworkNamespace::open(&directory.path().join("none")).unwrap_err();
    assert!(missing.is_missing(), "{missing}");
    // What is left of a mount point after the unmount.
    let left_over = directory.path().join("left-over");
    std::fs::write(&left_over, "").unwrap();
    let error = NetworkNamespace::open(&left_over).unwrap_err();
    assert!(
        !error.is_missing() && matches!(&error, HostError::Namespace { operation: "open", .. }),
        "{error}"
    );
    // A namespace, but of another kind: it opens, and entering it fails.
    let other = NetworkNamespace::open(Path::new("/proc/thread-self/ns/uts")).unwrap();
    let mut ran = false;
    let error = other.run(|| ran = true).unwrap_err();
    assert_eq!(error.errno(), Some(rustix::io::Errno::INVAL.raw_os_error()));
    assert!(!ran, "nothing runs in the wrong place");
}

#[test]
fn a_setting_is_of_the_namespace() {
    let (one, other) = (Namespace::new(), Namespace::new());
    for value in ["1", "0", "1"] {
        one.set(FORWARD, value);
        other.set(FORWARD, if value == "1" { "0" } else { "1" });
        assert_eq!(one.run(|| sysctl::read(FORWARD)).unwrap().as_deref(), Some(value));
    }
}

#[test]
fn a_setting_that_can_not_be_written_says_what_to_do() {
    let error = Namespace::new().run(|| sysctl::write("net/ipv4/conf/none/rp_filter", "1")).unwrap_err();
    assert!(error.is_missing());
    assert!(error.to_string().contains("net/ipv4/conf/none/rp_filter"), "{error}");
    assert!(error.to_string().contains("sysctl-dir"), "{error}");
    let error = Namespace::new().run(|| sysctl::write(FORWARD, "neither")).unwrap_err();
    assert_eq!(error.errno(), Some(rustix::io::Errno::INVAL.raw_os_error()));
}
