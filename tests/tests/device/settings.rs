//! What is set reads back, and nothing else changes.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use keyring::{PresharedKey, PrivateKey, PublicKey};
use wireguard::{Backend, Device, Peer, PeerChange, PeerState};

use crate::subject::Subject;

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public()
}

fn prefixes<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<IpNetwork> {
    texts.into_iter().map(|text| text.parse().unwrap()).collect()
}

fn peer<'a>(allowed_ips: impl IntoIterator<Item = &'a str>) -> Peer {
    Peer { allowed_ips: prefixes(allowed_ips), ..Peer::default() }
}

/// A peer's configuration as it was asked for: a backend that always roams cannot be told not to.
fn config(backend: Backend, peer: &PeerState) -> Peer {
    Peer { roaming: peer.config.roaming && !backend.always_roams(), ..peer.config.clone() }
}

/// The peer's configuration; `None` if it does not exist.
fn found(device: &mut dyn Device, key: PublicKey) -> Option<Peer> {
    let backend = device.backend();
    device.state().unwrap().peers.get(&key).map(|peer| config(backend, peer))
}

fn allowed_ips(device: &mut dyn Device, key: PublicKey) -> BTreeSet<IpNetwork> {
    found(device, key).unwrap().allowed_ips
}

pub(crate) fn a_new_device_has_no_key_and_no_peers(mut subject: Subject) {
    let state = subject.device.state().unwrap();
    assert_eq!((state.key, state.peers.len()), (None, 0));
}

pub(crate) fn a_key_reads_back_as_its_public_half(mut subject: Subject) {
    let device = subject.device.as_mut();
    for _ in 0..2 {
        let key = PrivateKey::generate().unwrap();
        device.set_key(&key).unwrap();
        device.set_key(&key).unwrap();
        assert_eq!(device.state().unwrap().key, Some(key.public()));
    }
}

pub(crate) fn another_key_keeps_the_peers(mut subject: Subject) {
    let device = subject.device.as_mut();
    device.set_key(&PrivateKey::generate().unwrap()).unwrap();
    let other = key();
    device.add_peer(other, &peer(["10.0.0.0/24"])).unwrap();
    let before = found(device, other);
    device.set_key(&PrivateKey::generate().unwrap()).unwrap();
    assert!(before.is_some());
    assert_eq!(found(device, other), before);
}

pub(crate) fn a_port_reads_back_and_one_that_is_taken_is_refused(mut subject: Subject) {
    subject.device.set_port(51840).unwrap();
    assert_eq!(subject.device.state().unwrap().port, 51840);
    subject.occupy(51999);
    subject.device.set_port(51999).unwrap_err();
    assert_eq!(subject.device.state().unwrap().port, 51840);
    subject.device.set_port(51841).unwrap();
    assert_eq!(subject.device.state().unwrap().port, 51841);
}

pub(crate) fn a_peer_reads_back_as_it_was_added(mut subject: Subject) {
    let device = subject.device.as_mut();
    let whole = Peer {
        endpoint: Some("198.18.0.7:51840".parse().unwrap()),
        roaming: false,
        allowed_ips: prefixes(["10.0.0.0/24", "fd00::/64", "192.0.2.1/32", "2001:db8::1/128"]),
        keepalive: Some(25),
        preshared: None,
    };
    let bare = Peer::default();
    let far = Peer { endpoint: Some("[2001:db8::7]:1".parse().unwrap()), ..peer(["0.0.0.0/0", "::/0"]) };
    let keys = [key(), key(), key()];
    for (key, peer) in keys.iter().zip([&whole, &bare, &far]) {
        device.add_peer(*key, peer).unwrap();
        assert_eq!(found(device, *key).as_ref(), Some(peer));
    }
    assert_eq!(device.state().unwrap().peers.len(), 3);
    assert_eq!(found(device, keys[0]), Some(whole));
}

pub(crate) fn a_prefix_belongs_to_the_last_peer_it_was_given_to(mut subject: Subject) {
    let device = subject.device.as_mut();
    let [first, second, third] = [key(), key(), key()];
    device.add_peer(first, &peer(["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"])).unwrap();
    device.add_peer(second, &peer(["10.0.1.0/24"])).unwrap();
    device.add_peer(third, &peer([])).unwrap();
    let change = PeerChange { allow: prefixes(["10.0.2.0/24"]), ..PeerChange::default() };
    device.update_peer(third, &change).unwrap();
    assert_eq!(allowed_ips(device, first), prefixes(["10.0.0.0/24"]));
    assert_eq!(allowed_ips(device, second), prefixes(["10.0.1.0/24"]));
    assert_eq!(allowed_ips(device, third), prefixes(["10.0.2.0/24"]));
}

pub(crate) fn an_update_changes_what_it_names_and_nothing_else(mut subject: Subject) {
    let device = subject.device.as_mut();
    let (one, other) = (key(), key());
    let mut wanted = Peer {
        endpoint: Some("198.18.0.7:51840".parse().unwrap()),
        keepalive: Some(25),
        ..peer(["10.0.0.0/24", "10.0.1.0/24"])
    };
    device.add_peer(one, &wanted).unwrap();
    device.add_peer(other, &peer(["10.0.9.0/24"])).unwrap();
    let bystander = found(device, other);
    let changes = [
        PeerChange { endpoint: Some("198.18.0.8:1".parse().unwrap()), ..PeerChange::default() },
        PeerChange { keepalive: Some(None), ..PeerChange::default() },
        PeerChange { keepalive: Some(Some(7)), ..PeerChange::default() },
        PeerChange { allow: prefixes(["10.0.2.0/24", "fd00::/64"]), ..PeerChange::default() },
        PeerChange { disallow: prefixes(["10.0.0.0/24", "fd00::/64"]), ..PeerChange::default() },
        PeerChange {
            allow: prefixes(["10.0.3.0/24"]),
            disallow: prefixes(["10.0.1.0/24"]),
            ..PeerChange::default()
        },
        PeerChange::default(),
    ];
    for change in changes {
        device.update_peer(one, &change).unwrap();
        wanted.endpoint = change.endpoint.or(wanted.endpoint);
        wanted.keepalive = change.keepalive.unwrap_or(wanted.keepalive);
        wanted.allowed_ips.retain(|prefix| !change.disallow.contains(prefix));
        wanted.allowed_ips.extend(change.allow.iter().copied());
        assert_eq!(found(device, one).as_ref(), Some(&wanted), "{change:?}");
    }
    assert_eq!(found(device, other), bystander);
    assert_eq!(device.state().unwrap().peers.len(), 2, "the temporary peer is left");
}

pub(crate) fn prefixes_are_taken_only_from_the_peer_that_is_named(mut subject: Subject) {
    let device = subject.device.as_mut();
    let (one, other) = (key(), key());
    device.add_peer(one, &peer(["10.0.0.0/24"])).unwrap();
    device.add_peer(other, &peer(["10.0.1.0/24"])).unwrap();
    let change = PeerChange { disallow: prefixes(["10.0.1.0/24", "10.0.7.0/24"]), ..PeerChange::default() };
    device.update_peer(one, &change).unwrap();
    assert_eq!(allowed_ips(device, one), prefixes(["10.0.0.0/24"]));
    assert_eq!(allowed_ips(device, other), prefixes(["10.0.1.0/24"]));
}

pub(crate) fn two_peers_can_swap_their_prefixes(mut subject: Subject) {
    let device = subject.device.as_mut();
    let (one, other) = (key(), key());
    let (x, y) = ("10.0.0.0/24", "10.0.1.0/24");
    device.add_peer(one, &peer([x])).unwrap();
    device.add_peer(other, &peer([y])).unwrap();
    let swap = |take, give| PeerChange {
        allow: prefixes([take]),
        disallow: prefixes([give]),
        ..PeerChange::default()
    };
    device.update_peer(one, &swap(y, x)).unwrap();
    device.update_peer(other, &swap(x, y)).unwrap();
    assert_eq!(allowed_ips(device, one), prefixes([y]));
    assert_eq!(allowed_ips(device, other), prefixes([x]));
}

/// It may be refused or not: the kernel silently ignores it.
pub(crate) fn an_update_makes_no_peer(mut subject: Subject) {
    let device = subject.device.as_mut();
    let present = key();
    device.add_peer(present, &peer(["10.0.0.0/24"])).unwrap();
    let change = PeerChange {
        endpoint: Some("198.18.0.7:51840".parse().unwrap()),
        allow: prefixes(["10.0.0.0/24", "10.0.1.0/24"]),
        ..PeerChange::default()
    };
    let _refused_or_not = device.update_peer(key(), &change);
    assert_eq!(device.state().unwrap().peers.len(), 1);
    assert_eq!(allowed_ips(device, present), prefixes(["10.0.0.0/24"]));
}

pub(crate) fn a_device_is_never_its_own_peer(mut subject: Subject) {
    let device = subject.device.as_mut();
    let (first, second) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    device.set_key(&first).unwrap();
    let _refused_or_not = device.add_peer(first.public(), &peer(["10.0.0.0/24"]));
    assert_eq!(device.state().unwrap().peers.len(), 0);
    device.add_peer(second.public(), &peer(["10.0.0.0/24"])).unwrap();
    assert_eq!(device.state().unwrap().peers.len(), 1);
    device.set_key(&second).unwrap();
    assert_eq!(device.state().unwrap().peers.len(), 0);
}

pub(crate) fn a_removed_peer_is_gone_and_removing_it_again_is_no_error(mut subject: Subject) {
    let device = subject.device.as_mut();
    let (one, other) = (key(), key());
    device.add_peer(one, &peer(["10.0.0.0/24"])).unwrap();
    device.add_peer(other, &peer(["10.0.1.0/24"])).unwrap();
    for _ in 0..2 {
        device.remove_peer(one).unwrap();
        assert_eq!(found(device, one), None);
    }
    assert_eq!(allowed_ips(device, other), prefixes(["10.0.1.0/24"]));
    device.add_peer(one, &peer([])).unwrap();
    assert_eq!(allowed_ips(device, one), BTreeSet::new());
}

/// More than fit into one message, and into the answer's.
pub(crate) fn thousands_of_prefixes_of_one_peer_read_back(mut subject: Subject) {
    let device = subject.device.as_mut();
    let one = key();
    let v4 = (0..2000_u32).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250));
    let v6 = (0..1000_u32).map(|n| format!("fd00:{n:x}::/64"));
    let all: Vec<String> = v4.chain(v6).collect();
    device.add_peer(one, &peer(all.iter().map(String::as_str))).unwrap();
    assert_eq!(allowed_ips(device, one), prefixes(all.iter().map(String::as_str)));
    let (gone, kept): (Vec<_>, Vec<_>) =
        all.iter().map(String::as_str).enumerate().partition(|(n, _)| n % 2 == 0);
    let change =
        PeerChange { disallow: prefixes(gone.iter().map(|(_, text)| *text)), ..PeerChange::default() };
    device.update_peer(one, &change).unwrap();
    assert_eq!(allowed_ips(device, one), prefixes(kept.iter().map(|(_, text)| *text)));
    assert_eq!(device.state().unwrap().peers.len(), 1);
}

pub(crate) fn hundreds_of_peers_read_back(mut subject: Subject) {
    let device = subject.device.as_mut();
    let peers: Vec<(PublicKey, Peer)> = (0..300_u32)
        .map(|n| {
            let text = format!("10.{}.{}.0/24", n / 250, n % 250);
            let endpoint = format!("198.18.{}.{}:51840", n / 250, n % 250).parse().unwrap();
            (key(), Peer { endpoint: Some(endpoint), ..peer([text.as_str()]) })
        })
        .collect();
    for (key, peer) in &peers {
        device.add_peer(*key, peer).unwrap();
    }
    let state = device.state().unwrap();
    assert_eq!(state.peers.len(), peers.len());
    for (key, peer) in &peers {
        assert_eq!(&config(device.backend(), &state.peers[key]), peer);
    }
}

pub(crate) fn a_preshared_key_is_set_and_removed(mut subject: Subject) {
    let device = subject.device.as_mut();
    let (one, other) = (key(), key());
    let added = peer(["10.0.0.0/24"]);
    device.add_peer(one, &added).unwrap();
    device.add_peer(other, &peer([])).unwrap();
    let has = |device: &mut dyn Device| {
        let state = device.state().unwrap();
        let found = config(device.backend(), &state.peers[&one]);
        assert_eq!(Peer { preshared: None, ..found }, added);
        (state.peers[&one].config.preshared, state.peers[&other].config.preshared)
    };
    assert_eq!(has(device), (None, None));
    for byte in [1, 2] {
        let preshared = PresharedKey::from_bytes(&[byte; 32]).unwrap();
        device.set_preshared_key(one, Some(&preshared)).unwrap();
        assert_eq!(has(device), (Some(preshared.id()), None));
    }
    device.set_preshared_key(one, None).unwrap();
    assert_eq!(has(device), (None, None));
    // Removed and added again together with a key, as plans do.
    let preshared = PresharedKey::from_bytes(&[3; 32]).unwrap();
    device.remove_peer(one).unwrap();
    device.add_peer_with(one, &added, Some(&preshared)).unwrap();
    assert_eq!(has(device), (Some(preshared.id()), None));
    assert_eq!(found(device, one).unwrap().preshared, Some(preshared.id()));
}
