//! A node under guard with two pods, a stranger on its underlay, and another node behind its mesh link.
//!
//! ```text
//! pod1 10.244.1.5 ──┐
//!                   ├─ node 192.0.2.1 ──eth0── stranger 192.0.2.2 (plays 10.244.2.0/24, too)
//! pod2 10.244.1.6 ──┘            └────mesh-a── peer 10.244.2.0/24
//! ```
//!
//! The same with IPv6. What the stranger's network card gets is counted there, by addresses on the wire.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use linux::guard::{self, Drops};
use linux::veth::{self, Pair};
use plan::network::Guard;

use crate::namespace::{Namespace, ip, link, until};

/// Port that all listeners of these tests have.
pub(crate) const PORT: u16 = 9000;
/// Packets in each burst.
pub(crate) const BURST: u64 = 20;

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) pods: [IpAddr; 2],
    pub(crate) node: IpAddr,
    pub(crate) stranger: IpAddr,
    pub(crate) mesh: IpAddr,
    pub(crate) other_node: IpAddr,
    /// A pod of another node, behind the mesh.
    pub(crate) remote: IpAddr,
    /// An address that no host in the cluster has.
    pub(crate) service: IpAddr,
}

/// Both families.
pub(crate) fn plans() -> [Plan; 2] {
    [
        Plan {
            pods: [ip("10.244.1.5"), ip("10.244.1.6")],
            node: ip("192.0.2.1"),
            stranger: ip("192.0.2.2"),
            mesh: ip("10.244.1.1"),
            other_node: ip("192.0.2.3"),
            remote: ip("10.244.2.5"),
            service: ip("10.96.0.10"),
        },
        Plan {
            pods: [ip("fd00:10:244:1::5"), ip("fd00:10:244:1::6")],
            node: ip("2001:db8::1"),
            stranger: ip("2001:db8::2"),
            mesh: ip("fd00:10:244:1::1"),
            other_node: ip("2001:db8::3"),
            remote: ip("fd00:10:244:2::5"),
            service: ip("fd00:10:96::a"),
        },
    ]
}

pub(crate) struct Scene {
    pub(crate) node: Namespace,
    pub(crate) pods: [Namespace; 2],
    pub(crate) stranger: Namespace,
    pub(crate) peer: Namespace,
}

impl Scene {
    /// Everything but the guard.
    pub(crate) fn unguarded() -> Self {
        let all = Self {
            node: Namespace::new(),
            pods: [Namespace::new(), Namespace::new()],
            stranger: Namespace::new(),
            peer: Namespace::new(),
        };
        all.node.join("eth0", &all.stranger, "eth0");
        all.node.join("mesh-a", &all.peer, "mesh-a");
        let run = |namespace: &Namespace, arguments: &[&str]| {
            for arguments in arguments {
                namespace.ip(arguments);
            }
        };
        run(
            &all.node,
            &[
                "addr add 192.0.2.1/24 dev eth0",
                "-6 addr add 2001:db8::1/64 dev eth0 nodad",
                "addr add 10.244.1.1/32 dev mesh-a",
                "-6 addr add fd00:10:244:1::1/128 dev mesh-a nodad",
                "route add 10.244.2.0/24 dev mesh-a",
                "-6 route add fd00:10:244:2::/64 dev mesh-a",
                "route add default via 192.0.2.2",
                "-6 route add default via 2001:db8::2",
            ],
        );
        // The stranger has routes to the pods, and has addresses of theirs and of other nodes' pods to send from.
        run(
            &all.stranger,
            &[
                "addr add 192.0.2.2/24 dev eth0",
                "-6 addr add 2001:db8::2/64 dev eth0 nodad",
                "route add 10.244.0.0/16 via 192.0.2.1",
                "-6 route add fd00:10:244::/48 via 2001:db8::1",
                "addr add 10.244.2.5/32 dev lo",
                "-6 addr add fd00:10:244:2::5/128 dev lo nodad",
            ],
        );
        run(
            &all.peer,
            &[
                "addr add 10.244.2.5/32 dev lo",
                "-6 addr add fd00:10:244:2::5/128 dev lo nodad",
                "route add default dev mesh-a",
                "-6 route add default dev mesh-a",
            ],
        );
        all.set_up_hosts();
        for (number, pod) in all.pods.iter().enumerate() {
            all.attach(number, pod);
        }
        all
    }

    /// With the guard in place.
    pub(crate) fn guarded() -> Self {
        let all = Self::unguarded();
        all.guard();
        all
    }

    /// Puts the guard in place.
    pub(crate) fn guard(&self) {
        self.node.run(|| guard::set(&wanted())).unwrap();
        assert!(self.node.run(|| guard::is_in_place(&wanted())).unwrap());
    }

    pub(crate) fn drops(&self) -> Drops {
        self.node.run(guard::drops).unwrap()
    }

    fn set_up_hosts(&self) {
        for namespace in [&self.node, &self.stranger, &self.peer] {
            namespace.set("net/ipv4/ip_forward", "1");
            namespace.set("net/ipv6/conf/all/forwarding", "1");
            // What is tested is the guard, not this.
            namespace.set("net/ipv4/conf/all/rp_filter", "0");
            for name in ["eth0", "mesh-a"] {
                if namespace
                    .run(|| linux::sysctl::read(&format!("net/ipv4/conf/{name}/rp_filter")))
                    .unwrap()
                    .is_some()
                {
                    namespace.set(&format!("net/ipv4/conf/{name}/rp_filter"), "0");
                }
            }
        }
        let tables = "add table inet seen ; \
             add chain inet seen arriving { type filter hook prerouting priority -400 ; } ; \
             add counter inet seen pods ; \
             add rule inet seen arriving ip saddr 10.244.0.0/16 counter name pods ; \
             add rule inet seen arriving ip daddr 10.244.0.0/16 counter name pods ; \
             add rule inet seen arriving ip6 saddr fd00:10:244::/48 counter name pods ; \
             add rule inet seen arriving ip6 daddr fd00:10:244::/48 counter name pods ; \
             add counter inet seen quotes ; \
             add rule inet seen arriving icmp type destination-unreachable @th,192,16 0x0af4 counter name quotes ; \
             add rule inet seen arriving icmpv6 type destination-unreachable @th,256,48 0xfd0000100244 counter name quotes";
        self.stranger.nft(tables);
        // All know each other for good, so that no burst is held up and cut by neighbour discovery.
        for plan in plans() {
            know(&self.node, "eth0", &self.stranger, &[plan.stranger]);
            know(&self.stranger, "eth0", &self.node, &[plan.node]);
            know(&self.node, "mesh-a", &self.peer, &[plan.remote, plan.stranger]);
            know(&self.peer, "mesh-a", &self.node, &[plan.pods[0], plan.pods[1], plan.stranger]);
        }
    }

    fn attach(&self, number: usize, pod: &Namespace) {
        let last = u8::try_from(number).unwrap();
        let pair = Pair {
            host_link: &format!("mveth{number}"),
            host_mac: [2, 0, 0, 0, 1, last],
            pod_link: "eth0",
            pod_mac: [2, 0, 0, 0, 2, last],
            mtu: 1380,
            addresses: &plans().map(|plan| plan.pods[number]),
            source: None,
        };
        self.node.run(|| veth::attach(&pair, pod.namespace())).unwrap();
        self.node.set(&format!("net/ipv4/conf/mveth{number}/rp_filter"), "0");
    }

    /// Packets with a pod's address that the stranger's network card has got.
    pub(crate) fn leaked(&self) -> u64 {
        self.counted("pods")
    }

    /// Messages to the stranger that a packet did not get to a pod, which have a part of it in them.
    pub(crate) fn quoted(&self) -> u64 {
        self.counted("quotes")
    }

    fn counted(&self, name: &str) -> u64 {
        let shown = self.stranger.nft(&format!("list counter inet seen {name}"));
        let count = shown.split("packets ").nth(1).unwrap().split(' ').next().unwrap();
        count.parse().unwrap()
    }
}

/// Has a namespace know for good that addresses are those of another one, by the link of this name that both have.
pub(crate) fn know(namespace: &Namespace, name: &str, there: &Namespace, addresses: &[IpAddr]) {
    let shown = there.ip(&format!("-o link show dev {name}"));
    let mac = shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    for address in addresses {
        namespace.ip(&format!("neigh replace {address} dev {name} lladdr {mac} nud permanent"));
    }
}

/// The guard of the node.
pub(crate) fn wanted() -> Guard {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Guard {
        cluster: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
        mesh_links: [link("mesh-a"), link("mesh-b")].into(),
        local_pods: nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
        no_masquerade: nets(&["10.96.0.0/16", "fd00:10:96::/112", "192.0.2.3/32", "2001:db8::3/128"]),
        closed: BTreeSet::new(),
    }
}

/// Sends a burst; returns how many packets the sender's kernel refused.
pub(crate) fn burst(from: &UdpSocket, to: IpAddr) -> u64 {
    let sends = (0..BURST).map(|_| from.send_to(b"plain", (to, PORT)));
    u64::try_from(sends.filter(Result::is_err).count()).unwrap()
}

/// Takes what has come; none for a while ends it.
pub(crate) fn received(socket: &UdpSocket) -> Vec<SocketAddr> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    std::iter::from_fn(|| socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)).collect()
}

/// Waits for a complete burst; returns where it came from.
pub(crate) fn received_burst(socket: &UdpSocket) -> SocketAddr {
    let mut all = Vec::new();
    until("a complete burst arrives", || {
        all.extend(received(socket));
        u64::try_from(all.len()).unwrap() >= BURST
    });
    assert_eq!(all.len(), usize::try_from(BURST).unwrap());
    assert!(all.iter().all(|from| *from == all[0]), "{all:?}");
    all[0]
}
