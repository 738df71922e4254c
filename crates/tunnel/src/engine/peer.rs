//! One peer: its data path, which takes no lock, and its handshake behind one.

use std::net::SocketAddr;
use std::sync::Arc;

use keyring::PublicKey;
use parking_lot::{Mutex, MutexGuard};
use wireguard::{PeerChange, PresharedKeyChange};

use super::clock::Now;
use super::handshake::Handshake;
use super::identity::Identity;
use super::newest_timestamps::NewestTimestamp;
use super::noise::Opened;
use super::peer_path::PeerPath;
use super::session::{MessageLimits, Session};
use super::staged_packets::StagedTotal;
use super::timers::REKEY_AFTER;
use crate::batch::Datagrams;
use crate::counters::DropReason;
use crate::message::{COOKIE_REPLY, RESPONSE};

/// A peer of the interface.
pub(crate) struct Peer {
    pub(crate) path: PeerPath,
    handshake: Mutex<Handshake>,
}

impl Peer {
    /// A peer with the settings of a new one, see [`PeerOp::Add`](wireguard::PeerOp::Add).
    pub(crate) fn new(
        key: PublicKey,
        index: u32,
        identity: Option<&Arc<Identity>>,
        newest_timestamp: NewestTimestamp,
        staged: StagedTotal,
    ) -> Self {
        let handshake = Handshake::new(&key, identity, newest_timestamp, staged);
        Self { path: PeerPath::new(key, index), handshake: Mutex::new(handshake) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Handshake> {
        self.handshake.lock()
    }

    /// Drops all sessions and starts over with `identity`; without one nothing passes.
    pub(crate) fn restart(&self, identity: Option<&Arc<Identity>>) {
        let mut handshake = self.lock();
        handshake.restart(&self.path.key, identity);
        self.path.restart();
    }

    /// Applies everything but allowed IPs, which belong to the whole set of peers.
    pub(crate) fn apply(&self, change: &PeerChange, preshared_key: Option<PresharedKeyChange>) {
        self.path.apply(change);
        let mut handshake = self.lock();
        if let Some(keepalive) = change.keepalive.map(Option::unwrap_or_default) {
            if handshake.keepalive == 0 && keepalive != 0 {
                // Due at once, as in the kernel: the first one opens the path through a NAT.
                self.path.timers.last_activity.clear();
            }
            handshake.keepalive = keepalive;
        }
        match preshared_key {
            None => {}
            // From the next handshake on; the current session goes on, as in the kernel.
            Some(PresharedKeyChange::Clear) => handshake.preshared_key = None,
            Some(PresharedKeyChange::Set(key)) => handshake.preshared_key = Some(key),
        }
    }

    /// Records that transport data was sent, `bytes` in all, with or without packets in it, up to `counter`. Renews the
    /// session if it is time to.
    pub(crate) fn sent_data(
        &self,
        now: Now,
        bytes: u64,
        (session, counter): (&Session, u64),
        limits: MessageLimits,
        out: &mut Datagrams,
    ) {
        self.path.sent(now, bytes);
        self.path.timers.awaiting_reply_since.begin(now);
        if counter >= limits.rekey_after || (session.initiator && now.reached(session.created, REKEY_AFTER)) {
            self.initiate(now, out);
        }
    }

    /// Queues `packet`, padded already, until there is a session, and initiates a handshake.
    pub(crate) fn queue(
        &self,
        now: Now,
        packet: &[u8],
        limits: MessageLimits,
        out: &mut Datagrams,
    ) -> Result<(), DropReason> {
        self.lock().queue(&self.path, now, packet, limits, out)
    }

    /// Initiates a handshake unless one is in progress or the peer has no endpoint.
    pub(crate) fn initiate(&self, now: Now, out: &mut Datagrams) {
        self.lock().initiate(&self.path, now, out);
    }

    /// Initiates a handshake, also one that is in progress with another endpoint.
    pub(crate) fn initiate_anew(&self, now: Now, out: &mut Datagrams) {
        self.lock().initiate_anew(&self.path, now, out);
    }

    /// Answers a handshake initiation that the handshake limiter has admitted.
    pub(crate) fn answer(
        &self,
        now: Now,
        source: SocketAddr,
        opened: Opened<'_>,
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        self.lock().answer(&self.path, now, source, opened, replies)
    }

    /// Takes the response to our initiation: there is a session, and queued packets are sent.
    pub(crate) fn complete(
        &self,
        now: Now,
        source: SocketAddr,
        message: &[u8; RESPONSE],
        limits: MessageLimits,
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        self.lock().complete(&self.path, now, (source, message), limits, replies)
    }

    /// The peer has used `session`: if that confirms it, it is what we send with from now on.
    pub(crate) fn confirm(
        &self,
        now: Now,
        session: &Arc<Session>,
        limits: MessageLimits,
        replies: &mut Datagrams,
    ) {
        // Without the lock first: this is asked for every batch.
        if self.path.is_unconfirmed(session) {
            self.lock().confirm(&self.path, now, session, limits, replies);
        }
    }

    /// Takes a cookie for the next initiation.
    pub(crate) fn cookie(&self, now: Now, message: &[u8; COOKIE_REPLY]) -> Result<(), DropReason> {
        self.lock().cookie(&self.path, now, message)
    }

    /// Does what is due: retries, renewals, keepalives, and the end of sessions.
    pub(crate) fn tick(&self, now: Now, limits: MessageLimits, out: &mut Datagrams) {
        self.lock().tick(&self.path, now, limits, out);
    }
}
