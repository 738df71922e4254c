//! The TUN device: created or attached to by name (kernel `Documentation/networking/tuntap.rst`).
#![expect(unsafe_code, reason = "the device is configured by ioctl alone, which no crate in use wraps")]

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use nix::sys::uio::writev;
use wireguard::LinkName;

use super::config::OffloadOption;
use crate::batch::{Packets, View};
use crate::error::TunnelError;
use crate::offload::{Coalescer, MOST_SEGMENTS, VNET_HEADER, VnetHeader, split};

/// The largest packet that a TUN hands over.
const LARGEST_PACKET: usize = 65_535;

/// A TUN device that this process is attached to, without blocking reads and writes.
#[derive(Debug)]
pub(super) struct Tun {
    device: OwnedFd,
    /// Belongs to the namespace of the device, whichever thread asks.
    control: OwnedFd,
    name: String,
    offload: Offload,
    option: OffloadOption,
    /// Whether packets are still joined before they are written.
    joins: AtomicBool,
    refused_in_a_row: AtomicU32,
    refused: AtomicU64,
    write: WriteVectors,
}

/// Writes one packet, as writev(2) does; tests have kernels of their own.
pub(super) type WriteVectors = fn(BorrowedFd<'_>, &[IoSlice<'_>]) -> Result<usize, Errno>;

/// How many batches in a row the kernel refuses before no more are made.
const REFUSALS: u32 = 4;

/// What the device and we leave to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offload {
    /// Nothing: one packet is one packet, without a header in front (hosts that only imitate Linux).
    None,
    /// Every packet has a header in front; the device does not know any of its uses.
    Header,
    /// Large TCP packets.
    Tcp,
    /// Large TCP and UDP packets (Linux 6.2).
    TcpAndUdp,
}

/// `struct ifreq` (netdevice(7)): a name and a union of 24 bytes on 64-bit machines.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl InterfaceRequest {
    fn new(name: &str) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request
    }
}

/// Whether the kernel accepts `name` for a link, and takes it literally: it replaces `%d` by a number.
pub(super) fn check_name(name: &str) -> Result<(), TunnelError> {
    if name.parse::<LinkName>().is_err() || name.contains('%') {
        return Err(TunnelError::Name { name: name.to_owned() });
    }
    Ok(())
}

impl Tun {
    /// Attaches to the device `name`, in the namespace of the calling thread, and creates it if it does not exist.
    /// With an `option` of off it neither gets nor gives batches.
    pub(super) fn open(name: &str, option: OffloadOption) -> Result<Self, TunnelError> {
        check_name(name)?;
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let device = nix::fcntl::open("/dev/net/tun", flags, Mode::empty()).map_err(TunnelError::OpenTun)?;
        let kind = libc::IFF_TUN | libc::IFF_NO_PI;
        let offload = match attach(&device, name, kind | libc::IFF_VNET_HDR) {
            Ok(()) => negotiate(&device, option),
            Err(Errno::EINVAL) => {
                let refused = |source| TunnelError::AttachTun { name: name.to_owned(), source };
                attach(&device, name, kind).map_err(refused)?;
                Offload::None
            }
            Err(source) => return Err(TunnelError::AttachTun { name: name.to_owned(), source }),
        };
        let control = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|source| TunnelError::Event { operation: "open a control socket", source })?;
        Ok(Self {
            device,
            control,
            name: name.to_owned(),
            offload,
            option,
            joins: AtomicBool::new(matches!(offload, Offload::Tcp | Offload::TcpAndUdp)),
            refused_in_a_row: AtomicU32::new(0),
            refused: AtomicU64::new(0),
            write: |device, vectors| writev(device, vectors),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the device stays when no process is attached: it then drops what is routed into it. One that stays
    /// belongs to root first: to a device without an owner anybody may attach who can open `/dev/net/tun`
    /// (`tun_not_capable` in `drivers/net/tun.c`).
    pub(super) fn set_persistent(&self, persistent: bool) -> Result<(), TunnelError> {
        if persistent {
            self.set_owner()?;
        }
        // SAFETY: TUNSETPERSIST takes its argument by value.
        let result = unsafe {
            libc::ioctl(self.device.as_raw_fd(), libc::TUNSETPERSIST, libc::c_int::from(persistent))
        };
        Errno::result(result).map_err(self.refused("set persistence"))?;
        Ok(())
    }

    /// Makes the device root's: others need `CAP_NET_ADMIN` to attach to it.
    fn set_owner(&self) -> Result<(), TunnelError> {
        const ROOT: libc::c_ulong = 0;
        for (request, operation) in
            [(libc::TUNSETOWNER, "set the owner"), (libc::TUNSETGROUP, "set the group")]
        {
            // SAFETY: TUNSETOWNER and TUNSETGROUP take their argument by value.
            let result = unsafe { libc::ioctl(self.device.as_raw_fd(), request, ROOT) };
            Errno::result(result).map_err(self.refused(operation))?;
        }
        Ok(())
    }

    /// Sets the MTU in bytes.
    pub(super) fn set_mtu(&self, mtu: u16) -> Result<(), TunnelError> {
        let mut request = InterfaceRequest::new(&self.name);
        request.value[..4].copy_from_slice(&i32::from(mtu).to_ne_bytes());
        self.ask(libc::SIOCSIFMTU, &mut request).map_err(self.refused("set the MTU"))
    }

    /// The MTU in bytes; one that does not fit is as large as packets get.
    pub(super) fn mtu(&self) -> Result<u16, TunnelError> {
        let mut request = InterfaceRequest::new(&self.name);
        self.ask(libc::SIOCGIFMTU, &mut request).map_err(self.refused("read the MTU"))?;
        let [a, b, c, d, ..] = request.value;
        Ok(u16::try_from(i32::from_ne_bytes([a, b, c, d])).unwrap_or(u16::MAX))
    }

    /// Sets the link up.
    pub(super) fn set_up(&self) -> Result<(), TunnelError> {
        let mut request = InterfaceRequest::new(&self.name);
        self.ask(libc::SIOCGIFFLAGS, &mut request).map_err(self.refused("read the flags"))?;
        request.value[0] |= u8::try_from(libc::IFF_UP).unwrap_or_default();
        self.ask(libc::SIOCSIFFLAGS, &mut request).map_err(self.refused("set the link up"))
    }

    /// Reads once and appends the packets that came to `out`: one, or many that the kernel has kept together.
    /// `EAGAIN` if there is none, `EBADFD` once the device is deleted, `EBADMSG` for what can't be split.
    pub(super) fn read(&self, buffer: &mut ReadBuffer, out: &mut Packets) -> Result<(), Errno> {
        if self.offload == Offload::None {
            let len = nix::unistd::read(&self.device, &mut out.spare(LARGEST_PACKET)[..LARGEST_PACKET])?;
            out.commit(len);
            return Ok(());
        }
        let len = nix::unistd::read(&self.device, &mut buffer.0)?;
        let (header, packet) = buffer.0[..len].split_first_chunk().ok_or(Errno::EBADMSG)?;
        let header = VnetHeader::parse(*header).ok_or(Errno::EBADMSG)?;
        split(header, packet, out).map_err(|_| Errno::EBADMSG)
    }

    /// Hands `packets` to the kernel, as few large ones where that can be; their contents are used up. Returns how
    /// many the kernel refused, for example because the link is down. `EBADFD` once the device is deleted.
    pub(super) fn write(&self, packets: &mut View<'_>, coalescer: &mut Coalescer) -> Result<u64, Errno> {
        let mut refused = 0;
        let mut note = |result: nix::Result<usize>, count: u64| match result {
            Err(Errno::EBADFD) => Err(Errno::EBADFD),
            Err(_) => {
                refused += count;
                Ok(())
            }
            Ok(_) => Ok(()),
        };
        match self.offload {
            Offload::None => {
                for packet in packets.iter() {
                    note(nix::unistd::write(&self.device, packet), 1)?;
                }
            }
            Offload::Tcp | Offload::TcpAndUdp if self.joins.load(Ordering::Relaxed) => {
                let udp = self.offload == Offload::TcpAndUdp;
                coalescer.write(packets, udp, |header, parts| self.write_joined(header, parts, &mut note))?;
            }
            Offload::Header | Offload::Tcp | Offload::TcpAndUdp => {
                let header = VnetHeader::PLAIN.to_bytes();
                for packet in packets.iter() {
                    note((self.write)(self.as_fd(), &[IoSlice::new(&header), IoSlice::new(packet)]), 1)?;
                }
            }
        }
        Ok(refused)
    }

    /// Writes one packet that was joined of `parts`. If the kernel refuses it, it is cut again as the kernel would have
    /// cut it, and its packets are written one by one.
    fn write_joined(
        &self,
        header: VnetHeader,
        parts: &mut dyn Iterator<Item = &[u8]>,
        note: &mut impl FnMut(nix::Result<usize>, u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let bytes = header.to_bytes();
        let mut vectors = [IoSlice::new(&bytes); 1 + MOST_SEGMENTS];
        let mut count = 0;
        for (place, part) in vectors[1..].iter_mut().zip(parts) {
            *place = IoSlice::new(part);
            count += 1;
        }
        let result = (self.write)(self.as_fd(), &vectors[..=count]);
        let Err(errno) = result else {
            if count > 1 && self.refused_in_a_row.load(Ordering::Relaxed) != 0 {
                self.refused_in_a_row.store(0, Ordering::Relaxed);
            }
            return Ok(());
        };
        // The device is gone, or its link is down: that is not about batches.
        if count == 1 || matches!(errno, Errno::EBADFD | Errno::EIO) {
            return note(result, count as u64);
        }
        let joined: Vec<u8> = vectors[1..=count].iter().flat_map(|part| part.iter().copied()).collect();
        let mut packets = Packets::new();
        if split(header, &joined, &mut packets).is_err() {
            return note(result, count as u64);
        }
        let plain = VnetHeader::PLAIN.to_bytes();
        let mut taken = false;
        for packet in packets.iter() {
            let result = (self.write)(self.as_fd(), &[IoSlice::new(&plain), IoSlice::new(packet)]);
            taken |= result.is_ok();
            note(result, 1)?;
        }
        if taken {
            self.note_refused(errno);
        }
        Ok(())
    }

    /// Takes that the kernel refused a joined packet, and then took those that it was joined of.
    fn note_refused(&self, errno: Errno) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let in_a_row = self.refused_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        let off = in_a_row >= REFUSALS && self.option == OffloadOption::Auto;
        if off && self.joins.swap(false, Ordering::Relaxed) {
            let error = format!("the kernel refused {in_a_row} joined packets in a row: {errno}");
            tracing::warn!(
                event = "TunOffloadOff",
                link = self.name,
                error,
                "writing packets one by one, which is slower"
            );
        }
    }

    /// Whether packets are joined before they are written.
    pub(super) fn is_offload_used(&self) -> bool {
        self.joins.load(Ordering::Relaxed)
    }

    /// How many joined packets the kernel refused.
    pub(super) fn refused_batches(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Writes to another kernel.
    #[cfg(test)]
    pub(super) fn set_write(&mut self, write: WriteVectors) {
        self.write = write;
    }

    fn ask(&self, what: libc::Ioctl, request: &mut InterfaceRequest) -> Result<(), Errno> {
        // SAFETY: the requests used here read and write one `struct ifreq`, which `request` has the size of.
        Errno::result(unsafe { libc::ioctl(self.control.as_raw_fd(), what, std::ptr::from_mut(request)) })?;
        Ok(())
    }

    fn refused(&self, operation: &'static str) -> impl FnOnce(Errno) -> TunnelError {
        let name = self.name.clone();
        move |source| TunnelError::ConfigureTun { operation, name, source }
    }
}

/// Where packets are read to before they are split; one per reading thread.
#[derive(Debug)]
pub(super) struct ReadBuffer(Vec<u8>);

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self(vec![0; VNET_HEADER + LARGEST_PACKET])
    }
}

/// Attaches `device` to the link `name`, which is created if it does not exist.
fn attach(device: &OwnedFd, name: &str, kind: libc::c_int) -> Result<(), Errno> {
    let mut request = InterfaceRequest::new(name);
    let kind = u16::try_from(kind).map_err(|_| Errno::EINVAL)?;
    request.value[..2].copy_from_slice(&kind.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, and `request` has its size and outlives the call.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(())
}

/// Offers the device to take large packets, as many kinds as it knows. A device that stayed may have been offered more.
fn negotiate(device: &OwnedFd, option: OffloadOption) -> Offload {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let udp = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let offers = [(tcp | udp, Offload::TcpAndUdp), (tcp, Offload::Tcp), (0, Offload::Header)];
    let first = if option == OffloadOption::Off { 2 } else { 0 };
    for (flags, offload) in offers.into_iter().skip(first) {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } == 0 {
            return offload;
        }
    }
    Offload::Header
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_or_a_path_would_misread_are_refused() {
        for name in ["", "a/b", "..", "with space", "wg%d", "sixteen-letters-", "tab\t", "nul\0", "a:1", "ä"]
        {
            assert!(matches!(check_name(name), Err(TunnelError::Name { .. })), "{name:?}");
        }
        for name in ["wg0", "mesh-a", "fifteen-letters"] {
            check_name(name).unwrap();
        }
    }
}
