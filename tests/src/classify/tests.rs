//! Frames of every kind that may be on an underlay, and what each has to be taken for.

use super::*;
use crate::frame::{self, Link};

const LINK: Link = Link { from: [2, 0, 0, 0, 0, 1], to: [2, 0, 0, 0, 0, 2] };

fn rules() -> Rules {
    Rules::new(["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()])
}

fn at(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn place(frame: &[u8]) -> Option<&'static str> {
    match classify(frame, &rules()) {
        Class::PodAddress(matched) => Some(matched.place),
        Class::WireGuard(_) | Class::Other => None,
    }
}

fn wireguard(kind: u8, length: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.resize(length, 7);
    message
}

#[test]
fn every_wireguard_message_is_known_on_either_port_and_either_version() {
    let kinds = [
        (1, 148, Message::Initiation),
        (2, 92, Message::Response),
        (3, 64, Message::Cookie),
        (4, 32, Message::Data),
    ];
    for (kind, length, message) in kinds {
        for (from, to) in [("198.18.0.1", "198.18.0.2"), ("2001:db8::1", "2001:db8::2")] {
            for (source, destination) in [(51840, 51840), (51841, 51841), (40000, 51840), (51841, 40000)] {
                let payload = wireguard(kind, length);
                let frame = frame::udp(LINK, (at(from), source), (at(to), destination), &payload);
                assert_eq!(classify(&frame, &rules()), Class::WireGuard(message), "{kind} {from} {source}");
            }
        }
    }
}

#[test]
fn what_only_uses_a_wireguard_port_is_not_wireguard() {
    for payload in
        [b"GET / HTTP/1.1".to_vec(), wireguard(5, 148), wireguard(4, 31), vec![4, 0, 0, 1], Vec::new()]
    {
        let frame = frame::udp(LINK, (at("198.18.0.1"), 51840), (at("198.18.0.2"), 51840), &payload);
        assert_eq!(classify(&frame, &rules()), Class::Other, "{payload:?}");
    }
    let elsewhere = frame::udp(LINK, (at("198.18.0.1"), 1), (at("198.18.0.2"), 2), &wireguard(4, 64));
    assert_eq!(classify(&elsewhere, &rules()), Class::Other);
}

#[test]
fn a_pod_address_as_source_or_destination_is_seen_even_on_a_wireguard_port() {
    for (from, to) in [
        ("10.244.1.5", "198.18.0.2"),
        ("198.18.0.1", "10.244.2.5"),
        ("fd00:10:244:1::5", "2001:db8::1"),
        ("2001:db8::1", "fd00:10:244:ffff::1"),
    ] {
        let payload = wireguard(4, 64);
        let frame = frame::udp(LINK, (at(from), 51840), (at(to), 51840), &payload);
        assert!(matches!(place(&frame), Some("ipv4" | "ipv6")), "{from} {to}");
    }
}

#[test]
fn addresses_beside_the_ranges_are_not_pods() {
    for (from, to) in [("10.243.255.255", "10.245.0.0"), ("fd00:10:243:ffff::1", "fd00:10:245::")] {
        assert_eq!(place(&frame::udp(LINK, (at(from), 1), (at(to), 2), b"")), None);
    }
}

#[test]
fn fragments_after_the_first_are_seen_by_their_addresses_and_never_taken_for_wireguard() {
    let mut frame = frame::udp(LINK, (at("198.18.0.1"), 51840), (at("198.18.0.2"), 51840), &wireguard(4, 64));
    frame[14 + 7] = 10;
    assert_eq!(classify(&frame, &rules()), Class::Other);
    let mut leak = frame::ip(LINK, at("10.244.1.5"), at("198.18.0.2"), 17, b"rest");
    leak[14 + 7] = 10;
    assert_eq!(place(&leak), Some("ipv4"));
}

#[test]
fn extension_headers_do_not_hide_wireguard_or_an_inner_packet() {
    let inner = frame::udp(LINK, (at("2001:db8::1"), 51840), (at("2001:db8::2"), 51840), &wireguard(4, 64));
    let mut hop_by_hop = vec![17, 0, 1, 4, 0, 0, 0, 0];
    hop_by_hop.extend(&inner[54..]);
    let frame = frame::ip(LINK, at("2001:db8::1"), at("2001:db8::2"), 0, &hop_by_hop);
    assert_eq!(classify(&frame, &rules()), Class::WireGuard(Message::Data));

    let mut second_fragment = vec![17, 0, 0, 8, 0, 0, 0, 1];
    second_fragment.extend(&inner[54..]);
    let frame = frame::ip(LINK, at("2001:db8::1"), at("2001:db8::2"), 44, &second_fragment);
    assert_eq!(classify(&frame, &rules()), Class::Other);
}

#[test]
fn pod_addresses_in_tunnels_and_in_quoted_packets_are_seen() {
    let pod = frame::udp(LINK, (at("10.244.1.5"), 1), (at("10.244.2.5"), 2), b"x");
    let pod6 = frame::udp(LINK, (at("fd00:10:244:1::5"), 1), (at("fd00:10:244:2::5"), 2), b"x");
    for (protocol, inner) in [(4, &pod), (41, &pod6)] {
        let frame = frame::ip(LINK, at("198.18.0.1"), at("198.18.0.2"), protocol, &inner[14..]);
        assert_eq!(place(&frame), Some("ip in ip"));
    }
    let mut unreachable = vec![3, 1, 0, 0, 0, 0, 0, 0];
    unreachable.extend(&pod[14..]);
    assert_eq!(
        place(&frame::ip(LINK, at("198.18.0.1"), at("198.18.0.2"), 1, &unreachable)),
        Some("icmp error")
    );
    let mut too_big = vec![2, 0, 0, 0, 0, 0, 5, 0];
    too_big.extend(&pod6[14..]);
    assert_eq!(
        place(&frame::ip(LINK, at("2001:db8::1"), at("2001:db8::2"), 58, &too_big)),
        Some("icmp error")
    );
}

#[test]
fn asking_for_the_link_address_of_a_pod_is_seen() {
    let mut request =
        Vec::from([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1]);
    request.extend([198, 18, 0, 1, 0, 0, 0, 0, 0, 0, 10, 244, 2, 5]);
    assert_eq!(place(&request), Some("arp"));
    let end = request.len();
    request[end - 4..].copy_from_slice(&[198, 18, 0, 2]);
    assert_eq!(classify(&request, &rules()), Class::Other);

    let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
    solicitation.extend("fd00:10:244:2::5".parse::<Ipv6Addr>().unwrap().octets());
    let frame = frame::ip(LINK, at("fe80::1"), at("ff02::1:ff00:5"), 58, &solicitation);
    assert_eq!(place(&frame), Some("neighbour discovery"));
}

#[test]
fn vlan_tags_hide_nothing() {
    let plain = frame::udp(LINK, (at("10.244.1.5"), 1), (at("10.244.2.5"), 2), b"x");
    let mut tagged = plain[..12].to_vec();
    tagged.extend([0x88, 0xa8, 0, 7, 0x81, 0, 0, 9]);
    tagged.extend(&plain[12..]);
    assert_eq!(place(&tagged), Some("ipv4"));
}

#[test]
fn no_prefix_of_any_frame_panics() {
    let pod = frame::udp(LINK, (at("10.244.1.5"), 1), (at("10.244.2.5"), 2), b"xyz");
    let mut quoted = vec![1, 0, 0, 0, 0, 0, 0, 0];
    quoted.extend(&frame::udp(LINK, (at("fd00::1"), 1), (at("fd00::2"), 2), b"x")[14..]);
    let frames = [
        frame::ip(LINK, at("198.18.0.1"), at("198.18.0.2"), 4, &pod[14..]),
        frame::ip(LINK, at("2001:db8::1"), at("2001:db8::2"), 58, &quoted),
        frame::ip(
            LINK,
            at("2001:db8::1"),
            at("2001:db8::2"),
            0,
            &[44, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0, 17, 255],
        ),
    ];
    for frame in frames {
        for length in 0..=frame.len() {
            classify(&frame[..length], &rules());
        }
    }
}

#[test]
fn the_marker_is_found_only_in_clear() {
    let mut payload = b"seq 1 ".to_vec();
    payload.extend(MARKER);
    assert!(marked(&frame::udp(LINK, (at("198.18.0.1"), 1), (at("198.18.0.2"), 2), &payload)));
    assert!(!marked(&frame::udp(LINK, (at("198.18.0.1"), 1), (at("198.18.0.2"), 2), b"MESHDLA")));
}
