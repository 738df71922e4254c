//! One bare interface per process, configured by the `wg` of Debian.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::signal::Signal;
use tunnel::{Interface, InterfaceConfig, TunnelError};

use super::lab::{Family, Lab, bare_program, eventually, key_file, start_bare, succeed, unique};

fn socket(device: &str) -> std::path::PathBuf {
    tunnel::uapi_dir().join(format!("{device}.sock"))
}

#[test]
fn wg_configures_two_of_them_and_they_talk() {
    let lab = Lab::new();
    let (device_a, device_b) = (unique("tw"), unique("tw"));
    let (mut process_a, mut process_b) =
        (start_bare(&lab.a, "", &device_a), start_bare(&lab.b, "", &device_b));
    let ((file_a, key_a), (file_b, key_b)) = (key_file(), key_file());
    let shared = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(shared.path(), succeed(std::process::Command::new("wg").arg("genpsk"))).unwrap();
    for (host, device, file, peer, other) in
        [(&lab.a, &device_a, &file_a, key_b, &lab.b), (&lab.b, &device_b, &file_b, key_a, &lab.a)]
    {
        host.wg(&format!(
            "set {device} private-key {} listen-port 51840 peer {peer} preshared-key {} endpoint {} \
             persistent-keepalive 25 allowed-ips {}/32,{}/128",
            file.path().display(),
            shared.path().display(),
            other.endpoint(Family::V6, 51840),
            other.inner(Family::V4),
            other.inner(Family::V6),
        ));
        host.configure(device);
    }
    assert!(lab.a.reaches(&lab.b.inner(Family::V4), 1000));
    assert!(lab.b.reaches(&lab.a.inner(Family::V6), 1000));
    let shown = lab.a.wg(&format!("show {device_a}"));
    for expected in [
        format!("public key: {key_a}"),
        "listening port: 51840".to_owned(),
        format!("peer: {key_b}"),
        "preshared key: (hidden)".to_owned(),
        "endpoint: [2001:db8::2]:51840".to_owned(),
        "persistent keepalive: every 25 seconds".to_owned(),
    ] {
        assert!(shown.contains(&expected), "{expected} in {shown}");
    }
    let handshake = lab.a.wg(&format!("show {device_a} latest-handshakes"));
    let at: u64 = handshake.split_whitespace().nth(1).unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((now - 60..=now).contains(&at), "a point in time, not an age: {at}");
    for (process, device) in [(&mut process_a, &device_a), (&mut process_b, &device_b)] {
        process.signal(if *device == device_a { Signal::SIGTERM } else { Signal::SIGINT });
        assert!(process.ends_well());
        assert!(!socket(device).exists());
    }
    assert!(!lab.a.ip("link show").contains(&device_a));
}

#[test]
fn wg_sees_what_it_has_set() {
    let lab = Lab::new();
    let device = unique("tw");
    let _process = start_bare(&lab.a, "", &device);
    let ((file, own), (_, one), (_, two)) = (key_file(), key_file(), key_file());
    let port = |port: u16| {
        format!("set {device} private-key {} listen-port {port} fwmark 0x2a", file.path().display())
    };
    lab.a.wg(&port(51841));
    lab.a.wg(&format!("set {device} peer {one} allowed-ips 10.1.0.0/16,fd01::/64 endpoint 192.0.2.9:1"));
    lab.a.wg(&format!("set {device} peer {two} allowed-ips 10.2.0.5/16 persistent-keepalive 7"));
    let dump = |host: &super::lab::Host| -> Vec<String> {
        let text = host.wg(&format!("show {device} dump"));
        let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let line = |key, endpoint: &str, allowed: &str, keepalive: &str| {
        format!("{key}\t(none)\t{endpoint}\t{allowed}\t0\t0\t0\t{keepalive}")
    };
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let expected = sorted(vec![
        line(one, "192.0.2.9:1", "10.1.0.0/16,fd01::/64", "off"),
        line(two, "(none)", "10.2.0.0/16", "7"),
    ]);
    assert_eq!(dump(&lab.a), expected);
    assert_eq!(lab.a.wg(&format!("show {device} fwmark")).trim(), "0x2a");
    assert_eq!(lab.a.wg(&format!("show {device} listen-port")).trim(), "51841");
    assert_eq!(lab.a.wg(&format!("show {device} public-key")).trim(), own.to_string());

    // A prefix moves, a list is replaced, an update of a stranger and our own key do nothing.
    lab.a.wg(&format!("set {device} peer {two} allowed-ips 10.1.0.0/16 persistent-keepalive off"));
    lab.a.wg(&format!("set {device} peer {own} allowed-ips 10.99.0.0/16"));
    let expected =
        sorted(vec![line(one, "192.0.2.9:1", "fd01::/64", "off"), line(two, "(none)", "10.1.0.0/16", "off")]);
    assert_eq!(dump(&lab.a), expected);

    let config = lab.a.wg(&format!("showconf {device}"));
    let file_of_config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file_of_config.path(), config.replace("10.1.0.0/16", "10.3.0.0/16")).unwrap();
    lab.a.wg(&format!("syncconf {device} {}", file_of_config.path().display()));
    assert!(dump(&lab.a).concat().contains("10.3.0.0/16"));
    std::fs::write(file_of_config.path(), "[Interface]\nListenPort = 51842\n").unwrap();
    lab.a.wg(&format!("setconf {device} {}", file_of_config.path().display()));
    assert_eq!(dump(&lab.a), [""; 0], "setconf replaces all peers");
    assert_eq!(lab.a.wg(&format!("show {device} private-key")).trim(), "(none)");

    lab.a.wg(&port(51841));
    lab.a.wg(&format!("set {device} peer {one} allowed-ips 10.1.0.0/16"));
    lab.a.wg(&format!("set {device} peer {one} remove"));
    assert_eq!(dump(&lab.a), [""; 0]);

    let _taken = lab.a.enter(|| std::net::UdpSocket::bind("0.0.0.0:51850").unwrap());
    let refused = lab.a.command("wg", &format!("set {device} listen-port 51850")).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Address already in use"), "{refused:?}");
}

#[test]
fn it_ends_when_its_socket_or_its_device_is_taken_away() {
    let lab = Lab::new();
    let device = unique("tw");
    let mut process = start_bare(&lab.a, "", &device);
    std::fs::remove_file(socket(&device)).unwrap();
    assert!(process.ends_well());
    let mut process = start_bare(&lab.a, "", &device);
    lab.a.ip(&format!("link delete {device}"));
    assert!(process.ends_well());
    assert!(!socket(&device).exists());
}

#[test]
fn in_the_background_it_answers_as_soon_as_the_command_returns() {
    let lab = Lab::new();
    let device = unique("tw");
    let program = bare_program();
    let start =
        || lab.a.command(program.to_str().unwrap(), &format!("--background {device}")).output().unwrap();
    assert!(start().status.success());
    lab.a.wg(&format!("show {device}"));
    let second = start();
    assert!(!second.status.success(), "the name is taken");
    lab.a.wg(&format!("show {device}"));
    std::fs::remove_file(socket(&device)).unwrap();
    eventually("it ends", || (!lab.a.ip("link show").contains(&device)).then_some(()));
}

#[test]
fn a_killed_process_leaves_a_persistent_device_that_lets_nothing_out() {
    let lab = Lab::new();
    let device = unique("tw");
    // Whatever leaves the tunnel's route takes the cable, where host b answers for the tunnel's address as well.
    lab.a.ip("route add default via 192.0.2.2");
    lab.b.ip(&format!("address add {}/32 dev lo", lab.b.inner(Family::V4)));
    let process = start_bare(&lab.a, "--persistent", &device);
    lab.a.configure(&device);
    lab.a.ip(&format!("route add 10.44.0.0/16 dev {device}"));
    process.signal(Signal::SIGKILL);
    drop(process);
    assert!(lab.a.ip(&format!("address show dev {device}")).contains(&lab.a.inner(Family::V4)));
    assert!(lab.a.ip("route show 10.44.0.0/16").contains(&device));
    let inner = lab.b.inner(Family::V4);
    assert!(!lab.a.reaches(&inner, 56), "dropped, not sent in the clear");
    assert!(socket(&device).exists(), "it was killed");
    {
        let _again = start_bare(&lab.a, "--persistent", &device);
        assert!(
            lab.a.ip(&format!("address show dev {device}")).contains(&lab.a.inner(Family::V4)),
            "attached, not new"
        );
    }
    // Positive control: with the device gone the same packets do take the cable.
    lab.a.ip(&format!("link delete {device}"));
    assert!(lab.a.reaches(&inner, 56));
    std::fs::remove_file(socket(&device)).unwrap();
}

#[test]
fn the_socket_is_for_root_and_for_one_process() {
    let lab = Lab::new();
    let dir = tempfile::tempdir().unwrap();
    let name = unique("tw");
    let config = InterfaceConfig { uapi_dir: Some(dir.path().join("made")), ..InterfaceConfig::new(&name) };
    let path = dir.path().join("made").join(format!("{name}.sock"));
    let interface = lab.a.create(&config);
    let file = std::fs::metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert_eq!(interface.uapi_socket(), Some(&path as &Path));

    let other = lab.b.enter(|| Interface::create(&config));
    assert!(matches!(other, Err(TunnelError::UapiInUse { .. })), "{other:?}");
    assert!(!lab.b.ip("link show").contains(&name), "what was made before the failure is undone");
    drop(interface);
    assert!(!path.exists());

    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "what a dead process leaves");
    let interface = lab.a.create(&config);
    assert!(interface.uapi_socket_is_ours());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "not ours").unwrap();
    assert!(!interface.uapi_socket_is_ours());
    drop(interface);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not ours");
    let refused = lab.a.enter(|| Interface::create(&config));
    assert!(matches!(refused, Err(TunnelError::Uapi { .. })), "{refused:?}");
}

#[test]
fn a_client_that_talks_nonsense_or_too_much_is_refused_and_others_are_served() {
    use std::io::{Read as _, Write as _};
    let lab = Lab::new();
    let dir = tempfile::tempdir().unwrap();
    let config = InterfaceConfig { uapi_dir: Some(dir.path().into()), ..InterfaceConfig::new(unique("tw")) };
    let interface = lab.a.create(&config);
    let ask = |request: &[u8]| {
        let mut client = std::os::unix::net::UnixStream::connect(interface.uapi_socket().unwrap()).unwrap();
        // The answer may come, and the end with it, before everything is written.
        let _ = client.write_all(request);
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut reply = String::new();
        let _ = client.read_to_string(&mut reply);
        reply
    };
    assert_eq!(ask(b"nonsense\n\n"), "errno=-22\n\n");
    assert_eq!(ask(b"set=1\nlisten_port=x\n\n"), "errno=-22\n\n");
    assert_eq!(ask(&vec![b'x'; 100_000]), "errno=-90\n\n");
    assert_eq!(ask(b"get=1\n"), "", "the end of the request never came");
    let two = ask(b"set=1\nfwmark=7\n\nget=1\n\n");
    assert!(
        two.starts_with("errno=0\n\n") && two.contains("fwmark=7\n") && two.ends_with("errno=0\n\n"),
        "{two}"
    );
}
