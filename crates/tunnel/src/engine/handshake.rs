//! The slow path of one peer, behind its lock: handshakes, the packets queued for them, timers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::x25519;
use keyring::{PresharedKey, PublicKey};
use zeroize::Zeroizing;

use super::clock::{ClockReading, Nanos, Now};
use super::identity::Identity;
use super::newest_timestamps::NewestTimestamp;
use super::noise::{self, Cookie, Initiation, Opened, Statics};
use super::peer_path::PeerPath;
use super::session::{MessageLimits, Session, SessionKeys, Sessions};
use super::staged_packets::{StagedPackets, StagedTotal};
use super::timers::{
    INITIATE_ANEW, INITIATION_INTERVAL, KEEPALIVE, REJECT_AFTER, REKEY_AFTER, REKEY_ATTEMPT, REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER, RENEW_SILENT,
};
use crate::batch::Datagrams;
use crate::counters::DropReason;
use crate::message::{COOKIE_REPLY, INITIATION, RESPONSE};

/// The handshake with one peer.
pub(crate) struct Handshake {
    /// Our keys, and what is derived from them and the peer's; `None` while the interface has no private key, and after
    /// the peer was removed.
    keys: Option<(Arc<Identity>, Box<Statics>)>,
    pub(crate) preshared_key: Option<PresharedKey>,
    pub(crate) keepalive: u16,
    /// When a handshake was last completed on both sides.
    pub(crate) completed: Option<ClockReading>,
    pending: Option<Box<Pending>>,
    newest_timestamp: NewestTimestamp,
    /// When an initiation of the peer was last answered.
    answered: Option<Nanos>,
    /// What is added to the intervals of this peer's handshakes, chosen anew for each attempt.
    jitter: Duration,
    cookie: Option<(Cookie, Nanos)>,
    /// First MAC and index of our last message: a cookie is bound to them.
    last_sent: Option<([u8; 16], u32)>,
    staged: StagedPackets,
    /// Counts our indices.
    next_index: u8,
}

/// An initiation without a response yet.
struct Pending {
    initiation: Initiation,
    /// Where it was sent.
    to: SocketAddr,
    sent: Nanos,
    /// When the first attempt was made.
    started: Nanos,
}

impl Handshake {
    pub(super) fn new(
        peer: &PublicKey,
        identity: Option<&Arc<Identity>>,
        newest_timestamp: NewestTimestamp,
        staged: StagedTotal,
    ) -> Self {
        Self {
            keys: keys(peer, identity),
            preshared_key: None,
            keepalive: 0,
            completed: None,
            pending: None,
            newest_timestamp,
            answered: None,
            jitter: Duration::ZERO,
            cookie: None,
            last_sent: None,
            staged: StagedPackets::new(staged),
            next_index: 0,
        }
    }

    pub(super) fn restart(&mut self, peer: &PublicKey, identity: Option<&Arc<Identity>>) {
        // The timestamps stay: an old initiation is a replay for ever.
        self.keys = keys(peer, identity);
        self.completed = None;
        self.pending = None;
        self.cookie = None;
        self.last_sent = None;
        self.staged.take();
    }

    pub(super) fn newest_timestamp(&self) -> NewestTimestamp {
        self.newest_timestamp.clone()
    }

    fn preshared(&self) -> &[u8; 32] {
        self.preshared_key.as_ref().map_or(&[0; 32], PresharedKey::expose)
    }

    /// An index that no session and no pending initiation of this peer has.
    fn unused_index(&mut self, peer: u32, sessions: &Sessions) -> u32 {
        loop {
            self.next_index = self.next_index.wrapping_add(1);
            let index = peer << 8 | u32::from(self.next_index);
            let pending = self.pending.as_ref().map(|pending| pending.initiation.local);
            if pending != Some(index) && sessions.iter().all(|session| session.local != index) {
                return index;
            }
        }
    }

    /// Queues `packet`, padded already, until there is a session, and initiates a handshake. When too many wait, the oldest
    /// is dropped.
    pub(super) fn queue(
        &mut self,
        path: &PeerPath,
        now: Now,
        packet: &[u8],
        limits: MessageLimits,
        out: &mut Datagrams,
    ) -> Result<(), DropReason> {
        if self.keys.is_none() {
            return Err(DropReason::NoPrivateKey);
        }
        if let Some(ready) = path.send_path(now)? {
            // Another thread has just completed one.
            path.transmit(now, &ready.session, packet, limits, out);
            path.timers.awaiting_reply_since.begin(now);
            return Ok(());
        }
        let staged = self.staged.push(packet);
        if let Some(pending) = &mut self.pending {
            // There is still traffic for the peer: the attempts go on.
            pending.started = now.nanos;
        }
        self.initiate(path, now, out);
        staged
    }

    /// Initiates a handshake unless one is in progress or the peer has no endpoint.
    pub(super) fn initiate(&mut self, path: &PeerPath, now: Now, out: &mut Datagrams) {
        if self.pending.is_none() {
            self.attempt(path, now, now.nanos, out);
        }
    }

    /// Initiates a handshake, also one that is in progress if it was begun with another endpoint or half a second ago: where the
    /// peer answers is being found out, and a mapped address has to be tried by both ends at the same time.
    pub(super) fn initiate_anew(&mut self, path: &PeerPath, now: Now, out: &mut Datagrams) {
        let in_progress = self.pending.as_ref().is_some_and(|pending| {
            path.location().endpoint == Some(pending.to) && !now.reached(pending.sent, INITIATE_ANEW)
        });
        if !in_progress {
            self.attempt(path, now, now.nanos, out);
        }
    }

    /// Sends an initiation: the first, or a retry of the attempt that started at `started`.
    fn attempt(&mut self, path: &PeerPath, now: Now, started: Nanos, out: &mut Datagrams) {
        let Some(endpoint) = path.location().endpoint else { return };
        let index = self.unused_index(path.index, &path.sessions.load());
        // Without randomness no handshake; the timers try again.
        let Some(ephemeral) = ephemeral() else { return };
        let Some((identity, statics)) = &self.keys else { return };
        let timestamp = identity.timestamps.next(now.reading.wall);
        let cookie = self.cookie.as_ref().map(|(cookie, _)| cookie);
        let mut message = [0; INITIATION];
        let initiation = Initiation::begin(
            &identity.secret_public,
            statics,
            index,
            &ephemeral,
            timestamp,
            cookie,
            &mut message,
        );
        // Refused only for a peer whose key has low order, with which no handshake is possible.
        let Ok(initiation) = initiation else { return };
        self.last_sent = Some((initiation.mac1, index));
        self.jitter = jitter();
        self.pending = Some(Box::new(Pending { initiation, to: endpoint, sent: now.nanos, started }));
        path.sent(now, INITIATION as u64);
        out.push(endpoint, &message);
    }

    /// Answers a handshake initiation that the handshake limiter has admitted.
    pub(super) fn answer(
        &mut self,
        path: &PeerPath,
        now: Now,
        source: SocketAddr,
        opened: Opened<'_>,
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let (_, statics) = self.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let received = opened.prove(statics)?;
        // Before the more expensive arithmetic. Only the peer itself can make this limit apply.
        let too_soon = self.answered.is_some_and(|answered| !now.reached(answered, INITIATION_INTERVAL));
        if too_soon && self.newest_timestamp.is_older_than(received.timestamp) {
            return Err(DropReason::PeerHandshakeRateLimited);
        }
        if !self.newest_timestamp.advance(received.timestamp) {
            return Err(DropReason::InvalidHandshake);
        }
        self.answered = Some(now.nanos);
        let index = self.unused_index(path.index, &path.sessions.load());
        let ephemeral = ephemeral().ok_or(DropReason::InvalidHandshake)?;
        let (_, statics) = self.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let cookie = self.cookie.as_ref().map(|(cookie, _)| cookie);
        let mut message = [0; RESPONSE];
        let (keys, mac1) =
            received.answer(statics, self.preshared(), index, &ephemeral, cookie, &mut message)?;
        self.last_sent = Some((mac1, index));
        let session = Arc::new(Session::new(&keys, now.nanos, false));
        path.sessions.store(Arc::new(path.sessions.load().responded(session)));
        path.received(now, source, INITIATION as u64, 1);
        // To where it came from, which need not be the endpoint: with a handshake a peer may test whether we are there.
        path.sent(now, RESPONSE as u64);
        replies.push(source, &message);
        Ok(())
    }

    /// Takes the response to our initiation: there is a session, and queued packets are sent.
    pub(super) fn complete(
        &mut self,
        path: &PeerPath,
        now: Now,
        (source, message): (SocketAddr, &[u8; RESPONSE]),
        limits: MessageLimits,
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let local = message[8..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let (identity, _) = self.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let pending = self.pending.as_ref().filter(|pending| Some(pending.initiation.local) == local);
        let pending = pending.ok_or(DropReason::InvalidHandshake)?;
        let keys: SessionKeys = pending.initiation.complete(identity, self.preshared(), message)?;
        self.pending = None;
        self.completed = Some(now.reading);
        let session = Arc::new(Session::new(&keys, now.nanos, true));
        path.sessions.store(Arc::new(path.sessions.load().initiated(Arc::clone(&session))));
        path.received(now, source, RESPONSE as u64, 1);
        // The peer may not use the session before we have.
        path.transmit(now, &session, &[], limits, replies);
        self.flush(path, now, &session, limits, replies);
        Ok(())
    }

    /// The peer has used `session`: if that confirms it, it is what we send with from now on.
    pub(super) fn confirm(
        &mut self,
        path: &PeerPath,
        now: Now,
        session: &Arc<Session>,
        limits: MessageLimits,
        replies: &mut Datagrams,
    ) {
        if path.is_unconfirmed(session) {
            path.sessions.store(Arc::new(path.sessions.load().confirmed()));
            self.completed = Some(now.reading);
            self.flush(path, now, session, limits, replies);
        }
    }

    /// Takes a cookie for the next initiation. It does not come from a session, so it proves nothing about
    /// where the peer is: the endpoint stays.
    pub(super) fn cookie(
        &mut self,
        path: &PeerPath,
        now: Now,
        message: &[u8; COOKIE_REPLY],
    ) -> Result<(), DropReason> {
        let (_, statics) = self.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let index = message[4..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let (mac1, _) =
            self.last_sent.filter(|(_, local)| Some(*local) == index).ok_or(DropReason::InvalidHandshake)?;
        let cookie = noise::cookie(statics, &mac1, message)?;
        self.last_sent = None;
        self.cookie = Some((cookie, now.nanos));
        path.received_unauthenticated(message.len() as u64);
        Ok(())
    }

    /// Does what is due: retries, renewals, keepalives, and the end of sessions.
    pub(super) fn tick(&mut self, path: &PeerPath, now: Now, limits: MessageLimits, out: &mut Datagrams) {
        if self.keys.is_none() {
            return;
        }
        self.expire(path, now);
        if let Some(pending) = &self.pending {
            if now.reached(pending.sent, REKEY_TIMEOUT + self.jitter) {
                let started = pending.started;
                if now.reached(started, REKEY_ATTEMPT) {
                    // The peer does not answer. New packets or keepalives start over.
                    self.pending = None;
                    self.staged.take();
                } else {
                    self.attempt(path, now, started, out);
                }
            }
        } else if path.timers.awaiting_reply_since.due(now, KEEPALIVE + REKEY_TIMEOUT + self.jitter)
            || aged(path, now)
        {
            path.timers.awaiting_reply_since.clear();
            self.initiate(path, now, out);
        }
        let interval = Duration::from_secs(self.keepalive.into());
        let persistent = self.keepalive != 0
            && (path.timers.last_activity.never() || path.timers.last_activity.due(now, interval));
        if !persistent && !path.timers.keepalive_due_since.due(now, KEEPALIVE) {
            return;
        }
        match path.send_path(now) {
            Ok(Some(ready)) => path.transmit(now, &ready.session, &[], limits, out),
            Ok(None) if persistent => {
                // Counts as sent even if a handshake is in progress already, or this would be due on each tick.
                path.timers.last_activity.set(now);
                self.initiate(path, now, out);
            }
            Ok(None) => path.timers.keepalive_due_since.clear(),
            Err(_) => {}
        }
    }

    /// Drops sessions and cookies that have expired, with their keys.
    fn expire(&mut self, path: &PeerPath, now: Now) {
        let old = |session: &Option<Arc<Session>>| {
            session.as_ref().is_some_and(|session| now.reached(session.created, REJECT_AFTER))
        };
        let sessions = path.sessions.load();
        if old(&sessions.current) || old(&sessions.previous) || old(&sessions.next) {
            let keep = |session: &Option<Arc<Session>>| session.clone().filter(|_| !old(session));
            path.sessions.store(Arc::new(Sessions {
                current: keep(&sessions.current),
                previous: keep(&sessions.previous),
                next: keep(&sessions.next),
            }));
        }
        // A cookie is good for two minutes (WireGuard paper, section 6.6).
        if self.cookie.as_ref().is_some_and(|(_, got)| now.reached(*got, REKEY_AFTER)) {
            self.cookie = None;
        }
    }

    /// Sends the queued packets over `session`.
    fn flush(
        &mut self,
        path: &PeerPath,
        now: Now,
        session: &Session,
        limits: MessageLimits,
        out: &mut Datagrams,
    ) {
        for packet in self.staged.take() {
            path.transmit(now, session, &packet, limits, out);
            path.timers.awaiting_reply_since.begin(now);
        }
    }
}

/// Whether the session that we initiated is so old that the peer's packets may soon find none: then it is renewed even if
/// we send nothing.
fn aged(path: &PeerPath, now: Now) -> bool {
    let sessions = path.sessions.load();
    let Some(current) = &sessions.current else { return false };
    current.initiator && current.used.due(now, Duration::ZERO) && now.reached(current.created, RENEW_SILENT)
}

fn keys(peer: &PublicKey, identity: Option<&Arc<Identity>>) -> Option<(Arc<Identity>, Box<Statics>)> {
    let identity = identity?;
    let statics = Statics::new(identity, x25519::PublicKey::from(*peer.as_bytes()));
    Some((Arc::clone(identity), Box::new(statics)))
}

/// A random part of [`REKEY_TIMEOUT_JITTER`], so that two ends that began at once don't go on doing so.
fn jitter() -> Duration {
    let parts = getrandom::u32().unwrap_or_default() % 1024;
    REKEY_TIMEOUT_JITTER * parts / 1024
}

/// Randomness for an ephemeral key.
fn ephemeral() -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..]).ok()?;
    Some(bytes)
}
