//! One UDP socket on one WireGuard device.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keyring::Slot;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Domain, Protocol, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::message::MAX_PROBE_LEN;
use super::peers::{Peers, Taken};
use super::{Binding, ReceivedMessage, hops};

/// A socket and the task that reads it. The task ends with the socket.
#[derive(Debug)]
pub(super) struct Socket {
    binding: Binding,
    udp: Arc<UdpSocket>,
    reader: JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Socket {
    /// Opens a socket on the device's link, at this node's mesh address.
    pub(super) fn open(
        binding: &Binding,
        port: u16,
        slot: Slot,
        peers: Arc<Peers>,
        received: mpsc::Sender<ReceivedMessage>,
    ) -> Result<Self, SocketError> {
        let udp = bind_socket(binding, port)
            .map_err(|source| SocketError { address: (binding.address, port).into(), source })?;
        let udp = Arc::new(udp);
        let reader = tokio::spawn(read(Arc::clone(&udp), port, slot, peers, received));
        Ok(Self { binding: binding.clone(), udp, reader })
    }

    pub(super) const fn binding(&self) -> &Binding {
        &self.binding
    }

    /// Sends a probe: as one packet even if it is larger than the MTU of the route, up to that of the device.
    pub(super) fn send_whole(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send_with((Ipv4PathMtuDiscovery::PROBE, Ipv6PathMtuDiscovery::PROBE), to, datagram)
    }

    /// Sends a datagram as one packet, and fails if that is larger than the MTU of the route, as for a pod's packet that must not
    /// be split.
    pub(super) fn send_within_route(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send_with((Ipv4PathMtuDiscovery::DO, Ipv6PathMtuDiscovery::DO), to, datagram)
    }

    /// For this datagram only: other messages may be longer than the MTU. Nothing else sends meanwhile, because all tasks share one
    /// thread.
    fn send_with(
        &self,
        how: (Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery),
        to: SocketAddr,
        datagram: &[u8],
    ) -> io::Result<()> {
        self.discover(how)?;
        let sent = self.send(to, datagram);
        self.discover((Ipv4PathMtuDiscovery::WANT, Ipv6PathMtuDiscovery::WANT))?;
        sent
    }

    fn discover(&self, (v4, v6): (Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery)) -> io::Result<()> {
        let set = if self.binding.address.is_ipv4() {
            sockopt::set_ip_mtu_discover(&*self.udp, v4)
        } else {
            sockopt::set_ipv6_mtu_discover(&*self.udp, v6)
        };
        set.map_err(io::Error::from)
    }

    /// Sends without waiting for buffer space.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.udp.try_send_to(datagram, to).map(drop)
    }
}

fn bind_socket(binding: &Binding, port: u16) -> io::Result<UdpSocket> {
    let ipv4 = binding.address.is_ipv4();
    let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = socket2::Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if ipv4 {
        socket.set_ttl_v4(hops::MAX_HOPS.into())?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(hops::MAX_HOPS.into())?;
    }
    hops::require_max_hops(&socket, ipv4)?;
    // Before the address is bound: both devices have the same one.
    socket.bind_device(Some(binding.link.as_str().as_bytes()))?;
    socket.bind(&SocketAddr::new(binding.address, port).into())?;
    UdpSocket::from_std(socket.into())
}

/// Reads until the socket or the receiver of messages is dropped.
async fn read(
    udp: Arc<UdpSocket>,
    port: u16,
    slot: Slot,
    peers: Arc<Peers>,
    received: mpsc::Sender<ReceivedMessage>,
) {
    let mut buffer = vec![0; MAX_PROBE_LEN + 1];
    loop {
        let (len, from) = match udp.recv_from(&mut buffer).await {
            Ok(found) => found,
            // Most likely the device is gone; the control loop will open a new socket.
            Err(error) => {
                debug!(event = "ControlChannelReadFailed", %slot, %error, "control channel read failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (taken, reply) = peers.open(slot, from.ip(), &buffer[..len]);
        // To the port of the channel, whatever the source port: no other process can have bound that one.
        let to = SocketAddr::new(from.ip(), port);
        for datagram in reply {
            // Not sent: the peer asks again.
            let _ = udp.try_send_to(&datagram, to);
        }
        let Taken::Message(peer, message) = taken else { continue };
        let message = ReceivedMessage { over: slot, peer, from: from.ip(), message };
        if !hand_over(message, &received, &peers) {
            return;
        }
    }
}

/// Queues a message for the daemon, or counts it as dropped: its sender retransmits. Returns whether the daemon still runs.
fn hand_over(message: ReceivedMessage, received: &mpsc::Sender<ReceivedMessage>, peers: &Peers) -> bool {
    match received.try_send(message) {
        Ok(()) => true,
        Err(mpsc::error::TrySendError::Full(_)) => {
            peers.dropped();
            true
        }
        Err(mpsc::error::TrySendError::Closed(_)) => false,
    }
}

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open the control channel at {address}")]
pub(crate) struct SocketError {
    address: SocketAddr,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keyring::rotation::PeerId;
    use keyring::{PerSlot, PrivateKey};

    use super::super::message::UNAUTHENTICATED;
    use super::super::{Correspondent, Message};
    use super::*;

    #[test]
    fn messages_beyond_the_daemon_s_queue_are_counted_as_dropped() {
        let peers = Peers::new();
        let from = [10, 244, 1, 1].into();
        let keys = PerSlot::from_fn(|_| PrivateKey::from_bytes(&[1; 32]).unwrap().public());
        let peer = Correspondent { id: PeerId::new("u1"), keys, unauthenticated: true };
        peers.set(|_| None, &keys, BTreeMap::from([(from, peer)]));
        let (queue, daemon) = mpsc::channel(2);
        let message = Message::Ask { nonce: 7 };
        for _ in 0..5 {
            let (taken, _) = peers.open(Slot::A, from, &message.encode(&[UNAUTHENTICATED]));
            let Taken::Message(peer, message) = taken else { panic!("{taken:?}") };
            assert!(hand_over(ReceivedMessage { over: Slot::A, peer, from, message }, &queue, &peers));
        }
        let status = peers.status();
        assert_eq!((status.received, status.refused["queue"]), (2, 3));
        drop(daemon);
        let message = ReceivedMessage { over: Slot::A, peer: PeerId::new("u1"), from, message };
        assert!(!hand_over(message, &queue, &peers));
    }
}
