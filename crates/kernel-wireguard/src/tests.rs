//! Requests as they are sent, read with the reader of answers: both ends against each other, without a kernel.

use std::collections::BTreeSet;
use std::io;

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PrivateKey, PublicKey};
use netlink::NetlinkError;
use proptest::prelude::*;

use crate::error::ReadingError;
use crate::interface::is_unsupported;
use crate::reading::{self, Attributes};
use crate::request::{self, PREFIXES, Request};
use wireguard::{DeviceState, PeerChange, PresharedKeyChange};

const FAMILY: u16 = 31;
/// Netlink header and generic netlink header.
const HEADERS: usize = netlink::HEADER_LEN + 4;

/// A request as it is sent.
fn encoded(request: Request, flags: u16, sequence: u32) -> Vec<u8> {
    netlink::encode(request.addressed_to(FAMILY).message(), flags, sequence)
}

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public()
}

fn prefixes(count: u32) -> BTreeSet<IpNetwork> {
    let network = |n: u32| format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap();
    (0..count).map(network).collect()
}

/// What an interface would look like that had taken these messages, as far as they add.
fn taken(messages: Vec<Request>) -> DeviceState {
    let mut state = DeviceState::default();
    for message in messages {
        let bytes = encoded(message, 0, 7);
        let length = u32::from_ne_bytes(*bytes.first_chunk().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), bytes.len());
        assert!(bytes.len() < 32 << 10, "{} bytes", bytes.len());
        reading::take(&mut state, &bytes[HEADERS..]).unwrap();
    }
    state
}

#[test]
fn a_header_says_family_flags_and_sequence() {
    let bytes = encoded(request::read("mesh-a"), 0x300, 9);
    assert_eq!(u16::from_ne_bytes([bytes[4], bytes[5]]), FAMILY);
    assert_eq!(u16::from_ne_bytes([bytes[6], bytes[7]]), 0x301, "a request, and all of it");
    assert_eq!(u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]), 9);
    assert_eq!(&bytes[16..18], [0, 1], "GET_DEVICE of version 1");
    assert_eq!(encoded(request::listen_port("mesh-a", 1), 0, 1)[16], 1, "SET_DEVICE");
}

#[test]
fn many_prefixes_are_split_and_none_is_lost() {
    for count in [0, 1, 499, 500, 501, 5000] {
        let (one, allow) = (key(), prefixes(count));
        let settings = PeerChange {
            endpoint: Some("198.18.0.1:51840".parse().unwrap()),
            keepalive: Some(Some(25)),
            allow: allow.clone(),
            ..PeerChange::default()
        };
        let messages = request::peer("mesh-a", &one, false, &settings, None);
        assert_eq!(messages.len(), allow.len().div_ceil(PREFIXES).max(1));
        let state = taken(messages);
        assert_eq!(state.peers.len(), 1);
        let peer = &state.peers[&one];
        assert_eq!(peer.config.allowed_ips, allow);
        assert_eq!((peer.config.endpoint, peer.config.keepalive), (settings.endpoint, Some(25)));
    }
}

#[test]
fn a_change_names_only_what_differs() {
    let one = key();
    let messages = request::peer("mesh-a", &one, true, &PeerChange::default(), None);
    let kinds: Vec<Vec<u16>> = messages.into_iter().map(peer_attributes).collect();
    // The key, and that the peer must not be created.
    assert_eq!(kinds, [[1, 3]]);
    let settings = PeerChange { keepalive: Some(None), ..PeerChange::default() };
    let messages = request::peer("mesh-a", &one, true, &settings, None);
    let kinds: Vec<Vec<u16>> = messages.into_iter().map(peer_attributes).collect();
    assert_eq!(kinds, [[1, 3, 5]]);
}

/// Numbers of the attributes of all peers in a message.
fn peer_attributes(message: Request) -> Vec<u16> {
    let bytes = encoded(message, 0, 1);
    let mut kinds = Vec::new();
    for attribute in Attributes::new(&bytes[HEADERS..]) {
        let (kind, value) = attribute.unwrap();
        if kind == 8 {
            for peer in Attributes::new(value) {
                kinds.extend(Attributes::new(peer.unwrap().1).map(|attribute| attribute.unwrap().0));
            }
        }
    }
    kinds
}

#[test]
fn preshared_keys_are_set_and_cleared() {
    let one = key();
    let request = |change: &PresharedKeyChange| {
        request::peer("mesh-a", &one, true, &PeerChange::default(), Some(change))
    };
    let set = PresharedKeyChange::Set(PresharedKey::from_bytes(&[9; 32]).unwrap());
    assert!(taken(request(&set)).peers[&one].config.preshared.is_some());
    let clear = PresharedKeyChange::Clear;
    assert_eq!(taken(request(&clear)).peers[&one].config.preshared, None);
    let attributes = request(&clear).into_iter().map(peer_attributes).next();
    assert_eq!(attributes, Some(vec![1, 3, 2]));
}

#[test]
fn a_peer_that_goes_on_in_the_next_message_is_one_peer() {
    let one = key();
    let settings = PeerChange { allow: prefixes(700), keepalive: Some(Some(3)), ..PeerChange::default() };
    let state = taken(request::peer("mesh-a", &one, false, &settings, None));
    assert_eq!((state.peers.len(), state.peers[&one].config.keepalive), (1, Some(3)));
}

#[test]
fn what_is_cut_off_or_too_short_is_refused() {
    let cut = |bytes: &[u8]| reading::take(&mut DeviceState::default(), bytes);
    assert_eq!(cut(&[]), Ok(()));
    assert_eq!(cut(&[1, 2, 3]), Err(ReadingError::CutOff));
    assert_eq!(cut(&[9, 0, 6, 0, 1]), Err(ReadingError::CutOff));
    assert_eq!(cut(&[0, 0, 6, 0]), Err(ReadingError::CutOff));
    assert_eq!(cut(&[5, 0, 6, 0, 1, 0, 0, 0]), Err(ReadingError::Length { kind: 6, found: 1 }));
    // A list with one peer that has nothing in it.
    assert_eq!(cut(&[8, 0, 8, 0, 4, 0, 0, 0]), Err(ReadingError::Nameless));
    // One port, then the padding of an odd length at the end.
    assert_eq!(cut(&[6, 0, 6, 0, 1, 2]), Ok(()));
}

#[test]
fn a_failure_to_ask_does_not_mean_that_the_kernel_has_no_wireguard() {
    const EPERM: i32 = 1;
    const ENOENT: i32 = 2;
    const EMFILE: i32 = 24;
    const EPROTONOSUPPORT: i32 = 93;
    let socket =
        |errno| NetlinkError::Socket { operation: "open", source: io::Error::from_raw_os_error(errno) };
    let refused = NetlinkError::Refused { error: io::Error::from_raw_os_error(ENOENT), message: None };
    assert!(is_unsupported(&refused));
    assert!(is_unsupported(&socket(EPROTONOSUPPORT)));
    for errno in [EPERM, EMFILE] {
        assert!(!is_unsupported(&socket(errno)), "{errno}");
    }
    assert!(!is_unsupported(&NetlinkError::Malformed { problem: "a header is cut off" }));
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _refused_or_not = reading::take(&mut DeviceState::default(), &bytes);
    }

    /// Nearly right answers get further into the reader than random ones.
    #[test]
    fn no_damaged_answer_makes_the_reader_panic(at in 0_usize..400, value in any::<u8>(), end in 0_usize..400) {
        let settings = PeerChange {
            endpoint: Some("[2001:db8::1]:1".parse().unwrap()),
            allow: prefixes(4),
            keepalive: Some(Some(1)),
            ..PeerChange::default()
        };
        let message = request::peer("mesh-a", &key(), false, &settings, None).remove(0);
        let mut bytes = encoded(message, 0, 1)[HEADERS..].to_vec();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        let end = end.min(bytes.len());
        let _refused_or_not = reading::take(&mut DeviceState::default(), &bytes[..end]);
    }
}
