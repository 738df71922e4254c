//! Selection of the backend, also where the kernel has no WireGuard.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::require::{self, Need};
use lab::{ApiKind, Lab};

fn kernel_has_wireguard(lab: &Lab) -> bool {
    let node = lab.node("n2").unwrap();
    node.ip("link add probe type wireguard\nlink del probe\n").is_ok()
}

/// Agrees with `ip link add type wireguard`.
#[test]
fn auto_selects_what_is_available_and_kernel_fails_where_it_is_missing() {
    require::all(&[Need::Namespaces, Need::Tun, Need::Nftables]);
    let lab = Lab::builder().nodes(2).api(ApiKind::Fake).build().unwrap();
    let kernel = kernel_has_wireguard(&lab);
    let mut mesh = Mesh::idle(lab);
    mesh.start_with("n1", &["--backend", "auto"]).unwrap();
    let backend = if kernel { "kernel" } else { "userspace" };
    mesh.wait("n1", "a backend", Duration::from_secs(10), |status| {
        status["backend"] == backend && status["slots"]["a"]["backend"] == backend
    });
    let reason = mesh.status("n1").unwrap()["backend_reason"].as_str().unwrap().to_owned();
    assert!(
        reason.starts_with(if kernel { "the kernel has WireGuard" } else { "the kernel's can't be used: " }),
        "{reason}"
    );
    let told = || {
        let events = mesh.api().core_events().unwrap();
        let message = format!("{backend} selected: {reason}");
        events
            .iter()
            .any(|event| event["reason"] == "BackendSelected" && event["message"] == message.as_str())
    };
    let since = Instant::now();
    while !told() {
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", mesh.daemon("n1").log());
        std::thread::sleep(Duration::from_millis(50));
    }

    mesh.start_with("n2", &["--backend", "kernel"]).unwrap();
    if kernel {
        mesh.wait("n2", "a backend", Duration::from_secs(10), |status| status["backend"] == "kernel");
    } else {
        let status = mesh.daemon("n2").wait(Duration::from_secs(10)).unwrap();
        let log = mesh.daemon("n2").log().unwrap();
        assert!(!status.success(), "{log}");
        assert!(log.contains("option backend: kernel") && log.contains("auto or userspace"), "{log}");
    }
}
