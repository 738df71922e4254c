//! What two devices do with each other's packets.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use keyring::{PresharedKey, PrivateKey};
use lab::{Flow, IpVersion, ProbeResult, Protocol, Stream};
use meshd::device::{Former, add_again};
use tunnel::Initiator;
use wireguard::{Peer, PeerChange, PeerState};

use crate::subject::{Kind, PORT, Pair, link};

/// Time for a handshake and its retries, on an emulated machine.
const SESSION_TIMEOUT: Duration = Duration::from_secs(20);

/// What device `index` reports about the other.
fn seen(pair: &mut Pair, index: usize) -> PeerState {
    let other = pair.public(1 - index);
    pair.devices[index].state().unwrap().peers[&other].clone()
}

fn wait(pair: &mut Pair, what: &str, wanted: impl Fn(&mut Pair) -> bool) {
    let since = Instant::now();
    while !wanted(pair) {
        assert!(
            since.elapsed() < SESSION_TIMEOUT,
            "{what}: not within {SESSION_TIMEOUT:?}: {:?}",
            [seen(pair, 0), seen(pair, 1)]
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn passes(pair: &Pair) -> bool {
    let flow = Flow::new(&pair.end(0), &pair.end(1), IpVersion::V4, Protocol::Udp);
    flow.timeout(SESSION_TIMEOUT).probe().unwrap().answered
}

fn is_silent(pair: &Pair) -> bool {
    let flow = Flow::new(&pair.end(0), &pair.end(1), IpVersion::V4, Protocol::Udp);
    flow.timeout(Duration::from_secs(2)).probe().unwrap() == ProbeResult { source: None, answered: false }
}

pub(crate) fn a_handshake_is_made_on_request_and_both_sides_see_it(mut pair: Pair) {
    for index in [0, 1] {
        assert_eq!(seen(&mut pair, index).since_handshake, None);
    }
    let other = pair.public(1);
    pair.devices[0].initiate_handshake(other).unwrap();
    // The responder counts a handshake when its first packet arrives, which the initiator sends at once.
    wait(&mut pair, "a handshake on both sides", |pair| {
        [0, 1].into_iter().all(|index| seen(pair, index).since_handshake.is_some())
    });
    for index in [0, 1] {
        let peer = seen(&mut pair, index);
        assert!(peer.since_handshake.unwrap() < SESSION_TIMEOUT, "{peer:?}");
        assert!(peer.received > 0 && peer.sent > 0, "{peer:?}");
    }
}

pub(crate) fn a_handshake_leaves_the_interval_as_it_is(mut pair: Pair) {
    let other = pair.public(1);
    for interval in [None, Some(30), None] {
        let change = PeerChange { keepalive: Some(interval), ..PeerChange::default() };
        pair.devices[0].update_peer(other, &change).unwrap();
        pair.devices[0].initiate_handshake(other).unwrap();
        assert_eq!(seen(&mut pair, 0).config.keepalive, interval);
    }
    let stranger = PrivateKey::generate().unwrap().public();
    let _refused_or_not = pair.devices[0].initiate_handshake(stranger);
    assert_eq!(pair.devices[0].state().unwrap().peers.len(), 1);
}

/// Every kind of change, many times, under a stream in both directions.
pub(crate) fn changes_lose_no_packet_of_a_stream(mut pair: Pair) {
    assert!(passes(&pair));
    let streams = [(0, 1), (1, 0)]
        .map(|(from, to)| Stream::start(&pair.end(from), &pair.end(to), IpVersion::V4, 250).unwrap());
    let prefix = |text: &str| [text.parse().unwrap()].into();
    let endpoint = pair.peer(1).endpoint;
    let other = pair.public(1);
    let stranger = PrivateKey::generate().unwrap().public();
    for _ in 0..20 {
        let changes = [
            PeerChange { allow: prefix("10.1.0.0/16"), ..PeerChange::default() },
            PeerChange { disallow: prefix("10.1.0.0/16"), ..PeerChange::default() },
            PeerChange { keepalive: Some(Some(9)), ..PeerChange::default() },
            PeerChange { keepalive: Some(None), ..PeerChange::default() },
            PeerChange { endpoint, ..PeerChange::default() },
        ];
        for change in changes {
            pair.devices[0].update_peer(other, &change).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        let peer = pair.peer(1);
        pair.devices[0].add_peer(stranger, &Peer { allowed_ips: prefix("10.2.0.0/16"), ..peer }).unwrap();
        pair.devices[0].remove_peer(stranger).unwrap();
    }
    thread::sleep(Duration::from_millis(200));
    for stream in streams {
        let report = stream.stop();
        assert!(report.received > 100, "{report:?}");
        assert_eq!(report.lost, 0, "{report:?}");
    }
}

pub(crate) fn a_removed_peer_receives_nothing_more(mut pair: Pair) {
    assert!(passes(&pair));
    let other = pair.public(1);
    pair.devices[0].remove_peer(other).unwrap();
    assert!(is_silent(&pair));
    let peer = pair.peer(1);
    pair.devices[0].add_peer(other, &peer).unwrap();
    assert!(passes(&pair));
}

pub(crate) fn sessions_need_the_same_preshared_key_on_both_sides(mut pair: Pair) {
    let keys = [1, 2].map(|byte| PresharedKey::from_bytes(&[byte; 32]).unwrap());
    let set = |pair: &mut Pair, index: usize, key: Option<&PresharedKey>| {
        let other = pair.public(1 - index);
        pair.devices[index].set_preshared_key(other, key).unwrap();
    };
    set(&mut pair, 0, Some(&keys[0]));
    set(&mut pair, 1, Some(&keys[1]));
    assert!(is_silent(&pair));
    set(&mut pair, 1, Some(&keys[0]));
    assert!(passes(&pair));
    // From here on every session needs a handshake of its own: the current one would hide the rest.
    for key in [Some(&keys[1]), None] {
        for index in [0, 1] {
            let other = pair.public(1 - index);
            pair.devices[index].remove_peer(other).unwrap();
        }
        pair.introduce();
        set(&mut pair, 0, key);
        set(&mut pair, 1, key);
        assert!(passes(&pair));
    }
}

pub(crate) fn another_preshared_key_leaves_the_session_as_it_is(mut pair: Pair) {
    assert!(passes(&pair));
    let key = PresharedKey::from_bytes(&[7; 32]).unwrap();
    let other = pair.public(1);
    pair.devices[0].set_preshared_key(other, Some(&key)).unwrap();
    // The other side does not know the key, so no new session can be made: what passes passes by the old one.
    assert!(passes(&pair));
}

/// Who has recorded handshake initiations of device 1 and sends them to device 0, from another port.
struct Replayer {
    socket: UdpSocket,
    initiator: Box<Initiator>,
    next: u32,
}

impl Replayer {
    /// Device 1 itself is silent from now on.
    fn new(pair: &mut Pair) -> Self {
        let (socket, first) = (pair.socket(), pair.public(0));
        pair.devices[1].remove_peer(first).unwrap();
        socket.set_read_timeout(Some(SESSION_TIMEOUT)).unwrap();
        Self { socket, initiator: Box::new(pair.initiator()), next: 1 }
    }

    /// An initiation that is newer than all others.
    fn record(&mut self) -> Recorded {
        // Timestamps are cut to 17 ms.
        thread::sleep(Duration::from_millis(50));
        let ephemeral = PrivateKey::generate().unwrap();
        let index = self.next;
        self.next += 1;
        Recorded { index, message: self.initiator.begin(index, &ephemeral, SystemTime::now()).unwrap() }
    }

    fn send(&self, recorded: &Recorded) {
        // The kernel takes 50 a second of each peer (`INITIATIONS_PER_SECOND` in `drivers/net/wireguard`).
        thread::sleep(Duration::from_millis(50));
        self.socket.send(&recorded.message).unwrap();
    }

    /// Index of the initiation that device 0 responds to next.
    fn response(&self) -> u32 {
        let mut reply = [0; 256];
        loop {
            let len = self.socket.recv(&mut reply).unwrap();
            if len == 92 && reply[0] == 2 {
                return u32::from_le_bytes(reply[8..12].try_into().unwrap());
            }
        }
    }

    fn is_accepted(&mut self, recorded: &Recorded) -> bool {
        self.send(recorded);
        self.response() == recorded.index
    }

    /// Whether only a newer one is answered, which is sent next.
    fn is_refused(&mut self, recorded: &Recorded) -> bool {
        self.send(recorded);
        let newer = self.record();
        self.is_accepted(&newer)
    }
}

/// A handshake initiation that somebody has seen.
struct Recorded {
    index: u32,
    message: [u8; 148],
}

pub(crate) fn another_preshared_key_leaves_the_memory_of_handshakes_as_it_is(mut pair: Pair) {
    let (mut replayer, other) = (Replayer::new(&mut pair), pair.public(1));
    let recorded = replayer.record();
    assert!(replayer.is_accepted(&recorded) && replayer.is_refused(&recorded));
    let key = PresharedKey::from_bytes(&[7; 32]).unwrap();
    pair.devices[0].set_preshared_key(other, Some(&key)).unwrap();
    assert!(replayer.is_refused(&recorded), "one from before");
}

/// Which is why the daemon adds a peer to the kernel's device with the time that it has told (the next test).
pub(crate) fn a_peer_that_is_added_again_is_forgotten_by_the_kernel_only(mut pair: Pair) {
    let (mut replayer, other, peer) = (Replayer::new(&mut pair), pair.public(1), pair.peer(1));
    let recorded = [replayer.record(), replayer.record()];
    assert!(replayer.is_accepted(&recorded[1]) && replayer.is_refused(&recorded[0]));
    pair.devices[0].remove_peer(other).unwrap();
    pair.devices[0].add_peer(other, &peer).unwrap();
    if pair.kind(0) == Kind::Kernel {
        for one in &recorded {
            assert!(replayer.is_accepted(one), "each, in the order in which they were made");
        }
    }
    for one in &recorded {
        assert!(replayer.is_refused(one), "by then at the latest: the peer has begun a handshake");
    }
}

pub(crate) fn a_peer_that_is_added_again_with_its_time_is_remembered(mut pair: Pair) {
    let (mut replayer, other, peer) = (Replayer::new(&mut pair), pair.public(1), pair.peer(1));
    let recorded = [replayer.record(), replayer.record()];
    assert!(replayer.is_accepted(&recorded[0]));
    let until = SystemTime::now() + Duration::from_millis(50);
    pair.devices[0].remove_peer(other).unwrap();
    let own = pair.private(0);
    let former = Former { own: &own, port: PORT, until };
    let device = &mut pair.devices[0];
    let add = || add_again(device.as_mut(), (other, &peer), None, former).unwrap();
    assert!(pair.lab.nodes()[0].run(add).unwrap(), "the kernel has answered");
    let shown = seen(&mut pair, 0).config;
    assert_eq!((shown.endpoint, shown.allowed_ips), (peer.endpoint, peer.allowed_ips));
    for one in &recorded {
        assert!(replayer.is_refused(one), "from before");
    }
    // The peer itself is not kept out.
    let former = pair.peer(0);
    let first = pair.public(0);
    pair.devices[1].add_peer(first, &former).unwrap();
    pair.devices[1].initiate_handshake(first).unwrap();
    assert!(passes(&pair));
}

pub(crate) fn a_device_that_is_gone_says_so(mut pair: Pair) {
    pair.devices[0].state().unwrap();
    pair.lab.nodes()[0].ip(&format!("link del {}\n", link())).unwrap();
    let since = Instant::now();
    loop {
        match pair.devices[0].state() {
            Err(error) if error.is_gone() => break,
            other => assert!(since.elapsed() < SESSION_TIMEOUT, "{other:?}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}
