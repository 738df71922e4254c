//! What keeps the mesh from working on a node, judged from facts: a code, a sentence, and the command that fixes it.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::facts::{DroppingChain, Facts, FilterHook, ForeignRoute, ForeignRule, NetworkManager};
use super::outside;
use crate::desired::{MAIN_TABLE, PEER_METRIC};
use crate::network::{LinkName, MeshInput};
use crate::node::NodeName;
use crate::prefix;

/// Numbers of the routing tables `default` and `local` (`RT_TABLE_DEFAULT`, `RT_TABLE_LOCAL`).
const DEFAULT_TABLE: u32 = 253;
const LOCAL_TABLE: u32 = 255;
/// 1 November 2026: this version did not exist before.
const NOT_BEFORE: u64 = 1_793_491_200;
/// How many routes a finding names.
const ROUTES_NAMED: usize = 3;

/// What the node is expected to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Name of the Node.
    pub node: String,
    /// The cluster's pod ranges.
    pub cluster: BTreeSet<IpNetwork>,
    /// The pod ranges of this node and of each peer.
    pub pod_cidrs: BTreeMap<IpNetwork, NodeName>,
    /// Interfaces of the mesh.
    pub mesh_links: BTreeSet<LinkName>,
    /// What is to be accepted on them for the node itself.
    pub input: MeshInput,
    /// Priority of the rules by which packets for pods look up the main table.
    pub to_pods_priority: u32,
    /// Name of the daemon's network configuration for the container runtime.
    pub cni_file: String,
    /// Directory that it is in.
    pub cni_directory: String,
    /// Whether a device needs `/dev/net/tun`.
    pub needs_tun: bool,
    /// Whether forwarding was switched off by somebody lately.
    pub forwarding_reset: bool,
}

/// What a finding is about; its text is stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// A chain drops packets that the node forwards.
    ForwardPolicyDrop,
    /// A chain drops packets for the node itself.
    InputPolicyDrop,
    /// The container runtime uses another network configuration.
    CniConfigShadowed,
    /// Pods were attached by another plugin.
    PodsOutsideMesh,
    /// A route of another program hides one of the mesh.
    CompetingRoute,
    /// A rule of another program comes before those of the mesh.
    CompetingRule,
    /// IPv6 is switched off.
    Ipv6Disabled,
    /// Somebody switches forwarding off.
    ForwardingOff,
    /// Packets are dropped whose source is routed elsewhere.
    RpFilterStrict,
    /// There is no TUN device.
    TunMissing,
    /// A directory of the container runtime can't be written to.
    CniDirOwner,
    /// The clock is in the past.
    Clock,
    /// systemd-networkd removes foreign routes and rules.
    SystemdNetworkd,
    /// `NetworkManager` may manage links of pods.
    NetworkManager,
    /// `SELinux` confines the daemon.
    Selinux,
}

impl Code {
    /// All codes, in the order in which they are shown.
    pub const ALL: [Self; 15] = [
        Self::ForwardPolicyDrop,
        Self::InputPolicyDrop,
        Self::CniConfigShadowed,
        Self::PodsOutsideMesh,
        Self::CompetingRoute,
        Self::CompetingRule,
        Self::Ipv6Disabled,
        Self::ForwardingOff,
        Self::RpFilterStrict,
        Self::TunMissing,
        Self::CniDirOwner,
        Self::Clock,
        Self::SystemdNetworkd,
        Self::NetworkManager,
        Self::Selinux,
    ];

    /// Its stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ForwardPolicyDrop => "forward-policy-drop",
            Self::InputPolicyDrop => "input-policy-drop",
            Self::CniConfigShadowed => "cni-config-shadowed",
            Self::PodsOutsideMesh => "pods-outside-mesh",
            Self::CompetingRoute => "competing-route",
            Self::CompetingRule => "competing-rule",
            Self::Ipv6Disabled => "ipv6-disabled",
            Self::ForwardingOff => "forwarding-off",
            Self::RpFilterStrict => "rp-filter-strict",
            Self::TunMissing => "tun-missing",
            Self::CniDirOwner => "cni-dir-owner",
            Self::Clock => "clock",
            Self::SystemdNetworkd => "systemd-networkd",
            Self::NetworkManager => "network-manager",
            Self::Selinux => "selinux",
        }
    }

    /// Whether pods can't be attached to the mesh at all because of it.
    pub const fn prevents_ready(self) -> bool {
        matches!(self, Self::CniConfigShadowed)
    }
}

/// Something about the node that keeps the mesh from working.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What it is about.
    pub code: Code,
    /// What was found and what it does, one sentence without its full stop.
    pub sentence: String,
    /// The command that fixes it.
    pub fix: String,
}

/// Judges a node.
pub fn findings(facts: &Facts, expected: &Expected) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(facts.chains.iter().map(|chain| dropping(chain, expected)));
    found.extend(shadowing(facts, expected));
    found.extend(outside::finding(facts, expected));
    found.extend(competing_routes(facts, expected));
    found.extend(facts.rules.iter().filter_map(|rule| competing_rule(rule, expected)));
    found.extend(settings(facts, expected));
    found.extend(system(facts, expected));
    found.sort();
    found
}

fn finding(code: Code, sentence: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { code, sentence: sentence.into(), fix: fix.into() }
}

fn dropping(chain: &DroppingChain, expected: &Expected) -> Finding {
    let DroppingChain { hook, family, table, chain: name, legacy } = chain;
    let (code, what) = match hook {
        FilterHook::Forward => (Code::ForwardPolicyDrop, "packets that this node forwards for pods"),
        FilterHook::Input => (Code::InputPolicyDrop, "packets for this node that arrive by the mesh"),
    };
    if *legacy {
        let program = if *family == "ip6" { "ip6tables-legacy" } else { "iptables-legacy" };
        let sentence = format!("the chain {name} of {program} drops {what}");
        let matches: Vec<String> = match hook {
            FilterHook::Forward => ["-i mveth+", "-o mveth+"].map(ToOwned::to_owned).into(),
            FilterHook::Input => {
                let accepted: &[String] = &match expected.input {
                    MeshInput::Everything => vec![String::new()],
                    MeshInput::Control(port) => {
                        let icmp = if *family == "ip6" { "ipv6-icmp" } else { "icmp" };
                        vec![format!(" -p udp --dport {port}"), format!(" -p {icmp}")]
                    }
                };
                let of = |link| accepted.iter().map(move |what| format!("-i {link}{what}"));
                expected.mesh_links.iter().flat_map(of).collect()
            }
        };
        let rules = matches.iter().map(|matches| format!("{program} -A {name} {matches} -j ACCEPT"));
        return finding(code, sentence, rules.collect::<Vec<_>>().join(" && "));
    }
    let sentence = format!("the chain {name} of the table {family} {table} drops {what}");
    if table == "firewalld" {
        let links: Vec<String> =
            expected.mesh_links.iter().map(|link| format!("--add-interface={link}")).collect();
        let ranges: Vec<String> =
            expected.cluster.iter().map(|range| format!("--add-source={range}")).collect();
        let fix = format!(
            "firewall-cmd --permanent --zone=trusted {} {} && firewall-cmd --reload",
            links.join(" "),
            ranges.join(" ")
        );
        return finding(code, sentence, fix);
    }
    let fix = match hook {
        FilterHook::Forward => format!(
            "nft 'insert rule {family} {table} {name} oifname \"mveth*\" accept; insert rule {family} {table} {name} iifname \"mveth*\" accept'"
        ),
        FilterHook::Input => {
            let accepted: &[String] = &match expected.input {
                MeshInput::Everything => vec![String::new()],
                MeshInput::Control(port) => {
                    vec![format!("udp dport {port} "), "meta l4proto { icmp, ipv6-icmp } ".to_owned()]
                }
            };
            let rule =
                |link, what| format!("insert rule {family} {table} {name} iifname \"{link}\" {what}accept");
            let of = |link| accepted.iter().map(move |what| rule(link, what));
            format!("nft '{}'", expected.mesh_links.iter().flat_map(of).collect::<Vec<_>>().join("; "))
        }
    };
    finding(code, sentence, fix)
}

/// Runtimes take the first file by its name.
fn shadowing(facts: &Facts, expected: &Expected) -> Option<Finding> {
    let first = facts.cni_files.iter().find(|file| **file < expected.cni_file)?;
    let path = format!("{}/{first}", expected.cni_directory);
    Some(finding(
        Code::CniConfigShadowed,
        format!(
            "the container runtime uses {path}, which sorts before {}: new pods are not attached to the mesh",
            expected.cni_file
        ),
        format!("mv {path} {path}.disabled"),
    ))
}

/// One finding for all of them: a routing daemon may make thousands.
fn competing_routes(facts: &Facts, expected: &Expected) -> Option<Finding> {
    // The route to a pod outside the mesh goes with the pod, which is a finding of its own.
    let competing: BTreeSet<&ForeignRoute> =
        facts.routes.iter().filter(|route| !outside::leads_to_pod(route, facts)).collect();
    let mut competing = competing.into_iter().filter_map(|route| competing_route(route, expected));
    let (mut sentences, fixes): (Vec<String>, Vec<String>) = competing.by_ref().take(ROUTES_NAMED).unzip();
    match competing.count() {
        0 => {}
        1 => sentences.push("there is 1 more such route".to_owned()),
        more => sentences.push(format!("there are {more} more such routes")),
    }
    (!fixes.is_empty()).then(|| finding(Code::CompetingRoute, sentences.join("; "), fixes.join("; ")))
}

/// The sentence and the command for one of them.
fn competing_route(route: &ForeignRoute, expected: &Expected) -> Option<(String, String)> {
    let ForeignRoute { destination, metric, protocol, link } = route;
    if !expected.cluster.iter().any(|range| prefix::contains(*range, *destination)) {
        return None;
    }
    let owner = expected.pod_cidrs.iter().find(|(pods, _)| prefix::contains(**pods, *destination));
    // The mesh's own route to the same destination wins.
    if owner.is_some_and(|(pods, _)| pods == destination && *metric > PEER_METRIC) {
        return None;
    }
    let hidden = match owner {
        Some((pods, node)) => format!("the mesh's route to {pods}, the pods of {node}"),
        None => "the mesh's refusal of addresses that no node has".to_owned(),
    };
    let program = protocol_name(*protocol);
    let dev = link.as_ref().map(|link| format!(" dev {link}")).unwrap_or_default();
    let family = if destination.is_ipv6() { " -6" } else { "" };
    Some((
        format!(
            "the route {destination}{dev} of {program} (protocol {protocol}, metric {metric}) hides {hidden}"
        ),
        format!("ip{family} route del {destination}{dev} metric {metric} proto {protocol}"),
    ))
}

/// Names of `/etc/iproute2/rt_protos` and of `include/uapi/linux/rtnetlink.h`.
const fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        2 => "the kernel",
        3 => "an administrator or a program that gives no name",
        4 => "an administrator",
        9 => "router advertisements",
        11 => "zebra",
        12 => "bird",
        16 => "DHCP",
        18 => "keepalived",
        42 => "babel",
        186 => "BGP",
        187 => "IS-IS",
        188 => "OSPF",
        189 => "RIP",
        192 => "EIGRP",
        _ => "another program",
    }
}

fn competing_rule(rule: &ForeignRule, expected: &Expected) -> Option<Finding> {
    let harmless = [MAIN_TABLE, LOCAL_TABLE, DEFAULT_TABLE];
    let before = rule.priority > 0 && rule.priority <= expected.to_pods_priority;
    let elsewhere = rule.table.is_none_or(|table| !harmless.contains(&table));
    let takes = expected.cluster.iter().any(|range| {
        prefix::overlap(rule.to, *range)
            && (prefix::overlap(rule.from, *range) || rule.from.prefix() == 0 || rule.to.prefix() > 0)
    });
    if rule.conditional || !before || !elsewhere || !takes {
        return None;
    }
    let family = if rule.from.is_ipv6() { " -6" } else { "" };
    let ends = match rule.table {
        Some(table) => format!("looks up table {table}"),
        None => "ends the lookup".to_owned(),
    };
    Some(finding(
        Code::CompetingRule,
        format!(
            "the policy rule with priority {} (from {} to {}) {ends} before packets for pods look up the main table",
            rule.priority, rule.from, rule.to
        ),
        format!(
            "set the option rule-priority to less than {}, or ip{family} rule del priority {0}",
            rule.priority
        ),
    ))
}

fn settings(facts: &Facts, expected: &Expected) -> Vec<Finding> {
    let mut found = Vec::new();
    let value = |name: &str| facts.sysctls.get(name).map(String::as_str);
    if expected.cluster.iter().any(IpNetwork::is_ipv6) {
        match value("net/ipv6/conf/default/disable_ipv6") {
            None => found.push(finding(
                Code::Ipv6Disabled,
                "the kernel has no IPv6, but a cluster-cidr is IPv6",
                "remove ipv6.disable=1 from the kernel's command line and reboot, or take the IPv6 range out of cluster-cidr",
            )),
            Some("1") => found.push(finding(
                Code::Ipv6Disabled,
                "IPv6 is switched off on new links, among them those of pods, but a cluster-cidr is IPv6",
                "sysctl -w net.ipv6.conf.default.disable_ipv6=0",
            )),
            Some(_) => {}
        }
    }
    if expected.forwarding_reset {
        found.push(finding(
            Code::ForwardingOff,
            "another program keeps switching forwarding off; it is switched on again within a second, and packets of pods are lost until then",
            "grep -rsE 'ip_forward|all.forwarding' /etc/sysctl.conf /etc/sysctl.d /run/sysctl.d /usr/lib/sysctl.d",
        ));
    }
    // The kernel takes the greater one of the two (`IN_DEV_RPFILTER` in `include/linux/inetdevice.h`).
    let filter = |link: &str| {
        let of = |name: &str| {
            value(&format!("net/ipv4/conf/{name}/rp_filter")).and_then(|text| text.parse::<u8>().ok())
        };
        of("all").unwrap_or_default().max(of(link).unwrap_or_default())
    };
    let uplinks = facts.default_links.iter().map(String::as_str).filter(|_| facts.default_links.len() > 1);
    for link in expected.mesh_links.iter().map(LinkName::as_str).chain(uplinks) {
        if filter(link) == 1 {
            found.push(finding(
                Code::RpFilterStrict,
                format!("reverse path filtering on {link} is strict: packets are dropped whose source is routed by another link"),
                format!("sysctl -w net/ipv4/conf/{link}/rp_filter=2"),
            ));
        }
    }
    found
}

fn system(facts: &Facts, expected: &Expected) -> Vec<Finding> {
    let mut found = Vec::new();
    if expected.needs_tun && !facts.tun {
        found.push(finding(
            Code::TunMissing,
            "there is no /dev/net/tun, which the userspace engine needs",
            "modprobe tun && ls -l /dev/net/tun",
        ));
    }
    for (directory, owner) in &facts.closed_directories {
        let path = directory.display();
        found.push(finding(
            Code::CniDirOwner,
            format!("{path} belongs to user {owner}, and meshd may not write to it"),
            format!("chown root: {path} && chmod 755 {path}"),
        ));
    }
    if facts.unix_seconds < NOT_BEFORE {
        found.push(finding(
            Code::Clock,
            "the clock is before this version was made: peers refuse handshakes, and certificates are not valid yet",
            "timedatectl set-ntp true, or chronyc makestep",
        ));
    }
    for manager in &facts.managers {
        found.push(match manager {
            NetworkManager::SystemdNetworkd => finding(
                Code::SystemdNetworkd,
                "systemd-networkd removes routes and policy rules that it did not make when it restarts or a link changes",
                "mkdir -p /etc/systemd/networkd.conf.d && printf '[Network]\\nManageForeignRoutes=no\\nManageForeignRoutingPolicyRules=no\\n' >/etc/systemd/networkd.conf.d/50-meshd.conf && systemctl restart systemd-networkd",
            ),
            NetworkManager::NetworkManager => finding(
                Code::NetworkManager,
                "NetworkManager is not told to leave the links of pods and of the mesh alone, and may change them",
                format!(
                    "printf '[keyfile]\\nunmanaged-devices=interface-name:mveth*;{}\\n' >/etc/NetworkManager/conf.d/50-meshd.conf && systemctl reload NetworkManager",
                    expected.mesh_links.iter().map(|link| format!("interface-name:{link}")).collect::<Vec<_>>().join(";")
                ),
            ),
        });
    }
    if let Some(context) = &facts.selinux
        && context.split(':').nth(2) == Some("container_t")
    {
        found.push(finding(
            Code::Selinux,
            format!("SELinux confines meshd to {context}, which may not write network configurations, plugins and settings"),
            "kubectl -n meshd patch daemonset meshd --patch '{\"spec\":{\"template\":{\"spec\":{\"securityContext\":{\"seLinuxOptions\":{\"type\":\"spc_t\"}}}}}}'",
        ));
    }
    found
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
