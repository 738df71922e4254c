//! The two UDP sockets of an interface, one per address family, on one port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use super::mmsg::{Message, SEND_BATCH, allow_fragments, send};
use super::udp_offload::{SendMessages, UdpOffload};
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
    offload: Arc<UdpOffload>,
    send: SendMessages,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
}

impl Sockets {
    /// Binds both families to `port` in the namespace of the calling thread; for zero the kernel chooses.
    pub fn bind(port: u16, fwmark: u32, offload: &Arc<UdpOffload>) -> Result<Self, TunnelError> {
        let mut attempt = 0;
        loop {
            match Self::bind_once(port, fwmark, offload) {
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

    fn bind_once(port: u16, fwmark: u32, offload: &Arc<UdpOffload>) -> Result<Self, TunnelError> {
        let join = offload.is_used();
        let v4 = Socket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), fwmark, join)?;
        let port = v4.as_ref().map_or(Ok(port), Socket::port)?;
        let v6 = Socket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), fwmark, join)?;
        let port = v6.as_ref().map_or(Ok(port), Socket::port)?;
        if v4.is_none() && v6.is_none() {
            let operation = "find an address family";
            return Err(TunnelError::Udp { operation, port, source: Errno::EAFNOSUPPORT });
        }
        Ok(Self { v4, v6, port, offload: Arc::clone(offload), send })
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
        while let Some(batch) = messages.next_batch(|to| self.offload.is_on(to)) {
            match self.socket(batch[0].to) {
                Some(socket) => refused += self.send_all(socket, batch),
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
                Some(socket) => self.send_all(socket, batch),
                None => batch.iter().map(datagrams_in).sum(),
            };
        }
        refused
    }

    const fn socket(&self, to: SocketAddr) -> Option<&Socket> {
        if to.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// Sends `messages` and returns how many datagrams the kernel refused.
    fn send_all(&self, socket: &Socket, mut messages: &[Message<'_>]) -> u64 {
        let mut refused = 0;
        while let Some(first) = messages.first() {
            match (self.send)(socket.fd.as_fd(), messages) {
                Ok(sent) => {
                    let (sent, rest) = messages.split_at(sent.clamp(1, messages.len()));
                    self.offload.note_accepted(sent);
                    messages = rest;
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    refused += self.send_singly(socket, first, errno);
                    messages = &messages[1..];
                }
            }
        }
        refused
    }

    /// Sends the datagrams of `message` one by one after the kernel refused it with `errno`; returns how many of them it
    /// refuses as well.
    fn send_singly(&self, socket: &Socket, message: &Message<'_>, errno: Errno) -> u64 {
        let count = datagrams_in(message);
        // Where there is no room for one message there is none for many, each of which would wait for it.
        let full = matches!(errno, Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM);
        let Some(segment) = message.segment.filter(|_| !full) else { return count };
        let singles = message.bytes.chunks(usize::from(segment).max(1));
        let singles: Vec<_> = singles.map(|bytes| Message { bytes, segment: None, ..*message }).collect();
        let refused = self.send_all(socket, &singles);
        // If it refuses them too, the reason is not that they came together.
        if refused < count {
            self.offload.note_refused(message, errno);
        }
        refused
    }
}

impl Socket {
    /// `None` if the host doesn't have the address family. With `join` the kernel may join datagrams that arrive.
    fn bind(address: SocketAddr, fwmark: u32, join: bool) -> Result<Option<Self>, TunnelError> {
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
        if join {
            let _ = setsockopt(&fd, sockopt::UdpGroSegment, &true);
        }
        match bind(fd.as_raw_fd(), &SockaddrStorage::from(address)) {
            Err(Errno::EADDRNOTAVAIL) => return Ok(None),
            result => result.map_err(failed("bind"))?,
        }
        Ok(Some(Self { fd }))
    }

    fn port(&self) -> Result<u16, TunnelError> {
        let failed = |source| TunnelError::Udp { operation: "read the bound address", port: 0, source };
        let name: SockaddrStorage = getsockname(self.fd.as_raw_fd()).map_err(failed)?;
        let v4 = name.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
        let v6 = name.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port);
        v4.or(v6).ok_or(Errno::EAFNOSUPPORT).map_err(failed)
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
    use crate::interface::OffloadOption;

    fn offload() -> Arc<UdpOffload> {
        Arc::new(UdpOffload::new("test", OffloadOption::Auto, send))
    }

    /// Sends `count` batches of 40 datagrams each through a kernel that refuses every batch with this error, and checks
    /// that each datagram arrives, whole and in order. Returns the sockets.
    fn send_refused(count: u8, refuse: SendMessages) -> Sockets {
        let sockets = Sockets { send: refuse, ..Sockets::bind(0, 0, &offload()).unwrap() };
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for batch in 0..count {
            let mut datagrams = Datagrams::new();
            (0..40).for_each(|n| datagrams.push(receiver.local_addr().unwrap(), &[batch, n, 7, 7]));
            assert_eq!(sockets.send(&datagrams), 0);
            for n in 0..40 {
                let mut buffer = [0; 16];
                let len = receiver.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], [batch, n, 7, 7]);
            }
        }
        sockets
    }

    /// Refuses the first message if it is a batch, as the kernel does, and sends those before the next one.
    fn refusing(errno: Errno, socket: BorrowedFd<'_>, messages: &[Message<'_>]) -> Result<usize, Errno> {
        let singles = messages.iter().take_while(|message| message.segment.is_none()).count();
        if singles == 0 { Err(errno) } else { send(socket, &messages[..singles]) }
    }

    #[test]
    fn batches_that_the_kernel_refuses_go_out_one_by_one_until_none_are_made() {
        let kernels: [SendMessages; 4] = [
            |socket, messages| refusing(Errno::EIO, socket, messages),
            |socket, messages| refusing(Errno::EINVAL, socket, messages),
            |socket, messages| refusing(Errno::EOPNOTSUPP, socket, messages),
            |socket, messages| refusing(Errno::EPERM, socket, messages),
        ];
        for (kernel, switched_off) in kernels.into_iter().zip([true, true, true, false]) {
            let sockets = send_refused(10, kernel);
            // Four in a row are enough; an error that is not about batches never is.
            assert_eq!(sockets.offload.refused_batches(), if switched_off { 4 } else { 10 });
            assert!(sockets.offload.is_used(), "IPv6 is not affected");
        }
    }

    #[test]
    fn a_signal_loses_no_datagram() {
        thread_local!(static CALLS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
        send_refused(2, |socket, messages| {
            CALLS.set(CALLS.get() + 1);
            if CALLS.get() % 2 == 1 { Err(Errno::EINTR) } else { refusing(Errno::EIO, socket, messages) }
        });
    }

    #[test]
    fn a_full_buffer_is_not_tried_again_for_each_datagram() {
        thread_local!(static CALLS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
        let full: SendMessages = |_, _| {
            CALLS.set(CALLS.get() + 1);
            Err(Errno::EAGAIN)
        };
        let sockets = Sockets { send: full, ..Sockets::bind(0, 0, &offload()).unwrap() };
        let mut datagrams = Datagrams::new();
        (0..64).for_each(|_| datagrams.push(SocketAddr::from(([127, 0, 0, 1], 9)), &[7; 100]));
        assert_eq!((sockets.send(&datagrams), CALLS.get()), (64, 1));
    }

    #[test]
    fn both_families_share_one_port() {
        let sockets = Sockets::bind(0, 0, &offload()).unwrap();
        assert_ne!(sockets.port(), 0);
        assert_eq!(sockets.fds().count(), 2);
        let again = Sockets::bind(sockets.port(), 0, &offload());
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
        let sockets = Sockets::bind(0, 0, &offload()).unwrap();
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
