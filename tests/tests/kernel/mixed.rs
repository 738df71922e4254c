//! Kernel and engine nodes in one mesh.

use lab::{Flow, IpVersion, Protocol};

use super::{KERNEL, USERSPACE, mesh, none_lost, pods, rotate, streams};

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn kernel_and_engine_nodes_lose_nothing_while_one_of_each_rotates() {
    let mesh = mesh(&[&KERNEL, &USERSPACE, &[]]);
    let ends = pods(&mesh);
    let capture = mesh.capture().unwrap();
    for (n, from) in ends.iter().enumerate() {
        for (_, to) in ends.iter().enumerate().filter(|(m, _)| *m != n) {
            for (version, protocol) in [(IpVersion::V4, Protocol::Udp), (IpVersion::V6, Protocol::Tcp)] {
                Flow::new(from, to, version, protocol).timeout(super::WITHIN).must_pass();
            }
        }
    }
    // Every ordered pair, slowly, since two engines are emulated as well.
    let streams = streams(&ends, 20);
    for node in ["n1", "n2"] {
        rotate(&mesh, node);
    }
    none_lost(streams);
    capture.report().assert_sealed();
}
