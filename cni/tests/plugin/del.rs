//! DEL and GC: everything is removed, and it is no error if there is nothing.

use std::path::Path;

use serde_json::{Value, json};

use crate::node::{Node, Pod};

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

#[test]
fn del_succeeds_whatever_the_runtime_still_knows() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    let with = |previous: Value| node.pod_call("DEL", &pod).conf("prevResult", previous);
    let result = node.add(&pod).json;
    with(result.clone()).run().silent();
    node.assert_clean(&before);
    with(result).run().silent();
    for call in [
        node.pod_call("DEL", &pod),
        with(Value::Null),
        with(json!({"ips": "nonsense"})),
        node.pod_call("DEL", &pod).env("CNI_NETNS", ""),
        node.pod_call("DEL", &pod).env("CNI_NETNS", "/run/netns/gone"),
    ] {
        node.add(&pod).addresses();
        call.run().silent();
        node.assert_clean(&before);
        call.run().silent();
    }
}

#[test]
fn del_of_what_never_was_succeeds_and_makes_nothing() {
    let node = Node::new(&DUAL);
    node.call("DEL", "unknown", Path::new("/run/netns/gone")).run().silent();
    assert!(!node.state_dir().exists());
}

#[test]
fn del_needs_no_daemon() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    node.add(&pod).addresses();
    std::fs::remove_file(node.node_file()).unwrap();
    node.del(&pod);
    node.assert_clean(&before);
}

#[test]
fn a_pod_whose_namespace_is_gone_frees_its_addresses() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    node.add(&pod).addresses();
    let del = node.pod_call("DEL", &pod);
    // Its last process ends, and the kernel takes the namespace away.
    drop(pod);
    del.run().silent();
    node.assert_clean(&before);
}

#[test]
fn del_of_one_pod_leaves_the_other_alone() {
    let node = Node::new(&DUAL);
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    node.add(&a).addresses();
    let kept = node.add(&b);
    node.del(&a);
    assert!(node.pings(kept.addresses()[0]) && node.pings(kept.addresses()[1]));
    node.pod_call("CHECK", &b).conf("prevResult", kept.json).run().silent();
}

#[test]
fn gc_keeps_what_is_valid_and_releases_the_rest() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let (kept, lost, unknown) = (Pod::new("kept"), Pod::new("lost"), Pod::new("unknown"));
    let result = node.add(&kept).json;
    let with_one = node.attached();
    node.add(&lost).addresses();
    // A link whose reservation was lost, and a reservation whose link was lost.
    node.add(&unknown).addresses();
    let reservation = node.reservations();
    let orphan = reservation.iter().find(|name| name.contains("@10.244.1.4@")).unwrap();
    std::fs::remove_file(node.state_dir().join("attachments").join(orphan)).unwrap();
    let linkless = Pod::new("linkless");
    let host_link = node.add(&linkless).json["interfaces"][0]["name"].as_str().unwrap().to_owned();
    node.sh(&format!("ip link del {host_link}"));

    node.gc(&[&kept]).silent();
    assert_eq!(node.attached(), with_one);
    assert_eq!(node.reservations().len(), 1);
    node.pod_call("CHECK", &kept).conf("prevResult", result).run().silent();
    node.gc(&[]).silent();
    node.gc(&[]).silent();
    node.assert_clean(&before);
}

#[test]
fn gc_by_a_runtime_that_names_nothing_releases_nothing() {
    let node = Node::new(&DUAL);
    let pod = Pod::new("a");
    let address = node.add(&pod).addresses()[0];
    assert_eq!(node.bare_call("GC").run().code(), 7);
    assert!(node.pings(address));
}

#[test]
fn what_a_former_boot_left_is_dropped() {
    let node = Node::new(&["10.244.1.0/30"]);
    let pod = Pod::new("a");
    let former = node.state_dir().join("attachments");
    std::fs::create_dir_all(&former).unwrap();
    std::fs::write(former.join("mveth0123456789@00000000@10.244.1.2"), "{}").unwrap();
    assert_eq!(node.add(&pod).addresses()[0].to_string(), "10.244.1.2");
    assert_eq!(node.reservations().len(), 1);
}

#[test]
fn a_reservation_that_can_not_be_read_still_reserves() {
    let node = Node::new(&["10.244.1.0/30"]);
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    node.add(&a).addresses();
    let file = node.state_dir().join("attachments").join(&node.reservations()[0]);
    std::fs::write(file, [0xff, 0, 0xff]).unwrap();
    assert_eq!(node.add(&b).code(), 102, "the only address is a's");
    node.del(&a);
    node.add(&b).addresses();
}
