//! A device whose packets the kernel carries; it goes on when this process ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use kernel_wireguard::Interface;
use keyring::{PresharedKey, PrivateKey, PublicKey};
use plan::network::{LinkName, Peer};
use wireguard::PeerChange;

use super::{Backend, Device, DeviceError, DeviceState, PeerState, settings};

/// A WireGuard link of the kernel's.
#[derive(Debug)]
pub struct Kernel {
    interface: Interface,
    /// What this process set for each peer.
    set: BTreeMap<PublicKey, Set>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Set {
    /// One that is set again to the same value had drifted.
    endpoint: Option<SocketAddr>,
    drifts: u64,
    /// None if it has not been set here.
    keepalive: Option<u16>,
}

impl Kernel {
    /// Makes a WireGuard link and sets it up; takes the one that is there already.
    pub fn create(link: &LinkName) -> Result<Self, DeviceError> {
        Ok(Self { interface: Interface::create(link.as_str())?, set: BTreeMap::new() })
    }

    /// Opens a WireGuard link that is there, and changes nothing about it. `None` if there is none, or if the kernel
    /// has no WireGuard at all.
    pub fn open(link: &LinkName) -> Result<Option<Self>, DeviceError> {
        match Interface::open(link.as_str()) {
            Ok(found) => Ok(found.map(|interface| Self { interface, set: BTreeMap::new() })),
            Err(kernel_wireguard::KernelError::NoWireguard { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn note(&mut self, key: PublicKey, change: &PeerChange) {
        let known = self.set.entry(key).or_default();
        known.keepalive = change.keepalive.map(Option::unwrap_or_default).or(known.keepalive);
        if let Some(endpoint) = change.endpoint {
            known.drifts += u64::from(known.endpoint == Some(endpoint));
            known.endpoint = Some(endpoint);
        }
    }
}

impl Device for Kernel {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    fn state(&mut self) -> Result<DeviceState, DeviceError> {
        let state = self.interface.state()?;
        let now = SystemTime::now();
        let peer = |key: &PublicKey, status: kernel_wireguard::PeerStatus| PeerState {
            endpoint: status.endpoint,
            roaming: None,
            allowed_ips: status.allowed_ips,
            keepalive: Some(status.keepalive).filter(|interval| *interval > 0),
            preshared: status.preshared,
            // A clock that was set back makes the handshake as new as can be.
            since_handshake: status.last_handshake.map(|at| now.duration_since(at).unwrap_or_default()),
            received: status.rx_bytes,
            sent: status.tx_bytes,
            endpoint_drifts: self.set.get(key).map(|known| known.drifts).unwrap_or_default(),
        };
        Ok(DeviceState {
            key: state.public_key,
            port: state.listen_port,
            peers: state.peers.into_iter().map(|(key, status)| (key, peer(&key, status))).collect(),
        })
    }

    fn set_key(&mut self, key: &PrivateKey) -> Result<(), DeviceError> {
        Ok(self.interface.set_private_key(key)?)
    }

    fn set_port(&mut self, port: u16) -> Result<(), DeviceError> {
        Ok(self.interface.set_listen_port(port)?)
    }

    /// The link's MTU is all that there is.
    fn set_mtu(&mut self, _mtu: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn add_peer_with(
        &mut self,
        key: PublicKey,
        peer: &Peer,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        let settings = settings::of_new(peer, preshared);
        self.interface.apply(&wireguard::PeerOp::Add { peer: key, settings })?;
        let keepalive = Some(peer.keepalive.unwrap_or(0));
        self.set.insert(key, Set { endpoint: peer.endpoint, drifts: 0, keepalive });
        Ok(())
    }

    fn update_peer(&mut self, key: PublicKey, change: &PeerChange) -> Result<(), DeviceError> {
        // Roaming alone is nothing that the kernel could be told.
        if (PeerChange { roaming: None, ..change.clone() }) != PeerChange::default() {
            let settings = settings::of_change(change);
            self.interface.apply(&wireguard::PeerOp::Update { peer: key, settings })?;
        }
        self.note(key, change);
        Ok(())
    }

    fn remove_peer(&mut self, key: PublicKey) -> Result<(), DeviceError> {
        self.interface.apply(&wireguard::PeerOp::Remove { peer: key })?;
        self.set.remove(&key);
        Ok(())
    }

    fn set_preshared_key(
        &mut self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        let settings = settings::of_preshared(preshared);
        Ok(self.interface.apply(&wireguard::PeerOp::Update { peer, settings })?)
    }

    fn initiate_handshake(&mut self, peer: PublicKey) -> Result<(), DeviceError> {
        let known = self.set.get(&peer).and_then(|known| known.keepalive);
        let interval = match known {
            Some(interval) => interval,
            None => {
                self.interface.state()?.peers.get(&peer).map(|found| found.keepalive).ok_or_else(|| {
                    let link = self.interface.link().to_owned();
                    DeviceError::NoPeer { operation: "start a handshake with", link, peer }
                })?
            }
        };
        Ok(self.interface.initiate_handshake(&peer, interval)?)
    }

    /// The link stays: it is deleted through the kernel's routing side like any other.
    fn remove(self: Box<Self>) -> Result<(), DeviceError> {
        Ok(())
    }
}
