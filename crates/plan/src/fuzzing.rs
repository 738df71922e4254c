//! Bodies of the fuzz targets for annotations, so that their corpora also run as ordinary tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::admission::{AdmissionPolicy, Endpoint, Ledger, admit};
use crate::annotation::{Endpoints, MAX_LEN, State};
use crate::node::{NodeName, NodeRecord, NodeUid};
use crate::prefix;
use crate::renewal::Renewal;

/// Reads bytes as either annotation. What is read must be written and read again the same.
///
/// # Panics
///
/// If that does not hold: that is what a fuzzer looks for.
pub fn annotation(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(state) = State::parse(&text) {
        assert!(state.unproven().invalid_proof().is_none());
        let invalid = state.invalid_proof();
        let read = State::parse(&state.render());
        assert_eq!(read.as_ref().map(State::invalid_proof), Ok(invalid));
        assert_eq!(read, Ok(state));
    }
    if let Ok(endpoints) = Endpoints::parse(&text) {
        assert_eq!(Endpoints::parse(&endpoints.render()), Ok(endpoints));
    }
}

/// Reads bytes as each annotation that an operator sets, on another Node and on the node's own. Whatever they say, both are in
/// the mesh; what can't be used is refused with a reason, and what is used is something that may be.
///
/// # Panics
///
/// If that does not hold: that is what a fuzzer looks for.
pub fn config_annotation(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let policy = AdmissionPolicy {
        cluster_cidrs: vec![prefix::host([10, 0, 0, 1].into()), prefix::host([10, 0, 1, 1].into())],
        service_cidrs: vec![prefix::host([10, 9, 0, 1].into())],
        accept_unproven: true,
        ipv4: true,
        ipv6: true,
        ..AdmissionPolicy::default()
    };
    let record = |name: &str, host: u8| NodeRecord {
        name: NodeName::new(name),
        uid: NodeUid::new("u"),
        pod_cidrs: vec![format!("10.0.{host}.1/32")],
        state: Some(UNPROVEN.to_owned()),
        location: Some(text.clone()),
        config_endpoint: Some(text.clone()),
        config_keepalive: Some(text.clone()),
        config_renewal: Some(text.clone()),
        ..NodeRecord::default()
    };
    let (own, peer) = (NodeRecord { uid: NodeUid::new("o"), ..record("own", 0) }, record("peer", 1));
    let asked = admit(&policy, &own.name, [&own, &peer], &Ledger::default());
    // What the name stands for, if it is one; only one of these may be used.
    let answer: [IpAddr; 4] =
        [[10, 0, 1, 1].into(), [10, 9, 0, 1].into(), [192, 0, 2, 1].into(), [127, 0, 0, 1].into()];
    let name = asked.world.peers.get(&peer.name).and_then(|member| member.name.clone());
    let resolved: BTreeMap<_, _> = name.map(|name| (name, answer.to_vec())).into_iter().collect();
    let is_name = !resolved.is_empty();
    let admitted =
        admit(&AdmissionPolicy { resolved, ..policy.clone() }, &own.name, [&own, &peer], &asked.ledger);

    let is_refused = |node: &NodeRecord, code: &str| {
        let mut found = admitted.rejected.iter().filter(|found| found.node == node.name);
        assert!(found.clone().all(|found| found.stays), "{:?}", admitted.rejected);
        found.any(|found| found.reason.code() == code)
    };
    let (Some(member), Some(of_own)) = (admitted.world.peers.get(&peer.name), &admitted.world.own) else {
        panic!("{admitted:?}")
    };
    assert_eq!(member.keepalive.is_none(), is_refused(&peer, "config-keepalive"));
    assert_eq!(of_own.renewal.is_none(), is_refused(&own, "config-renewal"));
    assert_eq!(member.prescribed.is_none(), is_refused(&peer, "config-endpoint"));
    if let Some(renewal) = of_own.renewal {
        assert_eq!(renewal.to_string().parse::<Renewal>(), Ok(renewal));
    }
    for Endpoint { address, port } in member.prescribed.iter().flatten() {
        let mut ranges = policy.cluster_cidrs.iter().chain(&policy.service_cidrs);
        assert!(!prefix::is_special(*address) && !ranges.any(|range| range.contains(*address)));
        assert!(port.is_none_or(|port| (1..u16::MAX).contains(&port)));
        assert!(!is_name || *address == IpAddr::from([192, 0, 2, 1]));
    }
    // What is remembered, and goes to disk, is bounded.
    let kept = serde_json::to_value(&admitted.ledger);
    assert!(kept.as_ref().is_ok_and(|kept| longest(kept) <= MAX_LEN), "{kept:?}");
}

/// Length of the longest text in a document.
fn longest(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(longest).max().unwrap_or_default(),
        Value::Object(fields) => fields.values().map(longest).max().unwrap_or_default(),
        _ => 0,
    }
}

/// The state of a node of version 0.1.
const UNPROVEN: &str = r#"{"v":1,"uid":"u","gen":1,"slots":{"a":{"key":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=","g":1,"port":51840},"b":{"key":"CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=","g":1,"port":51841}},"prefer":"a","drain":null,"phase":"steady"}"#;

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn the_annotation_corpus_passes() {
        run("annotation", super::annotation);
    }

    #[test]
    fn the_corpus_of_operators_annotations_passes() {
        run("config_annotation", super::config_annotation);
    }

    #[expect(clippy::disallowed_methods, reason = "the corpus is files; the core that it is fed to has none")]
    fn run(target: &str, body: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            body(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 10, "only {count} files in the corpus of {target}");
    }

    /// The proofs in the corpus were made by another implementation, over a statement written by hand.
    #[test]
    fn the_proofs_in_the_corpus_are_valid_where_they_should_be() {
        for (text, valid) in [
            (include_str!("../../../fuzz/corpus/annotation/proofs"), true),
            (include_str!("../../../fuzz/corpus/annotation/proofs-swapped"), false),
        ] {
            let state = crate::annotation::State::parse(text).unwrap();
            assert!(state.proofs.is_some());
            assert_eq!(state.invalid_proof().is_none(), valid);
        }
    }
}
