//! A WireGuard device that runs on an engine of this process.

use std::path::PathBuf;

use keyring::{PresharedKey, PrivateKey, PublicKey};
use nix::errno::Errno;
use wireguard::{
    Backend, Device, DeviceError, DeviceState, LinkName, OffloadStatus, Peer, PeerChange, PeerOp,
    PresharedKeyChange,
};

use crate::error::TunnelError;
use crate::interface::{Health, Interface, InterfaceConfig, OffloadOption};

/// An engine on a TUN device; it stops with the process.
#[derive(Debug)]
pub struct Userspace {
    interface: Interface,
}

/// What all engines of a process have in common.
#[derive(Clone, Debug, Default)]
pub struct UserspaceOptions {
    /// Directory of the UAPI sockets for `wg`.
    pub uapi_dir: PathBuf,
    /// Batches of datagrams to and from the UDP sockets.
    pub udp_offload: OffloadOption,
    /// Batches of packets to and from the TUN devices.
    pub tun_offload: OffloadOption,
}

/// An operation on an engine that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} the WireGuard engine of {link}")]
struct EngineError {
    operation: &'static str,
    link: String,
    source: TunnelError,
}

impl Userspace {
    /// Starts an engine on a link, which is created if it does not exist. The link outlives the process: while no
    /// engine is attached the kernel drops what is routed into it, instead of routing it elsewhere.
    pub fn create(link: &LinkName, mtu: u32, options: &UserspaceOptions) -> Result<Self, DeviceError> {
        let config = InterfaceConfig {
            mtu: Some(engine_mtu(mtu)),
            persistent: true,
            uapi_dir: Some(options.uapi_dir.clone()),
            udp_offload: options.udp_offload,
            tun_offload: options.tun_offload,
            ..InterfaceConfig::new(link.as_str())
        };
        let refused = |source: TunnelError| match source {
            TunnelError::AttachTun { source: Errno::EBUSY | Errno::EINVAL, .. } => {
                DeviceError::Taken { link: link.to_string(), source: Box::new(source) }
            }
            source => failed("start", link.as_str(), source),
        };
        let interface = Interface::create(&config).map_err(refused)?;
        Ok(Self { interface })
    }

    fn apply(&self, operation: &'static str, op: PeerOp) -> Result<(), DeviceError> {
        self.interface.apply(vec![op]).map_err(|source| self.failed(operation, source))
    }

    fn failed(&self, operation: &'static str, source: TunnelError) -> DeviceError {
        failed(operation, self.interface.name(), source)
    }
}

impl Device for Userspace {
    fn backend(&self) -> Backend {
        Backend::Userspace
    }

    fn state(&mut self) -> Result<DeviceState, DeviceError> {
        match self.interface.health() {
            Health::Running => Ok(self.interface.state()),
            Health::Failed(failure) => {
                let link = self.interface.name().to_owned();
                Err(DeviceError::Gone { link, source: Box::new(failure) })
            }
        }
    }

    fn dropped(&self) -> Vec<(&'static str, u64)> {
        let counters = self.interface.counters();
        let dropped = counters.iter().map(|(reason, count)| (reason.label(), count));
        dropped.chain([("forgotten_timestamps", counters.forgotten_timestamps)]).collect()
    }

    fn offload(&self) -> Option<OffloadStatus> {
        Some(self.interface.offload())
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
        let preshared_key = Some(PresharedKeyChange::to(preshared));
        self.apply(
            "add a peer to",
            PeerOp::Add { peer: key, change: PeerChange::of_new(peer), preshared_key },
        )
    }

    fn update_peer(&mut self, peer: PublicKey, change: &PeerChange) -> Result<(), DeviceError> {
        let op = PeerOp::Update { peer, change: change.clone(), preshared_key: None };
        self.apply("change a peer of", op)
    }

    fn remove_peer(&mut self, peer: PublicKey) -> Result<(), DeviceError> {
        self.apply("remove a peer from", PeerOp::Remove { peer })
    }

    fn set_preshared_key(
        &mut self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError> {
        let preshared_key = Some(PresharedKeyChange::to(preshared));
        let op = PeerOp::Update { peer, change: PeerChange::default(), preshared_key };
        self.apply("set the preshared key of a peer of", op)
    }

    fn initiate_handshake(&mut self, peer: PublicKey) -> Result<(), DeviceError> {
        if self.interface.initiate_handshake(&peer) {
            return Ok(());
        }
        let link = self.interface.name().to_owned();
        Err(DeviceError::NoPeer { operation: "initiate a handshake with", link, peer })
    }

    fn send_singly(&mut self, peer: PublicKey) -> Result<bool, DeviceError> {
        Ok(self.interface.send_singly(&peer))
    }

    fn remove(self: Box<Self>) -> Result<(), DeviceError> {
        let link = self.interface.name().to_owned();
        self.interface.remove().map_err(|source| failed("remove", &link, source))
    }
}

fn failed(operation: &'static str, link: &str, source: TunnelError) -> DeviceError {
    DeviceError::Backend(Box::new(EngineError { operation, link: link.to_owned(), source }))
}

/// IP packets have at most 65,535 bytes, so a larger MTU makes no difference.
fn engine_mtu(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}
