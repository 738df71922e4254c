//! Why packets were dropped, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why the engine or the interface dropped a packet or a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// From the TUN: not an IPv4 or IPv6 packet, or cut short.
    MalformedOutbound,
    /// From the TUN: no peer's allowed IPs hold the destination.
    NoPeer,
    /// From the TUN: the peer has no endpoint yet.
    NoEndpoint,
    /// The interface has no private key.
    NoPrivateKey,
    /// The message type is unknown, or its length does not fit its type.
    MalformedDatagram,
    /// Longer than the largest UDP payload, or cut by the receive buffer.
    OversizedDatagram,
    /// The receiver index is none of ours.
    UnknownIndex,
    /// A handshake from a public key that is not a peer.
    UnknownPeer,
    /// A handshake message with a wrong first MAC: not meant for our public key.
    InvalidMac,
    /// A handshake that does not decrypt, is older than the last one, or answers nothing that was asked.
    InvalidHandshake,
    /// A handshake message over the limit, whose sender was not yet proven or sends too many.
    HandshakeRateLimited,
    /// A handshake initiation of a peer that sends too many; others are not affected.
    PeerHandshakeRateLimited,
    /// From the TUN: too many packets wait for handshakes with all peers together.
    StagedPacketsLimited,
    /// Transport data for a session that has ended or never was; or, from the TUN, too many packets waited for one.
    NoSession,
    /// Transport data that does not authenticate.
    Forged,
    /// Transport data with a counter that was used before or is too old.
    Replay,
    /// Transport data beyond the message limit of one session (`REJECT_AFTER_MESSAGES`).
    MessageLimit,
    /// Authenticated, but what is inside is no IP packet or claims to be longer than it is.
    MalformedInbound,
    /// Authenticated, but the source address is not in the sender's allowed IPs, by the longest prefix.
    SourceMismatch,
    /// The TUN device refused the packet, for example because the link is down.
    TunWrite,
    /// The UDP socket refused the datagram, for example because there is no route.
    UdpSend,
}

impl DropReason {
    /// Every reason, in the order of declaration.
    pub const ALL: [Self; 21] = [
        Self::MalformedOutbound,
        Self::NoPeer,
        Self::NoEndpoint,
        Self::NoPrivateKey,
        Self::MalformedDatagram,
        Self::OversizedDatagram,
        Self::UnknownIndex,
        Self::UnknownPeer,
        Self::InvalidMac,
        Self::InvalidHandshake,
        Self::HandshakeRateLimited,
        Self::PeerHandshakeRateLimited,
        Self::StagedPacketsLimited,
        Self::NoSession,
        Self::Forged,
        Self::Replay,
        Self::MessageLimit,
        Self::MalformedInbound,
        Self::SourceMismatch,
        Self::TunWrite,
        Self::UdpSend,
    ];

    /// The name as a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::MalformedOutbound => "malformed_outbound",
            Self::NoPeer => "no_peer",
            Self::NoEndpoint => "no_endpoint",
            Self::NoPrivateKey => "no_private_key",
            Self::MalformedDatagram => "malformed_datagram",
            Self::OversizedDatagram => "oversized_datagram",
            Self::UnknownIndex => "unknown_index",
            Self::UnknownPeer => "unknown_peer",
            Self::InvalidMac => "invalid_mac",
            Self::InvalidHandshake => "invalid_handshake",
            Self::HandshakeRateLimited => "handshake_rate_limited",
            Self::PeerHandshakeRateLimited => "peer_handshake_rate_limited",
            Self::StagedPacketsLimited => "staged_packets_limited",
            Self::NoSession => "no_session",
            Self::Forged => "forged",
            Self::Replay => "replay",
            Self::MessageLimit => "message_limit",
            Self::MalformedInbound => "malformed_inbound",
            Self::SourceMismatch => "source_mismatch",
            Self::TunWrite => "tun_write",
            Self::UdpSend => "udp_send",
        }
    }
}

/// Drops since the interface was created, by reason, and the number of cookie replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    dropped: [u64; DropReason::ALL.len()],
    /// Cookie replies sent because of too many handshakes per second.
    pub cookie_replies: u64,
    /// Removed peers whose newest timestamp was forgotten, because there were too many of them.
    pub forgotten_timestamps: u64,
}

impl Counters {
    /// How many packets and datagrams were dropped for `reason`.
    pub const fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().map(|reason| (reason, self.dropped(reason)))
    }
}

/// The live counters behind [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct AtomicCounters {
    dropped: [AtomicU64; DropReason::ALL.len()],
    pub(crate) cookie_replies: AtomicU64,
}

impl AtomicCounters {
    pub(crate) fn drop_one(&self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(crate) fn drop_many(&self, reason: DropReason, count: u64) {
        self.dropped[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let mut counters =
            Counters { cookie_replies: self.cookie_replies.load(Ordering::Relaxed), ..Counters::default() };
        for (value, live) in counters.dropped.iter_mut().zip(&self.dropped) {
            *value = live.load(Ordering::Relaxed);
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_place_and_label() {
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let labels: std::collections::BTreeSet<_> = DropReason::ALL.map(DropReason::label).into();
        assert_eq!(labels.len(), DropReason::ALL.len());
    }

    #[test]
    fn a_drop_is_counted_under_its_reason_only() {
        let counters = AtomicCounters::default();
        counters.drop_one(DropReason::Replay);
        counters.drop_many(DropReason::Replay, 2);
        let counters = counters.snapshot();
        assert_eq!(counters.dropped(DropReason::Replay), 3);
        assert_eq!(counters.iter().map(|(_, count)| count).sum::<u64>(), 3);
    }
}
