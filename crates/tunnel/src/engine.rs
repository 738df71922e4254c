//! The engine: datagrams in, packets and datagrams out, and the reverse; no sockets, no threads.

mod admission;
mod allowed_ips;
mod config;
mod identity;
mod packet;
mod peer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use boringtun::noise::Packet;
use boringtun::noise::handshake::parse_handshake_anon;
use keyring::PublicKey;
use parking_lot::{Mutex, MutexGuard};

use self::admission::{COOKIE_REPLY, Verdict};
use self::allowed_ips::AllowedIps;
pub(crate) use self::config::Config;
use self::identity::Identity;
use self::packet::Header;
use self::peer::{MessageLimits, Peer, PeerState};
use crate::batch::{Datagrams, Packets};
use crate::counters::{Counters, DropReason, Tally};
use crate::status::PeerStatus;

/// The largest payload of a UDP datagram.
const LARGEST_DATAGRAM: usize = 65_535;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// For intervals: never goes back.
    pub instant: Instant,
    /// For people and for other hosts.
    pub wall: SystemTime,
}

impl Moment {
    /// Reads both clocks. For the shell around the engine.
    pub fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// What an engine is made with.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// MTU of the TUN device in bytes: padding never makes a packet longer than this.
    pub mtu: u16,
    /// Handshake messages per second that are worked on without asking the sender for a cookie.
    pub handshakes_per_second: u64,
    pub(crate) limits: MessageLimits,
}

impl Default for EngineOptions {
    fn default() -> Self {
        // One handshake costs about 0.3 ms: 200 are 6 % of a core.
        Self { mtu: 1420, handshakes_per_second: 200, limits: MessageLimits::default() }
    }
}

/// A WireGuard interface without its sockets. All methods may be called from several threads at once.
///
/// The data path reads an immutable snapshot of the configuration and locks only the peer whose packet it
/// holds, once for each run of packets of one peer.
pub struct Engine {
    /// What the data path sees.
    snapshot: ArcSwap<Snapshot>,
    /// What [`Snapshot`] is made from; locked only while something is configured.
    config: Mutex<Config>,
    tally: Tally,
    mtu: AtomicU16,
    handshakes_per_second: u64,
    limits: MessageLimits,
}

/// The configuration as the data path needs it.
#[derive(Default)]
struct Snapshot {
    identity: Option<Arc<Identity>>,
    by_key: HashMap<PublicKey, Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>, BuildHasherDefault<IndexHasher>>,
    routes: AllowedIps<Arc<Peer>>,
}

impl Engine {
    /// An engine without key and peers.
    pub fn new(options: EngineOptions) -> Self {
        Self {
            snapshot: ArcSwap::default(),
            config: Mutex::default(),
            tally: Tally::default(),
            mtu: AtomicU16::new(options.mtu),
            handshakes_per_second: options.handshakes_per_second,
            limits: options.limits,
        }
    }

    /// Tells the engine that the MTU of the TUN device is `mtu` bytes now.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// The MTU that the engine knows, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Encrypts `packets` from the TUN device, each for the peer that owns the longest prefix of its destination.
    /// Appends datagrams to `out`: ciphertext, or a handshake initiation while the packet waits.
    pub fn seal(&self, now: Moment, packets: &mut Packets, out: &mut Datagrams) {
        let snapshot = self.snapshot.load();
        let mtu = usize::from(self.mtu());
        let mut held = Held::default();
        for index in 0..packets.len() {
            let sealed = match Header::parse(packets.packet(index)) {
                None => Err(DropReason::MalformedOutbound),
                Some(header) => match snapshot.routes.owner(header.destination) {
                    None => Err(DropReason::NoPeer),
                    Some(peer) => held.state(peer).seal(now, packets.padded(index, mtu), self.limits, out),
                },
            };
            if let Err(reason) = sealed {
                self.tally.drop_one(reason);
            }
        }
    }

    /// Handles `datagrams` from the network. Appends decrypted packets to `out`, in the order of arrival, and
    /// answers to `replies`. Whatever does not pass is dropped and counted.
    pub fn open<'a>(
        &self,
        now: Moment,
        datagrams: impl IntoIterator<Item = (SocketAddr, &'a [u8])>,
        out: &mut Packets,
        replies: &mut Datagrams,
    ) {
        let snapshot = self.snapshot.load();
        let mut held = Held::default();
        for (source, datagram) in datagrams {
            if let Err(reason) =
                self.open_one(&snapshot, &mut held, now, (source, datagram), (&mut *out, &mut *replies))
            {
                self.tally.drop_one(reason);
            }
        }
    }

    /// Does what is due: handshake retries and renewals, keepalives. To be called about four times per second,
    /// which is the resolution of boringtun's timers.
    pub fn tick(&self, now: Moment, out: &mut Datagrams) {
        let snapshot = self.snapshot.load();
        if let Some(identity) = &snapshot.identity {
            identity.admission.tick(now.instant);
        }
        for peer in snapshot.by_key.values() {
            peer.lock().tick(now, out);
        }
    }

    /// Starts a handshake with `peer` unless one is on its way or its endpoint is unknown. Says whether there is
    /// such a peer.
    pub fn initiate_handshake(&self, now: Moment, peer: &PublicKey, out: &mut Datagrams) -> bool {
        let snapshot = self.snapshot.load();
        let Some(peer) = snapshot.by_key.get(peer) else { return false };
        peer.lock().initiate(now, out);
        true
    }

    /// The public key, if a private key is set.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.snapshot.load().identity.as_ref().map(|identity| identity.public)
    }

    /// What was dropped and why.
    pub fn counters(&self) -> Counters {
        self.tally.snapshot()
    }

    /// The state of every peer.
    pub fn peers(&self, now: Moment) -> BTreeMap<PublicKey, PeerStatus> {
        self.config.lock().status(now)
    }

    /// Counts what the shell around the engine had to drop.
    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        self.tally.drop_many(reason, count);
    }

    fn open_one<'s>(
        &self,
        snapshot: &'s Snapshot,
        held: &mut Held<'s>,
        now: Moment,
        (source, datagram): (SocketAddr, &[u8]),
        (out, replies): (&mut Packets, &mut Datagrams),
    ) -> Result<(), DropReason> {
        if datagram.len() > LARGEST_DATAGRAM {
            return Err(DropReason::OversizedDatagram);
        }
        let identity = snapshot.identity.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let mut cookie = [0; COOKIE_REPLY];
        match identity.admission.check(now.instant, source, datagram, &mut cookie) {
            Verdict::Refuse(reason) => Err(reason),
            Verdict::Challenge => {
                self.tally.cookie_replies.fetch_add(1, Ordering::Relaxed);
                replies.push(source, &cookie);
                Err(DropReason::HandshakeRateLimited)
            }
            Verdict::Admit(Packet::PacketData(data)) => {
                let peer = snapshot.session_owner(data.receiver_idx)?;
                let owns = |address: IpAddr| {
                    snapshot.routes.owner(address).is_some_and(|owner| Arc::ptr_eq(owner, peer))
                };
                let state = held.state(peer);
                state.open(now, (source, datagram), data.receiver_idx, self.limits, owns, (out, replies))
            }
            Verdict::Admit(Packet::HandshakeInit(message)) => {
                let half = parse_handshake_anon(&identity.secret, &identity.secret_public, &message)
                    .map_err(|_| DropReason::InvalidHandshake)?;
                let peer = PublicKey::from_bytes(&half.peer_static_public)
                    .ok()
                    .and_then(|key| snapshot.by_key.get(&key))
                    .ok_or(DropReason::UnknownPeer)?;
                held.state(peer).answer(now, source, datagram, replies)
            }
            Verdict::Admit(Packet::HandshakeResponse(message)) => {
                let peer = snapshot.session_owner(message.receiver_idx)?;
                held.state(peer).complete(now, source, datagram, replies)
            }
            Verdict::Admit(Packet::PacketCookieReply(message)) => {
                held.state(snapshot.session_owner(message.receiver_idx)?).cookie(datagram)
            }
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// The peer that a session index was handed out for: its lowest byte counts that peer's sessions.
    fn session_owner(&self, index: u32) -> Result<&Arc<Peer>, DropReason> {
        self.by_index.get(&(index >> 8)).ok_or(DropReason::UnknownIndex)
    }
}

/// The lock of the peer whose packet came last, kept for the next one: packets come in runs.
#[derive(Default)]
struct Held<'s> {
    lock: Option<(&'s Peer, MutexGuard<'s, PeerState>)>,
    /// Packets since somebody else could have it.
    packets: u32,
}

impl<'s> Held<'s> {
    /// So many packets take about 20 microseconds: that long the other direction of a peer may have to wait.
    const FAIR_AFTER: u32 = 16;

    fn state(&mut self, peer: &'s Peer) -> &mut PeerState {
        self.packets += 1;
        match &mut self.lock {
            Some((held, guard)) if std::ptr::eq(*held, peer) => {
                if self.packets >= Self::FAIR_AFTER {
                    self.packets = 0;
                    MutexGuard::bump(guard);
                }
            }
            // The old lock goes first: two threads that each hold one and want the other's would wait forever.
            _ => {
                self.lock = None;
                self.packets = 0;
            }
        }
        &mut self.lock.get_or_insert_with(|| (peer, peer.lock())).1
    }
}

/// For session indices, which we chose at random ourselves: they are their own hash.
#[derive(Default)]
struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        // Spread over all bits: the table takes some from each end.
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, index: u32) {
        self.0 = index.into();
    }
}
