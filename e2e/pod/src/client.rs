//! The clients.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

use crate::{COUNT, PATIENCE, invalid, sctp};

/// Bytes of an IPv4 header and a UDP header, and the same for IPv6.
const HEADERS: (u32, u32) = (20 + 8, 40 + 8);
/// A stream has a datagram in each of these.
const STREAM_STEP: Duration = Duration::from_millis(10);
/// The last answers of a stream may take so long.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// The first datagrams may be lost to routers that have to say first how much they let pass.
const ATTEMPTS: u32 = 5;

/// Asks a server once.
pub(crate) fn ask(protocol: &str, server: SocketAddr, within: Duration) -> io::Result<String> {
    match protocol {
        "tcp" => question(TcpStream::connect_timeout(&server, within)?, within),
        "sctp" => question(sctp::stream(server, within)?, within),
        "udp" => {
            let socket = datagrams(server, within)?;
            socket.send(b"?")?;
            answer(&socket)
        }
        other => Err(invalid(&format!("tcp, udp or sctp, not {other}"))),
    }
}

/// Asks many times, over a new connection each; the names of those that answered, in order.
pub(crate) fn spread(times: u32, server: SocketAddr) -> io::Result<String> {
    let mut names = BTreeSet::new();
    for _ in 0..times {
        let said = ask("tcp", server, PATIENCE)?;
        names.extend(said.split_whitespace().next().map(str::to_owned));
    }
    Ok(format!("{}\n", names.into_iter().collect::<Vec<_>>().join(" ")))
}

/// Sends bytes over one connection; the server says how many it has received.
pub(crate) fn send(bytes: u32, server: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    stream.write_all(&[COUNT])?;
    io::copy(&mut io::repeat(b'x').take(bytes.into()), &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Sends a datagram as large as the path's MTU, which has to arrive whole, and one a byte larger, which this host has to
/// refuse. Neither may be fragmented.
pub(crate) fn fit(server: SocketAddr) -> io::Result<String> {
    let socket = datagrams(server, PATIENCE / ATTEMPTS)?;
    if server.is_ipv4() {
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
    } else {
        sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
    }
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..ATTEMPTS {
        // Read anew: it may have become smaller by what the first datagram was refused for.
        let (mtu, headers) = if server.is_ipv4() {
            (sockopt::ip_mtu(&socket)?, HEADERS.0)
        } else {
            (sockopt::ipv6_mtu(&socket)?, HEADERS.1)
        };
        let fits = usize::try_from(mtu.saturating_sub(headers)).unwrap_or(usize::MAX);
        match socket.send(&vec![COUNT; fits]).and_then(|_| answer(&socket)) {
            Ok(said) if said.trim() == fits.to_string() => {
                let refused = socket.send(&vec![COUNT; fits + 1]).err();
                return match refused {
                    Some(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => {
                        Ok(format!("{mtu} bytes arrive, {} are refused\n", mtu + 1))
                    }
                    Some(error) => Err(error),
                    None => Err(io::Error::other(format!("{} bytes are not refused", mtu + 1))),
                };
            }
            Ok(said) => last = io::Error::other(format!("of {fits} bytes arrived {}", said.trim())),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends 100 datagrams a second, whatever becomes of them, and counts the answers. Ends early if `ended` says so. Fails if more
/// than `may_lose` are missing.
pub(crate) fn stream(
    seconds: u32,
    may_lose: u32,
    server: SocketAddr,
    ended: impl Fn() -> bool,
) -> io::Result<String> {
    let socket = datagrams(server, STREAM_STEP)?;
    let began = Instant::now();
    let (mut sent, mut answered, mut heard, mut pause) = (0_u32, 0_u32, began, Duration::ZERO);
    let mut to_send = seconds * 100;
    loop {
        let due = STREAM_STEP * sent;
        if ended() {
            to_send = to_send.min(sent);
        }
        let over = sent >= to_send;
        if over && (answered >= sent || began.elapsed() >= due + LAST_ANSWERS) {
            break;
        }
        if !over && began.elapsed() >= due {
            // One that the host refuses is lost, as any other.
            let _refused = socket.send(b"?");
            sent += 1;
            continue;
        }
        // The wait for an answer ends when the next datagram is due.
        let wait = if over { STREAM_STEP } else { due.saturating_sub(began.elapsed()) };
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        if answer(&socket).is_ok() {
            answered += 1;
            pause = pause.max(heard.elapsed());
            heard = Instant::now();
        }
    }
    let lost = sent.saturating_sub(answered);
    if lost > 0 {
        pause = pause.max(heard.elapsed());
    }
    let said = format!("{sent} sent, {lost} lost, {} ms without an answer at most\n", pause.as_millis());
    if lost > may_lose { Err(io::Error::other(said.trim().to_owned())) } else { Ok(said) }
}

fn question(mut stream: TcpStream, within: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(within))?;
    stream.write_all(b"?")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// A socket for one server's datagrams.
fn datagrams(server: SocketAddr, within: Duration) -> io::Result<UdpSocket> {
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(within))?;
    Ok(socket)
}

fn answer(socket: &UdpSocket) -> io::Result<String> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::server::{serve_datagrams, serve_streams};

    /// A server on a free port of both protocols.
    fn server() -> SocketAddr {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).unwrap();
        thread::spawn(move || serve_streams(&tcp, "me"));
        thread::spawn(move || serve_datagrams(&udp, "me"));
        address
    }

    #[test]
    fn a_client_is_told_who_answers_and_its_own_address() {
        let server = server();
        for protocol in ["tcp", "udp"] {
            assert_eq!(ask(protocol, server, PATIENCE).unwrap(), "me 127.0.0.1\n");
        }
        assert_eq!(spread(3, server).unwrap(), "me\n");
    }

    #[test]
    fn bytes_that_are_sent_are_counted() {
        assert_eq!(send(300_000, server()).unwrap(), "300000\n");
    }

    #[test]
    fn a_stream_counts_what_is_not_answered() {
        let said = stream(1, 0, server(), || false).unwrap();
        assert!(said.starts_with("100 sent, 0 lost, "), "{said}");
        // It takes everything and says nothing.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = stream(1, 99, silent.local_addr().unwrap(), || false).unwrap_err();
        assert!(error.to_string().starts_with("100 sent, 100 lost, "), "{error}");
        // One that is told to end does not go on for a minute.
        let began = Instant::now();
        let said = stream(60, 0, server(), || began.elapsed() > Duration::from_millis(300)).unwrap();
        assert!(began.elapsed() < Duration::from_secs(30) && said.contains(" sent, 0 lost, "), "{said}");
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        ask("tcp", nobody, PATIENCE).unwrap_err();
        ask("quic", nobody, PATIENCE).unwrap_err();
        fit(nobody).unwrap_err();
    }
}
