//! A WireGuard device, whichever backend it runs on.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

use keyring::{PresharedKey, PrivateKey, PublicKey};

use crate::{Backend, Peer, PeerChange};

/// A WireGuard device in the network namespace of the thread that created it.
///
/// Setting what is set already changes nothing. After a failed change the device is as it was, or the change is applied
/// in part; [`Device::state`] shows which.
pub trait Device: fmt::Debug + Send {
    /// The backend that it runs on.
    fn backend(&self) -> Backend;

    /// The state of the device and its peers. Fails if the device no longer exists, or if it cannot be read.
    fn state(&mut self) -> Result<DeviceState, DeviceError>;

    /// Packets and datagrams that the device dropped since it was created, by reason, as far as the backend counts them; and
    /// `forgotten_timestamps` of removed peers, of which it remembers a bounded number.
    fn dropped(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// What the host's kernel does with batches of packets; none where the backend is part of the kernel.
    fn offload(&self) -> Option<OffloadStatus> {
        None
    }

    /// Sets the private key. Another key ends every session, and a peer with that key is removed.
    fn set_key(&mut self, key: &PrivateKey) -> Result<(), DeviceError>;

    /// Sets the UDP port; sessions go on. Fails, and keeps the port, if it is in use.
    fn set_port(&mut self, port: u16) -> Result<(), DeviceError>;

    /// Adapts the device to the MTU of its link, in bytes.
    fn set_mtu(&mut self, mtu: u32) -> Result<(), DeviceError>;

    /// Adds a peer without a preshared key.
    fn add_peer(&mut self, key: PublicKey, peer: &Peer) -> Result<(), DeviceError> {
        self.add_peer_with(key, peer, None)
    }

    /// Adds a peer with this preshared key, which is set together with the peer; the identifier in `peer` is not read.
    /// Prefixes of other peers move to it. A peer with the device's own key is refused or ignored, and never there
    /// afterwards.
    fn add_peer_with(
        &mut self,
        key: PublicKey,
        peer: &Peer,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError>;

    /// Changes an existing peer; its session goes on. A peer that does not exist is not added.
    fn update_peer(&mut self, key: PublicKey, change: &PeerChange) -> Result<(), DeviceError>;

    /// Removes a peer with its sessions and allowed IPs. Removing one that does not exist is no error.
    fn remove_peer(&mut self, key: PublicKey) -> Result<(), DeviceError>;

    /// Sets or removes the preshared key with a peer. It takes effect at the next handshake; the current session goes
    /// on.
    fn set_preshared_key(
        &mut self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
    ) -> Result<(), DeviceError>;

    /// Initiates a handshake with a peer that has no session. The kernel does so once in 5 s, the engine as often as it is
    /// asked, after another endpoint was set or half a second has passed. With a session this may send only a keepalive.
    fn initiate_handshake(&mut self, peer: PublicKey) -> Result<(), DeviceError>;

    /// Sends datagrams to a peer's present endpoint one by one from now on. Returns whether that is new.
    fn send_singly(&mut self, peer: PublicKey) -> Result<bool, DeviceError> {
        let _ = peer;
        Ok(false)
    }

    /// Stops the device. The link is deleted where the device owns it; otherwise the caller deletes it.
    fn remove(self: Box<Self>) -> Result<(), DeviceError>;
}

/// Whether the host's kernel cuts and joins batches of packets for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OffloadStatus {
    /// Batches of datagrams to and from its UDP sockets.
    pub udp: bool,
    /// Batches of packets to and from its TUN device.
    pub tun: bool,
    /// Batches that the kernel refused, and whose packets it then took one by one.
    pub refused: u64,
}

/// The state of a device, without any secret in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// Public half of its private key; `None` while it has no key.
    pub key: Option<PublicKey>,
    /// UDP port that it listens on.
    pub port: u16,
    /// Mark on outgoing datagrams (`SO_MARK`), zero for none.
    pub fwmark: u32,
    /// Its peers by public key.
    pub peers: BTreeMap<PublicKey, PeerState>,
}

/// The state of one peer: its configuration and what it has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Its configuration as the device has it. The endpoint is where datagrams go now.
    pub config: Peer,
    /// When the last handshake was completed, by the wall clock.
    pub last_handshake: Option<SystemTime>,
    /// How long ago the last handshake was completed.
    pub since_handshake: Option<Duration>,
    /// Bytes of UDP payload received from it, handshakes included.
    pub received: u64,
    /// Bytes of UDP payload sent to it, handshakes included.
    pub sent: u64,
    /// Authenticated datagrams from another address than its endpoint although it does not roam; zero where the backend
    /// always roams.
    pub endpoint_drifts: u64,
    /// Transport data from its endpoint, for one of its sessions, that did not authenticate; zero where the backend does not
    /// count it.
    pub forged: u64,
}

/// Why a device could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The device no longer exists or has stopped for good; it has to be recreated.
    #[error("the WireGuard device {link} is gone, or the link is of another kind")]
    Gone {
        /// Its link.
        link: String,
        /// The backend's reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The link is there, but another process holds it, or it has a shape that the backend can't use; it has to be
    /// replaced.
    #[error("the link {link} can't be opened")]
    Taken {
        /// The link.
        link: String,
        /// The backend's reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The device has no such peer.
    #[error("{operation} peer {peer} of {link}: there is no such peer")]
    NoPeer {
        /// What was tried.
        operation: &'static str,
        /// The device's link.
        link: String,
        /// The peer.
        peer: PublicKey,
    },
    /// The backend failed or refused; its error names the operation and the link.
    #[error(transparent)]
    Backend(Box<dyn Error + Send + Sync>),
}

impl DeviceError {
    /// Whether the device is gone for good and has to be recreated.
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    /// Whether the device can be created once the link that has its name is deleted.
    pub const fn is_taken(&self) -> bool {
        matches!(self, Self::Taken { .. })
    }
}
