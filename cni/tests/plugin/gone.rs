//! Pods that die without a DEL: what they had is free again when it is needed.

use std::time::{Duration, Instant};

use linux::netns::NetworkNamespace;
use linux::veth;
use serde_json::json;

use crate::node::{Node, Pod};

/// Two addresses for pods.
const SMALL: [&str; 1] = ["10.244.1.0/29"];

/// Waits until the kernel has removed the links of pods that are gone.
fn wait_for_links(node: &Node, count: usize) {
    let since = Instant::now();
    while node.run(veth::host_links).unwrap().len() > count {
        assert!(since.elapsed() < Duration::from_secs(20), "links of pods that are gone stay");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn addresses_of_pods_that_are_gone_are_given_out_when_the_range_is_full() {
    let node = Node::new(&SMALL);
    let stays = Pod::new("stays");
    let kept = node.add(&stays).addresses();
    for round in 0..2 {
        let dead: Vec<Pod> = (0..4).map(|number| Pod::new(&format!("dead-{round}-{number}"))).collect();
        for pod in &dead {
            node.add(pod).addresses();
        }
        let last = Pod::new("last");
        assert_eq!(node.add(&last).code(), 102, "all of them live");
        assert_eq!(node.bare_call("STATUS").run().code(), 50);
        drop(dead);
        wait_for_links(&node, 1);
        node.bare_call("STATUS").run().silent();
        assert!(!kept.contains(&node.add(&last).addresses()[0]));
        assert_eq!(node.reservations().len(), 2, "only those that live are left");
        node.del(&last);
    }
    assert!(node.pings(kept[0]), "a pod that lives keeps its address");
}

#[test]
fn a_namespace_that_is_no_longer_at_its_path_is_gone() {
    let node = Node::new(&["10.244.1.0/30"]);
    let pod = Pod::new("a");
    node.add(&pod).addresses();
    // Something else keeps the namespace, and with it the link.
    let namespace = NetworkNamespace::open(&pod.netns()).unwrap();
    drop(pod);
    assert_eq!(node.run(veth::host_links).unwrap().len(), 1);
    node.add(&Pod::new("b")).addresses();
    assert!(namespace.run(|| veth::inspect("eth0")).unwrap().unwrap().is_none(), "its link is removed first");
}

#[test]
fn a_port_of_a_pod_that_is_gone_is_free() {
    let node = Node::new(&SMALL);
    let ports = json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]});
    let add = |pod: &Pod| node.pod_call("ADD", pod).conf("runtimeConfig", ports.clone()).run();
    let (dead, next) = (Pod::new("dead"), Pod::new("next"));
    add(&dead).addresses();
    assert_eq!(add(&next).code(), 105);
    drop(dead);
    wait_for_links(&node, 0);
    add(&next).addresses();
}
