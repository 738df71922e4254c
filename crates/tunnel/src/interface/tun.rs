//! The TUN device: made or attached to by name (kernel `Documentation/networking/tuntap.rst`).
#![expect(unsafe_code, reason = "the device is configured by ioctl alone, which no crate in use wraps")]

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;

use crate::error::TunnelError;

/// Longest interface name in bytes (`IFNAMSIZ` less the terminating zero).
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// A TUN device that this process is attached to, without blocking reads and writes.
#[derive(Debug)]
pub(super) struct Tun {
    device: OwnedFd,
    /// Belongs to the namespace of the device, whichever thread asks.
    control: OwnedFd,
    name: String,
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

/// Whether the kernel takes `name` for a link, and nothing in it is special to it or to us.
pub(super) fn check_name(name: &str) -> Result<(), TunnelError> {
    let bad = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'/' | b'%' | b':');
    if name.is_empty() || name.len() > LONGEST_NAME || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(TunnelError::Name { name: name.to_owned() });
    }
    Ok(())
}

impl Tun {
    /// Attaches to the device `name`, in the namespace of the calling thread, and makes it if it isn't there.
    pub(super) fn open(name: &str) -> Result<Self, TunnelError> {
        check_name(name)?;
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let device = nix::fcntl::open("/dev/net/tun", flags, Mode::empty()).map_err(TunnelError::OpenTun)?;
        let mut request = InterfaceRequest::new(name);
        let kind = u16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).unwrap_or_default();
        request.value[..2].copy_from_slice(&kind.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, and `request` has its size and outlives the call.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        Errno::result(result).map_err(|source| TunnelError::AttachTun { name: name.to_owned(), source })?;
        let control = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|source| TunnelError::Event { operation: "open a control socket", source })?;
        Ok(Self { device, control, name: name.to_owned() })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the device stays when nobody is attached: it then drops what is routed into it.
    pub(super) fn set_persistent(&self, persistent: bool) -> Result<(), TunnelError> {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        let result = unsafe {
            libc::ioctl(self.device.as_raw_fd(), libc::TUNSETPERSIST, libc::c_int::from(persistent))
        };
        Errno::result(result).map_err(self.refused("set persistence"))?;
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

    /// Reads one packet; `EAGAIN` if there is none, `EBADFD` once the device is deleted.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        nix::unistd::read(&self.device, buffer)
    }

    /// Hands one packet to the kernel; `EIO` while the link is down, `EBADFD` once the device is deleted.
    pub(super) fn write(&self, packet: &[u8]) -> Result<(), Errno> {
        nix::unistd::write(&self.device, packet).map(drop)
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
