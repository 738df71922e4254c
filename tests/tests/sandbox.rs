//! A lab without root: an ordinary user's process moves into a user namespace of its own and does all that root can.
//!
//! This is a program of its own because a process with threads can't enter a user namespace.

use std::error::Error;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use lab::sandbox::{self, Sandbox};
use lab::{ApiKind, Family, Flow, IpVersion, Lab, Protocol};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

/// Set in the ordinary user's process: a directory that it may write to.
const DIRECTORY: &str = "LAB_SANDBOX_DIRECTORY";

/// Nobody, by the number that Debian gives it.
const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    // The protocol by which test runners ask which tests there are.
    if std::env::args().any(|argument| argument == "--list") {
        if std::env::args().all(|argument| argument != "--ignored") {
            write_out("a_lab_works_without_root: test\n");
        }
        return ExitCode::SUCCESS;
    }
    let outcome = match std::env::var_os(DIRECTORY) {
        Some(directory) => in_sandbox(Path::new(&directory)),
        None => as_ordinary_user(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("a_lab_works_without_root: {}", lab::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again as nobody, from a directory that nobody can read.
fn as_ordinary_user() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("sandbox");
    fs::copy(std::env::current_exe()?, &program)?;
    let mut child = Command::new(&program);
    child.env(DIRECTORY, directory.path());
    // A process that is not root is an ordinary user's already.
    if rustix::process::geteuid().is_root() {
        bring_tun()?;
        std::os::unix::fs::chown(directory.path(), Some(NOBODY), Some(NOBODY))?;
        child.uid(NOBODY).gid(NOBODY);
    }
    let status = child.status()?;
    if status.success() { Ok(()) } else { Err(format!("as an ordinary user: {status}").into()) }
}

/// Gives this process, and what it starts, a device node that every user may open. Whether the machine's own may be
/// opened by others than root depends on whether udev runs there.
fn bring_tun() -> Result<(), Box<dyn Error>> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount("tmpfs", "/dev/net", "tmpfs", MountFlags::NOSUID, Some(c"mode=0755"))?;
    let tun = Path::new("/dev/net/tun");
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, tun, FileType::CharacterDevice, mode, makedev(10, 200))?;
    // The mode above is subject to the umask.
    chmod(tun, mode)?;
    Ok(())
}

fn in_sandbox(directory: &Path) -> Result<(), Box<dyn Error>> {
    if rustix::process::geteuid().is_root() {
        return Err("still root, so nothing would be shown".into());
    }
    let outside: Vec<PathBuf> = links()?;
    let kind = sandbox::enter()?;
    assert_eq!(kind, Sandbox::User);
    assert_ne!(outside, links()?, "the machine's network is out of sight");
    let lab =
        Lab::builder().nodes(2).family(Family::Dual).api(ApiKind::Fake).dir(directory.join("lab")).build()?;
    lab.connect_plainly()?;
    let (a, b) = (lab.node("n1")?.plain_pod("a")?, lab.node("n2")?.plain_pod("b")?);
    let capture = lab.capture()?;
    for protocol in Protocol::ALL {
        for &version in Family::Dual.versions() {
            assert_eq!(Flow::new(&a.end(), &b.end(), version, protocol).must_pass(), a.address(version)?);
        }
    }
    assert!(capture.report().leaked >= 12 && capture.report().dropped == 0, "{}", capture.report());
    let node = lab.node("n1")?;
    node.write("/etc/cni/net.d/mine", "here")?;
    node.command("ip").args(["tuntap", "add", "mode", "tun", "tun0"]).run()?;
    let rules = "table inet lab { chain c { type filter hook output priority 0; udp dport 9 drop; }; }";
    node.command("nft").args(["-f", "-"]).input(rules).run()?;
    assert!(node.command("nft").args(["list", "ruleset"]).run()?.contains("udp dport 9 drop"));
    let daemon = node.command("sleep").arg("1000").daemon("sleep")?;
    daemon.kill(lab::Signal::TERM)?;
    daemon.wait(Duration::from_secs(5))?;
    assert_eq!(lab.api().node("n2")?["metadata"]["name"], "n2");
    assert_eq!(
        Flow::new(&node.end(), &lab.api().host().end(), IpVersion::V6, Protocol::Udp).must_pass(),
        node.address(IpVersion::V6)?
    );
    assert!(lab.how_to_enter()[0].contains("-U"), "{:?}", lab.how_to_enter());
    drop((capture, daemon));
    Ok(())
}

fn links() -> std::io::Result<Vec<PathBuf>> {
    ["net", "mnt", "user"].map(|space| fs::read_link(format!("/proc/self/ns/{space}"))).into_iter().collect()
}

fn write_out(text: &str) {
    use std::io::Write as _;
    let _reader_went_away = std::io::stdout().write_all(text.as_bytes());
}
