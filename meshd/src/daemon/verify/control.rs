//! The positive control of the guard: a packet that is sent unencrypted on purpose, and that has to be counted and dropped.
//!
//! It is one that no pod has sent: its source is an address of the pod ranges that is not this node's, so that it is not
//! masqueraded, its destination one for documentation, it has no content, and its TTL is one. Where the guard is broken it gets as
//! far as the next router. `IP_TRANSPARENT`, which takes a source that is not the node's own, needs `CAP_NET_ADMIN` alone (ip(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;
use linux::guard::{self, Drops};
use socket2::{Domain, Protocol, Socket, Type};
use status::verify::evidence::Control;

/// Addresses of no host (RFC 5737 section 3), and of no neighbour: the link-local range always has a route by the link.
const NOWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOWHERE_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xd15c);
/// The service "discard" (RFC 863).
const DISCARD: u16 = 9;
/// How many packets are sent for each range.
const SENT: u64 = 3;

/// Sends packets from a pod range out of a link, and counts what becomes of them.
pub(in crate::daemon) fn control(range: IpNetwork, own: &[IpNetwork], link: &str) -> Control {
    let found =
        |sent, (seen, dropped), error| Control { range, link: link.to_owned(), sent, seen, dropped, error };
    let failed = |error: String| found(0, (0, 0), Some(error));
    let Some(source) = source(range, own) else {
        return failed("all of the range is this node's own, whose packets would be masqueraded".to_owned());
    };
    let before = match guard::drops() {
        Ok(drops) => drops,
        Err(error) => return failed(error.to_string()),
    };
    for _ in 0..SENT {
        if let Err(error) = send(source, link) {
            return failed(error.to_string());
        }
    }
    match guard::drops() {
        Ok(after) => found(SENT, grown(before, after), None),
        Err(error) => failed(error.to_string()),
    }
}

fn grown(before: Drops, after: Drops) -> (u64, u64) {
    (after.seen.saturating_sub(before.seen), after.outgoing.saturating_sub(before.outgoing))
}

/// An address of the range that is not in one of this node's own: near its end, or else near its beginning.
fn source(range: IpNetwork, own: &[IpNetwork]) -> Option<IpAddr> {
    let near = |from: IpAddr, offset: i8| match from {
        IpAddr::V4(from) => {
            IpAddr::V4(Ipv4Addr::from_bits(from.to_bits().wrapping_add_signed(i32::from(offset))))
        }
        IpAddr::V6(from) => {
            IpAddr::V6(Ipv6Addr::from_bits(from.to_bits().wrapping_add_signed(i128::from(offset))))
        }
    };
    let last = match range {
        IpNetwork::V4(range) => IpAddr::V4(range.broadcast()),
        IpNetwork::V6(range) => IpAddr::V6(range.broadcast()),
    };
    let candidates = [near(last, -1), near(range.network(), 2)];
    candidates
        .into_iter()
        .find(|address| range.contains(*address) && !own.iter().any(|own| own.contains(*address)))
}

/// Sends one datagram. That the guard refuses it is what is wanted.
fn send(source: IpAddr, link: &str) -> io::Result<()> {
    let (domain, to) = match source {
        IpAddr::V4(_) => (Domain::IPV4, IpAddr::V4(NOWHERE_V4)),
        IpAddr::V6(_) => (Domain::IPV6, IpAddr::V6(NOWHERE_V6)),
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if source.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
        socket.set_ttl_v4(1)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
        socket.set_unicast_hops_v6(1)?;
    }
    socket.bind_device(Some(link.as_bytes()))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    match socket.send_to(&[], &SocketAddr::new(to, DISCARD).into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => Ok(()),
        sent => sent.map(drop),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_in_the_range_and_not_in_one_of_the_node_s_own() {
        for (range, own, expected) in [
            ("10.244.0.0/16", "10.244.1.0/24", Some("10.244.255.254")),
            ("10.244.0.0/16", "10.244.255.0/24", Some("10.244.0.2")),
            ("10.244.0.0/16", "10.244.0.0/16", None),
            ("fd00:10:244::/48", "fd00:10:244:1::/64", Some("fd00:10:244:ffff:ffff:ffff:ffff:fffe")),
            ("10.244.1.1/32", "10.9.0.0/24", None),
        ] {
            let found = source(range.parse().unwrap(), &[own.parse().unwrap()]);
            assert_eq!(found, expected.map(|text| text.parse().unwrap()), "{range} without {own}");
        }
    }
}
