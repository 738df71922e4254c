//! Properties of admission over generated worlds with liars: nodes that list the addresses of others, and nodes that
//! publish the keys of others.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use keyring::{NOISE, PerSlot, PrivateKey, Proof, PublicKey, Slot};
use plan::admission::{Admission, AdmissionPolicy, Claim, Evidence, Ledger, admit};
use plan::annotation::{Endpoints, Phase, SlotState, State};
use plan::node::{NodeName, NodeRecord, NodeUid};
use proptest::prelude::*;

/// The most nodes of a world. Node n has the address 192.0.2.n and the podCIDR 10.244.n.0/24.
const NODES: u8 = 12;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// In the mesh, and reachable at its address.
    Honest,
    /// Its daemon does not run yet.
    Pending,
    /// Listed and published, but switched off.
    Gone,
    /// In the mesh, and lists addresses of others.
    Liar,
    /// Publishes another node's key beside its own, with that node's proof, and lists addresses of others.
    Copier,
}

impl Kind {
    fn lies(self) -> bool {
        matches!(self, Self::Liar | Self::Copier)
    }

    /// Whether others accept its keys.
    fn is_member(self) -> bool {
        !matches!(self, Self::Pending | Self::Copier)
    }
}

#[derive(Clone, Debug)]
struct Draft {
    number: u8,
    kind: Kind,
    age: u8,
    /// What it lists if it is a liar, and whether as external.
    lies: Vec<(u8, bool)>,
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let kind = prop_oneof![
        4 => Just(Kind::Honest), 1 => Just(Kind::Pending), 1 => Just(Kind::Gone), 3 => Just(Kind::Liar),
        2 => Just(Kind::Copier),
    ];
    let lies = prop::collection::vec((1..=NODES, any::<bool>()), 0..6);
    let nodes = prop::collection::vec((kind, any::<u8>(), lies), 2..usize::from(NODES));
    nodes.prop_map(|nodes| {
        let own = Draft { number: 1, kind: Kind::Honest, age: 7, lies: Vec::new() };
        let others = (2..).zip(nodes).map(|(number, (kind, age, lies))| Draft { number, kind, age, lies });
        std::iter::once(own).chain(others).collect()
    })
}

fn address(number: u8) -> IpAddr {
    [192, 0, 2, number].into()
}

fn uid(number: u8) -> NodeUid {
    NodeUid::new(format!("u{number}"))
}

fn private(number: u8, slot: Slot) -> PrivateKey {
    PrivateKey::from_bytes(&[2 * number + u8::from(slot == Slot::B); 32]).unwrap()
}

fn keys(number: u8) -> PerSlot<PublicKey> {
    PerSlot::from_fn(|slot| private(number, slot).public())
}

fn honest_state(number: u8) -> State {
    let slot = |slot, port| SlotState { key: *keys(number).get(slot), generation: 1, port };
    let state = State {
        uid: uid(number),
        generation: 1,
        slots: PerSlot { a: slot(Slot::A, 51840), b: slot(Slot::B, 51841) },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    };
    let sign = |slot, text: &[u8]| Some(Proof::sign(&private(number, slot), text, &[number; NOISE]));
    state.prove(sign).unwrap()
}

fn state(draft: &Draft) -> State {
    let number = draft.number;
    let mut state = honest_state(number);
    if draft.kind == Kind::Copier {
        let victim = draft.lies.iter().map(|(of, _)| *of).find(|of| *of != number).unwrap_or(1);
        let copied = honest_state(victim);
        state.slots.b = SlotState { port: 51841, ..copied.slots.a };
        // Its own proof is as good as it can be; the other one it can only copy.
        let own = Proof::sign(&private(number, Slot::A), &state.statement(Slot::A), &[number; NOISE]);
        state.proofs = Some(PerSlot { a: own, b: copied.proofs.unwrap().a });
    }
    state
}

fn record(draft: &Draft) -> NodeRecord {
    let Draft { number, kind, age, .. } = *draft;
    let state = state(draft);
    let lies: Vec<(u8, bool)> =
        draft.lies.iter().copied().filter(|(of, _)| kind.lies() && *of != number).collect();
    let listed = |(number, _): &(u8, bool)| address(*number).to_string();
    NodeRecord {
        name: NodeName::new(format!("n{number}")),
        uid: uid(number),
        created: format!("2026-01-01T00:{:02}:00Z", age % 60),
        pod_cidrs: vec![format!("10.244.{number}.0/24")],
        addresses: std::iter::once(address(number).to_string()).chain(lies.iter().map(listed)).collect(),
        external: lies.iter().filter(|(_, external)| *external).map(listed).collect(),
        state: (kind != Kind::Pending).then(|| state.render()),
        endpoints: Some(Endpoints { addresses: vec![address(number)], ..Endpoints::default() }.render()),
        ..NodeRecord::default()
    }
}

type Known = BTreeMap<(NodeUid, IpAddr), Evidence>;

fn admitted(records: &[NodeRecord], ledger: &Ledger, evidence: &Known) -> Admission {
    let policy = AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        evidence: evidence.clone(),
        ipv4: true,
        ..AdmissionPolicy::default()
    };
    admit(&policy, &NodeName::new("n1"), records, ledger)
}

/// What tests of these claims say.
fn tested(drafts: &[Draft], claims: &[Claim]) -> Known {
    let is_there = |claim: &Claim| {
        let at = |draft: &&Draft| draft.kind != Kind::Gone && uid(draft.number) == claim.uid;
        drafts.iter().find(at).is_some_and(|draft| address(draft.number) == claim.address)
    };
    let evidence = |claim: &Claim| if is_there(claim) { Evidence::Proven } else { Evidence::Unproven };
    claims.iter().map(|claim| ((claim.uid.clone(), claim.address), evidence(claim))).collect()
}

/// Who holds each address.
fn holders(admission: &Admission) -> BTreeMap<IpAddr, Vec<NodeUid>> {
    let mut holders: BTreeMap<IpAddr, Vec<NodeUid>> = BTreeMap::new();
    for member in admission.world.peers.values() {
        for address in &member.addresses {
            holders.entry(*address).or_default().push(member.uid.clone());
        }
    }
    holders
}

/// Ledgers of a node that was away: of all, of those that joined first, of a part in which liars were alone, and none.
fn ledgers(drafts: &[Draft], records: &[NodeRecord], past: &[bool]) -> Vec<Ledger> {
    let some = |wanted: &dyn Fn(usize) -> bool| -> Vec<NodeRecord> {
        let kept = records.iter().enumerate().filter(|(index, _)| *index == 0 || wanted(*index));
        kept.map(|(_, record)| record.clone()).collect()
    };
    let parts = [
        some(&|_| true),
        some(&|index| past[index % past.len()]),
        some(&|index| drafts[index].kind.lies()),
        some(&|index| !drafts[index].kind.lies()),
        some(&|_| false),
    ];
    let of = |part: &Vec<NodeRecord>| {
        let first = admitted(part, &Ledger::default(), &Known::new());
        admitted(part, &first.ledger, &tested(drafts, &first.to_test)).ledger
    };
    parts.iter().map(of).chain([Ledger::default()]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whoever lists what, of any age and with any ledger: once the claims have been tested, no liar has an address of
    /// another node and none its key, each node that is there has its own, and what nobody has is closed.
    #[test]
    fn no_liar_gets_an_address_and_no_honest_node_loses_one(
        drafts in drafts(),
        past in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        let records: Vec<NodeRecord> = drafts.iter().map(record).collect();
        for ledger in ledgers(&drafts, &records, &past) {
            let first = admitted(&records, &ledger, &Known::new());
            let then = admitted(&records, &first.ledger, &tested(&drafts, &first.to_test));
            let holders = holders(&then);
            for draft in &drafts[1..] {
                let found = holders.get(&address(draft.number)).cloned().unwrap_or_default();
                prop_assert!(found.iter().all(|holder| *holder == uid(draft.number)), "{draft:?}: {found:?}");
                let provable = matches!(draft.kind, Kind::Honest | Kind::Liar);
                prop_assert!(!provable || found.len() == 1, "{draft:?} lost its address");
                let closed = then.world.closed.contains(&address(draft.number));
                prop_assert_eq!(closed, found.is_empty(), "{:?}", draft);
                let is_member = then.world.peers.contains_key(&NodeName::new(format!("n{}", draft.number)));
                prop_assert_eq!(is_member, draft.kind.is_member());
            }
            for member in then.world.peers.values() {
                let number = drafts.iter().find(|draft| uid(draft.number) == member.uid).unwrap().number;
                let found = PerSlot::from_fn(|slot| member.state.slots.get(slot).key);
                prop_assert_eq!(found, keys(number), "no key of another node");
            }
            let again = admitted(&records, &then.ledger, &tested(&drafts, &then.to_test));
            prop_assert_eq!(again.world, then.world, "it stays so");
        }
    }

    /// Whatever has been tested so far, an address has one holder at most, never a node that failed a test of it, and
    /// without a holder it is closed.
    #[test]
    fn an_address_is_held_by_one_node_or_closed_at_any_time(
        drafts in drafts(),
        past in prop::collection::vec(any::<bool>(), 1..8),
        known in prop::collection::vec(any::<bool>(), 1..8),
    ) {
        let records: Vec<NodeRecord> = drafts.iter().map(record).collect();
        for ledger in ledgers(&drafts, &records, &past) {
            let to_test = admitted(&records, &ledger, &Known::new()).to_test;
            let mut evidence = tested(&drafts, &to_test);
            let mut keep = known.iter().cycle();
            evidence.retain(|_, _| *keep.next().unwrap());
            let admission = admitted(&records, &ledger, &evidence);
            let holders = holders(&admission);
            for draft in &drafts[1..] {
                let place = address(draft.number);
                let found = holders.get(&place).map(Vec::as_slice).unwrap_or_default();
                prop_assert!(found.len() <= 1);
                prop_assert_ne!(admission.world.closed.contains(&place), !found.is_empty());
                let failed = |holder| evidence.get(&(holder, place)) == Some(&Evidence::Unproven);
                prop_assert!(!found.iter().cloned().any(failed), "{:?}", draft);
            }
            prop_assert!(!holders.contains_key(&address(1)), "this node's own address");
            prop_assert_eq!(&admission.to_test, &to_test, "what is contested does not depend on evidence");
        }
    }

    /// Neither the order of arrival nor the age of a Node decides about an address.
    #[test]
    fn order_and_age_do_not_matter(
        drafts in drafts(),
        ages in prop::collection::vec(any::<u8>(), 1..8),
        turn in any::<prop::sample::Index>(),
    ) {
        let records: Vec<NodeRecord> = drafts.iter().map(record).collect();
        let aged = drafts.iter().zip(ages.iter().cycle()).map(|(draft, age)| Draft { age: *age, ..draft.clone() });
        let mut turned: Vec<NodeRecord> = aged.map(|draft| record(&draft)).collect();
        turned.rotate_left(turn.index(records.len()));
        for evidence in [Known::new(), tested(&drafts, &admitted(&records, &Ledger::default(), &Known::new()).to_test)] {
            let one = admitted(&records, &Ledger::default(), &evidence);
            let other = admitted(&turned, &Ledger::default(), &evidence);
            prop_assert_eq!(&one.world, &other.world);
            let claims = |admission: &Admission| admission.to_test.iter().cloned().collect::<BTreeSet<Claim>>();
            prop_assert_eq!(claims(&one), claims(&other));
        }
    }
}
