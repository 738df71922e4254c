//! How a backend is selected, and how a node changes from one to the other.

use std::time::Duration;

use lab::mesh::Mesh;
use lab::{Flow, IpVersion, Lab, Protocol, Signal};
use serde_json::Value;

use super::{KERNEL, QUICK, USERSPACE, WITHIN, formed, mesh, none_lost, pods, shell, streams, wait_said};

fn backends(status: &Value) -> Vec<&str> {
    ["a", "b"].iter().filter_map(|slot| status["slots"][slot]["backend"].as_str()).collect()
}

fn kinds(mesh: &Mesh, node: &str) -> String {
    let script = "for link in mesh-a mesh-b meshd-probe; do ip -d link show $link 2>/dev/null | grep -oE 'wireguard|tun ' | head -1; done";
    shell(mesh.node(node).unwrap(), script).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn the_kernel_is_selected_where_available_and_the_reason_is_reported() {
    let mesh = mesh(&[&[], &USERSPACE]);
    let told = [("n1", "kernel", "the kernel has WireGuard"), ("n2", "userspace", "option backend")];
    for ((node, backend, reason), kind) in told.into_iter().zip(["wireguard wireguard", "tun tun"]) {
        let status = mesh.status(node).unwrap();
        assert_eq!((&status["backend"], &status["backend_reason"]), (&backend.into(), &reason.into()));
        assert_eq!(backends(&status), [backend; 2]);
        assert_eq!(kinds(&mesh, node), kind);
        let page = mesh.node(node).unwrap().net().run(lab::metrics).unwrap().unwrap();
        assert!(
            page.contains(&format!("meshd_backend_info{{slot=\"a\",backend=\"{backend}\"}} 1")),
            "{page}"
        );
        let message = format!("{backend} selected: {reason}");
        let event = || {
            let events = mesh.api().core_events().unwrap();
            events.iter().any(|event| {
                event["reason"] == "BackendSelected"
                    && event["message"] == message.as_str()
                    && event["involvedObject"]["name"] == node
            })
        };
        let since = std::time::Instant::now();
        while !event() {
            assert!(since.elapsed() < WITHIN, "{:?}", mesh.api().core_events());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn threaded_napi_is_enabled_where_configured_and_possible() {
    let mut mesh = Mesh::idle(Lab::builder().nodes(2).build().unwrap());
    // As in an unprivileged container. Packets pass without threaded NAPI too.
    shell(mesh.node("n2").unwrap(), "mount -o remount,ro,bind /sys");
    for node in ["n1", "n2"] {
        let flags = [QUICK.as_slice(), &KERNEL, &["--threaded-napi", "true"]].concat();
        mesh.start_with(node, &flags).unwrap();
    }
    formed(&mesh);
    let files = "cat /sys/class/net/mesh-a/threaded /sys/class/net/mesh-b/threaded";
    wait_said(mesh.node("n1").unwrap(), files, |said| said == "1\n1\n");
    assert_eq!(shell(mesh.node("n2").unwrap(), files), "0\n0\n");
    assert!(mesh.daemon("n2").log().unwrap().contains("threaded-napi has no effect"));
    let [one, two] = pods(&mesh).try_into().unwrap();
    Flow::new(&one, &two, IpVersion::V4, Protocol::Udp).must_pass();
}

/// From the kernel to the engine, as when the option is changed, without a gap: the kernel's devices keep working until
/// their slots have new keys.
#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn a_node_changes_from_the_kernel_to_the_engine_without_loss() {
    let mut mesh = mesh(&[&KERNEL, &KERNEL]);
    let ends = pods(&mesh);
    let capture = mesh.capture().unwrap();
    let streams = streams(&ends, 100);
    mesh.stop("n1", Signal::TERM).unwrap();
    mesh.start_with("n1", &[QUICK.as_slice(), &USERSPACE].concat()).unwrap();
    let both = |backend| {
        move |status: &Value| backends(status) == [backend; 2] && status["rotation"]["step"] == "steady"
    };
    mesh.wait("n1", "both slots have engines", WITHIN, both("userspace"));
    formed(&mesh);
    assert_eq!(kinds(&mesh, "n1"), "tun tun");
    none_lost(streams);

    // And back, which cannot be done without a gap, since the engines end with the daemon.
    mesh.stop("n1", Signal::TERM).unwrap();
    mesh.start_with("n1", &QUICK).unwrap();
    mesh.wait("n1", "both slots are the kernel's", WITHIN, both("kernel"));
    formed(&mesh);
    assert_eq!(kinds(&mesh, "n1"), "wireguard wireguard");
    let streams = super::streams(&ends, 100);
    std::thread::sleep(Duration::from_secs(3));
    none_lost(streams);
    capture.report().assert_sealed();
}
