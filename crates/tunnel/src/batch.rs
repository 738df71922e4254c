//! Runs of packets and of datagrams in one reused buffer each, so that the data path never allocates per packet.

use std::net::SocketAddr;

/// Transport data is padded to a multiple of this many bytes (WireGuard paper, section 5.4.6).
const PADDING: usize = 16;

/// Where one item lies in the buffer.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    len: usize,
}

/// Plaintext IP packets, one behind the other, each with room behind it for padding.
#[derive(Debug, Default)]
pub struct Packets {
    bytes: Vec<u8>,
    used: usize,
    spans: Vec<Span>,
}

impl Packets {
    /// An empty batch. Its buffer grows with use and is kept by [`Packets::clear`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all packets and keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.spans.clear();
    }

    /// How many packets the batch holds.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the batch holds no packet.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Appends a copy of `packet`.
    pub fn push(&mut self, packet: &[u8]) {
        self.push_with(packet, |_| {});
    }

    /// Appends a copy of `packet` that `change` may alter, but not its length.
    pub(crate) fn push_with(&mut self, packet: &[u8], change: impl FnOnce(&mut [u8])) {
        let place = &mut self.spare(packet.len())[..packet.len()];
        place.copy_from_slice(packet);
        change(place);
        self.commit(packet.len());
    }

    /// The packets in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|span| &self.bytes[span.start..span.start + span.len])
    }

    /// At least `room` writable bytes behind the last packet; [`Packets::commit`] makes them one.
    pub(crate) fn spare(&mut self, room: usize) -> &mut [u8] {
        let needed = self.used + room + PADDING;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        &mut self.bytes[self.used..]
    }

    /// Turns the first `len` bytes of what [`Packets::spare`] returned into the next packet.
    pub(crate) fn commit(&mut self, len: usize) {
        self.spans.push(Span { start: self.used, len });
        // Aligned, so that the next packet starts where copies and ciphers are fastest.
        self.used = (self.used + len).next_multiple_of(PADDING);
    }

    /// Packet `index` with zeros appended up to a multiple of 16 bytes, but not beyond `mtu`.
    pub(crate) fn padded(&mut self, index: usize, mtu: usize) -> &[u8] {
        let Span { start, len } = self.spans[index];
        let padded = len.next_multiple_of(PADDING).min(mtu).max(len);
        if self.bytes.len() < start + padded {
            self.bytes.resize(start + padded, 0);
        }
        self.bytes[start + len..start + padded].fill(0);
        &self.bytes[start..start + padded]
    }

    /// Packet `index`, to be changed but for its length.
    pub(crate) fn packet_mut(&mut self, index: usize) -> &mut [u8] {
        let Span { start, len } = self.spans[index];
        &mut self.bytes[start..start + len]
    }

    /// Packet `index`.
    pub(crate) fn packet(&self, index: usize) -> &[u8] {
        let Span { start, len } = self.spans[index];
        &self.bytes[start..start + len]
    }
}

/// Datagrams with the address of the other side, packed without gaps: neighbours of equal length to one
/// address are one buffer for segmentation offload.
#[derive(Debug, Default)]
pub struct Datagrams {
    bytes: Vec<u8>,
    used: usize,
    spans: Vec<(Span, SocketAddr)>,
}

impl Datagrams {
    /// An empty batch. Its buffer grows with use and is kept by [`Datagrams::clear`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all datagrams and keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
        self.spans.clear();
    }

    /// How many datagrams the batch holds.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the batch holds no datagram.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Appends a copy of `datagram`, which goes to or came from `address`.
    pub fn push(&mut self, address: SocketAddr, datagram: &[u8]) {
        self.spare(datagram.len())[..datagram.len()].copy_from_slice(datagram);
        self.commit(datagram.len(), address);
    }

    /// The datagrams in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.spans.iter().map(|(span, address)| (*address, &self.bytes[span.start..span.start + span.len]))
    }

    /// Datagram `index`.
    pub(crate) fn datagram(&self, index: usize) -> (SocketAddr, &[u8]) {
        let (Span { start, len }, address) = self.spans[index];
        (address, &self.bytes[start..start + len])
    }

    /// How many datagrams from `index` on, at least one, go to the same address and have the same length; the
    /// last may be shorter. At most `most` datagrams and `room` bytes.
    pub(crate) fn run(&self, index: usize, most: usize, room: usize) -> usize {
        let (first, to) = self.spans[index];
        let (mut count, mut total) = (1, first.len);
        for (span, address) in self.spans[index + 1..].iter().take(most - 1) {
            total += span.len;
            if *address != to || span.len > first.len || total > room {
                break;
            }
            count += 1;
            if span.len < first.len {
                break;
            }
        }
        count
    }

    /// The bytes of `count` datagrams from `index` on.
    pub(crate) fn joined(&self, index: usize, count: usize) -> &[u8] {
        let last = self.spans[index + count - 1].0;
        &self.bytes[self.spans[index].0.start..last.start + last.len]
    }

    /// At least `room` writable bytes behind the last datagram; [`Datagrams::commit`] makes them one.
    pub(crate) fn spare(&mut self, room: usize) -> &mut [u8] {
        let needed = self.used + room;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        &mut self.bytes[self.used..]
    }

    /// Turns the first `len` bytes of what [`Datagrams::spare`] returned into the next datagram.
    pub(crate) fn commit(&mut self, len: usize, address: SocketAddr) {
        self.spans.push((Span { start: self.used, len }, address));
        self.used += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_zero_and_stops_at_the_mtu() {
        let mut packets = Packets::new();
        packets.push(&[0xff; 64]);
        packets.clear();
        packets.push(&[1; 21]);
        packets.push(&[2; 32]);
        packets.push(&[3; 41]);
        assert_eq!(packets.padded(0, 1420), [&[1; 21][..], &[0; 11]].concat());
        assert_eq!(packets.padded(1, 1420), [2; 32]);
        assert_eq!(packets.padded(2, 44), [&[3; 41][..], &[0; 3]].concat(), "bounded by the MTU");
        assert_eq!(packets.padded(2, 40), [3; 41], "a packet beyond the MTU is never cut");
        assert_eq!(packets.iter().map(<[u8]>::len).collect::<Vec<_>>(), [21, 32, 41]);
    }

    #[test]
    fn datagrams_lie_without_gaps() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let mut datagrams = Datagrams::new();
        datagrams.push(to, &[1; 100]);
        datagrams.push(to, &[2; 100]);
        assert_eq!(&datagrams.bytes[..200], [[1; 100], [2; 100]].concat());
        assert_eq!(datagrams.iter().collect::<Vec<_>>(), [(to, &[1; 100][..]), (to, &[2; 100][..])]);
        datagrams.clear();
        assert!(datagrams.is_empty());
    }
}
