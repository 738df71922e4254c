//! Refuses datagrams that any router has passed on: two socket options that no library offers.

#![expect(unsafe_code, reason = "setsockopt with options that neither socket2 nor rustix has")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// The hops that a datagram starts with and must still have.
pub(super) static ALL: libc::c_int = 255;

/// Lets a socket receive only datagrams with all of their hops (RFC 5082 section 3; ip(7), ipv6(7)).
pub(super) fn demand_all(socket: BorrowedFd<'_>, ipv4: bool) -> io::Result<()> {
    let (level, option) =
        if ipv4 { (libc::IPPROTO_IP, libc::IP_MINTTL) } else { (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT) };
    let len = libc::socklen_t::try_from(size_of_val(&ALL)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `len` bytes from a value that
    // has that many.
    let code = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const ALL).cast(), len) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `include/uapi/linux/in6.h`
const IPV6_MINHOPCOUNT: libc::c_int = 73;
