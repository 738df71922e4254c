use super::*;
use crate::host::ForeignVeth;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn sysctls(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A node on which nothing is to be found.
fn well() -> Facts {
    Facts {
        sysctls: sysctls(&[
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
        ]),
        cni_files: ["10-meshd.conflist".to_owned(), "99-loopback.conf".to_owned()].into(),
        default_links: ["eth0".to_owned()].into(),
        tun: true,
        unix_seconds: 1_800_000_000,
        ..Facts::default()
    }
}

fn expected() -> Expected {
    Expected {
        node: "n1".to_owned(),
        input: MeshInput::Everything,
        cluster: [net("10.244.0.0/16"), net("fd00:10:244::/48")].into(),
        pod_cidrs: [(net("10.244.1.0/24"), NodeName::new("n1")), (net("10.244.2.0/24"), NodeName::new("n2"))]
            .into(),
        mesh_links: ["mesh-a".parse().unwrap(), "mesh-b".parse().unwrap()].into(),
        to_pods_priority: 5185,
        cni_file: "10-meshd.conflist".to_owned(),
        cni_directory: "/etc/cni/net.d".to_owned(),
        needs_tun: true,
        forwarding_reset: false,
    }
}

fn chain(hook: FilterHook, table: &str, legacy: bool) -> DroppingChain {
    let chain = if legacy { "FORWARD" } else { "filter_FORWARD" };
    DroppingChain {
        hook,
        family: if legacy { "ip" } else { "inet" },
        table: table.into(),
        chain: chain.into(),
        legacy,
    }
}

fn route(destination: &str, metric: u32) -> ForeignRoute {
    ForeignRoute { destination: net(destination), metric, protocol: 12, link: Some("eth1".to_owned()) }
}

fn rule(priority: u32, from: &str, to: &str, table: Option<u32>) -> ForeignRule {
    ForeignRule { priority, from: net(from), to: net(to), table, conditional: false }
}

/// The codes, sentences and commands for facts that differ from those of a node that is well.
fn found(change: impl FnOnce(&mut Facts, &mut Expected)) -> Vec<(&'static str, String)> {
    let (mut facts, mut expected) = (well(), expected());
    change(&mut facts, &mut expected);
    let of = |found: Finding| (found.code.as_str(), format!("{}: {}", found.sentence, found.fix));
    findings(&facts, &expected).into_iter().map(of).collect()
}

#[track_caller]
fn one(change: impl FnOnce(&mut Facts, &mut Expected), code: &str, parts: &[&str]) {
    let found = found(change);
    assert_eq!(found.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [code], "{found:?}");
    for part in parts {
        assert!(found[0].1.contains(part), "{part} in {}", found[0].1);
    }
}

#[test]
fn a_node_that_is_well_has_no_findings() {
    assert_eq!(found(|_, _| {}), []);
}

#[test]
fn chains_that_drop_are_named_with_the_command_that_opens_them() {
    let of = |chain| move |facts: &mut Facts, _: &mut Expected| facts.chains = vec![chain];
    one(
        of(chain(FilterHook::Forward, "firewalld", false)),
        "forward-policy-drop",
        &[
            "filter_FORWARD of the table inet firewalld",
            "--zone=trusted --add-interface=mesh-a",
            "--add-source=10.244.0.0/16",
        ],
    );
    one(
        of(chain(FilterHook::Forward, "filter", true)),
        "forward-policy-drop",
        &["FORWARD of iptables-legacy"],
    );
    one(
        of(chain(FilterHook::Input, "own", false)),
        "input-policy-drop",
        &["insert rule inet own filter_FORWARD iifname \"mesh-b\" accept'"],
    );
    let control = |chain| {
        move |facts: &mut Facts, expected: &mut Expected| {
            (facts.chains, expected.input) = (vec![chain], MeshInput::Control(51842));
        }
    };
    one(
        control(chain(FilterHook::Input, "own", false)),
        "input-policy-drop",
        &[
            "insert rule inet own filter_FORWARD iifname \"mesh-b\" udp dport 51842 accept; ",
            "iifname \"mesh-b\" meta l4proto { icmp, ipv6-icmp } accept'",
        ],
    );
    one(
        control(chain(FilterHook::Input, "filter", true)),
        "input-policy-drop",
        &["-i mesh-a -p udp --dport 51842 -j ACCEPT && ", "-i mesh-b -p icmp -j ACCEPT"],
    );
}

#[test]
fn a_configuration_that_sorts_first_is_named() {
    let with = |file: &'static str| {
        move |facts: &mut Facts, _: &mut Expected| {
            facts.cni_files.insert(file.to_owned());
        }
    };
    for file in ["05-cilium.conflist", "10-calico.conflist", "10-containerd-net.conflist"] {
        one(with(file), "cni-config-shadowed", &[&format!("/etc/cni/net.d/{file}"), "mv "]);
    }
    assert_eq!(found(with("20-other.conflist")), []);
    assert!(Code::CniConfigShadowed.prevents_ready());
}

#[test]
fn pods_of_other_plugins_are_counted_and_containers_that_are_no_pods_are_not() {
    let veth = |link: &str, bridge: Option<&str>| ForeignVeth {
        link: link.to_owned(),
        bridge: bridge.map(str::to_owned),
    };
    let pods = [
        veth("calia1b2", None),
        veth("lxc0f00", None),
        veth("veth1", Some("cni0")),
        veth("veth2", Some("br-pods")),
        veth("pod-x", None),
    ];
    // Docker's, podman's, one to a namespace of something else, and a node's that is a container itself.
    let others =
        [("veth3", Some("docker0")), ("veth4", Some("cni-podman0")), ("veth5", None), ("eth0", None)];
    let others = others.map(|(link, bridge)| veth(link, bridge));
    let routes = [
        ("10.244.1.0/24", "br-pods"),
        ("10.244.1.7/32", "pod-x"),
        ("10.244.2.0/24", "veth5"),
        ("10.244.2.9/32", "eth0"),
    ]
    .map(|(destination, link)| ForeignRoute { link: Some(link.to_owned()), ..route(destination, 0) });
    let found = found(|facts, _| {
        facts.veths = pods.iter().chain(&others).cloned().collect();
        facts.routes = routes.to_vec();
    });
    let codes: Vec<&str> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, ["pods-outside-mesh", "competing-route"], "{found:?}");
    let text = &found[0].1;
    for part in
        ["5 pods on this node were attached", "(by calia1b2, lxc0f00, pod-x and others)", "spec.nodeName=n1 "]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    // Without its route a pod would be cut off; it goes with the pod.
    for (link, named) in [("br-pods", true), ("veth5", true), ("eth0", true), ("pod-x", false)] {
        assert_eq!(found[1].1.contains(&format!("dev {link} of")), named, "{link} in {}", found[1].1);
    }
    one(
        |facts, _| facts.veths = [veth("cali1", None), veth("veth5", None)].into(),
        "pods-outside-mesh",
        &["1 pod on this node was attached by another network plugin and is outside the mesh (by cali1):"],
    );
}

#[test]
fn routes_that_hide_the_mesh_s_are_named_with_their_program() {
    let with = |found: ForeignRoute| move |facts: &mut Facts, _: &mut Expected| facts.routes = vec![found];
    for (destination, metric, hidden) in [
        ("10.244.2.0/24", 0, "10.244.2.0/24, the pods of n2"),
        ("10.244.2.0/24", 84, "the pods of n2"),
        ("10.244.2.128/25", 1024, "the pods of n2"),
        ("10.244.9.0/24", 0, "addresses that no node has"),
    ] {
        let dev = format!("ip route del {destination} dev eth1 metric {metric} proto 12");
        one(with(route(destination, metric)), "competing-route", &["of bird", hidden, &dev]);
    }
    for (destination, metric) in
        [("10.244.2.0/24", 85), ("10.0.0.0/8", 0), ("0.0.0.0/0", 0), ("192.0.2.0/24", 0)]
    {
        assert_eq!(found(with(route(destination, metric))), [], "{destination} {metric}");
    }
}

#[test]
fn many_competing_routes_are_one_finding_that_names_three() {
    let with = |count: u8| {
        found(|facts: &mut Facts, _: &mut Expected| {
            let routes = (0..count).rev().map(|host| route(&format!("10.244.2.{host}/32"), 0));
            facts.routes = routes.collect();
        })
    };
    for (count, more) in
        [(3, "hides"), (4, "; there is 1 more such route: "), (200, "; there are 197 more such routes: ")]
    {
        let found = with(count);
        let [(_, text)] = found.as_slice() else { panic!("{found:?}") };
        // Each is in the sentence, with the range that it hides, and in the command.
        assert_eq!(text.matches("10.244.2.").count(), 9, "{text}");
        assert_eq!(text.contains(" more such "), count > 3, "{text}");
        assert!(text.contains(more) && text.contains(": ip route del 10.244.2.0/32 dev eth1 "), "{text}");
        assert!(text.ends_with("; ip route del 10.244.2.2/32 dev eth1 metric 0 proto 12"), "{text}");
    }
}

#[test]
fn rules_that_come_before_the_mesh_s_are_named() {
    let with = |found: ForeignRule| move |facts: &mut Facts, _: &mut Expected| facts.rules = vec![found];
    for (rule, part) in [
        (rule(100, "0.0.0.0/0", "0.0.0.0/0", Some(52)), "looks up table 52"),
        (rule(5185, "0.0.0.0/0", "10.244.0.0/16", Some(52)), "to 10.244.0.0/16"),
        (rule(100, "10.244.1.0/24", "0.0.0.0/0", None), "ends the lookup"),
        (rule(100, "::/0", "::/0", Some(52)), "ip -6 rule del priority 100"),
    ] {
        one(with(rule), "competing-rule", &[part, "rule-priority"]);
    }
    for rule in [
        rule(0, "0.0.0.0/0", "0.0.0.0/0", Some(255)),
        rule(100, "0.0.0.0/0", "0.0.0.0/0", Some(254)),
        rule(5210, "0.0.0.0/0", "0.0.0.0/0", Some(52)),
        rule(100, "192.0.2.1/32", "0.0.0.0/0", Some(52)),
        rule(100, "0.0.0.0/0", "192.0.2.0/24", Some(52)),
        ForeignRule { conditional: true, ..rule(100, "0.0.0.0/0", "0.0.0.0/0", Some(52)) },
    ] {
        assert_eq!(found(with(rule.clone())), [], "{rule:?}");
    }
}

#[test]
fn settings_of_the_kernel_are_named() {
    let set = |name: &'static str, value: &'static str| {
        move |facts: &mut Facts, _: &mut Expected| {
            drop(facts.sysctls.insert(name.to_owned(), value.to_owned()));
        }
    };
    one(set("net/ipv6/conf/default/disable_ipv6", "1"), "ipv6-disabled", &["default.disable_ipv6=0"]);
    one(|facts, _| facts.sysctls.clear(), "ipv6-disabled", &["no IPv6"]);
    assert_eq!(
        found(|facts, expected| {
            facts.sysctls.clear();
            expected.cluster.retain(IpNetwork::is_ipv4);
        }),
        []
    );
    one(|_, expected| expected.forwarding_reset = true, "forwarding-off", &["sysctl.d"]);
    one(set("net/ipv4/conf/mesh-b/rp_filter", "1"), "rp-filter-strict", &["mesh-b/rp_filter=2"]);
    // One uplink alone can't be asymmetric; of two, only strict ones count.
    assert_eq!(found(set("net/ipv4/conf/eth0/rp_filter", "1")), []);
    one(
        |facts, _| {
            facts.default_links.insert("eth1".to_owned());
            facts.sysctls = sysctls(&[
                ("net/ipv6/conf/default/disable_ipv6", "0"),
                ("net/ipv4/conf/eth1/rp_filter", "1"),
            ]);
        },
        "rp-filter-strict",
        &["on eth1"],
    );
}

#[test]
fn devices_directories_clock_and_other_programs_are_named() {
    one(|facts, _| facts.tun = false, "tun-missing", &["modprobe tun"]);
    assert_eq!(
        found(|facts, expected| (facts.tun, expected.needs_tun) = (false, false)),
        [],
        "the kernel's WireGuard does without"
    );
    one(
        |facts, _| facts.closed_directories = vec![("/opt/cni/bin".into(), 998)],
        "cni-dir-owner",
        &["user 998", "chown root: /opt/cni/bin"],
    );
    one(|facts, _| facts.unix_seconds = 0, "clock", &["set-ntp"]);
    one(
        |facts, _| facts.managers = [NetworkManager::SystemdNetworkd].into(),
        "systemd-networkd",
        &["ManageForeignRoutes=no"],
    );
    one(
        |facts, _| facts.managers = [NetworkManager::NetworkManager].into(),
        "network-manager",
        &["interface-name:mveth*;interface-name:mesh-a"],
    );
    one(
        |facts, _| facts.selinux = Some("system_u:system_r:container_t:s0:c1,c2".to_owned()),
        "selinux",
        &["spc_t"],
    );
    assert_eq!(found(|facts, _| facts.selinux = Some("system_u:system_r:spc_t:s0".to_owned())), []);
}

#[test]
fn the_page_has_a_row_for_each_code() {
    let page = include_str!("../../../../docs/host-checks.md");
    let rows: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, Code::ALL.map(Code::as_str));
}
