//! Kernel and engine nodes in one mesh.

use lab::{Flow, IpVersion, Protocol};

use super::{KERNEL, USERSPACE, mesh, none_lost, pods, rotate, streams};

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn kernel_and_engine_nodes_lose_nothing_while_each_of_them_rotates() {
    let mesh = mesh(&[&KERNEL, &USERSPACE, &[]]);
    let ends = pods(&mesh);
    let capture = mesh.capture().unwrap();
    for (n, from) in ends.iter().enumerate() {
        for (_, to) in ends.iter().enumerate().filter(|(m, _)| *m != n) {
            for version in [IpVersion::V4, IpVersion::V6] {
                for protocol in Protocol::ALL {
                    Flow::new(from, to, version, protocol).patience(super::WITHIN).must_pass();
                }
            }
        }
    }
    let streams = streams(&ends, 50);
    for node in ["n1", "n2", "n3"] {
        rotate(&mesh, node);
    }
    none_lost(streams);
    capture.report().assert_sealed();
}
