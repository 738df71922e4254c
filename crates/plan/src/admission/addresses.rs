//! Which node holds which address. An address that more than one Node lists is contested: only a node that was reached
//! there gets it.
//!
//! Neither age nor order of arrival counts, since a liar may be the oldest node. Nodes that are not in the mesh can't be
//! tested and never hold an address, but what they list is contested as well: otherwise a member would get the address
//! of a node that has not joined yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use keyring::PerSlot;

use super::ledger::MAX_LISTED;
use super::{AdmissionPolicy, Claim, Evidence, Member, Reason, reason};
use crate::node::{NodeRecord, NodeUid};
use crate::prefix;

/// Addresses of one Node that are closed at most while no member holds them.
pub(super) const MAX_CLOSED: usize = 64;

/// Other nodes that a reason names at most.
const MAX_NAMED: usize = 4;

/// One member's claim to one address.
#[derive(Clone, Copy, Debug)]
struct Claimant<'a> {
    member: &'a Member,
    /// Whether the ledger has the address as this node's.
    incumbent: bool,
    evidence: Option<Evidence>,
}

/// Everything that Nodes list.
#[derive(Debug)]
pub(super) struct Addresses<'a> {
    policy: &'a AdmissionPolicy,
    /// This node, and what it lists and has: that is not contested here, since a node knows its own addresses.
    own: Option<(NodeUid, BTreeSet<IpAddr>)>,
    claimants: BTreeMap<IpAddr, Vec<Claimant<'a>>>,
    /// Nodes that are not in the mesh, by what they list.
    outsiders: BTreeMap<IpAddr, Vec<&'a NodeUid>>,
    /// Addresses of Nodes that are not among those considered.
    outside: &'a BTreeSet<IpAddr>,
    /// What is closed unless somebody holds it: what all Nodes list as internal addresses, and as external ones where
    /// those are closed as well.
    closable: BTreeSet<IpAddr>,
    grants: BTreeMap<NodeUid, Grant>,
}

/// What one node is granted, and why it does not get the rest.
#[derive(Clone, Debug, Default)]
pub(super) struct Grant {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) refused: Vec<Reason>,
}

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) grants: BTreeMap<NodeUid, Grant>,
    pub(super) closed: BTreeSet<IpAddr>,
    pub(super) to_test: Vec<Claim>,
}

impl<'a> Addresses<'a> {
    pub(super) fn new(policy: &'a AdmissionPolicy, outside: &'a BTreeSet<IpAddr>) -> Self {
        Self {
            policy,
            own: None,
            claimants: BTreeMap::new(),
            outsiders: BTreeMap::new(),
            outside,
            closable: outside.clone(),
            grants: BTreeMap::new(),
        }
    }

    /// Takes what this node's own Node lists.
    pub(super) fn set_own(&mut self, record: &'a NodeRecord) {
        let (mut addresses, refused) = self.listed(record);
        if let Some(on_links) = &self.policy.own_addresses {
            for address in addresses.extract_if(.., |address| !on_links.contains(address)) {
                self.outsiders.entry(address).or_default().push(&record.uid);
                if self.policy.close_external {
                    self.closable.insert(address);
                }
            }
        }
        self.grants
            .insert(record.uid.clone(), Grant { addresses: addresses.iter().copied().collect(), refused });
        self.own = Some((record.uid.clone(), addresses));
    }

    /// Takes what a node lists that is not in the mesh.
    pub(super) fn list(&mut self, record: &'a NodeRecord) {
        let (addresses, _) = self.listed(record);
        self.close(record, &addresses);
        for address in addresses {
            self.outsiders.entry(address).or_default().push(&record.uid);
        }
    }

    /// Takes what a member lists; `held` are the addresses that the ledger has of it. An external address that it does not
    /// have on a link leads to it and is not its own: what pods send there is not for the mesh.
    pub(super) fn claim(&mut self, record: &'a NodeRecord, member: &'a Member, held: &[IpAddr]) {
        let (addresses, refused) = self.listed(record);
        self.close(record, &addresses);
        self.grants.insert(record.uid.clone(), Grant { addresses: Vec::new(), refused });
        let external = external(record);
        for address in addresses {
            if external.contains(&address) && !member.reach.addresses.contains(&address) {
                // Another node that lists it has to prove it.
                self.outsiders.entry(address).or_default().push(&record.uid);
                continue;
            }
            let evidence = self.policy.evidence.get(&(record.uid.clone(), address)).copied();
            let claimant = Claimant { member, incumbent: held.contains(&address), evidence };
            self.claimants.entry(address).or_default().push(claimant);
        }
    }

    /// Decides.
    pub(super) fn settle(self) -> Settled {
        let (mut grants, mut to_test) = (self.grants, Vec::new());
        let mut closed = self.closable;
        // A Node that is not in the mesh must not cut pods off from the API server.
        closed.retain(|address| !self.policy.api_servers.contains(address));
        for (address, claimants) in self.claimants {
            let outsiders = self.outsiders.get(&address).map(Vec::as_slice).unwrap_or_default();
            let holder = match (&self.own, claimants.as_slice()) {
                (Some((own, addresses)), _) if addresses.contains(&address) => Some(own),
                (_, [only]) if outsiders.is_empty() && !self.outside.contains(&address) => {
                    Some(&only.member.uid)
                }
                _ => {
                    to_test.extend(claimants.iter().map(|claimant| claim(claimant.member, address)));
                    let waited = self.policy.waited_for.contains(&address);
                    decide(&claimants, waited).map(|claimant| &claimant.member.uid)
                }
            };
            // A Node that is not in the mesh must not cut pods off from the API server here either.
            let is_api_server = claimants.len() == 1 && self.policy.api_servers.contains(&address);
            if holder.is_some() || is_api_server {
                closed.remove(&address);
            } else {
                closed.insert(address);
            }
            for Claimant { member: Member { uid, .. }, .. } in &claimants {
                let grant = grants.entry(uid.clone()).or_default();
                match holder {
                    Some(holder) if holder == uid => grant.addresses.push(address),
                    Some(holder) => {
                        grant.refused.push(Reason::AddressTaken { address, holder: holder.clone() });
                    }
                    None => {
                        let members = claimants.iter().map(|claimant| &claimant.member.uid);
                        let others = members.chain(outsiders.iter().copied()).filter(|other| *other != uid);
                        let others = others.take(MAX_NAMED).cloned().collect();
                        grant.refused.push(Reason::AddressContested { address, others });
                    }
                }
            }
        }
        if let Some((_, addresses)) = &self.own {
            closed.retain(|address| !addresses.contains(address));
        }
        Settled { grants, closed, to_test }
    }

    /// Closes what another node lists, unless it turns out who holds it.
    fn close(&mut self, record: &NodeRecord, addresses: &BTreeSet<IpAddr>) {
        // Those beyond what a node can have are nobody's, and claimed from nobody: another member may hold them.
        let beyond = record.addresses.iter().take(MAX_CLOSED).skip(MAX_LISTED);
        let beyond: Vec<IpAddr> = beyond.filter_map(|text| self.claimable(record, text).ok()).collect();
        let open = if self.policy.close_external { BTreeSet::new() } else { external(record) };
        let closable = addresses.iter().copied().chain(beyond).filter(|address| !open.contains(address));
        self.closable.extend(closable);
    }

    /// What a Node lists: the addresses that a node may hold, and why it can't hold the others.
    fn listed(&self, record: &NodeRecord) -> (BTreeSet<IpAddr>, Vec<Reason>) {
        let (mut addresses, mut refused) = (BTreeSet::new(), Vec::new());
        for text in record.addresses.iter().take(MAX_LISTED) {
            match self.claimable(record, text) {
                Ok(address) => drop(addresses.insert(address)),
                Err(reason) => refused.push(reason),
            }
        }
        if record.addresses.len() > MAX_LISTED {
            refused.push(Reason::AddressesCut { listed: record.addresses.len() });
        }
        (addresses, refused)
    }

    fn claimable(&self, record: &NodeRecord, text: &str) -> Result<IpAddr, Reason> {
        let policy = self.policy;
        let Ok(address) = text.parse::<IpAddr>() else {
            return Err(Reason::AddressInvalid { found: reason::quoted(text) });
        };
        let within = |ranges: &[IpNetwork]| ranges.iter().any(|range| range.contains(address));
        if prefix::is_special(address) {
            return Err(Reason::AddressSpecial { address });
        }
        if within(&policy.cluster_cidrs) || within(&policy.service_cidrs) {
            return Err(Reason::AddressInClusterRange { address });
        }
        if !policy.node_cidrs.is_empty() && !within(&policy.node_cidrs) {
            return Err(Reason::AddressOutside { address });
        }
        if policy.api_servers.contains(&address) && !record.control_plane {
            return Err(Reason::AddressOfApiServer { address });
        }
        Ok(address)
    }
}

/// What a Node lists as external addresses only.
fn external(record: &NodeRecord) -> BTreeSet<IpAddr> {
    record.external.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Who of several holds an address: the only one that has proven it, once the others have been tested or it has waited for
/// that long enough; of several, the incumbent. An incumbent keeps it until it has been tested itself.
fn decide<'a, 'b>(claimants: &'b [Claimant<'a>], waited: bool) -> Option<&'b Claimant<'a>> {
    let only = |wanted: fn(&Claimant<'_>) -> bool| {
        let mut found = claimants.iter().filter(|claimant| wanted(claimant));
        found.next().filter(|_| found.next().is_none())
    };
    let incumbent = only(|claimant| claimant.incumbent);
    let kept = incumbent.filter(|claimant| claimant.evidence != Some(Evidence::Unproven));
    let all_tested = claimants.iter().all(|claimant| claimant.evidence.is_some());
    // While another one is untested, it may prove the address as well; but liars could put that off for ever.
    let proven =
        || only(|claimant| claimant.evidence == Some(Evidence::Proven)).filter(|_| all_tested || waited);
    kept.or_else(proven)
}

/// What to test a member's claim with. Where an operator prescribes a port for this very address, that one.
fn claim(member: &Member, address: IpAddr) -> Claim {
    let prescribed = member.endpoint.filter(|endpoint| endpoint.address == address);
    let port = |slot| {
        let prescribed = prescribed.and_then(|_| member.socket(slot)).map(|socket| socket.port());
        prescribed.unwrap_or_else(|| member.state.slots.get(slot).port)
    };
    Claim {
        uid: member.uid.clone(),
        address,
        keys: PerSlot::from_fn(|slot| member.state.slots.get(slot).key),
        ports: PerSlot::from_fn(port),
    }
}

#[cfg(test)]
mod tests;
