//! Who may attach to the mesh's TUN devices: the daemon, and nobody without capabilities, whatever the daemon does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "TUN devices are attached to by ioctl alone, which no crate in use wraps")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::mesh::Mesh;
use lab::{Family, Lab, Signal};
use nix::errno::Errno;
use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Nobody, by the number that Debian gives it.
const NOBODY: u32 = 65534;
/// Enough for some thirty restarts.
const RESTARTED_FOR: Duration = Duration::from_secs(20);
const FLAGS: &[&str] = &["--backend", "userspace", "--pq", "off"];

/// A device node that every user may open, as udev's default is.
fn device_node(directory: &Path) -> PathBuf {
    let path = directory.join("tun");
    mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(10, 200)).unwrap();
    chmod(&path, Mode::from_raw_mode(0o666)).unwrap();
    chmod(directory, Mode::from_raw_mode(0o755)).unwrap();
    path
}

/// Makes the calling thread nobody, without capabilities.
fn become_nobody() {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[]).unwrap();
    set_thread_res_gid(gid, gid, gid).unwrap();
    set_thread_res_uid(uid, uid, uid).unwrap();
    let capabilities = rustix::thread::capabilities(None).unwrap();
    assert!(capabilities.effective.is_empty() && capabilities.permitted.is_empty(), "{capabilities:?}");
}

/// Attaches to a link as a device of this kind.
fn attach(tun: &Path, link: &str, kind: libc::c_int) -> Result<File, Errno> {
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: u16,
        rest: [u8; 22],
    }
    let file = OpenOptions::new().read(true).write(true).open(tun).unwrap();
    let flags = u16::try_from(kind).unwrap();
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name[..link.len()].copy_from_slice(link.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, and `request` has its size and outlives the call.
    Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file)
}

/// Attaches in every way, one after the other without a pause, until told to stop; returns which ways succeeded, and how
/// often it was tried.
fn attack(tun: &Path, stop: &AtomicBool) -> (Vec<String>, u64) {
    let kind = libc::IFF_TUN | libc::IFF_NO_PI;
    let kinds = [
        kind,
        kind | libc::IFF_VNET_HDR,
        kind | libc::IFF_MULTI_QUEUE,
        kind | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE,
        libc::IFF_TUN,
        libc::IFF_TAP | libc::IFF_NO_PI,
    ];
    let (mut attached, mut tries) = (Vec::new(), 0);
    let since = Instant::now();
    // It ends as well when the test has failed.
    while !stop.load(Ordering::Relaxed) && since.elapsed() < Duration::from_mins(3) {
        for (link, kind) in ["mesh-a", "mesh-b"].into_iter().flat_map(|link| kinds.map(|kind| (link, kind))) {
            tries += 1;
            if attach(tun, link, kind).is_ok() {
                attached.push(format!("{link} as {kind:#x} at try {tries}"));
            }
        }
        // Two processors are all that some machines have.
        thread::sleep(Duration::from_micros(200));
    }
    (attached, tries)
}

fn wait_ready(mesh: &Mesh) {
    mesh.wait("n1", "ready", Duration::from_secs(30), |status| {
        status["ready"] == true && status["counters"]["failed_steps"] == 0
    });
}

#[test]
fn nobody_attaches_while_the_daemon_is_down_up_and_restarting() {
    let directory = tempfile::tempdir().unwrap();
    let tun = device_node(directory.path());
    let mut mesh = Mesh::idle(Lab::builder().nodes(1).family(Family::V4).build().unwrap());
    mesh.start_with("n1", FLAGS).unwrap();
    wait_ready(&mesh);
    let net = mesh.node("n1").unwrap().net().clone();
    let stop = AtomicBool::new(false);
    let (attached, tries) = thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            net.enter().unwrap();
            become_nobody();
            attack(&tun, &stop)
        });
        thread::sleep(Duration::from_secs(5));
        mesh.stop("n1", Signal::KILL).unwrap();
        thread::sleep(Duration::from_secs(5));
        let since = Instant::now();
        let mut pause = Duration::from_millis(20);
        while since.elapsed() < RESTARTED_FOR {
            mesh.start_with("n1", FLAGS).unwrap();
            // Killed sooner and later: before, while and after it attaches.
            thread::sleep(pause);
            mesh.stop("n1", Signal::KILL).unwrap();
            pause =
                if pause > Duration::from_millis(800) { Duration::from_millis(20) } else { pause * 3 / 2 };
        }
        mesh.start_with("n1", FLAGS).unwrap();
        wait_ready(&mesh);
        stop.store(true, Ordering::Relaxed);
        attacker.join().unwrap()
    });
    assert!(tries > 10_000, "only {tries} tries");
    assert!(attached.is_empty(), "of {tries}: {attached:?}");
    let log = mesh.daemon("n1").log().unwrap();
    assert!(!log.contains("DeviceTakenBack") && !log.contains("StepFailed"), "{log}");
}

#[test]
fn a_device_that_somebody_else_holds_is_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let tun = device_node(directory.path());
    let mut mesh = Mesh::idle(Lab::builder().nodes(1).family(Family::V4).build().unwrap());
    let node = mesh.node("n1").unwrap();
    // As an earlier version left it: nobody's. Of the second device nobody is the owner.
    for arguments in [&["mesh-a"][..], &["mesh-b", "user", "65534"]] {
        let add = node.command("ip").args(["tuntap", "add", "mode", "tun", "dev"]);
        add.args(arguments).run().unwrap();
    }
    let held = |link: &str| {
        let (net, tun) = (node.net().clone(), tun.clone());
        let link = link.to_owned();
        thread::spawn(move || {
            net.enter().unwrap();
            become_nobody();
            attach(&tun, &link, libc::IFF_TUN | libc::IFF_NO_PI)
        })
        .join()
        .unwrap()
    };
    // Without an owner anybody attaches: this is what the test above sees without the fix.
    let holders = [held("mesh-a").unwrap(), held("mesh-b").unwrap()];
    mesh.start_with("n1", FLAGS).unwrap();
    wait_ready(&mesh);
    for holder in &holders {
        let refused = rustix::io::read(holder, &mut [0; 64]);
        assert_eq!(refused, Err(rustix::io::Errno::BADFD), "the device that is held is gone");
    }
    let node = mesh.node("n1").unwrap();
    for link in ["mesh-a", "mesh-b"] {
        let shown = node.command("ip").args(["-d", "link", "show", link]).run().unwrap();
        assert!(shown.contains("user root group root") || shown.contains("user 0 group 0"), "{shown}");
    }
}
