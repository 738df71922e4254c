//! The options of a new interface, and whether it still runs.

use std::path::PathBuf;

use crate::engine::EngineOptions;
use crate::error::Failure;

/// Whether the kernel is left to cut large batches into packets and to join packets to batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OffloadOption {
    /// Unless it refuses to, or is seen to do it wrong.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The options of a new interface.
#[derive(Debug, Clone)]
pub struct InterfaceConfig {
    /// Name of the TUN device, 1 to 15 bytes.
    pub name: String,
    /// MTU in bytes; `None` leaves that of a device that exists, which is 1500 for a new one.
    pub mtu: Option<u16>,
    /// Whether the device outlives this process: link, addresses and routes then stay after a crash, and what
    /// is routed into it is dropped instead of being routed elsewhere.
    pub persistent: bool,
    /// Whether to set the link up. Otherwise that is left to the caller.
    pub up: bool,
    /// UDP port, zero to let the kernel choose.
    pub listen_port: u16,
    /// Mark on outgoing datagrams, zero for none.
    pub fwmark: u32,
    /// Directory for the configuration socket `NAME.sock`; `None` for no socket. Usually [`uapi_dir`].
    pub uapi_dir: Option<PathBuf>,
    /// Handshake messages per second that are worked on before senders have to prove their address.
    pub handshakes_per_second: u64,
    /// Batches of datagrams to and from the UDP sockets.
    pub udp_offload: OffloadOption,
    /// Batches of packets to and from the TUN device.
    pub tun_offload: OffloadOption,
}

impl InterfaceConfig {
    /// A plain interface `name`: MTU 1420, not persistent, left down, any port, no configuration socket.
    pub fn new(name: impl Into<String>) -> Self {
        let engine = EngineOptions::default();
        Self {
            name: name.into(),
            mtu: Some(engine.mtu),
            persistent: false,
            up: false,
            listen_port: 0,
            fwmark: 0,
            uapi_dir: None,
            handshakes_per_second: engine.handshakes_per_second,
            udp_offload: OffloadOption::Auto,
            tun_offload: OffloadOption::Auto,
        }
    }
}

/// Where `wg` expects the sockets of userspace interfaces.
pub fn uapi_dir() -> PathBuf {
    PathBuf::from("/var/run/wireguard")
}

/// Whether an interface still moves packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Running.
    Running,
    /// Stopped for good; create a new one.
    Failed(Failure),
}
