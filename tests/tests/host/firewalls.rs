//! Firewalls of iptables' nft variant that drop what they don't know.

use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::{FORMED_WITHIN, Mesh};
use lab::{ApiKind, Family, Flow, IpVersion, Lab, Node, Protocol, Signal};
use serde_json::Value;

use crate::{must_pass, pair, passes_at_once, shell};

fn saved(node: &Node) -> String {
    ["iptables-save", "ip6tables-save"]
        .map(|program| node.command(program).args(["-t", "filter"]).run().unwrap())
        .concat()
}

fn ours(node: &Node) -> usize {
    saved(node).matches("--comment \"meshd accept\" -j ACCEPT").count()
}

#[track_caller]
fn wait_ours(node: &Node, wanted: usize, after: &str) {
    let since = Instant::now();
    while ours(node) != wanted {
        assert!(since.elapsed() < FORMED_WITHIN, "{after}: {wanted} rules in\n{}", saved(node));
        thread::sleep(Duration::from_millis(20));
    }
}

/// FORWARD: two for pods' links, two for each mesh link; INPUT: one for each mesh link; in both families.
const FORWARD: usize = 2 * (2 + 2 * 2);
const INPUT: usize = 2 * 2;

#[test]
fn pods_reach_each_other_through_chains_that_drop() {
    let mesh = pair();
    let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name).unwrap());
    let [one, other] = [n1, n2].map(|node| node.pod("a").unwrap().end());
    for node in [n1, n2] {
        assert_eq!(ours(node), 0, "no chain is made, and none that accepts is touched");
        // Docker, ufw; the ports of the tunnels alone are open.
        shell(
            node,
            "for iptables in iptables ip6tables; do
                 $iptables -A INPUT -i lo -j ACCEPT
                 $iptables -A INPUT -i eth0 -j ACCEPT
                 $iptables -N USER; $iptables -A FORWARD -j USER; $iptables -A USER -j RETURN
                 $iptables -P FORWARD DROP; $iptables -P INPUT DROP
             done",
        );
        wait_ours(node, FORWARD + INPUT, "policies that drop");
    }
    must_pass(&one, &other, "pods on two nodes");
    must_pass(&other, &one, "pods on two nodes");
    must_pass(&one, &mesh.internet(), "a pod and the internet");
    must_pass(&one, &n2.end(), "a pod and a node");

    // What drops particular packets comes first, and still does.
    shell(n1, "iptables -I FORWARD -p udp -s 10.244.1.0/24 -j DROP");
    assert!(!passes_at_once(IpVersion::V4, &one, &other));
    shell(n1, "iptables -D FORWARD -p udp -s 10.244.1.0/24 -j DROP");

    // A rule that drops everything, as some images have it, is no obstacle, be it in a chain of its own.
    for (end, count) in [
        ("-A FORWARD -j REJECT", FORWARD + INPUT),
        ("-A FORWARD -j DROP", FORWARD + INPUT),
        (
            "-N LAST; ip6tables -N LAST; iptables -A LAST -j DROP; ip6tables -A LAST -j DROP; iptables -A FORWARD -j LAST",
            FORWARD + INPUT,
        ),
    ] {
        shell(
            n1,
            &format!(
                "iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT; iptables -F FORWARD; ip6tables -F FORWARD; iptables {end}; ip6tables {}",
                end.rsplit("iptables ").next().unwrap()
            ),
        );
        wait_ours(n1, count, end);
        must_pass(&one, &other, end);
    }

    let counter = |status: &Value, name: &str| status["counters"][name].as_u64().unwrap();
    let before = mesh.status("n1").unwrap();
    // Both programs still read the chains, and write back what they read: nothing is left to repair.
    let text = saved(n1);
    shell(
        n1,
        "iptables-save >/run/saved4; ip6tables-save >/run/saved6
         iptables-restore </run/saved4; ip6tables-restore </run/saved6",
    );
    assert_eq!(plain(&saved(n1)), plain(&text));
    let looked = counter(&mesh.status("n1").unwrap(), "reconciles") + 3;
    mesh.wait("n1", "that it has looked", FORMED_WITHIN, |status| counter(status, "reconciles") >= looked);
    let steps = counter(&mesh.status("n1").unwrap(), "steps");
    assert_eq!(steps, counter(&before, "steps"), "{}", saved(n1));
    // A reload of the firewall's own rules, and rules that were removed, changed or moved by hand.
    for change in [
        "iptables -F FORWARD; ip6tables -F INPUT",
        "iptables -D FORWARD -i mveth+ -m comment --comment 'meshd accept' -j ACCEPT",
        "iptables -D INPUT -i mesh-b -m comment --comment 'meshd accept' -j ACCEPT",
    ] {
        shell(n1, &format!("iptables -P FORWARD DROP; {change}"));
        wait_ours(n1, FORWARD + INPUT, change);
        must_pass(&one, &other, change);
    }
}

/// An operator whose INPUT drops does not want that opened for pods: what the mesh needs is accepted, and nothing else.
#[test]
fn input_is_opened_for_the_mesh_alone_where_an_option_says_so() {
    let lab = Lab::builder().nodes(2).family(Family::Dual).api(ApiKind::Fake).build().unwrap();
    for node in lab.nodes() {
        shell(
            node,
            "for iptables in iptables ip6tables; do
                 $iptables -A INPUT -i lo -j ACCEPT; $iptables -A INPUT -i eth0 -j ACCEPT; $iptables -P INPUT DROP
             done",
        );
    }
    let mesh = Mesh::form_with(lab, &["--input-from-pods", "false"]).unwrap();
    mesh.wait_settled();
    let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name).unwrap());
    let (pod, other) = (n1.pod("a").unwrap().end(), n2.pod("a").unwrap().end());
    let text = saved(n2);
    for rule in ["-p udp -m udp --dport 51842", "-p icmp", "-p ipv6-icmp"] {
        for link in ["mesh-a", "mesh-b"] {
            let rule = format!("-A INPUT -i {link} {rule} -m comment --comment \"meshd accept\" -j ACCEPT");
            assert!(text.contains(&rule), "{rule} in\n{text}");
        }
    }
    assert_eq!(ours(n2), 2 * 4, "two rules for each link in both families:\n{text}");
    shell(n2, "iptables-save >/run/saved4; iptables-restore </run/saved4");
    assert_eq!(plain(&saved(n2)), plain(&text));
    must_pass(&pod, &other, "between pods");
    must_pass(&other, &pod, "between pods");
    for version in [IpVersion::V4, IpVersion::V6] {
        assert!(!passes_at_once(version, &pod, &n2.end()), "what a node listens on is closed");
        Flow::new(&pod, &n2.end(), version, Protocol::Icmp).must_pass();
    }
    // The same node opens it once the option says so.
    let mut mesh = mesh;
    mesh.stop("n2", Signal::TERM).unwrap();
    mesh.start("n2").unwrap();
    wait_ours(mesh.node("n2").unwrap(), 2 * 2, "everything is accepted by one rule for each link");
    must_pass(&pod, &mesh.node("n2").unwrap().end(), "a pod and the node");
}

/// Without dates and counters.
fn plain(saved: &str) -> String {
    saved.lines().filter(|line| line.starts_with("-A")).flat_map(|line| [line, "\n"]).collect()
}
