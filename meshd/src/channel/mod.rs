//! The control channel inside the tunnel: small datagrams from one node's mesh address to another's.
//!
//! Nobody else can speak here. A socket hears only what arrives by its slot's WireGuard device, so the sender holds
//! a key of the mesh and its address is one that WireGuard grants it. Pods share those devices, but what they send
//! is forwarded, and a datagram that was forwarded has lost a hop: both ends demand 255 hops (RFC 5082), the most
//! that there is. What remains is checked by who reads the messages: the source must be a peer's own mesh address.

mod hops;
mod message;
mod socket;

use std::net::IpAddr;

use keyring::{PerSlot, Slot};
use plan::network::LinkName;
use tokio::sync::mpsc;
use tracing::{debug, warn};

pub(crate) use message::Message;
use socket::Socket;

use crate::chain::Chain;

/// What arrived.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// The slot that it came over.
    pub(crate) over: Slot,
    /// Mesh address of the sender.
    pub(crate) from: IpAddr,
    /// What it says.
    pub(crate) message: Message,
}

/// Where a slot's socket hangs: when any of this changes another socket is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The device.
    pub(crate) link: LinkName,
    /// Its number: a device that was made anew has another.
    pub(crate) index: u32,
    /// This node's mesh address.
    pub(crate) address: IpAddr,
}

/// One socket on each slot's device.
#[derive(Debug)]
pub(crate) struct Channel {
    port: u16,
    heard: mpsc::Sender<Heard>,
    sockets: PerSlot<Option<Socket>>,
}

impl Channel {
    /// No sockets yet; what they hear goes to `heard`, and is lost while that is full.
    pub(crate) fn new(port: u16, heard: mpsc::Sender<Heard>) -> Self {
        Self { port, heard, sockets: PerSlot::default() }
    }

    /// Puts a slot's socket where it belongs, or takes it away. Does nothing if it is there.
    pub(crate) fn place(&mut self, slot: Slot, place: Option<Place>) {
        let standing = self.sockets.get_mut(slot);
        if standing.as_ref().map(Socket::place) == place.as_ref() {
            return;
        }
        // First the old one goes: the new one may want its address.
        *standing = None;
        let Some(place) = place else { return };
        match Socket::open(&place, self.port, slot, self.heard.clone()) {
            Ok(socket) => *standing = Some(socket),
            Err(error) => {
                warn!(%slot, cause = %Chain(&error), "no control channel on this slot; will try again");
            }
        }
    }

    /// Sends once. A datagram that is lost is the sender's affair: it asks again.
    pub(crate) fn send(&self, over: Slot, to: IpAddr, message: &Message) {
        let Some(socket) = self.sockets.get(over) else { return };
        if let Err(error) = socket.send((to, self.port).into(), &message.encode()) {
            debug!(slot = %over, %to, cause = %error, "control message not sent");
        }
    }
}
