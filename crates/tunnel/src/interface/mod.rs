//! The shell around the engine: one TUN device, two UDP sockets, and the threads that move packets between them.

mod config;
mod core;
mod mmsg;
#[cfg(test)]
mod tests;
mod threads;
mod tun;
mod udp;
mod udp_offload;

use std::sync::Arc;

use keyring::{PrivateKey, PublicKey};

pub use self::config::{Health, InterfaceConfig, OffloadOption, uapi_dir};
pub(crate) use self::core::Core;
pub use self::mmsg::{Inbox, Message, SEND_BATCH};
use self::threads::Threads;
pub use self::udp::Sockets;
pub use self::udp_offload::UdpOffload;
use crate::counters::Counters;
use crate::error::{Failure, TunnelError};
use crate::uapi;
use wireguard::{DeviceState, OffloadStatus, PeerOp};

/// A running WireGuard interface.
///
/// It belongs to the network namespace of the thread that creates it, whichever thread uses it later. Dropping it
/// stops its threads, removes its configuration socket and detaches from the TUN device, which disappears unless
/// it is persistent.
#[derive(Debug)]
pub struct Interface {
    core: Arc<Core>,
    // Before the threads: it must be gone before they are joined.
    uapi: Option<uapi::Server>,
    threads: Threads,
}

impl Interface {
    /// Creates or attaches to the TUN device, binds the sockets and starts the threads.
    ///
    /// Fails if the name isn't usable, the device belongs to another process or is no TUN, the port is taken, or
    /// a live process serves the configuration socket; what was created until then is removed.
    pub fn create(config: &InterfaceConfig) -> Result<Self, TunnelError> {
        let core = Arc::new(Core::new(config)?);
        let threads = Threads::start(&core)?;
        let mut interface = Self { core, uapi: None, threads };
        if let Some(dir) = &config.uapi_dir {
            interface.uapi = Some(uapi::Server::start(dir, &config.name, &interface.core)?);
        }
        if config.up {
            interface.core.set_up()?;
        }
        // Last: nothing that fails may leave a device behind.
        if config.persistent {
            interface.core.set_persistent(true)?;
        }
        Ok(interface)
    }

    /// Name of the TUN device.
    pub fn name(&self) -> &str {
        self.core.name()
    }

    /// Sets the private key. Another key ends every session, the same changes nothing.
    pub fn set_private_key(&self, key: PrivateKey) {
        self.core.set_private_key(Some(key));
    }

    /// Removes the private key: nothing passes until another is set.
    pub fn clear_private_key(&self) {
        self.core.set_private_key(None);
    }

    /// Binds to another UDP port, zero to let the kernel choose. Sessions go on. Fails, and keeps the port, if it
    /// is taken.
    pub fn set_listen_port(&self, port: u16) -> Result<(), TunnelError> {
        self.core.set_listen_port(port)
    }

    /// Marks outgoing datagrams, zero for none.
    pub fn set_fwmark(&self, fwmark: u32) -> Result<(), TunnelError> {
        self.core.set_fwmark(fwmark)
    }

    /// Sets the MTU of the TUN device in bytes.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TunnelError> {
        self.core.set_mtu(mtu)
    }

    /// Applies `changes` in their order, all or none.
    pub fn apply(&self, changes: Vec<PeerOp>) -> Result<(), TunnelError> {
        self.core.apply(changes)
    }

    /// The state of the interface and its peers; each peer by itself is consistent.
    pub fn state(&self) -> DeviceState {
        self.core.state()
    }

    /// The MTU of the TUN device in bytes.
    pub fn mtu(&self) -> u16 {
        self.core.engine().mtu()
    }

    /// Drops by reason.
    pub fn counters(&self) -> Counters {
        self.core.engine().counters()
    }

    /// Makes no more batches of datagrams for where `peer` is now, because they arrive damaged there. Returns whether some
    /// were made.
    pub fn send_singly(&self, peer: &PublicKey) -> bool {
        self.core.send_singly(peer)
    }

    /// What the kernel does with batches.
    pub fn offload(&self) -> OffloadStatus {
        self.core.offload()
    }

    /// Initiates a handshake with `peer` unless one is in progress. Returns whether there is such a peer; the outcome is
    /// in [`PeerState::last_handshake`](wireguard::PeerState::last_handshake).
    pub fn initiate_handshake(&self, peer: &PublicKey) -> bool {
        self.core.initiate_handshake(peer)
    }

    /// Whether the interface still moves packets.
    pub fn health(&self) -> Health {
        self.core.health()
    }

    /// Where the configuration socket is, if there is one.
    pub fn uapi_socket(&self) -> Option<&std::path::Path> {
        self.uapi.as_ref().map(uapi::Server::path)
    }

    /// Whether the configuration socket is still the one that this interface created; `true` if it has none.
    pub fn uapi_socket_is_ours(&self) -> bool {
        self.uapi.as_ref().is_none_or(uapi::Server::is_ours)
    }

    /// Stops the interface and deletes its TUN device, persistent or not.
    pub fn remove(self) -> Result<(), TunnelError> {
        self.core.set_persistent(false)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.core.fail(Failure::ShutDown);
        self.uapi = None;
        self.threads.join();
    }
}
