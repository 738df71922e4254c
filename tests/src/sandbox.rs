//! A place for the lab when the process is not root: user, network and mount namespaces of its own.

use std::fs::{self, OpenOptions};
use std::io;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

/// Namespaces for a lab are not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The process has threads already; only a process with one can move into a user namespace.
    #[error("enter the sandbox: called after threads were started ({0} of them); call it first in main")]
    Threads(usize),
    /// The kernel or its configuration refuses user namespaces.
    #[error(
        "make a user namespace; run as root, or allow it: `sysctl -w kernel.unprivileged_userns_clone=1` (Debian \
         before 11), `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu), \
         `sysctl -w user.max_user_namespaces=10000`; in a container, start it with --privileged"
    )]
    UserNamespace(#[source] io::Error),
    /// The ids of the user namespace could not be set.
    #[error("write {file} of the new user namespace")]
    IdMap {
        /// The file below `/proc/self`.
        file: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Mounts can't be made private.
    #[error("make the mounts of the sandbox private")]
    Mounts(#[source] io::Error),
    /// Tunnel devices can't be created.
    #[error("open /dev/net/tun; {}", tun_advice(.0))]
    Tun(#[source] io::Error),
}

/// How the process got its namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// It is root on the machine; it has network and mount namespaces of its own.
    Root,
    /// It is an ordinary user, and root only within a user namespace of its own.
    User,
}

/// Moves the process into network and mount namespaces of its own, and into a user namespace if it needs one for
/// that. Call it first in `main`, before any thread is started. Nothing that the process does to links, routes or
/// mounts from then on can be seen from outside.
///
/// Fails, saying what to do about it, if the kernel refuses namespaces or `/dev/net/tun` can't be opened.
pub fn enter() -> Result<Sandbox, SandboxError> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let sandbox = match unshare(own) {
        Ok(()) => Sandbox::Root,
        Err(_lacks_the_capability) => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            unshare(own | CloneFlags::CLONE_NEWUSER)
                .map_err(|errno| SandboxError::UserNamespace(errno.into()))?;
            // A group map by an ordinary user is accepted only once setgroups(2) is given up: user_namespaces(7).
            write_own("setgroups", "deny")?;
            write_own("uid_map", &format!("0 {uid} 1"))?;
            write_own("gid_map", &format!("0 {gid} 1"))?;
            Sandbox::User
        }
    };
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|errno| SandboxError::Mounts(errno.into()))?;
    check_tun()?;
    Ok(sandbox)
}

/// Checks that tunnel devices can be created, as far as that is possible without creating one.
pub(crate) fn check_tun() -> Result<(), SandboxError> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop).map_err(SandboxError::Tun)
}

/// What to do about a device node that can't be opened.
fn tun_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "let users open it, as udev does: `chmod 0666 /dev/net/tun`, or run as root"
        }
        io::ErrorKind::NotFound => {
            "create it with `mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200`, or in a container pass \
             --device /dev/net/tun"
        }
        _ => "load the module with `modprobe tun`, or in a container pass --device /dev/net/tun",
    }
}

fn write_own(file: &'static str, text: &str) -> Result<(), SandboxError> {
    fs::write(format!("/proc/self/{file}"), text).map_err(|source| SandboxError::IdMap { file, source })
}
