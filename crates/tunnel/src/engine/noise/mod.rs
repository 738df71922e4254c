//! The handshake: `Noise_IKpsk2` as WireGuard uses it (WireGuard paper, section 5.4). Pure but for the ephemeral keys.
//!
//! ```text
//! initiator                                             responder
//! Initiation: ephemeral, {static}, {timestamp}  ──▶  Opened ── Statics ──▶ Received
//! Initiation::complete  ◀──  ephemeral, {}              Received::answer ──▶ keys
//!     └▶ keys
//! ```

mod hash;
#[cfg(test)]
mod tests;

use boringtun::x25519::{PublicKey as Point, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

pub(crate) use self::hash::mac;
use self::hash::{Transcript, labelled};
use super::identity::Identity;
use super::session::SessionKeys;
use super::timestamp::Timestamp;
use crate::counters::DropReason;
use crate::message::{COOKIE_REPLY, INITIATION, RESPONSE, TAG};

/// Bytes behind the message proper: two MACs.
const MACS: usize = 32;
/// What a peer under load has sent us, for the second MAC.
pub(crate) type Cookie = Zeroizing<[u8; 16]>;

/// What follows from our static key and the peer's, computed once.
pub(crate) struct Statics {
    peer: Point,
    shared: SharedSecret,
    /// Keys the first MAC of what we send.
    mac1_key: [u8; 32],
    /// Opens cookie replies of the peer.
    pub(crate) cookie_key: [u8; 32],
}

impl Statics {
    pub(crate) fn new(identity: &Identity, peer: Point) -> Self {
        Self::with(identity.secret.diffie_hellman(&peer), peer)
    }

    /// The same as the peer computes it, to which we are the peer.
    pub(crate) fn of_peer(identity: &Identity, peer: &Point) -> Self {
        Self::with(identity.secret.diffie_hellman(peer), identity.secret_public)
    }

    fn with(shared: SharedSecret, peer: Point) -> Self {
        Self {
            shared,
            mac1_key: labelled(*b"mac1----", &peer),
            cookie_key: labelled(*b"cookie--", &peer),
            peer,
        }
    }
}

/// An initiation of ours without a response yet.
pub(crate) struct Initiation {
    pub(crate) local: u32,
    ephemeral: StaticSecret,
    transcript: Transcript,
    /// The first MAC of the message: a cookie reply is bound to it.
    pub(crate) mac1: [u8; 16],
}

impl Initiation {
    /// Writes an initiation of the one with the public key `own` to `message`. `local` is its index for the session,
    /// `ephemeral` fresh randomness.
    pub(crate) fn begin(
        own: &Point,
        statics: &Statics,
        local: u32,
        ephemeral: &Zeroizing<[u8; 32]>,
        timestamp: Timestamp,
        cookie: Option<&Cookie>,
        message: &mut [u8; INITIATION],
    ) -> Result<Self, DropReason> {
        let ephemeral = StaticSecret::from(**ephemeral);
        let public = Point::from(&ephemeral);
        let mut transcript = Transcript::new(&statics.peer);
        message[..4].copy_from_slice(&[1, 0, 0, 0]);
        message[4..8].copy_from_slice(&local.to_le_bytes());
        message[8..40].copy_from_slice(public.as_bytes());
        transcript.mix_point(&public);
        let key = transcript.mix_secret(&ephemeral.diffie_hellman(&statics.peer))?;
        transcript.seal(&key, own.as_bytes(), &mut message[40..88]);
        let key = transcript.mix_secret(&statics.shared)?;
        transcript.seal(&key, &timestamp, &mut message[88..116]);
        let mac1 = put_macs(message, &statics.mac1_key, cookie);
        Ok(Self { local, ephemeral, transcript, mac1 })
    }

    /// Checks the response and derives the keys. A wrong one changes nothing.
    pub(crate) fn complete(
        &self,
        identity: &Identity,
        preshared: &[u8; 32],
        message: &[u8; RESPONSE],
    ) -> Result<SessionKeys, DropReason> {
        let mut transcript = self.transcript.clone();
        let public = point(&message[12..44]);
        transcript.mix_point(&public);
        transcript.mix_secret(&self.ephemeral.diffie_hellman(&public))?;
        transcript.mix_secret(&identity.secret.diffie_hellman(&public))?;
        let key = transcript.mix_preshared(preshared);
        transcript.open(&key, &message[44..60], &mut [])?;
        let (sealing, opening) = transcript.split();
        Ok(SessionKeys { sealing, opening, local: self.local, remote: sender(message) })
    }
}

/// An initiation whose sender has named its key but not proven it yet.
pub(crate) struct Opened<'a> {
    pub(crate) peer: [u8; 32],
    transcript: Transcript,
    message: &'a [u8; INITIATION],
}

impl<'a> Opened<'a> {
    pub(crate) fn read(identity: &Identity, message: &'a [u8; INITIATION]) -> Result<Self, DropReason> {
        let mut transcript = Transcript::new(&identity.secret_public);
        let public = point(&message[8..40]);
        transcript.mix_point(&public);
        let key = transcript.mix_secret(&identity.secret.diffie_hellman(&public))?;
        let mut peer = [0; 32];
        transcript.open(&key, &message[40..88], &mut peer)?;
        Ok(Self { peer, transcript, message })
    }

    /// Checks that the sender holds the key that it named. `statics` has to be those of that peer.
    pub(crate) fn prove(mut self, statics: &Statics) -> Result<Received, DropReason> {
        if statics.peer.as_bytes() != &self.peer {
            return Err(DropReason::InvalidHandshake);
        }
        let key = self.transcript.mix_secret(&statics.shared)?;
        let mut timestamp = [0; 12];
        self.transcript.open(&key, &self.message[88..116], &mut timestamp)?;
        Ok(Received {
            timestamp,
            transcript: self.transcript,
            ephemeral: point(&self.message[8..40]),
            remote: sender(self.message),
        })
    }
}

/// A genuine initiation of a peer, if its timestamp is new.
pub(crate) struct Received {
    pub(crate) timestamp: Timestamp,
    transcript: Transcript,
    ephemeral: Point,
    remote: u32,
}

impl Received {
    /// Writes the response to `message` and derives the keys. `local` is our index for the session, `ephemeral` fresh
    /// randomness.
    pub(crate) fn answer(
        mut self,
        statics: &Statics,
        preshared: &[u8; 32],
        local: u32,
        ephemeral: &Zeroizing<[u8; 32]>,
        cookie: Option<&Cookie>,
        message: &mut [u8; RESPONSE],
    ) -> Result<(SessionKeys, [u8; 16]), DropReason> {
        let ephemeral = StaticSecret::from(**ephemeral);
        let public = Point::from(&ephemeral);
        message[..4].copy_from_slice(&[2, 0, 0, 0]);
        message[4..8].copy_from_slice(&local.to_le_bytes());
        message[8..12].copy_from_slice(&self.remote.to_le_bytes());
        message[12..44].copy_from_slice(public.as_bytes());
        let transcript = &mut self.transcript;
        transcript.mix_point(&public);
        transcript.mix_secret(&ephemeral.diffie_hellman(&self.ephemeral))?;
        transcript.mix_secret(&ephemeral.diffie_hellman(&statics.peer))?;
        let key = transcript.mix_preshared(preshared);
        transcript.seal(&key, &[], &mut message[44..60]);
        let (opening, sealing) = transcript.split();
        let mac1 = put_macs(message, &statics.mac1_key, cookie);
        Ok((SessionKeys { sealing, opening, local, remote: self.remote }, mac1))
    }
}

/// Fills in both MACs (WireGuard paper, section 5.4.4) and returns the first.
fn put_macs(message: &mut [u8], mac1_key: &[u8; 32], cookie: Option<&Cookie>) -> [u8; 16] {
    let end = message.len() - MACS;
    let mac1 = mac(mac1_key, &message[..end]);
    message[end..end + 16].copy_from_slice(&mac1);
    let mac2 = cookie.map_or([0; 16], |cookie| mac(&cookie[..], &message[..end + 16]));
    message[end + 16..].copy_from_slice(&mac2);
    mac1
}

/// The sender's index in a handshake message.
fn sender(message: &[u8]) -> u32 {
    message[4..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or_default()
}

fn point(bytes: &[u8]) -> Point {
    Point::from(*bytes.first_chunk().unwrap_or(&[0; 32]))
}

/// A cookie reply (WireGuard paper, section 5.4.7), opened with the key of the peer that sent it.
pub(crate) fn cookie(
    statics: &Statics,
    mac1: &[u8; 16],
    message: &[u8; COOKIE_REPLY],
) -> Result<Cookie, DropReason> {
    use chacha20poly1305::aead::AeadInPlace as _;
    use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
    let (mut cookie, mut tag) = (Zeroizing::new([0; 16]), [0; TAG]);
    cookie.copy_from_slice(&message[32..48]);
    tag.copy_from_slice(&message[48..]);
    XChaCha20Poly1305::new(&statics.cookie_key.into())
        .decrypt_in_place_detached(message[8..32].into(), mac1, &mut cookie[..], &tag.into())
        .map_err(|_| DropReason::InvalidHandshake)?;
    Ok(cookie)
}
