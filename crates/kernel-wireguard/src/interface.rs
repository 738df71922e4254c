//! One interface of the kernel's WireGuard.

use std::collections::BTreeSet;
use std::time::SystemTime;

use defguard_wireguard_rs::{Kernel, WGApi, WireguardInterfaceApi as _};
use ipnetwork::IpNetwork;
use keyring::{PrivateKey, PublicKey};
use netlink::NetlinkError;

use crate::channel::{Channel, Fault};
use crate::error::KernelError;
use crate::reading;
use crate::request::{self, Request};
use wireguard::{DeviceState, LinkName, PeerChange, PeerOp, PresharedKeyChange};

/// A kernel WireGuard interface, in the network namespace of the thread that created or opened it. Dropping it leaves the
/// interface as it is; it keeps forwarding after the process exits.
#[derive(Debug)]
pub struct Interface {
    link: String,
    channel: Channel,
}

impl Interface {
    /// Creates a WireGuard link, set up and without key, port or peers; opens the one that exists already. Fails if
    /// the kernel has no WireGuard, or if the name is that of another kind of link.
    pub fn create(link: &LinkName) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Create { link: link.to_string(), source: Box::new(source) };
        // First: without the family no link can be created, and here the kernel says why.
        let channel = open_channel()?;
        WGApi::<Kernel>::new(link.to_string()).and_then(|mut api| api.create_interface()).map_err(failed)?;
        let mut interface = Self { link: link.to_string(), channel };
        // An existing link of whatever kind was no error up to here.
        interface.state()?;
        Ok(interface)
    }

    /// Opens a WireGuard link that is there. `None` if there is none of that name, or none of that kind.
    pub fn open(link: &LinkName) -> Result<Option<Self>, KernelError> {
        let mut interface = Self { link: link.to_string(), channel: open_channel()? };
        match interface.state() {
            Ok(_) => Ok(Some(interface)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Name of the link.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// The state of the interface. Read again if it changed meanwhile, because then a peer that was there all the time may
    /// be missing; after some attempts the last reading is returned.
    pub fn state(&mut self) -> Result<DeviceState, KernelError> {
        let state = self.channel.dump(request::read(&self.link), DeviceState::default, reading::take);
        let state = state.map_err(|fault| interface_error("read", &self.link, fault))?;
        Ok(aged(state, SystemTime::now()))
    }

    /// Sets the private key. Another key ends every session as far as sending goes, and removes the peer that has it;
    /// the same changes nothing.
    pub fn set_private_key(&mut self, key: &PrivateKey) -> Result<(), KernelError> {
        self.set("set the private key of", request::private_key(&self.link, Some(key)))
    }

    /// Removes the private key: nothing passes until another is set.
    pub fn clear_private_key(&mut self) -> Result<(), KernelError> {
        self.set("remove the private key of", request::private_key(&self.link, None))
    }

    /// Binds to another UDP port, zero to let the kernel choose. Sessions go on. Fails, and the interface has no
    /// socket until another attempt, if the port is taken while the link is up.
    pub fn set_listen_port(&mut self, port: u16) -> Result<(), KernelError> {
        self.set("set the port of", request::listen_port(&self.link, port))
    }

    /// Applies one change to a peer: one message, or several where it has more prefixes than fit. If one fails,
    /// earlier messages remain applied; read the state and apply the difference.
    pub fn apply(&mut self, op: &PeerOp) -> Result<(), KernelError> {
        let peer = *op.peer();
        match op {
            PeerOp::Remove { .. } => self.set_peer("remove", &peer, request::remove(&self.link, &peer)),
            PeerOp::Add { change, preshared_key, .. } => {
                self.change_peer("add", &peer, false, (change, preshared_key.as_ref()))
            }
            PeerOp::Update { change, preshared_key, .. } => {
                self.change_peer("change", &peer, true, (change, preshared_key.as_ref()))
            }
        }
    }

    /// Initiates a handshake with `peer` unless it has a session, or one was initiated less than 5 s ago (`REKEY_TIMEOUT`);
    /// the link has to be up. With a session it sends an empty packet. `interval` are the seconds between keepalives
    /// that the peer has and keeps.
    pub fn initiate_handshake(&mut self, peer: &PublicKey, interval: u16) -> Result<(), KernelError> {
        self.set_peer(
            "initiate a handshake with",
            peer,
            request::initiate_handshake(&self.link, peer, interval),
        )
    }

    fn change_peer(
        &mut self,
        operation: &'static str,
        peer: &PublicKey,
        only: bool,
        (change, preshared_key): (&PeerChange, Option<&PresharedKeyChange>),
    ) -> Result<(), KernelError> {
        if !change.disallow.is_empty() {
            self.remove_prefixes(operation, peer, &change.disallow)?;
        }
        for message in request::peer(&self.link, peer, only, change, preshared_key) {
            self.set_peer(operation, peer, message)?;
        }
        Ok(())
    }

    /// Removes those of `prefixes` that `peer` has.
    fn remove_prefixes(
        &mut self,
        operation: &'static str,
        peer: &PublicKey,
        prefixes: &BTreeSet<IpNetwork>,
    ) -> Result<(), KernelError> {
        let state = self.state()?;
        let Some(found) = state.peers.get(peer) else { return Ok(()) };
        let canonical = prefixes.iter().filter_map(|p| IpNetwork::new(p.network(), p.prefix()).ok());
        let had: Vec<IpNetwork> =
            canonical.filter(|prefix| found.config.allowed_ips.contains(prefix)).collect();
        let random = |source| KernelError::Random { link: self.link.clone(), peer: *peer, source };
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(random)?;
        // No private key is known for 32 random bytes; the temporary peer is removed in the same message.
        let Ok(temporary) = PublicKey::from_bytes(&bytes) else { return Ok(()) };
        for message in request::take(&self.link, &temporary, &had) {
            self.set_peer(operation, peer, message)?;
        }
        Ok(())
    }

    fn set(&mut self, operation: &'static str, message: Request) -> Result<(), KernelError> {
        self.channel.set(message).map_err(|fault| interface_error(operation, &self.link, fault))
    }

    fn set_peer(
        &mut self,
        operation: &'static str,
        peer: &PublicKey,
        message: Request,
    ) -> Result<(), KernelError> {
        self.channel.set(message).map_err(|fault| match fault {
            Fault::Netlink(source) => {
                KernelError::Peer { operation, link: self.link.clone(), peer: *peer, source }
            }
            Fault::Answer(_) => interface_error(operation, &self.link, fault),
        })
    }
}

/// Ages of handshakes: the kernel says when they were completed, by the wall clock. If the clock was
/// set back, the age is zero.
fn aged(mut state: DeviceState, now: SystemTime) -> DeviceState {
    for peer in state.peers.values_mut() {
        peer.since_handshake = peer.last_handshake.map(|at| now.duration_since(at).unwrap_or_default());
    }
    state
}

fn open_channel() -> Result<Channel, KernelError> {
    let (operation, link) = ("find the family of", "wireguard".to_owned());
    Channel::open().map_err(|fault| match fault {
        Fault::Netlink(source) if is_unsupported(&source) => KernelError::NoWireguard { source },
        Fault::Netlink(source) => KernelError::Interface { operation, link, source },
        Fault::Answer(source) => KernelError::Answer { operation, link, source },
    })
}

/// Whether the kernel has no WireGuard: it knows no such family, or has no generic netlink at all. Anything else, such as
/// too many open files, says nothing about it, and a device may be running.
pub(crate) fn is_unsupported(error: &NetlinkError) -> bool {
    const EPROTONOSUPPORT: i32 = 93;
    const EAFNOSUPPORT: i32 = 97;
    match error {
        NetlinkError::Refused { .. } => true,
        NetlinkError::Socket { .. } => matches!(error.errno(), Some(EPROTONOSUPPORT | EAFNOSUPPORT)),
        NetlinkError::Malformed { .. } | NetlinkError::Decode { .. } => false,
    }
}

fn interface_error(operation: &'static str, link: &str, fault: Fault) -> KernelError {
    let link = link.to_owned();
    match fault {
        Fault::Netlink(source) if is_other_kind(&source) => {
            KernelError::NotWireguard { operation, link, source }
        }
        Fault::Netlink(source) => KernelError::Interface { operation, link, source },
        Fault::Answer(source) => KernelError::Answer { operation, link, source },
    }
}

/// `ENODEV` for no link of the name, `EOPNOTSUPP` for one of another kind (`lookup_interface` in
/// `drivers/net/wireguard/netlink.c`).
fn is_other_kind(error: &NetlinkError) -> bool {
    const ENODEV: i32 = 19;
    const EOPNOTSUPP: i32 = 95;
    matches!(error.errno(), Some(ENODEV | EOPNOTSUPP))
}
