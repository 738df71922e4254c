//! Finds and keeps the paths to all peers: gives the pure machine what the devices say, and does what it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};
use linux::HostError;
use plan::admission::{Admission, Member, World};
use plan::annotation::Endpoints;
use plan::network::LinkAddress;
use plan::node::{NodeName, NodeRecord, NodeUid};
use plan::paths::{Action, Event, Outlook, Part, Remembered, Step, Surroundings, View, published_addresses};
use plan::{paths, publication};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use wireguard::{Backend, DeviceState, PeerChange, PeerState};

use super::look::Aims;
use super::{PATHS, Reconciler};
use crate::chain::Chain;
use crate::config::Config;
use crate::daemon::devices::peer_state;
use crate::daemon::paths_file::{self, PathsFile, SavedPaths};
use crate::daemon::peer_channel::PeerChannel;

/// After how long peers are told again where their datagrams come from: at first because a message may be lost.
const TELL_AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_mins(10)];

/// How often the paths that worked last are written at most.
const SAVE_PERIOD: Duration = Duration::from_secs(10);

/// What a peer was told of where its datagrams come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    endpoint: SocketAddr,
    times: usize,
    next: Duration,
}

/// What the machine may ask about.
struct Devices<'a> {
    states: &'a PerSlot<Option<DeviceState>>,
    /// Slots whose device begins a handshake only every 5 s.
    limited: PerSlot<bool>,
    carrying: &'a BTreeMap<NodeUid, Slot>,
    relays: Relays,
    channel: &'a PeerChannel,
}

/// The relays as this node reaches them.
#[derive(Debug)]
struct Relays {
    /// Their leased ports that lead to peers.
    leased: BTreeMap<(NodeUid, Slot), SocketAddr>,
    /// Their addresses.
    addresses: BTreeSet<IpAddr>,
    /// The ports that they lease, if they are configured as this node is.
    ports: RangeInclusive<u16>,
}

impl Outlook for Devices<'_> {
    fn view(&self, member: &Member, slot: Slot) -> Option<View> {
        let peer = peer_state(self.states, member, slot)?;
        let (endpoint, handshake) = (peer.config.endpoint, peer.since_handshake);
        let PeerState { received, sent, endpoint_drifts: drifts, .. } = *peer;
        Some(View { endpoint, handshake, received, sent, drifts })
    }

    fn relayed(&self, uid: &NodeUid, slot: Slot) -> Option<SocketAddr> {
        self.relays.leased.get(&(uid.clone(), slot)).copied()
    }

    fn is_relay(&self, endpoint: SocketAddr) -> bool {
        self.relays.addresses.contains(&endpoint.ip()) && self.relays.ports.contains(&endpoint.port())
    }

    fn carrying(&self, uid: &NodeUid) -> Option<Slot> {
        self.carrying.get(uid).copied()
    }

    fn is_limited(&self, slot: Slot) -> bool {
        *self.limited.get(slot)
    }

    fn is_measured(&self, uid: &NodeUid, slot: Slot, endpoint: SocketAddr) -> bool {
        self.channel.is_measured(uid, slot, endpoint)
    }
}

/// The file with the paths that worked last, those paths, and the list of endpoints that this node told last.
pub(super) fn last_known(
    config: &Config,
    own: &NodeName,
    damaged: &mut Vec<String>,
) -> (PathsFile, Remembered, Option<Endpoints>) {
    let mut file = PathsFile::in_directory(&config.state_dir, paths_file::FORMAT);
    if let Err(error) = file.load() {
        let error = Chain(&error).to_string();
        error!(event = "PathsNotRestored", error, "starting without the paths that worked last");
        damaged.push(error);
    }
    let saved = file.held().filter(|saved| saved.is_of(own));
    let is_usable = |to: SocketAddr| {
        let mut ranges = config.cluster_cidrs.iter().chain(&config.service_cidrs);
        !plan::prefix::is_special(to.ip()) && !ranges.any(|range| range.contains(to.ip()))
    };
    let remembered = saved.map(|saved| saved.paths(is_usable)).unwrap_or_default();
    let list = saved.and_then(SavedPaths::endpoints);
    (file, remembered, list)
}

impl Reconciler {
    /// The addresses on this node's own links.
    pub(super) async fn own_addresses(&mut self) -> Result<BTreeSet<IpAddr>, HostError> {
        if self.link_addresses.is_none() {
            let mesh_links = [&self.config.links.a, &self.config.links.b];
            self.link_addresses = Some(self.host.link_addresses(&mesh_links).await?);
        }
        self.stand(self.started.elapsed());
        Ok(addresses(self.link_addresses.as_deref().unwrap_or_default()))
    }

    /// Takes a step with each path, before the plan is made.
    pub(super) fn find_paths(&mut self, admission: &Admission, states: &PerSlot<Option<DeviceState>>) {
        let now = self.started.elapsed();
        let world = &admission.world;
        let own = self.surroundings(world);
        let limited = self.limited_slots();
        let relays = self.known_relays(admission);
        let channel = &self.peer_channel;
        let devices = Devices { states, limited, carrying: &self.carrying, relays, channel };
        let steps = self.paths.step(now, world, own, &devices);
        self.looks.next_step = self.paths.due();
        self.take_steps(now, world, steps);
        self.tell_peers(now, admission, states);
    }

    /// Takes a step with some peers, in the order of the members. Adds the endpoints that it sets to `aimed`, and returns whether
    /// there are other paths now.
    pub(super) fn step_with(
        &mut self,
        now: Duration,
        admission: &Admission,
        members: &[&Member],
        (states, aimed): (&PerSlot<Option<DeviceState>>, &mut Aims),
    ) -> bool {
        if members.is_empty() {
            return false;
        }
        let world = &admission.world;
        let limited = self.limited_slots();
        let relays = self.known_relays(admission);
        let channel = &self.peer_channel;
        let devices = Devices { states, limited, carrying: &self.carrying, relays, channel };
        let own_uid = world.own.as_ref().map(|own| &own.uid);
        let Part { steps, changed } = self.paths.step_some(now, own_uid, members.iter().copied(), &devices);
        self.looks.next_step = self.paths.due();
        for step in &steps {
            let Some(member) = members.iter().find(|member| member.uid == step.uid) else { continue };
            for action in &step.actions {
                if let Action::Aim { to, follow } = action {
                    aimed.insert((step.slot, member.state.slots.get(step.slot).key), (*to, *follow));
                }
            }
        }
        self.take_steps(now, world, steps);
        changed
    }

    /// Slots whose device begins a handshake only every 5 s.
    fn limited_slots(&self) -> PerSlot<bool> {
        PerSlot::from_fn(|slot| self.devices.backend(slot) == Some(Backend::Kernel))
    }

    /// What this node knows of its own place.
    pub(super) fn surroundings(&self, world: &World) -> Surroundings {
        let links = self.standing_links.iter().map(|link| link.address);
        let links = links.filter(|link| !self.is_in_the_cluster(link.ip())).collect();
        Surroundings {
            links,
            location: world.own.as_ref().and_then(|own| own.location.clone()),
            observed: self.observations.addresses(),
            mapping: self.mapping(),
        }
    }

    /// Does what steps ask for.
    fn take_steps(&mut self, now: Duration, world: &World, steps: Vec<Step>) {
        // In the order of the members, as they were taken.
        let mut members = world.peers.iter();
        let mut current = members.next();
        for step in steps {
            while current.is_some_and(|(_, member)| member.uid != step.uid) {
                current = members.next();
            }
            let Some((name, member)) = current else { break };
            let key = member.state.slots.get(step.slot).key;
            let (uid, slot) = (&step.uid, step.slot);
            if let (Some(Event::Lost(_) | Event::Unreachable), Some(name)) = (step.event, &member.name) {
                self.names.lost(now, name);
            }
            match step.event {
                Some(Event::Found(kind)) => info!(
                    event = "PathFound", node = %name, peer_uid = %uid, %slot, path = kind.as_str(),
                    "the peer answers"
                ),
                Some(Event::Lost(kind)) => {
                    if !kind.is_direct() {
                        self.leases.doubt(now, uid, slot);
                    }
                    warn!(
                        event = "PathLost", node = %name, peer_uid = %uid, %slot, path = kind.as_str(),
                        "the peer no longer answers; trying its other endpoints"
                    );
                }
                Some(Event::Unreachable) => warn!(
                    event = "NoPathFound", node = %name, peer_uid = %uid, %slot,
                    "the peer answers at none of its endpoints; trying again"
                ),
                None => {}
            }
            for action in step.actions {
                match action {
                    Action::Aim { to: endpoint, follow } => {
                        debug!(event = "EndpointTried", node = %name, %slot, %endpoint, "trying an endpoint");
                        let change = PeerChange {
                            endpoint: Some(endpoint),
                            roaming: Some(follow),
                            ..PeerChange::default()
                        };
                        // A peer that is not there yet is added with this endpoint.
                        if self.devices.update_peer(slot, key, &change).is_ok() {
                            self.devices.initiate_handshake(slot, &key);
                        }
                    }
                    Action::Initiate => self.devices.initiate_handshake(slot, &key),
                    Action::Probe(nonce) => {
                        self.peer_channel.send_probe(&uid.peer_id(), slot, nonce);
                    }
                    Action::AskRelay => self.leases.ask(now, uid, slot),
                    Action::Doubt => self.leases.doubt(now, uid, slot),
                    // A daemon of version 0.1 does not know the message.
                    Action::Invite if !member.is_proven() => {}
                    Action::Invite => self.peer_channel.send_invitation(&uid.peer_id(), slot),
                }
            }
        }
    }

    /// The relays among the members, at the addresses at which this node reaches them.
    fn known_relays(&self, admission: &Admission) -> Relays {
        let mut relays = Relays {
            leased: BTreeMap::new(),
            addresses: BTreeSet::new(),
            ports: self.config.relay_ports.clone(),
        };
        let members = &admission.world.peers;
        let of_relay: Vec<&NodeUid> =
            members.values().filter(|member| member.relay).map(|member| &member.uid).collect();
        if of_relay.is_empty() {
            return relays;
        }
        let reached = |relay: &NodeUid, slot: Slot| {
            self.paths.up(relay, slot).and_then(|_| self.paths.endpoint(relay, slot)).map(|to| to.ip())
        };
        // The slot that packets take is watched; on the other one a path may be out of date without notice.
        let address = |relay: &NodeUid| {
            let first = self.carrying.get(relay).copied().unwrap_or(Slot::A);
            reached(relay, first).or_else(|| reached(relay, first.other()))
        };
        let of_slots = of_relay.iter().flat_map(|relay| Slot::ALL.map(|slot| reached(relay, slot)));
        relays.addresses = of_slots.flatten().collect();
        for member in members.values() {
            for slot in Slot::ALL {
                let leased = self.leases.address(&member.uid, slot);
                let endpoint =
                    leased.and_then(|leased| Some(SocketAddr::new(address(&leased.relay)?, leased.port)));
                relays.leased.extend(endpoint.map(|endpoint| ((member.uid.clone(), slot), endpoint)));
            }
        }
        relays
    }

    /// Whether a peer is to be told soon where its datagrams come from, again because a message may have been lost.
    pub(super) fn is_telling_due(&self, now: Duration) -> bool {
        self.told.values().any(|told| told.times + 1 < TELL_AGAIN.len() && told.next <= now)
    }

    /// Tells peers where their datagrams come from, if nobody forwards them.
    pub(super) fn tell_peers(
        &mut self,
        now: Duration,
        admission: &Admission,
        states: &PerSlot<Option<DeviceState>>,
    ) {
        let members = &admission.world.peers;
        let uids: BTreeSet<&NodeUid> = members.values().map(|member| &member.uid).collect();
        self.observations.retain(now, |uid| uids.contains(uid));
        let mut former = std::mem::take(&mut self.told);
        // A daemon of version 0.1 does not know the message.
        for member in members.values().filter(|member| member.is_proven()) {
            for slot in Slot::ALL {
                let place = (member.uid.clone(), slot);
                let told = former.remove(&place);
                let peer = peer_state(states, member, slot);
                let is_direct = self.paths.up(&member.uid, slot).is_some_and(paths::Kind::is_direct);
                let Some(endpoint) = peer.and_then(|peer| peer.config.endpoint).filter(|_| is_direct) else {
                    continue;
                };
                let times = match told.filter(|told| told.endpoint == endpoint) {
                    Some(told) if now < told.next => {
                        self.told.insert(place, told);
                        continue;
                    }
                    Some(told) => told.times + 1,
                    None => 0,
                };
                self.peer_channel.send_seen(&member.uid.peer_id(), slot, endpoint);
                let wait = TELL_AGAIN[times.min(TELL_AGAIN.len() - 1)];
                self.told.insert(place, Told { endpoint, times, next: now + wait });
            }
        }
    }

    /// A peer says where it sees this node's datagrams on a slot come from.
    pub(super) fn take_seen(&mut self, peer: &PeerId, slot: Slot, endpoint: SocketAddr) {
        let uid = NodeUid::new(peer.as_str());
        if let Some(observer) = self.paths.endpoint(&uid, slot)
            && !plan::prefix::is_special(endpoint.ip())
            && !self.is_in_the_cluster(endpoint.ip())
            && endpoint.port() != 0
        {
            self.observations.report(self.started.elapsed(), uid, slot, endpoint, observer.ip());
            self.outcome.counters.reports_displaced = self.observations.displaced();
        }
    }

    /// Takes which addresses on the links stay.
    fn stand(&mut self, now: Duration) {
        let record = self.cluster.own_record();
        let listed: BTreeSet<IpAddr> = record
            .iter()
            .flat_map(|record| record.addresses.iter().filter_map(|text| text.parse().ok()))
            .collect();
        let present = self.link_addresses.as_deref().unwrap_or_default();
        let standing = self.standing.of(now, present, |link| listed.contains(&link.address.ip()));
        let former = std::mem::replace(&mut self.standing_links, standing);
        if !former.is_empty() && former != self.standing_links {
            // Peers report anew where this node's datagrams come from.
            self.observations.clear();
        }
    }

    /// Whether an address is in a pod or service range.
    fn is_in_the_cluster(&self, address: IpAddr) -> bool {
        let mut ranges = self.policy.cluster_cidrs.iter().chain(&self.policy.service_cidrs);
        ranges.any(|range| range.contains(address))
    }

    /// What NAT there is in front of this node.
    pub(super) fn mapping(&self) -> plan::annotation::Mapping {
        self.observations.mapping(&self.direct_addresses())
    }

    /// Whether peers have to be kept informed of where this node is.
    pub(super) fn is_behind_nat(&self) -> bool {
        self.config.nat || self.mapping().is_mapped()
    }

    /// Addresses that lead straight to this node: those on its links, and external ones that keep its ports.
    fn direct_addresses(&self) -> BTreeSet<IpAddr> {
        let mut direct = addresses(self.link_addresses.as_deref().unwrap_or_default());
        direct.extend(self.given_addresses(None));
        if let Some(record) = self.cluster.own_record() {
            direct.extend(record.external.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
        }
        direct
    }

    /// Where peers reach us: our Node's addresses that are on a link, further ones on links, what an operator gives, and
    /// what peers observe.
    pub(super) fn endpoints(&mut self, record: &NodeRecord) -> Endpoints {
        let listed: Vec<IpAddr> = record.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        let node_cidrs = &self.policy.node_cidrs;
        let is_usable = |address: IpAddr| {
            let allowed = node_cidrs.is_empty() || node_cidrs.iter().any(|range| range.contains(address));
            allowed && !self.is_in_the_cluster(address)
        };
        let (addresses, left_out) = published_addresses(&listed, &self.standing_links, is_usable);
        if left_out > 0 && self.outcome.unpublished_addresses != left_out {
            warn!(
                event = "EndpointsLeftOut",
                count = left_out,
                "this node has more addresses than it can publish; set endpoint to those that peers should use"
            );
        }
        self.outcome.unpublished_addresses = left_out;
        let shown = record.endpoints.as_deref().and_then(|text| Endpoints::parse(text).ok());
        let external = self.given_addresses(shown.as_ref()).into_iter();
        let external = external.filter(|address| !addresses.contains(address));
        let external = external.take(plan::annotation::MAX_EXTERNAL).collect();
        let direct = self.direct_addresses();
        let observed = self.observations.publish(self.started.elapsed(), &direct, shown.as_ref());
        let endpoints = paths::endpoints(addresses, external, observed, self.config.nat);
        let last = self.own_list.as_ref().or(self.last_list.as_ref());
        let numbered = publication::numbered(record, endpoints, last);
        // Peers are told in the next turn.
        self.step_wanted |= self.own_list.as_ref() != Some(&numbered);
        self.own_list = Some(numbered.clone());
        numbered
    }

    /// Keeps on disk which paths worked last: now and then, and at once if this node's own list of endpoints is another one,
    /// before peers are told of it.
    pub(super) fn keep_paths(&mut self, now: Duration) {
        let is_told = self.paths_file.held().is_some_and(|held| held.has(self.own_list.as_ref()));
        let is_due = self.paths_saved.is_none_or(|saved| now >= saved + SAVE_PERIOD);
        if self.own_list.is_none() || (is_told && !is_due) {
            return;
        }
        let node = NodeName::new(self.config.node_name.clone());
        let saved = SavedPaths::new(node, self.own_list.as_ref(), self.paths.remembered());
        self.paths_saved = Some(now);
        match self.paths_file.save(saved) {
            Ok(_) => {
                self.side_tasks.succeeded(&PATHS);
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(now, PATHS, cause.clone()) {
                    warn!(
                        event = "PathsNotStored",
                        error = cause,
                        "the paths that worked last are not saved"
                    );
                }
            }
        }
    }

    /// When the next step of a path is due, as of the last step.
    pub(super) fn paths_due(&self) -> Option<Instant> {
        self.looks.next_step.and_then(|due| self.started.checked_add(due))
    }
}

fn addresses(links: &[LinkAddress]) -> BTreeSet<IpAddr> {
    links.iter().map(|link| link.address.ip()).collect()
}
