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

use super::message::LONGEST_PROBE;
use super::{Heard, Message, Place, hops};

/// Messages that one sender may send in a second. A rotation needs a few; a node that has gone mad is not followed.
const PER_SECOND: u32 = 100;
/// Senders that are counted at once; more than that are not nodes of one mesh.
const SENDERS: usize = 16_384;

/// A socket and the task that reads it. The task ends with the socket.
#[derive(Debug)]
pub(super) struct Socket {
    place: Place,
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
        place: &Place,
        port: u16,
        slot: Slot,
        heard: mpsc::Sender<Heard>,
    ) -> Result<Self, SocketError> {
        let udp = bound(place, port)
            .map_err(|source| SocketError { address: (place.address, port).into(), source })?;
        let udp = Arc::new(udp);
        let reader = tokio::spawn(read(Arc::clone(&udp), slot, heard));
        Ok(Self { place: place.clone(), udp, reader })
    }

    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Sends at once or not at all.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.udp.try_send_to(datagram, to).map(drop)
    }
}

fn bound(place: &Place, port: u16) -> io::Result<UdpSocket> {
    let ipv4 = place.address.is_ipv4();
    let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = socket2::Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if ipv4 {
        socket.set_ttl_v4(hops::ALL.into())?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(hops::ALL.into())?;
    }
    hops::demand_all(&socket, ipv4)?;
    // Before the address: the same one is on both devices.
    socket.bind_device(Some(place.link.as_str().as_bytes()))?;
    socket.bind(&SocketAddr::new(place.address, port).into())?;
    UdpSocket::from_std(socket.into())
}

/// Reads until the socket's owner or the reader of messages is gone.
async fn read(udp: Arc<UdpSocket>, slot: Slot, heard: mpsc::Sender<Heard>) {
    let mut buffer = vec![0; LONGEST_PROBE + 1];
    let mut allowance = Allowance::default();
    loop {
        let (len, from) = match udp.recv_from(&mut buffer).await {
            Ok((len, from)) => (len, from.ip()),
            // The device went away, most likely; the loop puts another socket in place.
            Err(error) => {
                debug!(%slot, cause = %error, "control channel not readable");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !allowance.takes(Instant::now(), from) {
            continue;
        }
        match Message::decode(&buffer[..len]) {
            Ok(message) => match heard.try_send(Heard { over: slot, from, message }) {
                Err(mpsc::error::TrySendError::Closed(_)) => return,
                // Full: it will be sent again.
                Err(mpsc::error::TrySendError::Full(_)) | Ok(()) => {}
            },
            Err(error) => debug!(%slot, %from, cause = %error, "control message refused"),
        }
    }
}

/// Counts each sender's messages of the present second.
#[derive(Debug, Default)]
struct Allowance {
    since: Option<Instant>,
    counts: BTreeMap<IpAddr, u32>,
}

impl Allowance {
    fn takes(&mut self, now: Instant, from: IpAddr) -> bool {
        if self.since.is_none_or(|since| now - since >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.counts.clear();
        }
        if self.counts.len() >= SENDERS && !self.counts.contains_key(&from) {
            return false;
        }
        let count = self.counts.entry(from).or_default();
        *count += 1;
        *count <= PER_SECOND
    }
}

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open the control channel at {address}")]
pub(super) struct SocketError {
    address: SocketAddr,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_that_floods_is_not_heard_and_does_not_silence_others() {
        let mut allowance = Allowance::default();
        let now = Instant::now();
        let [flood, other] = ["10.244.1.1", "10.244.2.1"].map(|text| text.parse().unwrap());
        let taken = (0..1000).filter(|_| allowance.takes(now, flood)).count();
        assert_eq!(taken, PER_SECOND as usize);
        assert!(allowance.takes(now, other));
        assert!(allowance.takes(now + Duration::from_secs(1), flood));
    }
}
