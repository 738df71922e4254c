//! Splitting and putting together, against a simple implementation that builds the same packets.

use proptest::prelude::*;

use super::{Coalescer, MOST_SEGMENTS, Segmentation, VNET_HEADER, VnetHeader, split};
use crate::batch::Packets;

const ACK: u8 = 0x10;
const PSH: u8 = 8;
const FIN: u8 = 1;
const CWR: u8 = 0x80;

/// What a test packet is made from.
#[expect(clippy::struct_excessive_bools, reason = "each is one bit of a header, or a fault to be put in")]
#[derive(Debug, Clone)]
struct Spec {
    v6: bool,
    udp: bool,
    flow: u8,
    sequence: u32,
    id: u16,
    dont_fragment: bool,
    flags: u8,
    window: u16,
    ttl: u8,
    options: bool,
    payload: Vec<u8>,
    bad_checksum: bool,
}

impl Spec {
    fn tcp(sequence: u32, payload: &[u8]) -> Self {
        Self {
            v6: false,
            udp: false,
            flow: 1,
            sequence,
            id: 7,
            dont_fragment: true,
            flags: ACK,
            window: 500,
            ttl: 64,
            options: true,
            payload: payload.to_vec(),
            bad_checksum: false,
        }
    }

    fn udp(payload: &[u8]) -> Self {
        Self { udp: true, ..Self::tcp(0, payload) }
    }

    /// The packet, written down field by field.
    fn build(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(1000u16.to_be_bytes());
        transport.extend((2000 + u16::from(self.flow)).to_be_bytes());
        if self.udp {
            transport.extend(u16::try_from(8 + self.payload.len()).unwrap().to_be_bytes());
            transport.extend([0, 0]);
        } else {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(77u32.to_be_bytes());
            transport.extend([if self.options { 0x80 } else { 0x50 }, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0, 0, 0]);
            if self.options {
                transport.extend([1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
            }
        }
        transport.extend(&self.payload);
        let mut packet = Vec::new();
        let protocol = if self.udp { 17 } else { 6 };
        if self.v6 {
            packet.extend([0x60, 0, 0, 5]);
            packet.extend(u16::try_from(transport.len()).unwrap().to_be_bytes());
            packet.extend([protocol, self.ttl]);
            packet.extend([0xfd; 16]);
            packet.extend([0xfe; 15]);
            packet.push(self.flow);
        } else {
            packet.extend([0x45, 0]);
            packet.extend(u16::try_from(20 + transport.len()).unwrap().to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            packet.extend([10, 0, 0, 1, 10, 0, 0, self.flow]);
            let sum = plain_checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let mut sum = plain_checksum(&[pseudo(&packet, transport.len()), transport.clone()].concat());
        if self.udp && sum == 0 {
            sum = 0xffff;
        }
        if self.bad_checksum {
            sum ^= 0x0100;
        }
        let at = if self.udp { 6 } else { 16 };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        [packet, transport].concat()
    }
}

fn pseudo(packet: &[u8], len: usize) -> Vec<u8> {
    let (addresses, protocol) =
        if packet[0] >> 4 == 6 { (&packet[8..40], packet[6]) } else { (&packet[12..20], packet[9]) };
    [addresses, &u32::try_from(len).unwrap().to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

fn plain_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Whether all checksums in `packet` are right.
fn sound(packet: &[u8]) -> bool {
    let header = if packet[0] >> 4 == 6 { 40 } else { 20 };
    let transport = &packet[header..];
    let ip_sound = header == 40 || plain_checksum(&packet[..20]) == 0;
    ip_sound && plain_checksum(&[&pseudo(packet, transport.len())[..], transport].concat()) == 0
}

/// What the kernel hands over for a TCP packet that is larger than the device's packets.
fn large(spec: &Spec, segment: u16) -> (VnetHeader, Vec<u8>) {
    let mut packet = spec.build();
    let transport = if spec.v6 { 40 } else { 20 };
    let checksum = if spec.udp { 6 } else { 16 };
    let partial = !plain_checksum(&pseudo(&packet, packet.len() - transport));
    packet[transport + checksum..transport + checksum + 2].copy_from_slice(&partial.to_be_bytes());
    let segmentation = match (spec.udp, spec.v6) {
        (true, _) => Segmentation::Udp,
        (false, true) => Segmentation::Tcp6,
        (false, false) => Segmentation::Tcp4,
    };
    let header = VnetHeader {
        needs_checksum: true,
        segmentation,
        header_len: u16::try_from(packet.len() - spec.payload.len()).unwrap(),
        segment,
        checksum_start: u16::try_from(transport).unwrap(),
        checksum_offset: checksum.try_into().unwrap(),
    };
    (header, packet)
}

fn split_all(header: VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Packets::new();
    split(header, packet, &mut out).unwrap();
    out.iter().map(<[u8]>::to_vec).collect()
}

/// Everything that goes to the kernel for `packets`.
fn coalesce(packets: &[Vec<u8>], udp: bool) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut batch = Packets::new();
    for packet in packets {
        batch.push(packet);
    }
    let mut written = Vec::new();
    let result: Result<(), ()> = Coalescer::default().write(&mut batch.view(), udp, |header, parts| {
        let parts: Vec<&[u8]> = parts.collect();
        assert!(parts.len() <= MOST_SEGMENTS);
        written.push((header, parts.concat()));
        Ok(())
    });
    assert_eq!(result, Ok(()));
    written
}

#[test]
fn the_header_is_that_of_virtio() {
    let (header, _) = large(&Spec::tcp(1, &[0; 3000]), 1400);
    let mut expected = vec![1, 1];
    for field in [52u16, 1400, 20, 16] {
        expected.extend(field.to_ne_bytes());
    }
    assert_eq!(header.to_bytes(), expected[..]);
    assert_eq!(VnetHeader::parse(header.to_bytes()), Some(header));
    assert_eq!(VnetHeader::PLAIN.to_bytes(), [0; VNET_HEADER]);
    assert_eq!(VnetHeader::parse([0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None, "fragments of one datagram");
    assert_eq!(VnetHeader::parse([0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]), None, "with congestion marks");
}

#[test]
fn a_large_tcp_packet_becomes_the_packets_that_one_would_write_down() {
    for v6 in [false, true] {
        let payload: Vec<u8> = (0..=255).cycle().take(3000).collect();
        let flags = ACK | PSH | FIN | CWR;
        let whole = Spec { v6, flags, ..Spec::tcp(u32::MAX - 100, &payload) };
        let (header, packet) = large(&whole, 1400);
        let part = |index: u16, range: std::ops::Range<usize>, flags| Spec {
            sequence: whole.sequence.wrapping_add(u32::try_from(range.start).unwrap()),
            id: whole.id + index,
            flags,
            payload: payload[range].to_vec(),
            ..whole.clone()
        };
        let expected =
            [part(0, 0..1400, ACK | CWR), part(1, 1400..2800, ACK), part(2, 2800..3000, ACK | PSH | FIN)];
        assert_eq!(split_all(header, &packet), expected.map(|spec| spec.build()));
    }
}

#[test]
fn a_large_udp_packet_becomes_datagrams() {
    for v6 in [false, true] {
        let payload: Vec<u8> = (0..=255).cycle().take(2500).collect();
        let whole = Spec { v6, ..Spec::udp(&payload) };
        let (header, packet) = large(&whole, 1200);
        let parts = [(0u16, 0..1200), (1, 1200..2400), (2, 2400..2500)];
        let expected = parts.map(|(index, range)| {
            Spec { id: whole.id + index, payload: payload[range].to_vec(), ..whole.clone() }.build()
        });
        assert_eq!(split_all(header, &packet), expected);
    }
}

#[test]
fn a_checksum_that_the_kernel_left_open_is_completed() {
    for spec in [Spec::tcp(1, b"payload"), Spec { v6: true, ..Spec::udp(b"odd") }] {
        let (header, packet) = large(&spec, 0);
        let plain = VnetHeader { segmentation: Segmentation::None, ..header };
        assert_eq!(split_all(plain, &packet), [spec.build()]);
    }
    let as_is = vec![0x45; 21];
    assert_eq!(split_all(VnetHeader::PLAIN, &as_is), [as_is]);
}

#[test]
fn a_udp_checksum_of_zero_is_stated_as_the_other_zero() {
    for v6 in [false, true] {
        let specs = (0..=u16::MAX).map(|word| Spec { v6, ..Spec::udp(&word.to_be_bytes()) });
        let at = if v6 { 46 } else { 26 };
        let spec = specs.into_iter().find(|spec| spec.build()[at..at + 2] == [0xff, 0xff]).unwrap();
        let (header, packet) = large(&spec, 2);
        assert_eq!(split_all(header, &packet), [spec.build()]);
        let plain = VnetHeader { segmentation: Segmentation::None, ..header };
        assert_eq!(split_all(plain, &packet), [spec.build()]);
    }
}

#[test]
fn headers_that_do_not_fit_their_packet_are_refused() {
    let (header, packet) = large(&Spec::tcp(1, &[0; 3000]), 1400);
    let refused = |header, packet: &[u8]| {
        let mut out = Packets::new();
        let result = split(header, packet, &mut out);
        result.is_err() && out.is_empty()
    };
    assert!(!refused(header, &packet), "positive control");
    assert!(refused(VnetHeader { segment: 0, ..header }, &packet));
    assert!(refused(VnetHeader { checksum_start: 8, ..header }, &packet));
    assert!(refused(VnetHeader { checksum_start: 9_999, ..header }, &packet));
    assert!(refused(VnetHeader { segmentation: Segmentation::Tcp6, ..header }, &packet));
    assert!(refused(header, &packet[..52]), "no payload");
    assert!(refused(header, &packet[..30]));
    assert!(refused(header, &[]));
    let plain = VnetHeader { segmentation: Segmentation::None, ..header };
    assert!(refused(VnetHeader { checksum_offset: 9_999, ..plain }, &packet));
    assert!(refused(plain, &packet[..37]));
}

#[test]
fn packets_in_line_become_one() {
    for v6 in [false, true] {
        let spec = |sequence, id, len, flags| Spec { v6, id, flags, ..Spec::tcp(sequence, &vec![3; len]) };
        let packets = [spec(0, 1, 100, ACK), spec(100, 2, 100, ACK), spec(200, 3, 40, ACK | PSH)];
        let written = coalesce(&packets.each_ref().map(Spec::build), true);
        let mut whole = Spec { payload: vec![3; 240], flags: ACK | PSH, ..packets[0].clone() };
        whole.v6 = v6;
        assert_eq!(written, [large(&whole, 100)]);
    }
}

#[test]
fn datagrams_of_one_length_become_one_if_the_kernel_takes_that() {
    let packets = [Spec::udp(&[1; 100]), Spec::udp(&[2; 100]), Spec::udp(&[3; 60]), Spec::udp(&[4; 100])];
    let packets = packets.map(|spec| spec.build());
    let written = coalesce(&packets, true);
    assert_eq!(
        written.iter().map(|(header, _)| header.segmentation).collect::<Vec<_>>(),
        [Segmentation::Udp, Segmentation::None]
    );
    assert_eq!(coalesce(&packets, false).len(), 4);
}

#[test]
fn what_does_not_follow_stays_alone() {
    let first = Spec::tcp(0, &[1; 100]);
    let next = Spec { id: 8, ..Spec::tcp(100, &[2; 100]) };
    let groups = |second: &Spec| coalesce(&[first.build(), second.build()], true).len();
    assert_eq!(groups(&next), 1, "positive control");
    let moved = Spec { dont_fragment: false, ..next.clone() };
    assert_eq!(
        coalesce(&[Spec { dont_fragment: false, ..first.clone() }.build(), moved.build()], true).len(),
        1
    );
    for (what, second) in [
        ("a gap", Spec { sequence: 101, ..next.clone() }),
        ("an overlap", Spec { sequence: 99, ..next.clone() }),
        ("a longer one", Spec { payload: vec![2; 101], ..next.clone() }),
        ("nothing in it", Spec { payload: vec![], ..next.clone() }),
        ("FIN", Spec { flags: ACK | FIN, ..next.clone() }),
        ("CWR", Spec { flags: ACK | CWR, ..next.clone() }),
        ("another window", Spec { window: 501, ..next.clone() }),
        ("another hop limit", Spec { ttl: 63, ..next.clone() }),
        ("other options", Spec { options: false, ..next.clone() }),
        ("another flow", Spec { flow: 2, ..next.clone() }),
        ("another fragment bit", Spec { dont_fragment: false, ..next.clone() }),
        ("a wrong checksum", Spec { bad_checksum: true, ..next.clone() }),
    ] {
        assert_eq!(groups(&second), 2, "{what}");
    }
    let wrong = Spec { bad_checksum: true, ..first.clone() };
    assert_eq!(coalesce(&[wrong.build(), next.build()], true).len(), 2);
    let pushed = Spec { flags: ACK | PSH, ..first.clone() };
    assert_eq!(coalesce(&[pushed.build(), next.build()], true).len(), 2, "a push ends a group");
    let out_of_line = |id| Spec { id, dont_fragment: false, ..next.clone() };
    let open = Spec { dont_fragment: false, ..first };
    assert_eq!(coalesce(&[open.build(), out_of_line(9).build()], true).len(), 2, "identification");
}

#[test]
fn flows_that_take_turns_are_put_together_each_by_itself() {
    let packets: Vec<_> = (0..40u32)
        .map(|n| Spec { flow: u8::try_from(n % 4).unwrap(), ..Spec::tcp(n / 4 * 100, &[9; 100]) }.build())
        .collect();
    let written = coalesce(&packets, true);
    assert_eq!(written.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [52 + 1000; 4]);
}

fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let spec = (
        (any::<bool>(), prop::bool::weighted(0.3), 1u8..4),
        prop::sample::select(vec![10usize, 10, 10, 10, 4, 0]),
        prop::sample::select(vec![ACK, ACK, ACK, ACK, ACK | PSH, ACK | FIN, 2]),
        (prop::bool::weighted(0.9), prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
    );
    prop::collection::vec(spec, 0..60).prop_map(|raw| {
        let mut sequence = [0u32; 16];
        let mut id: u16 = 0;
        let mut specs = Vec::new();
        for ((v6, udp, flow), len, flags, (dont_fragment, gap, bad_checksum)) in raw {
            let place = &mut sequence[usize::from(flow) * 2 + usize::from(v6)];
            *place += if gap { 1000 } else { 0 };
            id += 1;
            let payload = vec![id.to_le_bytes()[0]; len];
            let base =
                Spec { v6, udp, flow, id, dont_fragment, flags, bad_checksum, ..Spec::tcp(*place, &payload) };
            *place += u32::try_from(len).unwrap();
            specs.push(base);
        }
        specs
    })
}

/// The packet without the identification of packets that must not be fragmented, which means nothing (RFC 6864).
fn essential(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] == 0x45 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn flow_of(packet: &[u8]) -> Vec<u8> {
    let (header, protocol) = if packet[0] >> 4 == 6 { (40, packet[6]) } else { (20, packet[9]) };
    [&[packet[0], protocol], &packet[header - 8..header + 4]].concat()
}

proptest! {
    #[test]
    fn splitting_what_was_put_together_gives_every_flow_as_it_was(specs in specs(), udp in any::<bool>()) {
        let packets: Vec<_> = specs.iter().map(Spec::build).collect();
        let written = coalesce(&packets, udp);
        prop_assert!(written.len() <= packets.len());
        let again: Vec<_> = written.iter().flat_map(|(header, bytes)| split_all(*header, bytes)).collect();
        let mut flows: Vec<_> = packets.iter().map(|packet| flow_of(packet)).collect();
        flows.sort();
        flows.dedup();
        for flow in flows {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                all.iter().filter(|packet| flow_of(packet) == flow).cloned().map(essential).collect()
            };
            prop_assert_eq!(of(&again), of(&packets));
        }
    }

    #[test]
    fn every_segment_is_sound(
        v6 in any::<bool>(), udp in any::<bool>(), options in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 1..5000), segment in 1u16..2000, sequence in any::<u32>(),
    ) {
        let spec = Spec { v6, udp, options, ..Spec::tcp(sequence, &payload) };
        let (header, packet) = large(&spec, segment);
        let parts = split_all(header, &packet);
        prop_assert!(parts.iter().all(|part| sound(part)));
        let headers = packet.len() - payload.len();
        let joined: Vec<u8> = parts.iter().flat_map(|part| part[headers..].to_vec()).collect();
        prop_assert_eq!(joined, payload);
    }

    #[test]
    fn foreign_headers_and_packets_never_panic(
        header in any::<[u8; VNET_HEADER]>(), kind in 0u8..6, small in any::<bool>(),
        packet in prop::collection::vec(any::<u8>(), 0..200), version in prop::sample::select(vec![0x45u8, 0x60, 0x4f, 0]),
    ) {
        let (mut header, mut packet) = (header, packet);
        header[1] = kind;
        if small {
            // So that offsets fall into the packet now and then.
            for high in [3, 5, 7, 9] {
                header[high] = 0;
            }
        }
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        if let Some(header) = VnetHeader::parse(header) {
            let _ = split(header, &packet, &mut Packets::new());
        }
        coalesce(&[packet.clone(), packet], true);
    }
}
