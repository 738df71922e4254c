//! The private file tree of a host: daemons run with their default paths, and nothing of theirs is seen outside.
//!
//! Empty tmpfs on each of [`PRIVATE`], with mode 0755 like folders that a kubelet makes; `/sys` shows the host's own
//! network devices, `/proc` its own processes. Everything else is the machine's, as it is. Runs on a thread that is
//! alone in a new mount namespace.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};

use crate::error::Error;

/// Folders that every host of a lab has for itself, empty at the start. `/var/run` is `/run` on Debian.
pub const PRIVATE: [&str; 5] = ["/run", "/etc/cni", "/var/lib/meshd", "/var/lib/cni", "/opt/cni"];

/// Where a host has the `/proc` of the process that made it, for that process's own threads that come in.
pub(crate) const OUTER_PROC: &str = "/run/lab/proc";

/// Folders that exist below them from the start, as on a node with a container runtime.
const PREPARED: [&str; 4] = ["/run/netns", OUTER_PROC, "/etc/cni/net.d", "/opt/cni/bin"];

/// Makes the calling thread's mount namespace private and mounts what a host has for itself.
pub(crate) fn privatize() -> Result<(), Error> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|errno| failed("private root", Path::new("/"), errno.into()))?;
    for path in PRIVATE.map(Path::new) {
        ensure_mount_point(path)?;
        tmpfs(path)?;
    }
    for path in PREPARED.map(Path::new) {
        fs::create_dir_all(path).map_err(|source| create_failed(path, source))?;
    }
    own_sysfs();
    Ok(())
}

/// Mounts the `/proc` of the process namespace that the calling thread's children are in, which has to have a first
/// process already. Programs find themselves there by the process id that they know.
pub(crate) fn own_proc() -> Result<(), Error> {
    mount_bind_recursive("/proc", OUTER_PROC)
        .map_err(|errno| failed("the outer /proc", Path::new(OUTER_PROC), errno.into()))?;
    // It shows the process namespace of who mounts it, and no thread can enter another; a child can.
    let mut mount = Command::new("mount");
    let output = mount.args(["-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc"]).output();
    let output = output.map_err(|source| failed("proc", Path::new("/proc"), source))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed("proc", Path::new("/proc"), io::Error::other(said)))
}

/// Shows the network devices of the thread's own namespace below `/sys/class/net`. Inside a container the kernel may
/// refuse a new sysfs; then `/sys` stays the outer one, which nothing in a lab depends on.
fn own_sysfs() {
    let _stays_as_it_is = mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None::<&CStr>);
}

fn tmpfs(path: &Path) -> Result<(), Error> {
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))
        .map_err(|errno| failed("tmpfs", path, errno.into()))
}

/// Makes a folder that the machine lacks without writing to the machine: its nearest existing parent is covered by a
/// tmpfs in which links lead to all that was there.
fn ensure_mount_point(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.ancestors().find(|parent| parent.is_dir()).unwrap_or_else(|| Path::new("/"));
    if parent == Path::new("/") {
        let missing = io::Error::new(io::ErrorKind::NotFound, "its parent is missing and / can't be covered");
        return Err(create_failed(path, missing));
    }
    let behind = PathBuf::from("/run/lab/behind").join(parent.strip_prefix("/").unwrap_or(parent));
    fs::create_dir_all(&behind).map_err(|source| create_failed(&behind, source))?;
    mount_bind_recursive(parent, &behind).map_err(|errno| failed("bind", &behind, errno.into()))?;
    tmpfs(parent)?;
    link_all(&behind, parent).map_err(|source| create_failed(parent, source))?;
    fs::create_dir_all(path).map_err(|source| create_failed(path, source))
}

/// Links every entry of a folder into another; links are repeated as they are, so relative ones lead to their siblings.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target =
            if entry.file_type()?.is_symlink() { fs::read_link(entry.path())? } else { entry.path() };
        symlink(target, to.join(entry.file_name()))?;
    }
    Ok(())
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Mount { what, path: path.into(), source }
}

fn create_failed(path: &Path, source: io::Error) -> Error {
    Error::File { action: "create", path: path.into(), source }
}
