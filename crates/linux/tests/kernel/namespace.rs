//! Network namespaces that are deleted with their last owner, and what tests do in them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, id};
use std::time::{Duration, Instant};

use linux::Handle;
use linux::netns::NetworkNamespace;
use nix::sched::{CloneFlags, unshare};
use plan::network::LinkName;

/// How long anything that must happen may take on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// A network namespace with `lo` up.
pub(crate) struct Namespace(NetworkNamespace);

impl Namespace {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace: these tests need root");
            NetworkNamespace::open(Path::new("/proc/thread-self/ns/net")).unwrap()
        });
        let namespace = Self(made.join().unwrap());
        namespace.ip("link set lo up");
        namespace
    }

    /// Two namespaces joined by a cable with an end called `left` here and `right` there, both up.
    pub(crate) fn join(&self, left: &str, other: &Self, right: &str) {
        let there = format!("/proc/{}/fd/{}", id(), other.namespace().descriptor().as_raw_fd());
        self.ip(&format!("link add {left} type veth peer name {right} netns {there}"));
        self.ip(&format!("link set {left} up"));
        other.ip(&format!("link set {right} up"));
    }

    pub(crate) fn namespace(&self) -> &NetworkNamespace {
        &self.0
    }

    /// Runs something inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(work).unwrap()
    }

    /// Runs something inside that talks to the kernel.
    pub(crate) fn host<T: Send>(&self, work: impl AsyncFnOnce(&Handle) -> T + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { work(&Handle::open().unwrap()).await })
        })
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.program("ip", arguments)
    }

    pub(crate) fn nft(&self, arguments: &str) -> String {
        self.program("nft", arguments)
    }

    pub(crate) fn program(&self, program: &str, arguments: &str) -> String {
        let run = || Command::new(program).args(arguments.split(' ')).output().unwrap();
        let output = self.run(run);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Writes a kernel setting inside.
    pub(crate) fn set(&self, name: &str, value: &str) {
        self.run(|| linux::sysctl::write(name, value)).unwrap();
    }

    /// A socket inside; it stays there whichever thread uses it.
    pub(crate) fn udp(&self, address: IpAddr, port: u16) -> UdpSocket {
        let bound = self.run(|| UdpSocket::bind(SocketAddr::new(address, port)));
        let socket = bound.unwrap_or_else(|error| panic!("bind to {address} port {port}: {error}"));
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket
    }
}

/// Tries again until it holds; fails the test after [`TIMEOUT`].
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < end, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn link(name: &str) -> LinkName {
    name.parse().unwrap()
}

pub(crate) fn ip<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}
