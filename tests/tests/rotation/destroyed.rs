//! A destroyed key is nowhere: not in files, sockets or memory.

use std::time::Duration;

use lab::mesh::Mesh;
use lab::needle::{Secret, in_files, in_memory};

use super::{quick, rotate, wait_whole};

/// The private keys in a node's key file.
pub(super) fn private_keys(mesh: &Mesh, node: &str) -> Vec<Secret> {
    let text = mesh.node(node).unwrap().read("/run/meshd/keys/keys.json").unwrap();
    let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let keys = file["keys"].as_array().unwrap();
    keys.iter().map(|key| Secret::from_base64(key.as_str().unwrap()).unwrap()).collect()
}

#[test]
fn after_a_rotation_the_old_private_keys_are_nowhere() {
    let mesh = quick(2);
    let old = private_keys(&mesh, "n1");
    let show = || mesh.node("n1").unwrap().command("sh").args(["-c", "wg show all dump"]).run().unwrap();
    // Reading them makes more copies.
    assert!(old.iter().all(|key| key.count(show().as_bytes()) > 0), "the live key is not shown by wg");
    assert!(rotate(&mesh, "n1", &[]).0);
    wait_whole(&mesh);
    // The promise is a minute after the traffic moved, which was less than a minute ago.
    std::thread::sleep(Duration::from_secs(1));
    let new = private_keys(&mesh, "n1");
    assert_eq!((old.len(), new.len()), (2, 2));
    let pid = mesh.daemon("n1").pid();
    let node = mesh.node("n1").unwrap();
    let files = |key: &Secret| {
        let folders = ["/run/meshd", "/var/lib/meshd", "/etc/cni/net.d"].map(std::path::Path::new);
        node.run(|| in_files(&folders, key)).unwrap().unwrap()
    };
    let dump = show();
    for key in &new {
        // Positive control: the same search finds a key that is in use.
        assert!(in_memory(pid, key).unwrap() > 0, "the live key is not found in memory");
        assert!(!files(key).is_empty(), "the live key is not found in its file");
        assert!(key.count(dump.as_bytes()) > 0, "the live key is not shown by wg");
    }
    for key in &old {
        assert_eq!(in_memory(pid, key).unwrap(), 0, "a destroyed key is still in memory");
        assert_eq!(files(key), Vec::<std::path::PathBuf>::new());
        assert_eq!(key.count(dump.as_bytes()), 0);
    }
}

#[test]
fn the_daemon_s_memory_is_neither_dumped_nor_swapped() {
    let mesh = quick(2);
    let pid = mesh.daemon("n1").pid();
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let limits = read("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let status = read("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    let locked: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(locked > 1000, "{locked} kB are locked");
    assert_eq!(mesh.status("n1").unwrap()["missing_protections"], serde_json::json!([]));
}
