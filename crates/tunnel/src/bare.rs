//! One interface that `wg set` configures, like any other userspace WireGuard.

use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Failure, TunnelError};
use crate::interface::{Health, Interface, InterfaceConfig, uapi_dir};

/// Set for the process that [`run`] starts in the background, so that it stays there and starts no other.
const IN_BACKGROUND: &str = "MESHD_TUNNEL_IN_BACKGROUND";
/// How often health and the configuration socket are checked.
const CHECK: Duration = Duration::from_millis(250);
/// How long a process in the background may take until its configuration socket answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How to run one bare interface.
#[derive(Debug, Clone)]
pub struct BareOptions {
    /// Name of the TUN device, 1 to 15 bytes.
    pub name: String,
    /// Whether to serve in this process. Otherwise this program is started once more with the same arguments, and
    /// [`run`] returns as soon as that process can be configured; `wg-quick` expects this.
    pub foreground: bool,
    /// MTU in bytes; `None` leaves that of a device that exists.
    pub mtu: Option<u16>,
    /// Whether to set the link up; `wg-quick` and most people do that themselves.
    pub up: bool,
    /// Directory for the configuration socket.
    pub uapi_dir: PathBuf,
}

impl BareOptions {
    /// Runs `name` in the foreground with MTU 1420, left down, its socket where `wg` expects it.
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { name, foreground: true, mtu: Some(1420), up: false, uapi_dir: uapi_dir() }
    }
}

/// Creates the interface and serves it until SIGTERM, SIGINT, or its configuration socket or its device is removed.
///
/// To be called before the process has other threads: it blocks both signals for this thread and those that it
/// starts. Fails if the interface cannot be created, or when it stops for any other reason.
pub fn run(options: &BareOptions) -> Result<(), TunnelError> {
    if options.foreground || std::env::var_os(IN_BACKGROUND).is_some() {
        serve(options)
    } else {
        start_in_background(options)
    }
}

fn serve(options: &BareOptions) -> Result<(), TunnelError> {
    let failed = |operation| move |source| TunnelError::Event { operation, source };
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let before = signals
        .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)
        .map_err(failed("block the termination signals"))?;
    let result = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(failed("create a signal descriptor"))
        .and_then(|descriptor| serve_until(options, &descriptor));
    // Restores the signal mask of this thread; a signal that arrived has been read.
    before.thread_set_mask().map_err(failed("unblock the termination signals"))?;
    result
}

fn serve_until(options: &BareOptions, signals: &SignalFd) -> Result<(), TunnelError> {
    let interface = Interface::create(&InterfaceConfig {
        mtu: options.mtu,
        up: options.up,
        uapi_dir: Some(options.uapi_dir.clone()),
        ..InterfaceConfig::new(&options.name)
    })?;
    tracing::info!(event = "TunnelStarted", link = options.name, "serving");
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(CHECK).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(TunnelError::Event { operation: "wait for a signal", source }),
        }
        if let Ok(Some(signal)) = signals.read_signal() {
            tracing::info!(
                event = "TunnelStopped",
                link = options.name,
                signal = signal.ssi_signo,
                "terminated"
            );
            return Ok(());
        }
        match interface.health() {
            Health::Running => {}
            Health::Failed(Failure::TunGone) => return Ok(()),
            Health::Failed(reason) => {
                return Err(TunnelError::Stopped { name: options.name.clone(), reason });
            }
        }
        if !interface.uapi_socket_is_ours() {
            tracing::info!(
                event = "ConfigurationSocketGone",
                link = options.name,
                "configuration socket is gone"
            );
            return Ok(());
        }
    }
}

/// Starts this program once more and waits until the interface can be configured.
fn start_in_background(options: &BareOptions) -> Result<(), TunnelError> {
    let failed = |source| TunnelError::Background { name: options.name.clone(), source };
    let program = std::env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(IN_BACKGROUND, "1")
        // Signals that a terminal sends to the group of this process don't reach it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A reader of the output of this process would otherwise wait for the other to end.
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let socket = options.uapi_dir.join(format!("{}.sock", options.name));
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Err(failed(std::io::Error::other(format!(
                "it exited with {status}; run it in the foreground to see why"
            ))));
        }
        if serves(&child, &socket) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(failed(std::io::ErrorKind::TimedOut.into()))
}

/// Whether it is `child` that serves `socket`, and not a process that was there before.
fn serves(child: &Child, socket: &std::path::Path) -> bool {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let Ok(stream) = std::os::unix::net::UnixStream::connect(socket) else { return false };
    getsockopt(&stream, PeerCredentials)
        .is_ok_and(|peer| u32::try_from(peer.pid()).is_ok_and(|pid| pid == child.id()))
}
