//! Worlds in which almost everything is claimed by several Nodes, and what happens to them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use keyring::{NOISE, PerSlot, PrivateKey, Proof, Slot};
use plan::admission::{AdmissionPolicy, Evidence};
use plan::annotation::{Endpoints, Phase, SlotState, State};
use plan::node::{NodeName, NodeRecord, NodeUid};
use proptest::prelude::*;

pub(crate) const NODES: u8 = 14;

/// A Node of a generated world: small numbers, so that nodes clash.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) number: u8,
    pub(crate) life: u8,
    pub(crate) age: u8,
    pub(crate) state: Option<Announced>,
    pub(crate) pods: u8,
    pub(crate) addresses: Vec<u8>,
    pub(crate) external: u8,
    pub(crate) nat: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Announced {
    pub(crate) keys: (u8, u8),
    pub(crate) generation: u8,
    pub(crate) proven: bool,
    pub(crate) broken: bool,
}

pub(crate) fn draft() -> impl Strategy<Value = Draft> {
    let keys = (0..18_u8, 0..18_u8);
    let announced = (keys, 0..4_u8, any::<bool>(), prop::bool::weighted(0.05))
        .prop_map(|(keys, generation, proven, broken)| Announced { keys, generation, proven, broken });
    let state = prop::option::weighted(0.9, announced);
    let addresses = prop::collection::vec(0..24_u8, 0..3);
    ((1..=NODES, 0..2_u8, 0..6_u8), state, 0..30_u8, addresses, any::<u8>(), any::<bool>()).prop_map(
        |((number, life, age), state, pods, addresses, external, nat)| Draft {
            number,
            life,
            age,
            state,
            pods,
            addresses,
            external,
            nat,
        },
    )
}

pub(crate) fn private(number: u8) -> PrivateKey {
    PrivateKey::from_bytes(&[number + 1; 32]).unwrap()
}

/// The annotation. Signatures take long, and most are wanted more than once.
pub(crate) fn state(uid: &NodeUid, announced: Announced) -> String {
    thread_local!(static KNOWN: RefCell<HashMap<(NodeUid, Announced), String>> = RefCell::default());
    if announced.broken {
        return "{".to_owned();
    }
    let made = || {
        let private = |slot| private(if slot == Slot::A { announced.keys.0 } else { 20 + announced.keys.1 });
        let slot = |slot, port| SlotState { key: private(slot).public(), generation: 1, port };
        let state = State {
            uid: uid.clone(),
            generation: u64::from(announced.generation),
            slots: PerSlot { a: slot(Slot::A, 51840), b: slot(Slot::B, 51841) },
            prefer: Slot::A,
            drain: None,
            phase: Phase::Steady,
            proofs: None,
        };
        let sign = |slot, statement: &[u8]| Some(Proof::sign(&private(slot), statement, &[1; NOISE]));
        if announced.proven { state.prove(sign).unwrap().render() } else { state.render() }
    };
    KNOWN.with_borrow_mut(|known| known.entry((uid.clone(), announced)).or_insert_with(made).clone())
}

pub(crate) fn address(number: u8) -> IpAddr {
    [192, 0, 2, number].into()
}

pub(crate) fn record(draft: &Draft) -> NodeRecord {
    let uid = NodeUid::new(format!("u{}-{}", draft.number, draft.life));
    let published = Endpoints {
        addresses: draft.addresses.first().map(|number| address(*number)).into_iter().collect(),
        nat: draft.nat,
        ..Endpoints::default()
    };
    let addresses: Vec<String> = draft.addresses.iter().map(|number| address(*number).to_string()).collect();
    NodeRecord {
        name: NodeName::new(format!("n{}", draft.number)),
        created: format!("2026-01-01T00:00:0{}Z", draft.age),
        pod_cidrs: match draft.pods {
            0 => Vec::new(),
            1 => vec!["10.244.0.0/22".to_owned()],
            2 => vec!["10.243.0.0/24".to_owned()],
            number if number.is_multiple_of(2) => {
                vec![format!("10.244.{number}.0/24"), format!("fd00:10:244:{}::/64", number / 4)]
            }
            number => vec![format!("10.244.{}.128/25", number / 2)],
        },
        external: addresses.iter().skip(1).take(usize::from(draft.external % 3)).cloned().collect(),
        addresses,
        control_plane: draft.external.is_multiple_of(5),
        state: draft.state.map(|announced| state(&uid, announced)),
        endpoints: Some(published.render()),
        uid,
        ..NodeRecord::default()
    }
}

/// What happens to a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Changed(Vec<Draft>),
    Deleted(u8),
    Listed(Vec<Draft>),
    Waited(u8),
    Policy(u8),
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => prop::collection::vec(draft(), 1..3).prop_map(Event::Changed),
        2 => (1..=NODES).prop_map(Event::Deleted),
        1 => prop::collection::vec(draft(), 0..20).prop_map(Event::Listed),
        3 => (1..14_u8).prop_map(Event::Waited),
        1 => any::<u8>().prop_map(Event::Policy),
    ]
}

pub(crate) fn policy(choice: u8) -> AdmissionPolicy {
    let tested = |number: u8| {
        let uid = NodeUid::new(format!("u{}-0", number % NODES));
        let evidence = if number.is_multiple_of(3) { Evidence::Proven } else { Evidence::Unproven };
        ((uid, address(number.wrapping_mul(choice) % 24)), evidence)
    };
    AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        api_servers: [address(5)].into(),
        own_addresses: (!choice.is_multiple_of(4)).then(|| [address(1), address(2)].into()),
        own_keys: [private(17).public()].into(),
        accept_unproven: !choice.is_multiple_of(3),
        close_external: choice.is_multiple_of(2),
        evidence: (0..choice % 40).map(tested).collect(),
        ipv4: true,
        ipv6: true,
        ..AdmissionPolicy::default()
    }
}

pub(crate) fn list(drafts: &[Draft]) -> BTreeMap<NodeName, NodeRecord> {
    drafts.iter().map(record).map(|record| (record.name.clone(), record)).collect()
}
