//! An underlay that drops, delays and reorders packets.

use lab::{IpVersion, Stream};

use super::{KERNEL, USERSPACE, mesh, pods, rotate, shell};

/// Of each node's packets 5 % are lost and the rest are delayed by 100 ms, some of them reordered.
const NETEM: &str = "tc qdisc add dev eth0 root netem delay 100ms 10ms reorder 5% 50% loss 5% limit 10000";

#[test]
#[ignore = "needs WireGuard in the kernel: make test-kernel"]
fn a_rotation_on_a_lossy_slow_network_loses_no_more_than_the_network_does() {
    let mesh = mesh(&[&KERNEL, &USERSPACE]);
    let ends = pods(&mesh);
    for node in mesh.nodes() {
        shell(node, NETEM);
    }
    let capture = mesh.capture().unwrap();
    let plain = ["n1", "n2"].map(|node| mesh.node(node).unwrap().end());
    let start = |from, to| Stream::start(from, to, IpVersion::V4, 100).unwrap();
    // The same path at the same time, once through the tunnel and once outside it.
    let tunnelled = [start(&ends[0], &ends[1]), start(&ends[1], &ends[0])];
    let beside = [start(&plain[0], &plain[1]), start(&plain[1], &plain[0])];
    rotate(&mesh, "n1");
    let count = |streams: [Stream; 2]| {
        let reports = streams.map(Stream::stop);
        let sum = |of: fn(&lab::stream::StreamReport) -> u64| reports.iter().map(of).sum::<u64>();
        (sum(|report| report.lost - report.overflowed), sum(|report| report.sent))
    };
    let ((lost, sent), (lost_beside, sent_beside)) = (count(tunnelled), count(beside));
    println!("through the tunnel {lost} of {sent} lost, beside it {lost_beside} of {sent_beside}");
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let [lost, sent, lost_beside, sent_beside] =
        [lost, sent, lost_beside, sent_beside].map(|count| count as f64);
    assert!(lost_beside / sent_beside > 0.02, "the network loses less than it should");
    // Chance alone makes four standard deviations of difference once in 16,000 runs.
    let share = (lost + lost_beside) / (sent + sent_beside);
    let deviation = (share * (1.0 - share) * (1.0 / sent + 1.0 / sent_beside)).sqrt();
    let excess = lost / sent - lost_beside / sent_beside;
    assert!(excess < 4.0 * deviation, "{excess} is more than 4 x {deviation}");
    capture.report().assert_sealed();
}
