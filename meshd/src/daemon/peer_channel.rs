//! Messages between this node and its peers inside the tunnel: rotation, probes, preshared keys, audit trail.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use keyring::audit::Head;
use keyring::pq;
use keyring::rotation::{Ask, Input, PeerId};
use keyring::{PerSlot, Slot};
use linux::{Handle, HostError};
use plan::admission::{Admission, Member};
use plan::desired::Setup;
use plan::leases::{Answer, Question};
use plan::network::{LinkName, Network};
use plan::node::{NodeName, NodeUid};
use plan::prefix;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::debug;

use super::allowance::Allowance;
use super::changes::Changes;
use super::keys::Keys;
use super::pings::Pings;
use super::probes::{PathStats, Probe, Probes, Way};
use crate::channel::{Binding, Channel, Correspondent, Message, ReceivedMessage, SocketError};
use crate::config::Config;
use status::ControlStatus;
use status::reach::ProbeRecord;
use status::totals::RoundTrips;

/// Questions of the rotation in a second at most: each makes a peer answer, and all answers come at once.
const ASKS_PER_SECOND: u32 = 500;
/// The time for which questions that wait are gathered.
const ASK_BATCH: Duration = Duration::from_millis(50);

/// How this node treats a peer: the content of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PeerView {
    /// The peer's generation that has been applied.
    pub(super) generation: u64,
    /// The slot that routes to it use.
    pub(super) tx: Slot,
}

/// A peer's message for other parts of the daemon.
#[derive(Clone, Debug)]
pub(super) enum PeerMessage {
    /// For the rotation.
    Rotation(Input),
    /// The head of a peer's audit trail.
    AuditHead(PeerId, Head),
    /// For the preshared key exchange with a peer, received on a slot.
    Preshared(PeerId, Slot, pq::Message),
    /// A peer has echoed the probe with this number over a slot; whether that changes the MTU to it.
    Echo(PeerId, Slot, u64, bool),
    /// A peer sends to this node's mapped address of a slot now.
    Invitation(PeerId, Slot),
    /// Where a peer sees this node's datagrams on a slot come from.
    Seen(PeerId, Slot, SocketAddr),
    /// A peer's time, by its own clock.
    Clock(PeerId, SystemTime),
    /// So many datagrams on a slot did not authenticate at a peer.
    Forged(PeerId, Slot, u64),
    /// A node asks this relay about a peer and slot.
    ToRelay(PeerId, PeerId, Slot, Question),
    /// Where a peer says that it is.
    Here(PeerId, String),
    /// A node has no path to a peer: the node, the peer, the node's list.
    Locate(PeerId, PeerId, String),
    /// A neighbour says that a peer looks for this node, with that peer's list.
    Meet(PeerId, String),
    /// A relay says something about a peer and slot.
    FromRelay(PeerId, PeerId, Slot, Answer),
}

/// The control channel and the mesh addresses of the peers on it.
#[derive(Debug)]
pub(super) struct PeerChannel {
    channel: Channel,
    own: Option<IpAddr>,
    addresses: BTreeMap<PeerId, IpAddr>,
    views: BTreeMap<PeerId, PeerView>,
    rx_packets: BTreeMap<LinkName, u64>,
    started: Instant,
    probes: Probes,
    pings: Pings,
    /// Questions that wait by peer and slot, and the order in which they are asked.
    asks: BTreeMap<(PeerId, Slot), Ask>,
    ask_order: VecDeque<(PeerId, Slot)>,
    ask_allowance: Allowance,
}

#[cfg(test)]
impl PeerChannel {
    /// The peers by mesh address, and the same the other way round.
    pub(super) fn members(&self) -> (Vec<Correspondent>, &BTreeMap<PeerId, IpAddr>) {
        (self.channel.peers().known(), &self.addresses)
    }
}

/// How every peer is treated once `setup` is applied.
pub(super) fn peer_views(peers: &BTreeMap<NodeName, Member>, setup: &Setup) -> BTreeMap<PeerId, PeerView> {
    let view =
        |member: &Member| PeerView { generation: member.state.generation, tx: setup.active_slot(member) };
    peers.values().map(|member| (member.uid.peer_id(), view(member))).collect()
}

/// Bytes of the IP and UDP headers of a packet to this address (RFC 791, RFC 8200, RFC 768).
pub(super) const fn headers(address: IpAddr) -> u32 {
    if address.is_ipv4() { 28 } else { 48 }
}

/// A probe that is an IP packet of `size` bytes; the smallest for none.
fn probe(to: IpAddr, nonce: u64, size: Option<u32>) -> Message {
    let payload = size.map_or(0, |size| size.saturating_sub(headers(to)));
    Message::Probe { nonce, len: u16::try_from(payload).unwrap_or(u16::MAX) }
}

impl PeerChannel {
    /// Starts without peers. Received messages go to `received`.
    pub(super) fn new(config: &Config, jitter_seed: u64, received: mpsc::Sender<ReceivedMessage>) -> Self {
        Self {
            channel: Channel::new(config.control_port, received),
            started: Instant::now(),
            // Numbered apart from those of the paths, whose answers say nothing about sizes.
            probes: Probes::new(config.probe_interval, jitter_seed ^ (1 << 63)),
            pings: Pings::new(jitter_seed ^ (1 << 62)),
            own: None,
            addresses: BTreeMap::new(),
            views: BTreeMap::new(),
            rx_packets: BTreeMap::new(),
            asks: BTreeMap::new(),
            ask_order: VecDeque::new(),
            ask_allowance: Allowance::per_second(ASKS_PER_SECOND),
        }
    }

    /// Updates this node's keys and mesh address, and the peers with theirs.
    pub(super) fn set_members(&mut self, admission: &Admission, keys: &Keys) {
        let own = admission.world.own.as_ref().and_then(|own| own.pod_cidrs.first());
        self.own = own.map(|pod_cidr| prefix::first_usable(*pod_cidr));
        // Without an address of its own the node has no peers; its keys are set nevertheless, so that one that is replaced
        // does not live on there.
        let peers: BTreeMap<IpAddr, Correspondent> =
            admission.world.peers.values().filter_map(|member| self.correspondent(member)).collect();
        self.addresses = peers.iter().map(|(address, peer)| (peer.id.clone(), *address)).collect();
        self.channel.peers().set(|key| keys.ring().private(key), &keys.public(), peers);
    }

    /// The same for the members that are others than at the last time; this node's keys and address are as they were.
    pub(super) fn set_changed(&mut self, changes: &Changes<'_>) {
        let ids = changes.ids();
        let left: Vec<IpAddr> = ids.iter().filter_map(|id| self.addresses.remove(id)).collect();
        let peers: Vec<(IpAddr, Correspondent)> =
            changes.members.iter().filter_map(|(_, member)| self.correspondent(member)).collect();
        self.addresses.extend(peers.iter().map(|(address, peer)| (peer.id.clone(), *address)));
        // One that stays at its address keeps its sessions.
        let stays = |address: &IpAddr| peers.iter().any(|(of, _)| of == address);
        self.channel.peers().set_some(left.into_iter().filter(|address| !stays(address)), peers.clone());
    }

    /// What the channel must know of a member, and its mesh address; none if it has none of this node's family.
    fn correspondent(&self, member: &Member) -> Option<(IpAddr, Correspondent)> {
        let own = self.own?;
        let pod_cidr = member.pod_cidrs.iter().find(|pod_cidr| pod_cidr.is_ipv4() == own.is_ipv4())?;
        let correspondent = Correspondent {
            id: member.uid.peer_id(),
            keys: member.state.slots.map(|slot| slot.key),
            // Without a proof it is a member only where `accept-unproven` is on: a daemon of version 0.1.
            unauthenticated: !member.is_proven(),
        };
        Some((prefix::first_usable(*pod_cidr), correspondent))
    }

    /// Whether this is a peer with a mesh address.
    pub(super) fn is_peer(&self, peer: &PeerId) -> bool {
        self.addresses.contains_key(peer)
    }

    /// Sets what answers to peers say, once it has been applied: to all, or to those that are others while some are `gone`.
    pub(super) fn set_views(&mut self, gone: Option<&[PeerId]>, views: BTreeMap<PeerId, PeerView>) {
        let Some(gone) = gone else {
            self.views = views;
            return;
        };
        for peer in gone {
            self.views.remove(peer);
        }
        self.views.extend(views);
    }

    /// Counters of received messages.
    pub(super) fn status(&self) -> ControlStatus {
        self.channel.peers().status()
    }

    /// Binds the sockets to the devices that exist; returns the slots on which packets arrived since the last call, and
    /// whether each slot's socket could be bound.
    pub(super) async fn update_sockets(
        &mut self,
        host: &Handle,
        desired: &Network,
    ) -> Result<(Vec<Slot>, PerSlot<Result<(), SocketError>>), HostError> {
        let mut busy = Vec::new();
        let mut bound = PerSlot { a: Ok(()), b: Ok(()) };
        for slot in Slot::ALL {
            let Some(device) = desired.devices.get(&slot) else { continue };
            let found = host.link(&device.link).await?;
            if let Some(found) = &found
                && self.rx_packets.insert(device.link.clone(), found.received) != Some(found.received)
            {
                busy.push(slot);
            }
            let binding = found.zip(self.own).and_then(|(found, address)| {
                let there = found.up && found.addresses.contains(&prefix::host(address));
                there.then(|| Binding { link: device.link.clone(), index: found.index, address })
            });
            *bound.get_mut(slot) = self.channel.bind(slot, binding);
        }
        Ok((busy, bound))
    }

    /// Sends the rotation's questions, those beyond so many a second later. One that waits is replaced by a newer one to the
    /// same peer over the same slot, in its place.
    pub(super) fn send_asks(&mut self, asks: Vec<Ask>) {
        for ask in asks {
            let to = (ask.peer.clone(), ask.over);
            if self.asks.insert(to.clone(), ask).is_none() {
                self.ask_order.push_back(to);
            }
        }
        let room = self.ask_allowance.take(self.started.elapsed(), self.ask_order.len());
        for to in self.ask_order.drain(..room).collect::<Vec<_>>() {
            if let Some(ask) = self.asks.remove(&to) {
                self.send(&ask.peer, ask.over, &Message::Ask { nonce: ask.nonce });
            }
        }
    }

    /// Takes the paths to all peers.
    pub(super) fn set_ways(&mut self, ways: BTreeMap<PeerId, PerSlot<Way>>) {
        self.probes.set_ways(self.started.elapsed(), ways);
    }

    /// Takes the bytes sent to and received from a peer so far, by slot.
    pub(super) fn set_traffic(&mut self, peer: &PeerId, traffic: PerSlot<Option<(u64, u64)>>) {
        self.probes.set_traffic(self.started.elapsed(), peer, traffic);
    }

    /// What passes to each slot of each peer, where that is less than its route allows.
    pub(super) fn passes(&self) -> BTreeMap<(NodeUid, Slot), u32> {
        self.probes.passes().map(|(peer, slot, mtu)| ((NodeUid::new(peer.as_str()), slot), mtu)).collect()
    }

    /// Ends and begins rounds of probes. Returns whether a path lets less pass than was known.
    pub(super) fn send_probes(&mut self) -> bool {
        let before = self.passes();
        let views = self.views.iter().filter(|(peer, _)| self.addresses.contains_key(*peer));
        let known = views.map(|(peer, view)| (peer, view.tx));
        for Probe { peer, over, nonce, size } in self.probes.due(self.started.elapsed(), known) {
            let Some(address) = self.addresses.get(&peer) else { continue };
            self.channel.send(over, *address, &probe(*address, nonce, size));
        }
        before != self.passes()
    }

    /// Whether packets of the present MTU pass along the path to a peer's slot that leads to `endpoint`.
    pub(super) fn is_measured(&self, uid: &NodeUid, slot: Slot, endpoint: SocketAddr) -> bool {
        self.probes.is_measured(&uid.peer_id(), slot, endpoint)
    }

    /// When the next round of probes ends, or questions that wait may be sent.
    pub(super) fn probes_due(&self) -> Option<Instant> {
        let now = self.started.elapsed();
        let asks = (!self.ask_order.is_empty()).then(|| self.ask_allowance.next(now).max(now + ASK_BATCH));
        self.probes.next_step(now).into_iter().chain(asks).min().map(|at| self.started + at)
    }

    /// The same of one peer.
    pub(super) fn probes_due_after(&self, peer: &PeerId) -> Option<Instant> {
        self.probes.next_step_of(self.started.elapsed(), peer).map(|at| self.started + at)
    }

    /// Asks a peer for an echo of a packet of this size, the smallest if none is given; returns what receives the time that it takes,
    /// or none if it can't be sent.
    pub(super) fn send_ping(
        &mut self,
        peer: &PeerId,
        over: Slot,
        size: Option<u32>,
    ) -> Option<oneshot::Receiver<Duration>> {
        let address = *self.addresses.get(peer)?;
        let (nonce, back) = self.pings.begin(peer, over)?;
        self.channel.send(over, address, &probe(address, nonce, size));
        Some(back)
    }

    /// Asks a peer for an echo over a slot.
    pub(super) fn send_probe(&self, peer: &PeerId, over: Slot, nonce: u64) {
        self.send(peer, over, &Message::Probe { nonce, len: 0 });
    }

    /// Asks a peer for an echo over a slot by a packet of `size` bytes.
    pub(super) fn send_sized_probe(&self, peer: &PeerId, over: Slot, nonce: u64, size: u32) {
        if let Some(address) = self.addresses.get(peer) {
            self.channel.send(over, *address, &probe(*address, nonce, Some(size)));
        }
    }

    /// Whether the kernel refuses to send a packet of `size` bytes to a peer over a slot in one piece.
    pub(super) fn refuses(&self, peer: &PeerId, over: Slot, nonce: u64, size: u32) -> Option<bool> {
        let address = self.addresses.get(peer)?;
        self.channel.refuses(over, *address, &probe(*address, nonce, Some(size)))
    }

    /// The address of a peer inside the mesh.
    pub(super) fn address(&self, peer: &PeerId) -> Option<IpAddr> {
        self.addresses.get(peer).copied()
    }

    /// Asks a peer, over the other slot, to send to this node's mapped address of a slot.
    pub(super) fn send_invitation(&self, peer: &PeerId, slot: Slot) {
        self.send(peer, slot.other(), &Message::Invite(slot));
    }

    /// Tells a peer where its datagrams on a slot come from.
    pub(super) fn send_seen(&self, peer: &PeerId, over: Slot, endpoint: SocketAddr) {
        self.send(peer, over, &Message::Seen(endpoint));
    }

    /// Sends a message over a slot.
    pub(super) fn send(&self, peer: &PeerId, over: Slot, message: &Message) {
        if let Some(address) = self.addresses.get(peer) {
            self.channel.send(over, *address, message);
        }
    }

    /// Sends a message over the slot that carries packets to the peer.
    fn send_in_use(&self, peer: &PeerId, message: &Message) {
        if let Some(view) = self.views.get(peer) {
            self.send(peer, view.tx, message);
        }
    }

    /// Measurements of the path to a peer.
    pub(super) fn path(&self, uid: &NodeUid) -> PathStats {
        self.probes.path(&uid.peer_id())
    }

    /// Tells a peer how many of its datagrams on a slot did not authenticate here.
    pub(super) fn send_forged(&self, peer: &PeerId, slot: Slot, count: u64) {
        self.send_in_use(peer, &Message::Forged { slot, count });
    }

    /// Round-trip times of all answered probes.
    pub(super) const fn round_trips(&self) -> RoundTrips {
        self.probes.round_trips()
    }

    /// Which probes a peer has answered.
    pub(super) fn probe_record(&self, peer: &PeerId) -> ProbeRecord {
        self.probes.record(self.started.elapsed(), peer)
    }

    /// Sends messages of the preshared key exchange. Before the other end sets another key it learns this node's time: its
    /// kernel forgets the newest timestamp of this node's handshakes then.
    pub(super) fn send_preshared(&self, messages: Vec<(PeerId, Slot, pq::Message)>) {
        for (peer, over, message) in messages {
            if matches!(message, pq::Message::Accept(_) | pq::Message::Confirm { .. }) {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let millis = u64::try_from(since.as_millis()).unwrap_or_default();
                self.send(&peer, over, &Message::Clock { millis });
            }
            self.send(&peer, over, &Message::Pair(message.encode()));
        }
    }

    /// Sends messages to relays, or a relay's.
    pub(super) fn send_relayed(&self, messages: Vec<(PeerId, Message)>) {
        for (peer, message) in messages {
            self.send_in_use(&peer, &message);
        }
    }

    /// The slot that packets to a peer take since the last successful reconciliation.
    pub(super) fn tx(&self, peer: &PeerId) -> Option<Slot> {
        self.views.get(peer).map(|view| view.tx)
    }

    /// Sends the head of this node's audit trail to every peer.
    pub(super) fn send_head(&self, head: &Head) {
        for (peer, address) in &self.addresses {
            if let Some(view) = self.views.get(peer) {
                self.channel.send(view.tx, *address, &Message::Head(*head));
            }
        }
    }

    /// Answers questions and probes at once; returns what other parts of the daemon have to process.
    pub(super) fn receive(&mut self, received: &ReceivedMessage) -> Option<PeerMessage> {
        // It may have left the mesh since.
        let peer = self.addresses.get_key_value(&received.peer).map(|(peer, _)| peer)?;
        match &received.message {
            Message::Ask { nonce } => {
                if let Some(PeerView { generation, tx, .. }) = self.views.get(peer) {
                    let answer = Message::Answer { nonce: *nonce, seen: *generation, tx: *tx };
                    self.channel.send(received.over, received.from, &answer);
                }
                Some(PeerMessage::Rotation(Input::PeerAlive(peer.clone())))
            }
            Message::Answer { nonce, seen, tx } => {
                let (peer, over) = (peer.clone(), received.over);
                let (nonce, seen, tx) = (*nonce, *seen, *tx);
                Some(PeerMessage::Rotation(Input::Answer { peer, nonce, seen, tx, over, protected: true }))
            }
            Message::Probe { nonce, .. } => {
                self.channel.send(received.over, received.from, &Message::Echo { nonce: *nonce });
                None
            }
            Message::Echo { nonce } if self.pings.receive(peer, received.over, *nonce) => None,
            Message::Echo { nonce } => {
                let mtu = self.probes.receive(self.started.elapsed(), peer, received.over, *nonce);
                Some(PeerMessage::Echo(peer.clone(), received.over, *nonce, mtu))
            }
            Message::Invite(slot) => Some(PeerMessage::Invitation(peer.clone(), *slot)),
            Message::Seen(endpoint) => Some(PeerMessage::Seen(peer.clone(), received.over, *endpoint)),
            Message::Clock { millis } => {
                let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(*millis))?;
                Some(PeerMessage::Clock(peer.clone(), time))
            }
            Message::Forged { slot, count } => Some(PeerMessage::Forged(peer.clone(), *slot, *count)),
            Message::ToRelay { peer: about, slot, question } => {
                Some(PeerMessage::ToRelay(peer.clone(), about.clone(), *slot, *question))
            }
            Message::FromRelay { peer: about, slot, answer } => {
                Some(PeerMessage::FromRelay(peer.clone(), about.clone(), *slot, *answer))
            }
            Message::Here(list) => Some(PeerMessage::Here(peer.clone(), list.clone())),
            Message::Locate { peer: about, list } => {
                Some(PeerMessage::Locate(peer.clone(), about.clone(), list.clone()))
            }
            Message::Meet { peer: about, list } => Some(PeerMessage::Meet(about.clone(), list.clone())),
            Message::Head(end) => Some(PeerMessage::AuditHead(peer.clone(), *end)),
            Message::Pair(bytes) => match pq::Message::decode(bytes) {
                Ok(message) => Some(PeerMessage::Preshared(peer.clone(), received.over, message)),
                Err(error) => {
                    debug!(
                        event = "PresharedMessageRefused", peer_uid = %peer, %error,
                        "preshared key message refused"
                    );
                    None
                }
            },
        }
    }
}
