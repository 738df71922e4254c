//! SCTP in its one-to-one style (RFC 6458, section 4), where a socket behaves as one of TCP does.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with};

/// Whether the kernel has it.
pub(crate) fn is_known() -> bool {
    socket(AddressFamily::INET).is_ok()
}

/// A server's socket on a port, for both IP versions where there are both.
pub(crate) fn listener(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::InvalidInput);
    for address in addresses {
        let bound = socket(family(*address)).and_then(|fd| {
            bind(&fd, address)?;
            listen(&fd, 16)?;
            Ok(fd)
        });
        match bound {
            Ok(fd) => return Ok(TcpListener::from(fd)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A client's socket. Connecting ends after the time of a write (`sctp_connect_new_asoc` in the kernel's
/// `net/sctp/socket.c`).
pub(crate) fn stream(server: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let fd = socket(family(server))?;
    set_socket_timeout(&fd, Timeout::Send, Some(within))?;
    connect(&fd, &server)?;
    Ok(TcpStream::from(fd))
}

/// All addresses of one kind, the ones for both IP versions first.
pub(crate) fn everywhere(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::UNSPECIFIED, port).into(), ([0, 0, 0, 0], port).into()]
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::SCTP))?)
}
