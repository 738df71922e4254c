//! No secret leaves the daemon: not in logs of any level, not in API objects, not in files other than the key file.

use lab::mesh::Mesh;
use lab::needle::{Secret, in_files};
use lab::{Lab, Signal};

use super::destroyed::private_keys;
use super::{QUICK, keys, rotate, wait_whole};

#[test]
fn no_secret_is_in_logs_files_or_api_objects() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    let traced = [&QUICK[..], &["--log-level", "trace"]].concat();
    for node in mesh.node_names() {
        mesh.start_with(&node, &traced).unwrap();
    }
    mesh.wait_formed();
    let mut secrets = private_keys(&mesh, "n1");
    assert!(rotate(&mesh, "n1", &[]).0);
    wait_whole(&mesh);
    secrets.extend(private_keys(&mesh, "n1"));
    assert_eq!(secrets.len(), 4);
    let publics = keys(&mesh, "n1");
    let objects =
        mesh.node_names().iter().map(|node| mesh.api().node(node).unwrap().to_string()).collect::<String>()
            + &serde_json::Value::from(mesh.api().events().unwrap()).to_string();
    // Restarted, so that the log covers reading the key file.
    mesh.stop("n1", Signal::TERM).unwrap();
    mesh.start_with("n1", &traced).unwrap();
    wait_whole(&mesh);
    let log = mesh.daemon("n1").log().unwrap() + &mesh.daemon("n2").log().unwrap();
    let count = |part: &str| log.matches(part).count();
    assert!(
        count("\"level\":\"TRACE\"") > 100 && count("\"level\":\"DEBUG\"") > 10,
        "the log has little detail"
    );
    let status = mesh.status("n1").unwrap().to_string();
    for public in &publics {
        // Positive control: the same search finds public keys.
        let public = Secret::from_base64(public).unwrap();
        assert!(
            public.count(objects.as_bytes()) + public.count(log.as_bytes()) > 0,
            "the search finds nothing"
        );
    }
    for secret in &secrets {
        assert_eq!(secret.count(log.as_bytes()), 0, "a private key is in the log");
        assert_eq!(secret.count(objects.as_bytes()), 0, "a private key is at the API server");
        assert_eq!(secret.count(status.as_bytes()), 0, "a private key is in the status");
        let found = mesh.node("n1").unwrap().run(|| {
            in_files(
                &["/run/meshd", "/run/wireguard", "/var/lib/meshd", "/etc/cni"].map(std::path::Path::new),
                secret,
            )
        });
        let found = found.unwrap().unwrap();
        assert!(found.iter().all(|path| path.ends_with("keys/keys.json")), "{found:?}");
    }
}
