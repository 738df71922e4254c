//! The three threads of an interface: TUN to UDP, UDP to TUN, and timers with configuration.
//!
//! Each blocks in poll(2) when it has nothing to do. If one fails, all stop and the interface reports failure: better no
//! interface than one that passes packets in one direction only.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::core::{Core, Job};
use super::mmsg::Inbox;
use super::tun::ReadBuffer;
use crate::batch::{Datagrams, Packets, View};
use crate::counters::DropReason;
use crate::engine::ClockReading;
use crate::error::{Failure, TunnelError};
use crate::offload::Coalescer;

/// Packets that are read from the TUN before they are encrypted and sent together.
const TUN_BATCH: usize = 64;
/// Datagrams that are decrypted before the packets are handed over: two large packets and a bit. More would leave
/// the cache, and the kernel idle meanwhile.
const UDP_BATCH: usize = 128;
/// The resolution of the timers.
const TICK: Duration = Duration::from_millis(250);
/// How often the MTU of the device is read, which anyone may change.
const MTU_CHECK: Duration = Duration::from_secs(1);

/// What a thread does until the interface stops.
type Body = fn(&Core) -> Result<(), Failure>;

/// The running threads.
#[derive(Debug, Default)]
pub(super) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Starts the threads, in the namespace of the calling thread.
    pub(super) fn start(core: &Arc<Core>) -> Result<Self, TunnelError> {
        let mut threads = Self::default();
        let bodies: [(&'static str, Body); 3] =
            [("sending", outbound), ("receiving", inbound), ("control", control)];
        for (thread, body) in bodies {
            let shared = Arc::clone(core);
            let name = format!("{}-{}", &thread[..4], core.name());
            match std::thread::Builder::new().name(name).spawn(move || run(&shared, thread, body)) {
                Ok(handle) => threads.0.push(handle),
                Err(source) => {
                    core.fail(Failure::ShutDown);
                    threads.join();
                    return Err(TunnelError::Thread { thread, source });
                }
            }
        }
        Ok(threads)
    }

    /// Waits until all threads have ended.
    pub(super) fn join(&mut self) {
        for handle in self.0.drain(..) {
            // Panics were caught and reported inside.
            let _ = handle.join();
        }
    }
}

pub(super) fn run(core: &Core, thread: &'static str, body: Body) {
    match catch_unwind(AssertUnwindSafe(|| body(core))) {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => core.fail(failure),
        Err(_) => core.fail(Failure::Panic(thread)),
    }
}

/// TUN to UDP.
fn outbound(core: &Core) -> Result<(), Failure> {
    let (mut buffer, mut packets, mut out) = (ReadBuffer::new(), Packets::new(), Datagrams::new());
    while !core.stopped() {
        packets.clear();
        packets.set_mtu(core.engine.mtu());
        out.clear();
        while packets.len() < TUN_BATCH {
            match core.tun.read(&mut buffer, &mut packets) {
                Ok(()) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(Errno::EBADMSG) => core.count(DropReason::MalformedOutbound, 1),
                Err(Errno::EBADFD) => return Err(Failure::TunGone),
                Err(errno) => return Err(Failure::Tun(errno)),
            }
        }
        if packets.is_empty() {
            wait(&[core.tun.as_fd(), core.stop.as_fd()], None).map_err(Failure::Tun)?;
            continue;
        }
        core.engine.seal(ClockReading::now(), &mut packets, &mut out);
        core.transmit(&out);
    }
    Ok(())
}

/// UDP to TUN.
fn inbound(core: &Core) -> Result<(), Failure> {
    let (mut inbox, mut opened, mut replies) = (Inbox::new(), Vec::new(), Datagrams::new());
    let mut coalescer = Coalescer::default();
    while !core.stopped() {
        let sockets = core.sockets.load_full();
        let mut idle = true;
        for socket in sockets.fds() {
            match inbox.receive(socket) {
                Ok(cut) => core.count(DropReason::OversizedDatagram, cut),
                // Errors of single datagrams that were sent before are reported here too: nothing to do about.
                Err(_) => continue,
            }
            idle = false;
            let (bytes, places) = inbox.datagrams();
            let mut places = places.peekable();
            while places.peek().is_some() {
                opened.clear();
                replies.clear();
                let some = places.by_ref().take(UDP_BATCH);
                core.engine.open_in_place(ClockReading::now(), bytes, some, &mut opened, &mut replies);
                core.transmit(&replies);
                let mut packets = View { bytes, spans: &opened };
                match core.tun.write(&mut packets, &mut coalescer) {
                    Ok(refused) => core.count(DropReason::TunWrite, refused),
                    Err(_) => return Err(Failure::TunGone),
                }
            }
        }
        if idle {
            let wake = [core.stop.as_fd(), core.rebound.as_fd()];
            let all: Vec<BorrowedFd<'_>> = sockets.fds().chain(wake).collect();
            wait(&all, None).map_err(Failure::Udp)?;
            let _ = core.rebound.read();
        }
    }
    Ok(())
}

/// Timers, and what has to happen in the namespace of the interface.
fn control(core: &Core) -> Result<(), Failure> {
    let queue: Option<Receiver<Job>> = core.queue.lock().take();
    let mut out = Datagrams::new();
    let mut mtu_due = Instant::now();
    while !core.stopped() {
        let _ = core.control.read();
        if let Some(queue) = &queue {
            for job in queue.try_iter() {
                job(core);
            }
        }
        let now = ClockReading::now();
        out.clear();
        core.engine.tick(now, &mut out);
        core.transmit(&out);
        if now.instant >= mtu_due {
            mtu_due = now.instant + MTU_CHECK;
            // It fails only if the device is gone or renamed; the sending thread learns the former by itself.
            if let Ok(mtu) = core.tun.mtu() {
                core.engine.set_mtu(mtu);
            }
        }
        wait(&[core.control.as_fd(), core.stop.as_fd()], Some(TICK)).map_err(Failure::Udp)?;
    }
    Ok(())
}

/// Waits until one of `fds` can be read or reports an error.
fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<(), Errno> {
    let mut fds: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let timeout =
        timeout.and_then(|timeout| PollTimeout::try_from(timeout).ok()).unwrap_or(PollTimeout::NONE);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
