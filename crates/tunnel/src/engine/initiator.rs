//! One handshake without a device: proves that whoever answers at an address holds a private key.
//!
//! It begins on behalf of a device's key and ends with the response: no session is used, so the peer confirms none and
//! keeps the ones that it has. Pure: time and randomness are arguments.

use std::fmt;
use std::time::SystemTime;

use boringtun::x25519;
use keyring::{PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::identity::Identity;
use super::noise::{self, Cookie, Initiation, Statics};
use super::timestamp::{Timestamp, Timestamps};
use crate::message::{COOKIE_REPLY, INITIATION, RESPONSE};

/// Initiations that are kept for a late response at most.
const MAX_BEGUN: usize = 8;

/// What a datagram was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The peer's response: it holds its private key, and has received an initiation of ours just now.
    Response,
    /// The peer is under load: the next initiation carries its cookie.
    Cookie,
    /// Something else, possibly forged.
    Nothing,
}

/// Why no initiation could be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("begin a handshake: the peer's key has low order; expected a key that its node has generated")]
pub struct InitiationError;

/// The initiator's side of a handshake with one peer.
pub struct Initiator {
    identity: Identity,
    statics: Statics,
    preshared: Zeroizing<[u8; 32]>,
    cookie: Option<Cookie>,
    begun: Vec<Initiation>,
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator").finish_non_exhaustive()
    }
}

impl Initiator {
    /// For our private key and the peer's public one, as they are on a device.
    pub fn new(own: PrivateKey, peer: &PublicKey, preshared: Option<&PresharedKey>) -> Self {
        let identity = Identity::new(own, 0);
        let statics = Statics::new(&identity, x25519::PublicKey::from(*peer.as_bytes()));
        let preshared = Zeroizing::new(preshared.map_or([0; 32], |key| *key.expose()));
        Self { identity, statics, preshared, cookie: None, begun: Vec::new() }
    }

    /// Writes an initiation: the first, or another one after no response came. `index` is random, `ephemeral` a new key.
    pub fn begin(
        &mut self,
        index: u32,
        ephemeral: &PrivateKey,
        wall: SystemTime,
    ) -> Result<[u8; INITIATION], InitiationError> {
        let mut message = [0; INITIATION];
        let cookie = self.cookie.as_ref();
        let (own, timestamp) = (&self.identity.secret_public, just_before(wall));
        let ephemeral = Zeroizing::new(*ephemeral.expose());
        let begun = Initiation::begin(own, &self.statics, index, &ephemeral, timestamp, cookie, &mut message);
        if self.begun.len() == MAX_BEGUN {
            self.begun.remove(0);
        }
        self.begun.push(begun.map_err(|_| InitiationError)?);
        Ok(message)
    }

    /// Takes a datagram that came back.
    pub fn receive(&mut self, datagram: &[u8]) -> Received {
        match datagram.first() {
            Some(2) => self.response(datagram),
            Some(3) => self.cookie_reply(datagram),
            _ => None,
        }
        .unwrap_or(Received::Nothing)
    }

    fn response(&self, datagram: &[u8]) -> Option<Received> {
        let message: &[u8; RESPONSE] = datagram.try_into().ok()?;
        let begun = self.begun(&message[8..12])?;
        begun.complete(&self.identity, &self.preshared, message).ok()?;
        Some(Received::Response)
    }

    fn cookie_reply(&mut self, datagram: &[u8]) -> Option<Received> {
        let message: &[u8; COOKIE_REPLY] = datagram.try_into().ok()?;
        let cookie = noise::cookie(&self.statics, &self.begun(&message[4..8])?.mac1, message).ok()?;
        self.cookie = Some(cookie);
        Some(Received::Cookie)
    }

    /// The initiation that a message answers, by our index.
    fn begun(&self, receiver: &[u8]) -> Option<&Initiation> {
        let index = u32::from_le_bytes(*receiver.first_chunk()?);
        self.begun.iter().find(|begun| begun.local == index)
    }
}

/// An initiation to the owner of `own` as `peer` itself would have begun it at `wall`. Both can write it: what authenticates
/// the initiator is a secret that the two share (WireGuard paper, section 5.4.2). Whoever receives it with the key `own`
/// takes no older one of the peer from then on. The index in the response is `index`.
pub fn initiation_from(
    own: &PrivateKey,
    peer: &PublicKey,
    index: u32,
    ephemeral: &PrivateKey,
    wall: SystemTime,
) -> Result<[u8; INITIATION], InitiationError> {
    let identity = Identity::new(own.duplicate(), 0);
    let peer = x25519::PublicKey::from(*peer.as_bytes());
    let statics = Statics::of_peer(&identity, &peer);
    let ephemeral = Zeroizing::new(*ephemeral.expose());
    let mut message = [0; INITIATION];
    Initiation::begin(&peer, &statics, index, &ephemeral, just_before(wall), None, &mut message)
        .map_err(|_| InitiationError)?;
    Ok(message)
}

/// The receiver's index in a handshake response.
pub fn answered_index(datagram: &[u8]) -> Option<u32> {
    let message: &[u8; RESPONSE] = datagram.try_into().ok().filter(|_| datagram.first() == Some(&2))?;
    Some(u32::from_le_bytes(*message[8..].first_chunk()?))
}

/// A timestamp that is smaller than the one that a device with the same key takes at the same time, and greater than
/// those before. The peer refuses initiations that are not newer than the last: the device's must pass after ours.
pub(super) fn just_before(wall: SystemTime) -> Timestamp {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&Timestamps::default().next(wall));
    let mut timestamp = [0; 12];
    timestamp.copy_from_slice(&(u128::from_be_bytes(wide) - 1).to_be_bytes()[4..]);
    timestamp
}
