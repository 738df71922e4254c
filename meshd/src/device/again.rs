//! Adds a peer to the kernel's device again without making recorded handshakes of it valid.
//!
//! The kernel refuses an initiation that is not newer than the peer's last one, and forgets that timestamp when the peer is
//! removed, as it is for another preshared key (`wg_noise_handshake_consume_initiation` in `drivers/net/wireguard/noise.c`).
//! There is no interface to set it. But what authenticates an initiator is a secret that both ends can compute, so this node
//! can write an initiation in the peer's name, with a time that the peer has told it, and send that to its own device. No
//! session comes of it: nobody has the other half of it.
//!
//! The kernel takes the source of an initiation for the peer's endpoint, here a socket on the loopback link. So the peer gets
//! its endpoint and allowed IPs afterwards, and until then nothing is sent to it.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use keyring::{KeyError, PresharedKey, PrivateKey, PublicKey};
use tracing::debug;
use tunnel::{InitiationError, answered_index, initiation_from};
use wireguard::{Device, DeviceError, Peer, PeerChange};

use crate::chain::Chain;

/// How long the kernel's response is waited for: it is computed on the same machine.
const WAIT: Duration = Duration::from_millis(50);
/// A handshake response has 92 bytes; what does not fit is none.
const BUFFER: usize = 128;

/// What is known of a peer that was on the device before.
#[derive(Clone, Copy, Debug)]
pub struct Former<'a> {
    /// The device's private key.
    pub own: &'a PrivateKey,
    /// The device's UDP port.
    pub port: u16,
    /// A time by the peer's clock: initiations from before are refused.
    pub until: SystemTime,
}

/// Why the kernel was not told the time.
#[derive(Debug, thiserror::Error)]
enum NotTold {
    #[error("send a handshake initiation to the device's port over the loopback link")]
    Socket(#[from] io::Error),
    #[error("make the keys of a handshake")]
    Random(#[from] KeyError),
    #[error(transparent)]
    Initiation(#[from] InitiationError),
}

/// Adds a peer that was on this device before. Returns whether the device refuses initiations from before `former.until`;
/// the peer is added in any case. One without an endpoint keeps none, so that the kernel can't be told.
pub fn add_again(
    device: &mut dyn Device,
    (key, peer): (PublicKey, &Peer),
    preshared: Option<&PresharedKey>,
    former: Former<'_>,
) -> Result<bool, DeviceError> {
    if peer.endpoint.is_none() {
        device.add_peer_with(key, peer, preshared)?;
        return Ok(false);
    }
    let silent = Peer { endpoint: None, keepalive: None, allowed_ips: [].into(), ..peer.clone() };
    device.add_peer_with(key, &silent, preshared)?;
    let told = tell(&key, former);
    device.update_peer(
        key,
        &PeerChange {
            endpoint: peer.endpoint,
            keepalive: peer.keepalive.map(Some),
            allow: peer.allowed_ips.clone(),
            ..PeerChange::default()
        },
    )?;
    if let Err(error) = &told {
        // At debug: what it would have refused is as harmless as after a restart of the node.
        debug!(
            event = "FormerHandshakesNotRefused", %key, error = %Chain(error),
            "the kernel could not be told the time of a peer's last handshake"
        );
    }
    Ok(told.is_ok())
}

fn tell(peer: &PublicKey, former: Former<'_>) -> Result<(), NotTold> {
    let index = getrandom::u32().map_err(KeyError::Random)?;
    let ephemeral = PrivateKey::generate()?;
    let message = initiation_from(former.own, peer, index, &ephemeral, former.until)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, former.port))?;
    socket.send(&message)?;
    let until = Instant::now() + WAIT;
    let mut buffer = [0; BUFFER];
    loop {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        let len = socket.recv(&mut buffer)?;
        if answered_index(&buffer[..len]) == Some(index) {
            return Ok(());
        }
    }
}
