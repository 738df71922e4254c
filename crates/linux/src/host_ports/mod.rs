//! Host ports: the nft table `inet meshd-ports`, which leads ports of the node to ports of its pods.
//!
//! ```text
//! prerouting, output   to an address of the node, but not to a port of its own listeners:
//!                      address, protocol, port ─map─▶ pod's address, pod's port
//! postrouting          from a pod to itself: masqueraded, or its answer would not come back here
//! ```
//!
//! The pod sees the client's address; connection tracking gives the answers the node's. The CNI plugin sets the table as
//! a whole, from what it has stored of all pods; without any host port there is no table.

pub mod conntrack;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;

use crate::error::{HostError, Subject};
use crate::nft::Table;

/// Name of the table; its family is `inet`.
pub const TABLE: &str = "meshd-ports";
static PORTS: Table = Table { name: TABLE, subject: Subject::HostPorts };

/// A transport protocol whose ports can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its name as the CNI conventions have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Its number in an IP header (IANA, "Protocol Numbers").
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no protocol with ports.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected tcp, udp or sctp")]
pub struct UnknownProtocol;

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    /// Reads a name in either case: runtimes differ.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(text)).ok_or(UnknownProtocol)
    }
}

/// One port of the node that leads to a port of a pod, in the family of the pod's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The one address of the node; none for all of the family.
    pub host_address: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's address.
    pub pod_address: IpAddr,
    /// The pod's port.
    pub pod_port: u16,
}

impl Mapping {
    /// Whether a packet could belong to either.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let overlap = match (self.host_address, other.host_address) {
            (Some(one), Some(other)) => one == other,
            _ => self.pod_address.is_ipv4() == other.pod_address.is_ipv4(),
        };
        overlap && (self.protocol, self.host_port) == (other.protocol, other.host_port)
    }
}

/// Ports of one protocol on which the node itself listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnPorts {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl OwnPorts {
    /// Whether this port is among them.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }
}

/// All host ports of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPorts {
    /// The mappings.
    pub mappings: BTreeSet<Mapping>,
    /// The ranges of services. Their addresses are never taken for the node's, which they are on the dummy link of
    /// kube-proxy in its mode `ipvs`.
    pub services: BTreeSet<IpNetwork>,
    /// Ports that stay the node's own, whatever is mapped.
    pub own: BTreeSet<OwnPorts>,
}

impl HostPorts {
    /// Mappings that take no effect, because the node listens on the port itself.
    pub fn overruled(&self) -> BTreeSet<Mapping> {
        let is_own =
            |mapping: &&Mapping| self.own.iter().any(|own| own.contains(mapping.protocol, mapping.host_port));
        self.mappings.iter().filter(is_own).copied().collect()
    }
}

/// Puts the table in place and replaces what was there; removes it if no port is mapped.
pub fn set(ports: &HostPorts) -> Result<(), HostError> {
    if ports.mappings.is_empty() {
        return PORTS.remove().map(drop);
    }
    PORTS.set(&rules::sets(ports), &rules::chains(ports))
}

/// Removes the table; returns whether there was one.
pub fn remove() -> Result<bool, HostError> {
    PORTS.remove()
}

/// Whether exactly these ports are mapped.
pub fn is_in_place(ports: &HostPorts) -> Result<bool, HostError> {
    if ports.mappings.is_empty() {
        return Ok(PORTS.flags()?.is_none());
    }
    PORTS.is_in_place(&rules::sets(ports), &rules::chains(ports))
}
