//! ADD: what the pod gets, what the result says, and that both agree with the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use linux::netns::NetworkNamespace;
use linux::{guard, veth};
use serde_json::{Value, json};

use crate::node::{MTU, Node, Outcome, Pod};

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

#[test]
fn pods_reach_their_node_and_each_other_and_leave_nothing() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    let (added_a, added_b) = (node.add(&a), node.add(&b));
    assert_eq!(
        added_a.addresses(),
        ["10.244.1.2", "fd00:244:1::2"].map(|text| text.parse::<IpAddr>().unwrap())
    );
    let mesh = ["10.244.1.1", "fd00:244:1::1"].map(|text| text.parse::<IpAddr>().unwrap());
    for family in [0, 1] {
        let (to_a, to_b) = (added_a.addresses()[family], added_b.addresses()[family]);
        assert!(node.pings(to_a), "node to {to_a}");
        assert!(a.pings(mesh[family], &[]), "pod to its node, {}", mesh[family]);
        assert!(a.pings(to_b, &[]), "pod to pod, {to_b}");
        assert!(b.pings(to_a, &[]), "pod to pod, {to_a}");
    }
    for (pod, added) in [(&a, &added_a), (&b, &added_b)] {
        agrees_with_kernel(&node, pod, added);
        node.pod_call("CHECK", pod).conf("prevResult", added.json.clone()).run().silent();
    }
    for pod in [&a, &b] {
        node.del(pod);
        assert_eq!(pod.ip("link").as_array().unwrap().len(), 1, "the loopback alone is left");
    }
    node.assert_clean(&before);
}

/// The kernel has what the result says.
fn agrees_with_kernel(node: &Node, pod: &Pod, added: &Outcome) {
    let [host, inside] = added.json["interfaces"].as_array().unwrap().as_slice() else {
        panic!("expected two interfaces in {}", added.json)
    };
    let link = &pod.ip("-d link show eth0")[0];
    assert_eq!(link["address"], inside["mac"]);
    assert_eq!(link["mtu"], MTU);
    assert_eq!(inside["mtu"], MTU);
    assert_eq!(inside["sandbox"], json!(pod.netns()));
    let name = host["name"].as_str().unwrap();
    assert!(name.starts_with("mveth") && name.len() == 15, "{name}");
    let host_link: Value = serde_json::from_str(&node.sh(&format!("ip -j -d link show {name}"))).unwrap();
    assert_eq!(host_link[0]["address"], host["mac"]);
    assert_eq!(host_link[0]["mtu"], MTU);
    assert_eq!(node.sh(&format!("cat /proc/sys/net/ipv4/conf/{name}/rp_filter")), "1\n");
    assert_eq!(node.sh(&format!("cat /proc/sys/net/ipv6/conf/{name}/accept_ra")), "0\n");

    let addresses = pod.ip("address show eth0 scope global");
    let found: BTreeSet<(IpAddr, u64)> = addresses[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        // `ip` prints an empty object for each address that its filter leaves out.
        .filter(|info| info.get("local").is_some())
        .map(|info| (info["local"].as_str().unwrap().parse().unwrap(), info["prefixlen"].as_u64().unwrap()))
        .collect();
    let full = |ip: IpAddr| (ip, if ip.is_ipv4() { 32 } else { 128 });
    assert_eq!(found, added.addresses().into_iter().map(full).collect());

    for address in added.addresses() {
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        let route = &pod.ip(&format!("{family} route show default"))[0];
        assert_eq!(route["gateway"], json!(veth::gateway(address)));
        let neighbour = &pod.ip(&format!("{family} neigh show {} dev eth0", veth::gateway(address)))[0];
        assert_eq!(neighbour["state"], json!(["PERMANENT"]));
        assert_eq!(neighbour["lladdr"], host["mac"]);
        let to_pod: Value =
            serde_json::from_str(&node.sh(&format!("ip -j {family} -d route show {address}"))).unwrap();
        assert_eq!((&to_pod[0]["dev"], &to_pod[0]["protocol"]), (&json!(name), &json!("84")));
    }
}

#[test]
fn each_family_works_alone() {
    for range in DUAL {
        let node = Node::new(&[range]);
        let pod = Pod::new("a");
        let added = node.add(&pod);
        let [address] = added.addresses()[..] else { panic!("expected one address in {}", added.json) };
        assert!(node.pings(address), "{address}");
        node.pod_call("CHECK", &pod).conf("prevResult", added.json.clone()).run().silent();
        node.del(&pod);
    }
}

#[test]
fn packets_of_the_full_size_pass_and_one_byte_more_fails_at_once() {
    let node = Node::new(&DUAL);
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    node.add(&a).addresses();
    let overhead = [20 + 8, 40 + 8];
    for (to, overhead) in node.add(&b).addresses().into_iter().zip(overhead) {
        let size = |bytes: u32| format!("-s{}", bytes - overhead);
        assert!(a.pings(to, &["-Mdo", &size(MTU)]), "{to}");
        assert!(!a.pings(to, &["-Mdo", &size(MTU + 1)]), "{to}");
    }
}

#[test]
fn each_version_gets_its_own_result_and_takes_it_back() {
    let node = Node::new(&DUAL);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new("a");
        let added = node.pod_call("ADD", &pod).conf("cniVersion", version).run();
        assert_eq!(added.json["cniVersion"], version);
        let family = (version == "0.4.0").then(|| json!("4"));
        assert_eq!(added.json["ips"][0].get("version"), family.as_ref(), "{version}");
        assert_eq!(added.json["interfaces"][1].get("mtu").is_some(), version == "1.1.0", "{version}");
        for command in ["CHECK", "DEL"] {
            let call = node.pod_call(command, &pod).conf("cniVersion", version);
            call.conf("prevResult", added.json.clone()).run().silent();
        }
    }
}

#[test]
fn a_configured_mtu_wins() {
    let node = Node::new(&DUAL);
    let pod = Pod::new("a");
    let added = node.pod_call("ADD", &pod).conf("mtu", 1300).run();
    assert_eq!(added.json["interfaces"][1]["mtu"], 1300);
    assert_eq!(pod.ip("link show eth0")[0]["mtu"], 1300);
}

#[test]
fn a_namespace_that_starts_without_ipv6_gets_it() {
    let node = Node::new(&DUAL);
    let pod = Pod::new("a");
    pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let address = node.add(&pod).addresses()[1];
    assert!(node.pings(address), "{address}");
}

#[test]
fn ranges_are_used_up_one_after_the_other_then_pods_are_refused() {
    let node = Node::new(&["10.244.1.0/30", "10.244.2.0/30"]);
    let before = node.listing();
    let pods: Vec<Pod> = (0..3).map(|number| Pod::new(&format!("c{number}"))).collect();
    let given: Vec<String> = pods[..2].iter().map(|pod| node.add(pod).addresses()[0].to_string()).collect();
    assert_eq!(given, ["10.244.1.2", "10.244.2.2"]);
    let attached = node.attached();
    let refused = node.add(&pods[2]);
    assert_eq!(refused.code(), 102);
    assert!(refused.json["msg"].as_str().unwrap().contains("10.244.1.0/30, 10.244.2.0/30"), "{refused:?}");
    assert_eq!(node.attached(), attached);
    assert_eq!(node.reservations().len(), 2);
    assert_eq!(node.bare_call("STATUS").run().code(), 50);
    node.del(&pods[0]);
    node.bare_call("STATUS").run().silent();
    assert_eq!(node.add(&pods[2]).addresses()[0].to_string(), "10.244.1.2");
    for pod in &pods {
        node.del(pod);
    }
    node.assert_clean(&before);
}

#[test]
fn a_freed_address_is_given_out_last() {
    let node = Node::new(&["10.244.1.0/29"]);
    let pod = Pod::new("a");
    let next = || {
        let address = node.add(&pod).addresses()[0];
        node.del(&pod);
        address.to_string()
    };
    let given: Vec<String> = (0..6).map(|_| next()).collect();
    let expected = ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6", "10.244.1.2"];
    assert_eq!(given, expected);
}

#[test]
fn sixty_four_at_once_get_sixty_four_addresses() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pods: Vec<Pod> = (0..64).map(|number| Pod::new(&format!("c{number}"))).collect();
    let started: Vec<_> = pods.iter().map(|pod| node.pod_call("ADD", pod)).collect();
    let added: Vec<Outcome> = std::thread::scope(|scope| {
        let running: Vec<_> = started.iter().map(|call| scope.spawn(|| call.run())).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let addresses: BTreeSet<IpAddr> = added.iter().flat_map(Outcome::addresses).collect();
    assert_eq!(addresses.len(), 2 * pods.len(), "some got the same");
    assert_eq!(node.reservations().len(), pods.len());
    for (pod, added) in pods.iter().zip(&added) {
        node.pod_call("CHECK", pod).conf("prevResult", added.json.clone()).run().silent();
    }
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| node.del(pod));
        }
    });
    node.assert_clean(&before);
}

#[test]
fn a_second_add_for_the_same_attachment_leaves_one_link_and_one_address() {
    let node = Node::new(&DUAL);
    let before = node.listing();
    let pod = Pod::new("a");
    let first = node.add(&pod).addresses();
    let second = node.add(&pod).addresses();
    assert_ne!(first, second);
    assert_eq!(node.reservations().len(), 1);
    assert!(node.pings(second[0]));
    node.del(&pod);
    node.assert_clean(&before);
}

/// The guard's rule for the pods' links holds a pod to its own address; without it the same packets arrive.
#[test]
fn a_pod_can_not_send_under_the_address_of_another() {
    let node = Node::new(&DUAL);
    let (a, b) = (Pod::new("a"), Pod::new("b"));
    node.add(&a).addresses();
    let foreign = node.add(&b).addresses()[1];
    a.sh(&format!("ip address add {foreign} dev lo nodad"));
    let mesh: IpAddr = "fd00:244:1::1".parse().unwrap();
    let arrived = || -> u64 {
        let line = node.sh("grep -w Icmp6InEchos /proc/net/snmp6");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let spoof = || {
        let before = arrived();
        assert!(!a.pings(mesh, &["-I", &foreign.to_string()]), "the answer goes to the address's owner");
        arrived() - before
    };
    let namespace = NetworkNamespace::open(&node.netns()).unwrap();
    assert!(namespace.run(guard::remove).unwrap().unwrap());
    assert_eq!(spoof(), 3, "without the guard spoofed packets arrive, or this test shows nothing");
    node.set_guard();
    assert_eq!(spoof(), 0);
    assert_eq!(namespace.run(guard::drops).unwrap().unwrap().spoofed, 3);
    assert!(a.pings(mesh, &[]), "under its own address it is heard");
}
