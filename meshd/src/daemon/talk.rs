//! What this node and its peers say to each other inside the tunnel about the keys that they use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use keyring::Slot;
use keyring::audit::Head;
use keyring::pq;
use keyring::rotation::{Ask, Input, PeerId};
use linux::{Handle, HostError};
use plan::admission::{Admission, Member};
use plan::desired::{Setup, Underlay, peer_mtu};
use plan::network::{LinkName, Network};
use plan::node::NodeUid;
use plan::prefix;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::probes::{Probe, Probes, Way};
use crate::channel::{Channel, Heard, Message, Place};
use crate::config::Config;
use crate::status::ControlStatus;

/// What this node does about a peer: what its answers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heed {
    /// The peer's generation.
    pub(super) generation: u64,
    /// The slot of the routes to it.
    pub(super) tx: Slot,
    /// The MTU of the routes to it, in bytes.
    pub(super) mtu: u32,
}

/// What a message comes to.
#[derive(Clone, Debug)]
pub(super) enum Said {
    /// Something for the rotation.
    OfKeys(Input),
    /// Where a peer's audit trail ends.
    OfTrail(PeerId, Head),
    /// Something about the preshared keys with a peer, over a slot.
    Preshared(PeerId, Slot, pq::Message),
}

/// The channel, and who is who on it.
#[derive(Debug)]
pub(super) struct Talk {
    channel: Channel,
    own: Option<IpAddr>,
    addresses: BTreeMap<PeerId, IpAddr>,
    peers: BTreeMap<IpAddr, PeerId>,
    heeded: BTreeMap<PeerId, Heed>,
    received: BTreeMap<LinkName, u64>,
    counts: ControlStatus,
    started: Instant,
    probes: Probes,
}

/// What the loop does about every peer, by its setup.
pub(super) fn heed(admission: &Admission, setup: &Setup, underlay: &Underlay) -> BTreeMap<PeerId, Heed> {
    let heed = |member: &Member| Heed {
        generation: member.state.generation,
        tx: setup.active_slot(member),
        mtu: peer_mtu(member, underlay),
    };
    let members = admission.world.peers.values();
    members.map(|member| (PeerId::new(member.uid.as_str()), heed(member))).collect()
}

impl Talk {
    /// Nobody is known yet. What is heard goes to `heard`.
    pub(super) fn new(config: &Config, chance: u64, heard: mpsc::Sender<Heard>) -> Self {
        Self {
            channel: Channel::new(config.control_port, heard),
            started: Instant::now(),
            probes: Probes::new(config.probe_interval, chance),
            own: None,
            addresses: BTreeMap::new(),
            peers: BTreeMap::new(),
            heeded: BTreeMap::new(),
            received: BTreeMap::new(),
            counts: ControlStatus::default(),
        }
    }

    /// Takes the mesh addresses of everybody.
    pub(super) fn learn(&mut self, admission: &Admission) {
        let own = admission.world.own.as_ref().and_then(|own| own.pod_cidrs.first());
        self.own = own.map(|pod_cidr| prefix::first_usable(*pod_cidr));
        let Some(own) = self.own else { return };
        let of_family = |member: &Member| {
            let pod_cidr = member.pod_cidrs.iter().find(|pod_cidr| pod_cidr.is_ipv4() == own.is_ipv4())?;
            Some((PeerId::new(member.uid.as_str()), prefix::first_usable(*pod_cidr)))
        };
        self.addresses = admission.world.peers.values().filter_map(of_family).collect();
        self.peers = self.addresses.iter().map(|(id, address)| (*address, id.clone())).collect();
    }

    /// Takes what now holds: answers say so from here on.
    pub(super) fn heed(&mut self, heeded: BTreeMap<PeerId, Heed>) {
        self.heeded = heeded;
    }

    /// What has been heard.
    pub(super) const fn counts(&self) -> ControlStatus {
        self.counts
    }

    /// Puts the sockets on the devices that are there, and says on which of them packets arrived.
    pub(super) async fn settle(&mut self, host: &Handle, desired: &Network) -> Result<Vec<Slot>, HostError> {
        let mut busy = Vec::new();
        for slot in Slot::ALL {
            let Some(device) = desired.devices.get(&slot) else { continue };
            let found = host.link(&device.link).await?;
            if let Some(found) = &found
                && self.received.insert(device.link.clone(), found.received) != Some(found.received)
            {
                busy.push(slot);
            }
            let place = found.zip(self.own).and_then(|(found, address)| {
                let there = found.up && found.addresses.contains(&prefix::host(address));
                there.then(|| Place { link: device.link.clone(), index: found.index, address })
            });
            self.channel.place(slot, place);
        }
        Ok(busy)
    }

    /// Asks peers.
    pub(super) fn ask(&self, asks: Vec<Ask>) {
        for ask in asks {
            if let Some(address) = self.addresses.get(&ask.peer) {
                self.channel.send(ask.over, *address, &Message::Ask { nonce: ask.nonce });
            }
        }
    }

    /// Sends the probes that are due.
    pub(super) fn probe(&mut self) {
        let known = self.heeded.keys().filter(|peer| self.addresses.contains_key(peer));
        for Probe { peer, nonce, full } in self.probes.due(self.started.elapsed(), known) {
            let (Some(heed), Some(address)) = (self.heeded.get(&peer), self.addresses.get(&peer)) else {
                continue;
            };
            // The headers of IP and UDP are part of the packet (RFC 791, RFC 8200, RFC 768).
            let room = heed.mtu.saturating_sub(if address.is_ipv4() { 28 } else { 48 });
            let len = if full { u16::try_from(room).unwrap_or(u16::MAX) } else { 0 };
            self.channel.send(heed.tx, *address, &Message::Probe { nonce, len });
        }
    }

    /// What is known of the way to a peer.
    pub(super) fn way(&self, uid: &NodeUid) -> Way {
        self.probes.way(&PeerId::new(uid.as_str()))
    }

    /// Says something about preshared keys.
    pub(super) fn pair(&self, messages: Vec<(PeerId, Slot, pq::Message)>) {
        for (peer, over, message) in messages {
            if let Some(address) = self.addresses.get(&peer) {
                self.channel.send(over, *address, &Message::Pair(message.encode()));
            }
        }
    }

    /// The slot that packets to a peer take since the last turn that went through.
    pub(super) fn tx(&self, peer: &PeerId) -> Option<Slot> {
        self.heeded.get(peer).map(|heed| heed.tx)
    }

    /// Tells every peer where this node's audit trail ends.
    pub(super) fn tell_head(&self, head: &Head) {
        for (peer, address) in &self.addresses {
            if let Some(heed) = self.heeded.get(peer) {
                self.channel.send(heed.tx, *address, &Message::Head(*head));
            }
        }
    }

    /// Answers a question at once; anything else becomes something for the rotation or the audit trail.
    pub(super) fn hear(&mut self, heard: &Heard) -> Option<Said> {
        let Some(peer) = self.peers.get(&heard.from) else {
            self.counts.strangers += 1;
            return None;
        };
        self.counts.heard += 1;
        match &heard.message {
            Message::Ask { nonce } => {
                if let Some(Heed { generation, tx, .. }) = self.heeded.get(peer) {
                    let answer = Message::Answer { nonce: *nonce, seen: *generation, tx: *tx };
                    self.channel.send(heard.over, heard.from, &answer);
                }
                Some(Said::OfKeys(Input::PeerAlive(peer.clone())))
            }
            Message::Answer { nonce, seen, tx } => {
                let (peer, over) = (peer.clone(), heard.over);
                let (nonce, seen, tx) = (*nonce, *seen, *tx);
                Some(Said::OfKeys(Input::Answer { peer, nonce, seen, tx, over, protected: true }))
            }
            Message::Probe { nonce, .. } => {
                self.channel.send(heard.over, heard.from, &Message::Echo { nonce: *nonce });
                None
            }
            Message::Echo { nonce } => {
                self.probes.hear(self.started.elapsed(), peer, *nonce);
                None
            }
            Message::Head(end) => Some(Said::OfTrail(peer.clone(), *end)),
            Message::Pair(bytes) => match pq::Message::decode(bytes) {
                Ok(message) => Some(Said::Preshared(peer.clone(), heard.over, message)),
                Err(error) => {
                    debug!(%peer, cause = %error, "message refused");
                    None
                }
            },
        }
    }
}
