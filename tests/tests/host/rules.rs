//! Policy rules of other programs before the main table, as cloud agents and VPNs add them.

use crate::{must_pass, pair, shell};

#[test]
fn pods_are_reached_although_other_programs_rules_come_before_the_main_table() {
    let mesh = pair();
    let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name).unwrap());
    for node in [n1, n2] {
        // Everything that the node sends, and everything at all: `from NODE lookup 30400`, `lookup 52`.
        for (number, address) in node.addresses().iter().enumerate() {
            let (family, gateway) = [("-4", "198.18.0.254"), ("-6", "2001:db8:18::fe")][number];
            shell(
                node,
                &format!(
                    "ip {family} route add default via {gateway} dev eth0 table 30400
                     ip {family} route add default via {gateway} dev eth0 table 52
                     ip {family} rule add from {address} lookup 30400 priority 30400
                     ip {family} rule add lookup 52 priority 5270"
                ),
            );
        }
    }
    let [one, other] = [n1, n2].map(|node| node.pod("a").unwrap().end());
    must_pass(&one, &other, "pods on two nodes");
    must_pass(&other, &one, "pods on two nodes");
    must_pass(&n1.end(), &one, "a node and its own pod");
    must_pass(&n1.end(), &other, "a node and a pod on another one");
    must_pass(&one, &n2.end(), "a pod and another node: through the tunnel");
    let tunnelled = n1.command("ip").args(["route", "get", "198.18.0.2", "from", "10.244.1.2", "iif"]);
    let links =
        n1.command("sh").args(["-c", "ip -o link | grep -o 'mveth[0-9a-f]*' | head -1"]).run().unwrap();
    let route = tunnelled.arg(links.trim()).run().unwrap();
    assert!(route.contains("dev mesh-"), "{route}");
}
