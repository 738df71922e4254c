//! The shell around the engine: one TUN device, two UDP sockets, and the threads that move packets between them.

mod core;
mod mmsg;
#[cfg(test)]
mod tests;
mod threads;
mod tun;
mod udp;

use std::path::PathBuf;
use std::sync::Arc;

use keyring::{PrivateKey, PublicKey};
use nix::errno::Errno;

pub(crate) use self::core::Core;
use self::threads::Threads;
use crate::counters::Counters;
use crate::error::TunnelError;
use crate::uapi;
use wireguard::{DeviceState, PeerOp};

/// What an interface is made with.
#[derive(Debug, Clone)]
pub struct InterfaceConfig {
    /// Name of the TUN device, 1 to 15 bytes.
    pub name: String,
    /// MTU in bytes; `None` leaves that of a device that exists, which is 1500 for a new one.
    pub mtu: Option<u16>,
    /// Whether the device outlives this process: link, addresses and routes then stay after a crash, and what
    /// is routed into it is dropped instead of taking another way.
    pub persistent: bool,
    /// Whether to set the link up. Otherwise that is left to the caller.
    pub up: bool,
    /// UDP port, zero to let the kernel choose.
    pub listen_port: u16,
    /// Mark on outgoing datagrams, zero for none.
    pub fwmark: u32,
    /// Folder for the configuration socket `NAME.sock`; `None` for no socket. Usually [`uapi_dir`].
    pub uapi_dir: Option<PathBuf>,
    /// Handshake messages per second that are worked on before senders have to prove their address.
    pub handshakes_per_second: u64,
}

impl InterfaceConfig {
    /// A plain interface `name`: MTU 1420, not persistent, left down, any port, no configuration socket.
    pub fn new(name: impl Into<String>) -> Self {
        let engine = crate::engine::EngineOptions::default();
        Self {
            name: name.into(),
            mtu: Some(engine.mtu),
            persistent: false,
            up: false,
            listen_port: 0,
            fwmark: 0,
            uapi_dir: None,
            handshakes_per_second: engine.handshakes_per_second,
        }
    }
}

/// Where `wg` looks for the sockets of userspace interfaces.
pub fn uapi_dir() -> PathBuf {
    PathBuf::from("/var/run/wireguard")
}

/// Whether an interface still moves packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Running,
    /// It does not, and will not again: drop it and make a new one.
    Failed(Failure),
}

/// Why an interface stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A thread panicked: a bug, or memory ran out.
    #[error("its {0} thread panicked")]
    Panic(&'static str),
    /// The TUN device was deleted.
    #[error("its TUN device is gone")]
    TunGone,
    /// The TUN device could not be read or waited for.
    #[error("reading its TUN device failed: {0}")]
    Tun(Errno),
    /// The UDP sockets could not be waited for.
    #[error("waiting for its UDP sockets failed: {0}")]
    Udp(Errno),
    /// It was shut down.
    #[error("it was shut down")]
    ShutDown,
}

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
    /// Makes or attaches to the TUN device, binds the sockets and starts the threads.
    ///
    /// Fails if the name isn't usable, the device belongs to another process or is no TUN, the port is taken, or
    /// a live process serves the configuration socket; whatever was made until then is undone.
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

    /// Starts a handshake with `peer` unless one is on its way. Says whether there is such a peer; the outcome
    /// shows in [`PeerState::last_handshake`](wireguard::PeerState::last_handshake).
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

    /// Whether the configuration socket is still the one that this interface made; `true` if it has none.
    pub fn uapi_socket_stands(&self) -> bool {
        self.uapi.as_ref().is_none_or(uapi::Server::stands)
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
