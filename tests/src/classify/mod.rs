//! What a frame on the underlay is: WireGuard, something with a pod's address, or neither. Pure.
//!
//! Addresses are searched for wherever a packet can carry them unencrypted: IP headers, ARP, neighbour discovery, IP
//! within IP, and the packet that an ICMP error quotes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::frame::MARKER;

/// What to search for.
#[derive(Clone, Debug)]
pub struct Rules {
    cluster: Vec<IpNetwork>,
    ports: Vec<u16>,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A WireGuard message to or from one of the ports.
    WireGuard(Message),
    /// A pod's address, unencrypted.
    PodAddress(AddressMatch),
    /// Anything else.
    Other,
}

/// Type of a WireGuard message, with its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Message {
    /// 1.
    Initiation,
    /// 2.
    Response,
    /// 3.
    Cookie,
    /// 4.
    Data,
}

/// Where a pod's address was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressMatch {
    /// The part of the frame: `ipv4`, `ipv6`, `arp`, `neighbour discovery`, `icmp error`, `ip in ip`.
    pub place: &'static str,
    /// Source there.
    pub source: IpAddr,
    /// Destination (or target) there.
    pub destination: IpAddr,
    /// IP protocol number there; none for ARP and neighbour discovery.
    pub protocol: Option<u8>,
}

impl Rules {
    /// Searches for addresses in these ranges, and for WireGuard on the mesh's default ports 51840 and 51841.
    pub fn new(cluster: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self { cluster: cluster.into_iter().collect(), ports: vec![51840, 51841] }
    }

    /// The same, with WireGuard on other ports.
    #[must_use]
    pub fn ports(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.ports = ports.into_iter().collect();
        self
    }

    fn match_addresses(
        &self,
        place: &'static str,
        source: IpAddr,
        destination: IpAddr,
        protocol: Option<u8>,
    ) -> Option<Class> {
        let pod = |address| self.cluster.iter().any(|range| range.contains(address));
        let seen = AddressMatch { place, source, destination, protocol };
        (pod(source) || pod(destination)).then_some(Class::PodAddress(seen))
    }
}

/// Classifies an Ethernet frame. A frame may be truncated, but not before byte 150.
pub fn classify(frame: &[u8], rules: &Rules) -> Class {
    let Some((mut kind, mut rest)) = frame.get(12..).and_then(ethertype) else { return Class::Other };
    // Tags of 802.1Q and 802.1ad.
    while matches!(kind, 0x8100 | 0x88a8) {
        match rest.get(2..).and_then(ethertype) {
            Some(inner) => (kind, rest) = inner,
            None => return Class::Other,
        }
    }
    match kind {
        0x0800 | 0x86dd => ip(rest, rules, "", 0),
        0x0806 => arp(rest, rules).unwrap_or(Class::Other),
        _ => Class::Other,
    }
}

/// Whether a frame contains the lab's own [`MARKER`] unencrypted.
pub fn marked(frame: &[u8]) -> bool {
    frame.windows(MARKER.len()).any(|window| window == MARKER)
}

fn ethertype(bytes: &[u8]) -> Option<(u16, &[u8])> {
    bytes.split_first_chunk().map(|(kind, rest)| (u16::from_be_bytes(*kind), rest))
}

/// An IP packet; `place` is empty for the outermost one. Nested deeper than any legitimate packet, it is not parsed.
fn ip(packet: &[u8], rules: &Rules, place: &'static str, depth: u8) -> Class {
    let Some(header) = Header::parse(packet) else { return Class::Other };
    let name = match (place, header.source) {
        ("", IpAddr::V4(_)) => "ipv4",
        ("", IpAddr::V6(_)) => "ipv6",
        (inner, _) => inner,
    };
    if let Some(seen) = rules.match_addresses(name, header.source, header.destination, Some(header.protocol))
    {
        return seen;
    }
    if !header.first_fragment || depth > 3 {
        return Class::Other;
    }
    match header.protocol {
        1 => icmp4(header.payload, rules, depth),
        4 | 41 => ip(header.payload, rules, "ip in ip", depth + 1),
        17 if depth == 0 => udp(header.payload, rules),
        58 => icmp6(&header, rules, depth),
        _ => Class::Other,
    }
}

fn udp(datagram: &[u8], rules: &Rules) -> Class {
    let Some((ports, rest)) = datagram.split_first_chunk::<8>() else { return Class::Other };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    if !rules.ports.contains(&port(0)) && !rules.ports.contains(&port(2)) {
        return Class::Other;
    }
    message(rest).map_or(Class::Other, Class::WireGuard)
}

/// The type of a WireGuard message, by its first four bytes and its least length (whitepaper, section 5.4).
fn message(payload: &[u8]) -> Option<Message> {
    let (kind, least) = match payload.get(..4)? {
        [1, 0, 0, 0] => (Message::Initiation, 148),
        [2, 0, 0, 0] => (Message::Response, 92),
        [3, 0, 0, 0] => (Message::Cookie, 64),
        [4, 0, 0, 0] => (Message::Data, 32),
        _ => return None,
    };
    // A capture may have cut an initiation, which is the longest, down to what the outer headers left of it.
    (payload.len() >= least.min(90)).then_some(kind)
}

fn icmp4(message: &[u8], rules: &Rules, depth: u8) -> Class {
    match message.first() {
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem quote a packet.
        Some(3 | 4 | 5 | 11 | 12) => ip(message.get(8..).unwrap_or_default(), rules, "icmp error", depth + 1),
        _ => Class::Other,
    }
}

fn icmp6(header: &Header<'_>, rules: &Rules, depth: u8) -> Class {
    match header.payload.first() {
        Some(1..=4) => ip(header.payload.get(8..).unwrap_or_default(), rules, "icmp error", depth + 1),
        // Neighbour solicitation and advertisement, redirect: the target follows eight bytes of header.
        Some(135..=137) => {
            let target = header.payload.get(8..).and_then(v6).unwrap_or(header.destination);
            rules.match_addresses("neighbour discovery", header.source, target, None).unwrap_or(Class::Other)
        }
        _ => Class::Other,
    }
}

fn arp(packet: &[u8], rules: &Rules) -> Option<Class> {
    // Ethernet and IPv4 with their address lengths, any operation.
    if packet.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    rules.match_addresses("arp", v4(packet.get(14..)?)?, v4(packet.get(24..)?)?, None)
}

/// What is needed of an IP header.
struct Header<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Whether the payload starts with the header of the upper protocol.
    first_fragment: bool,
    payload: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Option<Self> {
        let length = usize::from(packet.first()? & 0x0f) * 4;
        let offset = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff;
        Some(Self {
            source: v4(packet.get(12..)?)?,
            destination: v4(packet.get(16..)?)?,
            protocol: *packet.get(9)?,
            first_fragment: offset == 0,
            payload: packet.get(length.max(20)..).unwrap_or_default(),
        })
    }

    fn parse_v6(packet: &'a [u8]) -> Option<Self> {
        let mut header = Self {
            source: v6(packet.get(8..)?)?,
            destination: v6(packet.get(24..)?)?,
            protocol: *packet.get(6)?,
            first_fragment: true,
            payload: packet.get(40..).unwrap_or_default(),
        };
        // Hop-by-hop, routing, fragment and destination options (RFC 8200, section 4).
        while matches!(header.protocol, 0 | 43 | 44 | 60) {
            let Some(&[next, length, high, low]) = header.payload.first_chunk::<4>() else {
                break;
            };
            let bytes = if header.protocol == 44 { 8 } else { (usize::from(length) + 1) * 8 };
            if header.protocol == 44 {
                header.first_fragment = u16::from_be_bytes([high, low]) & 0xfff8 == 0;
            }
            header.protocol = next;
            header.payload = header.payload.get(bytes..).unwrap_or_default();
            if !header.first_fragment {
                break;
            }
        }
        Some(header)
    }
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    bytes.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into())
}

fn v6(bytes: &[u8]) -> Option<IpAddr> {
    bytes.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into())
}

impl fmt::Display for AddressMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.place, self.source, self.destination)?;
        self.protocol.map_or(Ok(()), |protocol| write!(f, " protocol {protocol}"))
    }
}

#[cfg(test)]
mod tests;
