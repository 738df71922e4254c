//! Who holds which key and prefix. A proven key takes precedence over an unproven one; otherwise incumbents come first.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use keyring::PublicKey;

use super::admitter::Candidate;
use crate::annotation::State;
use crate::node::{NodeName, NodeUid};
use crate::prefix;

/// Everything that is held so far.
#[derive(Debug, Default)]
pub(super) struct Claims {
    keys: BTreeMap<PublicKey, KeyHolder>,
    /// Disjoint prefixes by first address, so that an overlap is found by looking at one neighbour.
    prefixes: BTreeMap<IpAddr, (IpNetwork, NodeUid)>,
}

/// Who holds a key.
#[derive(Debug)]
struct KeyHolder {
    uid: NodeUid,
    proven: bool,
}

impl Claims {
    /// Reserves what known nodes held before and still claim. Without this a known node could take what another known
    /// node, considered later, has long had. This node's own keys are not those on its Node: a thief of its token could have
    /// written anybody's there.
    pub(super) fn of_incumbents(candidates: &[Candidate<'_>], own: &NodeName, accept_unproven: bool) -> Self {
        let mut claims = Self::default();
        for (record, entry) in candidates.iter().filter_map(|one| Some((one.record, one.entry?))) {
            let uid = &record.uid;
            let state = entry.state().filter(|_| record.name != *own);
            if let Some(state) = state.filter(|state| state.proofs.is_some() || accept_unproven) {
                claims.hold_keys(uid, state);
            }
            let claimed: Vec<IpNetwork> =
                record.pod_cidrs.iter().filter_map(|text| prefix::parse_canonical(text)).collect();
            let held: Vec<IpNetwork> = entry.pod_cidrs().filter(|held| claimed.contains(held)).collect();
            claims.hold_prefixes(uid, &held);
        }
        claims
    }

    /// Reserves a state's keys. One that is proven takes the place of one that is not.
    pub(super) fn hold_keys(&mut self, uid: &NodeUid, state: &State) {
        let proven = state.proofs.is_some();
        for (_, slot) in state.slots.iter() {
            if self.keys.get(&slot.key).is_none_or(|holder| proven && !holder.proven) {
                self.keys.insert(slot.key, KeyHolder { uid: uid.clone(), proven });
            }
        }
    }

    pub(super) fn hold_prefixes(&mut self, uid: &NodeUid, prefixes: &[IpNetwork]) {
        for held in prefixes {
            if self.holder_of_prefix(uid, *held).is_none() {
                self.prefixes.insert(held.network(), (*held, uid.clone()));
            }
        }
    }

    /// Who else holds a key; for one who has proved it, who else has proved it.
    pub(super) fn holder_of_key(&self, uid: &NodeUid, key: &PublicKey, proven: bool) -> Option<NodeUid> {
        let holder = self.keys.get(key).filter(|holder| holder.uid != *uid)?;
        (holder.proven || !proven).then(|| holder.uid.clone())
    }

    /// Who else holds a prefix that has an address in common with this one.
    pub(super) fn holder_of_prefix(&self, uid: &NodeUid, wanted: IpNetwork) -> Option<NodeUid> {
        // Held prefixes are disjoint: of those that begin at or before the end of the wanted one, those that
        // reach into it are the last before its start and all that begin inside it.
        let before = self.prefixes.range(..=wanted.network()).next_back();
        let inside = self.prefixes.range(wanted.network()..=prefix::last(wanted));
        let mut near = before.into_iter().chain(inside).map(|(_, held)| held);
        near.find(|(held, holder)| holder != uid && prefix::overlap(*held, wanted))
            .map(|(_, holder)| holder.clone())
    }
}
