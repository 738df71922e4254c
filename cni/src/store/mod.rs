//! Reserved addresses: one file an attachment, whose name alone reserves them.
//!
//! A name is `LINK@BOOT@ADDRESS@ADDRESS`, and ends with `@ports` if host ports lead to the pod. So what is taken is known
//! from a listing, a file that can't be read still reserves, and files are read for host ports alone, and when the
//! addresses run out. Changes are made under a lock; files are written under another name and renamed.
//!
//! Nothing is forced to disk, which would take as long as all the rest of an ADD. What a killed process wrote
//! is in the kernel's page cache and stays; what a machine loses when it stops is of no use afterwards, because
//! links and namespaces are lost with it. `BOOT` is the beginning of the kernel's boot id; files of another boot
//! are removed when they are found.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use linux::host_ports::Mapping;
use linux::netns::NetworkNamespace;
use linux::{POD_LINK_PREFIX, veth};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;
use crate::error::CniError;
use crate::ports::{PortRequest, mappings};

/// How long a call waits for a lock: far longer than any call holds one, shorter than runtimes' timeouts.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the daemon waits for the store's lock: a call holds it for milliseconds.
pub(crate) const DAEMON_TIMEOUT: Duration = Duration::from_millis(100);
/// Between a file's name parts.
const SEPARATOR: char = '@';
/// Last part of the name if host ports lead to the pod. Earlier versions, which know addresses alone, pass over it.
const WITH_PORTS: &str = "ports";
/// Prefix of the name of a file that is being written.
const UNFINISHED: &str = ".new-";
/// The kernel's id of this boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Characters of the boot id that go into names: one boot in four billion is taken for another.
const BOOT_TAG: usize = 8;

/// The state directory, locked as long as this value exists.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    boot: String,
    _lock: File,
}

/// The lock between ADD, which may run many times at once (shared), and GC (exclusive).
///
/// ADD holds it from before it reserves addresses until its link is complete, so that GC never releases a pod that is
/// being attached. A call that needs a [`Store`] as well takes this lock first.
#[derive(Debug)]
pub(crate) struct AttachLock {
    _lock: File,
}

impl AttachLock {
    /// For ADD: waits for a running GC.
    pub(crate) fn shared(dir: &Path) -> Result<Self, CniError> {
        create_dir(dir)?;
        let lock = lock(&dir.join("gate"), LockMode::Shared, LOCK_TIMEOUT)?;
        Ok(Self { _lock: lock })
    }

    /// For GC: waits for every running ADD, and makes later ones wait.
    pub(crate) fn exclusive(dir: &Path) -> Result<Self, CniError> {
        create_dir(dir)?;
        let lock = lock(&dir.join("gate"), LockMode::Exclusive, LOCK_TIMEOUT)?;
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
    /// Whether host ports lead to it.
    pub(crate) has_ports: bool,
    file: PathBuf,
}

/// What a file holds beyond its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// The container's id.
    pub(crate) container: String,
    /// Name of the interface inside.
    pub(crate) interface: String,
    /// Path of the pod's namespace; none if it is not UTF-8.
    pub(crate) netns: Option<PathBuf>,
    /// The host ports that lead to the pod; none in a file of a version that left them to another plugin.
    #[serde(default)]
    pub(crate) ports: Option<Vec<PortRequest>>,
}

impl Stored {
    /// Reads the file. `None` if it is empty, as a disk that was full leaves it, or gone meanwhile.
    pub(crate) fn contents(&self) -> Option<Contents> {
        serde_json::from_slice(&std::fs::read(&self.file).ok()?).ok()
    }

    /// The attachment, if a version made it that left host ports to another plugin.
    pub(crate) fn former(&self) -> Option<Attachment> {
        if self.has_ports {
            return None;
        }
        let Contents { container, interface, ports: None, .. } = self.contents()? else { return None };
        Some(Attachment { container, interface })
    }

    /// The host ports that lead to the pod.
    pub(crate) fn mappings(&self) -> BTreeSet<Mapping> {
        if !self.has_ports {
            return BTreeSet::new();
        }
        let requests = self.contents().and_then(|contents| contents.ports).unwrap_or_default();
        mappings(&requests, &self.addresses).unwrap_or_default()
    }
}

impl Store {
    /// Opens and locks the directory, which is created if it is missing.
    pub(crate) fn open(dir: &Path) -> Result<Self, CniError> {
        create_dir(dir)?;
        Self::lock(dir, LOCK_TIMEOUT)
    }

    /// Opens and locks the directory. `None` if there is none: then nothing is stored.
    pub(crate) fn open_existing(dir: &Path) -> Result<Option<Self>, CniError> {
        if attachments(dir).is_dir() { Self::lock(dir, LOCK_TIMEOUT).map(Some) } else { Ok(None) }
    }

    /// The same for one who can't wait for long.
    pub(crate) fn open_existing_within(dir: &Path, timeout: Duration) -> Result<Option<Self>, CniError> {
        if attachments(dir).is_dir() { Self::lock(dir, timeout).map(Some) } else { Ok(None) }
    }

    fn lock(dir: &Path, timeout: Duration) -> Result<Self, CniError> {
        let lock = lock(&dir.join("lock"), LockMode::Exclusive, timeout)?;
        Ok(Self { dir: dir.to_owned(), boot: boot_tag()?, _lock: lock })
    }

    /// Every attachment of this boot, read without the lock: if a change is under way, as it was before or after it. `None`
    /// without a directory.
    pub(crate) fn all_unlocked(dir: &Path) -> Result<Option<Vec<Stored>>, CniError> {
        let dir = attachments(dir);
        if !dir.is_dir() {
            return Ok(None);
        }
        let boot = boot_tag()?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let file = entry.map_err(failed("list", &dir))?.path();
            let of_this_boot = stored(&file).filter(|(of_boot, _)| *of_boot == boot);
            found.extend(of_this_boot.map(|(_, stored)| stored));
        }
        Ok(Some(found))
    }

    /// The host ports of every pod.
    pub(crate) fn mappings(&self) -> Result<BTreeSet<Mapping>, CniError> {
        Ok(self.all()?.iter().flat_map(Stored::mappings).collect())
    }

    /// Attachments whose pod is gone: their link went with the pod's namespace, or the namespace is no longer where ADD was
    /// given it. No ADD must be under way ([`AttachLock::exclusive`]): its link may not be there yet.
    pub(crate) fn gone(&self) -> Result<Vec<Stored>, CniError> {
        let links: BTreeSet<String> = veth::host_links()?.into_iter().collect();
        let mut gone = Vec::new();
        for stored in self.all()? {
            let netns = stored.contents().and_then(|contents| contents.netns);
            let has_namespace = match &netns {
                Some(path) if links.contains(&stored.host_link) => NetworkNamespace::is_at(path)?,
                _ => true,
            };
            if !has_namespace || !links.contains(&stored.host_link) {
                gone.push(stored);
            }
        }
        Ok(gone)
    }

    /// Every attachment of this boot that is stored. What another boot or a killed call left is removed.
    pub(crate) fn all(&self) -> Result<Vec<Stored>, CniError> {
        let dir = attachments(&self.dir);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let file = entry.map_err(failed("list", &dir))?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED) {
                // Its writer no longer holds the lock, so it will never be finished.
                remove(&file)?;
                continue;
            }
            match stored(&file) {
                Some((boot, stored)) if boot == self.boot => found.push(stored),
                Some((_, stored)) if stored.host_link.starts_with(POD_LINK_PREFIX) => remove(&file)?,
                _ => {}
            }
        }
        Ok(found)
    }

    /// Every reserved address.
    pub(crate) fn taken(&self) -> Result<BTreeSet<IpAddr>, CniError> {
        Ok(self.all()?.into_iter().flat_map(|stored| stored.addresses).collect())
    }

    /// What is stored of an attachment.
    pub(crate) fn find(&self, attachment: &Attachment) -> Result<Vec<Stored>, CniError> {
        let wanted = attachment.host_link();
        Ok(self.all()?.into_iter().filter(|stored| stored.host_link == wanted).collect())
    }

    /// The address of a family that was allocated last.
    pub(crate) fn last(&self, ipv4: bool) -> Option<IpAddr> {
        std::fs::read_to_string(self.last_file(ipv4)).ok()?.trim().parse().ok()
    }

    /// Reserves addresses for an attachment.
    pub(crate) fn reserve(
        &self,
        attachment: &Attachment,
        netns: &Path,
        addresses: &[IpAddr],
        ports: &[PortRequest],
    ) -> Result<Stored, CniError> {
        let host_link = attachment.host_link();
        let has_ports = !ports.is_empty();
        let mut name = vec![host_link.clone(), self.boot.clone()];
        name.extend(addresses.iter().map(ToString::to_string));
        name.extend(has_ports.then(|| WITH_PORTS.to_owned()));
        let file = attachments(&self.dir).join(name.join(&SEPARATOR.to_string()));
        let Attachment { container, interface } = attachment.clone();
        let netns = netns.to_str().map(PathBuf::from);
        let contents = Contents { container, interface, netns, ports: Some(ports.to_vec()) };
        // Strings, numbers and paths that are UTF-8 always serialize.
        self.write(&file, &serde_json::to_string(&contents).unwrap_or_default())?;
        for address in addresses {
            // Only the order of addresses depends on it, so a full disk here does no harm.
            let _ = self.set_last(*address);
        }
        Ok(Stored { host_link, addresses: addresses.to_vec(), has_ports, file })
    }

    /// Frees what an attachment has, under the lock. Freeing it twice is no error.
    #[expect(clippy::unused_self, reason = "the caller has the lock")]
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
        self.dir.join(if ipv4 { "last4" } else { "last6" })
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), CniError> {
        let mut name = std::ffi::OsString::from(UNFINISHED);
        name.push(path.file_name().unwrap_or_default());
        let unfinished = attachments(&self.dir).join(name);
        let written = std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, path));
        written.map_err(|source| {
            // A full disk leaves an empty file; it would reserve nothing, but it is not ours to leave.
            let _ = std::fs::remove_file(&unfinished);
            CniError::Io { operation: "write", path: path.to_owned(), source }
        })
    }
}

/// The beginning of the kernel's boot id.
fn boot_tag() -> Result<String, CniError> {
    let source = Path::new(BOOT_ID);
    let boot_id = std::fs::read_to_string(source).map_err(failed("read", source))?;
    Ok(boot_id.chars().take(BOOT_TAG).collect())
}

/// What the name of a file says, with the boot that it is of. `None` for a name that no attachment has.
pub(crate) fn stored(file: &Path) -> Option<(String, Stored)> {
    let name = file.file_name()?.to_str()?;
    let mut parts = name.split(SEPARATOR);
    let (host_link, boot) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let has_ports = parts.clone().next_back() == Some(WITH_PORTS);
    let addresses = parts.filter_map(|text| text.parse().ok()).collect();
    Some((boot, Stored { host_link, addresses, has_ports, file: file.to_owned() }))
}

fn attachments(dir: &Path) -> PathBuf {
    dir.join("attachments")
}

fn create_dir(dir: &Path) -> Result<(), CniError> {
    std::fs::create_dir_all(attachments(dir)).map_err(failed("create", dir))
}

/// Whether others may hold the lock at the same time.
#[derive(Clone, Copy)]
enum LockMode {
    Shared,
    Exclusive,
}

/// Opens and locks a file. The kernel unlocks it when the process ends, however it ends.
fn lock(path: &Path, mode: LockMode, timeout: Duration) -> Result<File, CniError> {
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed("open", path))?;
    let (try_it, wait_for_it) = match mode {
        LockMode::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
        LockMode::Exclusive => (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive),
    };
    match flock(&file, try_it) {
        Ok(()) => return Ok(file),
        Err(Errno::WOULDBLOCK) => {}
        Err(errno) => return Err(failed("lock", path)(errno.into())),
    }
    // The kernel wakes those who wait as soon as the lock is free; trying now and then instead starves some
    // of many. flock has no timeout, so a helper thread blocks in it.
    let waiting = file.try_clone().map_err(failed("lock", path))?;
    let (sender, receiver) = mpsc::channel();
    let wait = move || {
        let locked = flock(&waiting, wait_for_it);
        drop(waiting);
        // After a timeout there is no receiver, and the lock is released with the file.
        let _ = sender.send(locked);
    };
    std::thread::Builder::new().spawn(wait).map_err(failed("lock", path))?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(())) => Ok(file),
        Ok(Err(errno)) => Err(failed("lock", path)(errno.into())),
        Err(_) => Err(CniError::Locked { path: path.to_owned() }),
    }
}

/// Removes the directory unless something is reserved in it.
pub(crate) fn forget(dir: &Path) -> Result<bool, CniError> {
    if !dir.exists() {
        return Ok(false);
    }
    let _lock = AttachLock::exclusive(dir)?;
    let store = Store::open(dir)?;
    let attached = store.all()?.len();
    if attached > 0 {
        return Err(CniError::Attached { count: attached });
    }
    match std::fs::remove_dir_all(dir) {
        // A mount point, as in the daemon's pod; it is empty then.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        removed => removed.map(|()| true).map_err(failed("remove", dir)),
    }
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
