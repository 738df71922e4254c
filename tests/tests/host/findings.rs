//! What is found on a host is said everywhere, and taken back once it is gone.

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
        "fix: kubectl delete pods --all-namespaces --field-selector spec.nodeName=n1,spec.hostNetwork=false",
        "fix: ip route del 10.244.2.0/25 dev eth0 metric 7 proto 12",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let rendered = mesh.node("n1").unwrap().run(lab::metrics).unwrap().unwrap();
    assert!(rendered.contains("meshd_pods_outside_mesh 1\n"), "{rendered}");
    let log = mesh.daemon("n1").log().unwrap();
    for code in all {
        assert!(
            rendered.contains(&format!("meshd_host_findings{{code=\"{code}\"}} 1\n")),
            "{code} in\n{rendered}"
        );
        assert!(log.contains(&format!("\"code\":\"{code}\"")), "{code} in\n{log}");
    }
    let since = std::time::Instant::now();
    while !mesh.api().core_events().unwrap().iter().any(|event| {
        event["reason"] == "HostFindings"
            && event["type"] == "Warning"
            && event["message"].as_str().is_some_and(|text| text.contains("forward-policy-drop: "))
    }) {
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", mesh.api().core_events());
    }
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
