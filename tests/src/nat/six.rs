//! IPv6 between sites: addresses are not translated, and a router lets in what was asked for and what is open (RFC 6092).
//! Neighbours on a link use its ends' link-local addresses as gateways, so that no link needs a range of its own.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv6Network};

use super::Nat;
use crate::error::Error;
use crate::host::Host;

/// The upper end of every link.
const ABOVE: &str = "fe80::1";
/// The lower end, if it is a router's.
const BELOW: &str = "fe80::2";

/// Lets a host take part in IPv6, or keeps it out of it. No duplicate address detection: nobody else can have the addresses.
pub(super) fn enable(host: &Host, enabled: bool) -> Result<(), Error> {
    for which in ["all", "default"] {
        host.sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), if enabled { "0" } else { "1" })?;
        host.sysctl(&format!("net/ipv6/conf/{which}/accept_ra"), "0")?;
        host.sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0")?;
    }
    Ok(())
}

/// Routes a site's range to its router, which routes the rest of the world to where it is connected.
pub(super) fn connect_router(
    above: &Host,
    port: &str,
    router: &Host,
    range: Ipv6Network,
) -> Result<(), Error> {
    above.ip(&format!(
        "addr replace {ABOVE}/64 dev {port} nodad\nroute replace {range} via {BELOW} dev {port}\n"
    ))?;
    router.ip(&format!(
        "addr replace {BELOW}/64 dev wan nodad\nroute replace default via {ABOVE} dev wan\n\
         addr add {}/{} dev lan nodad\n",
        nth(range, 1),
        range.prefix()
    ))
}

/// Gives a node its address in a site's range, and the route out; returns the address.
pub(super) fn connect_node(host: &Host, range: Ipv6Network) -> Result<IpNetwork, Error> {
    let own = nth(range, 10 + u128::from(host.number()));
    host.ip(&format!(
        "addr add {own}/{0} dev eth0 nodad\nroute add default via {1} dev eth0\n",
        range.prefix(),
        nth(range, 1)
    ))?;
    // The prefix length is that of a valid range.
    Ok(IpNetwork::new(own.into(), range.prefix()).unwrap_or(IpNetwork::V6(range)))
}

/// Gives a host without a router a public address.
pub(super) fn connect_public(above: &Host, port: &str, host: &Host) -> Result<IpNetwork, Error> {
    let own = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, u16::from(host.number()));
    above.ip(&format!("addr replace {ABOVE}/64 dev {port} nodad\nroute add {own}/128 dev {port}\n"))?;
    host.ip(&format!("addr add {own}/128 dev eth0 nodad\nroute add default via {ABOVE} dev eth0\n"))?;
    Ok(IpNetwork::from(IpAddr::from(own)))
}

/// The ruleset of a router. Ports are open as with 1:1 NAT; behind every other kind nothing is.
pub(super) fn rules(nat: &Nat) -> String {
    let mut open = String::new();
    match nat {
        Nat::OneToOne(ports) if ports.is_empty() => open.push_str("accept\n"),
        Nat::OneToOne(ports) => {
            for ports in ports {
                let _infallible = writeln!(open, "udp dport {}-{} accept", ports.start(), ports.end());
            }
        }
        _ => {}
    }
    format!(
        "table ip6 router\ndelete table ip6 router\ntable ip6 router {{\n\
         chain forward {{ type filter hook forward priority filter; policy drop;\n\
         iifname != \"wan\" accept\nct state established,related accept\nicmpv6 type echo-request accept\n{open}}}\n}}\n"
    )
}

fn nth(range: Ipv6Network, number: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(range.network().to_bits() + number)
}
