//! The slow path of one peer, behind its lock: handshakes, what waits for them, timers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use boringtun::x25519;
use keyring::{PresharedKey, PublicKey};
use zeroize::Zeroizing;

use super::Moment;
use super::clock::{Nanos, Now};
use super::identity::Identity;
use super::noise::{self, Cookie, INITIATION, Initiation, Opened, RESPONSE, Statics, Timestamp};
use super::peer::{KEEPALIVE, Peer, REJECT_AFTER, REKEY_AFTER, REKEY_ATTEMPT, REKEY_TIMEOUT, RENEW_SILENT};
use super::session::{DATA_HEADER, DATA_OVERHEAD, MessageLimits, Session, SessionKeys, Sessions};
use crate::batch::Datagrams;
use crate::counters::DropReason;

/// Packets that wait for a handshake at most.
const WAITING: usize = 256;

/// The handshake with one peer.
pub(crate) struct Handshake {
    /// Our keys, and what follows from them and the peer's; `None` while the interface has no private key, and
    /// after the peer was removed.
    keys: Option<(Arc<Identity>, Box<Statics>)>,
    pub(crate) preshared_key: Option<PresharedKey>,
    pub(crate) keepalive: u16,
    /// When a session was last known to stand on both sides.
    pub(crate) completed: Option<Moment>,
    pending: Option<Box<Pending>>,
    /// The greatest timestamp that the peer has sent.
    seen: Timestamp,
    cookie: Option<(Cookie, Nanos)>,
    /// First MAC of the last message of ours, and the index it came from: a cookie is bound to it.
    asked: Option<([u8; 16], u32)>,
    /// Padded packets for which there was no session yet.
    waiting: VecDeque<Vec<u8>>,
    /// Counts our indices.
    next: u8,
}

/// An initiation on its way.
struct Pending {
    initiation: Initiation,
    sent: Nanos,
    /// When the first of the attempts began.
    began: Nanos,
}

impl Handshake {
    pub(super) fn new(peer: &PublicKey, identity: Option<&Arc<Identity>>) -> Self {
        Self {
            keys: keys(peer, identity),
            preshared_key: None,
            keepalive: 0,
            completed: None,
            pending: None,
            seen: [0; 12],
            cookie: None,
            asked: None,
            waiting: VecDeque::new(),
            next: 0,
        }
    }

    pub(super) fn restart(&mut self, peer: &PublicKey, identity: Option<&Arc<Identity>>) {
        // The timestamps stay: an old initiation is a replay for ever.
        self.keys = keys(peer, identity);
        self.completed = None;
        self.pending = None;
        self.cookie = None;
        self.asked = None;
        self.waiting.clear();
    }

    fn preshared(&self) -> &[u8; 32] {
        self.preshared_key.as_ref().map_or(&[0; 32], PresharedKey::expose)
    }

    /// An index that no session and no pending initiation of this peer has.
    fn unused_index(&mut self, peer: u32, sessions: &Sessions) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            let index = peer << 8 | u32::from(self.next);
            let pending = self.pending.as_ref().map(|pending| pending.initiation.local);
            if pending != Some(index) && sessions.iter().all(|session| session.local != index) {
                return index;
            }
        }
    }
}

impl Peer {
    /// Keeps `packet`, padded already, until a session stands, and starts a handshake. When too many wait, the oldest
    /// is dropped.
    pub(crate) fn wait(
        &self,
        now: Now,
        packet: &[u8],
        limits: MessageLimits,
        out: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let mut handshake = self.lock();
        if handshake.keys.is_none() {
            return Err(DropReason::NoPrivateKey);
        }
        if let Some(way) = self.way(now)? {
            // Another thread has just completed one.
            self.transmit(now, &way.session, packet, limits, out);
            self.timers.unanswered.begin(now);
            return Ok(());
        }
        let full = handshake.waiting.len() >= WAITING;
        if full {
            handshake.waiting.pop_front();
        }
        handshake.waiting.push_back(packet.to_vec());
        if let Some(pending) = &mut handshake.pending {
            // Somebody still wants to reach the peer: the attempts go on.
            pending.began = now.nanos;
        }
        self.begin(&mut handshake, now, out);
        if full { Err(DropReason::NoSession) } else { Ok(()) }
    }

    /// Starts a handshake unless one is on its way or the peer can't be reached.
    pub(crate) fn initiate(&self, now: Now, out: &mut Datagrams) {
        self.begin(&mut self.lock(), now, out);
    }

    fn begin(&self, handshake: &mut Handshake, now: Now, out: &mut Datagrams) {
        if handshake.pending.is_none() {
            self.attempt(handshake, now, now.nanos, out);
        }
    }

    /// Sends an initiation, the first or another of those that began at `began`.
    fn attempt(&self, handshake: &mut Handshake, now: Now, began: Nanos, out: &mut Datagrams) {
        let Some(endpoint) = self.location().endpoint else { return };
        let index = handshake.unused_index(self.index, &self.sessions.load());
        // Without randomness no handshake; the timers try again.
        let Some(ephemeral) = ephemeral() else { return };
        let Some((identity, statics)) = &handshake.keys else { return };
        let timestamp = identity.stamp(now.moment.wall);
        let cookie = handshake.cookie.as_ref().map(|(cookie, _)| cookie);
        let mut message = [0; INITIATION];
        let initiation =
            Initiation::begin(identity, statics, index, &ephemeral, timestamp, cookie, &mut message);
        // Refused only for a peer whose key has low order, with which nobody can talk.
        let Ok(initiation) = initiation else { return };
        handshake.asked = Some((initiation.mac1, index));
        handshake.pending = Some(Box::new(Pending { initiation, sent: now.nanos, began }));
        self.sent(now, INITIATION as u64);
        out.push(endpoint, &message);
    }

    /// Answers a handshake initiation, which the admission guard has let in.
    pub(crate) fn answer(
        &self,
        now: Now,
        source: SocketAddr,
        opened: Opened<'_>,
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let mut handshake = self.lock();
        let (_, statics) = handshake.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let received = opened.prove(statics)?;
        if received.timestamp <= handshake.seen {
            return Err(DropReason::InvalidHandshake);
        }
        handshake.seen = received.timestamp;
        let index = handshake.unused_index(self.index, &self.sessions.load());
        let ephemeral = ephemeral().ok_or(DropReason::InvalidHandshake)?;
        let (_, statics) = handshake.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let cookie = handshake.cookie.as_ref().map(|(cookie, _)| cookie);
        let mut message = [0; RESPONSE];
        let (keys, mac1) =
            received.answer(statics, handshake.preshared(), index, &ephemeral, cookie, &mut message)?;
        handshake.asked = Some((mac1, index));
        let session = Arc::new(Session::new(&keys, now.nanos, false));
        self.sessions.store(Arc::new(self.sessions.load().answered(session)));
        drop(handshake);
        self.received(now, source, INITIATION as u64, 1);
        if let Some(endpoint) = self.location().endpoint {
            self.sent(now, RESPONSE as u64);
            replies.push(endpoint, &message);
        }
        Ok(())
    }

    /// Takes the answer to our initiation: a session stands, and what waited for it goes out.
    pub(crate) fn complete(
        &self,
        now: Now,
        source: SocketAddr,
        message: &[u8; RESPONSE],
        limits: MessageLimits,
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let mut handshake = self.lock();
        let local = message[8..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let (identity, _) = handshake.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let pending = handshake.pending.as_ref().filter(|pending| Some(pending.initiation.local) == local);
        let pending = pending.ok_or(DropReason::InvalidHandshake)?;
        let keys: SessionKeys = pending.initiation.complete(identity, handshake.preshared(), message)?;
        handshake.pending = None;
        handshake.completed = Some(now.moment);
        let session = Arc::new(Session::new(&keys, now.nanos, true));
        self.sessions.store(Arc::new(self.sessions.load().began(Arc::clone(&session))));
        self.received(now, source, RESPONSE as u64, 1);
        // The peer may not use the session before we have.
        self.transmit(now, &session, &[], limits, replies);
        self.flush(&mut handshake, now, &session, limits, replies);
        Ok(())
    }

    /// The peer has used `session`: if that confirms it, it is what we send with from now on.
    pub(crate) fn confirm(
        &self,
        now: Now,
        session: &Arc<Session>,
        limits: MessageLimits,
        replies: &mut Datagrams,
    ) {
        let awaited =
            |sessions: &Sessions| sessions.next.as_ref().is_some_and(|next| Arc::ptr_eq(next, session));
        if !awaited(&self.sessions.load()) {
            return;
        }
        let mut handshake = self.lock();
        let sessions = self.sessions.load_full();
        if awaited(&sessions) {
            self.sessions.store(Arc::new(sessions.confirmed()));
            handshake.completed = Some(now.moment);
            self.flush(&mut handshake, now, session, limits, replies);
        }
    }

    /// Takes a cookie for the next initiation. It is not from a session, so it proves nothing about where the
    /// peer is: the endpoint stays.
    pub(crate) fn cookie(&self, now: Now, message: &[u8; 64]) -> Result<(), DropReason> {
        let mut handshake = self.lock();
        let (_, statics) = handshake.keys.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let index = message[4..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let (mac1, _) =
            handshake.asked.filter(|(_, local)| Some(*local) == index).ok_or(DropReason::InvalidHandshake)?;
        let cookie = noise::cookie(statics, &mac1, message)?;
        handshake.asked = None;
        handshake.cookie = Some((cookie, now.nanos));
        drop(handshake);
        self.heard(message.len() as u64);
        Ok(())
    }

    /// Does what is due: retries, renewals, keepalives, and the end of sessions.
    pub(crate) fn tick(&self, now: Now, limits: MessageLimits, out: &mut Datagrams) {
        let mut handshake = self.lock();
        if handshake.keys.is_none() {
            return;
        }
        self.expire(&mut handshake, now);
        if let Some(pending) = &handshake.pending {
            if now.reached(pending.sent, REKEY_TIMEOUT) {
                let began = pending.began;
                if now.reached(began, REKEY_ATTEMPT) {
                    // The peer is away. New packets or keepalives begin again.
                    handshake.pending = None;
                    handshake.waiting.clear();
                } else {
                    self.attempt(&mut handshake, now, began, out);
                }
            }
        } else if self.timers.unanswered.due(now, KEEPALIVE + REKEY_TIMEOUT) || self.aged(now) {
            self.timers.unanswered.clear();
            self.begin(&mut handshake, now, out);
        }
        let interval = std::time::Duration::from_secs(handshake.keepalive.into());
        let persistent = handshake.keepalive != 0
            && (self.timers.traversal.never() || self.timers.traversal.due(now, interval));
        if !persistent && !self.timers.owed.due(now, KEEPALIVE) {
            return;
        }
        match self.way(now) {
            Ok(Some(way)) => self.transmit(now, &way.session, &[], limits, out),
            Ok(None) if persistent => {
                // Counts as sent even if a handshake is on its way already, or this would be due on each tick.
                self.timers.traversal.set(now);
                self.begin(&mut handshake, now, out);
            }
            Ok(None) => self.timers.owed.clear(),
            Err(_) => {}
        }
    }

    /// Whether the session that we began is so old that the peer's packets may soon find none: then it is renewed
    /// even if we send nothing.
    fn aged(&self, now: Now) -> bool {
        let sessions = self.sessions.load();
        let Some(current) = &sessions.current else { return false };
        current.initiator
            && current.used.due(now, std::time::Duration::ZERO)
            && now.reached(current.created, RENEW_SILENT)
    }

    /// Drops what has come of age, and its keys with it.
    fn expire(&self, handshake: &mut Handshake, now: Now) {
        let old = |session: &Option<Arc<Session>>| {
            session.as_ref().is_some_and(|session| now.reached(session.created, REJECT_AFTER))
        };
        let sessions = self.sessions.load();
        if old(&sessions.current) || old(&sessions.previous) || old(&sessions.next) {
            let keep = |session: &Option<Arc<Session>>| session.clone().filter(|_| !old(session));
            self.sessions.store(Arc::new(Sessions {
                current: keep(&sessions.current),
                previous: keep(&sessions.previous),
                next: keep(&sessions.next),
            }));
        }
        // A cookie is good for two minutes (WireGuard paper, section 6.6).
        if handshake.cookie.as_ref().is_some_and(|(_, got)| now.reached(*got, REKEY_AFTER)) {
            handshake.cookie = None;
        }
    }

    /// Sends what waited for `session`.
    fn flush(
        &self,
        handshake: &mut Handshake,
        now: Now,
        session: &Session,
        limits: MessageLimits,
        out: &mut Datagrams,
    ) {
        for packet in handshake.waiting.drain(..) {
            self.transmit(now, session, &packet, limits, out);
            self.timers.unanswered.begin(now);
        }
        handshake.waiting.shrink_to_fit();
    }

    /// Sends `packet`, padded already, or a keepalive if it is empty.
    fn transmit(
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
        // A session at its limit is renewed by whoever sends data.
        if session.seal(datagram, limits).is_ok() {
            out.commit(len, endpoint);
            self.sent(now, len as u64);
        }
    }
}

fn keys(peer: &PublicKey, identity: Option<&Arc<Identity>>) -> Option<(Arc<Identity>, Box<Statics>)> {
    let identity = identity?;
    let statics = Statics::new(identity, x25519::PublicKey::from(*peer.as_bytes()));
    Some((Arc::clone(identity), Box::new(statics)))
}

/// Randomness for an ephemeral key.
fn ephemeral() -> Option<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut bytes[..]).ok()?;
    Some(bytes)
}
