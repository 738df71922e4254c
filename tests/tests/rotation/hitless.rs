//! No packet is lost.

use std::time::Duration;

use lab::{Connection, IpVersion, Stream};

use super::{keys, quick, rotate};

#[test]
fn a_rotation_loses_no_packet() {
    let mesh = quick(3);
    let capture = mesh.capture().unwrap();
    let pods = mesh.pods(&["a"]).unwrap();
    let before = keys(&mesh, "n1");
    let mut streams = Vec::new();
    for from in &pods {
        for to in pods.iter().filter(|to| to.node().name() != from.node().name()) {
            streams.push(Stream::start(&from.end(), &to.end(), IpVersion::V4, 200).unwrap());
        }
    }
    let connection = Connection::open(&pods[0].end(), &pods[1].end(), IpVersion::V4, Some(20_000)).unwrap();
    for node in ["n1", "n2", "n1"] {
        let (done, report) = rotate(&mesh, node, &[]);
        assert!(done && report["rolled_back"] == 0 && report["step"] == "steady", "{report:#}");
    }
    let after = keys(&mesh, "n1");
    assert!(after.iter().all(|key| !before.contains(key)), "{before:?} {after:?}");
    std::thread::sleep(Duration::from_millis(500));
    for stream in streams {
        let report = stream.stop();
        assert!(report.sent > 500 && report.lost == report.overflowed, "{report:?}");
        assert_eq!(report.duplicated, 0, "{report:?}");
    }
    let report = connection.close();
    assert!(report.broken.is_none() && report.received == report.sent, "{report:?}");
    capture.report().assert_sealed();
}
