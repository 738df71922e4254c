//! The engine: datagrams in, packets and datagrams out, and the reverse; no sockets, no threads.

mod allowed_ips;
mod cipher;
mod clock;
mod config;
mod handshake;
mod handshake_limiter;
mod identity;
mod initiator;
mod newest_timestamps;
mod noise;
mod packet;
mod peer;
mod peer_path;
mod run;
mod session;
mod snapshot;
mod staged_packets;
#[cfg(test)]
mod tests;
mod timers;
mod timestamp;
mod window;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use arc_swap::ArcSwap;
use boringtun::noise::Packet;
use keyring::{PresharedKey, PrivateKey, PublicKey};
use parking_lot::Mutex;

pub use self::clock::ClockReading;
use self::clock::Origin;
pub(crate) use self::config::Config;
use self::handshake_limiter::Decision;
use self::identity::Identity;
pub use self::initiator::{InitiationError, Initiator, Received, answered_index, initiation_from};
use self::noise::Opened;
use self::packet::Header;
use self::run::{Batch, Inbound, Outbound};
use self::session::MessageLimits;
use self::snapshot::Snapshot;
use crate::batch::{Datagrams, Packets, Span};
use crate::counters::{AtomicCounters, Counters, DropReason};
use crate::error::ChangeError;
use crate::message::{COOKIE_REPLY, DATA, DATA_HEADER, DATA_OVERHEAD};
use wireguard::{PeerOp, PeerState};

/// The largest payload of a UDP datagram.
const LARGEST_DATAGRAM: usize = 65_535;

/// The options of a new engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// MTU of the TUN device in bytes: padding never makes a packet longer than this.
    pub mtu: u16,
    /// Handshake messages per second that are worked on without asking the sender for a cookie. With more than five times as
    /// many peers it is a fifth of their number: all of them come back within seconds when this node was away.
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
/// The data path reads immutable snapshots, of the configuration and of each peer's sessions; no lock is held while
/// a packet is sealed or opened, and the two directions share none.
pub struct Engine {
    /// What the data path sees.
    snapshot: ArcSwap<Snapshot>,
    /// What [`Snapshot`] is derived from; locked only while something is configured.
    config: Mutex<Config>,
    counters: AtomicCounters,
    mtu: AtomicU16,
    handshakes_per_second: u64,
    limits: MessageLimits,
    origin: Origin,
    /// Kept from batch to batch for its memory.
    places: Mutex<Vec<(Span, SocketAddr)>>,
}

impl Engine {
    /// An engine without key and peers.
    pub fn new(options: EngineOptions) -> Self {
        Self {
            snapshot: ArcSwap::default(),
            config: Mutex::default(),
            counters: AtomicCounters::default(),
            mtu: AtomicU16::new(options.mtu),
            handshakes_per_second: options.handshakes_per_second,
            limits: options.limits,
            origin: Origin::default(),
            places: Mutex::default(),
        }
    }

    /// Sets or clears the private key. Another key ends every session; the same key changes nothing. A peer with our own
    /// public key is removed, as the kernel does.
    pub fn set_private_key(&self, private: Option<PrivateKey>) {
        let mut config = self.config.lock();
        if !config.set_private_key(private, self.handshakes_per_second) {
            return;
        }
        // Published first, so that no datagram for the new key is checked with the old one once the sessions are new.
        self.publish(&config);
        config.restart();
    }

    /// Applies `ops` in their order, all or none: the data path sees them at once. An error names the first one that is
    /// refused, and then nothing has changed.
    pub fn apply(&self, ops: Vec<PeerOp>) -> Result<(), ChangeError> {
        self.configure(|_| ops)
    }

    /// Applies the operations that `plan` derives from the configuration as it is, which is locked meanwhile.
    pub(crate) fn configure(&self, plan: impl FnOnce(&Config) -> Vec<PeerOp>) -> Result<(), ChangeError> {
        let mut config = self.config.lock();
        let ops = plan(&config);
        let removed = config.apply(ops)?;
        config.limit_handshakes(self.handshakes_per_second);
        self.publish(&config);
        // A thread that still holds the last snapshot finds no session anymore.
        for peer in &removed {
            peer.restart(None);
        }
        Ok(())
    }

    /// Runs `reader` on the private key, for the UAPI socket, which has to show it.
    pub(crate) fn with_private_key<R>(&self, reader: impl FnOnce(Option<&PrivateKey>) -> R) -> R {
        reader(self.config.lock().private_key())
    }

    /// A copy of the preshared key with `peer`, for the UAPI socket, which has to show it.
    pub(crate) fn preshared_key(&self, peer: &PublicKey) -> Option<PresharedKey> {
        self.config.lock().preshared_key(peer)
    }

    fn publish(&self, config: &Config) {
        self.snapshot.store(Arc::new(config.snapshot()));
    }

    /// Sets the MTU of the TUN device in bytes, as far as the engine depends on it.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// The MTU in bytes, as last set.
    pub fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Encrypts `packets` from the TUN device, each for the peer that owns the longest prefix of its destination, and
    /// moves them to `out`, where they are datagrams. Handshake initiations for packets that have to wait go there too.
    pub fn seal(&self, now: ClockReading, packets: &mut Packets, out: &mut Datagrams) {
        let snapshot = self.snapshot.load();
        let batch = Batch { snapshot: &snapshot, now: self.origin.now(now), limits: self.limits };
        let mtu = usize::from(self.mtu());
        let (mut places, mut handshakes) = (std::mem::take(&mut *self.places.lock()), Datagrams::new());
        let mut run: Option<Outbound<'_>> = None;
        for index in 0..packets.len() {
            let sealed = match Header::parse(packets.packet(index)) {
                None => Err(DropReason::MalformedOutbound),
                Some(header) => {
                    if let Some(other) = run.take_if(|run| !run.leads_to(header.destination)) {
                        other.end(&batch, &mut handshakes);
                    }
                    open_run(&mut run, || Outbound::begin(&batch, header.destination))
                        .and_then(|run| run.seal(&batch, (packets, index, mtu), &mut places, &mut handshakes))
                }
            };
            if let Err(reason) = sealed {
                self.counters.drop_one(reason);
            }
        }
        if let Some(run) = run {
            run.end(&batch, &mut handshakes);
        }
        out.take(packets, &mut places);
        *self.places.lock() = places;
        handshakes.iter().for_each(|(to, bytes)| out.push(to, bytes));
    }

    /// Handles `datagrams` from the network. Appends decrypted packets to `out`, in the order of arrival, and
    /// answers to `replies`. Whatever does not pass is dropped and counted.
    pub fn open<'a>(
        &self,
        now: ClockReading,
        datagrams: impl IntoIterator<Item = (SocketAddr, &'a [u8])>,
        out: &mut Packets,
        replies: &mut Datagrams,
    ) {
        self.opening(now, replies, |opening| {
            for (source, datagram) in datagrams {
                if datagram.len() > LARGEST_DATAGRAM {
                    self.counters.drop_one(DropReason::OversizedDatagram);
                    continue;
                }
                let place = &mut out.spare_datagram(datagram.len())[..datagram.len()];
                place.copy_from_slice(datagram);
                if let Some(len) = opening(source, place) {
                    out.commit(len);
                }
            }
        });
    }

    /// The same without a copy: the packets stay where they are in the datagrams at `places` in `bytes`, and where that
    /// is goes to `opened`.
    pub(crate) fn open_in_place(
        &self,
        now: ClockReading,
        bytes: &mut [u8],
        places: impl IntoIterator<Item = (Span, SocketAddr)>,
        opened: &mut Vec<Span>,
        replies: &mut Datagrams,
    ) {
        self.opening(now, replies, |opening| {
            for (Span { start, len }, source) in places {
                if let Some(len) = opening(source, &mut bytes[start..start + len]) {
                    opened.push(Span { start: start + DATA_HEADER, len });
                }
            }
        });
    }

    /// Gives `body` a function that handles one datagram and returns the length of the packet in it, if it has one
    /// and passes. The packet is then behind the header.
    fn opening(
        &self,
        now: ClockReading,
        replies: &mut Datagrams,
        body: impl FnOnce(&mut dyn FnMut(SocketAddr, &mut [u8]) -> Option<usize>),
    ) {
        let snapshot = self.snapshot.load();
        let batch = Batch { snapshot: &snapshot, now: self.origin.now(now), limits: self.limits };
        let mut run = None;
        body(&mut |source, datagram| {
            self.open_one(&batch, &mut run, (source, datagram), replies).unwrap_or_else(|reason| {
                self.counters.drop_one(reason);
                None
            })
        });
        if let Some(run) = run {
            run.end(&batch, replies);
        }
    }

    /// Does what is due: handshake retries and renewals, keepalives, the end of sessions. To be called about four times
    /// per second: the shortest interval is that of five seconds between two attempts.
    pub fn tick(&self, now: ClockReading, out: &mut Datagrams) {
        let snapshot = self.snapshot.load();
        if let Some(identity) = &snapshot.identity {
            identity.limiter.tick(now.instant);
        }
        for peer in snapshot.by_key.values() {
            peer.tick(self.origin.now(now), self.limits, out);
        }
    }

    /// Initiates a handshake with `peer` unless its endpoint is unknown, or one was begun with this endpoint in the last
    /// 900 ms. Returns whether there is such a peer.
    pub fn initiate_handshake(&self, now: ClockReading, peer: &PublicKey, out: &mut Datagrams) -> bool {
        let snapshot = self.snapshot.load();
        let Some(peer) = snapshot.by_key.get(peer) else { return false };
        peer.initiate_anew(self.origin.now(now), out);
        true
    }

    /// The public key, if a private key is set.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.snapshot.load().identity.as_ref().map(|identity| identity.public)
    }

    /// What was dropped and why.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.snapshot();
        counters.forgotten_timestamps = self.config.lock().forgotten_timestamps();
        counters
    }

    /// The state of every peer.
    pub fn peers(&self, now: ClockReading) -> BTreeMap<PublicKey, PeerState> {
        self.config.lock().state(now)
    }

    /// Counts what the shell around the engine had to drop.
    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        self.counters.drop_many(reason, count);
    }

    fn open_one<'s>(
        &self,
        batch: &Batch<'s>,
        run: &mut Option<Inbound<'s>>,
        (source, datagram): (SocketAddr, &mut [u8]),
        replies: &mut Datagrams,
    ) -> Result<Option<usize>, DropReason> {
        let identity = batch.snapshot.identity.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let Some(receiver) = data_receiver(datagram) else {
            return self.slow_path(batch, identity, (source, datagram), replies).map(|()| None);
        };
        if let Some(other) = run.take_if(|run| !run.is_of(source, receiver)) {
            other.end(batch, replies);
        }
        open_run(run, || Inbound::begin(batch, source, receiver))?.open(batch, datagram)
    }

    /// Everything but transport data.
    fn slow_path(
        &self,
        batch: &Batch<'_>,
        identity: &Identity,
        (source, datagram): (SocketAddr, &[u8]),
        replies: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let (snapshot, now) = (batch.snapshot, batch.now);
        let mut cookie = [0; COOKIE_REPLY];
        match identity.limiter.check(now.reading.instant, source, datagram, &mut cookie) {
            Decision::Refuse(reason) => Err(reason),
            Decision::Challenge => {
                self.counters.cookie_replies.fetch_add(1, Ordering::Relaxed);
                replies.push(source, &cookie);
                Err(DropReason::HandshakeRateLimited)
            }
            Decision::Admit(Packet::HandshakeInit(_)) => {
                let opened = Opened::read(identity, exactly(datagram)?)?;
                let peer = PublicKey::from_bytes(&opened.peer)
                    .ok()
                    .and_then(|key| snapshot.by_key.get(&key))
                    .ok_or(DropReason::UnknownPeer)?;
                peer.answer(now, source, opened, replies)
            }
            Decision::Admit(Packet::HandshakeResponse(message)) => {
                let peer = snapshot.session_owner(message.receiver_idx)?;
                peer.complete(now, source, exactly(datagram)?, batch.limits, replies)
            }
            Decision::Admit(Packet::PacketCookieReply(message)) => {
                snapshot.session_owner(message.receiver_idx)?.cookie(now, exactly(datagram)?)
            }
            // `data_receiver` takes all of these.
            Decision::Admit(Packet::PacketData(_)) => Err(DropReason::MalformedDatagram),
        }
    }
}

/// The receiver's index, if this is transport data long enough to be that: zeros behind the type, and a tag.
fn data_receiver(datagram: &[u8]) -> Option<u32> {
    let header: &[u8; DATA_HEADER] = datagram.first_chunk()?;
    (header[..4] == [DATA, 0, 0, 0] && datagram.len() >= DATA_OVERHEAD)
        .then(|| u32::from_le_bytes([header[4], header[5], header[6], header[7]]))
}

/// The datagram as a message of a known length, which the handshake limiter has checked.
fn exactly<const LEN: usize>(datagram: &[u8]) -> Result<&[u8; LEN], DropReason> {
    datagram.try_into().map_err(|_| DropReason::MalformedDatagram)
}

/// The current run, or a new one.
fn open_run<R>(
    run: &mut Option<R>,
    begin: impl FnOnce() -> Result<R, DropReason>,
) -> Result<&mut R, DropReason> {
    match run {
        Some(run) => Ok(run),
        none => Ok(none.insert(begin()?)),
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}
