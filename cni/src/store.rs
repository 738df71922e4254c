//! Who has which address: one file an attachment, whose name alone reserves its addresses.
//!
//! A name is `LINK@ADDRESS@ADDRESS`, so what is taken is known from a listing, and a file that can't be read
//! still reserves. Changes are made under a lock; a file appears whole by being renamed. Nothing is forced to
//! disk: attachments don't outlive a reboot, and what was made before one is dropped as a whole, known by the
//! kernel's boot id.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linux::POD_LINK_PREFIX;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::call::Attachment;
use crate::error::CniError;

/// How long a call waits for another one: far longer than any call holds the lock.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between a file's name parts.
const SEPARATOR: char = '@';
/// How the name of a file that is being written begins.
const UNFINISHED: &str = ".new-";

/// The state folder, locked for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    _lock: File,
}

/// One attachment in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Name of the node's end of the pair.
    pub(crate) host_link: String,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    file: PathBuf,
}

/// What a file holds beyond its name: for people, the plugin never reads it.
#[derive(Serialize)]
struct Contents<'a> {
    container: &'a str,
    interface: &'a str,
}

/// Name of the node's end of an attachment's pair: the same for every call about the same attachment.
pub(crate) fn host_link(attachment: &Attachment) -> String {
    let [first, second, third, fourth, fifth, ..] = digest(attachment, "link");
    format!("{POD_LINK_PREFIX}{first:02x}{second:02x}{third:02x}{fourth:02x}{fifth:02x}")
}

/// A digest of an attachment for one purpose.
pub(crate) fn digest(attachment: &Attachment, purpose: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [purpose, &attachment.container, &attachment.interface] {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().into()
}

impl Store {
    /// Opens and locks the folder; drops what a former boot left.
    pub(crate) fn open(folder: &Path) -> Result<Self, CniError> {
        std::fs::create_dir_all(folder.join("attachments")).map_err(failed("make", folder))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(failed("open", &path))?;
        let since = Instant::now();
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_micros(500));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(CniError::Locked { path }),
                Err(errno) => return Err(failed("lock", &path)(errno.into())),
            }
        }
        let store = Self { folder: folder.to_owned(), _lock: lock };
        store.forget_former_boot()?;
        Ok(store)
    }

    /// Every attachment that is stored.
    pub(crate) fn all(&self) -> Result<Vec<Stored>, CniError> {
        let folder = self.attachments();
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed("list", &folder))? {
            let entry = entry.map_err(failed("list", &folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(UNFINISHED) {
                // Whoever was writing it has lost the lock, so it will never be finished.
                remove(&entry.path())?;
            } else {
                let mut parts = name.split(SEPARATOR);
                let host_link = parts.next().unwrap_or_default().to_owned();
                let addresses = parts.filter_map(|text| text.parse().ok()).collect();
                found.push(Stored { host_link, addresses, file: entry.path() });
            }
        }
        Ok(found)
    }

    /// Every address that is taken.
    pub(crate) fn taken(&self) -> Result<BTreeSet<IpAddr>, CniError> {
        Ok(self.all()?.into_iter().flat_map(|stored| stored.addresses).collect())
    }

    /// What is stored of an attachment.
    pub(crate) fn find(&self, attachment: &Attachment) -> Result<Vec<Stored>, CniError> {
        let wanted = host_link(attachment);
        Ok(self.all()?.into_iter().filter(|stored| stored.host_link == wanted).collect())
    }

    /// The address of a family that was given out last.
    pub(crate) fn last(&self, ipv4: bool) -> Option<IpAddr> {
        std::fs::read_to_string(self.last_file(ipv4)).ok()?.trim().parse().ok()
    }

    /// Reserves addresses for an attachment.
    pub(crate) fn reserve(&self, attachment: &Attachment, addresses: &[IpAddr]) -> Result<Stored, CniError> {
        let host_link = host_link(attachment);
        let name = [host_link.clone()].into_iter().chain(addresses.iter().map(ToString::to_string));
        let file = self.attachments().join(name.collect::<Vec<_>>().join(&SEPARATOR.to_string()));
        let contents = Contents { container: &attachment.container, interface: &attachment.interface };
        // Two strings always serialize.
        self.write(&file, &serde_json::to_string(&contents).unwrap_or_default())?;
        for address in addresses {
            // Only the order of addresses depends on it, so a full disk here does no harm.
            let _ = self.write(&self.last_file(address.is_ipv4()), &address.to_string());
        }
        Ok(Stored { host_link, addresses: addresses.to_vec(), file })
    }

    /// Frees what an attachment has, under the lock. Freeing it twice is no error.
    #[expect(clippy::unused_self, reason = "whoever has a store has the lock")]
    pub(crate) fn release(&self, stored: &Stored) -> Result<(), CniError> {
        remove(&stored.file)
    }

    fn attachments(&self) -> PathBuf {
        self.folder.join("attachments")
    }

    fn last_file(&self, ipv4: bool) -> PathBuf {
        self.folder.join(if ipv4 { "last4" } else { "last6" })
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), CniError> {
        let mut name = std::ffi::OsString::from(UNFINISHED);
        name.push(path.file_name().unwrap_or_default());
        let unfinished = self.attachments().join(name);
        let written = std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, path));
        written.map_err(|source| {
            // A full disk leaves an empty file; it would reserve nothing, but it is not ours to leave.
            let _ = std::fs::remove_file(&unfinished);
            CniError::Io { operation: "write", path: path.to_owned(), source }
        })
    }

    fn forget_former_boot(&self) -> Result<(), CniError> {
        let source = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(source).map_err(failed("read", source))?;
        let path = self.folder.join("boot");
        match std::fs::read_to_string(&path) {
            Ok(known) if known == boot => return Ok(()),
            Ok(_) => {
                for stored in self.all()? {
                    self.release(&stored)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(CniError::Io { operation: "read", path, source }),
        }
        self.write(&path, &boot)
    }
}

/// Removes the folder unless something is reserved in it.
pub(crate) fn forget(folder: &Path) -> Result<bool, CniError> {
    if !folder.exists() {
        return Ok(false);
    }
    let store = Store::open(folder)?;
    let attached = store.all()?.len();
    if attached > 0 {
        return Err(CniError::Attached { count: attached });
    }
    std::fs::remove_dir_all(folder).map_err(failed("remove", folder))?;
    Ok(true)
}

fn remove(path: &Path) -> Result<(), CniError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CniError {
    move |source| CniError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment { container: container.to_owned(), interface: "eth0".to_owned() }
    }

    #[test]
    fn the_name_reserves_even_if_the_file_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let addresses: Vec<IpAddr> = vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let stored = store.reserve(&attachment("c1"), &addresses).unwrap();
        std::fs::write(&stored.file, "").unwrap();
        assert_eq!(store.taken().unwrap(), addresses.iter().copied().collect());
        assert_eq!(store.find(&attachment("c1")).unwrap(), std::slice::from_ref(&stored));
        assert_eq!(store.last(true), Some(addresses[0]));
        store.release(&stored).unwrap();
        store.release(&stored).unwrap();
        assert!(store.taken().unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_call_was_writing_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let rest = folder.path().join("attachments/.new-mveth00@10.244.1.9");
        std::fs::write(&rest, "").unwrap();
        assert!(store.all().unwrap().is_empty());
        assert!(!rest.exists());
    }

    #[test]
    fn a_reboot_frees_everything() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.reserve(&attachment("c1"), &["10.244.1.2".parse().unwrap()]).unwrap();
        std::fs::write(folder.path().join("boot"), "another boot\n").unwrap();
        drop(store);
        assert!(Store::open(folder.path()).unwrap().taken().unwrap().is_empty());
    }

    #[test]
    fn names_fit_the_kernel_and_differ() {
        let one = host_link(&attachment("c1"));
        assert_eq!(one.len(), 15);
        assert_ne!(one, host_link(&attachment("c2")));
        assert_ne!(one, host_link(&Attachment { interface: "eth1".to_owned(), ..attachment("c1") }));
    }
}
