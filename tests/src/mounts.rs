//! The private directories of a host: daemons run with their default paths, and nothing of theirs is visible outside.
//!
//! An empty tmpfs on each of [`PRIVATE`], with mode 0755 like the directories that a kubelet creates. `/sys` shows the
//! host's own network devices, `/proc` its own processes. Everything else is the machine's. Runs on a thread that is
//! alone in a new mount namespace.
//!
//! Where the machine lacks one of these directories, a mount point is needed, and the machine must not be written to:
//! the parent is covered by a tmpfs, and each of its entries is bind-mounted at its old path. Symbolic links to the
//! entries would be cheaper, but `find` and the like don't follow them, so tests would miss what is behind.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change};

use crate::error::Error;

/// Directories that every host of a lab has for itself, empty at the start. `/var/run` is `/run` on Debian.
pub const PRIVATE: [&str; 5] = ["/run", "/etc/cni", "/var/lib/meshd", "/var/lib/cni", "/opt/cni"];

/// Where a host has the `/proc` of the process that created it, for threads of that process that enter the host.
pub(crate) const OUTER_PROC: &str = "/run/lab/proc";

/// Directories that exist below them from the start, as on a node with a container runtime.
const PREPARED: [&str; 4] = ["/run/netns", OUTER_PROC, "/etc/cni/net.d", "/opt/cni/bin"];

/// Makes the calling thread's mount namespace private and mounts what a host has for itself: [`PRIVATE`], and `more`.
pub(crate) fn privatize(more: &[&str]) -> Result<(), Error> {
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|errno| mount_failed("private root", Path::new("/"), errno.into()))?;
    let mut tree = Tree::default();
    for path in PRIVATE.iter().chain(more).map(Path::new) {
        tree.make_directory(path)?;
        tmpfs(path)?;
    }
    for path in PREPARED.map(Path::new) {
        fs::create_dir_all(path).map_err(|source| create_failed(path, source))?;
    }
    mount_sysfs();
    Ok(())
}

/// Mounts the `/proc` of the process namespace that the calling thread's children are in, which has to have a first
/// process already. Programs find themselves there by the process id that they know.
pub(crate) fn mount_proc() -> Result<(), Error> {
    mount_bind_recursive("/proc", OUTER_PROC)
        .map_err(|errno| mount_failed("the outer /proc", Path::new(OUTER_PROC), errno.into()))?;
    // A new procfs shows the process namespace of the process that mounts it. A thread can't change its own, but its
    // children are in the new one.
    let mut mount = Command::new("mount");
    let output = mount.args(["-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc"]).output();
    let output = output.map_err(|source| mount_failed("proc", Path::new("/proc"), source))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(mount_failed("proc", Path::new("/proc"), io::Error::other(stderr)))
}

/// Shows the network devices of the thread's own namespace below `/sys/class/net`. Inside a container the kernel may
/// refuse a new sysfs; then `/sys` stays the outer one, which nothing in a lab depends on.
fn mount_sysfs() {
    let _keeps_the_outer_one = mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None::<&CStr>);
}

pub(crate) fn tmpfs(path: &Path) -> Result<(), Error> {
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))
        .map_err(|errno| mount_failed("tmpfs", path, errno.into()))
}

/// The directories of the thread's mount namespace that are on a tmpfs of its own and so can be written to.
#[derive(Default)]
struct Tree {
    writable: Vec<PathBuf>,
}

impl Tree {
    /// Ensures that a path and all directories above it are directories, not links, without writing to the machine.
    /// A directory directly below `/` is taken as it is, since `/` can't be covered.
    fn make_directory(&mut self, path: &Path) -> Result<(), Error> {
        let mut above: Vec<&Path> = path.ancestors().collect();
        above.reverse();
        for pair in above.windows(2) {
            let [parent, directory] = pair else { continue };
            let found = fs::symlink_metadata(directory).ok();
            if found.as_ref().is_some_and(fs::Metadata::is_dir) {
                continue;
            }
            if *parent == Path::new("/") {
                if directory.is_dir() {
                    continue;
                }
                let missing =
                    io::Error::new(io::ErrorKind::NotFound, "it is missing, and / can't be covered");
                return Err(create_failed(directory, missing));
            }
            // The target of a link, before the link is removed.
            let target = open_directory(directory).ok();
            self.make_writable(parent)?;
            if found.is_some() {
                fs::remove_file(directory).map_err(|source| Error::File {
                    action: "replace",
                    path: directory.into(),
                    source,
                })?;
            }
            fs::create_dir(directory).map_err(|source| create_failed(directory, source))?;
            match target {
                Some(target) => bind(&entry_of(&target), directory)
                    .map_err(|source| mount_failed("the target of a link", directory, source))?,
                None => self.writable.push(directory.into()),
            }
        }
        Ok(())
    }

    /// Covers a directory of the machine with a tmpfs in which all its entries are at their old paths.
    fn make_writable(&mut self, directory: &Path) -> Result<(), Error> {
        if self.writable.iter().any(|known| known == directory) {
            return Ok(());
        }
        let covered = open_directory(directory).map_err(|source| Error::File {
            action: "open",
            path: directory.into(),
            source,
        })?;
        tmpfs(directory)?;
        bind_entries(&entry_of(&covered), directory)
            .map_err(|source| mount_failed("what was there", directory, source))?;
        self.writable.push(directory.into());
        Ok(())
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A path that leads to an open directory, even if something was mounted over it.
fn entry_of(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", directory.as_raw_fd()))
}

/// Repeats every entry of a directory in an empty one. Links are copied: relative ones then lead to their siblings.
fn bind_entries(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let repeated = repeat(&entry, &target);
        match repeated {
            // Removed meanwhile: others use the machine too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn repeat(entry: &fs::DirEntry, target: &Path) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        return symlink(fs::read_link(entry.path())?, target);
    }
    if kind.is_dir() {
        fs::create_dir(target)?;
    } else {
        File::create(target)?;
    }
    bind(&entry.path(), target)
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount_bind_recursive(from, to)?)
}

pub(crate) fn mount_failed(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Mount { what, path: path.into(), source }
}

fn create_failed(path: &Path, source: io::Error) -> Error {
    Error::File { action: "create", path: path.into(), source }
}
