//! Facts about a node: other programs' filters, routes and rules.

use std::path::Path;

use linux::{FactSources, FilterState, LastAnswer};
use plan::host::{DroppingChain, Facts, FilterHook, ForeignRoute, ForeignVeth};

use crate::namespace::{Namespace, ip, link};

fn facts(namespace: &Namespace) -> Facts {
    let (a, b, cluster) = (link("mesh-a"), link("mesh-b"), [ip("10.244.0.0/16"), ip("fd00:10:244::/48")]);
    let nowhere = Path::new("/nonexistent");
    let sources =
        FactSources { mesh_links: [&a, &b], cluster: &cluster, cni_conf_dir: nowhere, cni_bin_dir: nowhere };
    namespace.host(async |host| {
        host.facts(sources, (FilterState::default(), &mut LastAnswer::default())).await.unwrap()
    })
}

fn chain(hook: FilterHook, family: &'static str, table: &str, chain: &str, legacy: bool) -> DroppingChain {
    DroppingChain { hook, family, table: table.to_owned(), chain: chain.to_owned(), legacy }
}

#[test]
fn chains_that_drop_are_found_in_every_family_and_variant() {
    let namespace = Namespace::new();
    assert_eq!(facts(&namespace).chains, []);
    for (family, hook) in [("ip", "forward"), ("ip6", "input"), ("inet", "forward")] {
        namespace.nft(&format!("add table {family} other"));
        namespace.nft(&format!(
            "add chain {family} other mine {{ type filter hook {hook} priority 5; policy drop; }}"
        ));
    }
    // Neither those that accept in the end nor those at other hooks.
    namespace.nft("add chain inet other end { type filter hook input priority 5; policy drop; }");
    namespace.nft("add rule inet other end accept");
    namespace.nft("add chain inet other out { type filter hook output priority 5; policy drop; }");
    let found = [
        chain(FilterHook::Forward, "ip", "other", "mine", false),
        chain(FilterHook::Input, "ip6", "other", "mine", false),
        chain(FilterHook::Forward, "inet", "other", "mine", false),
    ];
    assert_eq!(facts(&namespace).chains, found);
    // A chain that is called from the base chain in any case, and drops.
    namespace.nft("add chain inet other called");
    namespace.nft("add rule inet other called reject");
    namespace.nft("insert rule inet other end jump called");
    assert_eq!(facts(&namespace).chains.len(), 4);
    // Tables that name a link of the mesh or of pods are configured for it.
    namespace.nft("add rule inet other called iifname mesh-a accept");
    namespace.nft("add rule ip other mine oifname mveth* accept");
    assert_eq!(facts(&namespace).chains, found[1..2]);
}

#[test]
fn chains_of_legacy_iptables_are_found() {
    let namespace = Namespace::new();
    for (program, policy) in [
        ("iptables-legacy", "-P FORWARD DROP"),
        ("ip6tables-legacy", "-P FORWARD ACCEPT"),
        ("ip6tables-legacy", "-P INPUT DROP"),
    ] {
        namespace.program(program, policy);
    }
    let found = [
        chain(FilterHook::Forward, "ip", "filter", "FORWARD", true),
        chain(FilterHook::Input, "ip6", "filter", "INPUT", true),
    ];
    assert_eq!(facts(&namespace).chains, found);
    namespace.program("iptables-legacy", "-A FORWARD -i mesh-a -j ACCEPT");
    namespace.program("ip6tables-legacy", "-P INPUT ACCEPT");
    assert_eq!(facts(&namespace).chains, []);
}

#[test]
fn links_of_others_to_other_namespaces_are_found_with_their_bridge() {
    let (namespace, pod) = (Namespace::new(), Namespace::new());
    namespace.ip("link add cni0 type bridge");
    namespace.ip("link add here type veth peer name there");
    for (name, end) in [("veth1", "eth1"), ("cali2", "eth2"), ("mvethx", "eth3"), ("mesh-a", "eth4")] {
        namespace.join(name, &pod, end);
    }
    namespace.ip("link set veth1 master cni0");
    let veth = |link: &str, bridge: Option<&str>| ForeignVeth {
        link: link.to_owned(),
        bridge: bridge.map(ToOwned::to_owned),
    };
    assert_eq!(Vec::from_iter(facts(&namespace).veths), [veth("cali2", None), veth("veth1", Some("cni0"))]);
}

#[test]
fn routes_and_rules_of_others_are_found() {
    let namespace = Namespace::new();
    for (name, kind) in [("eth0", "eth1"), ("mesh-a", "other"), ("mvethx", "pod")] {
        namespace.ip(&format!("link add {name} type veth peer name {kind}"));
        namespace.ip(&format!("link set {name} up"));
        namespace.ip(&format!("link set {kind} up"));
    }
    namespace.ip("addr add 192.0.2.1/24 dev eth0");
    let before = facts(&namespace);
    assert_eq!((before.routes.len(), before.router_links.len()), (0, 0));
    for route in [
        "route add 10.244.2.0/24 dev eth0 metric 7 proto bird",
        "route add unreachable 10.244.3.0/24 proto static",
        // The mesh's, pods', wider ones, and those in other tables.
        "route add 10.244.4.0/24 dev eth0 metric 84 proto 84",
        "route add 10.244.5.0/24 dev mesh-a",
        "route add 10.244.6.1/32 dev mvethx",
        "route add 10.0.0.0/8 dev eth0",
        "route add 10.244.7.0/24 dev eth0 table 52",
        "route add default via 192.0.2.2 dev eth0",
        "-6 route add default via fe80::1 dev eth0 proto ra",
        "rule add from 192.0.2.1 lookup 30400 priority 30400",
        "rule add fwmark 5 lookup 52 priority 100",
        "rule add to 10.244.0.0/16 lookup 254 priority 5185 protocol 84",
    ] {
        namespace.ip(route);
    }
    let found = facts(&namespace);
    let route = |destination: &str, metric, protocol, link: Option<&str>| ForeignRoute {
        destination: ip(destination),
        metric,
        protocol,
        link: link.map(ToOwned::to_owned),
    };
    assert_eq!(
        found.routes,
        [route("10.244.2.0/24", 7, 12, Some("eth0")), route("10.244.3.0/24", 0, 4, None)]
    );
    assert_eq!(Vec::from_iter(&found.default_links), ["eth0"]);
    let rules: Vec<_> =
        found.rules.iter().map(|rule| (rule.priority, rule.table, rule.conditional)).collect();
    for wanted in [(100, Some(52), true), (30400, Some(30400), false), (32766, Some(254), false)] {
        assert!(rules.contains(&wanted), "{wanted:?} in {rules:?}");
    }
    assert!(!rules.iter().any(|(priority, ..)| *priority == 5185), "{rules:?}");
    assert_eq!(Vec::from_iter(&found.router_links), [&link("eth0")]);
    // Another program than the kernel takes the advertisements.
    namespace.set("net/ipv6/conf/eth0/accept_ra", "0");
    assert!(facts(&namespace).router_links.is_empty());
}
