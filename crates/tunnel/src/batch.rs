//! Runs of packets and of datagrams in one reused buffer each, so that the data path never allocates per packet.

use std::net::SocketAddr;

use crate::message::{DATA_HEADER, DATA_OVERHEAD};

/// Transport data is padded to a multiple of this many bytes (WireGuard paper, section 5.4.6).
const PADDING: usize = 16;

/// Where one item lies in the buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Plaintext IP packets. In front of each is room for the header of transport data, behind it for padding and tag, so
/// that it becomes a datagram where it lies, and the next datagram follows without a gap.
#[derive(Debug)]
pub struct Packets {
    bytes: Vec<u8>,
    used: usize,
    spans: Vec<Span>,
    /// Padding never makes a packet longer than this.
    mtu: usize,
}

impl Default for Packets {
    fn default() -> Self {
        Self { bytes: Vec::new(), used: 0, spans: Vec::new(), mtu: usize::MAX }
    }
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

    /// Packets that are added from now on will be padded to at most `mtu` bytes. Without this there may be a few
    /// unused bytes between datagrams, which the kernel then takes one by one.
    pub(crate) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu.into();
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
        &mut self.spare_datagram(DATA_OVERHEAD + room)[DATA_HEADER..]
    }

    /// The same with the room in front: at least `room` bytes where a datagram fits that becomes a packet.
    pub(crate) fn spare_datagram(&mut self, room: usize) -> &mut [u8] {
        let needed = self.used + room + PADDING;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        &mut self.bytes[self.used..]
    }

    /// Turns the first `len` bytes of what [`Packets::spare`] returned into the next packet.
    pub(crate) fn commit(&mut self, len: usize) {
        self.spans.push(Span { start: self.used + DATA_HEADER, len });
        self.used += padded(len, self.mtu) + DATA_OVERHEAD;
    }

    /// Where packet `index` is once it is a datagram, padded to a multiple of 16 bytes but not beyond `mtu`. The
    /// padding is made zero; header and tag are the caller's.
    pub(crate) fn datagram_mut(&mut self, index: usize, mtu: usize) -> (Span, &mut [u8]) {
        let Span { start, len } = self.spans[index];
        // Never more than was left free when the packet was added.
        let padded = padded(len, mtu.min(self.mtu));
        let span = Span { start: start - DATA_HEADER, len: padded + DATA_OVERHEAD };
        let bytes = &mut self.bytes[span.start..span.start + span.len];
        bytes[DATA_HEADER + len..DATA_HEADER + padded].fill(0);
        (span, bytes)
    }

    /// Packet `index`.
    pub(crate) fn packet(&self, index: usize) -> &[u8] {
        let Span { start, len } = self.spans[index];
        &self.bytes[start..start + len]
    }

    /// All packets, to be changed but for their lengths.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn view(&mut self) -> View<'_> {
        View { bytes: &mut self.bytes, spans: &self.spans }
    }
}

/// The length of a packet of `len` bytes with its padding.
fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(PADDING).min(mtu).max(len)
}

/// Packets wherever they lie, for example in the datagrams that they came in.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) spans: &'a [Span],
}

impl View<'_> {
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(crate) fn packet(&self, index: usize) -> &[u8] {
        let Span { start, len } = self.spans[index];
        &self.bytes[start..start + len]
    }

    pub(crate) fn packet_mut(&mut self, index: usize) -> &mut [u8] {
        let Span { start, len } = self.spans[index];
        &mut self.bytes[start..start + len]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.spans.iter().map(|span| &self.bytes[span.start..span.start + span.len])
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

    /// Takes over the bytes of `packets`, which have become the datagrams at `places`; `packets` is empty then.
    /// Nothing is copied if there are no datagrams here yet.
    pub(crate) fn take(&mut self, packets: &mut Packets, places: &mut Vec<(Span, SocketAddr)>) {
        if self.spans.is_empty() {
            std::mem::swap(&mut self.bytes, &mut packets.bytes);
            std::mem::swap(&mut self.spans, places);
            self.used = packets.used;
        } else {
            for (Span { start, len }, address) in &*places {
                self.push(*address, &packets.bytes[*start..start + len]);
            }
        }
        places.clear();
        packets.clear();
    }

    /// How many datagrams from `index` on, at least one, go to the same address, lie without gaps and have the same
    /// length; the last may be shorter. At most `most` datagrams and `room` bytes.
    pub(crate) fn run(&self, index: usize, most: usize, room: usize) -> usize {
        let (first, to) = self.spans[index];
        let (mut count, mut total) = (1, first.len);
        for (span, address) in self.spans[index + 1..].iter().take(most - 1) {
            total += span.len;
            let adjacent = span.start + span.len == first.start + total;
            if *address != to || span.len > first.len || total > room || !adjacent {
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
        let mut padded = |index: usize, mtu: usize| {
            let datagram = packets.datagram_mut(index, mtu).1;
            datagram[DATA_HEADER..datagram.len() + DATA_HEADER - DATA_OVERHEAD].to_vec()
        };
        assert_eq!(padded(0, 1420), [&[1; 21][..], &[0; 11]].concat());
        assert_eq!(padded(1, 1420), [2; 32]);
        assert_eq!(padded(2, 44), [&[3; 41][..], &[0; 3]].concat(), "bounded by the MTU");
        assert_eq!(padded(2, 40), [3; 41], "a packet beyond the MTU is never cut");
        assert_eq!(packets.iter().map(<[u8]>::len).collect::<Vec<_>>(), [21, 32, 41]);
    }

    #[test]
    fn packets_become_datagrams_without_gaps_where_they_lie() {
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        for (mtu, run) in [(1420, 3), (u16::MAX, 1)] {
            let (mut packets, mut datagrams, mut places) = (Packets::new(), Datagrams::new(), Vec::new());
            packets.set_mtu(mtu);
            (0..3).for_each(|_| packets.push(&[1; 1420]));
            let before = packets.bytes.as_ptr();
            for index in 0..3 {
                let (span, bytes) = packets.datagram_mut(index, 1420);
                bytes.fill(u8::try_from(index).unwrap());
                places.push((span, to));
            }
            datagrams.take(&mut packets, &mut places);
            assert_eq!(datagrams.bytes.as_ptr(), before, "nothing was copied");
            assert_eq!(datagrams.run(0, 64, 65_507), run, "a gap ends a run");
            assert!(packets.is_empty() && places.is_empty());
            for (index, (_, bytes)) in (0..).zip(datagrams.iter()) {
                assert_eq!(bytes, [index; 1420 + DATA_OVERHEAD]);
            }
        }
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
