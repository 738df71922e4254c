//! Against the WireGuard implementation in Go: whoever begins, over both families, with a preshared key.

use std::process::Stdio;

use keyring::{PresharedKey, PrivateKey};
use tunnel::{Interface, InterfaceConfig, PeerChange, PeerSettings, PresharedKeyChange};

use super::lab::{Family, Host, Lab, Process, eventually, key_file, unique};

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

/// Our interface on host a and wireguard-go on host b.
pub(crate) fn pair(first: First, outer: Family) -> Pair {
    let lab = Lab::new();
    let device = unique("tg");
    let mut command = lab.b.command("wireguard-go", &format!("-f {device}"));
    let theirs = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    eventually("wireguard-go answers", || {
        lab.b.command("wg", &format!("show {device}")).output().unwrap().status.success().then_some(())
    });
    let ours = lab.a.create(&InterfaceConfig { listen_port: PORT, ..InterfaceConfig::new(unique("tw")) });
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
    let settings = PeerSettings {
        endpoint,
        allow: [Family::V4, Family::V6].map(|family| lab.b.inner(family).parse().unwrap()).into(),
        preshared_key: Some(PresharedKeyChange::Set(PresharedKey::from_bytes(&PSK).unwrap())),
        ..Default::default()
    };
    ours.apply(vec![PeerChange::Add { peer: their_key, settings }]).unwrap();
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

#[test]
fn we_begin() {
    for outer in [Family::V4, Family::V6] {
        let pair = pair(First::Ours, outer);
        talks(&pair.lab.a, &pair.lab.b);
        talks(&pair.lab.b, &pair.lab.a);
    }
}

#[test]
fn they_begin() {
    for outer in [Family::V4, Family::V6] {
        let pair = pair(First::Theirs, outer);
        talks(&pair.lab.b, &pair.lab.a);
        talks(&pair.lab.a, &pair.lab.b);
    }
}

#[test]
fn both_sides_agree_on_what_happened() {
    let pair = pair(First::Ours, Family::V4);
    talks(&pair.lab.a, &pair.lab.b);
    let shown = pair.lab.b.wg(&format!("show {} transfer", pair.device));
    let [_, received, sent] = shown.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{shown}") };
    let state = pair.ours.state();
    let ours = state.peers.values().next().unwrap();
    assert_eq!(
        (ours.tx_bytes.to_string(), ours.rx_bytes.to_string()),
        (received.to_owned(), sent.to_owned())
    );
}
