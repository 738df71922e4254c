//! The shell of a relay: a socket for each leased port and address family, and one thread that moves datagrams between
//! them, many per system call and none copied.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use tunnel::TunnelError;
use tunnel::udp::{Inbox, Message, SEND_BATCH, Sockets, UdpOffload};

use crate::table::{Dropped, Forward, Relay};

/// How long the thread sleeps at most. What it waits for wakes it; this is for sockets that could not be opened.
const WAIT_MILLISECONDS: u16 = 1000;
/// How long a port that could not be opened is left alone.
const RETRY: Duration = Duration::from_secs(30);
/// Sockets that are looked at after one wait.
const EVENTS: usize = 64;
/// What an event of the wakeup carries instead of a port.
const WAKE: u64 = u64::MAX;

/// A running relay. Dropping it closes its ports.
#[derive(Debug)]
pub struct Forwarder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    relay: Mutex<Relay>,
    /// Ports that could not be opened, and why.
    closed: Mutex<BTreeMap<u16, String>>,
    stopped: AtomicBool,
    wake: EventFd,
    started: Instant,
    datagrams: AtomicU64,
    bytes: AtomicU64,
    dropped: [AtomicU64; Dropped::ALL.len()],
}

/// What was forwarded and what was not, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that were forwarded.
    pub datagrams: u64,
    /// Their bytes, without UDP and IP headers.
    pub bytes: u64,
    /// Datagrams that were dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// The relay could not start.
#[derive(Debug, thiserror::Error)]
#[error("start the relay: {operation}")]
pub struct ForwarderError {
    operation: &'static str,
    source: std::io::Error,
}

impl Forwarder {
    /// Starts a thread, in the network namespace of the calling one. `relay` may hold leases that were restored; its times
    /// are those since `started`.
    pub fn start(relay: Relay, started: Instant) -> Result<Self, ForwarderError> {
        let failed = |operation| move |errno: Errno| ForwarderError { operation, source: errno.into() };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(failed("create an event"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("create a poll"))?;
        epoll
            .add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))
            .map_err(failed("wait for an event"))?;
        let shared = Arc::new(Shared {
            relay: Mutex::new(relay),
            closed: Mutex::default(),
            stopped: AtomicBool::new(false),
            wake,
            started,
            datagrams: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            dropped: Dropped::ALL.map(|_| AtomicU64::new(0)),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || Thread::new(theirs, epoll).run())
            .map_err(|source| ForwarderError { operation: "start a thread", source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Looks at the leases or changes them. Ports are opened and closed accordingly, soon.
    pub fn with<R>(&self, act: impl FnOnce(Duration, &mut Relay) -> R) -> R {
        let result = act(self.shared.started.elapsed(), &mut self.shared.relay.lock());
        // A full counter wakes the thread as well.
        let _ = self.shared.wake.write(1);
        result
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let dropped = Dropped::ALL.iter().zip(&self.shared.dropped);
        Counters {
            datagrams: read(&self.shared.datagrams),
            bytes: read(&self.shared.bytes),
            dropped: dropped.map(|(reason, count)| (reason.as_str(), read(count))).collect(),
        }
    }

    /// Leased ports that could not be opened, with the cause.
    pub fn closed_ports(&self) -> BTreeMap<u16, String> {
        self.shared.closed.lock().clone()
    }

    /// Whether the thread still runs.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let _ = self.shared.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread has for itself.
struct Thread {
    shared: Arc<Shared>,
    epoll: Epoll,
    sockets: BTreeMap<u16, Sockets>,
    offload: Arc<UdpOffload>,
    retry: BTreeMap<u16, Duration>,
    inbox: Inbox,
    planned: Vec<Planned>,
}

/// Adjacent datagrams of one run that go to the same place.
struct Planned {
    forward: Forward,
    run: usize,
    bytes: Range<usize>,
}

impl Thread {
    fn new(shared: Arc<Shared>, epoll: Epoll) -> Self {
        Self {
            shared,
            epoll,
            sockets: BTreeMap::new(),
            offload: Arc::new(UdpOffload::automatic("relay")),
            retry: BTreeMap::new(),
            inbox: Inbox::new(),
            planned: Vec::new(),
        }
    }

    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        self.update_sockets();
        while !self.shared.stopped.load(Ordering::Relaxed) {
            let count = self.epoll.wait(&mut events, EpollTimeout::from(WAIT_MILLISECONDS)).unwrap_or(0);
            let mut changed = count == 0;
            for event in &events[..count] {
                if let Ok(port) = u16::try_from(event.data() >> 1) {
                    self.forward(port, usize::from(event.data() & 1 == 1));
                } else {
                    let _ = self.shared.wake.read();
                    changed = true;
                }
            }
            if changed {
                self.update_sockets();
            }
        }
    }

    /// Opens and closes sockets so that there are those of the leased ports.
    fn update_sockets(&mut self) {
        let open = self.shared.relay.lock().open_ports();
        // Closed sockets leave the poll by themselves (epoll(7)).
        self.sockets.retain(|port, _| open.contains(port));
        self.retry.retain(|port, _| open.contains(port));
        self.shared.closed.lock().retain(|port, _| open.contains(port));
        let now = self.shared.started.elapsed();
        for port in open {
            if self.sockets.contains_key(&port) || self.retry.get(&port).is_some_and(|at| now < *at) {
                continue;
            }
            match self.open(port) {
                Ok(sockets) => {
                    self.sockets.insert(port, sockets);
                    self.shared.closed.lock().remove(&port);
                }
                Err(error) => {
                    self.retry.insert(port, now + RETRY);
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    let text = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
                    self.shared.closed.lock().insert(port, text);
                }
            }
        }
    }

    fn open(&self, port: u16) -> Result<Sockets, TunnelError> {
        let sockets = Sockets::bind(port, 0, &self.offload)?;
        let failed = |operation| move |source| TunnelError::Udp { operation, port, source };
        for (index, socket) in (0_u64..).zip(sockets.fds()) {
            // A full buffer drops, as a router does: one pair must not hold up the others.
            fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(failed("make the socket not block"))?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(port) << 1 | index);
            self.epoll.add(socket, event).map_err(failed("wait for datagrams"))?;
        }
        Ok(sockets)
    }

    /// Forwards what has arrived at one socket of a port, at most one batch.
    fn forward(&mut self, port: u16, index: usize) {
        let Some(sockets) = self.sockets.get(&port) else { return };
        let Some(socket): Option<BorrowedFd<'_>> = sockets.fds().nth(index) else { return };
        // Errors of single datagrams that were sent before are reported here too: nothing to do about.
        let Ok(_) = self.inbox.receive(socket) else { return };
        self.plan(port);
        self.transmit();
    }

    /// Decides about each datagram that was received.
    fn plan(&mut self, port: u16) {
        self.planned.clear();
        let now = self.shared.started.elapsed();
        let mut relay = self.shared.relay.lock();
        for (run, (source, bytes, segment)) in self.inbox.runs().enumerate() {
            let mut start = 0;
            for datagram in bytes.chunks(segment) {
                let end = start + datagram.len();
                match relay.handle(now, port, source, datagram) {
                    Ok(forward) => match self.planned.last_mut() {
                        Some(last)
                            if last.run == run && last.forward == forward && last.bytes.end == start =>
                        {
                            last.bytes.end = end;
                        }
                        _ => self.planned.push(Planned { forward, run, bytes: start..end }),
                    },
                    Err(reason) => self.shared.count(reason, 1),
                }
                start = end;
            }
        }
    }

    fn transmit(&self) {
        // All from one port, so all to one other: that of the lease's other end.
        let Some(Planned { forward: Forward { from_port, .. }, .. }) = self.planned.first() else { return };
        let Some(sockets) = self.sockets.get(from_port) else {
            self.shared.count(Dropped::Send, self.planned.len() as u64);
            return;
        };
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut messages = [Message { to: nowhere, bytes: &[], segment: None }; SEND_BATCH];
        let mut planned = self.planned.iter().peekable();
        let mut runs = self.inbox.runs().enumerate();
        let mut current = runs.next();
        while planned.peek().is_some() {
            let (mut count, mut datagrams, mut bytes) = (0, 0, 0);
            while count < SEND_BATCH
                && let Some(next) = planned.next()
            {
                while current.as_ref().is_some_and(|(run, _)| *run < next.run) {
                    current = runs.next();
                }
                let Some((_, (_, run, segment))) = &current else { break };
                let part = &run[next.bytes.clone()];
                let several = part.len() > *segment;
                let segment = u16::try_from(*segment).ok().filter(|_| several);
                messages[count] = Message { to: next.forward.to, bytes: part, segment };
                datagrams += segment.map_or(1, |segment| part.len().div_ceil(usize::from(segment))) as u64;
                bytes += part.len() as u64;
                count += 1;
            }
            let refused = sockets.transmit(&messages[..count]);
            self.shared.count(Dropped::Send, refused);
            self.shared.datagrams.fetch_add(datagrams.saturating_sub(refused), Ordering::Relaxed);
            self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn count(&self, reason: Dropped, datagrams: u64) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.fetch_add(datagrams, Ordering::Relaxed);
        }
    }
}
