//! A packet socket: every frame of one interface in, any frame out (`AF_PACKET`, packet(7)).
#![expect(unsafe_code, reason = "no safe wrapper knows AF_PACKET addresses and statistics")]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{addr_of, addr_of_mut};
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};

/// Bytes of each frame that are kept; enough for all headers that are examined and for the lab's marker.
pub(crate) const SNAP_LENGTH: usize = 512;

/// Bytes that the kernel may queue for us: some hundred thousand frames.
const QUEUE_BYTES: usize = 256 << 20;

/// How long a receiver waits for a frame before it returns without one.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(10);

/// A socket bound to one interface.
#[derive(Debug)]
pub(crate) struct PacketSocket(OwnedFd);

/// What the kernel says about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes of it in the buffer.
    pub(crate) length: usize,
    /// Whether this host sent it.
    pub(crate) outgoing: bool,
}

impl PacketSocket {
    /// Binds to an interface of the calling thread's network namespace. Frames are received from now on.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            // Without a protocol nothing is received until the socket is bound, so nothing from other interfaces.
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Only root on the machine may go beyond its limit; a user namespace gets what the limit allows.
        if sockopt::set_socket_recv_buffer_size_force(&fd, QUEUE_BYTES).is_err() {
            sockopt::set_socket_recv_buffer_size(&fd, QUEUE_BYTES)?;
        }
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(RECEIVE_TIMEOUT))?;
        cut_off(&fd)?;
        bind(&fd, interface)?;
        Ok(Self(fd))
    }

    /// Waits for a frame for at most 10 ms; none came if that is over. Only [`SNAP_LENGTH`] bytes of it are there.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        // SAFETY: sockaddr_ll is plain data, for which all zeroes are a value.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut from_length = socklen::<libc::sockaddr_ll>();
        // SAFETY: buffer and address are writable for the lengths given with them, and outlive the call.
        let length = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                addr_of_mut!(from).cast(),
                addr_of_mut!(from_length),
            )
        };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(Received { length, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING })),
            Err(_negative) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, frame, SendFlags::empty())?;
        Ok(())
    }

    /// How many frames were lost for want of room since this was last asked.
    pub(crate) fn dropped(&self) -> io::Result<u64> {
        // SAFETY: tpacket_stats is plain data, for which all zeroes are a value.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut length = socklen::<libc::tpacket_stats>();
        // SAFETY: the value is writable for the length given with it, and outlives the call.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                addr_of_mut!(stats).cast(),
                addr_of_mut!(length),
            )
        };
        if result == 0 { Ok(stats.tp_drops.into()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Has the kernel copy only the first [`SNAP_LENGTH`] bytes of each frame: a filter of one instruction, "accept so many".
fn cut_off(fd: &OwnedFd) -> io::Result<()> {
    let mut accept = libc::sock_filter {
        code: 0x06, // BPF_RET | BPF_K
        jt: 0,
        jf: 0,
        k: u32::try_from(SNAP_LENGTH).unwrap_or(u32::MAX),
    };
    let program = libc::sock_fprog { len: 1, filter: addr_of_mut!(accept) };
    // SAFETY: the program and its one instruction are readable and outlive the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            addr_of!(program).cast(),
            socklen::<libc::sock_fprog>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn bind(fd: &OwnedFd, interface: &str) -> io::Result<()> {
    let name = CString::new(interface).map_err(|_nul| io::ErrorKind::InvalidInput)?;
    // SAFETY: the name is a string with its end, and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sockaddr_ll is plain data, for which all zeroes are a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    address.sll_ifindex = i32::try_from(index).map_err(|_too_large| io::ErrorKind::InvalidInput)?;
    // SAFETY: the address is readable for the length given with it, and outlives the call.
    let result =
        unsafe { libc::bind(fd.as_raw_fd(), addr_of!(address).cast(), socklen::<libc::sockaddr_ll>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}
