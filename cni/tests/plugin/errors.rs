//! Refusals: the code of the specification, one JSON document, and nothing done.

use serde_json::{Value, json};

use crate::node::{Node, Outcome, Pod};

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

/// An error object as the specification wants it.
fn assert_shape(outcome: &Outcome, version: &str) {
    let object = outcome.json.as_object().expect("an error object");
    assert_eq!(object["cniVersion"], version);
    assert!(object["code"].is_u64() && !object["msg"].as_str().unwrap().is_empty(), "{object:?}");
    assert!(object["details"].is_string());
}

#[test]
fn bad_environments_and_configurations_are_refused_before_anything_is_done() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    let file = node.node_file();
    let add = || node.pod_call("ADD", &pod);
    for (call, code, version) in [
        (add().env("CNI_COMMAND", ""), 4, "1.1.0"),
        (add().env("CNI_COMMAND", "UPDATE"), 4, "1.1.0"),
        (add().env("CNI_CONTAINERID", ""), 4, "1.1.0"),
        (add().env("CNI_CONTAINERID", "../a"), 4, "1.1.0"),
        (add().env("CNI_IFNAME", ""), 4, "1.1.0"),
        (add().env("CNI_IFNAME", "sixteen-letters-"), 4, "1.1.0"),
        (add().env("CNI_NETNS", ""), 4, "1.1.0"),
        (add().env("CNI_NETNS", "/run/netns/gone"), 4, "1.1.0"),
        (add().env("CNI_NETNS", file.to_str().unwrap()), 4, "1.1.0"),
        (add().env("CNI_NETNS", node.netns().to_str().unwrap()), 4, "1.1.0"),
        (add().conf("cniVersion", "0.3.1"), 1, "1.0.0"),
        (add().conf("cniVersion", "2.0.0"), 1, "1.0.0"),
        (add().conf("cniVersion", Value::Null), 1, "1.0.0"),
        (add().conf("cniVersion", "0.4.0").conf("name", ""), 7, "0.4.0"),
        (add().conf("cniVersion", "1.0.0").conf("mtu", 100), 7, "1.0.0"),
        (add().conf("stateDir", "relative"), 7, "1.1.0"),
        (add().conf("mtu", "large"), 6, "1.1.0"),
        (add().conf("ipam", json!({"type": "host-local"})), 2, "1.1.0"),
        (add().conf("stateDir", "/proc/none"), 5, "1.1.0"),
    ] {
        let refused = call.run();
        assert_eq!(refused.code(), code, "{:?} {} {refused:?}", call.env, call.conf);
        assert_shape(&refused, version);
    }
    for input in ["", "{", "[]", "7", "\u{feff}{}"] {
        let refused = add().run_with(input.as_bytes());
        assert_eq!(refused.code(), 6, "{input:?}");
        assert_shape(&refused, "1.0.0");
    }
    let mut long = add().conf.to_string().into_bytes();
    long.resize(5 << 20, b' ');
    assert_eq!(add().run_with(&long).code(), 6);
    node.assert_clean(&before);
    assert!(!node.state_dir().exists());
}

#[test]
fn a_node_that_is_not_ready_gives_the_reason_and_to_retry() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    let refused = |status: u64, reason: &str| {
        let outcome = node.add(&pod);
        assert_eq!(outcome.code(), 11);
        assert!(outcome.json["msg"].as_str().unwrap().contains(reason), "{outcome:?}");
        assert_shape(&outcome, "1.1.0");
        let outcome = node.bare_call("STATUS").run();
        assert_eq!(outcome.code(), status);
        assert!(outcome.json["msg"].as_str().unwrap().contains(reason), "{outcome:?}");
    };
    node.bare_call("STATUS").run().silent();
    node.set_file(|file| {
        file.ready = false;
        file.reason = Some("the Node has no podCIDR".to_owned());
    });
    refused(50, "the Node has no podCIDR");
    node.set_file(|file| file.pod_cidrs.clear());
    refused(50, "gives no reason");
    node.set_file(|file| {
        file.guard = false;
        file.reason = Some("the guard is not in place".to_owned());
    });
    refused(51, "the guard is not in place");
    std::fs::write(node.node_file(), "{}").unwrap();
    refused(51, "one version");
    std::fs::remove_file(node.node_file()).unwrap();
    refused(51, "expected meshd to run");
    node.assert_clean(&before);
    node.set_file(|_| ());
    node.bare_call("STATUS").run().silent();
    node.add(&pod).addresses();
}

#[test]
fn without_the_guard_in_the_kernel_no_pod_is_attached_whatever_the_file_says() {
    let node = Node::new(&DUAL);
    let reload = |from: &str, to: &str| {
        format!(
            "listing=$(nft list table inet meshd | sed 's,{from},{to},'); nft delete table inet meshd; \
             echo \"$listing\" | nft -f -"
        )
    };
    for change in [
        "nft delete table inet meshd",
        "nft flush table inet meshd",
        "nft 'add table inet meshd { flags dormant ; }'",
        "nft rename chain inet meshd egress other",
        "nft flush chain inet meshd ingress && nft delete chain inet meshd ingress",
        "nft insert rule inet meshd egress accept",
        "nft insert rule inet meshd closed accept",
        &reload("10.244.0.0/16", "10.245.0.0/16"),
        &reload("priority 300", "priority 301"),
    ] {
        let pod = Pod::new("p");
        node.sh(change);
        let before = node.listing();
        let refused = node.add(&pod);
        assert_eq!(refused.code(), 11, "{change}");
        assert!(refused.json["msg"].as_str().unwrap().contains("nft table"), "{change}: {refused:?}");
        assert_eq!(node.bare_call("STATUS").run().code(), 51, "{change}");
        node.assert_clean(&before);
        node.set_guard();
        node.add(&pod).addresses();
        node.del(&pod);
    }
}

#[test]
fn a_failure_half_way_is_rolled_back() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    pod.sh("ip link add eth0 type veth peer name other");
    let links = pod.ip("link");
    let refused = node.add(&pod);
    assert_eq!(refused.code(), 100);
    assert!(refused.json["details"].as_str().unwrap().contains("File exists"), "{refused:?}");
    assert_eq!(pod.ip("link"), links, "what was there before stays");
    node.assert_clean(&before);
    pod.sh("ip link del eth0");
    node.add(&pod).addresses();
    node.del(&pod);
    node.assert_clean(&before);
}

#[test]
fn version_answers_to_anything() {
    let node = Node::new(&DUAL);
    for (input, version) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion":"1.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"0.2.0"}"#, "1.1.0"),
        ("", "1.1.0"),
    ] {
        let answer = node.bare_call("VERSION").run_with(input.as_bytes());
        assert!(answer.success);
        let expected = json!({"cniVersion": version, "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]});
        assert_eq!(answer.json, expected, "{input}");
    }
}
