//! The pair between a node and a pod.

use std::net::IpAddr;

use linux::veth::{self, Mac, Pair};

use crate::namespace::{Namespace, ip};

const HOST_LINK: &str = "mveth0123456789";
const HOST_MAC: Mac = [2, 0, 0, 0, 0, 1];
const POD_MAC: Mac = [2, 0, 0, 0, 0, 2];

fn addresses() -> [IpAddr; 2] {
    [ip("10.244.1.5"), ip("fd00:10:244:1::5")]
}

fn pair(addresses: &[IpAddr]) -> Pair<'_> {
    Pair {
        host_link: HOST_LINK,
        host_mac: HOST_MAC,
        pod_link: "eth0",
        pod_mac: POD_MAC,
        mtu: 1380,
        addresses,
        source: None,
    }
}

/// A node with an address of its own in both families, which forwards.
fn node() -> Namespace {
    let node = Namespace::new();
    node.ip("link add underlay type veth peer name out");
    node.ip("link set underlay up");
    node.ip("link set out up");
    node.ip("addr add 192.0.2.1/24 dev underlay");
    node.ip("-6 addr add 2001:db8::1/64 dev underlay nodad");
    node.set("net/ipv4/ip_forward", "1");
    node.set("net/ipv6/conf/all/forwarding", "1");
    node
}

#[test]
fn a_pair_is_there_whole() {
    let (node, pod) = (node(), Namespace::new());
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    let host_end = node.run(|| veth::inspect(HOST_LINK)).unwrap().unwrap();
    assert_eq!((host_end.mac, host_end.mtu, host_end.up), (Some(HOST_MAC), 1380, true));
    assert_eq!(host_end.addresses, [] as [IpAddr; 0]);
    for address in addresses() {
        assert!(host_end.routes.contains(&address.into()), "{:?}", host_end.routes);
    }
    let pod_end = pod.run(|| veth::inspect("eth0")).unwrap().unwrap();
    assert_eq!((pod_end.mac, pod_end.mtu, pod_end.up), (Some(POD_MAC), 1380, true));
    assert_eq!(pod_end.addresses, addresses());
    for default in ["0.0.0.0/0", "::/0"] {
        assert!(pod_end.routes.contains(&ip(default)), "{:?}", pod_end.routes);
    }
    assert_eq!(node.run(veth::host_links).unwrap(), [HOST_LINK]);
    for (namespace, family, neighbour) in [
        (&node, "-4", format!("10.244.1.5 dev {HOST_LINK} lladdr 02:00:00:00:00:02 PERMANENT")),
        (&node, "-6", format!("fd00:10:244:1::5 dev {HOST_LINK} lladdr 02:00:00:00:00:02 PERMANENT")),
        (&pod, "-4", "169.254.1.1 dev eth0 lladdr 02:00:00:00:00:01 PERMANENT".to_owned()),
        (&pod, "-6", "fe80::1 dev eth0 lladdr 02:00:00:00:00:01 PERMANENT".to_owned()),
    ] {
        let shown = namespace.ip(&format!("{family} neigh show"));
        assert!(shown.contains(&neighbour), "{neighbour} in {shown}");
    }
    // With a preferred source the route would be removed with the node's address.
    let routes = node.ip("route show proto 84");
    assert!(routes.contains("10.244.1.5 dev mveth0123456789") && !routes.contains("src"), "{routes}");
    assert_eq!(
        node.run(|| linux::sysctl::read("net/ipv4/conf/mveth0123456789/rp_filter")).unwrap().unwrap(),
        "1"
    );
    assert_eq!(
        node.run(|| linux::sysctl::read("net/ipv6/conf/mveth0123456789/accept_ra")).unwrap().unwrap(),
        "0"
    );
}

#[test]
fn node_and_pod_reach_each_other_with_the_first_packet() {
    let (node, pod) = (node(), Namespace::new());
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    for (pod_address, node_address) in addresses().into_iter().zip([ip("192.0.2.1"), ip("2001:db8::1")]) {
        let at_pod = pod.udp(pod_address, 9000);
        let at_node = node.udp(node_address, 9000);
        at_node.send_to(b"ping", (pod_address, 9000)).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(at_pod.recv_from(&mut buffer).unwrap(), (4, (node_address, 9000).into()));
        at_pod.send_to(b"pong!", (node_address, 9000)).unwrap();
        assert_eq!(at_node.recv_from(&mut buffer).unwrap(), (5, (pod_address, 9000).into()));
        // The pod reaches itself, too.
        at_pod.send_to(b"self", (pod_address, 9000)).unwrap();
        assert_eq!(at_pod.recv_from(&mut buffer).unwrap(), (4, (pod_address, 9000).into()));
    }
}

#[test]
fn a_server_that_is_bound_to_no_address_answers_from_the_one_that_was_asked() {
    let (node, pod) = (node(), Namespace::new());
    // Closer to the pod's address than the node's own.
    node.ip("link set lo up");
    node.ip("-6 addr add fd00:10:244:1::1/128 dev lo");
    let addresses = addresses();
    let pair = Pair { source: Some(ip("2001:db8::1")), ..pair(&addresses) };
    node.run(|| veth::attach(&pair, pod.namespace())).unwrap();
    let server = node.udp(ip("::"), 9000);
    let client = pod.udp(addresses[1], 9000);
    client.send_to(b"ping", "[2001:db8::1]:9000").unwrap();
    let mut buffer = [0; 8];
    let (_, asked_by) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"pong", asked_by).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap().1, "[2001:db8::1]:9000".parse().unwrap());
    // The route outlives the address.
    node.ip("-6 addr del 2001:db8::1/64 dev underlay");
    let routes = node.ip("-6 route show proto 84");
    assert!(routes.contains("fd00:10:244:1::5 dev mveth0123456789") && !routes.contains("src"), "{routes}");
}

#[test]
fn a_source_that_the_node_does_not_have_is_left_out() {
    let (node, pod) = (node(), Namespace::new());
    let addresses = addresses();
    let pair = Pair { source: Some(ip("2001:db8::9")), ..pair(&addresses) };
    node.run(|| veth::attach(&pair, pod.namespace())).unwrap();
    let routes = node.ip("-6 route show proto 84");
    assert!(routes.contains("fd00:10:244:1::5 dev mveth0123456789") && !routes.contains("src"), "{routes}");
}

#[test]
fn one_family_alone_does() {
    for (address, other) in [(addresses()[0], "-6"), (addresses()[1], "-4")] {
        let (node, pod) = (node(), Namespace::new());
        node.run(|| veth::attach(&pair(&[address]), pod.namespace())).unwrap();
        let end = pod.run(|| veth::inspect("eth0")).unwrap().unwrap();
        assert_eq!(end.addresses, [address]);
        assert!(!pod.ip(&format!("{other} route show")).contains("default"));
    }
}

#[test]
fn a_pod_with_ipv6_turned_off_gets_its_address_all_the_same() {
    let (node, pod) = (node(), Namespace::new());
    pod.set("net/ipv6/conf/default/disable_ipv6", "1");
    pod.set("net/ipv6/conf/all/disable_ipv6", "1");
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    assert_eq!(pod.run(|| veth::inspect("eth0")).unwrap().unwrap().addresses, addresses());
}

#[test]
fn a_pair_is_removed_once_with_all_that_hangs_on_it() {
    let (node, pod) = (node(), Namespace::new());
    let before = [node.ip("route show table all"), node.ip("-6 route show table all"), node.ip("neigh show")];
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    assert!(node.run(|| veth::detach(HOST_LINK)).unwrap());
    assert!(!node.run(|| veth::detach(HOST_LINK)).unwrap());
    assert_eq!(node.run(|| veth::inspect(HOST_LINK)).unwrap(), None);
    assert_eq!(pod.run(|| veth::inspect("eth0")).unwrap(), None);
    assert_eq!(node.run(veth::host_links).unwrap(), [] as [&str; 0]);
    let after = [node.ip("route show table all"), node.ip("-6 route show table all"), node.ip("neigh show")];
    assert_eq!(after, before);
}

#[test]
fn a_name_that_is_taken_is_an_error_and_what_has_it_stays() {
    let (node, pod) = (node(), Namespace::new());
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    let error = node.run(|| veth::attach(&pair(&addresses()), Namespace::new().namespace())).unwrap_err();
    assert!(error.is_exists(), "{error}");
    assert_eq!(error.to_string(), format!("create: veth {HOST_LINK}"));
    let other = Pair { host_link: "mvethother", ..pair(&[]) };
    let error = node.run(|| veth::attach(&other, pod.namespace())).unwrap_err();
    assert!(error.is_exists(), "the pod's end has its name already: {error}");
    assert_eq!(node.run(|| veth::inspect("mvethother")).unwrap(), None, "nothing is left of it");
    assert!(node.run(|| veth::inspect(HOST_LINK)).unwrap().is_some());
}

#[test]
fn a_pair_goes_with_the_pod_s_namespace() {
    let (node, pod) = (node(), Namespace::new());
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    drop(pod);
    crate::namespace::until("the node's end is gone", || {
        node.run(|| veth::inspect(HOST_LINK)).unwrap().is_none()
    });
    assert!(!node.run(|| veth::detach(HOST_LINK)).unwrap());
}

/// As virtual machines are attached: a bridge in the pod joins the pod's end and the guest, which takes over address and
/// Ethernet address. What the guest asks for, and by which Ethernet address, nobody has told the node.
#[test]
fn a_guest_behind_a_bridge_finds_the_gateway_by_itself() {
    let (node, pod, guest) = (node(), Namespace::new(), Namespace::new());
    node.ip("route add default via 192.0.2.2");
    node.ip("-6 route add default via 2001:db8::2");
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    let before = node.ip("neigh show nud permanent");
    for arguments in [
        "addr flush dev eth0 scope global",
        "link set eth0 address 02:00:00:00:00:99",
        "link add bridge type bridge",
        "link set bridge up",
        "link set eth0 master bridge",
    ] {
        pod.ip(arguments);
    }
    pod.join("tap", &guest, "eth0");
    pod.ip("link set tap master bridge");
    for arguments in [
        "addr add 10.244.1.5/32 dev eth0",
        "-6 addr add fd00:10:244:1::5/128 dev eth0 nodad",
        "route add default via 169.254.1.1 dev eth0 onlink",
        "-6 route add default via fe80::1 dev eth0",
    ] {
        guest.ip(arguments);
    }
    for mac in ["02:00:00:00:00:77", "02:00:00:00:00:02"] {
        guest.ip(&format!("link set eth0 address {mac}"));
        for (address, node_address, gateway) in [
            (addresses()[0], ip::<IpAddr>("192.0.2.1"), "169.254.1.1"),
            (addresses()[1], ip("2001:db8::1"), "fe80::1"),
        ] {
            // Solicitations come from the guest's address, and the node answers that by the Ethernet address that it knows.
            if address.is_ipv6() && mac != "02:00:00:00:00:02" {
                continue;
            }
            guest.ip(&format!("neigh flush to {gateway} dev eth0"));
            let at_guest = guest.udp(address, 9000);
            crate::namespace::until("the gateway answers", || {
                let _ = at_guest.send_to(b"ping", (node_address, 9000));
                guest.ip(&format!("neigh show {gateway} dev eth0")).contains("lladdr 02:00:00:00:00:01")
            });
            if mac == "02:00:00:00:00:02" {
                let at_node = node.udp(node_address, 9000);
                at_guest.send_to(b"ping", (node_address, 9000)).unwrap();
                let mut buffer = [0; 8];
                let (_, from) = at_node.recv_from(&mut buffer).unwrap();
                assert_eq!(from, (address, 9000).into());
                at_node.send_to(b"pong!", from).unwrap();
                assert_eq!(at_guest.recv_from(&mut buffer).unwrap(), (5, (node_address, 9000).into()));
            }
        }
    }
    assert_eq!(
        node.ip("neigh show nud permanent"),
        before,
        "the node sends to the pod as before, whoever asked"
    );
}

#[test]
fn a_node_with_ipv6_turned_off_for_new_links_has_it_on_its_end() {
    let (node, pod) = (node(), Namespace::new());
    node.set("net/ipv6/conf/default/disable_ipv6", "1");
    node.run(|| veth::attach(&pair(&addresses()), pod.namespace())).unwrap();
    let (at_pod, at_node) = (pod.udp(addresses()[1], 9000), node.udp(ip("2001:db8::1"), 9000));
    at_node.send_to(b"ping", at_pod.local_addr().unwrap()).unwrap();
    assert_eq!(at_pod.recv_from(&mut [0; 8]).unwrap(), (4, at_node.local_addr().unwrap()));
}
