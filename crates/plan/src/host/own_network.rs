//! Whether the cluster's pod ranges cover the network that the node itself is on. The guard would cut the node off: it drops
//! everything with a pod address outside the tunnel, and stays when the daemon ends.

use ipnetwork::IpNetwork;

use crate::network::LinkName;
use crate::prefix;

/// Beginnings of the names of links on which other network plugins keep pod addresses. Such an address is in the pod range
/// because it belongs to pods, and what an earlier plugin left must not keep a node out of the mesh.
const OTHER_PLUGINS: [&str; 14] = [
    "cni",
    "cbr",
    "flannel",
    "cali",
    "tunl0",
    "vxlan.calico",
    "cilium",
    "lxc",
    "weave",
    "kube-bridge",
    "antrea-gw",
    "ovn",
    "kube-dummy-if",
    "kilo",
];

/// An address that makes the node part of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    /// The link that it is on, or that leads to it.
    pub link: String,
    /// The node's own address with the length of its prefix, or the address of a gateway.
    pub network: IpNetwork,
    /// Whether it is the gateway of a default route.
    pub gateway: bool,
}

/// A pod range that covers the node's own network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "option cluster-cidr: {cluster} covers {} {} on link {}, so the node would be cut off from its own network: \
     expected a range that only pods use", if address.gateway { "the gateway" } else { "this node's own address" },
    address.network, address.link
)]
pub struct Covered {
    /// The pod range.
    pub cluster: IpNetwork,
    /// What it covers.
    pub address: OwnAddress,
}

/// The first address of the node's own that a pod range covers. `mesh_links` and links whose names begin with
/// `pod_link_prefix` carry pod addresses.
pub fn covered(
    cluster: &[IpNetwork],
    addresses: &[OwnAddress],
    mesh_links: &[&LinkName],
    pod_link_prefix: &str,
) -> Option<Covered> {
    let is_for_pods = |link: &str| {
        mesh_links.iter().any(|mesh| mesh.as_str() == link)
            || link.starts_with(pod_link_prefix)
            || OTHER_PLUGINS.iter().any(|begins| link.starts_with(begins))
    };
    addresses.iter().filter(|address| !is_for_pods(&address.link)).find_map(|address| {
        let own = prefix::host(address.network.ip());
        let cluster = cluster.iter().find(|range| prefix::contains(**range, own))?;
        Some(Covered { cluster: *cluster, address: address.clone() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(link: &str, network: &str, gateway: bool) -> OwnAddress {
        OwnAddress { link: link.to_owned(), network: network.parse().unwrap(), gateway }
    }

    fn found(addresses: &[OwnAddress]) -> Option<String> {
        let cluster = ["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()];
        let (a, b): (LinkName, LinkName) = ("mesh-a".parse().unwrap(), "mesh-b".parse().unwrap());
        covered(&cluster, addresses, &[&a, &b], "mveth").map(|covered| covered.to_string())
    }

    #[test]
    fn a_pod_range_over_the_nodes_own_network_is_found_with_both_ranges() {
        for (address, parts) in [
            (own("eth0", "10.1.2.3/24", false), ["10.0.0.0/8", "own address 10.1.2.3/24 on link eth0"]),
            (own("eth0", "fd00::5/64", false), ["fd00::/16", "own address fd00::5/64 on link eth0"]),
            (own("ppp0", "10.64.0.1/32", true), ["10.0.0.0/8", "the gateway 10.64.0.1/32 on link ppp0"]),
        ] {
            let text = found(&[own("lo", "127.0.0.1/8", false), address]).unwrap();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn addresses_of_pods_and_other_networks_are_not_found() {
        for link in ["mesh-a", "mesh-b", "mveth0123", "cni0", "flannel.1", "cilium_host"] {
            assert_eq!(found(&[own(link, "10.244.1.1/32", false)]), None, "{link}");
        }
        // The network is wider than the pod range, and the node outside of it.
        assert_eq!(found(&[own("eth0", "11.0.0.1/4", false), own("eth0", "fe80::1/64", true)]), None);
    }
}
