//! A WireGuard device, whoever carries its packets: one seam with two backends behind it.
//!
//! ```text
//!                 ┌─ Userspace: an engine of this process's on a TUN device; ends with the process
//!  dyn Device ────┤
//!                 └─ Kernel: the kernel's own, over netlink; goes on without the process
//! ```
//!
//! Both behave the same as far as [`Device`] goes; one suite of tests runs over both and over a strict stand-in.

mod choice;
mod kernel;
mod settings;
mod userspace;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel_wireguard::KernelError;
use keyring::{PresharedId, PresharedKey, PrivateKey, PublicKey};
use plan::network::{LinkName, Peer};
use tunnel::TunnelError;
use wireguard::PeerChange;

pub use choice::{Chosen, NoKernel, ProbeError, Wish, choose};
pub use kernel::Kernel;
pub use userspace::Userspace;

/// Who carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// An engine in this process.
    Userspace,
    /// The kernel's WireGuard.
    Kernel,
}

impl Backend {
    /// As status, metrics and options have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
        }
    }

    /// Kind of the link that such a device has, as the kernel names it.
    pub const fn link_kind(self) -> &'static str {
        match self {
            Self::Userspace => "tun",
            Self::Kernel => "wireguard",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A WireGuard device in the network namespace of the thread that made it.
///
/// Whatever is set that stands already changes nothing. A failed change leaves the device as it was, or with a part of
/// the change done; the next look shows which.
pub trait Device: fmt::Debug + Send {
    /// Who carries its packets.
    fn backend(&self) -> Backend;

    /// What the device is like now. Fails if it is no longer there, or can't be asked.
    fn state(&mut self) -> Result<DeviceState, DeviceError>;

    /// Gives the device its private key. Another key ends every session, and a peer that has it is removed.
    fn set_key(&mut self, key: &PrivateKey) -> Result<(), DeviceError>;

    /// Moves the device to a UDP port; sessions go on. Fails, and keeps the port, if it is taken.
    fn set_port(&mut self, port: u16) -> Result<(), DeviceError>;

    /// Tells the device the MTU in bytes that its link got.
    fn set_mtu(&mut self, mtu: u32) -> Result<(), DeviceError>;

    /// Adds a peer without a preshared key.
    fn add_peer(&mut self, key: PublicKey, peer: &Peer) -> Result<(), DeviceError> {
        self.add_peer_with(key, peer, None)
    }

    /// Adds a peer. Prefixes that another peer has move to it. One with the device's own key is refused or ignored,
    /// and is in no case there afterwards. There is no moment at which the peer is there without the preshared
    /// key.
    fn add_peer_with(
        &mut self,
        key: PublicKey,
        peer: &Peer,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError>;

    /// Changes what differs at a peer; its session goes on. Prefixes that another peer has move to it; of those that
    /// are taken away, only those that it has. A peer that is not there is not made.
    fn update_peer(&mut self, key: PublicKey, change: &PeerChange) -> Result<(), DeviceError>;

    /// Removes a peer with its sessions and prefixes. One that is not there is no error.
    fn remove_peer(&mut self, key: PublicKey) -> Result<(), DeviceError>;

    /// Sets the preshared key with a peer, or removes it. It counts from the next handshake on; the session that
    /// there is goes on.
    fn set_preshared_key(
        &mut self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError>;

    /// Starts a handshake with a peer that has no session, unless one is on its way. With a session it may be no more
    /// than a keepalive.
    fn initiate_handshake(&mut self, peer: PublicKey) -> Result<(), DeviceError>;

    /// Ends the device. The link goes with it where the device owns it; else it stays, and is the caller's to delete.
    fn remove(self: Box<Self>) -> Result<(), DeviceError>;
}

/// What a device is like, without any secret in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Public half of its private key; none while it has no key.
    pub key: Option<PublicKey>,
    /// UDP port that it listens on.
    pub port: u16,
    /// Its peers by public key.
    pub peers: BTreeMap<PublicKey, PeerState>,
}

/// What one peer of a device is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Where datagrams for it go now.
    pub endpoint: Option<SocketAddr>,
    /// Whether the endpoint follows the peer; none if the device can't be told and always follows.
    pub roaming: Option<bool>,
    /// Prefixes that it owns.
    pub allowed_ips: BTreeSet<IpNetwork>,
    /// Seconds between keepalives; none sends none.
    pub keepalive: Option<u16>,
    /// Name of the preshared key, if one is set.
    pub preshared: Option<PresharedId>,
    /// How long ago the last handshake was completed.
    pub since_handshake: Option<Duration>,
    /// Bytes of UDP payload received from it.
    pub received: u64,
    /// Bytes of UDP payload sent to it.
    pub sent: u64,
    /// How often it was seen elsewhere than at its endpoint although it does not roam.
    pub endpoint_drifts: u64,
}

impl PeerState {
    /// The peer as the plan speaks of it. `wanted` answers what the device can't: whether the peer roams. A device
    /// that always follows is kept to the wanted endpoint by setting it again.
    pub fn as_planned(&self, wanted: Option<&Peer>) -> Peer {
        Peer {
            endpoint: self.endpoint,
            roaming: self.roaming.unwrap_or_else(|| wanted.is_some_and(|wanted| wanted.roaming)),
            allowed_ips: self.allowed_ips.clone(),
            keepalive: self.keepalive,
            preshared: self.preshared,
        }
    }
}

/// Why a device could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The engine refused.
    #[error("{operation} the WireGuard engine of {link}")]
    Engine {
        /// What was tried.
        operation: &'static str,
        /// Its link.
        link: String,
        /// The cause.
        source: TunnelError,
    },
    /// The engine has died.
    #[error("the WireGuard engine of {link} has ended")]
    Dead {
        /// Its link.
        link: String,
        /// The cause.
        source: tunnel::Failure,
    },
    /// The kernel refused.
    #[error("the kernel's WireGuard")]
    Kernel(#[from] KernelError),
    /// There is no such peer.
    #[error("{operation} peer {peer} of {link}: there is no such peer")]
    NoPeer {
        /// What was tried.
        operation: &'static str,
        /// The device's link.
        link: String,
        /// The peer.
        peer: PublicKey,
    },
}

impl DeviceError {
    /// Whether the device is gone for good, so that another one has to be made.
    pub const fn is_gone(&self) -> bool {
        match self {
            Self::Dead { .. } => true,
            Self::Kernel(error) => error.is_missing(),
            Self::Engine { .. } | Self::NoPeer { .. } => false,
        }
    }
}

/// Takes over the device of an earlier process on this link, if it goes on without one.
pub fn adopt(link: &LinkName) -> Result<Option<Box<dyn Device>>, DeviceError> {
    Ok(Kernel::open(link)?.map(|kernel| Box::new(kernel) as Box<dyn Device>))
}
