//! A kernel WireGuard device; it keeps running when this process ends.

use std::collections::BTreeMap;

use keyring::{PresharedKey, PrivateKey, PublicKey};
use wireguard::{
    Backend, Device, DeviceError, DeviceState, LinkName, Peer, PeerChange, PeerOp, PresharedKeyChange,
};

use crate::error::KernelError;
use crate::interface::Interface;

/// A kernel WireGuard link.
#[derive(Debug)]
pub struct Kernel {
    interface: Interface,
    /// Seconds between keepalives, by peer, as far as they were set here: a handshake is initiated by setting the
    /// interval again.
    keepalives: BTreeMap<PublicKey, u16>,
}

impl Kernel {
    /// Creates a WireGuard link and sets it up, or opens the existing one.
    pub fn create(link: &LinkName) -> Result<Self, DeviceError> {
        Ok(Self { interface: Interface::create(link)?, keepalives: BTreeMap::new() })
    }

    /// Opens an existing WireGuard link without changing it. `None` if there is none, or if the kernel has no
    /// WireGuard.
    pub fn open(link: &LinkName) -> Result<Option<Self>, DeviceError> {
        match Interface::open(link) {
            Ok(found) => Ok(found.map(|interface| Self { interface, keepalives: BTreeMap::new() })),
            Err(KernelError::NoWireguard { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn update(
        &mut self,
        peer: PublicKey,
        change: PeerChange,
        preshared_key: Option<PresharedKeyChange>,
    ) -> Result<(), DeviceError> {
        Ok(self.interface.apply(&PeerOp::Update { peer, change, preshared_key })?)
    }
}

impl Device for Kernel {
    fn backend(&self) -> Backend {
        Backend::Kernel
    }

    fn state(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(self.interface.state()?)
    }

    fn set_key(&mut self, key: &PrivateKey) -> Result<(), DeviceError> {
        Ok(self.interface.set_private_key(key)?)
    }

    fn set_port(&mut self, port: u16) -> Result<(), DeviceError> {
        Ok(self.interface.set_listen_port(port)?)
    }

    /// The kernel reads the MTU from the link.
    fn set_mtu(&mut self, _mtu: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn add_peer_with(
        &mut self,
        key: PublicKey,
        peer: &Peer,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        let preshared_key = Some(PresharedKeyChange::to(preshared));
        let change = PeerChange::of_new(peer);
        self.interface.apply(&PeerOp::Add { peer: key, change, preshared_key })?;
        self.keepalives.insert(key, peer.keepalive.unwrap_or_default());
        Ok(())
    }

    fn update_peer(&mut self, key: PublicKey, change: &PeerChange) -> Result<(), DeviceError> {
        // The kernel has no setting for roaming.
        let change = PeerChange { roaming: None, ..change.clone() };
        if change == PeerChange::default() {
            return Ok(());
        }
        let keepalive = change.keepalive;
        self.update(key, change, None)?;
        if let Some(interval) = keepalive {
            self.keepalives.insert(key, interval.unwrap_or_default());
        }
        Ok(())
    }

    fn remove_peer(&mut self, key: PublicKey) -> Result<(), DeviceError> {
        self.interface.apply(&PeerOp::Remove { peer: key })?;
        self.keepalives.remove(&key);
        Ok(())
    }

    fn set_preshared_key(
        &mut self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        self.update(peer, PeerChange::default(), Some(PresharedKeyChange::to(preshared)))
    }

    fn initiate_handshake(&mut self, peer: PublicKey) -> Result<(), DeviceError> {
        let interval = if let Some(interval) = self.keepalives.get(&peer) {
            *interval
        } else {
            let state = self.interface.state()?;
            let found = state.peers.get(&peer).ok_or_else(|| DeviceError::NoPeer {
                operation: "initiate a handshake with",
                link: self.interface.link().to_owned(),
                peer,
            })?;
            found.config.keepalive.unwrap_or_default()
        };
        Ok(self.interface.initiate_handshake(&peer, interval)?)
    }

    /// The link is left in place: it is deleted over rtnetlink like any other.
    fn remove(self: Box<Self>) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl From<KernelError> for DeviceError {
    fn from(error: KernelError) -> Self {
        match &error {
            KernelError::NotWireguard { link, .. } => {
                Self::Gone { link: link.clone(), source: Box::new(error) }
            }
            _ => Self::Backend(Box::new(error)),
        }
    }
}
