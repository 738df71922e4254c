//! One peer as the data path sees it: sessions, endpoint and counters, none of which holds anyone up.
//!
//! No lock is held while a packet is encrypted or decrypted. Sessions are replaced as a whole under the lock of the
//! handshake, and read without it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyring::PublicKey;
use parking_lot::{Mutex, MutexGuard};

use super::clock::{Now, Stamp};
use super::handshake::Handshake;
use super::identity::Identity;
use super::session::{MessageLimits, Session, Sessions};
use crate::batch::Datagrams;
use crate::counters::DropReason;
use wireguard::{PeerChange, PresharedKeyChange};

/// Timers (WireGuard paper, section 6.1).
pub(crate) const REKEY_AFTER: Duration = Duration::from_mins(2);
pub(crate) const REJECT_AFTER: Duration = Duration::from_mins(3);
/// `REJECT_AFTER` less `KEEPALIVE` and `REKEY_TIMEOUT`: a session that only brings packets is renewed then.
pub(crate) const RENEW_SILENT: Duration = Duration::from_secs(165);
pub(crate) const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(10);

/// A peer of the interface.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// The upper 24 bits of every session index that we hand out for this peer.
    pub(crate) index: u32,
    pub(super) sessions: ArcSwap<Sessions>,
    pub(super) handshake: Mutex<Handshake>,
    location: Mutex<Location>,
    pub(super) timers: Timers,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
}

/// Where a peer is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Location {
    /// Where datagrams go now.
    pub(crate) endpoint: Option<SocketAddr>,
    configured: Option<SocketAddr>,
    pub(crate) roaming: bool,
    pub(crate) drifts: u64,
}

/// What the data path notes for [`Peer::tick`].
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// When an authenticated datagram last went either way; never makes a persistent keepalive due.
    pub(super) traversal: Stamp,
    /// Since when data of ours is not answered by anything.
    pub(super) unanswered: Stamp,
    /// Since when data of the peer is not answered by anything.
    pub(super) owed: Stamp,
}

/// What is needed to send to a peer.
pub(crate) struct Way {
    pub(crate) session: Arc<Session>,
    pub(crate) endpoint: SocketAddr,
}

impl Peer {
    /// A peer with the settings of a new one, see [`PeerOp::Add`](wireguard::PeerOp::Add).
    pub(crate) fn new(key: PublicKey, index: u32, identity: Option<&Arc<Identity>>) -> Self {
        let location = Location { endpoint: None, configured: None, roaming: true, drifts: 0 };
        Self {
            key,
            index,
            sessions: ArcSwap::default(),
            handshake: Mutex::new(Handshake::new(&key, identity)),
            location: Mutex::new(location),
            timers: Timers::default(),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Handshake> {
        self.handshake.lock()
    }

    pub(crate) fn location(&self) -> Location {
        *self.location.lock()
    }

    /// Bytes of UDP payload received and sent.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.rx_bytes.load(Ordering::Relaxed), self.tx_bytes.load(Ordering::Relaxed))
    }

    /// Forgets all sessions and starts over with `identity`; without one nothing passes.
    pub(crate) fn restart(&self, identity: Option<&Arc<Identity>>) {
        let mut handshake = self.lock();
        handshake.restart(&self.key, identity);
        self.sessions.store(Arc::default());
        self.timers.traversal.clear();
        self.timers.unanswered.clear();
        self.timers.owed.clear();
    }

    /// Applies everything but allowed IPs, which belong to the whole set of peers.
    pub(crate) fn apply(&self, change: &PeerChange, preshared_key: Option<PresharedKeyChange>) {
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
        drop(location);
        let mut handshake = self.lock();
        if let Some(keepalive) = change.keepalive.map(Option::unwrap_or_default) {
            if handshake.keepalive == 0 && keepalive != 0 {
                // Due at once, as in the kernel: the first one opens the way through a NAT.
                self.timers.traversal.clear();
            }
            handshake.keepalive = keepalive;
        }
        match preshared_key {
            None => {}
            // From the next handshake on; the session that stands goes on, as in the kernel.
            Some(PresharedKeyChange::Clear) => handshake.preshared_key = None,
            Some(PresharedKeyChange::Set(key)) => handshake.preshared_key = Some(key),
        }
    }

    /// What to send with, unless there is no session that may still be used.
    pub(crate) fn way(&self, now: Now) -> Result<Option<Way>, DropReason> {
        let endpoint = self.location.lock().endpoint.ok_or(DropReason::NoEndpoint)?;
        let session = self.sessions.load().current.clone();
        Ok(session
            .filter(|session| !now.reached(session.created, REJECT_AFTER))
            .map(|session| Way { session, endpoint }))
    }

    /// The session that was handed out under `local`, if it may still be used.
    pub(crate) fn session(&self, now: Now, local: u32) -> Option<Arc<Session>> {
        let sessions = self.sessions.load();
        let session = sessions.iter().find(|session| session.local == local)?;
        (!now.reached(session.created, REJECT_AFTER)).then(|| Arc::clone(session))
    }

    /// Notes that transport data went out, `bytes` in all, with or without packets in it, up to `counter`. Renews
    /// the session if it is time to.
    pub(crate) fn sent_data(
        &self,
        now: Now,
        bytes: u64,
        (session, counter): (&Session, u64),
        limits: MessageLimits,
        out: &mut Datagrams,
    ) {
        self.sent(now, bytes);
        self.timers.unanswered.begin(now);
        if counter >= limits.rekey_after || (session.initiator && now.reached(session.created, REKEY_AFTER)) {
            self.initiate(now, out);
        }
    }

    /// Notes that something authenticated went out.
    pub(super) fn sent(&self, now: Now, bytes: u64) {
        self.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.timers.traversal.set(now);
        self.timers.owed.clear();
    }

    /// Notes `count` authenticated datagrams and follows the peer if it may roam.
    pub(super) fn received(&self, now: Now, source: SocketAddr, bytes: u64, count: u64) {
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.timers.traversal.set(now);
        self.timers.unanswered.clear();
        let mut location = self.location.lock();
        if location.roaming || location.configured.is_none() {
            // Without any configured endpoint a peer that doesn't roam could not be answered at all.
            location.endpoint = Some(source);
        } else if location.endpoint != Some(source) {
            location.drifts += count;
        }
    }

    /// Bytes that are received, but prove nothing.
    pub(super) fn heard(&self, bytes: u64) {
        self.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
