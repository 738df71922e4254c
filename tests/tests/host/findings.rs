//! What is found on a host is said everywhere, and taken back once it is gone.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use lab::mesh::{FORMED_WITHIN, Mesh, is_formed};
use lab::{ApiKind, Family, Lab};
use serde_json::{Value, json};

use crate::shell;

/// Codes of the findings in a status, in their order.
fn codes(status: &Value) -> Vec<&str> {
    let found = status["findings"].as_array().unwrap().iter();
    found.map(|found| found["code"].as_str().unwrap()).collect()
}

/// Metric, log and an Event name each of these; the Event says how many sentences it has no room for.
#[track_caller]
fn assert_said(mesh: &Mesh, codes: &[&str]) {
    let rendered = mesh.node("n1").unwrap().run(lab::metrics).unwrap().unwrap();
    let log = mesh.daemon("n1").log().unwrap();
    for code in codes {
        assert!(
            rendered.contains(&format!("meshd_host_findings{{code=\"{code}\"}} 1\n")),
            "{code} in\n{rendered}"
        );
        assert!(log.contains(&format!("\"code\":\"{code}\"")), "{code} in\n{log}");
    }
    let distinct: BTreeSet<&str> = codes.iter().copied().collect();
    let names_all = |text: &str| {
        let (named, sentences) = text.split_once(". ").unwrap_or((text, ""));
        let said = codes.iter().filter(|code| sentences.contains(&format!("{code}: "))).count();
        let rest = sentences.rsplit("; ").next().and_then(|text| text.strip_suffix(" more in meshd status"));
        let left_out: usize = rest.map_or(0, |count| count.parse().unwrap());
        named.split(", ").collect::<BTreeSet<_>>() == distinct
            && said > 0
            && said + left_out >= distinct.len()
    };
    // One Event in a minute at most.
    let since = std::time::Instant::now();
    while !mesh.api().core_events().unwrap().iter().any(|event| {
        event["reason"] == "HostFindings"
            && event["type"] == "Warning"
            && event["message"].as_str().is_some_and(names_all)
    }) {
        assert!(since.elapsed() < 2 * FORMED_WITHIN, "{:?}", mesh.api().core_events());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What makes a node one on which each of these is found.
const SET_UP: &str = "ip route add 10.244.2.0/25 dev eth0 metric 7 proto bird
         ip rule add from all lookup 52 priority 100
         nft 'add table inet firewalld; add table ip own
              add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }
              add rule inet firewalld filter_FORWARD ct state established accept
              add rule inet firewalld filter_FORWARD reject
              add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy drop; }
              add rule inet firewalld filter_INPUT iifname { \"eth0\", \"lo\" } accept
              add chain inet firewalld other { type filter hook output priority 10; policy drop; }
              add rule inet firewalld other accept
              add chain ip own mine { type filter hook forward priority 0; policy drop; }
              add rule ip own mine oifname \"mveth*\" accept'
         iptables-legacy -P FORWARD DROP
         mkdir -p /run/systemd/netif
         ip link add cni0 type bridge
         ip link add veth1 master cni0 type veth peer name eth0 netns former
         ip link add veth2 type veth peer name eth1 netns former
         echo '{}' >/etc/cni/net.d/05-other.conflist";

#[test]
fn what_is_found_is_said_until_it_is_gone() {
    let lab = Lab::builder().nodes(2).family(Family::V4).api(ApiKind::Fake).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    mesh.start("n2").unwrap();
    // A pod of an earlier network plugin.
    let _former = mesh.node("n1").unwrap().sandbox("former").unwrap();
    shell(mesh.node("n1").unwrap(), SET_UP);
    mesh.start("n1").unwrap();
    let all = [
        "forward-policy-drop",
        "forward-policy-drop",
        "input-policy-drop",
        "cni-config-shadowed",
        "pods-outside-mesh",
        "competing-route",
        "competing-rule",
        "systemd-networkd",
    ];
    mesh.wait("n1", "everything is found", FORMED_WITHIN, |status| {
        codes(status) == all && status["api"]["published"] == true
    });
    let status = mesh.status("n1").unwrap();
    assert_eq!((&status["ready"], &status["pods_outside"]), (&json!(false), &json!(1)));
    let waiting = status["waiting_for"].to_string();
    assert!(waiting.contains("/etc/cni/net.d/05-other.conflist, which sorts before"), "{waiting}");
    let text = mesh.node("n1").unwrap().command(lab::bin("meshd").unwrap()).arg("status").run().unwrap();
    for part in [
        "the chain filter_FORWARD of the table inet firewalld drops",
        "the chain FORWARD of iptables-legacy drops",
        "[competing-route]",
        "1 pod on this node was attached by another network plugin and is outside the mesh (by veth1)",
        "fix: kubectl get pods --all-namespaces --field-selector spec.nodeName=n1 -o go-template=",
        "fix: ip route del 10.244.2.0/25 dev eth0 metric 7 proto 12",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let rendered = mesh.node("n1").unwrap().run(lab::metrics).unwrap().unwrap();
    assert!(rendered.contains("meshd_pods_outside_mesh 1\n"), "{rendered}");
    assert_said(&mesh, &all);
    // Each is fixed, most of them by the command that is shown.
    shell(
        mesh.node("n1").unwrap(),
        "ip route del 10.244.2.0/25 dev eth0 metric 7 proto 12
         ip rule del priority 100
         nft 'insert rule inet firewalld filter_FORWARD iifname \"mesh-a\" accept'
         iptables-legacy -P FORWARD ACCEPT
         rmdir /run/systemd/netif
         ip link del veth1
         mv /etc/cni/net.d/05-other.conflist /etc/cni/net.d/05-other.conflist.disabled",
    );
    let soon = Duration::from_secs(20);
    mesh.wait("n1", "nothing is left", soon, |status| {
        codes(status).is_empty() && status["pods_outside"] == 0 && is_formed(status, 1)
    });
    assert!(mesh.daemon("n1").log().unwrap().contains("HostFindingGone"));
    mesh.node("n1").unwrap().pod("a").unwrap();
}

/// What other programs are like, as far as files and settings of the node tell it.
const OTHERS: &str = "mkdir -p /run/systemd/netif /run/NetworkManager
         ip link add uplink type bridge
         ip addr add 192.0.2.1/24 dev uplink
         ip link set uplink up
         ip route add default via 192.0.2.254 dev uplink metric 900
         sysctl -qw net.ipv4.conf.uplink.rp_filter=1
         mount -t tmpfs none /dev/net
         mount -t tmpfs none /sys/fs
         mkdir /sys/fs/selinux
         echo 1 >/sys/fs/selinux/enforce";

/// The daemon in a context of `SELinux`, as far as it can tell.
const CONFINED: &str = "#!/bin/sh
printf 'system_u:system_r:container_t:s0:c1,c2' >/run/context
mount --bind /run/context /proc/$$/attr/current
exec MESHD \"$@\"
";

/// A clock that is wrong can't be made: there is one for the whole machine.
#[test]
fn a_node_without_tun_and_with_programs_that_interfere_says_so_until_it_is_put_right() {
    let lab = Lab::builder().nodes(1).family(Family::V4).api(ApiKind::Fake).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    shell(mesh.node("n1").unwrap(), OTHERS);
    let (program, meshd) = (mesh.dir().join("meshd-confined"), lab::bin("meshd").unwrap());
    std::fs::write(&program, CONFINED.replace("MESHD", meshd.to_str().unwrap())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    mesh.start_program(&program, "n1", &[], &[]).unwrap();
    let all = ["rp-filter-strict", "tun-missing", "systemd-networkd", "network-manager", "selinux"];
    mesh.wait("n1", "everything is found", FORMED_WITHIN, |status| {
        codes(status) == all && status["ready"] == false
    });
    let text = mesh.node("n1").unwrap().command(&meshd).arg("status").run().unwrap();
    for part in [
        "reverse path filtering on uplink is strict",
        "fix: sysctl -w net/ipv4/conf/uplink/rp_filter=2",
        "there is no /dev/net/tun, which the userspace engine needs",
        "systemd-networkd removes routes and policy rules that it did not make",
        "NetworkManager is not told to leave the links of pods and of the mesh alone",
        "SELinux confines meshd to system_u:system_r:container_t:s0:c1,c2",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert_said(&mesh, &all);
    // What the commands do that are shown, with files below /run. Meanwhile somebody switches forwarding off.
    shell(
        mesh.node("n1").unwrap(),
        "sysctl -w net/ipv4/conf/uplink/rp_filter=2
         umount /dev/net /proc/$(pidof meshd)/attr/current
         mkdir /run/systemd/networkd.conf.d /run/NetworkManager/conf.d
         printf '[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n' \
             >/run/systemd/networkd.conf.d/50-meshd.conf
         printf '[keyfile]\nunmanaged-devices=interface-name:mveth*;interface-name:mesh-a;interface-name:mesh-b\n' \
             >/run/NetworkManager/conf.d/50-meshd.conf",
    );
    mesh.wait("n1", "that it is ready", FORMED_WITHIN, |status| status["ready"] == true);
    shell(mesh.node("n1").unwrap(), "sysctl -qw net.ipv4.ip_forward=0");
    // That is remembered for ten minutes.
    mesh.wait("n1", "the rest is gone", 2 * FORMED_WITHIN, |status| codes(status) == ["forwarding-off"]);
    let text = mesh.node("n1").unwrap().command(&meshd).arg("status").run().unwrap();
    assert!(text.contains("another program keeps switching forwarding off"), "{text}");
    let rendered = mesh.node("n1").unwrap().run(lab::metrics).unwrap().unwrap();
    assert!(rendered.contains("meshd_host_findings{code=\"forwarding-off\"} 1\n"), "{rendered}");
}
