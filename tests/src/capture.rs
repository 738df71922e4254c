//! Captures the underlay interfaces of nodes, and classifies each frame as it arrives.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crate::classify::{self, AddressMatch, Class, Message};
use crate::error::Error;
use crate::host::Host;
use crate::packet_socket::{PacketSocket, SNAP_LENGTH};

pub use crate::classify::Rules;

/// How many frames with pods' addresses are kept per interface; all are counted.
const VIOLATIONS_KEPT: usize = 64;

/// A running capture. It ends when dropped.
#[derive(Debug)]
pub struct Capture {
    interfaces: Vec<InterfaceCapture>,
    stop: Arc<AtomicBool>,
}

/// What a capture has seen on all its interfaces so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// WireGuard handshake messages (initiation, response, cookie).
    pub handshakes: u64,
    /// WireGuard data messages. A batch that the kernel has not yet cut into datagrams counts once.
    pub data: u64,
    /// Frames with a pod's address outside WireGuard that a captured host itself sent: leaks.
    pub leaked: u64,
    /// Frames with a pod's address outside WireGuard that came to a captured host: leaks of others, or injected.
    pub arrived: u64,
    /// Frames in which the lab's marker was unencrypted. Traffic between hosts, and what is masqueraded to the outside,
    /// is so by design.
    pub marked: u64,
    /// Everything else.
    pub other: u64,
    /// Frames that the capture missed because its buffer was full. It proves nothing unless this is zero.
    pub dropped: u64,
    /// The first frames with pods' addresses outside WireGuard, in the order of time.
    pub violations: Vec<Violation>,
}

/// A frame with a pod's address outside WireGuard.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When it was read from the socket.
    pub at: SystemTime,
    /// The host whose interface it was on.
    pub host: String,
    /// Whether that host sent it; otherwise it received it.
    pub outgoing: bool,
    /// Where the address was.
    pub matched: AddressMatch,
    /// The frame, up to its first 512 bytes.
    pub frame: Vec<u8>,
}

/// The capture on one interface.
#[derive(Debug)]
struct InterfaceCapture {
    host: String,
    seen: Arc<Mutex<Report>>,
    /// Counts how often the socket was found empty.
    idle: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Capture {
    /// Starts capturing on one interface of each host. All are capturing when this returns.
    pub fn start(hosts: &[&Host], interface: &str, rules: &Rules) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut capture = Self { interfaces: Vec::new(), stop };
        for host in hosts {
            capture.add(host, interface, rules)?;
        }
        Ok(capture)
    }

    /// Adds an interface of another host to the capture, for nodes that join later.
    pub fn add(&mut self, host: &Host, interface: &str, rules: &Rules) -> Result<(), Error> {
        let (seen, idle) = (Arc::<Mutex<Report>>::default(), Arc::<AtomicU64>::default());
        let (ready, opened) = mpsc::channel();
        let mut reader = Reader {
            host: host.name().to_owned(),
            rules: rules.clone(),
            seen: Arc::clone(&seen),
            idle: Arc::clone(&idle),
            stop: Arc::clone(&self.stop),
        };
        let interface = interface.to_owned();
        let thread = host.net().thread(move || {
            let socket = PacketSocket::open(&interface);
            match socket {
                Ok(socket) => {
                    let _waits = ready.send(Ok(()));
                    reader.run(&socket);
                }
                Err(source) => drop(ready.send(Err(source))),
            }
        });
        self.interfaces.push(InterfaceCapture {
            host: host.name().to_owned(),
            seen,
            idle,
            thread: Some(thread),
        });
        let opened =
            opened.recv().unwrap_or_else(|_entering_failed| Err(io::Error::other("no such namespace")));
        opened.map_err(|source| Error::Socket {
            action: "open a capture",
            host: host.name().to_owned(),
            source,
        })
    }

    /// What was seen so far, all interfaces together. Frames that were sent before the call are in it.
    pub fn report(&self) -> Report {
        self.drain();
        let mut sum = Report::default();
        for interface in &self.interfaces {
            sum.add(&interface.seen.lock().unwrap_or_else(PoisonError::into_inner));
        }
        sum.violations.sort_by_key(|violation| violation.at);
        sum
    }

    /// What was seen so far on one host's interface.
    pub fn report_of(&self, host: &Host) -> Report {
        self.drain();
        let interfaces = self.interfaces.iter().filter(|interface| interface.host == host.name());
        interfaces.fold(Report::default(), |mut sum, interface| {
            sum.add(&interface.seen.lock().unwrap_or_else(PoisonError::into_inner));
            sum
        })
    }

    /// Waits until every frame that is queued now has been classified: until each socket was found empty once, or, under
    /// traffic that never pauses, for a second.
    fn drain(&self) {
        let since = Instant::now();
        let before: Vec<_> =
            self.interfaces.iter().map(|interface| interface.idle.load(Ordering::Acquire)).collect();
        for (interface, before) in self.interfaces.iter().zip(before) {
            // The first may have been found empty before the call and counted after it; the second was found since.
            while interface.idle.load(Ordering::Acquire) < before + 2
                && since.elapsed() < Duration::from_secs(1)
            {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for interface in &mut self.interfaces {
            let _result = interface.thread.take().map(JoinHandle::join);
        }
    }
}

/// The thread of one interface.
struct Reader {
    host: String,
    rules: Rules,
    seen: Arc<Mutex<Report>>,
    idle: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn run(&mut self, socket: &PacketSocket) {
        let mut buffer = [0; SNAP_LENGTH];
        let mut frames = 0u64;
        while !self.stop.load(Ordering::Acquire) {
            match socket.receive(&mut buffer) {
                Ok(Some(received)) => {
                    let frame = buffer.get(..received.length).unwrap_or(&buffer);
                    self.count(frame, received.outgoing);
                    frames += 1;
                    // Under traffic that never pauses, losses have to show as well.
                    if frames.is_multiple_of(4096) {
                        self.count_dropped(socket);
                    }
                }
                Ok(None) => {
                    self.count_dropped(socket);
                    self.idle.fetch_add(1, Ordering::Release);
                }
                // The interface went down; it may come back, and the socket is still bound to it.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(_gone_for_good) => {
                    self.idle.fetch_add(2, Ordering::Release);
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    fn count(&self, frame: &[u8], outgoing: bool) {
        let class = classify::classify(frame, &self.rules);
        let marked = classify::marked(frame);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.marked += u64::from(marked);
        match class {
            Class::WireGuard(Message::Data) => seen.data += 1,
            Class::WireGuard(_) => seen.handshakes += 1,
            Class::Other => seen.other += 1,
            Class::PodAddress(matched) => {
                *if outgoing { &mut seen.leaked } else { &mut seen.arrived } += 1;
                if seen.violations.len() < VIOLATIONS_KEPT {
                    let (at, host, frame) = (SystemTime::now(), self.host.clone(), frame.to_vec());
                    seen.violations.push(Violation { at, host, outgoing, matched, frame });
                }
            }
        }
    }

    fn count_dropped(&self, socket: &PacketSocket) {
        // If it is unknown, frames may have been missed.
        let dropped = socket.dropped().unwrap_or(1);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).dropped += dropped;
    }
}

impl Report {
    /// All WireGuard messages.
    pub fn wireguard(&self) -> u64 {
        self.handshakes + self.data
    }

    /// All frames with a pod's address outside WireGuard.
    pub fn pod_addresses(&self) -> u64 {
        self.leaked + self.arrived
    }

    /// Fails the test if anything with a pod's address was seen outside WireGuard, or if a frame was missed.
    ///
    /// # Panics
    ///
    /// If so, with the first violations.
    #[track_caller]
    pub fn assert_sealed(&self) {
        assert_eq!(self.dropped, 0, "the capture missed frames and proves nothing");
        assert_eq!(self.pod_addresses(), 0, "pod addresses outside WireGuard:\n{self}");
    }

    fn add(&mut self, other: &Self) {
        self.handshakes += other.handshakes;
        self.data += other.data;
        self.leaked += other.leaked;
        self.arrived += other.arrived;
        self.marked += other.marked;
        self.other += other.other;
        self.dropped += other.dropped;
        self.violations.extend_from_slice(&other.violations);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "WireGuard {} (handshake {}, data {}), pod addresses outside it {} (sent {}, received {}), other {}, missed {}",
            self.wireguard(),
            self.handshakes,
            self.data,
            self.pod_addresses(),
            self.leaked,
            self.arrived,
            self.other,
            self.dropped
        )?;
        let since = self.violations.first().map_or(SystemTime::UNIX_EPOCH, |violation| violation.at);
        for violation in &self.violations {
            let after = violation.at.duration_since(since).unwrap_or_default();
            let verb = if violation.outgoing { "sent" } else { "received" };
            writeln!(f, "  +{:.3} s {} {verb} {}", after.as_secs_f64(), violation.host, violation.matched)?;
        }
        Ok(())
    }
}
