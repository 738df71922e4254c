//! Who does not reach whom. A node that is known to be broken hides what follows from that.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Code, Problem};
use crate::reach::Reach;

/// How many peers are named.
const NAMED: usize = 5;

/// Adds a problem for each node that does not reach others.
pub(super) fn unreached(answers: &BTreeMap<String, Answer>, problems: &mut Vec<Problem>) {
    let works = |node: &str| matches!(answers.get(node), Some(Answer::Said(status)) if status.ready);
    // Peers that a node does not reach and that should answer; of nodes that are not of the cluster nothing is known.
    let down: BTreeMap<&str, BTreeSet<&str>> = answers
        .iter()
        .filter_map(|(node, answer)| {
            let Answer::Said(status) = answer else { return None };
            let down = status.peers.iter().filter(|peer| peer.state == Reach::Down);
            Some((node.as_str(), down.map(|peer| peer.node.as_str()).filter(|peer| works(peer)).collect()))
        })
        .filter(|(_, down): &(_, BTreeSet<&str>)| !down.is_empty())
        .collect();
    let working: BTreeSet<&str> = answers.keys().map(String::as_str).filter(|node| works(node)).collect();
    // Nodes that reach nobody, and that nobody reaches: what the others say of them follows from it.
    let is_alone = |node: &&str| {
        let others = working.len().saturating_sub(1);
        let by =
            working.iter().filter(|other| down.get(**other).is_some_and(|down| down.contains(node))).count();
        others > 1 && (down.get(node).is_some_and(|down| down.len() == others) || by == others)
    };
    let alone: BTreeSet<&str> = working.iter().copied().filter(is_alone).collect();
    // With all alone there is no one of them that the others' words follow from.
    let hides = alone.len() < working.len();
    for (node, peers) in &down {
        let left: Vec<&str> = peers
            .iter()
            .copied()
            .filter(|peer| alone.contains(node) || !hides || !alone.contains(peer))
            .collect();
        if let Some(what) = sentence(&left, alone.contains(node)) {
            problems.push(Problem::new(Code::Unreached, node, what).about(left));
        }
    }
    for node in alone.iter().filter(|node| hides && !down.contains_key(*node)) {
        problems.push(Problem::new(Code::Unreached, node, "no other node reaches it"));
    }
}

fn sentence(peers: &[&str], alone: bool) -> Option<String> {
    let named = peers.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match (peers.len(), alone) {
        (0, _) => None,
        (_, true) => Some("reaches no other node, or none reaches it".to_owned()),
        (count, _) if count > NAMED => Some(format!("does not reach {named} and {} more", count - NAMED)),
        _ => Some(format!("does not reach {named}")),
    }
}
