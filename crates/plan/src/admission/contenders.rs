//! Which Nodes compete with which: those that have nothing in common can be admitted apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use keyring::PublicKey;

use super::addresses::MAX_CLOSED;
use super::ledger::{MAX_LISTED, SharedEntry};
use crate::annotation::State;
use crate::node::{NodeName, NodeRecord, NodeUid};
use crate::prefix;

/// Most Nodes that are admitted apart from the others: with more, an admission of all of them costs about as much.
pub(super) const LARGEST: usize = 512;

/// What one node can have at most, so that those that claim it compete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    /// A UID. The API server gives each once; the ledger and the evidence are kept by it.
    Uid(NodeUid),
    /// A public key.
    Key(PublicKey),
    /// A pod range: Nodes compete for ranges that overlap.
    Prefix {
        /// First address.
        first: IpAddr,
        /// Prefix length in bits.
        length: u8,
    },
    /// A Node's address, whether it is valid or not.
    Address(IpAddr),
}

impl Resource {
    fn prefix(net: IpNetwork) -> Self {
        Self::Prefix { first: net.network(), length: net.prefix() }
    }
}

/// Everything that a Node claims now, and that the ledger has of it. More than what an admission makes of it does no harm.
pub(super) fn resources(
    record: &NodeRecord,
    state: Option<&State>,
    entry: Option<&SharedEntry>,
) -> Vec<Resource> {
    let states = state.into_iter().chain(entry.and_then(SharedEntry::state));
    let keys = states.flat_map(|state| state.slots.iter().map(|(_, slot)| Resource::Key(slot.key)));
    let listed = record.pod_cidrs.iter().take(MAX_LISTED).filter_map(|text| prefix::parse_canonical(text));
    let held = entry.into_iter().flat_map(SharedEntry::pod_cidrs);
    let addresses = record.addresses.iter().take(MAX_CLOSED).filter_map(|text| text.parse().ok());
    let mut all: Vec<Resource> = keys
        .chain(listed.chain(held).map(Resource::prefix))
        .chain(addresses.map(Resource::Address))
        .chain([Resource::Uid(record.uid.clone())])
        .collect();
    all.sort_unstable();
    all.dedup();
    all.shrink_to_fit();
    all
}

/// What all Nodes claim, in both directions.
#[derive(Clone, Debug, Default)]
pub(super) struct Contenders {
    by_resource: BTreeSet<(Resource, NodeName)>,
    by_node: BTreeMap<NodeName, Vec<Resource>>,
    /// How many prefixes there are of each family and length: the wider ones that contain a prefix are looked up by length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Contenders {
    /// Sets what a Node claims; nothing if it is gone.
    pub(super) fn set(&mut self, node: &NodeName, resources: Vec<Resource>) {
        if self.of(node) == resources.as_slice() {
            return;
        }
        for resource in self.by_node.remove(node).unwrap_or_default() {
            if let Some(key) = length(&resource)
                && let Some(count) = self.lengths.get_mut(&key)
            {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&key);
                }
            }
            self.by_resource.remove(&(resource, node.clone()));
        }
        if resources.is_empty() {
            return;
        }
        for resource in &resources {
            if let Some(key) = length(resource) {
                *self.lengths.entry(key).or_default() += 1;
            }
            self.by_resource.insert((resource.clone(), node.clone()));
        }
        self.by_node.insert(node.clone(), resources);
    }

    /// What a Node claims.
    pub(super) fn of(&self, node: &NodeName) -> &[Resource] {
        self.by_node.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// The Nodes with a UID: one, unless something is wrong.
    pub(super) fn with_uid(&self, uid: &NodeUid) -> impl Iterator<Item = &NodeName> {
        self.claiming(Resource::Uid(uid.clone()))
    }

    /// The changed Nodes with all that compete with them, directly or by others, before the change or after it; `after` has
    /// what changed Nodes claim now. None if these are too many.
    pub(super) fn component(
        &self,
        changed: &BTreeSet<NodeName>,
        after: &BTreeMap<NodeName, Vec<Resource>>,
    ) -> Option<BTreeSet<NodeName>> {
        let mut found = BTreeSet::new();
        let mut next: Vec<NodeName> = changed.iter().cloned().collect();
        while let Some(node) = next.pop() {
            if found.contains(&node) {
                continue;
            }
            for resource in self.of(&node).iter().chain(after.get(&node).into_iter().flatten()) {
                self.visit(resource, |other| {
                    if !found.contains(other) && *other != node {
                        next.push(other.clone());
                    }
                });
            }
            found.insert(node);
            if found.len() > LARGEST {
                return None;
            }
        }
        Some(found)
    }

    /// Visits all that compete for a resource.
    fn visit(&self, resource: &Resource, mut visit: impl FnMut(&NodeName)) {
        let Resource::Prefix { first, length } = resource else {
            return self.claiming(resource.clone()).for_each(visit);
        };
        let Ok(net) = IpNetwork::new(*first, *length) else { return };
        let last = prefix::last(net);
        let begin = (Resource::Prefix { first: *first, length: 0 }, NodeName::default());
        let inside = self
            .by_resource
            .range(begin..)
            .take_while(|(other, _)| matches!(other, Resource::Prefix { first, .. } if *first <= last));
        inside.for_each(|(_, node)| visit(node));
        for (_, wider) in self.lengths.range((net.is_ipv6(), 0)..(net.is_ipv6(), *length)).map(|(key, _)| key)
        {
            let outer = IpNetwork::new(*first, *wider).map(|net| net.network());
            // What begins at the same address was visited.
            if let Some(outer) = outer.ok().filter(|outer| outer != first) {
                self.claiming(Resource::Prefix { first: outer, length: *wider }).for_each(&mut visit);
            }
        }
    }

    /// The Nodes that claim exactly this.
    fn claiming(&self, resource: Resource) -> impl Iterator<Item = &NodeName> {
        let begin = (resource.clone(), NodeName::default());
        let all = self.by_resource.range(begin..);
        all.take_while(move |(other, _)| *other == resource).map(|(_, node)| node)
    }
}

fn length(resource: &Resource) -> Option<(bool, u8)> {
    match resource {
        Resource::Prefix { first, length } => Some((first.is_ipv6(), *length)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Prefixes of all lengths in a small space, so that they are nested.
    fn net() -> impl Strategy<Value = IpNetwork> {
        (any::<bool>(), 0..=8_u8, any::<u8>()).prop_map(|(v6, length, bits)| {
            let bits = if length == 0 { 0 } else { bits & (0xff << (8 - length)) };
            let (address, length): (IpAddr, u8) = if v6 {
                (std::net::Ipv6Addr::new(0xfd00 + u16::from(bits), 0, 0, 0, 0, 0, 0, 0).into(), 8 + length)
            } else {
                ([10, bits, 0, 0].into(), 8 + length)
            };
            IpNetwork::new(address, length).unwrap()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_component_is_what_overlaps_directly_or_by_others(
            former in prop::collection::vec(prop::collection::vec(net(), 0..3), 1..12),
            latter in prop::collection::vec(prop::option::of(prop::collection::vec(net(), 0..3)), 12),
            changed in prop::collection::btree_set(0..12_usize, 1..3),
        ) {
            let name = |number: usize| NodeName::new(format!("n{number}"));
            let row = |nets: &[IpNetwork]| nets.iter().map(|net| Resource::prefix(*net)).collect::<Vec<_>>();
            let mut index = Contenders::default();
            // Set twice: what was there before leaves nothing behind.
            for nets in latter.iter().flatten().zip(&former) {
                index.set(&name(0), row(nets.0));
            }
            for (number, nets) in former.iter().enumerate() {
                index.set(&name(number), row(nets));
            }
            let after: BTreeMap<NodeName, Vec<Resource>> = changed
                .iter()
                .map(|number| (name(*number), row(latter[*number].as_deref().unwrap_or_default())))
                .collect();
            let nets = |number: usize| -> Vec<IpNetwork> {
                let mut all = former.get(number).cloned().unwrap_or_default();
                if changed.contains(&number) {
                    all.extend(latter[number].iter().flatten());
                }
                all
            };
            let mut expected = changed.clone();
            loop {
                let meets = |number: &usize| {
                    expected.iter().any(|other| {
                        nets(*number).iter().any(|one| nets(*other).iter().any(|two| prefix::overlap(*one, *two)))
                    })
                };
                let more: BTreeSet<usize> = (0..former.len()).filter(meets).chain(expected.iter().copied()).collect();
                if more == expected {
                    break;
                }
                expected = more;
            }
            let found = index.component(&changed.into_iter().map(name).collect(), &after);
            prop_assert_eq!(found, Some(expected.into_iter().map(name).collect()));
        }
    }

    #[test]
    fn too_many_that_compete_are_no_part() {
        let address =
            |number: usize| vec![Resource::Address([192, 0, 2, u8::try_from(number % 250).unwrap()].into())];
        let name = |number: usize| NodeName::new(format!("n{number}"));
        let mut index = Contenders::default();
        for number in 0..=LARGEST {
            index.set(&name(number), address(0));
        }
        let component = |index: &Contenders| index.component(&[name(0)].into(), &BTreeMap::new());
        assert_eq!(component(&index), None);
        index.set(&name(LARGEST), address(1));
        assert_eq!(component(&index).unwrap().len(), LARGEST);
        index.set(&name(0), Vec::new());
        assert_eq!(component(&index).unwrap().len(), 1, "gone");
    }
}
