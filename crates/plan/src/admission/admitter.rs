//! One node after the other is considered: what it claims, what it gets and why not.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use keyring::{PerSlot, Slot};

use super::addresses::{Addresses, Grant, Settled};
use super::announcement::Announcement;
use super::claims::Claims;
use super::ledger::SharedEntry;
use super::{Admission, AdmissionPolicy, Endpoint, Member, Own, Reason, Rejected, ledger, reason};
use crate::annotation::{AnnotationError, Endpoints};
use crate::names::{Host, HostName};
use crate::node::{NodeName, NodeRecord};
use crate::prefix;
use crate::renewal::Renewal;
use crate::whereabouts::Heard;

/// A Node, and what the ledger has of it.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) record: &'a NodeRecord,
    pub(super) entry: Option<&'a SharedEntry>,
    pub(super) announcement: Cow<'a, Announcement>,
    /// Whether it proves its keys, or once did.
    pub(super) has_proved: bool,
}

impl<'a> Candidate<'a> {
    /// Where it comes among all candidates.
    pub(super) fn rank(&self, own: &NodeName) -> impl Ord + use<'a> {
        let proven = self.record.name == *own || self.announcement.is_proven();
        let record = self.record;
        (!proven, self.entry.is_none(), &record.created, &record.uid, &record.name)
    }

    /// The entry, if it is what a new one would be.
    pub(super) fn unchanged(&self, record: &NodeRecord, addresses: &[IpAddr]) -> Option<&'a SharedEntry> {
        self.entry.filter(|entry| entry.matches(record, addresses))
    }

    /// The endpoints that the node publishes.
    pub(super) fn endpoints(&self) -> Result<Endpoints, AnnotationError> {
        let Some(text) = self.record.endpoints.as_deref() else { return Ok(Endpoints::default()) };
        let same = self.entry.filter(|entry| entry.record().endpoints.as_deref() == Some(text));
        match same.and_then(SharedEntry::endpoints) {
            Some(former) => Ok(former.clone()),
            None => Endpoints::parse(text),
        }
    }
}

/// Considers one node after the other.
pub(super) struct Admitter<'a> {
    pub(super) policy: &'a AdmissionPolicy,
    pub(super) own: &'a NodeName,
    pub(super) claims: Claims,
    /// Nodes that are in the mesh, each with the record for the ledger if that is not the present one.
    pub(super) accepted: BTreeMap<NodeName, Option<NodeRecord>>,
    pub(super) out: Admission,
}

impl Admitter<'_> {
    pub(super) fn consider(&mut self, candidate: &Candidate<'_>) {
        let record = candidate.record;
        if candidate.has_proved {
            self.out.ledger.insert_proved(record.uid.clone());
        }
        let is_own = record.name == *self.own;
        if record.pod_cidrs.is_empty() || (record.state.is_none() && !is_own) {
            self.out.pending.push(record.name.clone());
            return;
        }
        let pod_cidrs = match self.pod_cidrs(record) {
            Ok(pod_cidrs) => pod_cidrs,
            Err(reason) => return self.reject(record, reason, false),
        };
        if is_own {
            return self.admit_own(candidate, pod_cidrs);
        }
        // What replaces the record's annotations in the ledger if they were refused.
        let mut replaced = None;
        let state = match self.state(candidate) {
            Ok(state) => state,
            Err(reason) => match self.last_good(candidate) {
                Some(state) => {
                    self.reject(record, reason, true);
                    let former = replaced.get_or_insert_with(|| record.clone());
                    former.state = Some(state.render());
                    state
                }
                None => return self.reject(record, reason, false),
            },
        };
        self.claims.hold_keys(&record.uid, &state);
        self.claims.hold_prefixes(&record.uid, &pod_cidrs);
        let endpoints = match candidate.endpoints() {
            Ok(endpoints) => endpoints,
            Err(error) => {
                self.reject(record, Reason::Endpoints(error), true);
                let former = candidate.entry.and_then(SharedEntry::endpoints).cloned();
                replaced.get_or_insert_with(|| record.clone()).endpoints =
                    former.as_ref().map(Endpoints::render);
                former.unwrap_or_default()
            }
        };
        let heard = self.policy.heard.get(&record.uid);
        let published = endpoints.sequence;
        let later = heard.and_then(|heard| heard.told.clone()).filter(|told| told.sequence > published);
        let endpoints = later.unwrap_or(endpoints);
        let nat = endpoints.nat;
        let (name, prescribed) = self.prescribed(record);
        let mut reach = self.reach(record, endpoints);
        if let Some(heard) = heard {
            self.add_hearsay(&mut reach, heard, state.slots.map(|slot| slot.port));
        }
        let member = Member {
            uid: record.uid.clone(),
            pod_cidrs,
            addresses: Vec::new(),
            state,
            endpoint: match &prescribed {
                Some(endpoints) => endpoints.first().copied(),
                None => reach.first(),
            },
            prescribed,
            name,
            reach,
            published,
            location: record.location.clone(),
            nat,
            relay: record.relay,
            keepalive: self.keepalive(record),
        };
        self.out.world.peers.insert(record.name.clone(), member);
        self.accepted.insert(record.name.clone(), replaced);
    }

    fn admit_own(&mut self, candidate: &Candidate<'_>, pod_cidrs: Vec<IpNetwork>) {
        let record = candidate.record;
        self.claims.hold_prefixes(&record.uid, &pod_cidrs);
        let (uid, renewal) = (record.uid.clone(), self.renewal(record));
        let (location, relay) = (record.location.clone(), record.relay);
        self.out.world.own = Some(Own { uid, pod_cidrs, addresses: Vec::new(), location, relay, renewal });
        self.accepted.insert(record.name.clone(), None);
    }

    /// Grants addresses, once it is known who is in the mesh, and enters the members in the ledger with theirs.
    pub(super) fn settle_addresses(&mut self, candidates: &[Candidate<'_>], outside: &BTreeSet<IpAddr>) {
        let Settled { mut grants, closed, to_test } = {
            let mut addresses = Addresses::new(self.policy, outside);
            for Candidate { record, entry, .. } in candidates {
                let held = entry.map(SharedEntry::addresses).unwrap_or_default();
                match self.out.world.peers.get(&record.name) {
                    _ if record.name == *self.own => addresses.set_own(record),
                    Some(member) => addresses.claim(record, member, held),
                    None => addresses.list(record),
                }
            }
            addresses.settle()
        };
        self.out.ledger.set_closed(closed.clone());
        self.out.world.closed = closed;
        self.out.to_test = to_test;
        for candidate in candidates {
            let record = candidate.record;
            let Some(replaced) = self.accepted.remove(&record.name) else { continue };
            let Grant { addresses, refused } = grants.remove(&record.uid).unwrap_or_default();
            for reason in refused {
                self.reject(record, reason, true);
            }
            self.remember(candidate, replaced.as_ref().unwrap_or(record), &addresses);
            if let Some(member) = self.out.world.peers.get_mut(&record.name) {
                member.addresses = addresses;
            } else if let Some(own) = &mut self.out.world.own {
                own.addresses = addresses;
            }
        }
    }

    /// Enters an accepted record in the ledger. The present entry stays if it is the same.
    fn remember(&mut self, candidate: &Candidate<'_>, record: &NodeRecord, addresses: &[IpAddr]) {
        let entry = candidate.unchanged(record, addresses).cloned();
        let entry = entry.unwrap_or_else(|| SharedEntry::new(bounded(record), addresses.to_vec()));
        self.out.ledger.insert(entry);
    }

    fn renewal(&mut self, record: &NodeRecord) -> Option<Renewal> {
        let text = record.config_renewal.as_deref()?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.reject(record, Reason::ConfigRenewal { found: reason::quoted(text) }, true);
        }
        parsed
    }

    fn pod_cidrs(&self, record: &NodeRecord) -> Result<Vec<IpNetwork>, Reason> {
        let mut accepted: Vec<IpNetwork> = Vec::new();
        for text in record.pod_cidrs.iter().take(ledger::MAX_LISTED) {
            let invalid = || Reason::PodCidrInvalid { found: reason::quoted(text) };
            let pod_cidr = prefix::parse_canonical(text).ok_or_else(invalid)?;
            if !self.policy.cluster_cidrs.iter().any(|cluster| prefix::contains(*cluster, pod_cidr)) {
                return Err(Reason::PodCidrOutside { pod_cidr });
            }
            if let Some(holder) = self.claims.holder_of_prefix(&record.uid, pod_cidr) {
                return Err(Reason::PodCidrTaken { pod_cidr, holder });
            }
            if accepted.iter().any(|other| prefix::overlap(*other, pod_cidr)) {
                return Err(Reason::PodCidrInvalid { found: reason::quoted(text) });
            }
            accepted.push(pod_cidr);
        }
        Ok(accepted)
    }

    /// The endpoints that an operator prescribes, and the name if it is by one. The node is reached at those that it publishes
    /// if the operator's can't be used.
    fn prescribed(&mut self, record: &NodeRecord) -> (Option<HostName>, Option<Vec<Endpoint>>) {
        let Some(text) = record.config_endpoint.as_deref() else { return (None, None) };
        let (name, addresses, port) = match parse_endpoint(text) {
            Some((Host::Address(address), port)) => (None, Some(vec![address]), port),
            Some((Host::Name(name), port)) => {
                let Some(addresses) = self.policy.resolved.get(&name) else {
                    return (Some(name), Some(Vec::new()));
                };
                if addresses.is_empty() {
                    let reason = Reason::ConfigEndpointUnresolved { name: name.clone() };
                    self.reject(record, reason, true);
                    return (Some(name), None);
                }
                (Some(name), Some(addresses.clone()), port)
            }
            None => (None, None, None),
        };
        let usable = addresses.into_iter().flatten().filter(|address| self.is_usable(*address));
        let usable: Vec<Endpoint> = usable.map(|address| Endpoint { address, port }).collect();
        if usable.is_empty() {
            let reason = Reason::ConfigEndpoint { found: reason::quoted(text) };
            self.reject(record, reason, true);
            return (name, None);
        }
        (name, Some(usable))
    }

    /// The endpoints that this node can send to and that are not inside the cluster: a datagram to a pod or service address
    /// would be routed into the tunnel that it is meant to build. Only control-plane nodes may name the API server's.
    fn reach(&self, record: &NodeRecord, published: Endpoints) -> Endpoints {
        let is_usable = |address: IpAddr| {
            let foreign = self.policy.api_servers.contains(&address) && !record.control_plane;
            self.is_usable(address) && !foreign
        };
        let mut reach = published;
        let listed = record.external.iter().take(ledger::MAX_LISTED);
        for address in listed.filter_map(|text| text.parse().ok()) {
            if !reach.external.contains(&address) {
                reach.external.push(address);
            }
        }
        reach.addresses.retain(|address| is_usable(*address));
        let addresses = &reach.addresses;
        reach.external.retain(|address| is_usable(*address) && !addresses.contains(address));
        for slot in Slot::ALL {
            reach.observed.get_mut(slot).retain(|socket| self.is_usable(socket.ip()));
        }
        reach
    }

    /// Adds what a neighbour says, before the mapped addresses that the node names itself: it is tried for a moment only, by
    /// both ends at once. Nothing is replaced.
    fn add_hearsay(&self, reach: &mut Endpoints, heard: &Heard, ports: PerSlot<u16>) {
        for slot in Slot::ALL {
            let usable = |socket: &SocketAddr| {
                self.is_usable(socket.ip()) && !self.policy.api_servers.contains(&socket.ip())
            };
            let mut added: Vec<SocketAddr> =
                heard.hearsay_of(slot, ports).into_iter().filter(usable).collect();
            let named = reach.observed.get_mut(slot);
            added.retain(|socket| !named.contains(socket));
            named.splice(0..0, added);
        }
    }

    fn is_usable(&self, address: IpAddr) -> bool {
        let reachable = if address.is_ipv4() { self.policy.ipv4 } else { self.policy.ipv6 };
        let mut ranges = self.policy.cluster_cidrs.iter().chain(&self.policy.service_cidrs);
        reachable && !prefix::is_special(address) && !ranges.any(|range| range.contains(address))
    }

    fn keepalive(&mut self, record: &NodeRecord) -> Option<u16> {
        let text = record.config_keepalive.as_deref()?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.reject(record, Reason::ConfigKeepalive { found: reason::quoted(text) }, true);
        }
        parsed
    }

    fn reject(&mut self, record: &NodeRecord, reason: Reason, stays: bool) {
        self.out.rejected.push(Rejected {
            node: record.name.clone(),
            uid: record.uid.clone(),
            reason,
            stays,
        });
    }
}

/// A record that can be kept: what others wrote at any length is cut off.
fn bounded(record: &NodeRecord) -> NodeRecord {
    let short = |text: &Option<String>| text.clone().filter(|text| text.len() <= crate::annotation::MAX_LEN);
    let list = |texts: &[String]| {
        texts.iter().take(ledger::MAX_LISTED).filter(|text| text.len() <= 64).cloned().collect()
    };
    NodeRecord {
        pod_cidrs: list(&record.pod_cidrs),
        addresses: list(&record.addresses),
        external: list(&record.external),
        location: short(&record.location),
        state: short(&record.state),
        endpoints: short(&record.endpoints),
        config_endpoint: short(&record.config_endpoint),
        config_keepalive: short(&record.config_keepalive),
        config_renewal: short(&record.config_renewal),
        ..record.clone()
    }
}

/// Reads an operator's endpoint: an address or a name, each with or without the port of slot a.
fn parse_endpoint(text: &str) -> Option<(Host, Option<u16>)> {
    if let Ok(host) = text.parse() {
        return Some((host, None));
    }
    let (host, port) = if let Ok(socket) = text.parse::<SocketAddr>() {
        (Host::Address(socket.ip()), socket.port())
    } else {
        let (name, port) = text.rsplit_once(':')?;
        (Host::Name(name.parse().ok()?), port.parse().ok()?)
    };
    // Slot b takes the next port, so there must be one.
    (1..u16::MAX).contains(&port).then_some((host, Some(port)))
}
