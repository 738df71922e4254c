//! The control channel inside the tunnel: small datagrams from one node's mesh address to another's.
//!
//! Only peers' daemons can speak here. A socket receives only what arrives over its slot's WireGuard device, so the
//! sender's node holds a key of the mesh and the source address is within its allowed IPs. Pods share those devices, but
//! their packets are forwarded, and forwarding decrements the TTL or hop limit: both ends require the maximum of 255
//! (RFC 5082). The source must be a peer's own mesh address. And since any process in a node's network namespace can send
//! such packets, each datagram is authenticated with keys that only the two daemons have, and accepted once.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hops;
mod message;
mod peers;
mod played;
mod rate_limit;
mod session;
mod socket;
mod window;

use std::net::IpAddr;
use std::sync::Arc;

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};
use plan::network::LinkName;
use tokio::sync::mpsc;
use tracing::debug;

pub(crate) use message::{MAX_PROBE_LEN, Message};
pub(crate) use peers::{Correspondent, Peers};
pub use played::{Heard, PlayedEnd, Stand};
use socket::Socket;
pub(crate) use socket::SocketError;

/// A message that was received.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedMessage {
    /// The slot that it arrived on.
    pub(crate) over: Slot,
    /// The sender.
    pub(crate) peer: PeerId,
    /// Its mesh address.
    pub(crate) from: IpAddr,
    /// Its content.
    pub(crate) message: Message,
}

/// What a slot's socket is bound to. If any of it changes, the socket must be reopened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    /// The device.
    pub(crate) link: LinkName,
    /// Its interface index: a recreated device has a new one.
    pub(crate) index: u32,
    /// This node's mesh address.
    pub(crate) address: IpAddr,
}

/// One socket on each slot's device.
#[derive(Debug)]
pub(crate) struct Channel {
    port: u16,
    peers: Arc<Peers>,
    received: mpsc::Sender<ReceivedMessage>,
    sockets: PerSlot<Option<Socket>>,
}

impl Channel {
    /// No sockets yet. Received messages go to `received` and are dropped while it is full.
    pub(crate) fn new(port: u16, received: mpsc::Sender<ReceivedMessage>) -> Self {
        Self { port, peers: Arc::new(Peers::new()), received, sockets: PerSlot::default() }
    }

    /// The peers: only those are heard.
    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Opens, moves or closes a slot's socket. Does nothing if it is bound as requested. After a failure the slot has no
    /// socket, and the next call tries again.
    pub(crate) fn bind(&mut self, slot: Slot, binding: Option<Binding>) -> Result<(), SocketError> {
        let current = self.sockets.get_mut(slot);
        if current.as_ref().map(Socket::binding) == binding.as_ref() {
            return Ok(());
        }
        // Close the old socket first: the new one may need its address.
        *current = None;
        if let Some(binding) = binding {
            *current = Some(Socket::open(
                &binding,
                self.port,
                slot,
                Arc::clone(&self.peers),
                self.received.clone(),
            )?);
        }
        Ok(())
    }

    /// Whether the kernel refuses to send a probe of so many bytes in one piece, because it is larger than the MTU of the route.
    /// None without a socket, or if it fails for another reason.
    pub(crate) fn refuses(&self, over: Slot, to: IpAddr, probe: &Message) -> Option<bool> {
        let socket = self.sockets.get(over).as_ref()?;
        let mut refused = None;
        for datagram in self.peers.seal(over, to, probe) {
            refused = match socket.send_within_route((to, self.port).into(), &datagram) {
                Ok(()) => Some(false),
                // EMSGSIZE (udp(7)).
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {
                    Some(true)
                }
                Err(_) => None,
            };
        }
        refused
    }

    /// Sends once. Retransmission is up to the caller.
    pub(crate) fn send(&self, over: Slot, to: IpAddr, message: &Message) {
        let Some(socket) = self.sockets.get(over) else { return };
        for datagram in self.peers.seal(over, to, message) {
            let target = (to, self.port).into();
            let sent = match message {
                Message::Probe { .. } => socket.send_whole(target, &datagram),
                _ => socket.send(target, &datagram),
            };
            if let Err(error) = sent {
                debug!(
                    event = "ControlMessageNotSent", slot = %over, address = %to, %error,
                    "control message not sent"
                );
            }
        }
    }
}
