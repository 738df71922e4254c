//! The members that a turn has decided about anew: what the parts of the daemon keep about all others stays as it is.

use std::collections::BTreeSet;

use keyring::rotation::PeerId;
use plan::admission::{Member, World};
use plan::node::{NodeName, NodeUid};

/// What is other about the members of one world than about those of an earlier one.
#[derive(Debug, Default)]
pub(super) struct Changes<'a> {
    /// Peers of which no member is left.
    pub(super) gone: Vec<PeerId>,
    /// Members that are new, or others than before, in the order of their names.
    pub(super) members: Vec<(&'a NodeName, &'a Member)>,
}

impl<'a> Changes<'a> {
    /// Compares two worlds, or what was decided about the same Nodes before and now.
    pub(super) fn between(former: &World, now: &'a World) -> Self {
        let present: BTreeSet<&NodeUid> = now.peers.values().map(|member| &member.uid).collect();
        let uids = former.peers.values().map(|member| &member.uid);
        let gone = uids.filter(|uid| !present.contains(uid)).map(NodeUid::peer_id).collect();
        let is_other = |(name, member): &(&NodeName, &Member)| former.peers.get(*name) != Some(*member);
        Self { gone, members: now.peers.iter().filter(is_other).collect() }
    }

    /// The peers that are gone or others.
    pub(super) fn ids(&self) -> BTreeSet<PeerId> {
        let others = self.members.iter().map(|(_, member)| member.uid.peer_id());
        self.gone.iter().cloned().chain(others).collect()
    }
}

#[cfg(test)]
mod tests;
