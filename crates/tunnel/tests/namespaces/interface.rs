//! The `Interface` API over real devices.

use std::net::UdpSocket;
use std::time::Duration;

use keyring::PrivateKey;
use tunnel::{DropReason, Failure, Health, Interface, InterfaceConfig, TunnelError};
use wireguard::{PeerChange, PeerOp};

use super::lab::{Family, Lab, eventually, peer, unique};

#[test]
fn both_families_pass_inside_and_outside_at_every_size() {
    for outer in [Family::V4, Family::V6] {
        let lab = Lab::new();
        let (a, b) = lab.tunnel(outer);
        for inner in [Family::V4, Family::V6] {
            assert!(lab.a.reaches(&lab.b.inner(inner), 56), "{inner:?} in {outer:?}");
            assert!(lab.b.reaches(&lab.a.inner(inner), 56), "{inner:?} in {outer:?}");
        }
        // 1420 bytes with 28 or 48 bytes of headers fill the device; one more is refused by the sender's kernel.
        assert!(lab.a.reaches(&lab.b.inner(Family::V4), 1420 - 28));
        assert!(lab.a.reaches(&lab.b.inner(Family::V6), 1420 - 48));
        assert!(!lab.a.reaches(&lab.b.inner(Family::V4), 1420 - 27));
        let state = a.state();
        let status = state.peers.values().next().unwrap();
        assert!(status.last_handshake.is_some() && status.received > 0 && status.sent > 0);
        assert_eq!(a.health(), Health::Running);
        assert_eq!(b.health(), Health::Running);
    }
}

#[test]
fn changes_of_port_mark_and_mtu_keep_the_session() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V4);
    let b_inner = lab.b.inner(Family::V4);
    assert!(lab.a.reaches(&b_inner, 56));
    let (b_key, first_port) = (b.state().key.unwrap(), a.state().port);
    let handshake = || a.state().peers[&b_key].last_handshake;
    let before = handshake();
    // From a thread in another namespace: the new sockets must be in that of the interface all the same.
    lab.b.enter(|| a.set_listen_port(0)).unwrap();
    assert_ne!(a.state().port, first_port);
    assert!(lab.a.reaches(&b_inner, 56));
    a.set_mtu(1300).unwrap();
    assert_eq!(a.mtu(), 1300);
    assert!(!lab.a.reaches(&b_inner, 1300));
    lab.a.ip(&format!("link set {} mtu 1400", a.name()));
    eventually("the MTU is noticed", || (a.mtu() == 1400).then_some(()));
    a.set_fwmark(0x1e).unwrap();
    assert_eq!(a.state().fwmark, 0x1e);
    assert!(lab.a.reaches(&b_inner, 56));
    assert_eq!(handshake(), before, "one session for all of this");
    lab.a.ip("rule add fwmark 30 blackhole");
    assert!(!lab.a.reaches(&b_inner, 56), "what is sent carries the mark");
    a.set_listen_port(0).unwrap();
    assert!(!lab.a.reaches(&b_inner, 56), "also from other sockets");
    a.set_fwmark(0).unwrap();
    assert!(lab.a.reaches(&b_inner, 56));
    assert!(a.counters().dropped(DropReason::UdpSend) > 0, "what the kernel refused was counted");
}

#[test]
fn a_port_that_is_taken_is_refused_and_the_old_one_stays() {
    let lab = Lab::new();
    let (a, _b) = lab.tunnel(Family::V4);
    let port = a.state().port;
    let taken = lab.a.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let error = a.set_listen_port(taken.local_addr().unwrap().port());
    assert!(matches!(error, Err(TunnelError::Udp { .. })), "{error:?}");
    assert_eq!(a.state().port, port);
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
    drop(taken);
    let free = lab.a.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port());
    a.set_listen_port(free).unwrap();
    a.set_listen_port(free).unwrap();
    a.set_listen_port(port).unwrap();
    a.set_listen_port(free).unwrap();
    assert_eq!(a.state().port, free);
    assert!(lab.b.reaches(&lab.a.inner(Family::V4), 56) || lab.a.reaches(&lab.b.inner(Family::V4), 56));
}

#[test]
fn changes_to_other_peers_lose_no_packet() {
    let lab = Lab::new();
    let (a, _b) = lab.tunnel(Family::V4);
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| lab.a.answers_from(&lab.b.inner(Family::V4), 200));
        while !pings.is_finished() {
            let other = PrivateKey::generate().unwrap().public();
            let allow = ["10.77.0.0/16".parse().unwrap()].into();
            let settings = PeerChange { allow, ..Default::default() };
            a.apply(vec![PeerOp::add(other, settings)]).unwrap();
            a.apply(vec![PeerOp::Remove { peer: other }]).unwrap();
        }
        assert_eq!(pings.join().unwrap(), 200);
    });
}

#[test]
fn a_device_that_is_deleted_is_noticed_and_can_be_made_again() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V4);
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
    let name = a.name().to_owned();
    lab.a.ip(&format!("link delete {name}"));
    eventually("the loss is noticed", || (a.health() == Health::Failed(Failure::TunGone)).then_some(()));
    let error = a.set_listen_port(0);
    assert!(matches!(error, Err(TunnelError::Stopped { reason: Failure::TunGone, .. })), "{error:?}");
    drop(a);
    let again = lab.a.create(&InterfaceConfig::new(name));
    again.set_private_key(PrivateKey::generate().unwrap());
    lab.a.configure(again.name());
    peer(&again, &b, &lab.b, Family::V4);
    peer(&b, &again, &lab.a, Family::V4);
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
}

#[test]
fn a_device_belongs_to_one_interface_and_goes_with_it() {
    let lab = Lab::new();
    let config = InterfaceConfig::new(unique("tw"));
    let interface = lab.a.create(&config);
    let second = lab.a.enter(|| Interface::create(&config));
    assert!(
        matches!(&second, Err(TunnelError::AttachTun { source, .. }) if *source == nix::errno::Errno::EBUSY)
    );
    drop(interface);
    assert!(!lab.a.ip("link show").contains(&config.name));
    let veth = InterfaceConfig::new("lo");
    assert!(matches!(lab.a.enter(|| Interface::create(&veth)), Err(TunnelError::AttachTun { .. })));
}

#[test]
fn a_persistent_device_stays_until_it_is_removed() {
    let lab = Lab::new();
    let config = InterfaceConfig { persistent: true, up: true, ..InterfaceConfig::new(unique("tw")) };
    drop(lab.a.create(&config));
    assert!(lab.a.ip("link show").contains(&config.name));
    let again = lab.a.create(&config);
    assert_eq!(again.health(), Health::Running);
    again.remove().unwrap();
    assert!(!lab.a.ip("link show").contains(&config.name));
}

#[test]
fn a_probe_makes_a_handshake_without_traffic() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V6);
    let (a_key, b_key) = (a.state().key.unwrap(), b.state().key.unwrap());
    assert_eq!(a.state().peers[&b_key].last_handshake, None);
    assert!(a.initiate_handshake(&b_key));
    assert!(!a.initiate_handshake(&a_key), "there is no such peer");
    eventually("both know of it", || {
        let known = [a.state().peers[&b_key].last_handshake, b.state().peers[&a_key].last_handshake];
        known.iter().all(Option::is_some).then_some(())
    });
}

#[test]
fn a_keepalive_connects_as_soon_as_it_is_set() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V4);
    let b_key = b.state().key.unwrap();
    let settings = PeerChange { keepalive: Some(Some(3600)), ..Default::default() };
    a.apply(vec![PeerOp::update(b_key, settings)]).unwrap();
    eventually("there is a handshake", || a.state().peers[&b_key].last_handshake);
}

#[test]
fn a_flood_of_garbage_stops_nothing() {
    let lab = Lab::new();
    let (a, b) = lab.tunnel(Family::V4);
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
    let target = lab.b.endpoint(Family::V4, b.state().port);
    let flood = lab.a.enter(|| UdpSocket::bind("192.0.2.1:0").unwrap());
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| lab.a.answers_from(&lab.b.inner(Family::V4), 100));
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut sent = 0;
        while !pings.is_finished() || sent < 5_000 {
            let mut bytes = [0u8; 200];
            for byte in &mut bytes {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state.to_le_bytes()[0];
            }
            let len = usize::from(bytes[0]) % 200;
            let kind = bytes[1] % 6;
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            flood.send_to(&bytes[..len], &target).unwrap();
            sent += 1;
            if sent % 16 == 0 {
                // Leaves the socket buffer room for the pings: the point is what is received, not what is lost.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // A machine that is busy with something else may let the buffer run over for a moment.
        assert!(pings.join().unwrap() >= 80);
    });
    assert_eq!((a.health(), b.health()), (Health::Running, Health::Running));
    assert!(b.counters().iter().map(|(_, count)| count).sum::<u64>() > 2_500);
}

#[test]
fn the_largest_datagrams_are_read_whole_and_refused() {
    let lab = Lab::new();
    let (_a, b) = lab.tunnel(Family::V4);
    let target = lab.b.endpoint(Family::V4, b.state().port);
    let socket = lab.a.enter(|| UdpSocket::bind("192.0.2.1:0").unwrap());
    let mut data = vec![0; 65_507];
    data[0] = 4;
    socket.send_to(&data, &target).unwrap();
    socket.send_to(&[], &target).unwrap();
    eventually("it is refused", || (b.counters().dropped(DropReason::UnknownIndex) == 1).then_some(()));
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 56));
}
