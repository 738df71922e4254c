//! The plugin under the name `loopback`, as runtimes call it before any other.

use serde_json::{Value, json};

use crate::node::{Call, Node, Outcome, Pod};

fn call<'a>(node: &'a Node, command: &str, pod: &Pod, version: Option<&str>) -> Call<'a> {
    let mut call = node.pod_call(command, pod);
    call.conf = json!({"name": "cni-loopback", "type": "loopback"});
    if let Some(version) = version {
        call.conf["cniVersion"] = json!(version);
    }
    call.env("CNI_IFNAME", "lo")
}

fn is_up(pod: &Pod) -> bool {
    let flags = pod.ip("link show lo")[0]["flags"].clone();
    flags.as_array().unwrap().contains(&json!("UP"))
}

#[test]
fn lo_is_set_up_checked_and_set_down_in_every_version() {
    let node = Node::new(&["10.244.1.0/24"]);
    let pod = Pod::new("a");
    let run = |command: &str, version| -> Outcome { call(&node, command, &pod, version).run_as("loopback") };
    for version in [None, Some("0.2.0"), Some("0.3.1"), Some("0.4.0"), Some("1.0.0"), Some("1.1.0")] {
        assert!(!is_up(&pod));
        assert_eq!(run("CHECK", version).code(), 101);
        let added = run("ADD", version);
        assert!(added.success && is_up(&pod), "{version:?}: {added:?}");
        let expected = version.unwrap_or("0.1.0");
        assert_eq!(added.json["cniVersion"], expected);
        if expected < "0.3" {
            assert_eq!(added.json["ip4"]["ip"], "127.0.0.1/8");
            assert_eq!(added.json["ip6"]["ip"], "::1/128");
        } else {
            assert_eq!(added.json["interfaces"][0]["name"], "lo");
            assert_eq!(added.json["interfaces"][0]["sandbox"], json!(pod.netns()));
            assert_eq!(added.json["ips"][0]["address"], "127.0.0.1/8");
            let family = (expected < "1").then(|| json!("4"));
            assert_eq!(added.json["ips"][0].get("version"), family.as_ref());
        }
        run("CHECK", version).silent();
        run("DEL", version).silent();
    }
    let version = run("VERSION", Some("0.3.1"));
    let supported: Vec<&str> =
        version.json["supportedVersions"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(supported.contains(&"0.3.1") && supported.contains(&"1.1.0"), "{version:?}");
}

#[test]
fn mistakes_and_namespaces_that_are_gone() {
    let node = Node::new(&["10.244.1.0/24"]);
    let pod = Pod::new("a");
    let gone = call(&node, "DEL", &pod, Some("1.0.0")).env("CNI_NETNS", "/run/netns/gone");
    gone.run_as("loopback").silent();
    call(&node, "DEL", &pod, Some("1.0.0")).env("CNI_NETNS", "").run_as("loopback").silent();
    for (call, code) in [
        (call(&node, "ADD", &pod, Some("1.0.0")).env("CNI_NETNS", ""), 4),
        (call(&node, "ADD", &pod, Some("1.0.0")).env("CNI_NETNS", "/run/netns/gone"), 4),
        (call(&node, "PAINT", &pod, Some("1.0.0")), 4),
        (call(&node, "ADD", &pod, Some("9.9.9")), 1),
    ] {
        assert_eq!(call.run_as("loopback").code(), code, "{:?}", call.env);
    }
    let before =
        call(&node, "ADD", &pod, Some("1.0.0")).conf("prevResult", json!({"cniVersion": "1.0.0", "ips": []}));
    assert_eq!(before.run_as("loopback").json, json!({"cniVersion": "1.0.0", "ips": []}), "it is passed on");
}
