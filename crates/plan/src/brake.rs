//! Keeps the peers when the API server suddenly no longer lists their Nodes.
//!
//! A restored, emptied or half-synchronized store lists too few Nodes. Believing it would cut healthy nodes
//! off, so a list that loses more than a fifth of the peers at once is not followed for five minutes, unless
//! each missing Node is confirmed gone by a GET of its own. That confirmation counts only while our own
//! Node is there with the UID that it always had: a store that has forgotten us has forgotten others too.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::node::{NodeName, NodeUid};

/// How long missing nodes are kept.
pub const HOLD: Duration = Duration::from_mins(5);

/// A complete list, compared with what was known before it.
#[derive(Clone, Copy, Debug)]
pub struct Relist<'a> {
    /// Name of our own Node.
    pub own: &'a NodeName,
    /// UID of our own Node in the list, if it is there.
    pub own_uid: Option<&'a NodeUid>,
    /// Every Node that counted until now.
    pub known: &'a BTreeSet<NodeName>,
    /// Every Node in the list.
    pub listed: &'a BTreeSet<NodeName>,
    /// Missing Nodes for which a GET of each returned "not found".
    pub confirmed_gone: &'a BTreeSet<NodeName>,
}

/// What to do with the missing Nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptNodes {
    /// Missing Nodes that are kept for now.
    pub keep: BTreeSet<NodeName>,
    /// When those that are still missing are removed; none while our own Node is missing as well.
    pub release_at: Option<Duration>,
}

/// The brake. It remembers which UID our own Node had and until when the list is not trusted.
#[derive(Clone, Debug, Default)]
pub struct Brake {
    own_uid: Option<NodeUid>,
    distrust_until: Option<Duration>,
}

impl Brake {
    /// A brake that knows our own UID from the last run, if there was one.
    pub const fn new(own_uid: Option<NodeUid>) -> Self {
        Self { own_uid, distrust_until: None }
    }

    /// Whether lists are not trusted now, whatever is confirmed, because our own Node was recreated.
    pub fn distrusts(&self, now: Duration) -> bool {
        self.distrust_until.is_some_and(|until| now < until)
    }

    /// Evaluates a complete list. `now` is a monotonic time since any fixed moment.
    pub fn on_relist(&mut self, now: Duration, relist: &Relist<'_>) -> KeptNodes {
        let peers = relist.known.iter().filter(|name| *name != relist.own);
        let missing: BTreeSet<NodeName> =
            peers.clone().filter(|name| !relist.listed.contains(*name)).cloned().collect();
        let own_node = match (&self.own_uid, relist.own_uid) {
            (_, None) => OwnNode::Unknown,
            (Some(before), Some(found)) if before != found => OwnNode::Changed,
            _ => OwnNode::Same,
        };
        if own_node == OwnNode::Changed {
            self.distrust_until = Some(now + HOLD);
        }
        self.own_uid = relist.own_uid.cloned().or_else(|| self.own_uid.take());
        if own_node == OwnNode::Unknown && !missing.is_empty() {
            return KeptNodes { keep: missing, release_at: None };
        }
        let distrusted = self.distrusts(now);
        let many = missing.len() * 5 > peers.count();
        let unconfirmed = missing.iter().any(|name| !relist.confirmed_gone.contains(name));
        if missing.is_empty() || !(distrusted || (many && unconfirmed)) {
            return KeptNodes::default();
        }
        let release_at = self.distrust_until.filter(|_| distrusted).unwrap_or(now + HOLD);
        KeptNodes { keep: missing, release_at: Some(release_at) }
    }
}

/// What a list says of our own Node, and so of the store behind the API server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OwnNode {
    /// It has the UID that it had: the same store.
    Same,
    /// Our own Node was recreated.
    Changed,
    /// Our own Node is not there.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> BTreeSet<NodeName> {
        texts.iter().map(|text| NodeName::new(*text)).collect()
    }

    fn relist(
        brake: &mut Brake,
        at: u64,
        uid: Option<&str>,
        known: &[&str],
        listed: &[&str],
        gone: &[&str],
    ) -> KeptNodes {
        let uid = uid.map(NodeUid::new);
        brake.on_relist(
            Duration::from_secs(at),
            &Relist {
                own: &NodeName::new("n1"),
                own_uid: uid.as_ref(),
                known: &names(known),
                listed: &names(listed),
                confirmed_gone: &names(gone),
            },
        )
    }

    #[test]
    fn a_few_missing_nodes_are_removed_at_once() {
        let known = ["n1", "n2", "n3", "n4", "n5", "n6"];
        let verdict =
            relist(&mut Brake::default(), 0, Some("u"), &known, &["n1", "n2", "n3", "n4", "n5"], &[]);
        assert_eq!(verdict, KeptNodes::default(), "one of five peers is a fifth, not more");
    }

    #[test]
    fn many_missing_nodes_are_kept_for_five_minutes_unless_each_is_confirmed_gone() {
        let mut brake = Brake::default();
        let known = ["n1", "n2", "n3", "n4"];
        let verdict = relist(&mut brake, 10, Some("u"), &known, &["n1", "n2"], &["n3"]);
        assert_eq!(verdict.keep, names(&["n3", "n4"]));
        assert_eq!(verdict.release_at, Some(Duration::from_secs(310)));
        assert_eq!(
            relist(&mut brake, 11, Some("u"), &known, &["n1", "n2"], &["n3", "n4"]),
            KeptNodes::default()
        );
    }

    #[test]
    fn an_empty_list_never_removes_a_peer() {
        let mut brake = Brake::new(Some(NodeUid::new("u")));
        let verdict = relist(&mut brake, 0, None, &["n1", "n2", "n3"], &[], &["n2", "n3"]);
        assert_eq!(verdict, KeptNodes { keep: names(&["n2", "n3"]), release_at: None });
        let verdict = relist(&mut brake, 9999, None, &["n1", "n2", "n3"], &[], &["n2", "n3"]);
        assert_eq!(verdict.keep, names(&["n2", "n3"]));
    }

    #[test]
    fn a_store_that_recreated_our_node_is_not_believed_for_five_minutes() {
        let mut brake = Brake::new(Some(NodeUid::new("old")));
        let verdict = relist(&mut brake, 100, Some("new"), &["n1", "n2", "n3"], &["n1"], &["n2", "n3"]);
        assert_eq!(
            verdict,
            KeptNodes { keep: names(&["n2", "n3"]), release_at: Some(Duration::from_secs(400)) }
        );
        let verdict = relist(&mut brake, 200, Some("new"), &["n1", "n2", "n3"], &["n1", "n2"], &["n3"]);
        assert_eq!(verdict.release_at, Some(Duration::from_secs(400)), "the time does not start again");
        let verdict = relist(&mut brake, 400, Some("new"), &["n1", "n2", "n3"], &["n1", "n2"], &["n3"]);
        assert_eq!(verdict, KeptNodes::default());
    }
}
