//! A device whose packets an engine in this process carries.

use std::path::Path;

use keyring::{PresharedKey, PrivateKey, PublicKey};
use plan::network::{LinkName, Peer};
use tunnel::{Health, Interface, InterfaceConfig, TunnelError};
use wireguard::PeerChange;
use wireguard::PeerSettings;

use super::{Backend, Device, DeviceError, DeviceState, PeerState, settings};

/// An engine on a TUN device.
#[derive(Debug)]
pub struct Userspace {
    interface: Interface,
}

impl Userspace {
    /// Starts an engine on a link, which is made if it is not there. The link outlives the process: while nobody
    /// serves it the kernel drops what is routed into it, instead of sending it another way. The control socket for
    /// `wg` goes to `uapi_dir`.
    pub fn create(link: &LinkName, mtu: u32, uapi_dir: &Path) -> Result<Self, DeviceError> {
        let config = InterfaceConfig {
            mtu: Some(engine_mtu(mtu)),
            persistent: true,
            uapi_dir: Some(uapi_dir.to_owned()),
            ..InterfaceConfig::new(link.as_str())
        };
        let interface = Interface::create(&config).map_err(|source| DeviceError::Engine {
            operation: "start",
            link: link.to_string(),
            source,
        })?;
        Ok(Self { interface })
    }

    fn change(
        &self,
        operation: &'static str,
        peer: PublicKey,
        add: bool,
        settings: PeerSettings,
    ) -> Result<(), DeviceError> {
        let change = if add {
            wireguard::PeerOp::Add { peer, settings }
        } else {
            wireguard::PeerOp::Update { peer, settings }
        };
        self.interface.apply(vec![change]).map_err(|source| self.failed(operation, source))
    }

    fn failed(&self, operation: &'static str, source: TunnelError) -> DeviceError {
        DeviceError::Engine { operation, link: self.interface.name().to_owned(), source }
    }
}

impl Device for Userspace {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    fn state(&mut self) -> Result<DeviceState, DeviceError> {
        if let Health::Failed(source) = self.interface.health() {
            return Err(DeviceError::Dead { link: self.interface.name().to_owned(), source });
        }
        let state = self.interface.state();
        let peer = |status: tunnel::PeerStatus| PeerState {
            endpoint: status.endpoint,
            roaming: Some(status.roaming),
            allowed_ips: status.allowed_ips,
            keepalive: Some(status.keepalive).filter(|interval| *interval > 0),
            preshared: status.preshared,
            since_handshake: status.since_handshake,
            received: status.rx_bytes,
            sent: status.tx_bytes,
            endpoint_drifts: status.endpoint_drifts,
        };
        Ok(DeviceState {
            key: state.public_key,
            port: state.listen_port,
            peers: state.peers.into_iter().map(|(key, status)| (key, peer(status))).collect(),
        })
    }

    fn set_key(&mut self, key: &PrivateKey) -> Result<(), DeviceError> {
        self.interface.set_private_key(key.duplicate());
        Ok(())
    }

    fn set_port(&mut self, port: u16) -> Result<(), DeviceError> {
        self.interface.set_listen_port(port).map_err(|source| self.failed("set the port of", source))
    }

    fn set_mtu(&mut self, mtu: u32) -> Result<(), DeviceError> {
        self.interface.set_mtu(engine_mtu(mtu)).map_err(|source| self.failed("set the MTU of", source))
    }

    fn add_peer_with(
        &mut self,
        key: PublicKey,
        peer: &Peer,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        self.change("add a peer to", key, true, settings::of_new(peer, preshared))
    }

    fn update_peer(&mut self, key: PublicKey, change: &PeerChange) -> Result<(), DeviceError> {
        self.change("change a peer of", key, false, settings::of_change(change))
    }

    fn remove_peer(&mut self, key: PublicKey) -> Result<(), DeviceError> {
        let removed = self.interface.apply(vec![wireguard::PeerOp::Remove { peer: key }]);
        removed.map_err(|source| self.failed("remove a peer from", source))
    }

    fn set_preshared_key(
        &mut self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        let settings = settings::of_preshared(preshared);
        self.change("set the preshared key of a peer of", peer, false, settings)
    }

    fn initiate_handshake(&mut self, peer: PublicKey) -> Result<(), DeviceError> {
        if self.interface.initiate_handshake(&peer) {
            return Ok(());
        }
        let link = self.interface.name().to_owned();
        Err(DeviceError::NoPeer { operation: "start a handshake with", link, peer })
    }

    fn remove(self: Box<Self>) -> Result<(), DeviceError> {
        let link = self.interface.name().to_owned();
        let removed = self.interface.remove();
        removed.map_err(|source| DeviceError::Engine { operation: "remove", link, source })
    }
}

/// IP packets have at most 65,535 bytes, so a wider MTU says no more.
fn engine_mtu(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}
