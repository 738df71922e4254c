//! Where this node's datagrams come from, as peers see them: which addresses NATs map them to, and what kind of NAT that is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keyring::{PerSlot, Slot};

use crate::annotation::{Endpoints, MAX_OBSERVED, Mapping};
use crate::network::LinkAddress;
use crate::node::NodeUid;

/// Most addresses on its own links that a node publishes.
const MAX_PUBLISHED: usize = 8;
/// Most peers whose reports on a slot are kept: more say nothing new.
const MAX_OBSERVERS: usize = 32;
/// How long a report is good; peers repeat theirs every 10 min.
const REPORT_TTL: Duration = Duration::from_mins(25);
/// How long what the Node shows is kept after a start without any report.
const KEEP_SHOWN: Duration = Duration::from_mins(1);
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
    /// Since when nothing has been reported; what the Node shows is kept for a while then.
    silent_since: Option<Duration>,
    /// Since when what is published is out of date.
    changed: Option<Duration>,
    spent: u32,
    refilled: Duration,
    /// Reports that were given up for others, because there were too many.
    displaced: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    /// Where this node's datagrams came from.
    seen: SocketAddr,
    /// The observer's own address, as this node knows it: a NAT may map each destination anew.
    observer: IpAddr,
    at: Duration,
    /// What the peer had reported before, and when that changed.
    former: Option<(SocketAddr, Duration)>,
}

impl Observations {
    /// Takes a report of a peer at `observer`: this node's datagrams on a slot come from `seen`.
    pub fn report(&mut self, now: Duration, uid: NodeUid, slot: Slot, seen: SocketAddr, observer: IpAddr) {
        let reports = self.reports.get_mut(slot);
        if reports.len() >= MAX_OBSERVERS && !reports.contains_key(&uid) {
            make_room(reports);
            self.displaced += 1;
        }
        let former = match reports.get(&uid) {
            Some(report) if report.seen == seen => report.former,
            Some(report) => Some((report.seen, now)),
            None => None,
        };
        reports.insert(uid, Report { seen, observer, at: now, former });
    }

    /// How many reports were given up because as many as are kept were there. In a large mesh that is usual.
    pub const fn displaced(&self) -> u64 {
        self.displaced
    }

    /// Forgets everything: the node's own addresses have changed.
    pub fn clear(&mut self) {
        self.reports = PerSlot::default();
    }

    /// Forgets what nodes have reported that are not peers any more, and what has not been repeated.
    pub fn retain(&mut self, now: Duration, is_peer: impl Fn(&NodeUid) -> bool) {
        let is_good = |uid: &NodeUid, report: &mut Report| is_peer(uid) && now < report.at + REPORT_TTL;
        self.reports.a.retain(is_good);
        self.reports.b.retain(is_good);
    }

    /// Decides what to publish; returns the mapped addresses by slot and the kind of NAT. What changes waits for a
    /// moment, and not more than a few times in a minute is anything else published. What the own Node shows is `shown`: after
    /// a start it is kept until peers have reported, or have not for a while.
    pub fn publish(
        &mut self,
        now: Duration,
        own: &BTreeSet<IpAddr>,
        shown: Option<&Endpoints>,
    ) -> (PerSlot<Vec<SocketAddr>>, Mapping) {
        if self.reports.a.is_empty() && self.reports.b.is_empty() {
            let since = *self.silent_since.get_or_insert(now);
            if now < since + KEEP_SHOWN {
                if let Some(shown) = shown {
                    self.published = (shown.observed.clone(), shown.mapping);
                }
                return self.published.clone();
            }
        } else {
            self.silent_since = None;
        }
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

    /// The addresses that this node's datagrams come from, as far as they are published: what a single peer reports changes
    /// them no more often than that.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let (observed, _) = &self.published;
        observed.a.iter().chain(&observed.b).map(SocketAddr::ip).collect()
    }

    /// The reports on a slot that are not out of date. If two observers have seen the same change, those that have reported the
    /// former address before, and nothing since then, have not noticed it: idle peers repeat theirs after 10 min.
    fn current(&self, slot: Slot) -> Vec<Report> {
        let all = self.reports.get(slot).values();
        let is_outdated = |report: &Report| {
            let moved = all.clone().filter(|other| {
                other.former.is_some_and(|(former, at)| former == report.seen && at > report.at)
            });
            let mut agreeing: BTreeMap<SocketAddr, BTreeSet<IpAddr>> = BTreeMap::new();
            for other in moved {
                agreeing.entry(other.seen).or_default().insert(other.observer);
            }
            agreeing.values().any(|observers| observers.len() > 1)
        };
        all.clone().filter(|report| !is_outdated(report)).copied().collect()
    }

    /// The kind of NAT. Observers at the same address can't tell an easy one from a hard one. Two that agree outweigh one
    /// that does not: it may lie, or be reached along another path.
    pub fn mapping(&self, own: &BTreeSet<IpAddr>) -> Mapping {
        let mut kind = Mapping::Unknown;
        for slot in Slot::ALL {
            let (mapped, unmapped): (Vec<Report>, Vec<Report>) =
                self.current(slot).into_iter().partition(|report| !own.contains(&report.seen.ip()));
            // A neighbour on the same link sees the address itself, whatever NAT there is towards others.
            let outside: Vec<&Report> =
                mapped.iter().filter(|report| super::is_public(report.seen.ip())).collect();
            let observers: BTreeSet<IpAddr> = outside.iter().map(|report| report.observer).collect();
            // As many see the address itself from outside: those that report another one lie, or are behind a NAT of theirs.
            let direct: BTreeSet<IpAddr> = unmapped
                .iter()
                .filter(|report| super::is_public(report.seen.ip()))
                .map(|report| report.observer)
                .collect();
            if !direct.is_empty() && direct.len() >= observers.len() {
                kind = worst(kind, Mapping::None);
                continue;
            }
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
        if matches!(mapping, Mapping::Hard | Mapping::None) {
            return Vec::new();
        }
        let mut counted: BTreeMap<SocketAddr, BTreeSet<IpAddr>> = BTreeMap::new();
        for report in self.current(slot).into_iter().filter(|report| !own.contains(&report.seen.ip())) {
            counted.entry(report.seen).or_default().insert(report.observer);
        }
        // Beside what several observers agree on, what a single one reports does not count: it may change all the time.
        if counted.values().any(|observers| observers.len() > 1) {
            counted.retain(|_, observers| observers.len() > 1);
        }
        let mut seen: Vec<SocketAddr> = counted.into_keys().collect();
        // Not by their number, which changes with each peer.
        seen.sort_by_key(|seen| (!super::is_public(seen.ip()), *seen));
        seen.truncate(MAX_OBSERVED);
        seen
    }
}

/// Removes a report: the oldest of the observers that share an address with most others. So many that are at one address don't
/// displace those elsewhere.
fn make_room(reports: &mut BTreeMap<NodeUid, Report>) {
    let mut crowds: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for report in reports.values() {
        *crowds.entry(report.observer).or_default() += 1;
    }
    let crowd = |report: &Report| crowds.get(&report.observer).copied().unwrap_or_default();
    let removed = reports.iter().max_by_key(|(_, report)| (crowd(report), Reverse(report.at)));
    if let Some(removed) = removed.map(|(uid, _)| uid.clone()) {
        reports.remove(&removed);
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

#[cfg(test)]
mod tests;
