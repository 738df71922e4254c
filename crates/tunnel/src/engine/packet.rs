//! The few fields of inner IP headers that a tunnel reads (RFC 791 section 3.1, RFC 8200 section 3).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// An IP header that fits the packet it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Length of the whole packet as its header states it; never more than there is.
    pub(crate) len: usize,
}

impl Header {
    /// Reads the header at the start of `packet`. `None` if it is neither IPv4 nor IPv6, is cut short, or
    /// claims a length that is shorter than the header or longer than the packet.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = packet.first_chunk()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < IPV4_HEADER || len < header_len || len > packet.len() {
            return None;
        }
        let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
        let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
        Some(Self { source: source.into(), destination: destination.into(), len })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
        let len = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if len > packet.len() {
            return None;
        }
        let source: [u8; 16] = *header[8..].first_chunk()?;
        let destination: [u8; 16] = *header[24..].first_chunk()?;
        Some(Self {
            source: Ipv6Addr::from(source).into(),
            destination: Ipv6Addr::from(destination).into(),
            len,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total: u16, ihl: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x40 | ihl;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet
    }

    #[test]
    fn reads_addresses_and_length() {
        let header = Header::parse(&v4(28, 5, 32)).unwrap();
        assert_eq!(header.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(header.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(header.len, 28, "padding behind the packet does not count");

        let mut packet = [0; 44];
        packet[0] = 0x60;
        packet[5] = 4;
        packet[8..24].copy_from_slice(&Ipv6Addr::LOCALHOST.octets());
        let header = Header::parse(&packet).unwrap();
        assert_eq!((header.source, header.len), (IpAddr::V6(Ipv6Addr::LOCALHOST), 44));
    }

    #[test]
    fn refuses_lengths_that_do_not_fit() {
        assert_eq!(Header::parse(&v4(33, 5, 32)), None, "longer than the packet");
        assert_eq!(Header::parse(&v4(19, 5, 32)), None, "shorter than the header");
        assert_eq!(Header::parse(&v4(0, 5, 32)), None);
        assert_eq!(Header::parse(&v4(20, 4, 32)), None, "header length below 20");
        assert_eq!(Header::parse(&v4(20, 6, 32)), None, "options beyond the total length");
        assert_eq!(Header::parse(&v4(20, 5, 20)[..19]), None);
        assert_eq!(Header::parse(&[0x60; 39]), None);
        assert_eq!(Header::parse(&[0x50; 60]), None, "IP version 5");
        assert_eq!(Header::parse(&[]), None);
    }
}
