//! The Kubernetes network model, row by row: every ordered pair of three nodes, every family, every transport, with
//! the source address that the server saw, while a capture watches every underlay interface.
#![expect(clippy::unwrap_used, reason = "functions that tests share fail as tests do")]

use std::time::Duration;

use lab::mesh::{Mesh, NamedEnd, describe, promised_sources};
use lab::ping::{PingOutcome, ping};
use lab::{Family, Flow, IpVersion, Lab, Protocol};

/// Header bytes of an ICMP echo packet.
const fn echo_overhead(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => 28,
        IpVersion::V6 => 48,
    }
}

fn model(family: Family) {
    let mesh = Mesh::form(Lab::builder().nodes(3).family(family).build().unwrap()).unwrap();
    let capture = mesh.capture().unwrap();
    let pods = mesh.pods(&["a", "b"]).unwrap();

    // N1, N2: addresses are unique, of the node's own ranges, and what the pod itself sees.
    let mut addresses: Vec<_> = pods.iter().flat_map(|pod| pod.addresses().to_vec()).collect();
    for pod in &pods {
        let listed = pod.command("ip").args(["-o", "addr", "show", "dev", "eth0"]).run().unwrap();
        for address in pod.addresses() {
            assert!(pod.node().pod_ranges().iter().any(|range| range.contains(*address)), "{address}");
            assert!(listed.contains(&format!("{address}/")), "{address} in {listed}");
        }
        assert_eq!(pod.addresses().len(), family.versions().len());
    }
    let count = addresses.len();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), count, "pods share an address");

    // N3, N4, N6, N7, N8: between all pods and nodes; the server sees the client's own address.
    let ends = mesh.ends();
    let mut wrong = Vec::new();
    for (from, to) in pairs(&ends) {
        for version in family.versions().iter().copied() {
            for protocol in Protocol::ALL {
                let seen = Flow::new(&from.end, &to.end, version, protocol).probe_until_answered().unwrap();
                let promised = promised_sources(from, to, version).unwrap();
                if !(seen.answered && seen.source.is_some_and(|source| promised.contains(&source))) {
                    wrong.push(format!(
                        "{}: {seen}, expected {promised:?}",
                        describe(from, to, version, protocol)
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} flows failed:\n{}", wrong.len(), wrong.join("\n"));

    full_size(&mesh, family);
    egress(&mesh, family);

    let report = capture.report();
    report.assert_sealed();
    assert!(report.wireguard() > 100, "the capture saw the tunnels: {report}");
}

/// Every ordered pair in which one end is a pod: traffic between nodes' own processes is not the mesh's.
fn pairs(ends: &[NamedEnd]) -> impl Iterator<Item = (&NamedEnd, &NamedEnd)> {
    let all = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.name != to.name && (from.is_pod || to.is_pod))
}

/// N5: a packet of the full size passes unfragmented, one byte more is refused by the sender's own kernel.
fn full_size(mesh: &Mesh, family: Family) {
    let (here, there) =
        (mesh.node("n1").unwrap().pod("a").unwrap(), mesh.node("n2").unwrap().pod("a").unwrap());
    let mtu = 1420;
    for version in family.versions().iter().copied() {
        let target = there.address(version).unwrap();
        let whole = mtu - echo_overhead(version);
        let timeout = Duration::from_secs(15);
        let at_size = |size| ping(&here.end(), target, size, true, timeout).unwrap();
        assert_eq!(at_size(whole), PingOutcome::Answered, "{} bytes, {}", mtu, version.as_str());
        assert_eq!(at_size(whole + 1), PingOutcome::TooLong, "{} bytes, {}", mtu + 1, version.as_str());
        lab::stream::transfer(&here.end(), &there.end(), version, 10 << 20).unwrap();
    }
}

/// N16: outside the cluster the source is the node's address.
fn egress(mesh: &Mesh, family: Family) {
    for node in mesh.nodes() {
        let pod = node.pod("a").unwrap();
        for version in family.versions().iter().copied() {
            for protocol in Protocol::ALL {
                let seen = Flow::new(&pod.end(), &mesh.internet(), version, protocol).must_pass();
                assert_eq!(seen, node.address(version).unwrap(), "{} {}", node.name(), protocol.as_str());
            }
        }
    }
}

#[test]
fn dual_stack() {
    model(Family::Dual);
}

#[test]
fn ipv4_only() {
    model(Family::V4);
}

#[test]
fn ipv6_only() {
    model(Family::V6);
}
