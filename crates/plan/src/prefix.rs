//! Arithmetic on prefixes and single addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// Whether `outer` holds all of `inner`.
pub fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// Whether two prefixes have an address in common.
pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    contains(one, other) || contains(other, one)
}

/// The prefix that holds one address only.
pub fn host(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// The prefix that holds every address of a family.
pub const fn any(ipv4: bool) -> IpNetwork {
    if ipv4 { ANY_IPV4 } else { ANY_IPV6 }
}

const ANY_IPV4: IpNetwork = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(any) => IpNetwork::V4(any),
    None => panic!("prefix length beyond 32"),
};
const ANY_IPV6: IpNetwork = match Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0) {
    Some(any) => IpNetwork::V6(any),
    None => panic!("prefix length beyond 128"),
};

/// Whether a prefix holds one address only.
pub fn is_host(prefix: IpNetwork) -> bool {
    prefix == host(prefix.ip())
}

/// Parses a prefix whose host bits are zero, with its length written out.
pub fn parse_canonical(text: &str) -> Option<IpNetwork> {
    let parsed: IpNetwork = text.parse().ok()?;
    (text.contains('/') && parsed.network() == parsed.ip()).then_some(parsed)
}

/// The first usable address of a podCIDR, which the node itself takes: its mesh address. In a range of one
/// address that is the address itself.
pub fn first_usable(prefix: IpNetwork) -> IpAddr {
    match prefix {
        IpNetwork::V4(net) if net.prefix() < 32 => (u32::from(net.network()) + 1).to_be_bytes().into(),
        IpNetwork::V6(net) if net.prefix() < 128 => (u128::from(net.network()) + 1).to_be_bytes().into(),
        single => single.network(),
    }
}

/// The last address of a prefix.
pub fn last(prefix: IpNetwork) -> IpAddr {
    match prefix {
        IpNetwork::V4(net) => net.broadcast().into(),
        IpNetwork::V6(net) => net.broadcast().into(),
    }
}

/// Whether an address can't belong to one node: unspecified, loopback, link-local, multicast, broadcast,
/// or IPv4 written as IPv6 (RFC 4291 section 2.5.5), which would be a second name for an IPv4 address.
pub fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_overlap_when_one_holds_the_other() {
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        assert!(overlap(net("10.0.0.0/8"), net("10.1.0.0/16")));
        assert!(overlap(net("10.1.0.0/16"), net("10.0.0.0/8")));
        assert!(!overlap(net("10.1.0.0/16"), net("10.2.0.0/16")));
        assert!(!overlap(net("0.0.0.0/0"), net("::/0")));
    }

    #[test]
    fn the_mesh_address_is_the_first_usable_one() {
        let first = |text: &str| first_usable(text.parse().unwrap()).to_string();
        assert_eq!(first("10.244.3.0/24"), "10.244.3.1");
        assert_eq!(first("fd00:10:244:3::/64"), "fd00:10:244:3::1");
        assert_eq!(first("10.244.3.7/32"), "10.244.3.7");
    }

    #[test]
    fn special_addresses_are_recognized() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:192.0.2.1",
        ] {
            assert!(is_special(text.parse().unwrap()), "{text}");
        }
        for text in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(!is_special(text.parse().unwrap()), "{text}");
        }
    }
}
