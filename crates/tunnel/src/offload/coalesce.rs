//! From many packets of a tunnel to few large ones for the kernel.
//!
//! Packets are put together only if splitting the result gives the same packets again: same headers, sequence
//! numbers in line, checksums right. The order within a flow stays as it was.

use super::{
    IPV4_HEADER, IPV6_HEADER, Layout, Segmentation, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, UDP_HEADER,
    VnetHeader, be16, be32, checksum, low16, pseudo_header, put_ip_length, put16,
};
use crate::batch::View;

/// The most packets in one large one.
pub(crate) const MOST_SEGMENTS: usize = 64;
/// How many groups back a packet may still join one: as many flows may take turns.
const OPEN_GROUPS: usize = 8;
/// The largest packet that its IP header can describe.
const LARGEST: usize = 65_535;

const PSH: u8 = 8;
const ACK: u8 = 0x10;

/// Packets that go to the kernel as one.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// The flow, if it is one that can be followed.
    layout: Option<Layout>,
    first: usize,
    last: usize,
    count: usize,
    /// Payload of each packet but the last.
    segment: usize,
    /// Length of the coalesced packet.
    len: usize,
    /// Whether another packet may join.
    open: bool,
    /// Whether the checksum of the first packet was verified.
    verified: bool,
}

/// Plans which packets of a batch go together; reused for batch after batch.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    groups: Vec<Group>,
    /// For each packet the next one of its group.
    next: Vec<usize>,
}

impl Coalescer {
    /// Groups `packets` and hands each group, in order, to `write`: the header and the parts that follow it, at
    /// most [`MOST_SEGMENTS`]. `udp` says whether the kernel takes UDP groups.
    pub(crate) fn write<E>(
        &mut self,
        packets: &mut View<'_>,
        udp: bool,
        mut write: impl FnMut(VnetHeader, &mut dyn Iterator<Item = &[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.plan(packets, udp);
        for group in &self.groups {
            let Some(layout) = group.layout.filter(|_| group.count > 1) else {
                write(VnetHeader::PLAIN, &mut std::iter::once(packets.packet(group.first)))?;
                continue;
            };
            let last_flags = packets.packet(group.last).get(layout.transport + 13).copied();
            let header = group.finish(layout, last_flags, packets.packet_mut(group.first));
            let (packets, next) = (&*packets, &self.next);
            let members = std::iter::successors(Some(group.first), |index| Some(next[*index]));
            let mut parts = members.take(group.count).enumerate().map(|(position, index)| {
                let from = if position == 0 { 0 } else { layout.payload };
                &packets.packet(index)[from..]
            });
            write(header, &mut parts)?;
        }
        Ok(())
    }

    fn plan(&mut self, packets: &View<'_>, udp: bool) {
        self.groups.clear();
        self.next.clear();
        self.next.resize(packets.len(), 0);
        for index in 0..packets.len() {
            let packet = packets.packet(index);
            let layout = layout(packet, udp);
            if let Some(layout) = layout {
                let recent = self.groups.iter_mut().rev().take(OPEN_GROUPS);
                let mut of_flow = recent.filter(|group| {
                    group
                        .layout
                        .is_some_and(|other| same_flow(layout, packet, other, packets.packet(group.first)))
                });
                // Only the latest of its flow: joining an earlier one would change the order.
                if let Some(group) = of_flow.next()
                    && group.join(layout, index, packets)
                {
                    self.next[group.last] = index;
                    group.last = index;
                    continue;
                }
            }
            self.groups.push(Group::new(layout, index, packet));
        }
    }
}

impl Group {
    fn new(layout: Option<Layout>, index: usize, packet: &[u8]) -> Self {
        let segment = layout.map_or(0, |layout| packet.len() - layout.payload);
        let open = segment > 0
            && layout.is_some_and(|layout| layout.protocol == UDP || packet[layout.transport + 13] == ACK);
        Self {
            layout,
            first: index,
            last: index,
            count: 1,
            segment,
            len: packet.len(),
            open,
            verified: false,
        }
    }

    /// Takes packet `index` in, if the kernel would split it out again just as it is. Its flow is known to be
    /// the same.
    fn join(&mut self, layout: Layout, index: usize, packets: &View<'_>) -> bool {
        let (packet, last, first) =
            (packets.packet(index), packets.packet(self.last), packets.packet(self.first));
        let payload = packet.len() - layout.payload;
        if !self.open
            || self.layout != Some(layout)
            || self.count == MOST_SEGMENTS
            || payload == 0
            || payload > self.segment
            || self.len + payload > LARGEST
            || !same_ip_header(layout.v6, last, packet)
            || !follows(layout, last, packet)
        {
            return false;
        }
        self.verified = self.verified || checksum_holds(layout, first);
        // A wrong checksum must reach the kernel as it is: in a group it would be corrected.
        if !self.verified || !checksum_holds(layout, packet) {
            self.open = self.verified;
            return false;
        }
        self.count += 1;
        self.len += payload;
        self.open =
            payload == self.segment && (layout.protocol == UDP || packet[layout.transport + 13] == ACK);
        true
    }

    /// Makes the headers in `first` those of the whole group and describes it.
    fn finish(&self, layout: Layout, last_flags: Option<u8>, first: &mut [u8]) -> VnetHeader {
        let Layout { v6, transport, payload, protocol } = layout;
        put_ip_length(first, v6, IPV4_HEADER, self.len);
        let partial = checksum::fold(pseudo_header(first, v6, protocol, self.len - transport));
        let (segmentation, checksum_offset) = if protocol == TCP {
            first[transport + 13] |= last_flags.unwrap_or_default() & PSH;
            (if v6 { Segmentation::Tcp6 } else { Segmentation::Tcp4 }, TCP_CHECKSUM)
        } else {
            put16(first, transport + 4, low16(self.len - transport));
            (Segmentation::Udp, UDP_CHECKSUM)
        };
        put16(first, transport + checksum_offset, partial);
        VnetHeader {
            needs_checksum: true,
            segmentation,
            header_len: low16(payload),
            segment: low16(self.segment),
            checksum_start: low16(transport),
            checksum_offset: low16(checksum_offset),
        }
    }
}

/// Where the headers are, if it is TCP or UDP without IP options, extensions or fragments.
fn layout(packet: &[u8], udp: bool) -> Option<Layout> {
    let (v6, transport, protocol) = match packet.first()? {
        0x45 if packet.len() >= IPV4_HEADER && be16(packet, 6) & 0xbfff == 0 => {
            (false, IPV4_HEADER, packet[9])
        }
        first if first >> 4 == 6 && packet.len() >= IPV6_HEADER => (true, IPV6_HEADER, packet[6]),
        _ => return None,
    };
    let payload = match protocol {
        TCP if packet.len() >= transport + TCP_CHECKSUM + 4 => {
            let header = usize::from(packet[transport + 12] >> 4) * 4;
            if header < TCP_CHECKSUM + 4 {
                return None;
            }
            transport + header
        }
        UDP if udp && packet.len() >= transport + UDP_HEADER => {
            let stated = usize::from(be16(packet, transport + 4));
            // Without a checksum there is nothing to verify it by.
            if stated != packet.len() - transport || be16(packet, transport + UDP_CHECKSUM) == 0 {
                return None;
            }
            transport + UDP_HEADER
        }
        _ => return None,
    };
    (payload <= packet.len()).then_some(Layout { v6, transport, payload, protocol })
}

fn same_flow(layout: Layout, packet: &[u8], other_layout: Layout, other: &[u8]) -> bool {
    let addresses = if layout.v6 { 8..40 } else { 12..20 };
    let ports = layout.transport..layout.transport + 4;
    layout.v6 == other_layout.v6
        && layout.protocol == other_layout.protocol
        && packet[ports.clone()] == other[ports]
        && packet[addresses.clone()] == other[addresses]
}

/// Whether the IP headers differ only in what splitting recomputes: lengths, checksums and, in line, the
/// identification.
fn same_ip_header(v6: bool, last: &[u8], packet: &[u8]) -> bool {
    if v6 {
        return last[..4] == packet[..4] && last[6..8] == packet[6..8];
    }
    let dont_fragment = packet[6] & 0x40 != 0;
    last[1] == packet[1]
        && last[6..10] == packet[6..10]
        && (dont_fragment || be16(packet, 4) == be16(last, 4).wrapping_add(1))
}

/// Whether the transport header of `packet` is the one that splitting makes behind `last`.
fn follows(layout: Layout, last: &[u8], packet: &[u8]) -> bool {
    if layout.protocol == UDP {
        return true;
    }
    let (before, after) =
        (&last[layout.transport..layout.payload], &packet[layout.transport..layout.payload]);
    let passed = u32::try_from(last.len() - layout.payload).unwrap_or(u32::MAX);
    be32(after, 4) == be32(before, 4).wrapping_add(passed)
        // Acknowledgement and data offset; window; urgent pointer and options.
        && before[8..13] == after[8..13]
        && after[13] & !PSH == ACK
        && before[14..16] == after[14..16]
        && before[18..] == after[18..]
}

fn checksum_holds(layout: Layout, packet: &[u8]) -> bool {
    let transport = &packet[layout.transport..];
    let pseudo = pseudo_header(packet, layout.v6, layout.protocol, transport.len());
    checksum::finish(pseudo + checksum::sum(transport)) == 0
}
