//! Where this node's datagrams come from, as peers see them: which addresses NATs map them to, and what kind of NAT that is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keyring::{PerSlot, Slot};

use crate::annotation::{Endpoints, MAX_OBSERVED, Mapping};
use crate::network::LinkAddress;
use crate::node::NodeUid;

/// Most addresses on its own links that a node publishes.
const MAX_PUBLISHED: usize = 8;
/// How long reports are gathered before they are published.
const SETTLE: Duration = Duration::from_secs(1);
/// Changes of mapped addresses that may be published at once, and after how long another one may.
const BURST: u32 = 3;
const REFILL: Duration = Duration::from_mins(1);

/// What peers report, and what of it is published.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    reports: PerSlot<BTreeMap<NodeUid, Report>>,
    published: (PerSlot<Vec<SocketAddr>>, Mapping),
    /// Since when what is published is out of date.
    changed: Option<Duration>,
    spent: u32,
    refilled: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    /// Where this node's datagrams came from.
    seen: SocketAddr,
    /// The observer's own address, as this node knows it: a NAT may map each destination anew.
    observer: IpAddr,
}

impl Observations {
    /// Takes a report of a peer at `observer`: this node's datagrams on a slot come from `seen`.
    pub fn report(&mut self, uid: NodeUid, slot: Slot, seen: SocketAddr, observer: IpAddr) {
        self.reports.get_mut(slot).insert(uid, Report { seen, observer });
    }

    /// Forgets everything: the node's own addresses have changed.
    pub fn clear(&mut self) {
        self.reports = PerSlot::default();
    }

    /// Forgets what nodes have reported that are not peers any more.
    pub fn retain(&mut self, is_peer: impl Fn(&NodeUid) -> bool) {
        self.reports.a.retain(|uid, _| is_peer(uid));
        self.reports.b.retain(|uid, _| is_peer(uid));
    }

    /// Decides what to publish; returns the mapped addresses by slot and the kind of NAT. What changes waits for a
    /// moment, and not more than a few times in a minute is anything else published.
    pub fn publish(&mut self, now: Duration, own: &BTreeSet<IpAddr>) -> (PerSlot<Vec<SocketAddr>>, Mapping) {
        while self.spent > 0 && now >= self.refilled + REFILL {
            self.spent -= 1;
            self.refilled += REFILL;
        }
        let mapping = self.mapping(own);
        let wanted = (PerSlot::from_fn(|slot| self.mapped(slot, mapping, own)), mapping);
        if wanted == self.published {
            self.changed = None;
            return wanted;
        }
        let since = *self.changed.get_or_insert(now);
        if now >= since + SETTLE && self.spent < BURST {
            if self.spent == 0 {
                self.refilled = now;
            }
            self.spent += 1;
            self.changed = None;
            self.published = wanted;
        }
        self.published.clone()
    }

    /// The addresses that this node's datagrams come from.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let reports = self.reports.a.values().chain(self.reports.b.values());
        reports.map(|report| report.seen.ip()).collect()
    }

    /// The kind of NAT. Observers at the same address can't tell an easy one from a hard one. Two that agree outweigh one
    /// that does not: it may lie, or be reached along another path.
    pub fn mapping(&self, own: &BTreeSet<IpAddr>) -> Mapping {
        let mut kind = Mapping::Unknown;
        for (_, reports) in self.reports.iter() {
            let (mapped, unmapped): (Vec<Report>, Vec<Report>) =
                reports.values().copied().partition(|report| !own.contains(&report.seen.ip()));
            // A neighbour on the same link sees the address itself, whatever NAT there is towards others.
            let outside: Vec<&Report> =
                mapped.iter().filter(|report| super::is_public(report.seen.ip())).collect();
            let observers: BTreeSet<IpAddr> = outside.iter().map(|report| report.observer).collect();
            let agree = outside.iter().any(|one| {
                outside.iter().any(|other| one.seen == other.seen && one.observer != other.observer)
            });
            let here = match (agree, observers.len()) {
                (true, _) => Mapping::Easy,
                (false, 2..) => Mapping::Hard,
                (false, 1) => Mapping::Unknown,
                (false, _) if unmapped.is_empty() => Mapping::Unknown,
                (false, _) => Mapping::None,
            };
            kind = worst(kind, here);
        }
        kind
    }

    /// The mapped addresses of a slot that are of use to others, those first that most observers report.
    fn mapped(&self, slot: Slot, mapping: Mapping, own: &BTreeSet<IpAddr>) -> Vec<SocketAddr> {
        if mapping == Mapping::Hard {
            return Vec::new();
        }
        let mut counted: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for report in self.reports.get(slot).values().filter(|report| !own.contains(&report.seen.ip())) {
            *counted.entry(report.seen).or_default() += 1;
        }
        let mut sorted: Vec<(SocketAddr, usize)> = counted.into_iter().collect();
        sorted.sort_by_key(|(seen, count)| (!super::is_public(seen.ip()), usize::MAX - count, *seen));
        sorted.into_iter().map(|(seen, _)| seen).take(MAX_OBSERVED).collect()
    }
}

fn worst(one: Mapping, other: Mapping) -> Mapping {
    let rank = |mapping| match mapping {
        Mapping::Unknown => 0,
        Mapping::None => 1,
        Mapping::Easy => 2,
        Mapping::Hard => 3,
    };
    if rank(one) >= rank(other) { one } else { other }
}

/// The addresses on its own links that a node publishes: those that its Node lists first, in that order, then the others
/// that may lead to it. The second value says how many are left out because there are too many.
pub fn published_addresses(
    listed: &[IpAddr],
    on_links: &[LinkAddress],
    is_usable: impl Fn(IpAddr) -> bool,
) -> (Vec<IpAddr>, usize) {
    let has = |address: &IpAddr| on_links.iter().any(|link| link.address.ip() == *address);
    let mut published: Vec<IpAddr> = Vec::new();
    let others = on_links.iter().filter(|link| !is_internal(link.kind.as_deref()));
    let others = others.map(|link| link.address.ip()).filter(|address| is_usable(*address));
    for address in listed.iter().copied().filter(has).chain(others) {
        if !published.contains(&address) && !crate::prefix::is_special(address) {
            published.push(address);
        }
    }
    let left_out = published.len().saturating_sub(MAX_PUBLISHED);
    published.truncate(MAX_PUBLISHED);
    (published, left_out)
}

/// Links behind which other software has networks of its own: nobody outside the node reaches an address there.
fn is_internal(kind: Option<&str>) -> bool {
    kind.is_some_and(|kind| ["bridge", "vxlan", "geneve", "tun", "wireguard", "dummy"].contains(&kind))
}

/// What a node publishes about itself, from what it is configured with and what it knows.
pub fn endpoints(
    addresses: Vec<IpAddr>,
    external: Vec<IpAddr>,
    (observed, mapping): (PerSlot<Vec<SocketAddr>>, Mapping),
    nat: bool,
) -> Endpoints {
    Endpoints { addresses, external, observed, mapping, nat: nat || mapping.is_mapped(), sequence: 0 }
}
