//! Who has which address: one file an attachment, whose name alone reserves its addresses.
//!
//! A name is `LINK@BOOT@ADDRESS@ADDRESS`, so what is taken is known from a listing, and a file that can't be
//! read still reserves. Changes are made under a lock; a file appears whole by being renamed.
//!
//! Nothing is forced to disk, which would take as long as all the rest of an ADD. What a killed process wrote
//! is in the kernel's page cache and stays; what a machine loses when it stops is of no use afterwards, because
//! links and namespaces are lost with it. `BOOT` is the begin of the kernel's boot id, and what has another one
//! is dropped on sight.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use linux::POD_LINK_PREFIX;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::call::Attachment;
use crate::error::CniError;

/// How long a call waits for others: far longer than any call holds a lock, shorter than runtimes wait.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between a file's name parts.
const SEPARATOR: char = '@';
/// How the name of a file that is being written begins.
const UNFINISHED: &str = ".new-";
/// Where the kernel tells one boot from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Characters of the boot id that go into names: one boot in four billion is taken for another.
const BOOT_TAG: usize = 8;

/// The state folder, locked for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    boot: String,
    _lock: File,
}

/// The right to attach pods (many at once) or to sweep what belongs to none (alone).
///
/// ADD holds it from before it reserves addresses until its link is whole, so that GC never takes a pod that is
/// just being attached for one that is gone. Whoever needs a [`Store`] as well takes this first.
#[derive(Debug)]
pub(crate) struct Gate {
    _lock: File,
}

impl Gate {
    /// Joins those who attach.
    pub(crate) fn attach(folder: &Path) -> Result<Self, CniError> {
        make_folder(folder)?;
        let lock = lock(&folder.join("gate"), Hold::Shared, PATIENCE)?;
        Ok(Self { _lock: lock })
    }

    /// Waits until nobody attaches, and keeps others from it.
    pub(crate) fn sweep(folder: &Path) -> Result<Self, CniError> {
        make_folder(folder)?;
        let lock = lock(&folder.join("gate"), Hold::Alone, PATIENCE)?;
        Ok(Self { _lock: lock })
    }
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
    netns: &'a Path,
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
    /// Opens and locks the folder, which is made if it is missing.
    pub(crate) fn open(folder: &Path) -> Result<Self, CniError> {
        make_folder(folder)?;
        Self::lock(folder, PATIENCE)
    }

    /// Opens and locks the folder. `None` if there is none: then nothing is stored.
    pub(crate) fn open_existing(folder: &Path) -> Result<Option<Self>, CniError> {
        if attachments(folder).is_dir() { Self::lock(folder, PATIENCE).map(Some) } else { Ok(None) }
    }

    fn lock(folder: &Path, patience: Duration) -> Result<Self, CniError> {
        let lock = lock(&folder.join("lock"), Hold::Alone, patience)?;
        let source = Path::new(BOOT_ID);
        let boot_id = std::fs::read_to_string(source).map_err(failed("read", source))?;
        let boot = boot_id.chars().take(BOOT_TAG).collect();
        Ok(Self { folder: folder.to_owned(), boot, _lock: lock })
    }

    /// Every attachment of this boot that is stored. What a former boot or a killed call left is cleared.
    pub(crate) fn all(&self) -> Result<Vec<Stored>, CniError> {
        let folder = attachments(&self.folder);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed("list", &folder))? {
            let file = entry.map_err(failed("list", &folder))?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED) {
                // Whoever was writing it has lost the lock, so it will never be finished.
                remove(&file)?;
                continue;
            }
            let mut parts = name.split(SEPARATOR);
            let host_link = parts.next().unwrap_or_default().to_owned();
            let boot = parts.next();
            let addresses = parts.filter_map(|text| text.parse().ok()).collect();
            if boot == Some(self.boot.as_str()) {
                found.push(Stored { host_link, addresses, file });
            } else if host_link.starts_with(POD_LINK_PREFIX) {
                remove(&file)?;
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
    pub(crate) fn reserve(
        &self,
        attachment: &Attachment,
        netns: &Path,
        addresses: &[IpAddr],
    ) -> Result<Stored, CniError> {
        let host_link = host_link(attachment);
        let parts = [host_link.clone(), self.boot.clone()].into_iter();
        let name: Vec<String> = parts.chain(addresses.iter().map(ToString::to_string)).collect();
        let file = attachments(&self.folder).join(name.join(&SEPARATOR.to_string()));
        let Attachment { container, interface } = attachment;
        let contents = Contents { container, interface, netns };
        // Three strings always serialize; a path that is no text is nothing that people need.
        self.write(&file, &serde_json::to_string(&contents).unwrap_or_else(|_| "{}".to_owned()))?;
        for address in addresses {
            // Only the order of addresses depends on it, so a full disk here does no harm.
            let _ = self.set_last(*address);
        }
        Ok(Stored { host_link, addresses: addresses.to_vec(), file })
    }

    /// Frees what an attachment has, under the lock. Freeing it twice is no error.
    #[expect(clippy::unused_self, reason = "whoever has a store has the lock")]
    pub(crate) fn release(&self, stored: &Stored) -> Result<(), CniError> {
        remove(&stored.file)
    }

    /// In place and of one length: replacing or cutting a file makes ext4 write it to disk at once.
    fn set_last(&self, address: IpAddr) -> io::Result<()> {
        let path = self.last_file(address.is_ipv4());
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        file.write_all(format!("{:<45}\n", address.to_string()).as_bytes())
    }

    fn last_file(&self, ipv4: bool) -> PathBuf {
        self.folder.join(if ipv4 { "last4" } else { "last6" })
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), CniError> {
        let mut name = std::ffi::OsString::from(UNFINISHED);
        name.push(path.file_name().unwrap_or_default());
        let unfinished = attachments(&self.folder).join(name);
        let written = std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, path));
        written.map_err(|source| {
            // A full disk leaves an empty file; it would reserve nothing, but it is not ours to leave.
            let _ = std::fs::remove_file(&unfinished);
            CniError::Io { operation: "write", path: path.to_owned(), source }
        })
    }
}

fn attachments(folder: &Path) -> PathBuf {
    folder.join("attachments")
}

fn make_folder(folder: &Path) -> Result<(), CniError> {
    std::fs::create_dir_all(attachments(folder)).map_err(failed("make", folder))
}

/// Who else may have a lock at the same time.
#[derive(Clone, Copy)]
enum Hold {
    Shared,
    Alone,
}

/// Opens and locks a file. The kernel unlocks it when the process ends, however it ends.
fn lock(path: &Path, hold: Hold, patience: Duration) -> Result<File, CniError> {
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed("open", path))?;
    let (try_it, wait_for_it) = match hold {
        Hold::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
        Hold::Alone => (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive),
    };
    match flock(&file, try_it) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => {}
        Err(errno) => return Err(failed("lock", path)(errno.into())),
    }
    // The kernel wakes those who wait as soon as the lock is free; trying now and then instead starves some
    // of many. It knows no time limit, so a thread waits, and this one waits for the thread.
    let waiting = file.try_clone().map_err(failed("lock", path))?;
    let (tell, told) = mpsc::channel();
    let wait = move || {
        let locked = flock(&waiting, wait_for_it);
        drop(waiting);
        // If nobody listens any more the lock is gone with the file.
        let _ = tell.send(locked);
    };
    std::thread::Builder::new().spawn(wait).map_err(failed("lock", path))?;
    match told.recv_timeout(patience) {
        Ok(Ok(())) => Ok(file),
        Ok(Err(errno)) => Err(failed("lock", path)(errno.into())),
        Err(_) => Err(CniError::Locked { path: path.to_owned() }),
    }
}

/// Removes the folder unless something is reserved in it.
pub(crate) fn forget(folder: &Path) -> Result<bool, CniError> {
    if !folder.exists() {
        return Ok(false);
    }
    let _alone = Gate::sweep(folder)?;
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
mod tests;
