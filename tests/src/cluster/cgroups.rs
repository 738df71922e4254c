//! The cgroups of a cluster: one directory for each node in each hierarchy of the machine, which the node sees as the root.
//!
//! They are all that a cluster has outside its namespaces, so they have to be removed by name: `meshd-cluster-ID`, and
//! below it the nodes.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::ClusterError;
use crate::error::Error;
use crate::mounts::{mount_failed, tmpfs};

/// Where every machine has its hierarchies.
const ROOT: &str = "/sys/fs/cgroup";
/// Where a hierarchy is mounted as a whole for a moment.
const STAGING: &str = "/run/lab/cgroup";

/// A hierarchy of cgroups of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Its directory in [`ROOT`], such as `cpu,cpuacct`.
    name: String,
    /// What it is mounted with.
    options: String,
}

/// The cgroups of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Cgroups {
    directory: String,
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Those of a cluster, whether they exist or not.
    pub(super) fn of(id: &str) -> Result<Self, ClusterError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(|source| file("read", path, source))?;
        Ok(Self { directory: format!("meshd-cluster-{id}"), hierarchies: hierarchies(&text) })
    }

    /// Fails where the machine has only version 2.
    pub(super) fn check(&self) -> Result<(), ClusterError> {
        if self.hierarchies.is_empty() { Err(ClusterError::NoCgroups) } else { Ok(()) }
    }

    /// Creates the directories of a node.
    pub(super) fn create(&self, node: &str) -> Result<(), ClusterError> {
        for hierarchy in &self.hierarchies {
            let top = Path::new(ROOT).join(&hierarchy.name);
            let mut path = top.clone();
            for name in [self.directory.as_str(), node] {
                let above = path.clone();
                path.push(name);
                fs::create_dir_all(&path).map_err(|source| file("create", &path, source))?;
                // No process can be in a cpuset without processors and memory, which are not inherited.
                for setting in ["cpuset.cpus", "cpuset.mems"] {
                    let (from, to) = (above.join(setting), path.join(setting));
                    if from.exists() {
                        let value = fs::read(&from).map_err(|source| file("read", &from, source))?;
                        fs::write(&to, value).map_err(|source| file("write", &to, source))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Mounts a node's directories as `/sys/fs/cgroup`. On a thread in the node's mount namespace.
    pub(super) fn mount(&self, node: &str) -> Result<(), Error> {
        tmpfs(Path::new(ROOT))?;
        for hierarchy in &self.hierarchies {
            let place = Path::new(ROOT).join(&hierarchy.name);
            for path in [Path::new(STAGING), &place] {
                fs::create_dir_all(path).map_err(|source| Error::File {
                    action: "create",
                    path: path.into(),
                    source,
                })?;
            }
            let failed = |errno: rustix::io::Errno| mount_failed("a cgroup hierarchy", &place, errno.into());
            let options = CString::new(hierarchy.options.as_str()).unwrap_or_default();
            mount("cgroup", STAGING, "cgroup", MountFlags::empty(), Some(options.as_c_str()))
                .map_err(failed)?;
            mount_bind(Path::new(STAGING).join(&self.directory).join(node), &place).map_err(failed)?;
            unmount(STAGING, UnmountFlags::DETACH).map_err(failed)?;
            // `cpu,cpuacct` is known by each of its names.
            for name in hierarchy.name.split(',').filter(|name| **name != hierarchy.name) {
                let link = Path::new(ROOT).join(name);
                std::os::unix::fs::symlink(&hierarchy.name, &link).map_err(|source| Error::File {
                    action: "create",
                    path: link,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The directories that exist, of all hierarchies.
    pub(super) fn existing(&self) -> Vec<PathBuf> {
        let paths = self
            .hierarchies
            .iter()
            .map(|hierarchy| Path::new(ROOT).join(&hierarchy.name).join(&self.directory));
        paths.filter(|path| path.exists()).collect()
    }

    /// Removes all directories. The last processes in them may still be ending.
    pub(super) fn remove(&self, within: Duration) -> Result<(), ClusterError> {
        let since = Instant::now();
        for path in self.existing() {
            while let Err(source) = remove_tree(&path) {
                if since.elapsed() >= within {
                    return Err(file("remove", &path, source));
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

/// Arguments of `sh` that put a program into the node's cgroups and make those the root of what it sees. The program and
/// its arguments follow.
pub(super) fn enter() -> [&'static str; 3] {
    let script = "set -e; for file in /sys/fs/cgroup/*/cgroup.procs; do echo 0 >\"$file\"; done; exec unshare --cgroup \"$@\"";
    ["-c", script, "sh"]
}

/// The directories are removed from the bottom; their files go with them.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The hierarchies of version 1 that `/proc/self/mountinfo` has in [`ROOT`]; the format is in proc(5).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let lines = mountinfo.lines().filter_map(|line| line.split_once(" - "));
    let found = lines.filter_map(|(place, kind)| {
        let place = place.split(' ').nth(4)?;
        let mut kind = kind.split(' ');
        let (kind, _source, options) = (kind.next()?, kind.next()?, kind.next()?);
        let name = place.strip_prefix(ROOT)?.strip_prefix('/')?;
        (kind == "cgroup" && !name.contains('/'))
            .then(|| Hierarchy { name: name.to_owned(), options: mount_options(options) })
    });
    found.collect()
}

/// Of a mounted hierarchy's options those that say which one it is.
fn mount_options(shown: &str) -> String {
    let telling = |option: &&str| {
        !["rw", "ro", "xattr", "noprefix", "clone_children"].contains(option)
            && !option.starts_with("release_agent=")
    };
    let mut options: Vec<&str> = shown.split(',').filter(telling).collect();
    if options.iter().all(|option| option.starts_with("name=")) {
        options.insert(0, "none");
    }
    options.join(",")
}

fn file(action: &'static str, path: &Path, source: io::Error) -> ClusterError {
    ClusterError::Lab(Error::File { action, path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_those_of_version_1() {
        let mountinfo = "\
            24 1 0:21 / /sys rw,relatime - sysfs sysfs rw\n\
            30 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            31 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
            33 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            34 33 0:28 / /elsewhere/cpu rw - cgroup cgroup rw,cpu,cpuacct\n";
        let expected = [("cpu,cpuacct", "cpu,cpuacct"), ("systemd", "none,name=systemd")];
        let expected =
            expected.map(|(name, options)| Hierarchy { name: name.into(), options: options.into() });
        assert_eq!(hierarchies(mountinfo), expected);
        assert_eq!(hierarchies("30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), []);
    }
}
