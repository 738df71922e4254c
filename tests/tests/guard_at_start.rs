//! A guard that was broken while no daemon ran is set before anything else, and no pod is attached until then.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use lab::mesh::Mesh;
use lab::{Family, Lab, Node, Signal};

/// What drops packets, as `nft` prints it, without counters.
fn filters(node: &Node) -> String {
    let script = "for chain in ingress closed egress; do nft list chain inet meshd $chain; done \
                  | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'";
    node.command("sh").args(["-c", script]).run().unwrap()
}

#[test]
fn a_guard_that_was_broken_while_no_daemon_ran_is_set_before_anything_else() {
    let mut mesh = Mesh::form(Lab::builder().nodes(1).family(Family::Dual).build().unwrap()).unwrap();
    let whole = filters(mesh.node("n1").unwrap());
    assert!(whole.contains("10.244.0.0/16") && whole.contains("fd00:10:244::/48"), "{whole}");
    mesh.stop("n1", Signal::KILL).unwrap();
    // The guard stands, and the last word of the daemon was that pods can be attached.
    mesh.node("n1").unwrap().pod("before").unwrap().delete().unwrap();
    // Loaded again with a change. The flag `persist` is one that nft 1.0.6 does not know, and it can't be taken away.
    let reloaded = |change: &str| {
        format!(
            "nft list table inet meshd >/tmp/listing && nft delete table inet meshd \
             && sed -i '/flags/d; {change}' /tmp/listing && nft -f /tmp/listing"
        )
    };
    let (other_ranges, dormant) = (reloaded("s,10.244.0.0/16,10.245.0.0/16,"), reloaded("1a flags dormant"));
    for (number, change) in [
        "nft delete table inet meshd",
        "nft flush table inet meshd",
        "nft flush chain inet meshd egress",
        &dormant,
        "nft rename chain inet meshd egress other",
        "nft flush chain inet meshd ingress; nft delete chain inet meshd ingress",
        "nft insert rule inet meshd egress accept",
        &other_ranges,
    ]
    .into_iter()
    .enumerate()
    {
        let node = mesh.node("n1").unwrap();
        node.command("sh").args(["-c", change]).run().unwrap();
        let refused = node.pod(&format!("refused{number}")).unwrap_err();
        assert!(lab::chain(&refused).contains("nft table inet meshd"), "{change}: {}", lab::chain(&refused));
        // A daemon that gets no further: it has no client for the API server.
        mesh.start_with("n1", &["--kubeconfig", "/nonexistent"]).unwrap();
        assert!(!mesh.daemon("n1").wait(Duration::from_secs(20)).unwrap().success(), "{change}");
        let node = mesh.node("n1").unwrap();
        assert_eq!(filters(node), whole, "{change}");
        node.pod(&format!("added{number}")).unwrap().delete().unwrap();
    }
}
