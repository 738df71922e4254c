//! SCTP in its one-to-one style (RFC 6458, section 4), where a socket behaves as one of TCP does.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with};

/// Whether the kernel has it.
pub(crate) fn is_known() -> bool {
    socket(AddressFamily::INET).is_ok()
}

/// A server's socket.
pub(crate) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let fd = socket(family(address))?;
    bind(&fd, &address)?;
    listen(&fd, 16)?;
    Ok(TcpListener::from(fd))
}

/// A client's socket. Connecting ends after the time of a write (`sctp_connect_new_asoc` in the kernel's
/// `net/sctp/socket.c`).
pub(crate) fn stream(server: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let fd = socket(family(server))?;
    set_socket_timeout(&fd, Timeout::Send, Some(within))?;
    connect(&fd, &server)?;
    Ok(TcpStream::from(fd))
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::SCTP))?)
}
