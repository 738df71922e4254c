//! One end of the pair: its device, and what it knows.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keyring::{PerSlot, PublicKey, Slot};
use plan::admission::{Member, Own};
use plan::annotation::{Endpoints, Mapping, Phase, SlotState, State};
use plan::node::NodeUid;
use plan::paths::{Event, Kind, Outlook, Paths, Surroundings, View};

use super::network::{Nat, Site};

const RELAY: [u8; 4] = [203, 0, 113, 7];

/// What a packet is besides a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Probe {
    Ask,
    Echo,
    /// For the other slot.
    Invite,
}

/// What a peer that lies about where a node's datagrams come from makes the node believe and publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// That it is behind another address; the same one for everybody.
    Elsewhere,
    /// That its NAT maps each destination anew.
    Symmetric,
}

/// Where nobody is.
const ELSEWHERE: [u8; 4] = [198, 51, 100, 99];

/// A device's only peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) follow: bool,
    pub(super) session: Option<(u64, Duration)>,
    /// Former sessions, whose packets are still accepted.
    pub(super) former: Vec<u64>,
    pub(super) unconfirmed: Option<u64>,
    pub(super) handshake: Option<Duration>,
    pub(super) pending: Option<(u64, Duration)>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) drifts: u64,
    pub(super) queued: Option<(Probe, u64)>,
}

impl Device {
    pub(super) fn establish(&mut self, session: u64, now: Duration) {
        self.former.extend(self.session.map(|(former, _)| former));
        if self.former.len() > 2 {
            self.former.remove(0);
        }
        (self.session, self.handshake) = (Some((session, now)), Some(now));
    }
}

/// One end of the pair.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) site: Site,
    pub(crate) paths: Paths,
    pub(crate) devices: PerSlot<Device>,
    pub(crate) events: Vec<(Duration, Slot, Event)>,
    pub(super) known: Endpoints,
    /// When the other end learns the present endpoints.
    pub(super) published: Vec<(Duration, Endpoints)>,
    pub(super) sequence: u64,
    pub(super) leased: PerSlot<bool>,
    /// The slot that carries packets.
    pub(crate) carrying: Slot,
    pub(crate) pq_prefers: Slot,
    pub(crate) lie: Option<Lie>,
    pub(super) turn_wanted: bool,
}

pub(super) fn uid(index: usize) -> NodeUid {
    NodeUid::new(format!("u{index}"))
}

pub(super) fn own(index: usize) -> Own {
    let (pod_cidrs, addresses) = (Vec::new(), Vec::new());
    Own { uid: uid(index), pod_cidrs, addresses, location: None, relay: false, renewal: None }
}

pub(super) fn port(slot: Slot) -> u16 {
    if slot == Slot::A { 51840 } else { 51841 }
}

/// The port of the relay with this number that an end sends to.
pub(super) fn leg(relay: u8, index: usize, slot: Slot) -> SocketAddr {
    let number = u16::try_from(index).unwrap() * 2 + u16::from(slot == Slot::B);
    SocketAddr::new(relay_address(relay), 24_000 + number)
}

pub(super) fn relay_address(relay: u8) -> IpAddr {
    let [a, b, c, d] = RELAY;
    IpAddr::from([a, b, c, d + relay])
}

impl Node {
    pub(super) fn new(number: u8, nat: Nat) -> Self {
        Self {
            site: Site::new(number, nat),
            paths: Paths::new(u64::from(number) << 32),
            devices: PerSlot::default(),
            events: Vec::new(),
            known: Endpoints::default(),
            published: Vec::new(),
            sequence: 0,
            leased: PerSlot::default(),
            carrying: Slot::A,
            pq_prefers: Slot::A,
            lie: None,
            turn_wanted: false,
        }
    }

    pub(super) fn socket(&self, slot: Slot) -> SocketAddr {
        SocketAddr::new(self.site.own, port(slot))
    }

    pub(super) fn endpoints(&self) -> Endpoints {
        let site = &self.site;
        let observed = |slot| match self.lie {
            Some(Lie::Elsewhere) => vec![SocketAddr::new(IpAddr::from(ELSEWHERE), port(slot))],
            None if site.nat == Nat::Home => site.observed(self.socket(slot)).into_iter().collect(),
            None | Some(Lie::Symmetric) => Vec::new(),
        };
        Endpoints {
            addresses: vec![site.own],
            external: if site.nat == Nat::OneToOne { vec![site.public] } else { Vec::new() },
            observed: PerSlot::from_fn(observed),
            mapping: self.mapping(),
            nat: self.mapping().is_mapped(),
            sequence: 0,
        }
    }

    /// The kind of NAT as far as the node knows.
    fn mapping(&self) -> Mapping {
        match self.lie {
            Some(Lie::Elsewhere) => Mapping::Easy,
            Some(Lie::Symmetric) => Mapping::Hard,
            None => self.site.nat.mapping(),
        }
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            links: vec![ipnetwork::IpNetwork::new(self.site.own, 31).unwrap()],
            location: None,
            observed: [if self.lie.is_some() { ELSEWHERE.into() } else { self.site.public }].into(),
            mapping: self.mapping(),
        }
    }

    pub(super) fn member(&self, index: usize) -> Member {
        let slot = |slot: Slot| SlotState {
            key: PublicKey::from_bytes(
                &[u8::try_from(index).unwrap() * 2 + 3 + u8::from(slot == Slot::B); 32],
            )
            .unwrap(),
            generation: 1,
            port: port(slot),
        };
        Member {
            uid: uid(index),
            pod_cidrs: Vec::new(),
            addresses: Vec::new(),
            state: State {
                uid: uid(index),
                generation: 1,
                slots: PerSlot::from_fn(slot),
                prefer: Slot::A,
                drain: None,
                phase: Phase::Steady,
                proofs: None,
            },
            endpoint: None,
            prescribed: None,
            name: None,
            reach: self.known.clone(),
            published: 0,
            location: None,
            nat: self.known.nat,
            relay: false,
            keepalive: None,
        }
    }

    /// What kind of path there is on the slot that carries packets.
    pub(crate) fn kind(&self, other: usize) -> Option<Kind> {
        self.paths.up(&uid(other), self.carrying)
    }
}

pub(super) struct Seen<'a> {
    pub(super) now: Duration,
    pub(super) node: &'a Node,
    pub(super) index: usize,
    pub(super) slow: bool,
    pub(super) relay: u8,
}

impl Outlook for Seen<'_> {
    fn view(&self, _: &Member, slot: Slot) -> Option<View> {
        let device = self.node.devices.get(slot);
        let handshake = device.handshake.map(|at| self.now.saturating_sub(at));
        let Device { endpoint, received, sent, drifts, .. } = *device;
        Some(View { endpoint, handshake, received, sent, drifts })
    }

    fn relayed(&self, _: &NodeUid, slot: Slot) -> Option<SocketAddr> {
        self.node.leased.get(slot).then(|| leg(self.relay, self.index, slot))
    }

    fn is_relay(&self, endpoint: SocketAddr) -> bool {
        (0..=self.relay).any(|relay| endpoint.ip() == relay_address(relay))
    }

    fn carrying(&self, _: &NodeUid) -> Option<Slot> {
        Some(self.node.carrying)
    }

    fn is_limited(&self, _: Slot) -> bool {
        self.slow
    }
}
