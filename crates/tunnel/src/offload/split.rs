//! From one large packet of the kernel to packets that fit the tunnel.

use super::{
    IPV4_HEADER, IPV6_HEADER, Layout, Segmentation, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, UDP_HEADER,
    VnetHeader, be16, be32, checksum, low16, pseudo_header, put_ip_length, put16, put32,
};
use crate::batch::Packets;

const FIN: u8 = 1;
const PSH: u8 = 8;
const CWR: u8 = 0x80;

/// The header does not fit the packet behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Appends to `out` the packets that `packet` represents, with lengths and checksums of their own.
pub(crate) fn split(header: VnetHeader, packet: &[u8], out: &mut Packets) -> Result<(), Malformed> {
    let start = usize::from(header.checksum_start);
    match header.segmentation {
        Segmentation::None => {
            let at = start + usize::from(header.checksum_offset);
            if header.needs_checksum && at + 2 > packet.len() {
                return Err(Malformed);
            }
            out.push_with(packet, |packet| {
                if header.needs_checksum {
                    // The field holds the sum over the pseudo header, so it is part of what is summed up.
                    let sum = checksum::finish(checksum::sum(&packet[start..]));
                    put16(packet, at, said(sum, at - start));
                }
            });
            Ok(())
        }
        Segmentation::Tcp4 | Segmentation::Tcp6 | Segmentation::Udp => {
            let layout = layout(header, packet)?;
            segments(header.segment, layout, packet, out);
            Ok(())
        }
    }
}

/// Finds the headers where the kernel says that they are.
fn layout(header: VnetHeader, packet: &[u8]) -> Result<Layout, Malformed> {
    let v6 = match packet.first().ok_or(Malformed)? >> 4 {
        4 => false,
        6 => true,
        _ => return Err(Malformed),
    };
    let transport = usize::from(header.checksum_start);
    let (protocol, least) = match header.segmentation {
        Segmentation::Tcp4 if !v6 => (TCP, TCP_CHECKSUM + 4),
        Segmentation::Tcp6 if v6 => (TCP, TCP_CHECKSUM + 4),
        Segmentation::Udp => (UDP, UDP_HEADER),
        _ => return Err(Malformed),
    };
    let ip_header = if v6 { IPV6_HEADER } else { usize::from(packet[0] & 0x0f) * 4 };
    if ip_header < IPV4_HEADER || transport < ip_header || packet.len() < transport + least {
        return Err(Malformed);
    }
    let transport_header =
        if protocol == TCP { usize::from(packet[transport + 12] >> 4) * 4 } else { UDP_HEADER };
    let payload = transport + transport_header;
    if transport_header < least || packet.len() <= payload || packet.len() > 65_535 || header.segment == 0 {
        return Err(Malformed);
    }
    Ok(Layout { v6, transport, payload, protocol })
}

/// The checksum as the packet states it at `offset` of its transport header: for UDP, zero means that there is none
/// (RFC 768), and the other zero of one's complement is sent instead.
const fn said(sum: u16, offset: usize) -> u16 {
    if sum == 0 && offset == UDP_CHECKSUM { 0xffff } else { sum }
}

fn segments(segment: u16, layout: Layout, packet: &[u8], out: &mut Packets) {
    let Layout { v6, transport, payload, protocol } = layout;
    let (headers, data) = packet.split_at(payload);
    let count = data.len().div_ceil(usize::from(segment));
    for (index, chunk) in data.chunks(usize::from(segment)).enumerate() {
        let len = payload + chunk.len();
        let place = &mut out.spare(len)[..len];
        place[..payload].copy_from_slice(headers);
        place[payload..].copy_from_slice(chunk);
        if !v6 {
            // Each segment is a packet of its own, also where routers may cut it into fragments.
            put16(place, 4, be16(headers, 4).wrapping_add(low16(index)));
        }
        let ip_header = if v6 { IPV6_HEADER } else { usize::from(headers[0] & 0x0f) * 4 };
        put_ip_length(place, v6, ip_header, len);
        let pseudo = pseudo_header(place, v6, protocol, len - transport);
        let at = if protocol == TCP {
            let offset = u32::try_from(index * usize::from(segment)).unwrap_or(u32::MAX);
            put32(place, transport + 4, be32(headers, transport + 4).wrapping_add(offset));
            let flags = &mut place[transport + 13];
            if index + 1 != count {
                *flags &= !(FIN | PSH);
            }
            if index != 0 {
                *flags &= !CWR;
            }
            transport + TCP_CHECKSUM
        } else {
            put16(place, transport + 4, low16(len - transport));
            transport + UDP_CHECKSUM
        };
        put16(place, at, 0);
        let sum = checksum::finish(pseudo + checksum::sum(&place[transport..]));
        put16(place, at, said(sum, at - transport));
        out.commit(len);
    }
}
