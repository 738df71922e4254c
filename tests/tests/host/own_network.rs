//! A pod range that covers the nodes' own network.

use std::time::Duration;

use lab::mesh::Mesh;
use lab::{ApiKind, Family, Lab, Signal};

#[test]
fn a_pod_range_over_the_nodes_own_network_is_refused_before_the_guard() {
    let lab = Lab::builder().nodes(1).family(Family::Dual).api(ApiKind::Fake).build().unwrap();
    let mut mesh = Mesh::idle(lab);
    let own = mesh.node("n1").unwrap().addresses()[0];
    mesh.start_with("n1", &["--cluster-cidr", "198.18.0.0/15,fd00:10:244::/48"]).unwrap();
    let daemon = mesh.daemon("n1");
    assert_eq!(daemon.wait(Duration::from_secs(20)).unwrap().code(), Some(64));
    let log = daemon.log().unwrap();
    for part in ["cluster-cidr: 198.18.0.0/15 covers", &format!("{own}/"), "on link eth0"] {
        assert!(log.contains(part), "{part} in\n{log}");
    }
    let ruleset = mesh.node("n1").unwrap().command("nft").args(["list", "ruleset"]).run().unwrap();
    assert_eq!(ruleset, "", "nothing was changed");

    // The addresses of the mesh and of pods are in the range. A restart does not refuse itself.
    mesh.start("n1").unwrap();
    mesh.wait_formed();
    mesh.node("n1").unwrap().pod("a").unwrap();
    mesh.stop("n1", Signal::KILL).unwrap();
    mesh.start("n1").unwrap();
    mesh.wait_formed();
}
