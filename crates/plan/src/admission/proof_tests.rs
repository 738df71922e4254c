use keyring::{NOISE, PrivateKey, Proof};

use super::*;
use crate::annotation::{Phase, SlotState};

fn policy() -> AdmissionPolicy {
    AdmissionPolicy {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        ipv4: true,
        ..AdmissionPolicy::default()
    }
}

fn private(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes(&[byte; 32]).unwrap()
}

/// The state of a node with the keys of these numbers.
fn state(number: u8, generation: u64, keys: [u8; 2]) -> State {
    let slot = |byte, port| SlotState { key: private(byte).public(), generation: 1, port };
    State {
        uid: NodeUid::new(format!("u{number}")),
        generation,
        slots: PerSlot { a: slot(keys[0], 51840), b: slot(keys[1], 51841) },
        prefer: Slot::A,
        drain: None,
        phase: Phase::Steady,
        proofs: None,
    }
}

/// The same with proofs by the keys of these numbers.
fn proven(number: u8, generation: u64, keys: [u8; 2], signers: [u8; 2]) -> State {
    let by = |slot| private(if slot == Slot::A { signers[0] } else { signers[1] });
    let sign = |slot, statement: &[u8]| Some(Proof::sign(&by(slot), statement, &[1; NOISE]));
    state(number, generation, keys).prove(sign).unwrap()
}

const fn own_keys(number: u8) -> [u8; 2] {
    [10 * number, 10 * number + 1]
}

fn honest(number: u8) -> State {
    proven(number, 1, own_keys(number), own_keys(number))
}

/// A Node of this number, created at this second.
fn node(number: u8, second: u8, state: &State) -> NodeRecord {
    NodeRecord {
        name: NodeName::new(format!("n{number}")),
        uid: NodeUid::new(format!("u{number}")),
        created: format!("2026-01-01T00:00:{second:02}Z"),
        pod_cidrs: vec![format!("10.244.{number}.0/24")],
        addresses: vec![format!("192.0.2.{number}")],
        state: Some(state.render()),
        ..NodeRecord::default()
    }
}

fn own() -> NodeRecord {
    node(1, 1, &honest(1))
}

fn admitted(policy: &AdmissionPolicy, records: &[NodeRecord], ledger: &Ledger) -> Admission {
    admit(policy, &NodeName::new("n1"), records, ledger)
}

fn keys_of<'a>(admission: &'a Admission, name: &str) -> Option<&'a State> {
    admission.world.peers.get(&NodeName::new(name)).map(|member| &member.state)
}

fn codes(admission: &Admission) -> Vec<(&str, &str)> {
    admission.rejected.iter().map(|rejected| (rejected.node.as_str(), rejected.reason.code())).collect()
}

/// What a liar can publish of a key that is not its own.
fn lies(victim: &State) -> Vec<(&'static str, State)> {
    let [a, b] = own_keys(3);
    let mut with_proofs_of_victim = state(2, 1, [a, b]);
    with_proofs_of_victim.proofs = victim.proofs;
    vec![
        ("proof-missing", state(2, 1, [20, a])),
        ("proof-missing", state(2, 1, [a, b])),
        ("proof-invalid", with_proofs_of_victim),
        ("proof-invalid", proven(2, 1, [20, a], [20, 20])),
        ("proof-invalid", proven(2, 1, [20, b], [20, 21])),
        ("uid-foreign", victim.clone()),
    ]
}

#[test]
fn the_owner_of_a_key_is_untouched_by_any_liar_of_any_age_with_and_without_a_ledger() {
    let victim = honest(3);
    for (code, lie) in lies(&victim) {
        for accept_unproven in [false, true] {
            for liar_is_older in [false, true] {
                let policy = AdmissionPolicy { accept_unproven, ..policy() };
                let (liar_age, victim_age) = if liar_is_older { (2, 3) } else { (3, 2) };
                let liar = node(2, liar_age, &lie);
                let honest_liar = node(2, liar_age, &honest(2));
                let owner = node(3, victim_age, &victim);
                let ledger_of =
                    |records: &[NodeRecord]| admitted(&policy, records, &Ledger::default()).ledger;
                let ledgers = [
                    ("none", Ledger::default()),
                    ("the liar's lie", ledger_of(&[own(), liar.clone()])),
                    ("the liar's own keys", ledger_of(&[own(), honest_liar.clone()])),
                    ("the owner", ledger_of(&[own(), owner.clone()])),
                    ("both", ledger_of(&[own(), honest_liar, owner.clone()])),
                ];
                for (known, ledger) in ledgers {
                    let case = format!(
                        "{code}, accept {accept_unproven}, liar older {liar_is_older}, ledger of {known}"
                    );
                    for records in
                        [[own(), liar.clone(), owner.clone()], [owner.clone(), liar.clone(), own()]]
                    {
                        let mut ledger = ledger.clone();
                        for turn in 0..3 {
                            let admission = admitted(&policy, &records, &ledger);
                            assert_eq!(keys_of(&admission, "n3"), Some(&victim), "{case}, turn {turn}");
                            let liar = keys_of(&admission, "n2");
                            let takes = |state: &State| {
                                state
                                    .slots
                                    .iter()
                                    .any(|(_, slot)| victim.slots.iter().any(|(_, own)| own.key == slot.key))
                            };
                            assert!(!liar.is_some_and(takes), "{case}: {liar:?}");
                            assert!(codes(&admission).iter().all(|(node, _)| *node == "n2"), "{case}");
                            if !accept_unproven {
                                assert_eq!(codes(&admission), [("n2", code)], "{case}");
                            }
                            ledger = admission.ledger;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn keys_that_are_copied_in_the_same_batch_as_an_emergency_rotation_stay_their_owners() {
    let former = honest(3);
    let ledger =
        admitted(&policy(), &[own(), node(2, 2, &honest(2)), node(3, 3, &former)], &Ledger::default()).ledger;
    let fresh = proven(3, 2, [32, 33], [32, 33]);
    for lie in [state(2, 2, [32, 33]), proven(2, 2, [20, 32], [20, 20]), state(2, 2, [20, 33])] {
        let admission = admitted(&policy(), &[own(), node(2, 2, &lie), node(3, 3, &fresh)], &ledger);
        assert_eq!(keys_of(&admission, "n3"), Some(&fresh), "not the former keys");
        assert_eq!(keys_of(&admission, "n2"), Some(&honest(2)), "the liar keeps its own");
    }
}

#[test]
fn of_two_nodes_that_share_a_private_key_the_newcomer_is_refused_and_told_so() {
    let (original, copy) = (node(2, 2, &honest(2)), node(3, 3, &proven(3, 1, [20, 31], [20, 31])));
    let fresh = admitted(&policy(), &[own(), original.clone(), copy.clone()], &Ledger::default());
    assert_eq!(codes(&fresh), [("n3", "key-shared")]);
    assert!(fresh.rejected[0].reason.to_string().contains("u2"), "{}", fresh.rejected[0].reason);
    // Whoever was there first stays, even if its Node is the younger one.
    let ledger = admitted(&policy(), &[own(), copy.clone()], &Ledger::default()).ledger;
    let known = admitted(&policy(), &[own(), original.clone(), copy], &ledger);
    assert_eq!(codes(&known), [("n2", "key-shared")]);
    // The copy itself sees its keys on another Node, with a proof.
    let policy = AdmissionPolicy { own_keys: [private(20).public()].into(), ..policy() };
    let told = admitted(&policy, &[own(), original], &Ledger::default());
    assert_eq!(codes(&told), [("n2", "key-shared")]);
    assert!(told.rejected[0].reason.to_string().contains("also this node's"));
}

#[test]
fn our_keys_are_refused_on_another_node_with_or_without_a_proof() {
    let policy =
        AdmissionPolicy { own_keys: [private(10).public()].into(), accept_unproven: true, ..policy() };
    for (code, lie) in [
        ("key-own", state(2, 1, [10, 21])),
        ("proof-invalid", proven(2, 1, [10, 21], [21, 21])),
        ("key-shared", proven(2, 1, [10, 21], [10, 21])),
    ] {
        let admission = admitted(&policy, &[own(), node(2, 2, &lie)], &Ledger::default());
        assert_eq!(codes(&admission), [("n2", code)]);
        assert!(admission.world.peers.is_empty());
    }
}

#[test]
fn nodes_without_proofs_are_members_only_where_they_are_accepted() {
    let records = [own(), node(2, 2, &state(2, 1, own_keys(2)))];
    let refused = admitted(&policy(), &records, &Ledger::default());
    assert_eq!(codes(&refused), [("n2", "proof-missing")]);
    let accepting = AdmissionPolicy { accept_unproven: true, ..policy() };
    let accepted = admitted(&accepting, &records, &Ledger::default());
    assert!(!accepted.world.peers[&NodeName::new("n2")].is_proven());
    // What was accepted on these terms is worth nothing without them.
    let later = admitted(&policy(), &records, &accepted.ledger);
    assert_eq!(codes(&later), [("n2", "proof-missing")]);
    assert!(later.world.peers.is_empty());
    let proven = admitted(&policy(), &[own(), node(2, 2, &honest(2))], &later.ledger);
    assert!(proven.world.peers[&NodeName::new("n2")].is_proven());
}

#[test]
fn a_node_that_has_shown_a_proof_is_held_to_it_for_good() {
    let policy = AdmissionPolicy { accept_unproven: true, ..policy() };
    let bare = node(2, 2, &state(2, 2, [22, 23]));
    let mut ledger = admitted(&policy, &[own(), node(2, 2, &honest(2))], &Ledger::default()).ledger;
    let refused = admitted(&policy, &[own(), bare.clone()], &ledger);
    assert_eq!(codes(&refused), [("n2", "proof-missing")]);
    assert_eq!(keys_of(&refused, "n2"), Some(&honest(2)), "the last keys that it proved stay");
    // Whatever happens between: no annotation, no podCIDR, a restart of the observer.
    for record in [
        NodeRecord { state: None, ..bare.clone() },
        NodeRecord { pod_cidrs: Vec::new(), ..bare.clone() },
        NodeRecord { state: Some("{".to_owned()), ..bare.clone() },
    ] {
        ledger = admitted(&policy, &[own(), record], &ledger).ledger;
        ledger = serde_json::from_str(&serde_json::to_string(&ledger).unwrap()).unwrap();
        let admission = admitted(&policy, &[own(), bare.clone()], &ledger);
        assert!(codes(&admission).contains(&("n2", "proof-missing")));
        assert!(keys_of(&admission, "n2").is_none_or(|state| state.proofs.is_some()));
    }
    // Even one that was refused for another reason has shown it.
    let shared = node(2, 2, &proven(2, 1, [20, 21], [20, 21]));
    let first =
        admitted(&policy, &[own(), node(3, 1, &proven(3, 1, [20, 31], [20, 31]))], &Ledger::default());
    let ledger =
        admitted(&policy, &[own(), node(3, 1, &proven(3, 1, [20, 31], [20, 31])), shared], &first.ledger);
    assert_eq!(codes(&ledger), [("n2", "key-shared")]);
    let admission = admitted(&policy, &[own(), bare], &ledger.ledger);
    assert_eq!(codes(&admission), [("n2", "proof-missing")]);
}

#[test]
fn proofs_in_a_ledger_of_version_0_1_are_verified() {
    let forged = proven(2, 1, own_keys(2), own_keys(3));
    let accepting = AdmissionPolicy { accept_unproven: true, ..policy() };
    // Version 0.1 accepts the state and keeps its text with fields that it does not know.
    let bare =
        admitted(&accepting, &[own(), node(2, 2, &state(2, 1, own_keys(2)))], &Ledger::default()).ledger;
    let stored = |state: &State| {
        let mut ledger = serde_json::to_value(&bare).unwrap();
        ledger.as_object_mut().unwrap().remove("proved");
        ledger["nodes"]["u2"]["record"]["state"] = state.render().into();
        serde_json::from_value::<Ledger>(ledger).unwrap()
    };
    for (state, is_member) in [(&forged, false), (&honest(2), true)] {
        let record = node(2, 2, state);
        let ledger = stored(state);
        assert_eq!(ledger.has_proved(&record.uid), is_member);
        let admission = admitted(&policy(), &[own(), record], &ledger);
        assert_eq!(keys_of(&admission, "n2").is_some(), is_member);
    }
}

#[test]
fn what_the_ledger_has_is_not_verified_again() {
    let ledger = admitted(&policy(), &[own(), node(2, 2, &honest(2))], &Ledger::default()).ledger;
    let text = serde_json::to_string(&ledger).unwrap();
    // A ledger with a proof that is not valid is not ours; it shows what is taken from it without verification.
    let zeros = Proof::from_bytes([0; 64]).to_base64();
    let valid = honest(2).proofs.unwrap().a.to_base64();
    let planted: Ledger = serde_json::from_str(&text.replace(&valid, &zeros)).unwrap();
    let mut record = node(2, 2, &honest(2));
    record.state = record.state.map(|text| text.replace(&valid, &zeros));
    let admission = admitted(&policy(), &[own(), record.clone()], &planted);
    assert!(admission.rejected.is_empty(), "{:?}", admission.rejected);
    assert_eq!(codes(&admitted(&policy(), &[own(), record], &ledger)), [("n2", "proof-invalid")]);
}

#[test]
fn generations_step_and_do_not_jump() {
    let at = |generation, keys| node(2, 2, &proven(2, generation, keys, keys));
    let known = at(5000, own_keys(2));
    let ledger = admitted(&policy(), &[own(), known], &Ledger::default()).ledger;
    let others = [24, 25];
    for (generation, keys, expected) in [
        (5000, own_keys(2), None),
        (5001, others, None),
        (5000 + GENERATION_STEP, others, None),
        (5000, others, Some("generation-reused")),
        (4999, own_keys(2), Some("generation-went-back")),
        (1, others, Some("generation-went-back")),
        (5001 + GENERATION_STEP, others, Some("generation-jumped")),
        (1 << 53, others, Some("generation-jumped")),
    ] {
        let admission = admitted(&policy(), &[own(), at(generation, keys)], &ledger);
        assert_eq!(codes(&admission).first().map(|(_, code)| *code), expected, "{generation}");
        let stands = if expected.is_some() { 5000 } else { generation };
        assert_eq!(keys_of(&admission, "n2").map(|state| state.generation), Some(stands));
    }
}

/// Whoever has this node's token can write anybody's keys into its annotation.
#[test]
fn what_stands_on_the_own_node_keeps_no_other_node_from_its_keys() {
    let victim = honest(3);
    let [a, b] = own_keys(3);
    let mut copied = state(1, 2, [a, b]);
    copied.proofs = victim.proofs;
    for lie in [victim.clone(), copied, state(1, 2, [a, b])] {
        for accept_unproven in [false, true] {
            let policy = AdmissionPolicy { accept_unproven, ..policy() };
            let records = [node(1, 1, &lie), node(3, 3, &victim)];
            let mut ledger = admitted(&policy, &[own(), records[1].clone()], &Ledger::default()).ledger;
            for turn in 0..3 {
                let admission = admitted(&policy, &records, &ledger);
                assert_eq!(keys_of(&admission, "n3"), Some(&victim), "turn {turn}: {:?}", admission.rejected);
                ledger = admission.ledger;
            }
        }
    }
}
