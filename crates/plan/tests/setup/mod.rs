//! What a node is set up with in tests: the usual ports and links, and nothing known of any peer.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PublicKey};
use plan::desired::Setup;
use plan::network::MeshInput;

pub(crate) fn setup(
    cluster_cidrs: &[IpNetwork],
    service_cidrs: &[IpNetwork],
    keys: PerSlot<PublicKey>,
) -> Setup {
    Setup {
        cluster_cidrs: cluster_cidrs.iter().copied().collect(),
        service_cidrs: service_cidrs.iter().copied().collect(),
        open_node_cidrs: BTreeSet::new(),
        keys,
        ports: PerSlot { a: 51840, b: 51841 },
        links: PerSlot { a: "mesh-a".parse().unwrap(), b: "mesh-b".parse().unwrap() },
        table: 5184,
        rule_priority: 5184,
        router_links: BTreeSet::new(),
        input: MeshInput::Everything,
        nat: false,
        paths: BTreeMap::new(),
        steer: BTreeMap::new(),
        preshared: BTreeMap::new(),
        barred: BTreeSet::new(),
    }
}
