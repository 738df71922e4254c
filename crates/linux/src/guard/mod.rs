//! The guard: the nft table `inet meshd`, which drops every packet with a pod address outside WireGuard.
//!
//! It is put in place in one transaction, so there is no moment without it, and it outlives the process.
//! Whether it still is in place is read from the kernel: the chains, all rules in their order with comment and
//! expressions, and the members of the sets must be those that `rules` computes.

mod chain_end;
pub mod iptables;
mod others;
mod owner;
mod rules;

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use plan::network::{Guard, LinkName};

use crate::error::{HostError, Subject};
use crate::nft::found_rules::{FoundRule, found_rules};
use crate::nft::{Agreement, Chain, ChainShape, Table, agreement};
pub(crate) use others::dropping_chains;
pub use owner::{GuardOwner, GuardRecord};
use rules::Purpose;

/// Name of the table; its family is `inet`.
pub const TABLE: &str = "meshd";
static GUARD: Table = Table { name: TABLE, subject: Subject::Guard };

/// Packets that the guard dropped since its table was last put in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// With a pod address, from outside the mesh.
    pub incoming: u64,
    /// With a pod address, leaving unencrypted.
    pub outgoing: u64,
    /// From a pod, under an address that is not its own.
    pub spoofed: u64,
    /// From a pod to a closed Node address.
    pub closed: u64,
    /// With a pod address, about to leave unencrypted: all of them have to be among `outgoing`.
    pub seen: u64,
}

impl Drops {
    /// Packets with a pod address that were about to leave unencrypted, and were not dropped.
    pub const fn escaped(&self) -> u64 {
        self.seen.saturating_sub(self.outgoing)
    }
}

/// Puts the guard in place, as a table that has no owner, and replaces what was there. Blocks for one exchange with the kernel.
pub fn set(guard: &Guard) -> Result<(), HostError> {
    GuardOwner::new(false).set(guard)
}

/// Removes the guard; returns whether there was one.
pub fn remove() -> Result<bool, HostError> {
    GUARD.remove()
}

/// Whether there is a table of ours at all.
pub fn exists() -> Result<bool, HostError> {
    Ok(GUARD.flags()?.is_some())
}

/// Whether exactly this guard is in place.
pub fn is_in_place(guard: &Guard) -> Result<bool, HostError> {
    GUARD.is_in_place(&rules::sets(guard), &rules::chains(guard))
}

/// Whether everything that drops packets with an address in these ranges is in place: the chains at their hooks, with
/// exactly these rules. What decides which of pods' packets are masqueraded, and the members of the sets, are not looked
/// at. It takes five exchanges, however large other tables and this one's sets are: the CNI plugin asks for each pod.
pub fn filters_stand(
    cluster: &BTreeSet<IpNetwork>,
    mesh_links: &BTreeSet<LinkName>,
) -> Result<bool, HostError> {
    let guard = Guard { cluster: cluster.clone(), mesh_links: mesh_links.clone(), ..Guard::default() };
    chains_stand(&guard, &rules::filters(&guard))
}

/// Whether every rule of this guard stands, in its place. The guard in the kernel may know more: the members of its sets,
/// and which pods of this node are masqueraded, which are the last rules of their chain.
pub fn stands(guard: &Guard) -> Result<bool, HostError> {
    chains_stand(guard, &rules::chains(guard))
}

fn chains_stand(guard: &Guard, chains: &[Chain]) -> Result<bool, HostError> {
    if guard.cluster.is_empty() || !GUARD.is_active()? {
        return Ok(false);
    }
    let found = found_rules(&GUARD)?;
    for chain in chains {
        let agreement = agreement(chain, &found);
        let agrees = agreement == Agreement::Same
            || (agreement == Agreement::More && chain.name == rules::MASQUERADING);
        if !agrees || GUARD.found_chain(chain.name)? != Some(ChainShape::wanted(chain)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the guard dropped; of a packet that is counted at this moment, and not dropped yet, nothing is said.
fn settled_drops() -> Result<Drops, HostError> {
    let mut least = drops()?;
    // A packet takes microseconds from one chain to the next.
    for _ in 0..2 {
        if least.escaped() == 0 {
            break;
        }
        let next = drops()?;
        if next.escaped() < least.escaped() {
            least = next;
        }
    }
    Ok(least)
}

/// What the guard dropped.
pub fn drops() -> Result<Drops, HostError> {
    let rules = found_rules(&GUARD)?;
    let sum = |purpose: Purpose| {
        let mark = format!("meshd {} ", purpose.as_str());
        let counted =
            rules.iter().filter(|rule| rule.comment.as_ref().is_some_and(|text| text.starts_with(&mark)));
        counted.map(FoundRule::counted).sum()
    };
    Ok(Drops {
        incoming: sum(Purpose::In),
        outgoing: sum(Purpose::Out),
        spoofed: sum(Purpose::Spoof),
        closed: sum(Purpose::Closed),
        seen: sum(Purpose::Seen),
    })
}

#[cfg(test)]
mod tests;
