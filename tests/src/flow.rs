//! Single exchanges between two ends: who answered, and which source address did the server see?

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::address::IpVersion;
use crate::error::Error;
use crate::frame::MARKER;
use crate::host::End;
use crate::ping::{self, PingOutcome};

/// How long a probe waits for its answer by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an exchange that must pass is tried by default: a state that was just reached may take some time to get to the
/// kernel on a busy machine.
const PASSES_WITHIN: Duration = Duration::from_secs(15);

/// Pause between two tries of an exchange that must pass.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How often a server checks whether it should stop.
const STOP_POLL_PERIOD: Duration = Duration::from_millis(20);

/// Transport of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A connection, a line each way.
    Tcp,
    /// A datagram each way, sent again every 200 ms until it is answered.
    Udp,
    /// Echo request and reply, by the `ping` program, again every 500 ms until it is answered.
    Icmp,
}

/// One exchange between two ends.
#[derive(Clone, Debug)]
pub struct Flow {
    from: End,
    to: End,
    version: IpVersion,
    protocol: Protocol,
    /// None: what is usual.
    timeout: Option<Duration>,
}

/// The outcome of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    /// Source address that the server saw, if anything reached it at all.
    pub source: Option<IpAddr>,
    /// Whether the answer came back.
    pub answered: bool,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];

    /// `tcp`, `udp` or `icmp`, as reports print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

impl Flow {
    /// An exchange to be made: `from` asks, `to` answers.
    pub fn new(from: &End, to: &End, version: IpVersion, protocol: Protocol) -> Self {
        Self { from: from.clone(), to: to.clone(), version, protocol, timeout: None }
    }

    /// How long to wait for the answer: by default 2 s, and 15 s if it [must pass](Self::must_pass).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Makes the exchange, with a server that exists only for it. No answer is not an error but a
    /// [`ProbeResult`]; it fails only if the ends themselves can't be used.
    pub fn probe(&self) -> Result<ProbeResult, Error> {
        self.probe_within(self.timeout.unwrap_or(ANSWER_TIMEOUT))
    }

    fn probe_within(&self, timeout: Duration) -> Result<ProbeResult, Error> {
        let address = self.to.address(self.version)?;
        match self.protocol {
            Protocol::Tcp => self.exchange(TcpServer::bind, |to| ask_tcp(to, timeout), address),
            Protocol::Udp => self.exchange(UdpServer::bind, |to| ask_udp(to, timeout), address),
            Protocol::Icmp => self.ping(address, timeout),
        }
    }

    /// Makes the exchange, again and again until it is answered, for the timeout or 15 s; returns the last outcome. For
    /// claims that say nothing about time.
    pub fn probe_until_answered(&self) -> Result<ProbeResult, Error> {
        let (since, within) = (Instant::now(), self.timeout.unwrap_or(PASSES_WITHIN));
        loop {
            // Not in one go: a connection that is refused, or whose first packet was lost, is not tried again soon.
            let left = within.saturating_sub(since.elapsed()).clamp(AGAIN_AFTER, ANSWER_TIMEOUT);
            let seen = self.probe_within(left)?;
            if (seen.answered && seen.source.is_some()) || since.elapsed() >= within {
                return Ok(seen);
            }
            thread::sleep(AGAIN_AFTER);
        }
    }

    /// The same, and returns the source that the server saw.
    ///
    /// # Panics
    ///
    /// If there is no answer, or if the ends can't be used.
    #[track_caller]
    pub fn must_pass(&self) -> IpAddr {
        match self.probe_until_answered() {
            Ok(ProbeResult { source: Some(source), answered: true }) => source,
            Ok(seen) => panic!("{self}: {seen}"),
            Err(error) => panic!("{self}: {}", crate::error::chain(&error)),
        }
    }

    fn exchange<S: Server>(
        &self,
        bind: impl Fn(IpAddr) -> io::Result<S> + Sync,
        ask: impl FnOnce(SocketAddr) -> bool + Send,
        address: IpAddr,
    ) -> Result<ProbeResult, Error> {
        // On the address that is asked, so that the answer comes from there whichever source the route back prefers. An
        // address that is not the server's own is a service's that leads here: then on all.
        let any: IpAddr = match self.version {
            IpVersion::V4 => Ipv4Addr::UNSPECIFIED.into(),
            IpVersion::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let failed = |source| Error::Socket { action: "bind", host: self.to.name().to_owned(), source };
        let server = self.to.net().run(|| bind(address).or_else(|_not_own| bind(any)))?.map_err(failed)?;
        let port = server.port().map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stop_flag = Arc::clone(&stop);
        let serving: JoinHandle<Option<IpAddr>> = thread::spawn(move || server.serve(&stop_flag));
        let answered = self.from.net().run(|| ask(SocketAddr::new(address, port)));
        stop.store(true, Ordering::Release);
        let source = serving.join().unwrap_or_default();
        Ok(ProbeResult { source: source.map(|source| source.to_canonical()), answered: answered? })
    }

    fn ping(&self, address: IpAddr, timeout: Duration) -> Result<ProbeResult, Error> {
        let monitor = ping::EchoMonitor::start(&self.to, self.version)?;
        let (since, mut answered) = (Instant::now(), false);
        while !answered && since.elapsed() < timeout {
            let wait = timeout.saturating_sub(since.elapsed()).min(Duration::from_millis(500));
            answered = ping::ping(&self.from, address, 56, false, wait)? == PingOutcome::Answered;
        }
        Ok(ProbeResult { source: monitor.source(), answered })
    }
}

/// The serving half of an exchange. Its socket is in its network namespace, whichever thread uses it.
trait Server: Send + 'static {
    fn port(&self) -> io::Result<u16>;
    /// Answers until it should stop; returns the first source that it saw.
    fn serve(self, stop: &AtomicBool) -> Option<IpAddr>;
}

/// Sends datagrams under a source address of the sender's choice, which its host must have on a link. Whether
/// they arrive is for the receiver to check.
pub fn send_udp(from: &End, source: IpAddr, to: IpAddr, port: u16, count: u32) -> Result<(), Error> {
    let send = || {
        let socket = UdpSocket::bind((source, 0))?;
        for _ in 0..count {
            // A refusal is an outcome like any other: nothing arrives.
            let _refused = socket.send_to(MARKER, (to, port));
        }
        io::Result::Ok(())
    };
    let failed = |source| Error::Socket { action: "send from", host: from.name().to_owned(), source };
    from.net().run(send)?.map_err(failed)
}

struct TcpServer(TcpListener);

struct UdpServer(UdpSocket);

impl TcpServer {
    fn bind(address: IpAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    fn answer(mut stream: &TcpStream) -> io::Result<()> {
        let mut line = [0; MARKER.len()];
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.read_exact(&mut line)?;
        stream.write_all(&line)
    }
}

impl Server for TcpServer {
    fn port(&self) -> io::Result<u16> {
        Ok(self.0.local_addr()?.port())
    }

    fn serve(self, stop: &AtomicBool) -> Option<IpAddr> {
        let mut source = None;
        while !stop.load(Ordering::Acquire) {
            match self.0.accept() {
                Ok((stream, peer)) => {
                    source = source.or_else(|| Some(peer.ip()));
                    let _client_notices = Self::answer(&stream);
                }
                Err(_no_connection_yet) => thread::sleep(Duration::from_millis(1)),
            }
        }
        source
    }
}

impl UdpServer {
    fn bind(address: IpAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_read_timeout(Some(STOP_POLL_PERIOD))?;
        Ok(Self(socket))
    }
}

impl Server for UdpServer {
    fn port(&self) -> io::Result<u16> {
        Ok(self.0.local_addr()?.port())
    }

    fn serve(self, stop: &AtomicBool) -> Option<IpAddr> {
        let (mut source, mut buffer) = (None, [0; 64]);
        while !stop.load(Ordering::Acquire) {
            if let Ok((length, peer)) = self.0.recv_from(&mut buffer) {
                source = source.or_else(|| Some(peer.ip()));
                let _client_notices = self.0.send_to(buffer.get(..length).unwrap_or_default(), peer);
            }
        }
        source
    }
}

fn ask_tcp(to: SocketAddr, timeout: Duration) -> bool {
    let exchange = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(MARKER)?;
        let mut answer = [0; MARKER.len()];
        stream.read_exact(&mut answer)?;
        Ok(&answer == MARKER)
    };
    exchange().unwrap_or(false)
}

fn ask_udp(to: SocketAddr, timeout: Duration) -> bool {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let since = Instant::now();
    let Ok(socket) = UdpSocket::bind((any, 0)) else { return false };
    while since.elapsed() < timeout {
        let mut answer = [0; 64];
        // Not connected: an ICMP error about one datagram must not spoil the next. But an answer counts only if it
        // comes from where the question went.
        let _lost_or_refused = socket.send_to(MARKER, to);
        let _valid_duration = socket.set_read_timeout(Some(Duration::from_millis(200)));
        match socket.recv_from(&mut answer) {
            Ok((length, from)) if from == to && answer.get(..length) == Some(MARKER) => return true,
            _ => {}
        }
    }
    false
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.name(), self.to.name());
        write!(f, "{from} to {to} over {} {}", self.version.as_str(), self.protocol.as_str())
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.source, self.answered) {
            (Some(source), true) => write!(f, "answered, source seen {source}"),
            (Some(source), false) => write!(f, "arrived from {source}, but no answer came back"),
            (None, true) => f.write_str("answered by another host"),
            (None, false) => f.write_str("nothing arrived"),
        }
    }
}
