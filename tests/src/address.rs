//! The addresses of a lab, computed from the number of a host: pure, so that tests can say them without asking.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// Which IP versions a lab has, on the underlay and in its pods alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 only.
    V4,
    /// IPv6 only: no host has an IPv4 address except on loopback.
    V6,
    /// Both; IPv4 comes first in every list.
    Dual,
}

/// One IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The versions of the family, IPv4 first.
    pub fn versions(self) -> &'static [IpVersion] {
        match self {
            Self::V4 => &[IpVersion::V4],
            Self::V6 => &[IpVersion::V6],
            Self::Dual => &[IpVersion::V4, IpVersion::V6],
        }
    }
}

impl IpVersion {
    /// The version of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `ipv4` or `ipv6`, as reports print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Number of the host outside the cluster; it is the default gateway of all others.
pub const OUTSIDE: u8 = 254;
/// Number of the host that the API server runs on.
pub const API: u8 = 250;
/// Largest number of a node.
pub const LAST_NODE: u8 = 200;

/// The range that all pods of a lab are in: `10.244.0.0/16`, `fd00:10:244::/48`.
pub fn cluster_range(version: IpVersion) -> IpNetwork {
    match version {
        IpVersion::V4 => v4([10, 244, 0, 0], 16),
        IpVersion::V6 => v6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 48),
    }
}

/// The range of services, which no pod or node is in: `10.96.0.0/16`, `fd00:10:96::/112`.
pub fn service_range(version: IpVersion) -> IpNetwork {
    match version {
        IpVersion::V4 => v4([10, 96, 0, 0], 16),
        IpVersion::V6 => v6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112),
    }
}

/// The podCIDR of a node: `10.244.N.0/24`, `fd00:10:244:N::/64`.
pub fn pod_range(number: u8, version: IpVersion) -> IpNetwork {
    match version {
        IpVersion::V4 => v4([10, 244, number, 0], 24),
        IpVersion::V6 => v6([0xfd00, 0x10, 0x244, u16::from(number), 0, 0, 0, 0], 64),
    }
}

/// The address of a host on the underlay with the underlay's prefix length: `198.18.0.N/24` (RFC 2544's range
/// for tests of network devices), `2001:db8:18::N/64` (RFC 3849's range for documentation).
pub fn underlay(number: u8, version: IpVersion) -> IpNetwork {
    match version {
        IpVersion::V4 => v4([198, 18, 0, number], 24),
        IpVersion::V6 => v6([0x2001, 0xdb8, 0x18, 0, 0, 0, 0, u16::from(number)], 64),
    }
}

/// What the addresses of a node end in that was renumbered: no node's number, in labs with less than 100 nodes.
pub(crate) fn elsewhere(number: u8) -> u8 {
    LAST_NODE.saturating_sub(number)
}

/// An address beyond the underlay's own subnet, held by the outside host: what the internet is to a pod.
/// `203.0.113.1` (RFC 5737), `2001:db8:ffff::1`.
pub fn internet(version: IpVersion) -> IpAddr {
    match version {
        IpVersion::V4 => Ipv4Addr::new(203, 0, 113, 1).into(),
        IpVersion::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
    }
}

/// The link-layer address of a host on the underlay: locally administered, the number last.
pub fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

/// The usual text of a link-layer address.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn v4(octets: [u8; 4], prefix: u8) -> IpNetwork {
    // The prefix lengths in this file are all valid, and `new_checked` needs no panic to say so.
    Ipv4Network::new_checked(octets.into(), prefix).map_or_else(|| IpAddr::from(octets).into(), IpNetwork::V4)
}

fn v6(segments: [u16; 8], prefix: u8) -> IpNetwork {
    Ipv6Network::new_checked(segments.into(), prefix)
        .map_or_else(|| IpAddr::from(segments).into(), IpNetwork::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_nodes_are_within_the_cluster_range_and_disjoint() {
        for &version in Family::Dual.versions() {
            let cluster = cluster_range(version);
            for number in 1..=LAST_NODE {
                let range = pod_range(number, version);
                assert!(cluster.contains(range.network()) && cluster.contains(range.broadcast()), "{range}");
                assert!(!pod_range(number - 1, version).contains(range.network()), "{range}");
                assert!(!cluster.contains(underlay(number, version).ip()));
                assert!(!service_range(version).contains(range.network()));
            }
        }
    }

    #[test]
    fn prefix_lengths_are_as_documented() {
        assert_eq!(underlay(3, IpVersion::V4).to_string(), "198.18.0.3/24");
        assert_eq!(underlay(3, IpVersion::V6).to_string(), "2001:db8:18::3/64");
        assert_eq!(pod_range(3, IpVersion::V4).to_string(), "10.244.3.0/24");
        assert_eq!(pod_range(3, IpVersion::V6).to_string(), "fd00:10:244:3::/64");
        assert_eq!(service_range(IpVersion::V6).to_string(), "fd00:10:96::/112");
    }
}
