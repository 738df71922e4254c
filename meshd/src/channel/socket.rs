//! One UDP socket on one WireGuard device.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keyring::Slot;
use socket2::{Domain, Protocol, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::debug;

use super::message::MAX_PROBE_LEN;
use super::{Binding, Message, ReceivedMessage, hops};

/// Messages accepted from one sender per second. A rotation needs a few; this bounds what a faulty node can cause.
const MESSAGES_PER_SECOND: u32 = 100;
/// Senders that are counted at once: more than a mesh has nodes.
const MAX_SENDERS: usize = 16_384;

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
        received: mpsc::Sender<ReceivedMessage>,
    ) -> Result<Self, SocketError> {
        let udp = bind_socket(binding, port)
            .map_err(|source| SocketError { address: (binding.address, port).into(), source })?;
        let udp = Arc::new(udp);
        let reader = tokio::spawn(read(Arc::clone(&udp), slot, received));
        Ok(Self { binding: binding.clone(), udp, reader })
    }

    pub(super) const fn binding(&self) -> &Binding {
        &self.binding
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
async fn read(udp: Arc<UdpSocket>, slot: Slot, received: mpsc::Sender<ReceivedMessage>) {
    let mut buffer = vec![0; MAX_PROBE_LEN + 1];
    let mut rate_limit = RateLimit::default();
    loop {
        let (len, from) = match udp.recv_from(&mut buffer).await {
            Ok((len, from)) => (len, from.ip()),
            // Most likely the device is gone; the control loop will open a new socket.
            Err(error) => {
                debug!(event = "ControlChannelReadFailed", %slot, %error, "control channel read failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !rate_limit.allows(Instant::now(), from) {
            continue;
        }
        match Message::decode(&buffer[..len]) {
            Ok(message) => match received.try_send(ReceivedMessage { over: slot, from, message }) {
                Err(mpsc::error::TrySendError::Closed(_)) => return,
                // Full: the sender retransmits.
                Err(mpsc::error::TrySendError::Full(_)) | Ok(()) => {}
            },
            Err(error) => debug!(
                event = "ControlMessageRefused", %slot, address = %from, %error,
                "control message refused"
            ),
        }
    }
}

/// Counts each sender's messages within the current second.
#[derive(Debug, Default)]
struct RateLimit {
    since: Option<Instant>,
    counts: BTreeMap<IpAddr, u32>,
}

impl RateLimit {
    fn allows(&mut self, now: Instant, from: IpAddr) -> bool {
        if self.since.is_none_or(|since| now - since >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.counts.clear();
        }
        if self.counts.len() >= MAX_SENDERS && !self.counts.contains_key(&from) {
            return false;
        }
        let count = self.counts.entry(from).or_default();
        *count += 1;
        *count <= MESSAGES_PER_SECOND
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
    use super::*;

    #[test]
    fn a_flooding_sender_is_limited_and_does_not_affect_others() {
        let mut rate_limit = RateLimit::default();
        let now = Instant::now();
        let [flood, other] = ["10.244.1.1", "10.244.2.1"].map(|text| text.parse().unwrap());
        let taken = (0..1000).filter(|_| rate_limit.allows(now, flood)).count();
        assert_eq!(taken, MESSAGES_PER_SECOND as usize);
        assert!(rate_limit.allows(now, other));
        assert!(rate_limit.allows(now + Duration::from_secs(1), flood));
    }
}
