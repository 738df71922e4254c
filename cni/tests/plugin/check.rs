//! CHECK: every difference from what ADD created is found.

use serde_json::{Value, json};

use crate::node::{Node, Pod};

/// A pod that was added to a node, and ADD's result.
struct Attached {
    node: Node,
    pod: Pod,
    result: Value,
    host_link: String,
}

impl Attached {
    fn new() -> Self {
        let node = Node::new(&["10.244.1.0/24", "fd00:244:1::/64"]);
        let pod = Pod::new("a");
        let result = node.add(&pod).json;
        let host_link = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        Self { node, pod, result, host_link }
    }

    fn check(&self, result: &Value) -> crate::node::Outcome {
        self.node.pod_call("CHECK", &self.pod).conf("prevResult", result.clone()).run()
    }

    /// CHECK is content before `damage` and finds the difference after it.
    fn finds(&self, what: &str, damage: impl FnOnce()) {
        self.check(&self.result).silent();
        damage();
        let refused = self.check(&self.result);
        assert_eq!(refused.code(), 101, "{refused:?}");
        assert!(refused.json["msg"].as_str().unwrap().contains(what), "{refused:?}");
    }
}

#[test]
fn a_lost_address_in_the_pod_is_found() {
    let it = Attached::new();
    it.finds("the pod's addresses", || drop(it.pod.sh("ip address del fd00:244:1::2/128 dev eth0")));
}

#[test]
fn a_lost_default_route_in_the_pod_is_found() {
    for family in ["-4", "-6"] {
        let it = Attached::new();
        it.finds("the pod's default routes", || drop(it.pod.sh(&format!("ip {family} route del default"))));
    }
}

#[test]
fn a_lost_route_to_the_pod_is_found() {
    for address in ["10.244.1.2", "fd00:244:1::2"] {
        let it = Attached::new();
        it.finds("the node's routes to the pod", || drop(it.node.sh(&format!("ip route del {address}"))));
    }
}

#[test]
fn links_that_are_down_are_found() {
    let it = Attached::new();
    it.finds("the pod's end", || drop(it.pod.sh("ip link set eth0 down")));
    let it = Attached::new();
    it.finds("the node's end", || drop(it.node.sh(&format!("ip link set {} down", it.host_link))));
}

#[test]
fn a_lost_link_is_found() {
    let it = Attached::new();
    it.finds("the node's end", || drop(it.node.sh(&format!("ip link del {}", it.host_link))));
}

#[test]
fn another_ethernet_address_is_found() {
    let it = Attached::new();
    it.finds("the pod's end", || drop(it.pod.sh("ip link set eth0 address 02:00:00:00:00:01")));
}

#[test]
fn another_address_in_the_result_is_found() {
    let it = Attached::new();
    let mut result = it.result.clone();
    result["ips"][0]["address"] = json!("10.244.1.9/32");
    assert_eq!(it.check(&result).code(), 101);
}

#[test]
fn what_a_chained_plugin_added_is_no_matter() {
    let it = Attached::new();
    let mut result = it.result.clone();
    result["ips"].as_array_mut().unwrap().push(json!({"address": "192.0.2.1/24", "interface": 2}));
    result["interfaces"].as_array_mut().unwrap().push(json!({"name": "tap0"}));
    it.check(&result).silent();
}

#[test]
fn without_an_attachment_or_a_result_there_is_nothing_to_check() {
    let it = Attached::new();
    assert_eq!(it.node.pod_call("CHECK", &it.pod).run().code(), 7);
    assert_eq!(it.check(&json!({"ips": 7})).code(), 7);
    it.node.del(&it.pod);
    assert_eq!(it.check(&it.result).code(), 3);
}
