//! A strict model of the kernel and the engine: applies steps to a value as they do on a machine.
//!
//! It refuses what they refuse, so that a plan in the wrong order fails in a test and not on a node.

use crate::network::{LinkName, MeshLink, Network, Route, Via};
use crate::op::Op;
use ipnetwork::IpNetwork;
use keyring::{PublicKey, Slot};

/// Why a step is impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The link does not exist.
    #[error("link {0} does not exist")]
    NoLink(LinkName),
    /// The slot has no device.
    #[error("slot {0} has no device")]
    NoDevice(Slot),
    /// The slot has a device already, or another device has the link's name.
    #[error("slot {slot}: link {link} can't be created")]
    Exists {
        /// The slot.
        slot: Slot,
        /// The link.
        link: LinkName,
    },
    /// The device has no such peer.
    #[error("slot {slot} has no peer {key}")]
    NoPeer {
        /// The slot.
        slot: Slot,
        /// The peer's key.
        key: PublicKey,
    },
    /// The peer's key is the device's own.
    #[error("slot {slot}: peer {key} is the device itself")]
    OwnKey {
        /// The slot.
        slot: Slot,
        /// The key.
        key: PublicKey,
    },
    /// A route's source address is on no link.
    #[error("the link {0} is down")]
    Down(LinkName),
}

impl Network {
    /// Performs one step.
    pub fn apply(&mut self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::SetGuard(guard) => self.guard = Some(guard.clone()),
            Op::SetAccepts(accepts) => self.accepts = Some(accepts.clone()),
            Op::SetSysctl { name, value } => drop(self.sysctls.insert(name.clone(), value.clone())),
            Op::CreateDevice { slot, link, mtu } => self.create(*slot, link, *mtu)?,
            Op::RemoveDevice { slot, link } => {
                self.devices.remove(slot).ok_or(Refusal::NoDevice(*slot))?;
                self.routes.retain(|route| !leads_to(route, link));
            }
            Op::SetKey { slot, key } => {
                let device = self.device(*slot)?;
                // A device drops the peer that it has become (`wg_set_device` in `drivers/net/wireguard/netlink.c`).
                device.peers.remove(key);
                device.key = Some(*key);
            }
            Op::SetPort { slot, port } => self.device(*slot)?.port = *port,
            Op::SetMtu { link, mtu } => self.link(link)?.mtu = *mtu,
            Op::AddAddress { link, address } => drop(self.link(link)?.addresses.insert(*address)),
            Op::RemoveAddress { link, address } => self.remove_address(link, *address)?,
            Op::SetUp { link } => self.link(link)?.up = true,
            Op::AddPeer { .. } | Op::UpdatePeer { .. } | Op::RemovePeer { .. } => self.apply_peer(op)?,
            Op::SetRoute(route) => self.set_route(route)?,
            Op::RemoveRoute(route) => drop(self.routes.remove(route)),
            Op::AddRule(rule) => drop(self.rules.insert(rule.clone())),
            Op::RemoveRule(rule) => drop(self.rules.remove(rule)),
        }
        Ok(())
    }

    fn create(&mut self, slot: Slot, link: &LinkName, mtu: u32) -> Result<(), Refusal> {
        if self.devices.contains_key(&slot) || self.devices.values().any(|device| device.link == *link) {
            return Err(Refusal::Exists { slot, link: link.clone() });
        }
        let device = MeshLink {
            link: link.clone(),
            mtu,
            up: false,
            addresses: std::collections::BTreeSet::new(),
            key: None,
            port: 0,
            peers: std::collections::BTreeMap::new(),
        };
        self.devices.insert(slot, device);
        Ok(())
    }

    fn apply_peer(&mut self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::AddPeer { slot, key, peer } => {
                let device = self.device(*slot)?;
                if device.key == Some(*key) {
                    return Err(Refusal::OwnKey { slot: *slot, key: *key });
                }
                take(device, &peer.allowed_ips.iter().copied().collect::<Vec<_>>());
                device.peers.insert(*key, peer.clone());
            }
            Op::UpdatePeer { slot, key, change } => {
                let device = self.device(*slot)?;
                if !device.peers.contains_key(key) {
                    return Err(Refusal::NoPeer { slot: *slot, key: *key });
                }
                take(device, &change.allow.iter().copied().collect::<Vec<_>>());
                if let Some(peer) = device.peers.get_mut(key) {
                    peer.endpoint = change.endpoint.or(peer.endpoint);
                    peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
                    peer.roaming = change.roaming.unwrap_or(peer.roaming);
                    peer.allowed_ips.retain(|prefix| !change.disallow.contains(prefix));
                    peer.allowed_ips.extend(&change.allow);
                }
            }
            Op::RemovePeer { slot, key } => drop(self.device(*slot)?.peers.remove(key)),
            _ => {}
        }
        Ok(())
    }

    fn set_route(&mut self, route: &Route) -> Result<(), Refusal> {
        if let Via::Link { link, .. } = &route.via
            && !self.link(link)?.up
        {
            return Err(Refusal::Down(link.clone()));
        }
        let place = |route: &Route| (route.table, route.destination, route.metric);
        self.routes.retain(|other| place(other) != place(route));
        self.routes.insert(route.clone());
        Ok(())
    }

    /// Takes routes along whose source it was (`fib_sync_down_addr` in `net/ipv4/fib_semantics.c`).
    fn remove_address(&mut self, link: &LinkName, address: IpNetwork) -> Result<(), Refusal> {
        self.link(link)?.addresses.remove(&address);
        let elsewhere = self.devices.values().any(|device| device.addresses.contains(&address));
        if !elsewhere {
            self.routes
                .retain(|route| !matches!(route.via, Via::Link { source: Some(source), .. } if source == address.ip()));
        }
        Ok(())
    }

    fn device(&mut self, slot: Slot) -> Result<&mut MeshLink, Refusal> {
        self.devices.get_mut(&slot).ok_or(Refusal::NoDevice(slot))
    }

    fn link(&mut self, link: &LinkName) -> Result<&mut MeshLink, Refusal> {
        let mut devices = self.devices.values_mut();
        devices.find(|device| device.link == *link).ok_or_else(|| Refusal::NoLink(link.clone()))
    }
}

/// A prefix belongs to one peer of a device: giving it to one takes it from the others.
fn take(device: &mut MeshLink, prefixes: &[IpNetwork]) {
    for peer in device.peers.values_mut() {
        peer.allowed_ips.retain(|prefix| !prefixes.contains(prefix));
    }
}

fn leads_to(route: &Route, wanted: &LinkName) -> bool {
    matches!(&route.via, Via::Link { link, .. } if link == wanted)
}
