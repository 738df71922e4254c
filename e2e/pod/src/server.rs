//! The server: says to each client who answers, and which address the client has for it.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::{COUNT, invalid, sctp};

/// Serves TCP, UDP and, where the kernel has it, SCTP, over IPv4 and IPv6, until it is killed.
pub(crate) fn serve(place: &str) -> io::Result<()> {
    let (local, port) = match place.strip_prefix("localhost:") {
        Some(port) => (true, port),
        None => (false, place),
    };
    let port: u16 = port.parse().map_err(|_| invalid("a port, at most 65535"))?;
    let name = env::var("POD_NAME").or_else(|_| env::var("HOSTNAME")).unwrap_or_default();
    let sockets = if local { loopback(port)? } else { vec![everywhere(port, pair)?] };
    let port = sockets.first().and_then(|(tcp, _)| tcp.local_addr().ok()).map_or(port, |own| own.port());
    writeln!(io::stdout(), "{port}")?;
    io::stdout().flush()?;
    let mut servers = Vec::new();
    if let (false, Ok(listener)) = (local, everywhere(port, sctp::listener)) {
        let name = name.clone();
        servers.push(thread::spawn(move || serve_streams(&listener, &name)));
    }
    for (tcp, udp) in sockets {
        let (for_streams, for_datagrams) = (name.clone(), name.clone());
        servers.push(thread::spawn(move || serve_streams(&tcp, &for_streams)));
        servers.push(thread::spawn(move || serve_datagrams(&udp, &for_datagrams)));
    }
    for server in servers {
        server.join().map_err(|_panic| io::ErrorKind::Other)?;
    }
    Ok(())
}

/// Binds to all addresses. A node without IPv6 has only the wildcard of IPv4.
fn everywhere<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind((Ipv6Addr::UNSPECIFIED, port).into()).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, port).into()))
}

/// Sockets for the loopback address of each IP version that there is.
fn loopback(port: u16) -> io::Result<Vec<(TcpListener, UdpSocket)>> {
    let mut sockets = vec![pair((Ipv4Addr::LOCALHOST, port).into())?];
    sockets.extend(pair((Ipv6Addr::LOCALHOST, port).into()).ok());
    Ok(sockets)
}

/// Both protocols on one port.
fn pair(address: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let tcp = TcpListener::bind(address)?;
    let udp = UdpSocket::bind(tcp.local_addr()?)?;
    Ok((tcp, udp))
}

pub(crate) fn serve_datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error belongs to an earlier answer that nobody took.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let counts = buffer.first() == Some(&COUNT);
        let said = if counts { format!("{length}\n") } else { told(name, client) };
        let _client_is_gone = socket.send_to(said.as_bytes(), client);
    }
}

pub(crate) fn serve_streams(listener: &TcpListener, name: &str) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let name = name.to_owned();
        thread::spawn(move || {
            let _client_is_gone = answer(stream, &name);
        });
    }
}

fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let client = stream.peer_addr()?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    if first == [COUNT] {
        let received = io::copy(&mut stream, &mut io::sink())?;
        return stream.write_all(format!("{received}\n").as_bytes());
    }
    stream.write_all(told(name, client).as_bytes())
}

/// What a server says to a client. A client over IPv4 is named by its IPv4 address, also on a socket for both versions.
fn told(name: &str, client: SocketAddr) -> String {
    format!("{name} {}\n", client.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_a_socket_for_both_versions_is_told_its_ipv4_address() {
        assert_eq!(told("x", "[::ffff:10.0.0.1]:5".parse().unwrap()), "x 10.0.0.1\n");
    }

    #[test]
    fn on_loopback_nobody_else_is_served() {
        let sockets = loopback(0).unwrap();
        assert!(sockets.iter().all(|(tcp, udp)| {
            tcp.local_addr().unwrap().ip().is_loopback() && udp.local_addr().unwrap().ip().is_loopback()
        }));
    }
}
