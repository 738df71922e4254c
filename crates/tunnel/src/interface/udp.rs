//! The two UDP sockets of an interface, one per address family, on one port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::mmsg::{Message, SEND_BATCH, allow_fragments, send};
use crate::batch::Datagrams;
use crate::error::TunnelError;

/// Room for bursts in the kernel, in bytes; beyond the limits for ordinary users, hence set by force.
const SOCKET_BUFFER: usize = 4 << 20;
/// Ports to try until one is free for both families.
const PORT_ATTEMPTS: u32 = 16;
/// The most segments that the kernel cuts from one message (`UDP_MAX_SEGMENTS` before Linux 6.9).
const MAX_SEGMENTS: usize = 64;
/// The most payload in one message: what IPv4 can carry.
const MAX_PAYLOAD: usize = 65_507;
/// How long a full socket buffer may hold up a sender.
const SEND_TIMEOUT_SECONDS: i64 = 1;

/// Both sockets. An address family that the host does not have is left out.
#[derive(Debug)]
pub struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
    port: u16,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// Whether the kernel still cuts messages into segments for this socket.
    segmentation: AtomicBool,
}

impl Sockets {
    /// Binds both families to `port` in the namespace of the calling thread; for zero the kernel chooses.
    pub fn bind(port: u16, fwmark: u32) -> Result<Self, TunnelError> {
        let mut attempt = 0;
        loop {
            match Self::bind_once(port, fwmark) {
                Err(TunnelError::Udp { source: Errno::EADDRINUSE, .. }) if attempt < PORT_ATTEMPTS => {
                    attempt += 1;
                    if port != 0 {
                        // Our own last sockets on this port may be about to be closed by the receiving thread.
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                result => return result,
            }
        }
    }

    fn bind_once(port: u16, fwmark: u32) -> Result<Self, TunnelError> {
        let v4 = Socket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), fwmark)?;
        let port = v4.as_ref().map_or(Ok(port), Socket::port)?;
        let v6 = Socket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), fwmark)?;
        let port = v6.as_ref().map_or(Ok(port), Socket::port)?;
        if v4.is_none() && v6.is_none() {
            let operation = "find an address family";
            return Err(TunnelError::Udp { operation, port, source: Errno::EAFNOSUPPORT });
        }
        Ok(Self { v4, v6, port })
    }

    /// The port that both sockets are bound to.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The sockets, for receiving and waiting.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.v4, &self.v6].into_iter().flatten().map(|socket| socket.fd.as_fd())
    }

    /// Marks what is sent from now on (`SO_MARK`, socket(7)); needs `CAP_NET_ADMIN`.
    pub(super) fn set_fwmark(&self, fwmark: u32) -> Result<(), TunnelError> {
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            set(&socket.fd, sockopt::Mark, &fwmark, "set the mark", self.port)?;
        }
        Ok(())
    }

    /// Sends all of `datagrams`. Returns how many the kernel refused.
    pub(super) fn send(&self, datagrams: &Datagrams) -> u64 {
        let mut refused = 0;
        let mut messages = Messages::new(datagrams);
        while let Some(batch) = messages.next_batch(|to| self.segmentation(to)) {
            match self.socket(batch[0].to) {
                Some(socket) => refused += socket.send(batch),
                None => refused += batch.iter().map(datagrams_in).sum::<u64>(),
            }
        }
        refused
    }

    /// Sends `messages`. Returns how many datagrams the kernel refused. Where it can't cut a message into its datagrams,
    /// they are sent one by one.
    pub fn transmit(&self, messages: &[Message<'_>]) -> u64 {
        let same = |one: &Message<'_>, other: &Message<'_>| one.to.is_ipv4() == other.to.is_ipv4();
        let mut refused = 0;
        for batch in messages.chunk_by(same) {
            refused += match self.socket(batch[0].to) {
                Some(socket) => socket.send(batch),
                None => batch.iter().map(datagrams_in).sum(),
            };
        }
        refused
    }

    const fn socket(&self, to: SocketAddr) -> Option<&Socket> {
        if to.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    fn segmentation(&self, to: SocketAddr) -> bool {
        self.socket(to).is_some_and(|socket| socket.segmentation.load(Ordering::Relaxed))
    }
}

impl Socket {
    /// `None` if the host doesn't have the address family.
    fn bind(address: SocketAddr, fwmark: u32) -> Result<Option<Self>, TunnelError> {
        let port = address.port();
        let failed = |operation| move |source| TunnelError::Udp { operation, port, source };
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = match socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
            Err(Errno::EAFNOSUPPORT) => return Ok(None),
            result => result.map_err(failed("open a socket"))?,
        };
        if address.is_ipv6() {
            set(&fd, sockopt::Ipv6V6Only, &true, "keep IPv4 out of the IPv6 socket", port)?;
        }
        if address.is_ipv4() {
            allow_fragments(fd.as_fd()).map_err(failed("allow fragments"))?;
        }
        if fwmark != 0 {
            set(&fd, sockopt::Mark, &fwmark, "set the mark", port)?;
        }
        set(&fd, sockopt::SendTimeout, &TimeVal::new(SEND_TIMEOUT_SECONDS, 0), "set the send timeout", port)?;
        // Without these three everything still works, only slower.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER);
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SOCKET_BUFFER);
        let _ = setsockopt(&fd, sockopt::UdpGroSegment, &true);
        match bind(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
            Err(Errno::EADDRNOTAVAIL) => return Ok(None),
            result => result.map_err(failed("bind"))?,
        }
        Ok(Some(Self { fd, segmentation: AtomicBool::new(true) }))
    }

    fn port(&self) -> Result<u16, TunnelError> {
        let failed = |source| TunnelError::Udp { operation: "read the bound address", port: 0, source };
        let name: SockaddrStorage = getsockname(self.fd.as_raw_fd()).map_err(failed)?;
        let v4 = name.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
        let v6 = name.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port);
        v4.or(v6).ok_or(Errno::EAFNOSUPPORT).map_err(failed)
    }

    /// Sends `messages` and returns how many datagrams the kernel refused.
    fn send(&self, mut messages: &[Message<'_>]) -> u64 {
        let mut refused = 0;
        while let Some(first) = messages.first() {
            match send(self.fd.as_fd(), messages) {
                Ok(sent) => messages = &messages[sent.max(1)..],
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    refused += if first.segment.is_some() { self.send_singly(first, errno) } else { 1 };
                    messages = &messages[1..];
                }
            }
        }
        refused
    }

    /// Sends the segments of `message` one by one after the kernel refused to cut it with `errno`: a device
    /// on the way can't compute checksums (`EIO`), or segments are larger than its MTU (`EINVAL`).
    fn send_singly(&self, message: &Message<'_>, errno: Errno) -> u64 {
        if errno == Errno::EIO {
            self.segmentation.store(false, Ordering::Relaxed);
        }
        let segment = message.segment.map_or(message.bytes.len(), usize::from).max(1);
        let singles = message.bytes.chunks(segment);
        let sent =
            singles.map(|bytes| send(self.fd.as_fd(), &[Message { bytes, segment: None, ..*message }]));
        sent.map(|result| u64::from(result.is_err())).sum()
    }
}

/// Cuts a batch of datagrams into messages for one system call each.
struct Messages<'a> {
    datagrams: &'a Datagrams,
    /// The next datagram.
    next: usize,
    batch: Vec<Message<'a>>,
}

impl<'a> Messages<'a> {
    fn new(datagrams: &'a Datagrams) -> Self {
        Self { datagrams, next: 0, batch: Vec::with_capacity(SEND_BATCH.min(datagrams.len())) }
    }

    /// The next messages, all for one address family. `segmentation` says whether the kernel may cut messages
    /// to an address.
    fn next_batch(&mut self, segmentation: impl Fn(SocketAddr) -> bool) -> Option<&[Message<'a>]> {
        self.batch.clear();
        while self.batch.len() < SEND_BATCH && self.next < self.datagrams.len() {
            let (to, first) = self.datagrams.datagram(self.next);
            if self.batch.first().is_some_and(|message| message.to.is_ipv4() != to.is_ipv4()) {
                break;
            }
            let count =
                if segmentation(to) { self.datagrams.run(self.next, MAX_SEGMENTS, MAX_PAYLOAD) } else { 1 };
            let segment = if count > 1 { u16::try_from(first.len()).ok() } else { None };
            self.batch.push(Message { to, bytes: self.datagrams.joined(self.next, count), segment });
            self.next += count;
        }
        if self.batch.is_empty() { None } else { Some(&self.batch) }
    }
}

fn datagrams_in(message: &Message<'_>) -> u64 {
    message.segment.map_or(1, |segment| message.bytes.len().div_ceil(usize::from(segment).max(1)) as u64)
}

fn set<O: SetSockOpt>(
    fd: &OwnedFd,
    option: O,
    value: &O::Val,
    operation: &'static str,
    port: u16,
) -> Result<(), TunnelError> {
    setsockopt(fd, option, value).map_err(|source| TunnelError::Udp { operation, port, source })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn both_families_share_one_port() {
        let sockets = Sockets::bind(0, 0).unwrap();
        assert_ne!(sockets.port(), 0);
        assert_eq!(sockets.fds().count(), 2);
        let again = Sockets::bind(sockets.port(), 0);
        assert!(matches!(again, Err(TunnelError::Udp { source: Errno::EADDRINUSE, .. })), "{again:?}");
    }

    #[test]
    fn runs_of_equal_length_to_one_address_become_one_message() {
        let (a, b) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 3));
        let mut datagrams = Datagrams::new();
        for (to, len) in [(a, 100), (a, 100), (a, 60), (a, 100), (b, 100), (b, 200), (v6, 10), (v6, 10)] {
            datagrams.push(to, &vec![7; len]);
        }
        let cut = |segmentation: bool| {
            let mut messages = Messages::new(&datagrams);
            let mut seen = Vec::new();
            while let Some(batch) = messages.next_batch(|_| segmentation) {
                seen.push(batch.iter().map(|m| (m.to, m.bytes.len(), m.segment)).collect::<Vec<_>>());
            }
            seen
        };
        let v4 = vec![(a, 260, Some(100)), (a, 100, None), (b, 100, None), (b, 200, None)];
        assert_eq!(cut(true), [v4, vec![(v6, 20, Some(10))]]);
        assert_eq!(cut(false).concat().len(), 8);
    }

    #[test]
    fn a_long_run_is_cut_at_the_limits_of_the_kernel() {
        let to = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut datagrams = Datagrams::new();
        (0..130).for_each(|_| datagrams.push(to, &[1; 80]));
        (0..60).for_each(|_| datagrams.push(to, &[2; 1_452]));
        let mut messages = Messages::new(&datagrams);
        let batch = messages.next_batch(|_| true).unwrap();
        assert!(batch.iter().all(|m| m.bytes.len() <= MAX_PAYLOAD && datagrams_in(m) <= MAX_SEGMENTS as u64));
        assert_eq!(batch.iter().map(datagrams_in).collect::<Vec<_>>(), [64, 64, 2, 45, 15]);
    }

    #[test]
    fn refused_datagrams_are_counted_and_the_others_go_out() {
        let sockets = Sockets::bind(0, 0).unwrap();
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let forbidden = SocketAddr::from(([255, 255, 255, 255], 9));
        let mut datagrams = Datagrams::new();
        datagrams.push(forbidden, b"x");
        datagrams.push(receiver.local_addr().unwrap(), b"first");
        datagrams.push(forbidden, b"y");
        datagrams.push(forbidden, b"z");
        datagrams.push(receiver.local_addr().unwrap(), b"second");
        assert_eq!(sockets.send(&datagrams), 3);
        let mut buffer = [0; 16];
        for expected in [&b"first"[..], b"second"] {
            let len = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], expected);
        }
    }
}
