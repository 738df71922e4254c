use std::collections::{BTreeMap, BTreeSet};

use keyring::{PublicKey, Slot};
use proptest::prelude::*;

use super::super::{disjoint, routed as routed_all};
use super::*;
use crate::network::{Guard, Peer, Route};

/// A peer: what it is allowed, where it is, and the destinations of its routes. Small numbers, so that they clash.
type Draft = (u8, Vec<u8>, u8, Vec<u8>);

fn draft() -> impl Strategy<Value = Draft> {
    let nets = || prop::collection::vec(0..24_u8, 0..3);
    (0..6_u8, nets(), 0..40_u8, nets())
}

fn net(number: u8) -> IpNetwork {
    let text = match number {
        0 => "10.0.0.0/8".to_owned(),
        1 => "fd00::/16".to_owned(),
        number if number < 6 => format!("10.{number}.0.0/16"),
        number if number < 16 => format!("10.{}.{}.0/24", 2 + number % 4, number / 4),
        number => format!("10.{}.{}.{}/32", 2 + number % 4, number % 3, number % 2),
    };
    text.parse().unwrap()
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes(&[number + 1; 32]).unwrap()
}

fn share(drafts: &[Draft]) -> Network {
    let device = |link: &str| MeshLink {
        link: link.parse().unwrap(),
        mtu: 1420,
        up: true,
        addresses: BTreeSet::new(),
        key: None,
        port: 51840,
        peers: BTreeMap::new(),
    };
    let guard = Guard { cluster: [net(0)].into(), ..Guard::default() };
    let mut network = Network {
        guard: Some(guard),
        devices: [(Slot::A, device("mesh-a")), (Slot::B, device("mesh-b"))].into(),
        ..Network::default()
    };
    for (number, allowed, endpoint, routes) in drafts {
        for (slot, device) in &mut network.devices {
            let some =
                if *slot == Slot::A { allowed.as_slice() } else { allowed.get(1..).unwrap_or_default() };
            let address = [10, 2 + endpoint % 4, endpoint % 3, endpoint % 2];
            let peer = Peer {
                endpoint: (*endpoint < 20).then(|| (address, 51840).into()),
                allowed_ips: some.iter().map(|number| net(*number)).collect(),
                ..Peer::default()
            };
            device.peers.insert(key(*number), peer);
            for destination in routes {
                let table = if endpoint % 3 == 0 { 5184 } else { MAIN_TABLE };
                let metric = 84 + u32::from(*number) * 2 + u32::from(*slot == Slot::B);
                let via = Via::Link { link: device.link.clone(), source: None, mtu: None };
                network.routes.insert(Route { table, destination: net(*destination), metric, via });
            }
        }
    }
    network
}

/// Whether there is a violation, apart from what is granted.
fn is_violated(network: &Network) -> bool {
    let mut found = Vec::new();
    disjoint(network, &mut found);
    routed_all(network, &mut found);
    !found.is_empty()
}

/// What single drafts of a sequence have in common with those before them is left out, until there is no violation.
fn valid(drafts: Vec<Draft>) -> BTreeMap<u8, Draft> {
    let mut kept: BTreeMap<u8, Draft> = BTreeMap::new();
    for (number, allowed, endpoint, routes) in drafts {
        let less = [
            (number, allowed.clone(), endpoint, routes),
            (number, allowed.clone(), endpoint, allowed.clone()),
            (number, allowed, 39, Vec::new()),
        ];
        for draft in less {
            let former = kept.insert(number, draft);
            if !is_violated(&share(&kept.values().cloned().collect::<Vec<_>>())) {
                break;
            }
            match former {
                Some(former) => kept.insert(number, former),
                None => kept.remove(&number),
            };
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_part_has_a_violation_exactly_if_the_whole_has_one(
        first in prop::collection::vec(draft(), 1..8),
        changed in prop::collection::vec((draft(), any::<bool>()), 1..3),
    ) {
        let mut drafts = valid(first);
        let numbers: BTreeSet<u8> = changed.iter().map(|((number, ..), _)| *number).collect();
        let of = |drafts: &BTreeMap<u8, Draft>| {
            let drafts: Vec<Draft> = numbers.iter().filter_map(|number| drafts.get(number).cloned()).collect();
            share(&drafts)
        };
        let mut network = share(&drafts.values().cloned().collect::<Vec<_>>());
        prop_assert!(!is_violated(&network));
        let before = of(&drafts);
        for (draft, gone) in &changed {
            if *gone {
                drafts.remove(&draft.0);
            } else {
                drafts.insert(draft.0, draft.clone());
            }
        }
        let after = of(&drafts);
        network.replace_share(&before, &after).unwrap();
        prop_assert_eq!(&network, &share(&drafts.values().cloned().collect::<Vec<_>>()));
        let shares = Shares { before, after, world: crate::admission::World::default() };
        let found = check_part(&network, &shares);
        let found = found.iter().any(|one| !matches!(one, Violation::NotGranted { .. }));
        prop_assert_eq!(found, is_violated(&network));
    }
}
