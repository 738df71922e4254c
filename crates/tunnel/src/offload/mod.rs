//! Large packets to and from the kernel: one TCP or UDP packet of up to 64 KiB crosses the TUN instead of many
//! small ones, and is split or put together here. Pure.
//!
//! The kernel describes such a packet in a header in front of it, that of virtio network devices (OASIS virtio
//! 1.2, section 5.1.6; the kernel's `include/uapi/linux/virtio_net.h`).

mod checksum;
mod coalesce;
mod split;
#[cfg(test)]
mod tests;

pub(crate) use self::coalesce::{Coalescer, MOST_SEGMENTS};
pub(crate) use self::split::split;

/// Length of a [`VnetHeader`] on a TUN device.
pub(crate) const VNET_HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum field holds only the sum over the pseudo header.
const NEEDS_CHECKSUM: u8 = 1;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Offsets of the checksum in the transport headers.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// What a packet from or for the TUN represents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segmentation {
    /// Itself.
    None,
    Tcp4,
    Tcp6,
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`: several datagrams, not fragments of one.
    Udp,
}

/// `struct virtio_net_hdr`, in the byte order of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    needs_checksum: bool,
    segmentation: Segmentation,
    /// Length of all headers.
    header_len: u16,
    /// Payload bytes per segment.
    segment: u16,
    /// Offset of the transport header.
    checksum_start: u16,
    /// Where the checksum is in the transport header.
    checksum_offset: u16,
}

impl VnetHeader {
    /// For a packet that is what it is; the kernel verifies its checksum.
    pub(crate) const PLAIN: Self = Self {
        needs_checksum: false,
        segmentation: Segmentation::None,
        header_len: 0,
        segment: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// `None` for a kind of segmentation that we never ask the kernel for.
    pub(crate) fn parse(bytes: [u8; VNET_HEADER]) -> Option<Self> {
        let [flags, kind, rest @ ..] = bytes;
        let field = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let segmentation = match kind {
            0 => Segmentation::None,
            1 => Segmentation::Tcp4,
            4 => Segmentation::Tcp6,
            5 => Segmentation::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            segmentation,
            header_len: field(0),
            segment: field(2),
            checksum_start: field(4),
            checksum_offset: field(6),
        })
    }

    pub(crate) fn to_bytes(self) -> [u8; VNET_HEADER] {
        let kind = match self.segmentation {
            Segmentation::None => 0,
            Segmentation::Tcp4 => 1,
            Segmentation::Tcp6 => 4,
            Segmentation::Udp => 5,
        };
        let mut bytes = [0; VNET_HEADER];
        bytes[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = kind;
        let fields = [self.header_len, self.segment, self.checksum_start, self.checksum_offset];
        for (place, field) in bytes[2..].as_chunks_mut::<2>().0.iter_mut().zip(fields) {
            *place = field.to_ne_bytes();
        }
        bytes
    }
}

/// Where things are in an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    v6: bool,
    /// Offset of the transport header.
    transport: usize,
    /// Offset of the transport payload.
    payload: usize,
    protocol: u8,
}

/// Reads `N` bytes in network order.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Writes the length of the whole packet into its IP header and, for IPv4, the header's checksum.
fn put_ip_length(packet: &mut [u8], v6: bool, header_len: usize, len: usize) {
    if v6 {
        put16(packet, 4, low16(len - IPV6_HEADER));
    } else {
        put16(packet, 2, low16(len));
        put16(packet, 10, 0);
        let sum = checksum::finish(checksum::sum(&packet[..header_len]));
        put16(packet, 10, sum);
    }
}

/// The sum over the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1), not complemented.
fn pseudo_header(packet: &[u8], v6: bool, protocol: u8, transport_len: usize) -> u64 {
    let addresses = if v6 { &packet[8..40] } else { &packet[12..20] };
    checksum::sum(addresses) + checksum::word(u16::from(protocol)) + checksum::word(low16(transport_len))
}

/// Lengths of packets are below 65,536 wherever this is used.
fn low16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}
