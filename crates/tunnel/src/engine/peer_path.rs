//! What the data path knows about one peer: sessions, endpoint, timers and byte counts, none of which blocks it.
//!
//! No lock is held while a packet is encrypted or decrypted. Sessions are replaced as a whole under the lock of the
//! handshake, and read without it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use keyring::PublicKey;
use parking_lot::Mutex;
use wireguard::PeerChange;

use super::clock::Now;
use super::session::{MessageLimits, Session, Sessions};
use super::timers::{REJECT_AFTER, Timers};
use crate::batch::Datagrams;
use crate::counters::DropReason;
use crate::message::{DATA_HEADER, DATA_OVERHEAD};

/// The data path to one peer.
pub(crate) struct PeerPath {
    pub(crate) key: PublicKey,
    /// The upper 24 bits of every session index that we choose for this peer.
    pub(crate) index: u32,
    pub(super) sessions: ArcSwap<Sessions>,
    location: Mutex<Location>,
    pub(super) timers: Timers,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    forged: AtomicU64,
}

/// A peer's endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    /// Where datagrams go now.
    pub(crate) endpoint: Option<SocketAddr>,
    configured: Option<SocketAddr>,
    pub(crate) roaming: bool,
    pub(crate) drifts: u64,
}

/// What is needed to send to a peer.
pub(crate) struct SendPath {
    pub(crate) session: Arc<Session>,
    pub(crate) endpoint: SocketAddr,
}

impl PeerPath {
    pub(crate) fn new(key: PublicKey, index: u32) -> Self {
        let location = Location { endpoint: None, configured: None, roaming: true, drifts: 0 };
        Self {
            key,
            index,
            sessions: ArcSwap::default(),
            location: Mutex::new(location),
            timers: Timers::default(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            forged: AtomicU64::new(0),
        }
    }

    pub(crate) fn location(&self) -> Location {
        *self.location.lock()
    }

    /// Bytes of UDP payload received and sent.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.received_bytes.load(Ordering::Relaxed), self.sent_bytes.load(Ordering::Relaxed))
    }

    /// Records a datagram of one of the peer's sessions that did not authenticate. Only those from its endpoint say something
    /// about the peer.
    pub(super) fn received_forged(&self, source: SocketAddr) {
        if self.location().endpoint == Some(source) {
            self.forged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of these there were.
    pub(crate) fn forged(&self) -> u64 {
        self.forged.load(Ordering::Relaxed)
    }

    /// Drops all sessions.
    pub(crate) fn restart(&self) {
        self.sessions.store(Arc::default());
        self.timers.clear();
    }

    /// Applies the endpoint and whether it roams.
    pub(crate) fn apply(&self, change: &PeerChange) {
        let mut location = self.location.lock();
        if let Some(endpoint) = change.endpoint {
            location.configured = Some(endpoint);
            location.endpoint = Some(endpoint);
        }
        if let Some(roaming) = change.roaming {
            location.roaming = roaming;
            if !roaming && location.configured.is_some() {
                location.endpoint = location.configured;
            }
        }
    }

    /// What to send with; `None` if there is no session that may still be used.
    pub(crate) fn send_path(&self, now: Now) -> Result<Option<SendPath>, DropReason> {
        let endpoint = self.location.lock().endpoint.ok_or(DropReason::NoEndpoint)?;
        let session = self.sessions.load().current.clone();
        Ok(session
            .filter(|session| !now.reached(session.created, REJECT_AFTER))
            .map(|session| SendPath { session, endpoint }))
    }

    /// The session with our index `local`, if it may still be used.
    pub(crate) fn session(&self, now: Now, local: u32) -> Option<Arc<Session>> {
        let sessions = self.sessions.load();
        let session = sessions.iter().find(|session| session.local == local)?;
        (!now.reached(session.created, REJECT_AFTER)).then(|| Arc::clone(session))
    }

    /// Whether `session` becomes the one that we send with once the peer has used it.
    pub(crate) fn is_unconfirmed(&self, session: &Arc<Session>) -> bool {
        self.sessions.load().next.as_ref().is_some_and(|next| Arc::ptr_eq(next, session))
    }

    /// Records that something authenticated was sent.
    pub(super) fn sent(&self, now: Now, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.timers.last_activity.set(now);
        self.timers.keepalive_due_since.clear();
    }

    /// Records `count` authenticated datagrams and follows the peer if it may roam.
    pub(super) fn received(&self, now: Now, source: SocketAddr, bytes: u64, count: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.timers.last_activity.set(now);
        self.timers.awaiting_reply_since.clear();
        let mut location = self.location.lock();
        if location.roaming || location.configured.is_none() {
            // Without any configured endpoint a peer that doesn't roam could not be answered at all.
            location.endpoint = Some(source);
        } else if location.endpoint != Some(source) {
            location.drifts += count;
        }
    }

    /// Records bytes that were received but not authenticated by a session.
    pub(super) fn received_unauthenticated(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Sends `packet`, padded already, or a keepalive if it is empty.
    pub(super) fn transmit(
        &self,
        now: Now,
        session: &Session,
        packet: &[u8],
        limits: MessageLimits,
        out: &mut Datagrams,
    ) {
        let Some(endpoint) = self.location().endpoint else { return };
        let len = packet.len() + DATA_OVERHEAD;
        let datagram = &mut out.spare(len)[..len];
        datagram[DATA_HEADER..DATA_HEADER + packet.len()].copy_from_slice(packet);
        // A session at its limit is renewed when data is sent.
        if session.seal(datagram, limits).is_ok() {
            out.commit(len, endpoint);
            self.sent(now, len as u64);
        }
    }
}
