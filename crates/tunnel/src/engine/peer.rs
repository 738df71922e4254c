//! One peer: its Noise session, where it is, and what is known about it, behind one lock of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use keyring::{PresharedKey, PublicKey};
use parking_lot::{Mutex, MutexGuard};

use super::Moment;
use super::identity::Identity;
use super::packet::Header;
use crate::batch::{Datagrams, Packets};
use crate::change::{PeerSettings, PresharedKeyChange};
use crate::counters::DropReason;

/// Length of a handshake initiation, the longest message that is not transport data. `Tunn` panics on buffers
/// that are shorter, whatever it is about to write.
const LONGEST_HANDSHAKE: usize = 148;
/// What transport data adds to a packet: a header of 16 bytes and a tag of 16.
const DATA_OVERHEAD: usize = 32;
/// The largest packet that can wait for a handshake.
const LARGEST_PACKET: usize = 65_536;
/// First byte of transport data.
const DATA: u8 = 4;

/// After so many messages a session is renewed, and at so many it ends (WireGuard paper, section 6.1).
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageLimits {
    pub(crate) rekey_after: u64,
    pub(crate) reject_after: u64,
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self { rekey_after: 1 << 60, reject_after: u64::MAX - (1 << 13) }
    }
}

/// A peer of the interface.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// The upper 24 bits of every session index that we hand out for this peer.
    pub(crate) index: u32,
    state: Mutex<PeerState>,
}

impl Peer {
    /// A peer with the settings of a new one, see [`PeerSettings`].
    pub(crate) fn new(key: PublicKey, index: u32, identity: Option<&Identity>) -> Self {
        let mut state = PeerState {
            tunn: None,
            preshared_key: None,
            endpoint: None,
            configured_endpoint: None,
            roaming: true,
            keepalive: 0,
            last_handshake: None,
            unconfirmed: None,
            waiting: false,
            last_traversal: None,
            rx_bytes: 0,
            tx_bytes: 0,
            endpoint_drifts: 0,
        };
        state.restart(key, index, identity);
        Self { key, index, state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock()
    }

    /// Forgets the session and starts over with `identity`; without one nothing passes.
    pub(crate) fn restart(&self, identity: Option<&Identity>) {
        self.lock().restart(self.key, self.index, identity);
    }

    /// Applies everything but allowed IPs, which belong to the whole set of peers.
    pub(crate) fn apply(&self, settings: &PeerSettings, identity: Option<&Identity>) {
        let mut state = self.lock();
        if let Some(endpoint) = settings.endpoint {
            state.configured_endpoint = Some(endpoint);
            state.endpoint = Some(endpoint);
        }
        if let Some(roaming) = settings.roaming {
            state.roaming = roaming;
            if !roaming && state.configured_endpoint.is_some() {
                state.endpoint = state.configured_endpoint;
            }
        }
        if let Some(keepalive) = settings.keepalive {
            if state.keepalive == 0 && keepalive != 0 {
                // Due at once, as in the kernel: the first one opens the way through a NAT.
                state.last_traversal = None;
            }
            state.keepalive = keepalive;
        }
        let wanted = match &settings.preshared_key {
            None => return,
            Some(PresharedKeyChange::Clear) => None,
            Some(PresharedKeyChange::Set(key)) => Some(key),
        };
        if state.preshared_key.as_ref().map(PresharedKey::expose) != wanted.map(PresharedKey::expose) {
            state.preshared_key = wanted.map(PresharedKey::duplicate);
            state.restart(self.key, self.index, identity);
        }
    }
}

/// What changes about a peer while it is used.
pub(crate) struct PeerState {
    /// `None` while the interface has no private key, and after the peer was removed.
    tunn: Option<Box<Tunn>>,
    pub(crate) preshared_key: Option<PresharedKey>,
    /// Where datagrams go now.
    pub(crate) endpoint: Option<SocketAddr>,
    configured_endpoint: Option<SocketAddr>,
    pub(crate) roaming: bool,
    pub(crate) keepalive: u16,
    pub(crate) last_handshake: Option<Moment>,
    /// Index of a session that we answered to and that the peer hasn't used yet: until then the handshake may
    /// be a replay, or our answer may be lost.
    unconfirmed: Option<u32>,
    /// `Tunn` holds back packets until a session stands.
    waiting: bool,
    /// When an authenticated datagram last went either way; `None` makes a keepalive due.
    last_traversal: Option<Moment>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) endpoint_drifts: u64,
}

impl PeerState {
    fn restart(&mut self, key: PublicKey, index: u32, identity: Option<&Identity>) {
        self.last_handshake = None;
        self.unconfirmed = None;
        self.waiting = false;
        self.last_traversal = None;
        self.tunn = identity.map(|identity| {
            Box::new(Tunn::new(
                identity.secret.as_ref().clone(),
                x25519::PublicKey::from(*key.as_bytes()),
                self.preshared_key.as_ref().map(|key| *key.expose()),
                // Keepalives are ours, see `tick`: Tunn's can't be changed and end with its first give-up.
                None,
                index,
                Some(Arc::clone(&identity.unlimited)),
            ))
        });
    }

    /// Encrypts `packet`, padded already, into `out`. Without a session it is held back and a handshake starts,
    /// be it the first one or after `Tunn` had given up.
    pub(crate) fn seal(
        &mut self,
        now: Moment,
        packet: &[u8],
        limits: MessageLimits,
        out: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let endpoint = self.endpoint.ok_or(DropReason::NoEndpoint)?;
        let tunn = self.tunn.as_mut().ok_or(DropReason::NoPrivateKey)?;
        let room = (packet.len() + DATA_OVERHEAD).max(LONGEST_HANDSHAKE);
        let TunnResult::WriteToNetwork(message) = tunn.encapsulate(packet, out.spare(room)) else {
            // Held back while a handshake is on its way.
            self.waiting = true;
            return Ok(());
        };
        let (len, counter) = (message.len(), data_counter(message));
        match counter {
            Some(counter) if counter >= limits.reject_after => {
                self.initiate(now, out);
                return Err(DropReason::MessageLimit);
            }
            Some(_) => {}
            None => self.waiting = true,
        }
        self.sent(now, len);
        out.commit(len, endpoint);
        if counter.is_some_and(|counter| counter >= limits.rekey_after) {
            self.initiate(now, out);
        }
        Ok(())
    }

    /// Decrypts transport data from `source` to the end of `out`. `owns` says whether an inner source address
    /// is this peer's. Packets that waited for this session go to `replies`.
    pub(crate) fn open(
        &mut self,
        now: Moment,
        (source, datagram): (SocketAddr, &[u8]),
        receiver: u32,
        limits: MessageLimits,
        owns: impl FnOnce(IpAddr) -> bool,
        (out, replies): (&mut Packets, &mut Datagrams),
    ) -> Result<(), DropReason> {
        let tunn = self.tunn.as_mut().ok_or(DropReason::NoPrivateKey)?;
        if data_counter(datagram).is_none_or(|counter| counter >= limits.reject_after) {
            return Err(DropReason::MessageLimit);
        }
        let inner = match tunn.decapsulate(None, datagram, out.spare(datagram.len().max(LONGEST_HANDSHAKE))) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Some(packet.len())
            }
            // A keepalive.
            TunnResult::Done => None,
            // Authenticated, but neither IPv4 nor IPv6; `Header::parse` finds the same below.
            TunnResult::Err(WireGuardError::InvalidPacket) => Some(0),
            TunnResult::Err(error) => return Err(data_refusal(&error)),
            TunnResult::WriteToNetwork(_) => return Err(DropReason::Forged),
        };
        if self.unconfirmed == Some(receiver) {
            self.unconfirmed = None;
            self.last_handshake = Some(now);
        }
        self.received(now, source, datagram.len());
        self.flush(now, replies);
        let Some(len) = inner else { return Ok(()) };
        let header = Header::parse(&out.spare(len)[..len]).ok_or(DropReason::MalformedInbound)?;
        if !owns(header.source) {
            return Err(DropReason::SourceMismatch);
        }
        out.commit(header.len);
        Ok(())
    }

    /// Handles a handshake initiation that the admission guard let in, and answers it.
    pub(crate) fn answer(
        &mut self,
        now: Moment,
        source: SocketAddr,
        datagram: &[u8],
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let tunn = self.tunn.as_mut().ok_or(DropReason::NoPrivateKey)?;
        let result = tunn.decapsulate(None, datagram, replies.spare(LONGEST_HANDSHAKE));
        let TunnResult::WriteToNetwork(message) = result else {
            return Err(DropReason::InvalidHandshake);
        };
        self.unconfirmed = message[4..].first_chunk().map(|index| u32::from_le_bytes(*index));
        let len = message.len();
        self.received(now, source, datagram.len());
        self.reply(now, len, replies);
        Ok(())
    }

    /// Handles the answer to our initiation: a session stands, and what waited for it goes out.
    pub(crate) fn complete(
        &mut self,
        now: Moment,
        source: SocketAddr,
        datagram: &[u8],
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let tunn = self.tunn.as_mut().ok_or(DropReason::NoPrivateKey)?;
        let result = tunn.decapsulate(None, datagram, replies.spare(LONGEST_HANDSHAKE));
        let TunnResult::WriteToNetwork(message) = result else {
            return Err(DropReason::InvalidHandshake);
        };
        let len = message.len();
        self.last_handshake = Some(now);
        self.received(now, source, datagram.len());
        self.reply(now, len, replies);
        self.flush(now, replies);
        Ok(())
    }

    /// Takes a cookie for the next initiation. It is not from a session, so it proves nothing about where the
    /// peer is: the endpoint stays.
    pub(crate) fn cookie(&mut self, datagram: &[u8]) -> Result<(), DropReason> {
        let tunn = self.tunn.as_mut().ok_or(DropReason::NoPrivateKey)?;
        match tunn.decapsulate(None, datagram, &mut [0; LONGEST_HANDSHAKE]) {
            TunnResult::Done => {
                self.rx_bytes += datagram.len() as u64;
                Ok(())
            }
            _ => Err(DropReason::InvalidHandshake),
        }
    }

    /// Does what is due: retries, renewals, keepalives.
    pub(crate) fn tick(&mut self, now: Moment, out: &mut Datagrams) {
        let Some(tunn) = self.tunn.as_mut() else { return };
        // An error only says that Tunn has given up; traffic and keepalives start it again.
        if let TunnResult::WriteToNetwork(message) = tunn.update_timers(out.spare(LONGEST_HANDSHAKE)) {
            let len = message.len();
            self.reply(now, len, out);
        }
        if self.keepalive == 0 || self.endpoint.is_none() || !self.keepalive_due(now) {
            return;
        }
        // Counts as sent even if a handshake is already on its way, or this would be due on each tick.
        self.last_traversal = Some(now);
        let Some(tunn) = self.tunn.as_mut() else { return };
        if tunn.time_since_last_handshake().is_none() {
            self.initiate(now, out);
        } else if let TunnResult::WriteToNetwork(message) =
            tunn.encapsulate(&[], out.spare(LONGEST_HANDSHAKE))
        {
            let len = message.len();
            self.reply(now, len, out);
        }
    }

    /// Starts a handshake unless one is on its way or the peer can't be reached.
    pub(crate) fn initiate(&mut self, now: Moment, out: &mut Datagrams) {
        let Some(tunn) = self.tunn.as_mut() else { return };
        if self.endpoint.is_none() {
            return;
        }
        let result = tunn.format_handshake_initiation(out.spare(LONGEST_HANDSHAKE), false);
        if let TunnResult::WriteToNetwork(message) = result {
            let len = message.len();
            self.reply(now, len, out);
        }
    }

    fn keepalive_due(&self, now: Moment) -> bool {
        let interval = Duration::from_secs(self.keepalive.into());
        self.last_traversal.is_none_or(|last| now.instant.saturating_duration_since(last.instant) >= interval)
    }

    /// Sends what waited for a session, if there is one now.
    fn flush(&mut self, now: Moment, out: &mut Datagrams) {
        let Some(tunn) = self.tunn.as_mut() else { return };
        // Without a usable session Tunn would take each packet out, put it back and start another handshake.
        if !self.waiting || tunn.time_since_last_handshake().is_none() {
            return;
        }
        self.waiting = false;
        while let Some(tunn) = self.tunn.as_mut()
            && let TunnResult::WriteToNetwork(message) =
                tunn.decapsulate(None, &[], out.spare(LARGEST_PACKET + DATA_OVERHEAD))
        {
            let len = message.len();
            self.reply(now, len, out);
        }
    }

    /// Sends the `len` bytes that were just written behind `out`, if the peer can be reached.
    fn reply(&mut self, now: Moment, len: usize, out: &mut Datagrams) {
        if let Some(endpoint) = self.endpoint {
            self.sent(now, len);
            out.commit(len, endpoint);
        }
    }

    fn sent(&mut self, now: Moment, len: usize) {
        self.tx_bytes += len as u64;
        self.last_traversal = Some(now);
    }

    /// Notes an authenticated datagram and follows the peer if it may roam.
    fn received(&mut self, now: Moment, source: SocketAddr, len: usize) {
        self.rx_bytes += len as u64;
        self.last_traversal = Some(now);
        if self.roaming || self.configured_endpoint.is_none() {
            // Without any configured endpoint a peer that doesn't roam could not be answered at all.
            self.endpoint = Some(source);
        } else if self.endpoint != Some(source) {
            self.endpoint_drifts += 1;
        }
    }
}

/// The counter of transport data (bytes 8 to 16), if the message is that.
fn data_counter(message: &[u8]) -> Option<u64> {
    if *message.first()? != DATA {
        return None;
    }
    message.get(8..)?.first_chunk().map(|counter| u64::from_le_bytes(*counter))
}

fn data_refusal(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => DropReason::NoSession,
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replay,
        _ => DropReason::Forged,
    }
}
