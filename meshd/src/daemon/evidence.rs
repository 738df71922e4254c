//! Tests whether a node is at an address: a handshake with its key that begins there, and completes.
//!
//! It does not begin at the device: what a device reports is a handshake with a key, not at which address it was. A liar
//! can complete one from its own address and then send a single authenticated packet with a forged source, upon which
//! the kernel shows the forged address as the peer's endpoint. Here the initiation goes to the tested address alone, and
//! only who receives it there can answer it. Datagrams leave from a socket of their own with a port that the kernel
//! chooses, so no port is opened.
//!
//! To the peer it is a handshake like any other. Its kernel answers to this socket from then on, until the device sends
//! something. So the test takes the slot on which the peer sends nothing to us, and the device begins a handshake of
//! its own as soon as the test has ended.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use keyring::rotation::slot_for;
use keyring::{KeyError, PerSlot, PrivateKey, Slot};
use plan::admission::Member;
use plan::annotation::Phase;
use plan::publication;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::debug;
use tunnel::{InitiationError, Initiator, Received};

use super::keys::Keys;
use crate::chain::Chain;

/// Initiations without a response after which a test has failed.
const TRIES: u32 = 3;
/// How long each waits for a response.
pub(super) const WAIT: Duration = Duration::from_secs(1);
/// Kernels take initiations of one peer at least 20 ms apart (`INITIATIONS_PER_SECOND` in `drivers/net/wireguard`), and
/// the device's follows this one.
const APART: Duration = Duration::from_millis(100);
/// Longer than a response: what does not fit is none.
const BUFFER: usize = 256;

/// Why a test could not be carried out.
#[derive(Debug, thiserror::Error)]
enum TestError {
    #[error("send a handshake initiation to {to}: expected a route to it")]
    Socket { to: SocketAddr, source: io::Error },
    #[error("make the keys of a handshake")]
    Random(#[from] KeyError),
    #[error(transparent)]
    Initiation(#[from] InitiationError),
}

/// The slot on which a peer sends nothing to this node, as far as both have announced.
pub(super) fn slot_to_test(keys: &Keys, member: &Member) -> Option<Slot> {
    let both = PerSlot { a: true, b: true };
    let own = keys.stance()?;
    Some(slot_for(&publication::stance(member), &own, both).other())
}

/// Whether a member is about to change the key of a slot: a handshake beside it would only delay that.
pub(super) fn is_rotating(member: &Member) -> bool {
    member.state.drain.is_some() || member.state.phase == Phase::Verifying
}

/// Whether the peer that `initiator` is for answers at `to`.
pub(super) async fn is_there(initiator: Box<Initiator>, to: SocketAddr, wait: Duration) -> bool {
    match try_handshake(initiator, to, wait).await {
        Ok(completed) => completed,
        Err(error) => {
            // At debug: the result is logged when it changes something.
            debug!(event = "AddressTestFailed", address = %to, error = %Chain(&error), "an address could not be tested");
            false
        }
    }
}

async fn try_handshake(
    mut initiator: Box<Initiator>,
    to: SocketAddr,
    wait: Duration,
) -> Result<bool, TestError> {
    let failed = |source| TestError::Socket { to, source };
    let any =
        if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    socket.connect(to).await.map_err(failed)?;
    for _ in 0..TRIES {
        let index = getrandom::u32().map_err(KeyError::Random)?;
        let ephemeral = PrivateKey::generate()?;
        let message = initiator.begin(index, &ephemeral, SystemTime::now())?;
        let until = Instant::now() + wait;
        let mut buffer = [0; BUFFER];
        // Where nobody listens, the next call reports that. Another try may find somebody.
        let sent = socket.send(&message).await;
        while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
            let Ok(len) = received else {
                sleep_until(until).await;
                break;
            };
            match initiator.receive(&buffer[..len]) {
                Received::Response => {
                    sleep(APART).await;
                    return Ok(true);
                }
                Received::Cookie => break,
                Received::Nothing => {}
            }
        }
        sent.map_err(failed)?;
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use keyring::PublicKey;
    use tunnel::{ClockReading, Datagrams, Engine, EngineOptions, Packets};
    use wireguard::{PeerChange, PeerOp};

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    fn private(byte: u8) -> PrivateKey {
        PrivateKey::from_bytes(&[byte; 32]).unwrap()
    }

    /// A node with this key that knows `peer`.
    async fn node(byte: u8, peer: PublicKey) -> SocketAddr {
        let engine = Engine::new(EngineOptions::default());
        engine.set_private_key(Some(private(byte)));
        engine.apply(vec![PeerOp::add(peer, PeerChange::default())]).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                // A forged datagram first: it decides nothing.
                socket.send_to(&[2; 92], from).await.unwrap();
                let (mut packets, mut replies) = (Packets::new(), Datagrams::new());
                engine.open(ClockReading::now(), [(from, &buffer[..len])], &mut packets, &mut replies);
                for (to, reply) in replies.iter() {
                    socket.send_to(reply, to).await.unwrap();
                }
            }
        });
        address
    }

    fn initiator(peer: u8) -> Box<Initiator> {
        Box::new(Initiator::new(private(1), &private(peer).public(), None))
    }

    #[tokio::test]
    async fn only_a_node_with_the_key_is_there() {
        let address = node(2, private(1).public()).await;
        assert!(is_there(initiator(2), address, SOON).await);
        assert!(!is_there(initiator(3), address, SOON).await, "another node's address");
        let stranger = node(2, private(9).public()).await;
        assert!(!is_there(initiator(2), stranger, SOON).await, "it does not know us");
    }

    #[tokio::test]
    async fn where_nobody_listens_a_test_fails_in_its_time() {
        let since = Instant::now();
        assert!(!is_there(initiator(2), "127.0.0.1:9".parse().unwrap(), SOON).await);
        assert!(since.elapsed() >= SOON && since.elapsed() < SOON * 20);
        assert!(!is_there(initiator(2), "[2001:db8::1]:51840".parse().unwrap(), SOON).await);
    }
}
