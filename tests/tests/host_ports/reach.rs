//! Reaching a pod by a port of its node.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{Family, IpVersion, Lab};

use crate::{Served, TIMEOUT, output};

#[test]
fn everybody_reaches_the_pod_and_a_flush_of_all_tables_is_repaired_within_two_seconds() {
    let mesh = Mesh::form(Lab::builder().nodes(2).family(Family::Dual).build().unwrap()).unwrap();
    mesh.wait_settled();
    let (here, there) = (mesh.node("n1").unwrap(), mesh.node("n2").unwrap());
    let pod = Served::new(here, "served", 8080);
    let (neighbour, remote) = (here.pod("neighbour").unwrap(), there.pod("remote").unwrap());
    let outside = mesh.outside().end();
    for version in [IpVersion::V4, IpVersion::V6] {
        let to = SocketAddr::new(here.address(version).unwrap(), 8080);
        for client in [&neighbour.end(), &remote.end(), &here.end(), &there.end(), &outside] {
            let seen = pod.reached_from(client.net(), to, TIMEOUT);
            assert_eq!(seen, Some(client.address(version).unwrap()), "{} to {to}", client.name());
        }
        let own = pod.reached_from(&pod.net, to, TIMEOUT).expect("the pod reaches itself");
        assert!(!pod.addresses().contains(&own), "its own port is answered by way of the node: {own}");
    }
    let listing = || output(here, "nft", &["list", "tables"]);
    let repaired = || {
        output(here, "nft", &["flush", "ruleset"]);
        let since = Instant::now();
        while !listing().contains("table inet meshd-ports") {
            assert!(since.elapsed() < TIMEOUT, "not restored");
            std::thread::sleep(Duration::from_millis(20));
        }
        since.elapsed()
    };
    // A busy machine delays any of them.
    let took = [repaired(), repaired(), repaired()];
    assert!(took.iter().min() < Some(&Duration::from_secs(2)), "{took:?}");
    let to = SocketAddr::new(here.address(IpVersion::V4).unwrap(), 8080);
    assert!(pod.reached_from(outside.net(), to, TIMEOUT).is_some(), "after the flush");
    assert_eq!(mesh.status("n1").unwrap()["guard"]["dropped_spoofed"], 0);
    pod.delete();
    assert!(!listing().contains("meshd-ports"), "{}", listing());
}
