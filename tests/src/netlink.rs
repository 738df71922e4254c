//! What passes between programs and the kernel's WireGuard on a host, seen from the kernel's side: a link of kind
//! `nlmon` shows every netlink message of its network namespace.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::Error;
use crate::host::Host;
use crate::packet_socket::{PacketSocket, SNAP_LENGTH};

/// `WG_CMD_SET_DEVICE`, `WGDEVICE_A_IFNAME`, `WGDEVICE_A_PEERS` in `include/uapi/linux/wireguard.h`.
const SET_DEVICE: u8 = 1;
const IFNAME: u16 = 2;
const PEERS: u16 = 8;
/// Bytes of a netlink header and a generic netlink header.
const HEADERS: usize = 20;
/// Longer than the delivery of a message takes.
const DELIVERY_TIME: Duration = Duration::from_millis(100);

/// A message that changes a WireGuard interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDevice {
    /// The interface.
    pub link: String,
    /// How many entries for peers are in it, as far as it was kept (512 bytes).
    pub peers: usize,
    /// Bytes of the whole message.
    pub length: usize,
}

/// Watches a host's netlink messages until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<SetDevice>>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Monitor {
    /// Starts watching. Needs the kernel module `nlmon`.
    pub fn start(host: &Host) -> Result<Self, Error> {
        host.ip("link add nlmon0 type nlmon\nlink set nlmon0 up\n")?;
        let failed =
            |source| Error::Socket { action: "watch netlink on", host: host.name().to_owned(), source };
        let socket = host.net().run(|| PacketSocket::open("nlmon0"))?.map_err(failed)?;
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<_>>>::default());
        let (stop_flag, into) = (Arc::clone(&stop), Arc::clone(&seen));
        let watch = move || {
            let mut buffer = [0; SNAP_LENGTH];
            while !stop_flag.load(Ordering::Acquire) {
                let Some(received) = socket.receive(&mut buffer)? else { continue };
                let found = buffer.get(..received.length).and_then(set_device);
                into.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
            }
            match socket.dropped()? {
                0 => Ok(()),
                _ => Err(io::Error::other("messages were lost because the socket's buffer was full")),
            }
        };
        Ok(Self { stop, seen, thread: Some(std::thread::spawn(watch)) })
    }

    /// All changes so far.
    pub fn changes(&self) -> Vec<SetDevice> {
        std::thread::sleep(DELIVERY_TIME);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops watching, and returns all changes. Fails if one may have been missed.
    pub fn stop(mut self, host: &Host) -> Result<Vec<SetDevice>, Error> {
        let changes = self.changes();
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().map(JoinHandle::join);
        host.ip("link del nlmon0\n")?;
        let failed =
            |source| Error::Socket { action: "watch netlink on", host: host.name().to_owned(), source };
        match ended {
            Some(Ok(result)) => result.map_err(failed)?,
            Some(Err(_panic)) => return Err(failed(io::Error::other("the watching thread panicked"))),
            None => {}
        }
        Ok(changes)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Callers that need the result use `stop`.
            let _ended = thread.join();
        }
    }
}

/// A message that changes a WireGuard interface; none if it is another one. The family's number is not known here, but
/// no other family has a command 1 whose attribute 2 is the name of an interface of ours.
fn set_device(message: &[u8]) -> Option<SetDevice> {
    let length = u32::from_ne_bytes(*message.first_chunk()?);
    if message.get(16) != Some(&SET_DEVICE) {
        return None;
    }
    let (mut link, mut peers) = (None, 0);
    for (kind, value) in attributes(message.get(HEADERS..)?) {
        match kind {
            IFNAME => {
                link = std::str::from_utf8(value).ok().map(|name| name.trim_end_matches('\0').to_owned());
            }
            PEERS => peers = attributes(value).count(),
            _ => {}
        }
    }
    let link = link.filter(|link| link.starts_with("mesh-"))?;
    Some(SetDevice { link, peers, length: usize::try_from(length).ok()? })
}

/// Attributes of one level; the last one may be cut off.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1])).max(4);
        let value = rest.get(4..length.min(rest.len()))?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
}
