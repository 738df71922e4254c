//! Two hosts with a cable between them, each a namespace that goes away with its value.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use keyring::{PrivateKey, PublicKey};
use tunnel::{Interface, InterfaceConfig};
use wireguard::{PeerChange, PeerOp};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// The example was built if it was missing.
static BUILT: Once = Once::new();

/// A name that no other test on this machine uses, short enough for a link.
pub(crate) fn unique(prefix: &str) -> String {
    let name = format!("{prefix}{:x}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    assert!(name.len() <= 15, "{name}");
    name
}

/// A network namespace.
pub(crate) struct Host {
    name: String,
    /// Last part of the addresses of this host.
    number: u8,
}

impl Host {
    fn new(number: u8) -> Self {
        let name = unique("tl");
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let host = Self { name, number };
        host.ip("link set lo up");
        host
    }

    /// The underlay address of one family.
    pub(crate) fn underlay(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("192.0.2.{}", self.number),
            Family::V6 => format!("2001:db8::{}", self.number),
        }
    }

    /// Address and port for WireGuard on the underlay.
    pub(crate) fn endpoint(&self, family: Family, port: u16) -> String {
        match family {
            Family::V4 => format!("{}:{port}", self.underlay(family)),
            Family::V6 => format!("[{}]:{port}", self.underlay(family)),
        }
    }

    /// The address inside the tunnel.
    pub(crate) fn inner(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.9.0.{}", self.number),
            Family::V6 => format!("fd09::{}", self.number),
        }
    }

    /// Runs `program` with `arguments`, which are separated by spaces.
    pub(crate) fn command(&self, program: &str, arguments: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).args(arguments.split_whitespace());
        command
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        succeed(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    pub(crate) fn wg(&self, arguments: &str) -> String {
        succeed(&mut self.command("wg", arguments))
    }

    /// Gives `device` the inner addresses of this host and sets it up.
    pub(crate) fn configure(&self, device: &str) {
        self.ip(&format!("address add {}/24 dev {device}", self.inner(Family::V4)));
        self.ip(&format!("address add {}/64 dev {device} nodad", self.inner(Family::V6)));
        self.ip(&format!("link set {device} up"));
    }

    /// Whether one of five pings to `address`, with `size` bytes of payload that must not be fragmented, is answered.
    pub(crate) fn reaches(&self, address: &str, size: u16) -> bool {
        let arguments = format!("-c 5 -i 0.2 -W 4 -M do -s {size} {address}");
        let output = self.command("ping", &arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("packet loss"),
            "ping did not run: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        !text.contains(" 0 received")
    }

    /// How many of `count` pings in quick succession are answered.
    pub(crate) fn answers_from(&self, address: &str, count: u32) -> u32 {
        let output = self.command("ping", &format!("-c {count} -i 0.01 -W 5 -q {address}")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let received = text.split(" received").next().and_then(|before| before.rsplit(' ').next());
        received.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("ping printed {text}"))
    }

    /// Runs `body` on a thread in this namespace.
    pub(crate) fn enter<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                body()
            });
            inside.join().unwrap()
        })
    }

    /// Makes an interface here.
    pub(crate) fn create(&self, config: &InterfaceConfig) -> Interface {
        self.enter(|| Interface::create(config)).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that fails may leave its processes to their own drop; the name has to go in any case.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// An address family.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Two hosts on one cable.
pub(crate) struct Lab {
    pub(crate) a: Host,
    pub(crate) b: Host,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (a, b) = (Host::new(1), Host::new(2));
        let (left, right) = (unique("ta"), unique("tb"));
        a.ip(&format!("link add {left} type veth peer name {right} netns {}", b.name));
        for (host, device) in [(&a, &left), (&b, &right)] {
            host.ip(&format!("address add {}/24 dev {device}", host.underlay(Family::V4)));
            host.ip(&format!("address add {}/64 dev {device} nodad", host.underlay(Family::V6)));
            host.ip(&format!("link set {device} up"));
        }
        Self { a, b }
    }

    /// One interface on each host, peered over `family`, with addresses.
    pub(crate) fn tunnel(&self, family: Family) -> (Interface, Interface) {
        let make = |host: &Host| {
            let interface = host.create(&InterfaceConfig::new(unique("tw")));
            interface.set_private_key(PrivateKey::generate().unwrap());
            host.configure(interface.name());
            interface
        };
        let (a, b) = (make(&self.a), make(&self.b));
        peer(&a, &b, &self.b, family);
        peer(&b, &a, &self.a, family);
        (a, b)
    }
}

/// Makes `other`, which is on `host`, a peer of `interface`.
pub(crate) fn peer(interface: &Interface, other: &Interface, host: &Host, family: Family) {
    let other = other.state();
    let endpoint = host.endpoint(family, other.port).parse().unwrap();
    let allow = [Family::V4, Family::V6].map(|family| host.inner(family).parse().unwrap());
    let settings = PeerChange { endpoint: Some(endpoint), allow: allow.into(), ..Default::default() };
    interface.apply(vec![PeerOp::add(other.key.unwrap(), settings)]).unwrap();
}

/// A process that ends with its value.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Waits for the end and returns whether it was a success.
    pub(crate) fn ends_well(&mut self) -> bool {
        let status = eventually("the process ends", || self.0.try_wait().unwrap());
        status.success()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // With a chance to remove its socket first.
        if matches!(self.0.try_wait(), Ok(None)) {
            self.signal(nix::sys::signal::Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(2);
            while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the example `bare` on `host` and waits until `wg` reaches it. `ip netns exec` becomes the program, so
/// its process is that of the program.
pub(crate) fn start_bare(host: &Host, arguments: &str, device: &str) -> Process {
    let program = bare_program();
    let mut command = host.command(program.to_str().unwrap(), &format!("{arguments} {device}"));
    let process = Process(command.stdout(Stdio::null()).spawn().unwrap());
    eventually("wg reaches the interface", || {
        host.command("wg", &format!("show {device}")).output().unwrap().status.success().then_some(())
    });
    process
}

/// The example. A plain `cargo test` has built it beside this test; with only some targets chosen it may be missing.
pub(crate) fn bare_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/bare");
    BUILT.call_once(|| {
        if !program.exists() {
            succeed(Command::new(env!("CARGO")).args(["build", "--package", "tunnel", "--example", "bare"]));
        }
    });
    assert!(program.exists(), "{} is missing: cargo build -p tunnel --example bare", program.display());
    program
}

/// Asks `question` for up to thirty seconds.
pub(crate) fn eventually<R>(what: &str, mut question: impl FnMut() -> Option<R>) -> R {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `command`, which must succeed, and returns what it prints.
pub(crate) fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// A new key in a file that `wg set` can read.
pub(crate) fn key_file() -> (tempfile::NamedTempFile, PublicKey) {
    let key = PrivateKey::generate().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key.to_base64().as_bytes()).unwrap();
    (file, key.public())
}
