//! The key file of a node: readable by its owner only, and replaced atomically.
//!
//! A file that exists but can't be trusted (wrong owner, wrong mode, a link, truncated, changed) is an error.
//! It never leads to new keys: a node that silently takes a new identity is what an attacker wants, and an
//! operator would not notice.

pub(crate) mod format;
mod preshared;
mod preshared_log;
mod seal;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

pub use format::FormatError;
pub use preshared::{DamagedPreshared, PRESHARED_FILES};
pub use seal::{SealError, SealingKey};

use crate::NodeKeys;
use preshared::PresharedLog;

/// Name of the key file in its directory.
const FILE: &str = "keys.json";
/// Name under which the next key file is written before it replaces the current one.
const TEMPORARY: &str = "keys.json.new";

/// How the key file is protected against access to the disk.
#[derive(Debug)]
pub enum Protection {
    /// It is not on a disk: the directory must be on a tmpfs or ramfs, and its contents are lost at the next
    /// boot.
    Tmpfs,
    /// The file is encrypted under a key that the operator supplies.
    Sealed(SealingKey),
    /// Not at all. Anyone who can read the disk, a copy of it or a discarded disk has the keys.
    PlainOnDisk,
}

/// The directory that holds the key file: 0700, owned by the process's user.
#[derive(Debug)]
pub struct FileStore {
    directory: PathBuf,
    protection: Protection,
    /// The file of the preshared keys; none while they are in the key file.
    log: Option<PresharedLog>,
    /// In tests: up to how many peers that file is replaced as a whole.
    replaced_up_to: Option<usize>,
}

impl FileStore {
    /// Opens the store in `directory`, which is created if it is missing. Fails if it has another owner, if
    /// others have access to it, if it is a link, and if it is on a disk where it must not be.
    pub fn open(directory: &Path, protection: Protection) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Directory { directory: directory.to_owned(), source };
        if let Some(parent) = directory.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let found = std::fs::symlink_metadata(directory).map_err(failed)?;
        if !found.is_dir() {
            return Err(StoreError::NotADirectory { directory: directory.to_owned() });
        }
        refuse_foreign(directory, &found, 0o700)?;
        if matches!(protection, Protection::Tmpfs) && !in_memory(directory).map_err(failed)? {
            return Err(StoreError::OnDisk { directory: directory.to_owned() });
        }
        Ok(Self { directory: directory.to_owned(), protection, log: None, replaced_up_to: None })
    }

    /// The path of the key file.
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Reads the key file: the private keys, and the preshared keys if version 0.1 wrote it. `None` only if there
    /// is no key file at all; anything else that is wrong is an error.
    pub fn load(&self) -> Result<Option<NodeKeys>, StoreError> {
        let path = self.path();
        let Some(text) = read_private(&path)? else { return Ok(None) };
        let damaged = |source| StoreError::Format { path: path.clone(), source };
        let text = match &self.protection {
            Protection::Sealed(key) => {
                key.open(&text).map_err(|source| StoreError::Seal { path: path.clone(), source })?
            }
            Protection::Tmpfs | Protection::PlainOnDisk if SealingKey::has_sealed(&text) => {
                return Err(StoreError::IsSealed { path });
            }
            Protection::Tmpfs | Protection::PlainOnDisk => text,
        };
        format::parse(&text).map(Some).map_err(damaged)
    }

    /// Replaces the key file. The new keys are on disk when this returns; if it fails, the previous file is
    /// unchanged.
    pub fn save(&self, keys: &NodeKeys) -> Result<(), StoreError> {
        let path = self.path();
        let temporary = self.directory.join(TEMPORARY);
        let plain = format::render(keys, self.log.is_none());
        let sealed = match &self.protection {
            Protection::Sealed(key) => {
                Some(key.seal(&plain).map_err(|source| StoreError::Seal { path: path.clone(), source })?)
            }
            Protection::Tmpfs | Protection::PlainOnDisk => None,
        };
        let text = sealed.as_deref().unwrap_or(&plain);
        replace(&self.directory, &temporary, &path, &[text]).map(drop).map_err(|source| {
            // A failed attempt may have left a key behind; if the file can't be removed now, the next save
            // does it.
            let _ = std::fs::remove_file(&temporary);
            StoreError::Write { path, source }
        })
    }
}

/// Reads a file of secrets; none if there is none.
fn read_private(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(StoreError::Link { path: path.to_owned() });
        }
        Err(error) => return Err(failed(error)),
    };
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(StoreError::Link { path: path.to_owned() });
    }
    refuse_foreign(path, &found, 0o600)?;
    // One allocation of the full size: a growing buffer would leave copies that are not wiped.
    let room = usize::try_from(found.len()).unwrap_or_default() + 1;
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    file.read_to_end(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Replaces a file of secrets by these parts, one after the other, and returns it. They are on disk when this returns.
fn replace(directory: &Path, temporary: &Path, path: &Path, parts: &[&[u8]]) -> io::Result<File> {
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // 0600 from the start: create_new never opens a file that somebody else created.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    std::fs::rename(temporary, path)?;
    File::open(directory)?.sync_all()?;
    Ok(file)
}

/// Whether a directory is on a file system in memory: `TMPFS_MAGIC`, `RAMFS_MAGIC` of `linux/magic.h`.
fn in_memory(directory: &Path) -> io::Result<bool> {
    let found = rustix::fs::statfs(directory)?;
    // The field's width and sign differ between architectures; the magic numbers have 32 bits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a magic number has 32 bits")]
    let kind = found.f_type as u32;
    Ok(matches!(kind, 0x0102_1994 | 0x8584_58f6))
}

/// Refuses a file or directory that others own or have access to.
fn refuse_foreign(path: &Path, found: &std::fs::Metadata, expected: u32) -> Result<(), StoreError> {
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return Err(StoreError::Owner { path: path.to_owned(), found: found.uid(), expected: user });
    }
    let mode = found.mode() & 0o7777;
    if mode != expected {
        return Err(StoreError::Mode { path: path.to_owned(), found: mode, expected });
    }
    Ok(())
}

/// Why keys could not be read or written. No variant carries key material.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory could not be created or examined.
    #[error("open the key directory {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The directory is on a disk, where nothing protects the keys.
    #[error(
        "key directory {} is on a disk: expected a tmpfs; mount one there, or set key-storage to sealed with a sealing-key",
        directory.display()
    )]
    OnDisk {
        /// The directory.
        directory: PathBuf,
    },
    /// The file is sealed, and there is no key to open it.
    #[error("key file {} is sealed: set key-storage to sealed and sealing-key to the key that it was sealed with", path.display())]
    IsSealed {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be sealed or opened.
    #[error("key file {}", path.display())]
    Seal {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SealError,
    },
    /// There is something else in the directory's place.
    #[error("key directory {} is a link or a file: expected a directory of mode 0700", directory.display())]
    NotADirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// The key file is a link or not a regular file.
    #[error("key file {} is a link or not a regular file: remove it if you did not put it there", path.display())]
    Link {
        /// The file.
        path: PathBuf,
    },
    /// The file or directory has another owner.
    #[error("{} belongs to user {found}: expected user {expected}", path.display())]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// The process's user.
        expected: u32,
    },
    /// Others have access to the file or directory.
    #[error("{} has mode {found:04o}: expected {expected:04o}; if others may have read it, remove it so that new keys are generated", path.display())]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        found: u32,
        /// The mode that it must have.
        expected: u32,
    },
    /// Reading failed.
    #[error("read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Writing failed; the previous file is unchanged.
    #[error("write the key file {}; the previous one is unchanged", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The contents are not a complete key file.
    #[error("key file {} is damaged; no new keys are generated while it exists: restore it, or remove it to give this node a new identity", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
}

#[cfg(test)]
mod preshared_tests;
#[cfg(test)]
mod tests;
