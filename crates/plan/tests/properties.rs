//! Properties of the whole core over generated worlds: good nodes, liars, overlaps, garbage.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use keyring::{PerSlot, PresharedId, PublicKey, Slot};
use plan::admission::{Admission, AdmissionPolicy, Ledger, admit};
use plan::annotation::{Endpoints, Phase, SlotState, State};
use plan::check::check;
use plan::desired::{Setup, Underlay};
use plan::network::{MeshLink, Network, Peer, Route, Via};
use plan::node::{NodeName, NodeRecord, NodeUid};
use plan::op::Op;
use plan::{desired, diff, prefix};
use proptest::prelude::*;

/// A node of a generated world: small numbers, so that nodes clash.
#[derive(Clone, Debug)]
struct Draft {
    pod_cidr: u8,
    key: u8,
    address: u8,
    age: u8,
    generation: u64,
    nat: bool,
    prefer_b: bool,
    drain: Option<bool>,
    garbage: Option<String>,
    wide: bool,
}

fn draft() -> impl Strategy<Value = Draft> {
    let garbage = prop_oneof![9 => Just(None), 1 => ".{0,40}".prop_map(Some)];
    let numbers = (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), 0..3_u64);
    (numbers, any::<bool>(), any::<bool>(), any::<Option<bool>>(), garbage, prop::bool::weighted(0.02))
        .prop_map(|((pod_cidr, key, address, age, generation), nat, prefer_b, drain, garbage, wide)| Draft {
            pod_cidr,
            key,
            address,
            age,
            generation,
            nat,
            prefer_b,
            drain,
            garbage,
            wide,
        })
}

fn key(number: u16) -> PublicKey {
    let [high, low] = number.to_be_bytes();
    let mut bytes = [7; 32];
    bytes[1] = high;
    bytes[2] = low;
    PublicKey::from_bytes(&bytes).unwrap()
}

fn record(index: usize, draft: &Draft, keys: &[PublicKey]) -> NodeRecord {
    let uid = NodeUid::new(format!("u{index}"));
    let slot = |slot| if slot { Slot::B } else { Slot::A };
    let state = State {
        uid: uid.clone(),
        generation: draft.generation,
        slots: PerSlot {
            a: SlotState { key: keys[usize::from(draft.key) * 2], generation: 1, port: 51840 },
            b: SlotState { key: keys[usize::from(draft.key) * 2 + 1], generation: 1, port: 51841 },
        },
        prefer: slot(draft.prefer_b),
        drain: draft.drain.map(slot),
        phase: Phase::Steady,
        proofs: None,
    };
    let address: IpAddr = [192, 0, 2, draft.address].into();
    NodeRecord {
        name: NodeName::new(format!("n{index}")),
        uid,
        created: format!("2026-01-01T00:{:02}:00Z", draft.age % 60),
        pod_cidrs: if draft.wide {
            vec!["10.244.0.0/16".to_owned()]
        } else {
            vec![format!("10.244.{}.0/24", draft.pod_cidr), format!("fd00:10:244:{:x}::/64", draft.pod_cidr)]
        },
        addresses: vec![address.to_string()],
        state: Some(draft.garbage.clone().unwrap_or_else(|| state.render())),
        endpoints: Some(
            Endpoints { addresses: vec![address], nat: draft.nat, ..Endpoints::default() }.render(),
        ),
        ..NodeRecord::default()
    }
}

fn world(drafts: &[Draft]) -> Vec<NodeRecord> {
    let keys: Vec<PublicKey> = (0..512).map(key).collect();
    drafts.iter().enumerate().map(|(index, draft)| record(index, draft, &keys)).collect()
}

fn policy() -> AdmissionPolicy {
    AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        own_keys: [key(600), key(601)].into(),
        accept_unproven: true,
        ipv4: true,
        ipv6: true,
        ..AdmissionPolicy::default()
    }
}

/// A link that forgets its default route when forwarding comes first, and links that take no address with IPv6 switched off.
#[test]
fn settings_come_before_what_depends_on_them() {
    let admission = admitted(&world(&[]), &Ledger::default());
    let setup = Setup { router_links: ["zeth0".parse().unwrap()].into(), ..setup() };
    let mut target = wanted_with(&admission, &setup);
    for device in target.devices.values_mut() {
        device.addresses.insert("fd00:10:244:1::1/128".parse().unwrap());
    }
    let mut off = target.clone();
    for device in off.devices.values_mut() {
        device.addresses.clear();
    }
    for value in off.sysctls.values_mut() {
        *value = "1".to_owned();
    }
    off.sysctls.insert("net/ipv6/conf/all/forwarding".to_owned(), "0".to_owned());
    for observed in [Network::default(), off] {
        let steps: Vec<String> = diff(&target, &observed).iter().map(ToString::to_string).collect();
        let at = |text: &str| {
            steps
                .iter()
                .position(|step| step.contains(text))
                .unwrap_or_else(|| panic!("{text} in {steps:#?}"))
        };
        assert!(at("zeth0/accept_ra = 2") < at("all/forwarding = 1"), "{steps:#?}");
        for link in ["mesh-a", "mesh-b"] {
            assert!(at(&format!("{link}/disable_ipv6 = 0")) < at(&format!("address  {link}")), "{steps:#?}");
        }
        assert_eq!(steps.iter().filter(|step| step.contains("disable_ipv6")).count(), 2, "{steps:#?}");
    }
}

fn setup() -> Setup {
    let policy = policy();
    let keys = PerSlot { a: key(600), b: key(601) };
    setup::setup(&policy.cluster_cidrs, &policy.service_cidrs, keys)
}

/// Some slots of some peers have a preshared key, some are barred, by a number drawn for each.
fn protected(admission: &Admission, draws: &[u8]) -> Setup {
    let mut setup = setup();
    for (member, draw) in admission.world.peers.values().zip(draws.iter().cycle()) {
        for (slot, bit) in [(Slot::A, 1), (Slot::B, 2)] {
            let place = (member.uid.clone(), slot);
            if draw & bit != 0 {
                setup.preshared.insert(place.clone(), PresharedId::from_bytes([draw / 16; 8]));
            }
            if draw & (bit << 2) != 0 {
                setup.barred.insert(place);
            }
        }
    }
    setup
}

fn admitted(records: &[NodeRecord], ledger: &Ledger) -> Admission {
    admit(&policy(), &NodeName::new("n0"), records, ledger)
}

fn wanted(admission: &Admission) -> Network {
    wanted_with(admission, &setup())
}

fn wanted_with(admission: &Admission, setup: &Setup) -> Network {
    desired(
        &admission.world,
        setup,
        &Underlay { mtu: 1500, mtu_to: BTreeMap::new(), passes: BTreeMap::new() },
    )
}

/// A network that was changed by hand.
fn disturbed(mut network: Network, how: &[u8]) -> Network {
    for choice in how {
        let pick = usize::from(choice / 10);
        match choice % 10 {
            0 => network.guard = None,
            1 => drop(network.devices.remove(&if pick % 2 == 0 { Slot::A } else { Slot::B })),
            2 => network.routes = network.routes.iter().skip(pick % 3).cloned().collect(),
            3 => {
                network.rules.clear();
                network.accepts = None;
            }
            4 => drop(network.sysctls.insert("net/ipv4/ip_forward".to_owned(), "0".to_owned())),
            5 => drop(network.routes.insert(Route {
                table: 254,
                destination: "10.99.0.0/16".parse().unwrap(),
                metric: 84,
                via: Via::Unreachable,
            })),
            _ => {
                for device in network.devices.values_mut() {
                    change_by_hand(device, choice % 10, pick);
                }
            }
        }
    }
    // A route leads nowhere without its link.
    let links: BTreeSet<_> = network.devices.values().map(|device| device.link.clone()).collect();
    network.routes.retain(|route| match &route.via {
        Via::Link { link, .. } => links.contains(link),
        Via::Unreachable => true,
    });
    network
}

fn change_by_hand(device: &mut MeshLink, how: u8, pick: usize) {
    match how {
        6 => device.peers = device.peers.clone().into_iter().skip(pick % 4).collect(),
        7 => {
            let strange = Peer { allowed_ips: ["10.98.0.0/16".parse().unwrap()].into(), ..Peer::default() };
            device.peers.insert(key(700), strange);
        }
        8 => {
            // Each peer has the allowed IPs of the next one.
            let mut allowed: Vec<BTreeSet<IpNetwork>> =
                device.peers.values().map(|peer| peer.allowed_ips.clone()).collect();
            let by = usize::from(!allowed.is_empty());
            allowed.rotate_left(by);
            for (peer, allowed) in device.peers.values_mut().zip(allowed) {
                peer.allowed_ips = allowed;
                peer.keepalive = Some(7);
            }
        }
        _ => {
            device.addresses.insert("10.97.0.1/32".parse().unwrap());
            device.up = false;
            device.port = 1;
        }
    }
}

/// The desired network, with the endpoints of roaming peers where they were observed: those are left alone.
fn settled(desired: &Network, after: &Network) -> Network {
    let mut settled = desired.clone();
    for (slot, device) in &mut settled.devices {
        for (key, peer) in &mut device.peers {
            let found = after.devices[slot].peers.get(key).and_then(|peer| peer.endpoint);
            if peer.roaming || peer.endpoint.is_none() {
                peer.endpoint = found;
            }
        }
    }
    // Settings that are not desired are left alone.
    settled.sysctls.extend(
        after
            .sysctls
            .iter()
            .filter(|(name, _)| !desired.sysctls.contains_key(*name))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    settled
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// From nothing, from another cluster, and after changes by hand: the steps lead to the desired network, and then there
    /// are none.
    #[test]
    fn steps_lead_to_what_is_desired(
        now in prop::collection::vec(draft(), 1..60),
        before in prop::collection::vec(draft(), 1..60),
        how in prop::collection::vec(any::<u8>(), 0..6),
        draws in prop::collection::vec(any::<u8>(), 2..9),
    ) {
        let admission = admitted(&world(&now), &Ledger::default());
        let target = wanted_with(&admission, &protected(&admission, &draws));
        let other = wanted(&admitted(&world(&before), &Ledger::default()));
        let changed = wanted_with(&admission, &protected(&admission, &draws[1..]));
        let from = [Network::default(), other.clone(), disturbed(target.clone(), &how), disturbed(other, &how), changed];
        for observed in from {
            let mut network = observed;
            for op in diff(&target, &network) {
                prop_assert_eq!(network.apply(&op), Ok(()), "{}", op);
            }
            prop_assert_eq!(&network, &settled(&target, &network));
            prop_assert_eq!(diff(&target, &network), vec![]);
        }
        prop_assert_eq!(diff(&target, &target), vec![]);
    }

    /// A change of its preshared key ends a peer's session, and nothing else does.
    #[test]
    fn a_peer_is_recreated_exactly_when_its_preshared_key_changes(
        drafts in prop::collection::vec(draft(), 1..40),
        draws in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let admission = admitted(&world(&drafts), &Ledger::default());
        let (before, after) = (wanted(&admission), wanted_with(&admission, &protected(&admission, &draws)));
        let recreated: BTreeSet<(Slot, PublicKey)> = diff(&after, &before).into_iter().filter_map(|op| match op {
            Op::RemovePeer { slot, key } => Some((slot, key)),
            _ => None,
        }).collect();
        let changed = after.devices.iter().flat_map(|(slot, device)| {
            let peers = device.peers.iter().filter(|(_, peer)| peer.preshared.is_some());
            peers.map(|(key, _)| (*slot, *key))
        });
        prop_assert_eq!(recreated, changed.collect::<BTreeSet<_>>());
    }

    /// A barred slot carries traffic between the nodes themselves and none of pods, in either direction.
    #[test]
    fn no_pod_packet_takes_a_barred_slot(
        drafts in prop::collection::vec(draft(), 1..60),
        draws in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let admission = admitted(&world(&drafts), &Ledger::default());
        let setup = protected(&admission, &draws);
        let network = wanted_with(&admission, &setup);
        prop_assert_eq!(check(&network, &admission.world), vec![]);
        for member in admission.world.peers.values() {
            let mesh: BTreeSet<IpNetwork> =
                member.pod_cidrs.iter().map(|net| prefix::host(prefix::first_usable(*net))).collect();
            for slot in Slot::ALL {
                let peer = &network.devices[&slot].peers[&member.state.slots.get(slot).key];
                prop_assert_eq!(setup.is_barred(member, slot), peer.allowed_ips == mesh);
            }
            let open: Vec<Slot> = Slot::ALL.into_iter().filter(|slot| !setup.is_barred(member, *slot)).collect();
            // Where a pod's packet goes: the longest prefix, then the lowest metric.
            for pod_cidr in &member.pod_cidrs {
                let pod = pod_cidr.iter().nth(9).unwrap();
                let route = network.routes.iter().filter(|route| route.table == 254 && route.destination.contains(pod));
                let route = route.max_by_key(|route| (route.destination.prefix(), std::cmp::Reverse(route.metric))).unwrap();
                match &route.via {
                    Via::Unreachable => prop_assert!(open.is_empty()),
                    Via::Link { link, .. } => prop_assert!(open.iter().any(|slot| setup.links.get(*slot) == link)),
                }
                // The nodes themselves are reached over either device.
                for slot in Slot::ALL {
                    let node = prefix::first_usable(*pod_cidr);
                    let by = |route: &&Route| matches!(&route.via, Via::Link { link, .. } if link == setup.links.get(slot));
                    prop_assert!(network.routes.iter().filter(by).any(|route| route.destination.contains(node)));
                }
            }
            for address in &member.addresses {
                let there = network.routes.iter().any(|route| route.table == 5184 && route.destination.contains(*address));
                prop_assert_eq!(there, !open.is_empty());
            }
        }
    }

    /// The order in which Nodes arrive does not matter, with and without a ledger.
    #[test]
    fn order_does_not_matter(
        drafts in prop::collection::vec(draft(), 1..60),
        past in prop::collection::vec(draft(), 0..30),
        turn in any::<prop::sample::Index>(),
    ) {
        let ledger = admitted(&world(&past), &Ledger::default()).ledger;
        let records = world(&drafts);
        let mut turned = records.clone();
        turned.rotate_left(turn.index(records.len()));
        turned.reverse();
        prop_assert_eq!(admitted(&records, &ledger), admitted(&turned, &ledger));
    }

    /// Whatever the Nodes publish, the invariants hold.
    #[test]
    fn invariants_hold(
        drafts in prop::collection::vec(draft(), 1..200),
        past in prop::collection::vec(draft(), 0..60),
    ) {
        let ledger = admitted(&world(&past), &Ledger::default()).ledger;
        let admission = admitted(&world(&drafts), &ledger);
        let network = wanted(&admission);
        prop_assert_eq!(check(&network, &admission.world), vec![]);
        // The same without the code under test: prefixes of peers are disjoint, and within the cluster or claimed.
        for device in network.devices.values() {
            let peers: Vec<&Peer> = device.peers.values().collect();
            for (index, one) in peers.iter().enumerate() {
                for other in &peers[index + 1..] {
                    for net in &one.allowed_ips {
                        prop_assert!(!other.allowed_ips.iter().any(|found| prefix::overlap(*net, *found)));
                    }
                }
                for net in &one.allowed_ips {
                    let inside = policy().cluster_cidrs.iter().any(|cluster| prefix::contains(*cluster, *net));
                    prop_assert!(inside || net.prefix() == 32, "{}", net);
                }
            }
        }
    }

    /// A node with an unreadable annotation changes nothing for the others.
    #[test]
    fn one_bad_node_changes_nothing_for_the_others(drafts in prop::collection::vec(draft(), 1..60)) {
        let mut records = world(&drafts);
        let without = admitted(&records, &Ledger::default());
        let bad = Draft { garbage: Some("{".to_owned()), ..drafts[0].clone() };
        records.push(record(999, &bad, &(0..512).map(key).collect::<Vec<_>>()));
        let with = admitted(&records, &Ledger::default());
        prop_assert_eq!(with.world, without.world);
    }

    /// No text makes the parsers panic, and what parses renders the same.
    #[test]
    fn annotations_are_total(text in ".{0,300}") {
        if let Ok(state) = State::parse(&text) {
            prop_assert_eq!(State::parse(&state.render()), Ok(state));
        }
        if let Ok(endpoints) = Endpoints::parse(&text) {
            prop_assert_eq!(Endpoints::parse(&endpoints.render()), Ok(endpoints));
        }
    }
}
