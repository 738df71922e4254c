//! The WireGuard devices of both slots, on the userspace engine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use keyring::{PerSlot, PresharedKey, PrivateKey, PublicKey, Slot};
use plan::network::{LinkName, Peer};
use plan::op::PeerChange;
use tracing::error;
use tunnel::{
    Health, Interface, InterfaceConfig, InterfaceState, PeerSettings, PresharedKeyChange, TunnelError,
};

/// The engines that run in this process.
#[derive(Debug)]
pub(super) struct Devices {
    uapi_dir: PathBuf,
    running: PerSlot<Option<Running>>,
    restarts: u64,
}

#[derive(Debug)]
struct Running {
    link: LinkName,
    interface: Interface,
}

impl Devices {
    /// No devices yet; their control sockets will be in `uapi_dir`.
    pub(super) fn new(uapi_dir: PathBuf) -> Self {
        Self { uapi_dir, running: PerSlot::default(), restarts: 0 }
    }

    /// The state of a slot's engine. An engine that died is put away, so that it is seen as missing and made
    /// anew; its link stays, and drops what is sent into it.
    pub(super) fn state(&mut self, slot: Slot) -> Option<(&LinkName, InterfaceState)> {
        let running = self.running.get_mut(slot);
        if let Some(Running { link, interface }) = running
            && let Health::Failed(cause) = interface.health()
        {
            error!(%slot, %link, %cause, "the WireGuard engine has died; making it anew");
            *running = None;
            self.restarts += 1;
        }
        self.running.get(slot).as_ref().map(|running| (&running.link, running.interface.state()))
    }

    /// How many engines died so far.
    pub(super) const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Starts the engine of a slot. The link outlives the process: while nobody serves it the kernel drops
    /// what is routed into it, instead of sending it another way.
    pub(super) fn create(&mut self, slot: Slot, link: &LinkName, mtu: u32) -> Result<(), DeviceError> {
        // An engine on another link, or one whose link was deleted under it.
        *self.running.get_mut(slot) = None;
        let config = InterfaceConfig {
            mtu: Some(engine_mtu(mtu)),
            persistent: true,
            uapi_dir: Some(self.uapi_dir.clone()),
            ..InterfaceConfig::new(link.as_str())
        };
        let interface =
            Interface::create(&config).map_err(|source| DeviceError::new("create", slot, source))?;
        *self.running.get_mut(slot) = Some(Running { link: link.clone(), interface });
        Ok(())
    }

    /// Stops the engine of a slot and deletes its link.
    pub(super) fn remove(&mut self, slot: Slot) -> Result<(), DeviceError> {
        match self.running.get_mut(slot).take() {
            Some(running) => {
                running.interface.remove().map_err(|source| DeviceError::new("remove", slot, source))
            }
            None => Ok(()),
        }
    }

    /// Gives the device its private key.
    pub(super) fn set_key(&self, slot: Slot, key: &PrivateKey) -> Result<(), DeviceError> {
        self.interface(slot)?.set_private_key(key.duplicate());
        Ok(())
    }

    /// Moves the device to a UDP port.
    pub(super) fn set_port(&self, slot: Slot, port: u16) -> Result<(), DeviceError> {
        let interface = self.interface(slot)?;
        interface.set_listen_port(port).map_err(|source| DeviceError::new("set the port of", slot, source))
    }

    /// Tells the engine on a link the MTU that the link got.
    pub(super) fn set_mtu(&self, link: &LinkName, mtu: u32) -> Result<(), DeviceError> {
        for (slot, running) in self.running.iter() {
            if let Some(running) = running.as_ref().filter(|running| running.link == *link) {
                let set = running.interface.set_mtu(engine_mtu(mtu));
                set.map_err(|source| DeviceError::new("set the MTU of", slot, source))?;
            }
        }
        Ok(())
    }

    /// Adds a peer, with the preshared key that the plan names.
    pub(super) fn add_peer(
        &self,
        slot: Slot,
        key: PublicKey,
        peer: &Peer,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        let preshared_key = match (peer.preshared, preshared) {
            (None, _) => PresharedKeyChange::Clear,
            (Some(_), Some(preshared)) => PresharedKeyChange::Set(preshared.duplicate()),
            // Without it the peer would be less protected than the plan says.
            (Some(_), None) => return Err(DeviceError::ForeignPreshared { slot, key }),
        };
        let settings = PeerSettings {
            endpoint: peer.endpoint,
            keepalive: Some(peer.keepalive.unwrap_or(0)),
            allow: peer.allowed_ips.iter().copied().collect(),
            roaming: Some(peer.roaming),
            preshared_key: Some(preshared_key),
            ..PeerSettings::default()
        };
        self.change(slot, "add a peer to", tunnel::PeerChange::Add { peer: key, settings })
    }

    /// Changes what differs at a peer.
    pub(super) fn update_peer(
        &self,
        slot: Slot,
        key: PublicKey,
        change: &PeerChange,
    ) -> Result<(), DeviceError> {
        let settings = PeerSettings {
            endpoint: change.endpoint,
            keepalive: change.keepalive.map(|interval| interval.unwrap_or(0)),
            allow: change.allow.iter().copied().collect(),
            disallow: change.disallow.iter().copied().collect(),
            roaming: change.roaming,
            ..PeerSettings::default()
        };
        self.change(slot, "change a peer of", tunnel::PeerChange::Update { peer: key, settings })
    }

    /// Removes a peer.
    pub(super) fn remove_peer(&self, slot: Slot, key: PublicKey) -> Result<(), DeviceError> {
        self.change(slot, "remove a peer from", tunnel::PeerChange::Remove { peer: key })
    }

    /// Starts a handshake with a peer, unless one is on its way.
    pub(super) fn greet(&self, slot: Slot, key: &PublicKey) {
        if let Some(running) = self.running.get(slot) {
            // A peer that is gone again needs none.
            let _ = running.interface.initiate_handshake(key);
        }
    }

    fn change(
        &self,
        slot: Slot,
        operation: &'static str,
        change: tunnel::PeerChange,
    ) -> Result<(), DeviceError> {
        let applied = self.interface(slot)?.apply(vec![change]);
        applied.map_err(|source| DeviceError::new(operation, slot, source))
    }

    fn interface(&self, slot: Slot) -> Result<&Interface, DeviceError> {
        self.running.get(slot).as_ref().map(|running| &running.interface).ok_or(DeviceError::Missing { slot })
    }
}

/// IP packets have at most 65,535 bytes, so a wider MTU says no more.
fn engine_mtu(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// The peers of an engine as the plan speaks of them.
pub(super) fn peers(state: &InterfaceState) -> BTreeMap<PublicKey, Peer> {
    let peer = |status: &tunnel::PeerStatus| Peer {
        endpoint: status.endpoint,
        roaming: status.roaming,
        allowed_ips: status.allowed_ips.clone(),
        keepalive: Some(status.keepalive).filter(|interval| *interval > 0),
        preshared: status.preshared,
    };
    state.peers.iter().map(|(key, status)| (*key, peer(status))).collect()
}

/// Why a device could not be changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    /// The engine refused.
    #[error("{operation} the WireGuard device of slot {slot}")]
    Engine {
        /// What was tried.
        operation: &'static str,
        /// The slot.
        slot: Slot,
        /// The cause.
        source: TunnelError,
    },
    /// There is no engine; an earlier step of the same plan failed.
    #[error("slot {slot} has no WireGuard device")]
    Missing {
        /// The slot.
        slot: Slot,
    },
    /// The plan asks for a preshared key that is not kept.
    #[error("slot {slot}: the preshared key with {key} is not in the key ring")]
    ForeignPreshared {
        /// The slot.
        slot: Slot,
        /// The peer's public key.
        key: PublicKey,
    },
    /// The plan asks for a key that is not ours.
    #[error("slot {slot}: the private key for {key} is not in the key ring")]
    ForeignKey {
        /// The slot.
        slot: Slot,
        /// The public key.
        key: PublicKey,
    },
}

impl DeviceError {
    const fn new(operation: &'static str, slot: Slot, source: TunnelError) -> Self {
        Self::Engine { operation, slot, source }
    }
}
