//! Runs of packets of one flow: what is looked up for the first holds for all, and is accounted for at the end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::clock::Now;
use super::packet::Header;
use super::peer::Peer;
use super::peer_path::SendPath;
use super::session::{MessageLimits, Session};
use super::snapshot::Snapshot;
use crate::batch::{Datagrams, Packets, Span};
use crate::counters::DropReason;
use crate::message::{DATA_HEADER, DATA_OVERHEAD};

/// What does not change within one batch.
pub(super) struct Batch<'s> {
    pub(super) snapshot: &'s Snapshot,
    pub(super) now: Now,
    pub(super) limits: MessageLimits,
}

/// Packets to one destination.
pub(super) struct Outbound<'s> {
    destination: IpAddr,
    peer: &'s Peer,
    path: Option<SendPath>,
    bytes: u64,
    /// The last counter that was used.
    counter: u64,
}

impl<'s> Outbound<'s> {
    /// Looks up where `destination` is.
    pub(super) fn begin(batch: &Batch<'s>, destination: IpAddr) -> Result<Self, DropReason> {
        let peer: &Peer = batch.snapshot.routes.owner(destination).ok_or(DropReason::NoPeer)?;
        let path = peer.path.send_path(batch.now)?;
        Ok(Self { destination, peer, path, bytes: 0, counter: 0 })
    }

    pub(super) fn leads_to(&self, destination: IpAddr) -> bool {
        self.destination == destination
    }

    /// Seals packet `index` where it lies, or queues it until there is a session.
    pub(super) fn seal(
        &mut self,
        batch: &Batch<'_>,
        (packets, index, mtu): (&mut Packets, usize, usize),
        places: &mut Vec<(Span, SocketAddr)>,
        handshakes: &mut Datagrams,
    ) -> Result<(), DropReason> {
        let (span, datagram) = packets.datagram_mut(index, mtu);
        let Some(path) = &self.path else {
            let packet = &datagram[DATA_HEADER..datagram.len() + DATA_HEADER - DATA_OVERHEAD];
            return self.peer.queue(batch.now, packet, batch.limits, handshakes);
        };
        match path.session.seal(datagram, batch.limits) {
            Ok(counter) => self.counter = counter,
            Err(reason) => {
                self.peer.initiate(batch.now, handshakes);
                return Err(reason);
            }
        }
        self.bytes += span.len as u64;
        places.push((span, path.endpoint));
        Ok(())
    }

    pub(super) fn end(self, batch: &Batch<'_>, handshakes: &mut Datagrams) {
        if let Some(path) = self.path.filter(|_| self.bytes > 0) {
            let last = (&*path.session, self.counter);
            self.peer.sent_data(batch.now, self.bytes, last, batch.limits, handshakes);
        }
    }
}

/// Transport data of one session from one address.
pub(super) struct Inbound<'s> {
    peer: &'s Arc<Peer>,
    session: Arc<Session>,
    from: SocketAddr,
    /// The last inner source that was found to be the peer's.
    owned: Option<IpAddr>,
    /// Authenticated bytes and datagrams, and how many of the latter held something.
    bytes: u64,
    datagrams: u64,
    packets: u64,
}

impl<'s> Inbound<'s> {
    /// Looks up the session with our index `local`.
    pub(super) fn begin(batch: &Batch<'s>, from: SocketAddr, local: u32) -> Result<Self, DropReason> {
        let peer = batch.snapshot.session_owner(local)?;
        let session = peer.path.session(batch.now, local).ok_or(DropReason::NoSession)?;
        Ok(Self { peer, session, from, owned: None, bytes: 0, datagrams: 0, packets: 0 })
    }

    pub(super) fn is_of(&self, from: SocketAddr, local: u32) -> bool {
        self.session.local == local && self.from == from
    }

    /// Opens `datagram` where it lies. Returns the length of the packet behind the header, `None` for a keepalive.
    pub(super) fn open(
        &mut self,
        batch: &Batch<'_>,
        datagram: &mut [u8],
    ) -> Result<Option<usize>, DropReason> {
        let bytes = datagram.len() as u64;
        let packet = self.session.open(datagram, batch.limits).inspect_err(|reason| {
            if *reason == DropReason::Forged {
                self.peer.path.received_forged(self.from);
            }
        })?;
        self.bytes += bytes;
        self.datagrams += 1;
        if packet.is_empty() {
            return Ok(None);
        }
        self.packets += 1;
        let header = Header::parse(packet).ok_or(DropReason::MalformedInbound)?;
        if self.owned != Some(header.source) {
            let owner = batch.snapshot.routes.owner(header.source);
            if !owner.is_some_and(|owner| Arc::ptr_eq(owner, self.peer)) {
                return Err(DropReason::SourceMismatch);
            }
            self.owned = Some(header.source);
        }
        Ok(Some(header.len))
    }

    pub(super) fn end(self, batch: &Batch<'_>, replies: &mut Datagrams) {
        if self.datagrams == 0 {
            return;
        }
        let (now, peer) = (batch.now, self.peer);
        peer.path.received(now, self.from, self.bytes, self.datagrams);
        if self.packets > 0 {
            peer.path.timers.keepalive_due_since.begin(now);
            self.session.used.begin(now);
        }
        peer.confirm(now, &self.session, batch.limits, replies);
    }
}
