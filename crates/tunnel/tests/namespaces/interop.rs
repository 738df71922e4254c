//! Against other implementations, one in Go and one in Rust: whichever side initiates, over both families, with a preshared
//! key, under load, and while things change.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use keyring::{PresharedKey, PrivateKey};
use tunnel::{Interface, InterfaceConfig};
use wireguard::{PeerChange, PeerOp, PresharedKeyChange};

use super::lab::{Family, Host, Lab, Process, eventually, key_file, unique};

/// The other implementation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Other {
    WireguardGo,
    GotaTun,
}

pub(crate) const OTHERS: [Other; 2] = [Other::WireguardGo, Other::GotaTun];

impl Other {
    /// How it is started in the foreground.
    fn command(self, host: &Host, device: &str) -> std::process::Command {
        match self {
            Self::WireguardGo => host.command("wireguard-go", &format!("-f {device}")),
            Self::GotaTun => {
                let [fast, quick] = ["gotatun-cli", "quick/gotatun-cli"].map(|name| wireguards().join(name));
                let program = if fast.exists() { fast } else { quick };
                assert!(program.exists(), "{} is missing: scripts/setup.sh test", program.display());
                host.command(program.to_str().unwrap(), &format!("-f --disable-drop-privileges {device}"))
            }
        }
    }
}

/// Where `scripts/wireguards.sh` puts other implementations.
fn wireguards() -> PathBuf {
    if let Some(directory) = std::env::var_os("WIREGUARDS") {
        return directory.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    cache.join("meshd/wireguards-1")
}

/// Whose endpoint is known, and who therefore sends the first handshake.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum First {
    Ours,
    Theirs,
}

pub(crate) struct Pair {
    pub(crate) lab: Lab,
    ours: Interface,
    _theirs: Process,
    device: String,
}

const PORT: u16 = 51840;
const PSK: [u8; 32] = [0x5a; 32];

/// Our interface on host a and another implementation on host b.
pub(crate) fn pair(other: Other, first: First, outer: Family) -> Pair {
    pair_with(other, first, outer, InterfaceConfig::new(unique("tw")))
}

/// Starts the other implementation as `device`. On a machine under load gotatun was seen not to come up once; what is
/// tested here is ours, so it gets another try.
fn start(other: Other, host: &Host, device: &str) -> Process {
    for _ in 0..3 {
        let mut command = other.command(host, device);
        let process = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if host.command("wg", &format!("show {device}")).output().unwrap().status.success() {
                return process;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{other:?} did not come up within 15 s, starting it again");
    }
    panic!("{other:?} did not come up three times");
}

fn pair_with(other: Other, first: First, outer: Family, config: InterfaceConfig) -> Pair {
    let lab = Lab::new();
    let device = unique("tg");
    let theirs = start(other, &lab.b, &device);
    let ours = lab.a.create(&InterfaceConfig { listen_port: PORT, ..config });
    let private = PrivateKey::generate().unwrap();
    let (file, their_key) = key_file();
    let shared = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(shared.path(), succeed_base64(&PSK)).unwrap();
    let mut theirs_set = format!(
        "set {device} private-key {} listen-port {PORT} peer {} preshared-key {} allowed-ips {}/32,{}/128",
        file.path().display(),
        private.public(),
        shared.path().display(),
        lab.a.inner(Family::V4),
        lab.a.inner(Family::V6),
    );
    if first == First::Theirs {
        theirs_set += " endpoint ";
        theirs_set += &lab.a.endpoint(outer, PORT);
    }
    lab.b.wg(&theirs_set);
    ours.set_private_key(private);
    let endpoint = (first == First::Ours).then(|| lab.b.endpoint(outer, PORT).parse().unwrap());
    let settings = PeerChange {
        endpoint,
        allow: [Family::V4, Family::V6].map(|family| lab.b.inner(family).parse().unwrap()).into(),
        ..Default::default()
    };
    let preshared_key = Some(PresharedKeyChange::Set(PresharedKey::from_bytes(&PSK).unwrap()));
    ours.apply(vec![PeerOp::Add { peer: their_key, change: settings, preshared_key }]).unwrap();
    lab.a.configure(ours.name());
    lab.b.configure(&device);
    Pair { lab, ours, _theirs: theirs, device }
}

fn succeed_base64(bytes: &[u8; 32]) -> String {
    // A public key of the same bytes has the same text; wg takes it for any kind of key.
    keyring::PublicKey::from_bytes(bytes).unwrap().to_base64()
}

fn talks(from: &Host, to: &Host) {
    for family in [Family::V4, Family::V6] {
        assert!(from.reaches(&to.inner(family), 56), "{family:?}");
        assert!(from.reaches(&to.inner(family), 1_371), "{family:?}: no multiple of 16");
    }
}

fn both_ways(other: Other, first: First) {
    for outer in [Family::V4, Family::V6] {
        let pair = pair(other, first, outer);
        let (begins, answers) = match first {
            First::Ours => (&pair.lab.a, &pair.lab.b),
            First::Theirs => (&pair.lab.b, &pair.lab.a),
        };
        talks(begins, answers);
        talks(answers, begins);
    }
}

#[test]
fn we_begin_with_wireguard_go() {
    both_ways(Other::WireguardGo, First::Ours);
}

#[test]
fn we_begin_with_gotatun() {
    both_ways(Other::GotaTun, First::Ours);
}

#[test]
fn wireguard_go_begins() {
    both_ways(Other::WireguardGo, First::Theirs);
}

#[test]
fn gotatun_begins() {
    both_ways(Other::GotaTun, First::Theirs);
}

#[test]
fn both_sides_agree_on_what_happened() {
    let pair = pair(Other::WireguardGo, First::Ours, Family::V4);
    talks(&pair.lab.a, &pair.lab.b);
    let shown = pair.lab.b.wg(&format!("show {} transfer", pair.device));
    let [_, received, sent] = shown.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{shown}") };
    let state = pair.ours.state();
    let ours = state.peers.values().next().unwrap();
    assert_eq!((ours.sent.to_string(), ours.received.to_string()), (received.to_owned(), sent.to_owned()));
}

#[test]
fn under_load_they_come_back_with_our_cookie() {
    for other in OTHERS {
        let config = InterfaceConfig { handshakes_per_second: 0, ..InterfaceConfig::new(unique("tw")) };
        let pair = pair_with(other, First::Theirs, Family::V4, config);
        let inner = pair.lab.a.inner(Family::V4);
        eventually("the handshake with a cookie", || pair.lab.b.reaches(&inner, 56).then_some(()));
        let counters = pair.ours.counters();
        assert!(counters.cookie_replies > 0, "{other:?} was never asked for a cookie: {counters:?}");
    }
}

#[test]
fn a_new_session_while_packets_flow_loses_none() {
    for other in OTHERS {
        let pair = pair(other, First::Ours, Family::V4);
        talks(&pair.lab.a, &pair.lab.b);
        let their_key = *pair.ours.state().peers.keys().next().unwrap();
        let handshake = || pair.ours.state().peers[&their_key].last_handshake;
        std::thread::scope(|scope| {
            let pings = scope.spawn(|| pair.lab.a.answers_from(&pair.lab.b.inner(Family::V4), 300));
            for _ in 0..3 {
                let before = handshake();
                // No oftener than a responder may refuse as a flood.
                std::thread::sleep(Duration::from_millis(600));
                assert!(pair.ours.initiate_handshake(&their_key));
                eventually("another handshake", || (handshake() > before).then_some(()));
            }
            assert_eq!(pings.join().unwrap(), 300, "{other:?}");
        });
    }
}

#[test]
fn they_follow_us_to_another_port_and_we_them_to_another_address() {
    for other in OTHERS {
        let pair = pair(other, First::Ours, Family::V4);
        let (a, b) = (&pair.lab.a, &pair.lab.b);
        talks(a, b);
        pair.ours.set_listen_port(51999).unwrap();
        talks(a, b);
        let endpoints = b.wg(&format!("show {} endpoints", pair.device));
        assert!(endpoints.contains(":51999"), "{other:?}: {endpoints}");
        // The other end moves: what it sends comes from another address and is followed.
        let cable = b.ip("-br link show type veth");
        let cable = cable.split(['@', ' ']).next().unwrap();
        b.ip(&format!("address delete 192.0.2.2/24 dev {cable}"));
        b.ip(&format!("address add 192.0.2.77/24 dev {cable}"));
        eventually("it is followed", || b.reaches(&a.inner(Family::V4), 56).then_some(()));
        let state = pair.ours.state();
        let endpoint = state.peers.values().next().unwrap().config.endpoint.unwrap();
        assert_eq!(endpoint.ip().to_string(), "192.0.2.77", "{other:?}");
    }
}

#[test]
fn another_preshared_key_on_both_sides_holds_from_the_next_handshake_on() {
    let pair = pair(Other::WireguardGo, First::Ours, Family::V4);
    talks(&pair.lab.a, &pair.lab.b);
    let their_key = *pair.ours.state().peers.keys().next().unwrap();
    let change = |byte: u8| {
        let key = PresharedKey::from_bytes(&[byte; 32]).unwrap();
        let preshared_key = Some(PresharedKeyChange::Set(key));
        let op = PeerOp::Update { peer: their_key, change: PeerChange::default(), preshared_key };
        pair.ours.apply(vec![op]).unwrap();
    };
    let before = pair.ours.state().peers[&their_key].last_handshake;
    change(0x77);
    talks(&pair.lab.a, &pair.lab.b);
    assert_eq!(pair.ours.state().peers[&their_key].last_handshake, before, "the same session");
    let shared = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(shared.path(), succeed_base64(&[0x77; 32])).unwrap();
    let own = pair.ours.state().key.unwrap();
    pair.lab.b.wg(&format!("set {} peer {own} preshared-key {}", pair.device, shared.path().display()));
    assert!(pair.ours.initiate_handshake(&their_key));
    eventually("a handshake with the new key", || {
        (pair.ours.state().peers[&their_key].last_handshake > before).then_some(())
    });
    talks(&pair.lab.a, &pair.lab.b);
}
