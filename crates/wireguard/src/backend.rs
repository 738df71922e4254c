//! The implementations of WireGuard that a device can run on.

use std::fmt;

/// The implementation that encrypts, decrypts and forwards packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// An engine in this process, on a TUN device.
    Userspace,
    /// The kernel's WireGuard.
    Kernel,
}

impl Backend {
    /// The name in status, metrics and options.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Kernel => "kernel",
        }
    }

    /// Kind of the device's link, as the kernel names it (`IFLA_INFO_KIND`).
    pub const fn link_kind(self) -> &'static str {
        match self {
            Self::Userspace => "tun",
            Self::Kernel => "wireguard",
        }
    }

    /// Whether every peer's endpoint roams, whatever its configuration says.
    pub const fn always_roams(self) -> bool {
        matches!(self, Self::Kernel)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
