//! Limits the handshake messages that are worth the expensive arithmetic: by their first MAC, then, under load, by
//! cookies and a rate per source (WireGuard paper, section 5.3).

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519;
use parking_lot::Mutex;

use crate::counters::DropReason;
use crate::message::COOKIE_REPLY;

/// Handshakes per second from one source while under load, as the kernel's `ratelimiter.c` has it.
const PER_SOURCE_PER_SECOND: u32 = 20;
/// Handshakes that one source may send at once.
const PER_SOURCE_BURST: u32 = 5;
/// Sources that are tracked at most; while full, unknown sources are refused.
const SOURCES: usize = 4096;

/// What to do with a datagram.
pub(crate) enum Decision<'a> {
    Admit(Packet<'a>),
    /// Send the cookie reply that was written, drop the message.
    Challenge,
    Refuse(DropReason),
}

/// Limits handshake messages. Transport data passes unchecked.
pub(crate) struct HandshakeLimiter {
    /// Looks at the first MAC alone. What boringtun counts itself is of no use: its limit can't be changed.
    calm: RateLimiter,
    /// Asks for a cookie as well.
    under_load: RateLimiter,
    /// Keys the hash that gives one cookie per address *and port*; boringtun takes only an address.
    hasher: RandomState,
    /// From so many handshake messages per second on, senders have to prove their address.
    limit: AtomicU64,
    /// Handshake messages in this second.
    seen: AtomicU64,
    sources: Mutex<HashMap<IpAddr, Bucket>>,
    second: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Time credit; one handshake costs `1 / PER_SOURCE_PER_SECOND` of a second.
    credit: Duration,
    at: Instant,
}

impl HandshakeLimiter {
    /// Limits handshakes with the static key `public`: from `limit` messages per second on, senders have to prove their address.
    pub(crate) fn new(public: &x25519::PublicKey, limit: u64) -> Self {
        Self {
            calm: RateLimiter::new(public, u64::MAX),
            under_load: RateLimiter::new(public, 0),
            hasher: RandomState::new(),
            limit: AtomicU64::new(limit),
            seen: AtomicU64::new(0),
            sources: Mutex::new(HashMap::new()),
            second: Mutex::new(None),
        }
    }

    /// Another limit, from the next message on.
    pub(crate) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Checks `datagram` from `source`; a cookie reply is written to `reply`.
    pub(crate) fn check<'a>(
        &self,
        now: Instant,
        source: SocketAddr,
        datagram: &'a [u8],
        reply: &mut [u8; COOKIE_REPLY],
    ) -> Decision<'a> {
        let packet = match self.calm.verify_packet(None, datagram, reply) {
            Ok(packet) => packet,
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => {
                return Decision::Refuse(DropReason::InvalidMac);
            }
            Err(_) => return Decision::Refuse(DropReason::MalformedDatagram),
        };
        // Only the two handshake messages can be asked for a cookie; for data this would be wasted on each packet.
        if !matches!(packet, Packet::HandshakeInit(_) | Packet::HandshakeResponse(_))
            || self.seen.fetch_add(1, Ordering::Relaxed) < self.limit.load(Ordering::Relaxed)
        {
            return Decision::Admit(packet);
        }
        match self.under_load.verify_packet(Some(self.cookie_identity(source)), datagram, reply) {
            Ok(packet) if self.spend(now, source.ip()) => Decision::Admit(packet),
            Ok(_) => Decision::Refuse(DropReason::HandshakeRateLimited),
            Err(TunnResult::WriteToNetwork(_)) => Decision::Challenge,
            Err(_) => Decision::Refuse(DropReason::MalformedDatagram),
        }
    }

    /// Starts a new second if one has passed. To be called a few times per second.
    pub(crate) fn tick(&self, now: Instant) {
        let mut second = self.second.lock();
        if second.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
            *second = Some(now);
            self.seen.store(0, Ordering::Relaxed);
            self.sources.lock().retain(|_, bucket| bucket.refilled(now) < Bucket::FULL);
        }
    }

    /// Represents address and port in the cookie. Behind one NAT address there may be an attacker and a peer:
    /// a cookie that holds for all ports of an address would let the one use what the other was given.
    fn cookie_identity(&self, source: SocketAddr) -> IpAddr {
        let half = |salt: u8| u128::from(self.hasher.hash_one((salt, source)));
        Ipv6Addr::from_bits(half(0) << 64 | half(1)).into()
    }

    fn spend(&self, now: Instant, source: IpAddr) -> bool {
        let source = match source {
            // One host usually has a whole /64.
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut sources = self.sources.lock();
        if sources.len() >= SOURCES && !sources.contains_key(&source) {
            return false;
        }
        let bucket = sources.entry(source).or_insert(Bucket { credit: Bucket::FULL, at: now });
        bucket.credit = bucket.refilled(now);
        bucket.at = now;
        match bucket.credit.checked_sub(Bucket::COST) {
            Some(rest) => {
                bucket.credit = rest;
                true
            }
            None => false,
        }
    }
}

impl Bucket {
    const COST: Duration = Duration::from_millis(1000 / PER_SOURCE_PER_SECOND as u64);
    const FULL: Duration =
        Duration::from_millis(1000 / PER_SOURCE_PER_SECOND as u64 * PER_SOURCE_BURST as u64);

    fn refilled(self, now: Instant) -> Duration {
        self.credit.saturating_add(now.saturating_duration_since(self.at)).min(Self::FULL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> HandshakeLimiter {
        HandshakeLimiter::new(&x25519::PublicKey::from([9; 32]), 0)
    }

    #[test]
    fn a_cookie_belongs_to_one_address_and_port() {
        let limiter = limiter();
        let at = |port| limiter.cookie_identity(SocketAddr::from(([192, 0, 2, 1], port)));
        assert_eq!(at(1000), at(1000));
        assert_ne!(at(1000), at(1001));
    }

    #[test]
    fn one_source_cannot_spend_more_than_its_rate() {
        let (limiter, start) = (limiter(), Instant::now());
        let source = IpAddr::from([192, 0, 2, 1]);
        let spent = (0..100).filter(|_| limiter.spend(start, source)).count();
        assert_eq!(spent, PER_SOURCE_BURST as usize);
        assert!(limiter.spend(start, IpAddr::from([192, 0, 2, 2])), "another source has its own credit");
        let later = start + Duration::from_millis(50);
        assert!(limiter.spend(later, source), "one more after a twentieth of a second");
        assert!(!limiter.spend(later, source));
    }

    #[test]
    fn one_ipv6_network_is_one_source() {
        let (limiter, now) = (limiter(), Instant::now());
        let spent = (0..100u16)
            .filter(|host| limiter.spend(now, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, *host, 0, 0, 1).into()));
        assert_eq!(spent.count(), PER_SOURCE_BURST as usize);
    }

    #[test]
    fn the_table_of_sources_is_bounded_and_empties_again() {
        let (limiter, now) = (limiter(), Instant::now());
        for host in 0..u32::try_from(SOURCES).unwrap() + 100 {
            limiter.spend(now, std::net::Ipv4Addr::from_bits(host).into());
        }
        assert_eq!(limiter.sources.lock().len(), SOURCES);
        limiter.tick(now + Duration::from_secs(2));
        assert_eq!(limiter.sources.lock().len(), 0);
    }
}
