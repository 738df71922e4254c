//! Private keys are stored where and how the configuration says, or the daemon does not start.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use lab::mesh::Mesh;
use lab::needle::{Secret, in_files};
use lab::{Lab, Signal};

/// A node with a directory on this machine's disk.
fn node() -> (Mesh, PathBuf) {
    let mesh = Mesh::idle(Lab::builder().nodes(1).build().unwrap());
    let directory = mesh.dir().join("disk");
    std::fs::create_dir(&directory).unwrap();
    (mesh, directory)
}

/// The error of a daemon that must not start.
fn refusal(mesh: &mut Mesh, flags: &[&str]) -> String {
    mesh.start_with("n1", flags).unwrap();
    let status = mesh.daemon("n1").wait(Duration::from_secs(10)).unwrap();
    assert!(!status.success());
    let log = mesh.daemon("n1").log().unwrap();
    log.lines().last().unwrap().to_owned()
}

/// Starts a daemon and returns its public keys.
fn keys(mesh: &mut Mesh, flags: &[&str]) -> Vec<String> {
    mesh.start_with("n1", flags).unwrap();
    mesh.wait("n1", "published", Duration::from_secs(20), |status| status["api"]["published"] == true);
    let slots = mesh.status("n1").unwrap()["slots"].clone();
    ["a", "b"].map(|slot| slots[slot]["key"].as_str().unwrap().to_owned()).to_vec()
}

fn secrets(mesh: &Mesh) -> Vec<Secret> {
    let show = |link: &str| {
        let text = mesh.node("n1").unwrap().command("wg").args(["show", link, "private-key"]).run().unwrap();
        Secret::from_base64(text.trim()).unwrap()
    };
    ["mesh-a", "mesh-b"].map(show).into()
}

#[test]
fn keys_are_not_stored_on_disk_unless_configured() {
    let (mut mesh, directory) = node();
    let keys_at = directory.join("keys");
    let at = ["--key-dir", keys_at.to_str().unwrap()];
    let told = refusal(&mut mesh, &at);
    assert!(told.contains("is on a disk: expected a tmpfs"), "{told}");
    let plain = [at[0], at[1], "--key-storage", "plain-on-disk"];
    keys(&mut mesh, &plain);
    // The positive control of the search in the next test.
    for secret in secrets(&mesh) {
        assert_eq!(in_files(&[&directory], &secret).unwrap(), [keys_at.join("keys.json")]);
    }
    assert!(mesh.daemon("n1").log().unwrap().contains("stored on disk without encryption"));
}

#[test]
fn sealed_keys_survive_a_restart_and_open_only_with_their_key() {
    let (mut mesh, directory) = node();
    let sealing = directory.join("sealing-key");
    let write = |byte: u8| {
        std::fs::write(&sealing, [byte; 32]).unwrap();
        std::fs::set_permissions(&sealing, std::fs::Permissions::from_mode(0o400)).unwrap();
    };
    write(1);
    let keys_at = directory.join("keys");
    let flags = ["--key-dir", keys_at.to_str().unwrap(), "--key-storage", "sealed", "--sealing-key"];
    let from_file = [&flags[..], &[sealing.to_str().unwrap()]].concat();
    let first = keys(&mut mesh, &from_file);
    for secret in secrets(&mesh) {
        assert_eq!(in_files(&[&directory], &secret).unwrap(), Vec::<PathBuf>::new());
    }
    mesh.stop("n1", Signal::TERM).unwrap();
    // As systemd passes it.
    let from_systemd = [&flags[..], &["credential:sealing-key"]].concat();
    let credentials = [("CREDENTIALS_DIRECTORY", directory.to_str().unwrap())];
    mesh.start_in("n1", &from_systemd, &credentials).unwrap();
    mesh.wait("n1", "the same keys", Duration::from_secs(20), |status| {
        status["slots"]["a"]["key"] == first[0].as_str() && status["slots"]["b"]["key"] == first[1].as_str()
    });
    mesh.stop("n1", Signal::TERM).unwrap();
    let told = refusal(&mut mesh, &from_systemd);
    assert!(told.contains("CREDENTIALS_DIRECTORY is not set"), "{told}");
    let file = std::fs::read(keys_at.join("keys.json")).unwrap();
    std::fs::remove_file(&sealing).unwrap();
    write(2);
    let told = refusal(&mut mesh, &from_file);
    assert!(told.contains("sealed with another key"), "{told}");
    assert_eq!(std::fs::read(keys_at.join("keys.json")).unwrap(), file, "it never leads to a new identity");
}
