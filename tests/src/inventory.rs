//! What files a host holds: for tests that nothing is left, or that nothing is written.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use lab::{Inventory, Lab};
//!
//! let lab = Lab::builder().nodes(1).build()?;
//! let node = lab.node("n1")?;
//! let before = Inventory::take(node)?;
//! // ... something that should leave no trace ...
//! assert_eq!(Inventory::take(node)?.changes_since(&before), []);
//! # Ok(())
//! # }
//! ```
//!
//! An inventory covers everything below [`PRIVATE`], the only directories in which a host can leave something, except
//! `/run/lab`, which is the lab's own. It lists files, sockets and links, not directories, and does not follow links.
//! For secrets see [`needle::in_host`](crate::needle::in_host), which searches the same files.
//!
//! A list that misses things makes such a test pass, so each inventory proves itself: it plants a file in each of
//! [`PRIVATE`], and fails with [`Error::Blind`] unless it finds all of them. They are removed at once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Error;
use crate::host::Host;
use crate::mounts::PRIVATE;

/// The lab's own directory in a host.
const LAB: &str = "/run/lab";

/// The start of the names of planted files, which no inventory lists.
const CONTROL: &str = ".lab-control-";

/// The files of a host at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    files: BTreeMap<PathBuf, Stamp>,
}

/// How a file differs between two inventories.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It was not there before.
    Added(PathBuf),
    /// It is gone.
    Removed(PathBuf),
    /// It was written, replaced, or its mode or owner was changed.
    Written(PathBuf),
}

/// What changes whenever a file is written or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
    len: u64,
}

/// A file that was planted in a directory, removed when dropped.
pub(crate) struct Control {
    directory: PathBuf,
    path: PathBuf,
}

/// What `ip` and `nft` show of a host's network: for tests that nothing of it is left.
const NETWORK: &str = "
    ip -br link; ip -br addr
    ip -4 route show table all; ip -6 route show table all; ip -4 rule; ip -6 rule; ip neigh show nud permanent
    nft --stateless list ruleset
";

impl Inventory {
    /// The links, addresses, routes, rules and tables of a host, one per line, without what changes by itself: lifetimes of
    /// IPv6 addresses and routes count down, and anycast addresses are the kernel's own for as long as it forwards.
    /// Forwarding stays on after an uninstall, since others on the node may have come to rely on it.
    pub fn network(host: &Host) -> Result<String, Error> {
        let text = host.command("sh").args(["-c", NETWORK]).run()?;
        let stable = text.lines().filter(|line| !line.contains("expires") && !line.starts_with("anycast"));
        Ok(stable.map(str::trim_end).collect::<Vec<_>>().join("\n"))
    }

    /// Lists the files of a host. Fails with [`Error::Blind`] if a file planted in one of [`PRIVATE`] is not found.
    pub fn take(host: &Host) -> Result<Self, Error> {
        host.run(|| Self::of(&PRIVATE.map(Path::new), &[Path::new(LAB)], host.name()))?
    }

    /// What is different now, sorted; empty if nothing is.
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        let new = self.files.iter().filter_map(|(path, stamp)| match before.files.get(path) {
            None => Some(Change::Added(path.clone())),
            Some(old) => (old != stamp).then(|| Change::Written(path.clone())),
        });
        let gone = before.files.keys().filter(|path| !self.files.contains_key(*path));
        let mut changes: Vec<_> = new.chain(gone.cloned().map(Change::Removed)).collect();
        changes.sort();
        changes
    }

    /// The paths of all files, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Whether there is a file of this path.
    pub fn contains(&self, path: impl AsRef<Path>) -> bool {
        self.files.contains_key(path.as_ref())
    }

    /// Lists the files below some directories where the calling thread is.
    fn of(directories: &[&Path], skipped: &[&Path], host: &str) -> Result<Self, Error> {
        let controls = plant(directories, b"")?;
        let mut files = BTreeMap::new();
        let mut seen = Vec::new();
        for directory in directories {
            walk(directory, skipped, &mut |path, metadata| {
                if is_control(path) {
                    seen.push(path.to_owned());
                } else {
                    files.insert(path.to_owned(), Stamp::of(metadata));
                }
                Ok(())
            })
            .map_err(|source| Error::File {
                action: "list",
                path: (*directory).into(),
                source,
            })?;
        }
        check(&controls, &seen, host)?;
        Ok(Self { files })
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            len: metadata.len(),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Writes a file with these bytes into each directory, under a name that nothing else has.
pub(crate) fn plant(directories: &[&Path], bytes: &[u8]) -> Result<Vec<Control>, Error> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let plant = |directory: &&Path| {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{CONTROL}{}-{number}", std::process::id()));
        let control = Control { directory: directory.to_path_buf(), path };
        fs::write(&control.path, bytes).map_err(|source| Error::File {
            action: "create",
            path: control.path.clone(),
            source,
        })?;
        Ok(control)
    };
    directories.iter().map(plant).collect()
}

/// Fails unless every planted file is among the files that were found.
pub(crate) fn check(controls: &[Control], found: &[PathBuf], host: &str) -> Result<(), Error> {
    match controls.iter().find(|control| !found.contains(&control.path)) {
        Some(missed) => Err(Error::Blind { host: host.to_owned(), path: missed.directory.clone() }),
        None => Ok(()),
    }
}

/// Whether a path is that of a planted file, of this inventory or of another one at the same time.
pub(crate) fn is_control(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(CONTROL))
}

/// Calls a function for everything below a directory that is not a directory itself. Files that vanish meanwhile, and
/// directories that are missing, hold nothing.
pub(crate) fn walk(
    directory: &Path,
    skipped: &[&Path],
    visit: &mut dyn FnMut(&Path, &fs::Metadata) -> io::Result<()>,
) -> io::Result<()> {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let Some(entries) = present(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let path = entry?.path();
            let Some(metadata) = present(fs::symlink_metadata(&path))? else { continue };
            if !metadata.is_dir() {
                visit(&path, &metadata)?;
            } else if !skipped.contains(&path.as_path()) {
                directories.push(path);
            }
        }
    }
    Ok(())
}

/// None for a file that is not there.
pub(crate) fn present<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_files_added_removed_and_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let take = || Inventory::of(&[directory.path()], &[], "here").unwrap();
        fs::create_dir_all(path("deep/er")).unwrap();
        for name in ["kept", "gone", "deep/er/written", "replaced"] {
            fs::write(path(name), "1").unwrap();
        }
        let before = take();
        assert_eq!(take().changes_since(&before), []);
        fs::remove_file(path("gone")).unwrap();
        fs::write(path("deep/er/written"), "2").unwrap();
        fs::write(path("new"), "1").unwrap();
        fs::rename(path("new"), path("replaced")).unwrap();
        std::os::unix::fs::symlink("/nowhere", path("link")).unwrap();
        let expected = [
            Change::Added(path("link")),
            Change::Removed(path("gone")),
            Change::Written(path("deep/er/written")),
            Change::Written(path("replaced")),
        ];
        let after = take();
        assert_eq!(after.changes_since(&before), expected);
        assert!(after.contains(path("link")) && !after.contains(path("gone")));
        assert_eq!(after.paths().count(), 4);
    }

    #[test]
    fn an_inventory_that_misses_a_directory_fails() {
        let directory = tempfile::tempdir().unwrap();
        let hidden = directory.path().join("hidden");
        fs::create_dir(&hidden).unwrap();
        let both = [directory.path(), hidden.as_path()];
        Inventory::of(&both, &[], "here").unwrap();
        // Links are not followed, so what is behind one is not seen.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::remove_dir(&hidden).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), &hidden).unwrap();
        let controls = plant(&both, b"").unwrap();
        let mut seen = Vec::new();
        walk(directory.path(), &[], &mut |path, _| {
            seen.push(path.to_owned());
            Ok(())
        })
        .unwrap();
        let error = check(&controls, &seen, "here").unwrap_err();
        assert!(matches!(&error, Error::Blind { path, .. } if *path == hidden), "{error}");
        drop(controls);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "planted files are removed");
    }
}
