//! Many datagrams per system call: `recvmmsg` with receive offload, `sendmmsg` with segmentation offload (udp(7)).
#![expect(
    unsafe_code,
    reason = "nix leaves message lengths of reused headers stale and shares control data \
                                 between messages, so the headers are filled here"
)]

use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;

use crate::batch::Span;

/// Datagrams, or coalesced runs of them, per call.
const BATCH: usize = 32;
/// The largest datagram or coalesced run.
const BUFFER: usize = 65_536;
/// Control data for one message: one header and one number, rounded up as `CMSG_SPACE` does.
const CONTROL: usize = 32;

/// Control data must be aligned as `struct cmsghdr`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Receive buffers.
#[derive(Debug)]
pub struct Inbox {
    buffers: Vec<u8>,
    names: [libc::sockaddr_storage; BATCH],
    controls: [Control; BATCH],
    received: Vec<Run>,
}

/// What one received message holds: datagrams of `segment` bytes each, the last maybe shorter.
#[derive(Debug)]
struct Run {
    source: SocketAddr,
    len: usize,
    segment: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Inbox {
    /// Empty buffers.
    pub fn new() -> Self {
        Self {
            buffers: vec![0; BATCH * BUFFER],
            // SAFETY: `sockaddr_storage` is plain data, and all zeros is the unspecified family.
            names: unsafe { zeroed() },
            controls: [Control([0; CONTROL]); BATCH],
            received: Vec::with_capacity(BATCH),
        }
    }

    /// Takes what has arrived at `socket`, without waiting. Returns how many messages were cut to fit, and
    /// therefore dropped. `EAGAIN` if nothing has arrived.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<u64, Errno> {
        self.received.clear();
        // SAFETY: both are plain data made of integers and pointers, for which zero is a value.
        let (mut headers, mut vectors): ([libc::mmsghdr; BATCH], [libc::iovec; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        for (index, header) in headers.iter_mut().enumerate() {
            let buffer = &mut self.buffers[index * BUFFER..(index + 1) * BUFFER];
            vectors[index] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER };
            header.msg_hdr.msg_name = (&raw mut self.names[index]).cast();
            header.msg_hdr.msg_namelen = length_u32(size_of::<libc::sockaddr_storage>());
            header.msg_hdr.msg_iov = &raw mut vectors[index];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_hdr.msg_controllen = CONTROL;
        }
        // SAFETY: each header points at memory of the stated length that is borrowed by `self` or lives in this
        // function, and the kernel keeps none of the pointers.
        let count = Errno::result(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                length_u32(BATCH),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        })?;
        let mut cut = 0;
        for (index, header) in headers.iter().take(usize::try_from(count).unwrap_or(0)).enumerate() {
            let len = usize::try_from(header.msg_len).unwrap_or(0).min(BUFFER);
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            let source = socket_address(&self.names[index]).filter(|_| whole);
            cut += u64::from(!whole);
            // A message that is not passed on keeps its place, so that buffers and runs stay side by side.
            let len = if source.is_some() { len } else { 0 };
            let source = source.unwrap_or(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));
            let segment = gro_segment(&header.msg_hdr).unwrap_or(len).max(1);
            self.received.push(Run { source, len, segment });
        }
        Ok(cut)
    }

    /// What the last call received: runs of datagrams of one source, of equal length except for the last of a run, and that
    /// length in bytes.
    pub fn runs(&self) -> impl Iterator<Item = (SocketAddr, &[u8], usize)> {
        let runs = self.received.iter().enumerate().filter(|(_, run)| run.len > 0);
        runs.map(|(index, run)| {
            let start = index * BUFFER;
            (run.source, &self.buffers[start..start + run.len], run.segment)
        })
    }

    /// The memory that the last call received into, and where its datagrams are in there.
    pub(super) fn datagrams(&mut self) -> (&mut [u8], impl Iterator<Item = (Span, SocketAddr)>) {
        let places = self.received.iter().enumerate().flat_map(|(index, run)| {
            let base = index * BUFFER;
            (0..run.len).step_by(run.segment).map(move |start| {
                let len = run.segment.min(run.len - start);
                (Span { start: base + start, len }, run.source)
            })
        });
        (&mut self.buffers, places)
    }
}

/// A message to be sent: `bytes` is one datagram, or several of `segment` bytes each, the last maybe shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Where it goes.
    pub to: SocketAddr,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Length of each datagram, if there are several.
    pub segment: Option<u16>,
}

/// The most messages that one system call takes.
pub const SEND_BATCH: usize = BATCH;

/// Sends the first messages of `messages`, at most [`SEND_BATCH`]. Returns how many the kernel took: at least
/// one, or the error is that of the first message.
pub(super) fn send(socket: BorrowedFd<'_>, messages: &[Message<'_>]) -> Result<usize, Errno> {
    let messages = &messages[..messages.len().min(SEND_BATCH)];
    // SAFETY: all are plain data made of integers and pointers, for which zero is a value.
    let (mut headers, mut vectors, mut names): (
        [libc::mmsghdr; BATCH],
        [libc::iovec; BATCH],
        [libc::sockaddr_storage; BATCH],
    ) = unsafe { (zeroed(), zeroed(), zeroed()) };
    let mut controls = [Control([0; CONTROL]); BATCH];
    for (index, message) in messages.iter().enumerate() {
        let header = &mut headers[index].msg_hdr;
        // The kernel only reads from it.
        vectors[index] =
            libc::iovec { iov_base: message.bytes.as_ptr().cast_mut().cast(), iov_len: message.bytes.len() };
        header.msg_iov = &raw mut vectors[index];
        header.msg_iovlen = 1;
        header.msg_namelen = store_address(&mut names[index], message.to);
        header.msg_name = (&raw mut names[index]).cast();
        if let Some(segment) = message.segment {
            header.msg_control = (&raw mut controls[index]).cast();
            header.msg_controllen = store_segment(&mut controls[index], segment);
        }
    }
    // SAFETY: each header points at memory of the stated length that outlives the call, and the kernel writes
    // only `msg_len`.
    let sent = Errno::result(unsafe {
        libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), length_u32(messages.len()), 0)
    })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// Lets routers cut IPv4 datagrams into fragments, as the kernel's own WireGuard does: the size of what goes into the
/// tunnel is bounded by its MTU, and a path that is narrower must be slow rather than silent (ip(7)).
pub(super) fn allow_fragments(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let value: libc::c_int = libc::IP_PMTUDISC_DONT;
    // SAFETY: the option takes one `int`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            length_u32(size_of::<libc::c_int>()),
        )
    };
    Errno::result(result).map(drop)
}

/// Lengths here are small constants or sums of them.
fn length_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Writes a `UDP_SEGMENT` control message (udp(7)) and returns its length.
fn store_segment(control: &mut Control, segment: u16) -> usize {
    let header = (&raw mut *control).cast::<libc::cmsghdr>();
    // SAFETY: `Control` is aligned as `cmsghdr` and has room for it and two bytes more (16 + 2 <= 32).
    unsafe {
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = libc::UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(2) as usize;
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
        libc::CMSG_SPACE(2) as usize
    }
}

/// The segment size if the kernel has coalesced several datagrams (`UDP_GRO`).
fn gro_segment(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has just filled in the control data that the header points at; the macros stay within
    // `msg_controllen`.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = control.as_ref() {
            if found.cmsg_level == libc::SOL_UDP && found.cmsg_type == libc::UDP_GRO {
                return usize::try_from(libc::CMSG_DATA(control).cast::<i32>().read_unaligned()).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

/// Address families are small numbers that the C headers make too wide.
fn family(family: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or_default()
}

/// Writes `address` and returns its length.
fn store_address(name: &mut libc::sockaddr_storage, address: SocketAddr) -> u32 {
    let name = &raw mut *name;
    match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is large enough and aligned for every socket address.
            unsafe { name.cast::<libc::sockaddr_in>().write(raw) };
            length_u32(size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { name.cast::<libc::sockaddr_in6>().write(raw) };
            length_u32(size_of::<libc::sockaddr_in6>())
        }
    }
}

fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let raw = &raw const *name;
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which kind of address the storage holds, and any bytes are one.
            let address = unsafe { raw.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { raw.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    use super::*;

    fn pair(address: &str) -> (UdpSocket, UdpSocket, SocketAddr) {
        let (a, b) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
        let to = b.local_addr().unwrap();
        (a, b, to)
    }

    fn collect(inbox: &mut Inbox, socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut all = Vec::new();
        while all.len() < count {
            match inbox.receive(socket.as_fd()) {
                Ok(_) => {
                    let (bytes, places) = inbox.datagrams();
                    let bytes = &*bytes;
                    let datagram = |(Span { start, len }, from)| (from, bytes[start..start + len].to_vec());
                    all.extend(places.map(datagram));
                }
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                Err(error) => panic!("receive: {error}"),
            }
        }
        all
    }

    #[test]
    fn many_datagrams_arrive_whole_and_with_their_source() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b, to) = pair(address);
            let payloads: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; usize::from(n) + 1]).collect();
            let messages: Vec<_> =
                payloads.iter().map(|bytes| Message { to, bytes, segment: None }).collect();
            let mut rest = messages.as_slice();
            while !rest.is_empty() {
                rest = &rest[send(a.as_fd(), rest).unwrap()..];
            }
            let got = collect(&mut Inbox::new(), &b, 40);
            let from = a.local_addr().unwrap();
            assert_eq!(got, payloads.into_iter().map(|bytes| (from, bytes)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn one_message_becomes_datagrams_of_its_segment_size() {
        let (a, b, to) = pair("127.0.0.1:0");
        nix::sys::socket::setsockopt(&b, nix::sys::socket::sockopt::UdpGroSegment, &true).unwrap();
        let bytes: Vec<u8> = (0..250u8).cycle().take(2_500).collect();
        assert_eq!(send(a.as_fd(), &[Message { to, bytes: &bytes, segment: Some(1_000) }]), Ok(1));
        let got = collect(&mut Inbox::new(), &b, 3);
        assert_eq!(got.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [1_000, 1_000, 500]);
        assert_eq!(got.concat_bytes(), bytes);
    }

    #[test]
    fn the_error_is_that_of_the_first_message() {
        let (a, _b, to) = pair("127.0.0.1:0");
        let unreachable = SocketAddr::from(([255, 255, 255, 255], 9));
        let bad = Message { to: unreachable, bytes: &[1], segment: None };
        assert_eq!(send(a.as_fd(), &[bad, Message { to, ..bad }]), Err(Errno::EACCES));
        assert_eq!(send(a.as_fd(), &[Message { to, ..bad }, bad]), Ok(1));
    }

    trait Concat {
        fn concat_bytes(&self) -> Vec<u8>;
    }

    impl Concat for Vec<(SocketAddr, Vec<u8>)> {
        fn concat_bytes(&self) -> Vec<u8> {
            self.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
        }
    }
}
