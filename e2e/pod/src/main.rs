//! What runs in the pods of the end-to-end suite, as one static program without dependencies.
//!
//! ```text
//! e2e-pod pause                                   does nothing for ever
//! e2e-pod serve PORT                              says to TCP and UDP clients who they are: "NAME ADDRESS"
//! e2e-pod ask tcp|udp ADDRESS:PORT [SECONDS]      asks such a server and prints what it said
//! e2e-pod send BYTES ADDRESS:PORT                 sends so many bytes over TCP and prints how many were acknowledged
//! ```

use std::env;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// How long a client waits for an answer if it is not told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);

/// A first byte that says that the client wants its bytes counted.
const COUNT: u8 = b'c';

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["pause"] => loop {
            thread::park();
        },
        ["serve", port] => number(port).and_then(serve),
        ["ask", protocol, server] => ask(protocol, server, PATIENCE).and_then(|said| print(&said)),
        ["ask", protocol, server, seconds] => number(seconds)
            .and_then(|seconds| ask(protocol, server, Duration::from_secs(seconds.into())))
            .and_then(|said| print(&said)),
        ["send", bytes, server] => {
            number(bytes).and_then(|bytes| send(bytes, server)).and_then(|said| print(&said))
        }
        _ => {
            Err(invalid("pause | serve PORT | ask tcp|udp ADDRESS:PORT [SECONDS] | send BYTES ADDRESS:PORT"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_listens = writeln!(io::stderr(), "e2e-pod: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves both protocols on a port, over IPv4 and IPv6, until it is killed.
fn serve(port: u32) -> io::Result<()> {
    let port = u16::try_from(port).map_err(|_| invalid("a port is at most 65535"))?;
    let name = env::var("HOSTNAME").unwrap_or_default();
    // A node without IPv6 has only the other wildcard address.
    let (tcp, udp) = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Ok(tcp) => (tcp, UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?),
        Err(_) => (TcpListener::bind(("0.0.0.0", port))?, UdpSocket::bind(("0.0.0.0", port))?),
    };
    let datagrams = {
        let name = name.clone();
        thread::spawn(move || serve_udp(&udp, &name))
    };
    let streams = thread::spawn(move || serve_tcp(&tcp, &name));
    for server in [datagrams, streams] {
        server.join().map_err(|_panic| io::ErrorKind::Other)?;
    }
    Ok(())
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 2048];
    loop {
        // An error belongs to an earlier answer that nobody took.
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _client_is_gone = socket.send_to(told(name, client).as_bytes(), client);
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str) {
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

/// Asks a server once.
fn ask(protocol: &str, server: &str, within: Duration) -> io::Result<String> {
    let server = address(server)?;
    match protocol {
        "tcp" => {
            let mut stream = TcpStream::connect_timeout(&server, within)?;
            stream.set_read_timeout(Some(within))?;
            stream.write_all(b"?")?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        }
        "udp" => {
            let any: SocketAddr =
                if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(within))?;
            socket.send(b"?")?;
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
        }
        other => Err(invalid(&format!("tcp or udp, not {other}"))),
    }
}

/// Sends bytes over one connection; the server says how many it has received.
fn send(bytes: u32, server: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address(server)?, PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    stream.write_all(&[COUNT])?;
    io::copy(&mut io::repeat(b'x').take(bytes.into()), &mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// What a server says to a client. A client over IPv4 is named by its IPv4 address, also on a socket for both versions.
fn told(name: &str, client: SocketAddr) -> String {
    format!("{name} {}\n", client.ip().to_canonical())
}

fn address(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(|_| invalid(&format!("an address and a port, not {text:?}")))
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(|_| invalid(&format!("a number, not {text:?}")))
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

fn invalid(expected: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server on a free port of both protocols.
    fn server() -> String {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind(tcp.local_addr().unwrap()).unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        thread::spawn(move || serve_tcp(&tcp, "me"));
        thread::spawn(move || serve_udp(&udp, "me"));
        address
    }

    #[test]
    fn a_client_is_told_who_answers_and_its_own_address() {
        let server = server();
        for protocol in ["tcp", "udp"] {
            assert_eq!(ask(protocol, &server, PATIENCE).unwrap(), "me 127.0.0.1\n");
        }
        assert_eq!(told("x", "[::ffff:10.0.0.1]:5".parse().unwrap()), "x 10.0.0.1\n");
    }

    #[test]
    fn bytes_that_are_sent_are_counted() {
        assert_eq!(send(300_000, &server()).unwrap(), "300000\n");
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error() {
        assert!(ask("tcp", "127.0.0.1:1", PATIENCE).is_err());
        assert!(ask("sctp", "127.0.0.1:1", PATIENCE).is_err());
        assert!(ask("tcp", "name:1", PATIENCE).is_err());
    }
}
