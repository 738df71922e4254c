//! All played nodes on one host: two sockets for all of their addresses, and threads that answer and do what is due. It
//! measures its own delay: a run in which it was late says nothing about the daemon.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use keyring::{PerSlot, Slot};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use tunnel::ClockReading;

use crate::Failure;
use crate::fleet::{self, Identity};
use crate::played::{Daemon, Now, Outgoing, PlayedNode};

/// Each node is ticked once in this time, a part of all nodes in each step.
const TICK: Duration = Duration::from_millis(500);
const STEPS: usize = 20;
/// Receive buffer of a socket in bytes: thousands of nodes are spoken to at once.
const BUFFER: usize = 64 << 20;
/// Longest datagram on an underlay of 1,500 bytes.
const LONGEST: usize = 1500;
/// How often a thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(200);

/// A played node that several threads use.
pub(crate) type Shared = Arc<Mutex<PlayedNode>>;

/// The simulator; its threads run until [`Simulator::stop`].
#[derive(Debug)]
pub(crate) struct Simulator {
    started: Instant,
    sockets: PerSlot<UdpSocket>,
    nodes: RwLock<Vec<Option<Shared>>>,
    daemon: Mutex<Option<Arc<Daemon>>>,
    delays: Mutex<Vec<Duration>>,
    not_sent: AtomicU64,
    ended: AtomicBool,
}

/// How late the simulator was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lateness {
    /// Datagrams and ticks that were measured.
    pub(crate) count: usize,
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
    pub(crate) longest: Duration,
    /// Datagrams that the kernel did not take.
    pub(crate) not_sent: u64,
}

impl Simulator {
    /// Opens both sockets in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, Failure> {
        let open = |slot: Slot| -> Result<UdpSocket, Failure> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, *fleet::PORTS.get(slot)))?;
            socket.set_read_timeout(Some(LOOK))?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            Ok(socket)
        };
        Ok(Self {
            started: Instant::now(),
            sockets: PerSlot::try_from_fn(open)?,
            nodes: RwLock::default(),
            daemon: Mutex::default(),
            delays: Mutex::default(),
            not_sent: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// Starts the threads.
    pub(crate) fn run(
        self: &Arc<Self>,
        place: impl Fn() + Clone + Send + 'static,
    ) -> Vec<thread::JoinHandle<()>> {
        let thread = |work: fn(&Self, Slot), slot: Slot| {
            let (own, place) = (Arc::clone(self), place.clone());
            thread::spawn(move || {
                place();
                work(&own, slot);
            })
        };
        vec![
            thread(Self::receive, Slot::A),
            thread(Self::receive, Slot::B),
            thread(|simulator, _| simulator.tick(), Slot::A),
        ]
    }

    /// Ends the threads.
    pub(crate) fn stop(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// The time of all played nodes.
    pub(crate) fn now(&self) -> Now {
        let reading = ClockReading::now();
        Now { reading, since: reading.instant.saturating_duration_since(self.started) }
    }

    /// Whether the daemon has published its keys.
    pub(crate) fn knows_daemon(&self) -> bool {
        lock(&self.daemon).is_some()
    }

    /// Adds nodes. They start once the daemon is known.
    pub(crate) fn add(&self, identities: Vec<Identity>) -> Result<(), Failure> {
        let daemon = lock(&self.daemon).clone().ok_or("the daemon has not published its keys")?;
        for identity in identities {
            let index = identity.index;
            let jitter = u64::try_from(index)?;
            let mut node = PlayedNode::start(identity, Arc::clone(&daemon), self.now(), jitter);
            let mut out = Vec::new();
            node.follow(Arc::clone(&daemon), self.now(), &mut out);
            {
                let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
                if nodes.len() <= index {
                    nodes.resize(index + 1, None);
                }
                nodes[index] = Some(Arc::new(Mutex::new(node)));
            }
            self.send(&out);
        }
        Ok(())
    }

    /// Says what the daemon announces now.
    pub(crate) fn set_daemon(&self, daemon: Daemon) {
        let daemon = Arc::new(daemon);
        if lock(&self.daemon).replace(Arc::clone(&daemon)).as_ref() == Some(&daemon) {
            return;
        }
        for node in self.nodes() {
            self.with(&node, |node, now, out| node.follow(Arc::clone(&daemon), now, out));
        }
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> Vec<Shared> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().flatten().cloned().collect()
    }

    /// One node.
    pub(crate) fn node(&self, index: usize) -> Option<Shared> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(index).cloned().flatten()
    }

    /// Runs `work` on a node and sends what it says.
    pub(crate) fn with<T>(
        &self,
        node: &Shared,
        work: impl FnOnce(&mut PlayedNode, Now, &mut Vec<Outgoing>) -> T,
    ) -> T {
        let mut out = Vec::new();
        let result = work(&mut lock(node), self.now(), &mut out);
        self.send(&out);
        result
    }

    /// How many nodes meet a condition.
    pub(crate) fn count(&self, condition: impl Fn(&PlayedNode) -> bool) -> usize {
        self.nodes().iter().filter(|node| condition(&lock(node))).count()
    }

    /// The delays since the last call.
    pub(crate) fn take_lateness(&self) -> Lateness {
        let mut delays = std::mem::take(&mut *lock(&self.delays));
        delays.sort_unstable();
        let at = |share: usize| delays.get((delays.len() * share / 1000).min(delays.len().saturating_sub(1)));
        let of = |found: Option<&Duration>| found.copied().unwrap_or_default();
        Lateness {
            count: delays.len(),
            median: of(at(500)),
            p99: of(at(990)),
            longest: of(delays.last()),
            not_sent: self.not_sent.swap(0, Ordering::Relaxed),
        }
    }

    fn receive(&self, slot: Slot) {
        let socket = self.sockets.get(slot);
        let mut buffer = vec![0; LONGEST];
        let mut control = nix::cmsg_space!(libc::in_pktinfo, nix::sys::time::TimeSpec);
        while !self.ended.load(Ordering::Relaxed) {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let received =
                recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
            // The timeout: looks whether to end.
            let Ok(received) = received else { continue };
            let (len, mut to, mut arrived) = (received.bytes, None, None);
            for message in received.cmsgs().into_iter().flatten() {
                match message {
                    ControlMessageOwned::Ipv4PacketInfo(info) => {
                        to = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)));
                    }
                    ControlMessageOwned::ScmTimestampns(time) => arrived = Some(Duration::from(time)),
                    _ => {}
                }
            }
            if let Some(arrived) = arrived {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                lock(&self.delays).push(now.saturating_sub(arrived));
            }
            let Some((index, at_second)) = to.and_then(fleet::at) else { continue };
            let Some(node) = self.node(index) else { continue };
            let datagram = &buffer[..len];
            self.with(&node, |node, now, out| node.receive(now, slot, (datagram, at_second), out));
        }
    }

    fn tick(&self) {
        let step = TICK / u32::try_from(STEPS).unwrap_or(1);
        let mut due = Instant::now();
        for part in (0..STEPS).cycle() {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let nodes = self.nodes();
            for node in nodes.iter().skip(part).step_by(STEPS) {
                self.with(node, PlayedNode::tick);
            }
            due += step;
            let now = Instant::now();
            // Late by what the next step cannot make up for.
            lock(&self.delays).push(now.saturating_duration_since(due));
            thread::sleep(due.saturating_duration_since(now));
            due = due.max(now);
        }
    }

    fn send(&self, out: &[Outgoing]) {
        let Some(to) = lock(&self.daemon).as_ref().map(|daemon| daemon.underlay) else { return };
        for Outgoing { slot, from, bytes } in out {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(*from).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let to = SockaddrIn::from(SocketAddrV4::new(to, *fleet::PORTS.get(*slot)));
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            let fd = self.sockets.get(*slot).as_raw_fd();
            let sent = sendmsg(fd, &[IoSlice::new(bytes)], &control, MsgFlags::MSG_DONTWAIT, Some(&to));
            if sent.is_err() {
                self.not_sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A lock whose holders don't panic; if one did, what it guards would still be a node.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
