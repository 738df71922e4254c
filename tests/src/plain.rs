//! Pod networking by hand, with plain routes and no encryption: what the lab tests itself with, and the positive
//! control that shows what a capture sees when nothing protects the pods.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use crate::address::IpVersion;
use crate::error::Error;
use crate::host::Host;
use crate::node::Node;
use crate::space::NetNs;

/// First address of a podCIDR that a plain pod gets.
const FIRST: u128 = 10;

/// Wires a pod's namespace to its node by a veth pair; returns the pod's addresses, IPv4 first.
pub(crate) fn attach(node: &Node, net: &NetNs, netns: &Path, number: u32) -> Result<Vec<IpAddr>, Error> {
    enable_forwarding(node)?;
    let link = format!("plain{number}");
    let addresses: Vec<_> = node
        .pod_ranges()
        .iter()
        .filter_map(|range| nth(range.network(), FIRST + u128::from(number)))
        .collect();
    let mut outer =
        format!("link add {link} type veth peer name eth0 netns {}\nlink set {link} up\n", netns.display());
    let mut inner = String::from("link set eth0 up\n");
    for &address in &addresses {
        let (gateway, bits, flag) = match IpVersion::of(address) {
            IpVersion::V4 => ("169.254.1.1", 32, ""),
            IpVersion::V6 => ("fe80::1", 128, "nodad"),
        };
        let _infallible = writeln!(outer, "addr add {gateway}/{bits} dev {link} {flag}");
        let _infallible = writeln!(outer, "route add {address}/{bits} dev {link}");
        let _infallible = writeln!(inner, "addr add {address}/{bits} dev eth0 {flag}");
        let _infallible = writeln!(inner, "route add {gateway}/{bits} dev eth0");
        let _infallible = writeln!(inner, "route add default via {gateway} dev eth0");
    }
    node.ip(&outer)?;
    node.command_in(net, "ip".as_ref()).args(["-batch", "-"]).input(inner).run()?;
    Ok(addresses)
}

/// Lets the node route between its links.
pub(crate) fn enable_forwarding(node: &Host) -> Result<(), Error> {
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.sysctl("net/ipv6/conf/all/forwarding", "1")
}

fn nth(network: IpAddr, number: u128) -> Option<IpAddr> {
    match network {
        IpAddr::V4(first) => {
            Some(IpAddr::from((u32::from(first) + u32::try_from(number).ok()?).to_be_bytes()))
        }
        IpAddr::V6(first) => Some(IpAddr::from((u128::from(first) + number).to_be_bytes())),
    }
}
