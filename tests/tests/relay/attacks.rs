//! A relay that lies or dies, and hosts that forge what they send to a relay: what counts does not change.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lab::frame::{self, Link};
use lab::mesh::Mesh;
use lab::{End, Flow, IpVersion, Protocol, Signal, Stream};
use serde_json::Value;

use super::liar::{self, Leg, Liar, Lie};
use super::{LEASED_WITHIN, SLOTS, apart, port, underlay};

/// How long a pair may be down whose relay died. `make prove-paths` measures it; this leaves time for slow machines.
const RECOVERED_WITHIN: Duration = Duration::from_secs(30);

fn end(mesh: &Mesh, node: &str) -> End {
    mesh.node(node).unwrap().wait_network(LEASED_WITHIN).unwrap();
    mesh.node(node).unwrap().pod("a").unwrap().end()
}

/// Over which relay a node sends to a peer; none without a relay.
fn via(status: &Value, peer: &str) -> Vec<Option<String>> {
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let found = peers.iter().find(|one| one["node"] == peer).cloned().unwrap_or_default();
    let path = |slot: &str| found["slots"][slot]["path"].as_str()?.strip_prefix("relayed via ");
    SLOTS.iter().map(|(slot, _)| path(slot).map(ToOwned::to_owned)).collect()
}

/// Waits until both ends send over a relay on both slots.
fn wait_relayed(mesh: &Mesh) {
    for (node, peer) in [("n1", "n2"), ("n2", "n1")] {
        mesh.wait(node, "a relayed path on both slots", LEASED_WITHIN, |status| {
            via(status, peer).iter().all(Option::is_some)
        });
    }
    mesh.wait_proven();
}

fn legs(mesh: &Mesh) -> Vec<Leg> {
    let mut legs = Vec::new();
    for (slot, wireguard) in SLOTS {
        for (node, peer) in [("n1", "n2"), ("n2", "n1")] {
            let status = mesh.status(node).unwrap();
            let port = u16::try_from(port(&status, peer, slot).unwrap()).unwrap();
            legs.push(Leg { at: SocketAddr::new(underlay(mesh, node), wireguard), port });
        }
    }
    legs
}

fn streams(one: &End, other: &End) -> [Stream; 2] {
    [(one, other), (other, one)].map(|(from, to)| Stream::start(from, to, IpVersion::V4, 200).unwrap())
}

/// Nothing was lost on the way, and nothing arrived twice.
fn assert_whole(streams: [Stream; 2]) {
    for stream in streams {
        let report = stream.stop();
        assert!(report.sent > 100, "{report:?}");
        assert_eq!((report.lost - report.overflowed, report.duplicated), (0, 0), "{report:?}");
    }
}

#[test]
fn a_lying_relay_changes_nothing_and_is_left_if_it_forwards_nothing() {
    let mesh = apart(4);
    let (a, b) = (end(&mesh, "n1"), end(&mesh, "n2"));
    wait_relayed(&mesh);
    let capture = mesh.capture().unwrap();
    let relay = mesh.node("n3").unwrap();
    let liar = Liar::start(relay, &legs(&mesh), underlay(&mesh, "n4"));
    std::thread::sleep(Duration::from_millis(300));
    let third = |mesh: &Mesh| via(&mesh.status("n4").unwrap(), "n1");

    for lie in [Lie::None, Lie::DuplicateAndReorder, Lie::TellThird] {
        let before = third(&mesh);
        let streams = streams(&a, &b);
        std::thread::sleep(Duration::from_millis(300));
        liar.tell(lie);
        std::thread::sleep(Duration::from_secs(1));
        assert_whole(streams);
        assert_eq!(third(&mesh), before, "{lie:?}");
    }
    assert!(liar.passed() > 1000, "the liar was not in between");

    // It can drop everything: both ends go elsewhere.
    mesh.set_relay("n4", true).unwrap();
    mesh.wait("n4", "to be a relay", LEASED_WITHIN, |status| !status["relay"].is_null());
    let streams = streams(&a, &b);
    let since = std::time::Instant::now();
    liar.tell(Lie::Drop);
    for (stream, node, peer) in [(&streams[0], "n1", "n2"), (&streams[1], "n2", "n1")] {
        mesh.wait(node, "another relay", RECOVERED_WITHIN * 2, |status| {
            via(status, peer).contains(&Some("n4".to_owned()))
        });
        stream.wait_arrival(since + Duration::from_secs(1), RECOVERED_WITHIN * 2).unwrap();
    }
    drop(streams);
    capture.report().assert_sealed();
}

#[test]
fn nobody_takes_the_place_of_an_end_by_forged_sources_and_recorded_messages() {
    let mut mesh = apart(3);
    let (a, b) = (end(&mesh, "n1"), end(&mesh, "n2"));
    wait_relayed(&mesh);
    let legs = legs(&mesh);
    // What comes to the relay is recorded, handshakes among it: those of a daemon that starts anew.
    let recording = liar::record(mesh.node("n3").unwrap(), &legs);
    mesh.stop("n1", Signal::TERM).unwrap();
    mesh.start_with("n1", &["--backend", "userspace"]).unwrap();
    mesh.wait("n1", "a tunnel to n2", LEASED_WITHIN, |status| via(status, "n2").iter().all(Option::is_some));
    Flow::new(&a, &b, IpVersion::V4, Protocol::Udp).timeout(LEASED_WITHIN).must_pass();
    let messages = recording.end();
    wait_relayed(&mesh);
    let kinds = |kind: u8| messages.iter().filter(|(_, bytes)| bytes.first() == Some(&kind)).count();
    assert!(kinds(1) > 0 && kinds(4) > 0, "{} initiations, {} data", kinds(1), kinds(4));

    let outside = mesh.outside();
    let own: IpAddr = outside.address(IpVersion::V4).unwrap();
    let ear = outside.run(|| UdpSocket::bind((own, 40_000))).unwrap().unwrap();
    ear.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let to = underlay(&mesh, "n3");
    let link = Link { from: outside.mac(), to: mesh.node("n3").unwrap().mac() };
    let dropped = |why: &str| mesh.status("n3").unwrap()["relay"]["dropped"][why].as_u64().unwrap();
    let before = dropped("unproven");
    std::thread::sleep(Duration::from_secs(1));
    let streams = streams(&a, &b);
    let handshakes = messages.iter().filter(|(_, bytes)| bytes.first() != Some(&4));
    let data = messages.iter().filter(|(_, bytes)| bytes.first() == Some(&4));
    for (leg, bytes) in handshakes.clone().cycle().take(60).chain(handshakes).chain(data.take(200)) {
        let Leg { at, port } = legs[*leg];
        // From its own address, and from that of the end that sent it.
        for from in [(own, 40_000), (at.ip(), at.port())] {
            outside.inject(&frame::udp(link, from, (to, port), bytes)).unwrap();
        }
        // A session that nobody has, far ahead.
        let mut forged = bytes.clone();
        forged.iter_mut().skip(4).take(12).for_each(|byte| *byte |= 0x3f);
        outside.inject(&frame::udp(link, (own, 40_000), (to, port), &forged)).unwrap();
        outside.inject(&frame::udp(link, (at.ip(), at.port()), (to, port), &forged)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    // Thousands of messages that have to be looked at may cost a packet, but no more.
    for report in streams.map(Stream::stop) {
        assert!(report.lost * 100 <= report.sent && report.duplicated == 0, "{report:?}");
    }
    assert!(ear.recv_from(&mut [0; 2048]).is_err(), "the relay sent something to a third host");
    let after = dropped("unproven");
    assert!(after >= before + 20, "{before} {after}");
}

#[test]
fn pairs_leave_a_relay_that_died() {
    let mut mesh = apart(4);
    let (a, b) = (end(&mesh, "n1"), end(&mesh, "n2"));
    wait_relayed(&mesh);
    mesh.set_relay("n4", true).unwrap();
    mesh.wait("n4", "to be a relay", LEASED_WITHIN, |status| !status["relay"].is_null());
    let streams = streams(&a, &b);
    mesh.stop("n3", Signal::KILL).unwrap();
    let since = std::time::Instant::now() + Duration::from_millis(500);
    for stream in &streams {
        stream.wait_arrival(since, RECOVERED_WITHIN).unwrap();
    }
    for (node, peer) in [("n1", "n2"), ("n2", "n1")] {
        mesh.wait(node, "the other relay", RECOVERED_WITHIN, |status| {
            via(status, peer).contains(&Some("n4".to_owned()))
        });
    }
}
