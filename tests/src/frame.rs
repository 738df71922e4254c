//! Hand-built Ethernet frames, for packets that no regular host would send. Pure.

use std::net::IpAddr;

/// Bytes that all traffic of the lab carries in its payload, so that it is recognized when captured unencrypted.
pub const MARKER: &[u8; 8] = b"MESHDLAB";

/// Where a frame comes from and goes to, in link-layer addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Source.
    pub from: [u8; 6],
    /// Destination.
    pub to: [u8; 6],
}

/// A frame with a UDP datagram, with correct checksums. Both addresses have to be of the same IP version; the payload is cut
/// to 1400 bytes.
///
/// # Panics
///
/// If the addresses are of different versions.
pub fn udp(link: Link, from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let payload = payload.get(..1400).unwrap_or(payload);
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(from.1.to_be_bytes());
    datagram.extend(to.1.to_be_bytes());
    datagram.extend(length(8 + payload.len()).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let mut sum = pseudo_header(from.0, to.0, 17, datagram.len());
    sum = add(sum, &datagram);
    // A sum of zero would mean that there is none (RFC 768).
    let checksum = match fold(sum) {
        0 => 0xffff,
        other => other,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    ip(link, from.0, to.0, 17, &datagram)
}

/// A frame with an IP packet of any protocol, with a correct header checksum.
///
/// # Panics
///
/// If the addresses are of different versions.
pub fn ip(link: Link, from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + 40 + payload.len());
    frame.extend(link.to);
    frame.extend(link.from);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend(length(20 + payload.len()).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let checksum = checksum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length(payload.len()).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => panic!("{from} and {to} are of different IP versions"),
    }
    frame.extend(payload);
    frame
}

fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u32 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let sum = add(add(0, &octets(from)), &octets(to));
    sum + u32::from(protocol) + u32::try_from(length).unwrap_or(u32::MAX)
}

/// Adds 16-bit words to a sum, as RFC 1071 does.
fn add(sum: u32, bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    })
}

/// The Internet checksum (RFC 1071) of a header whose own field is zero; zero if the field is right already.
pub fn checksum(header: &[u8]) -> u16 {
    fold(add(0, header))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { from: [2, 0, 0, 0, 0, 1], to: [2, 0, 0, 0, 0, 2] };

    #[test]
    fn ipv4_header_has_the_checksum_of_the_rfc_1071_example_kind() {
        let frame = udp(LINK, ([10, 0, 0, 1].into(), 1), ([10, 0, 0, 2].into(), 2), b"ab");
        // A header with its checksum in place sums up to all ones.
        assert_eq!(fold(add(0, &frame[14..34])), 0);
        let pseudo = pseudo_header([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, 10);
        assert_eq!(fold(add(pseudo, &frame[34..])), 0);
        assert_eq!(frame.len(), 14 + 20 + 8 + 2);
    }

    #[test]
    fn ipv6_datagram_carries_its_length_and_checksum() {
        let (from, to) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let frame = udp(LINK, (from, 1), (to, 2), b"abc");
        assert_eq!(&frame[12..14], &[0x86, 0xdd]);
        assert_eq!(frame[18..20], 11u16.to_be_bytes());
        assert_eq!(fold(add(pseudo_header(from, to, 17, 11), &frame[54..])), 0);
    }
}
