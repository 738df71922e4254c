//! Traffic that goes on for a while: a paced UDP stream that counts what is lost, and a TCP connection that must not break.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::address::IpVersion;
use crate::error::Error;
use crate::frame::MARKER;
use crate::host::End;

/// How long the receiver of a stream waits for late datagrams after the last one was sent.
const LATE_ARRIVAL_TIMEOUT: Duration = Duration::from_millis(500);

/// A running UDP stream in one direction. Each datagram has the lab's marker and a sequence number.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    arrivals: Arc<Mutex<Vec<(u64, Instant)>>>,
    sender: Option<JoinHandle<()>>,
    /// Returns how many datagrams its socket had no room for.
    receiver: Option<JoinHandle<u64>>,
}

/// The outcome of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams that the sender tried to send.
    pub sent: u64,
    /// Of these, how many the sender's own kernel refused (no route, a firewall). They are also counted as lost.
    pub refused: u64,
    /// Different datagrams that arrived.
    pub received: u64,
    /// Datagrams that never arrived.
    pub lost: u64,
    /// Of these, how many did reach the receiver's socket and found it full, because this process was not scheduled
    /// in time to read them: not the network's fault.
    pub overflowed: u64,
    /// Arrivals beyond the first of the same datagram.
    pub duplicated: u64,
    /// Longest time between two arrivals.
    pub longest_silence: Duration,
}

impl Stream {
    /// Starts to send `per_second` datagrams of 64 bytes a second.
    pub fn start(from: &End, to: &End, version: IpVersion, per_second: u32) -> Result<Self, Error> {
        Self::start_sized(from, to, version, per_second, 64)
    }

    /// The same with datagrams of another size, at least 16 bytes of UDP payload.
    pub fn start_sized(
        from: &End,
        to: &End,
        version: IpVersion,
        per_second: u32,
        bytes: usize,
    ) -> Result<Self, Error> {
        let inbox = bind_udp(to, version)?;
        let outbox = bind_udp(from, version)?;
        let port = port_of(&inbox, to)?;
        let target = SocketAddr::new(to.address(version)?, port);
        let stop = Arc::new(AtomicBool::new(false));
        let (sent, refused) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let arrivals = Arc::<Mutex<Vec<(u64, Instant)>>>::default();
        let sending = Sender {
            outbox,
            target,
            interval: Duration::from_secs(1) / per_second.max(1),
            datagram: vec![0; bytes.max(16)],
            sent: Arc::clone(&sent),
            refused: Arc::clone(&refused),
            stop: Arc::clone(&stop),
        };
        let (seen, stop_flag, place) = (Arc::clone(&arrivals), Arc::clone(&stop), to.net().clone());
        Ok(Self {
            stop,
            sent,
            refused,
            arrivals,
            receiver: Some(thread::spawn(move || {
                receive(&inbox, &seen, &stop_flag);
                // Read while the socket is still open. If it can't be read, it counts as none.
                place.run(|| overflows(port, version)).ok().flatten().unwrap_or(0)
            })),
            sender: Some(thread::spawn(move || sending.run())),
        })
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    /// Datagrams that arrived so far, duplicates included.
    pub fn arrived(&self) -> u64 {
        u64::try_from(self.lock().len()).unwrap_or(u64::MAX)
    }

    /// Waits for the first arrival later than `since` and returns how long after that it was: how long an outage
    /// that began then has lasted. Fails with [`Error::Timeout`].
    pub fn wait_arrival(&self, since: Instant, within: Duration) -> Result<Duration, Error> {
        let start = Instant::now();
        loop {
            let first = self.lock().iter().map(|(_, at)| *at).find(|at| *at > since);
            if let Some(at) = first {
                return Ok(at - since);
            }
            if start.elapsed() >= within {
                return Err(Error::Timeout { what: "an arrival of the stream".into(), within });
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops sending, waits for late datagrams, and counts.
    pub fn stop(mut self) -> StreamReport {
        let overflowed = self.halt();
        let arrivals = self.lock();
        let mut distinct = HashSet::new();
        let received = arrivals.iter().filter(|(number, _)| distinct.insert(*number)).count();
        let (sent, all) = (self.sent(), arrivals.len());
        let [received, all] = [received, all].map(|count| u64::try_from(count).unwrap_or(u64::MAX));
        let gaps = arrivals.windows(2).map(|pair| pair[1].1 - pair[0].1);
        StreamReport {
            sent,
            refused: self.refused.load(Ordering::Acquire),
            received,
            lost: sent.saturating_sub(received),
            overflowed,
            duplicated: all - received,
            longest_silence: gaps.max().unwrap_or_default(),
        }
    }

    fn halt(&mut self) -> u64 {
        self.stop.store(true, Ordering::Release);
        let _panic_shows_as_loss = self.sender.take().map(JoinHandle::join);
        self.receiver.take().and_then(|receiver| receiver.join().ok()).unwrap_or(0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Instant)>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _not_reported = self.halt();
    }
}

struct Sender {
    outbox: UdpSocket,
    target: SocketAddr,
    interval: Duration,
    datagram: Vec<u8>,
    sent: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Sender {
    fn run(mut self) {
        let start = Instant::now();
        let mut number = 0u64;
        while !self.stop.load(Ordering::Acquire) {
            // The rate is kept on average: a sender that slept too long catches up.
            let due = self.interval.mul_f64(f64::from(u32::try_from(number).unwrap_or(u32::MAX)));
            if let Some(early) = due.checked_sub(start.elapsed()) {
                thread::sleep(early);
            }
            self.datagram[..8].copy_from_slice(MARKER);
            self.datagram[8..16].copy_from_slice(&number.to_be_bytes());
            if self.outbox.send_to(&self.datagram, self.target).is_err() {
                self.refused.fetch_add(1, Ordering::AcqRel);
            }
            number += 1;
            self.sent.store(number, Ordering::Release);
        }
    }
}

fn receive(inbox: &UdpSocket, arrivals: &Mutex<Vec<(u64, Instant)>>, stop: &AtomicBool) {
    let mut buffer = vec![0; 65536];
    let mut over: Option<Instant> = None;
    let _valid_duration = inbox.set_read_timeout(Some(Duration::from_millis(20)));
    loop {
        if stop.load(Ordering::Acquire)
            && over.get_or_insert_with(Instant::now).elapsed() > LATE_ARRIVAL_TIMEOUT
        {
            return;
        }
        let Ok(length) = inbox.recv(&mut buffer) else { continue };
        let datagram = buffer.get(..length).unwrap_or_default();
        let number = datagram.strip_prefix(MARKER).and_then(<[u8]>::first_chunk).copied();
        if let Some(number) = number {
            let arrival = (u64::from_be_bytes(number), Instant::now());
            arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        }
    }
}

/// How many datagrams the socket of a port in the calling thread's network namespace had no room for: the last column
/// of its line in `/proc/net/udp` (`udp4_format_sock` in `net/ipv4/udp.c`).
fn overflows(port: u16, version: IpVersion) -> Option<u64> {
    let table = if version == IpVersion::V4 { "udp" } else { "udp6" };
    let sockets = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok()?;
    let local = format!(":{port:04X}");
    let is_ours =
        |line: &&str| line.split_whitespace().nth(1).is_some_and(|address| address.ends_with(&local));
    sockets.lines().find(is_ours)?.split_whitespace().last()?.parse().ok()
}

/// A TCP connection over which bytes keep flowing from one end to the other.
#[derive(Debug)]
pub struct Connection {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: Option<JoinHandle<io::Result<u64>>>,
    receiver: Option<JoinHandle<io::Result<()>>>,
}

/// The outcome of a connection.
#[derive(Debug)]
pub struct ConnectionReport {
    /// Bytes that the sender handed to its kernel.
    pub sent: u64,
    /// Bytes that the receiver read, all in order and unchanged.
    pub received: u64,
    /// Why the connection broke, if it did.
    pub broken: Option<io::Error>,
}

impl Connection {
    /// Opens a connection and starts to send: `per_second` bytes a second, or as fast as it goes if that is none.
    pub fn open(from: &End, to: &End, version: IpVersion, per_second: Option<u32>) -> Result<Self, Error> {
        let failed =
            |action, end: &End, source| Error::Socket { action, host: end.name().to_owned(), source };
        let listener = to.net().run(|| TcpListener::bind((any(version), 0)))?;
        let listener = listener.map_err(|source| failed("bind", to, source))?;
        let port = listener.local_addr().map_err(|source| failed("bind", to, source))?.port();
        let target = SocketAddr::new(to.address(version)?, port);
        let outgoing = from.net().run(|| TcpStream::connect_timeout(&target, Duration::from_secs(5)))?;
        let outgoing = outgoing.map_err(|source| failed("connect", from, source))?;
        let (incoming, _peer) = listener.accept().map_err(|source| failed("accept", to, source))?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
        let (stop_flag, counted) = (Arc::clone(&stop), Arc::clone(&received));
        Ok(Self {
            stop,
            received,
            sender: Some(thread::spawn(move || send_pattern(outgoing, per_second, &stop_flag))),
            receiver: Some(thread::spawn(move || verify_pattern(incoming, &counted))),
        })
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Stops sending, waits until everything was received, and closes.
    pub fn close(mut self) -> ConnectionReport {
        let (sent, received) = self.halt();
        let (sent, mut broken) = match sent {
            Ok(sent) => (sent, None),
            Err(error) => (0, Some(error)),
        };
        broken = broken.or_else(|| received.err());
        ConnectionReport { sent, received: self.received(), broken }
    }

    fn halt(&mut self) -> (io::Result<u64>, io::Result<()>) {
        fn join<T>(thread: Option<JoinHandle<io::Result<T>>>) -> io::Result<T> {
            let joined = thread.map(JoinHandle::join);
            joined.map_or_else(
                || Err(io::Error::other("joined before")),
                |result| result.unwrap_or_else(|_panic| Err(io::Error::other("the thread panicked"))),
            )
        }
        self.stop.store(true, Ordering::Release);
        (join(self.sender.take()), join(self.receiver.take()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _not_reported = self.halt();
    }
}

/// Sends `bytes` bytes over a new TCP connection and returns how long it took until all were read, in order and
/// unchanged. Fails if the connection breaks or stalls for 30 s.
pub fn transfer(from: &End, to: &End, version: IpVersion, bytes: u64) -> Result<Duration, Error> {
    let since = Instant::now();
    let connection = Connection::open(from, to, version, None)?;
    let (mut last, mut moved) = (0, Instant::now());
    while connection.received() < bytes {
        if connection.received() > last {
            (last, moved) = (connection.received(), Instant::now());
        }
        if moved.elapsed() > Duration::from_secs(30) {
            return Err(Error::Timeout {
                what: format!("byte {last} of a transfer from {} to {}", from.name(), to.name()),
                within: moved.elapsed(),
            });
        }
        thread::sleep(Duration::from_millis(1));
    }
    let took = since.elapsed();
    match connection.close().broken {
        None => Ok(took),
        Some(source) => Err(Error::Socket { action: "transfer", host: from.name().to_owned(), source }),
    }
}

/// Byte number `n` of every connection, so that a reader knows what has to come.
fn pattern(position: u64) -> u8 {
    MARKER[usize::try_from(position % 8).unwrap_or_default()]
}

fn send_pattern(mut stream: TcpStream, per_second: Option<u32>, stop: &AtomicBool) -> io::Result<u64> {
    // A connection that makes no progress for this long counts as broken.
    stream.set_write_timeout(Some(Duration::from_mins(1)))?;
    let start = Instant::now();
    let chunk: Vec<u8> = (0..8192).map(pattern).collect();
    let mut sent = 0u64;
    while !stop.load(Ordering::Acquire) {
        let length = per_second
            .map_or(chunk.len(), |rate| usize::try_from(rate / 100).unwrap_or(1).clamp(8, 8192) / 8 * 8);
        stream.write_all(chunk.get(..length).unwrap_or(&chunk))?;
        sent += u64::try_from(length).unwrap_or_default();
        if let Some(rate) = per_second {
            let due = Duration::from_micros(sent.saturating_mul(1_000_000) / u64::from(rate.max(1)));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(sent)
}

fn verify_pattern(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let mut buffer = vec![0; 65536];
    let mut position = 0u64;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        for byte in buffer.get(..length).unwrap_or_default() {
            if *byte != pattern(position) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("byte {position} was changed"),
                ));
            }
            position += 1;
        }
        received.store(position, Ordering::Release);
    }
}

/// A UDP socket that counts what reaches it, for tests that nothing does.
#[derive(Debug)]
pub struct Sink {
    socket: UdpSocket,
    port: u16,
}

impl Sink {
    /// Listens on all addresses of an end.
    pub fn open(end: &End, version: IpVersion) -> Result<Self, Error> {
        let socket = bind_udp(end, version)?;
        let port = port_of(&socket, end)?;
        Ok(Self { socket, port })
    }

    /// Its UDP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The sources of the datagrams that came since the last call, after waiting `timeout` for the last of them.
    pub fn drain(&self, timeout: Duration) -> Vec<SocketAddr> {
        let (since, mut sources, mut buffer) = (Instant::now(), Vec::new(), [0; 2048]);
        while let Some(left) = timeout.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
            let _valid_duration = self.socket.set_read_timeout(Some(left));
            if let Ok((_, from)) = self.socket.recv_from(&mut buffer) {
                sources.push(from);
            }
        }
        sources
    }
}

fn bind_udp(end: &End, version: IpVersion) -> Result<UdpSocket, Error> {
    let failed = |source| Error::Socket { action: "bind", host: end.name().to_owned(), source };
    let socket = end.net().run(|| UdpSocket::bind((any(version), 0)))?.map_err(failed)?;
    // A receiver that is not scheduled for a while must not be taken for packet loss.
    let room = 8 << 20;
    if sockopt::set_socket_recv_buffer_size_force(&socket, room).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, room).map_err(|errno| failed(errno.into()))?;
    }
    Ok(socket)
}

fn port_of(socket: &UdpSocket, end: &End) -> Result<u16, Error> {
    let failed = |source| Error::Socket { action: "bind", host: end.name().to_owned(), source };
    Ok(socket.local_addr().map_err(failed)?.port())
}

fn any(version: IpVersion) -> IpAddr {
    match version {
        IpVersion::V4 => Ipv4Addr::UNSPECIFIED.into(),
        IpVersion::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_that_a_socket_has_no_room_for_are_counted() {
        for (version, address) in [(IpVersion::V4, "127.0.0.1:0"), (IpVersion::V6, "[::1]:0")] {
            let inbox = UdpSocket::bind(address).unwrap();
            sockopt::set_socket_recv_buffer_size(&inbox, 4096).unwrap();
            let target = inbox.local_addr().unwrap();
            let outbox = UdpSocket::bind(address).unwrap();
            for _ in 0..100 {
                outbox.send_to(&[0; 512], target).unwrap();
            }
            let overflowed = overflows(target.port(), version).unwrap();
            inbox.set_nonblocking(true).unwrap();
            let mut buffer = [0; 512];
            let held = std::iter::repeat_with(|| inbox.recv(&mut buffer)).take_while(Result::is_ok).count();
            assert!(held < 100);
            assert_eq!(overflowed, 100 - u64::try_from(held).unwrap());
        }
    }
}
