//! The errors of this crate: each names what was tried on what, and keeps the errno.

use std::path::PathBuf;

use keyring::PublicKey;
use nix::errno::Errno;

/// Why a set of peer changes was refused. Nothing of the set was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// An update names a peer that isn't there.
    #[error("update peer {peer}: there is no such peer")]
    UnknownPeer {
        /// The peer that was named.
        peer: PublicKey,
    },
    /// The peer's key is the interface's own.
    #[error("add peer {peer}: that is the interface's own key")]
    OwnKey {
        /// The peer that was named.
        peer: PublicKey,
    },
    /// The operating system's random source failed, so no session index could be chosen.
    #[error("choose a session index for peer {peer}")]
    Random {
        /// The peer that was to be added.
        peer: PublicKey,
        /// The cause.
        #[source]
        source: getrandom::Error,
    },
}

/// Why an interface could not be created, configured or run.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The name is empty, too long for the kernel (15 bytes), or holds `/`, `%`, white space or NUL.
    #[error("interface name {name:?} is not usable")]
    Name {
        /// The name that was asked for.
        name: String,
    },
    /// `/dev/net/tun` could not be opened.
    #[error("open /dev/net/tun")]
    OpenTun(#[source] Errno),
    /// The device could not be created or attached: `EBUSY` if another process has it, `EINVAL` if a link of
    /// another kind has the name, `EPERM` without `CAP_NET_ADMIN`.
    #[error("attach to TUN device {name}")]
    AttachTun {
        /// The device.
        name: String,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// A setting of the device was refused.
    #[error("{operation} of TUN device {name}")]
    ConfigureTun {
        /// What was tried, for example "set the MTU".
        operation: &'static str,
        /// The device.
        name: String,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// A UDP socket could not be created or bound.
    #[error("{operation} for UDP port {port}")]
    Udp {
        /// What was tried.
        operation: &'static str,
        /// The port that was asked for, zero for any.
        port: u16,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// The process could not create an event descriptor or wait on one.
    #[error("{operation}")]
    Event {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// A thread could not be started.
    #[error("start thread {thread}")]
    Thread {
        /// Which one.
        thread: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The configuration socket could not be created.
    #[error("{operation} {}", path.display())]
    Uapi {
        /// What was tried.
        operation: &'static str,
        /// The socket or its directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another live process serves this interface's configuration socket.
    #[error("configuration socket {} belongs to a live process", path.display())]
    UapiInUse {
        /// The socket.
        path: PathBuf,
    },
    /// A set of peer changes was refused.
    #[error("apply changes to the peers")]
    Change(#[source] ChangeError),
    /// The interface has stopped.
    #[error("interface {name} has stopped: {reason}")]
    Stopped {
        /// The interface.
        name: String,
        /// Why.
        reason: Failure,
    },
    /// A process to run in the background could not be started or did not come up.
    #[error("start {name} in the background")]
    Background {
        /// The interface.
        name: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Why an interface stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A thread panicked: a bug, or memory ran out.
    #[error("its {0} thread panicked")]
    Panic(&'static str),
    /// The TUN device was deleted.
    #[error("its TUN device is gone")]
    TunGone,
    /// The TUN device could not be read or waited for.
    #[error("reading its TUN device failed: {0}")]
    Tun(Errno),
    /// The UDP sockets could not be waited for.
    #[error("waiting for its UDP sockets failed: {0}")]
    Udp(Errno),
    /// It was shut down.
    #[error("it was shut down")]
    ShutDown,
}
