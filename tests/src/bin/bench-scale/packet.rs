//! IPv4 packets with UDP, as the control channel sends them inside the tunnel (RFC 791, RFC 768).

use std::net::Ipv4Addr;

use lab::frame::checksum;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// What both headers take of a packet, in bytes.
pub(crate) const HEADERS: usize = IP_HEADER + UDP_HEADER;
const UDP: u8 = 17;
/// The channel takes only what no router has passed on (RFC 5082).
const TTL: u8 = 255;

/// A packet from one mesh address to another, to and from the port of the control channel. Without UDP's checksum, which is
/// optional in IPv4; the tunnel authenticates the packet.
pub(crate) fn build(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let len = |headers: usize| u16::try_from(payload.len() + headers).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0; HEADERS];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len(HEADERS));
    packet[8] = TTL;
    packet[9] = UDP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let sum = checksum(&packet[..IP_HEADER]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[24..26].copy_from_slice(&len(UDP_HEADER));
    packet.extend_from_slice(payload);
    packet
}

/// The payload of a packet to a port at a mesh address; none if it is anything else, such as a keepalive or a fragment.
pub(crate) fn payload(packet: &[u8], to: Ipv4Addr, port: u16) -> Option<&[u8]> {
    let header = packet.first_chunk::<HEADERS>()?;
    // Of the bits beside the offset only "don't fragment" may be set.
    let whole = header[0] == 0x45 && header[6] & 0xbf == 0 && header[7] == 0 && header[9] == UDP;
    let addressed = header[16..20] == to.octets() && header[22..24] == port.to_be_bytes();
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    packet.get(HEADERS..len).filter(|_| whole && addressed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_and_nothing_else() {
        let [here, there] = ["10.244.1.1", "100.64.0.1"].map(|text| text.parse().unwrap());
        let packet = build(here, there, 51842, b"probe");
        assert_eq!(payload(&packet, there, 51842), Some(&b"probe"[..]));
        assert_eq!(payload(&packet, here, 51842), None);
        assert_eq!(payload(&packet, there, 51841), None);
        let mut fragment = packet.clone();
        fragment[6] = 0x20;
        assert_eq!(payload(&fragment, there, 51842), None);
        assert_eq!(payload(&packet[..HEADERS - 1], there, 51842), None);
        // A header with its checksum sums up to zero.
        assert_eq!(checksum(&packet[..IP_HEADER]), 0);
    }
}
