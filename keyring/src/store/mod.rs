//! Where a node's keys are kept: one file, readable by its owner alone, replaced as a whole or not at all.
//!
//! A file that is there but can't be trusted (wrong owner, wrong mode, a link, cut off, changed) is an error.
//! It never leads to new keys: a node that quietly takes a new identity is what an attacker would want, and
//! what an operator would never notice.

mod format;
mod seal;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

pub use format::FormatError;
pub use seal::{SealError, SealingKey};

use crate::NodeKeys;

/// Name of the key file in its folder.
const FILE: &str = "keys.json";
/// Name under which the next key file is written before it takes the place of the present one.
const TEMPORARY: &str = "keys.json.new";
/// Longest key file that is read, in bytes; one with a peer's preshared keys has about 300 for each.
const MAX_LEN: u64 = 4 << 20;

/// What keeps the key file from whoever gets hold of the disk.
#[derive(Debug)]
pub enum Protection {
    /// There is no disk: the folder must be on a tmpfs or ramfs, and what is in it ends with the next boot.
    Tmpfs,
    /// The file is encrypted under a key that the operator supplies.
    Sealed(SealingKey),
    /// Nothing. Whoever reads the disk, a copy of it or a disk that was thrown away has the keys.
    PlainOnDisk,
}

/// The folder that holds the key file: 0700, owned by the process's user.
#[derive(Debug)]
pub struct FileStore {
    folder: PathBuf,
    protection: Protection,
}

impl FileStore {
    /// Opens the store in `folder`, which is made if it is missing. Fails if it is there with another owner,
    /// with rights for anybody else, or as a link, and if it is on a disk where it should not be.
    pub fn open(folder: &Path, protection: Protection) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Folder { folder: folder.to_owned(), source };
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let found = std::fs::symlink_metadata(folder).map_err(failed)?;
        if !found.is_dir() {
            return Err(StoreError::NotAFolder { folder: folder.to_owned() });
        }
        refuse_foreign(folder, &found, 0o700)?;
        if matches!(protection, Protection::Tmpfs) && !in_memory(folder).map_err(failed)? {
            return Err(StoreError::OnDisk { folder: folder.to_owned() });
        }
        Ok(Self { folder: folder.to_owned(), protection })
    }

    /// The path of the key file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Reads the keys. `None` only if there is no key file at all; anything else that is wrong is an error.
    pub fn load(&self) -> Result<Option<NodeKeys>, StoreError> {
        let path = self.path();
        let failed = |source| StoreError::Read { path: path.clone(), source };
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(StoreError::Link { path });
            }
            Err(error) => return Err(failed(error)),
        };
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(StoreError::Link { path });
        }
        refuse_foreign(&path, &found, 0o600)?;
        // One allocation of the full size: a growing buffer would leave unwiped copies behind.
        let room = usize::try_from(found.len().min(MAX_LEN)).unwrap_or_default() + 1;
        let mut text = Zeroizing::new(Vec::with_capacity(room));
        file.take(MAX_LEN + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_LEN {
            return Err(StoreError::TooLong { path, limit: MAX_LEN });
        }
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

    /// Replaces the key file. When this returns the new keys are on disk; when it fails the old file stands.
    pub fn save(&self, keys: &NodeKeys) -> Result<(), StoreError> {
        let path = self.path();
        let temporary = self.folder.join(TEMPORARY);
        let plain = format::render(keys);
        let sealed = match &self.protection {
            Protection::Sealed(key) => {
                Some(key.seal(&plain).map_err(|source| StoreError::Seal { path: path.clone(), source })?)
            }
            Protection::Tmpfs | Protection::PlainOnDisk => None,
        };
        let text = sealed.as_deref().unwrap_or(&plain);
        self.replace(&temporary, &path, text).map_err(|source| {
            // What is left of a failed attempt may hold a key; if it can't be removed the next save will.
            let _ = std::fs::remove_file(&temporary);
            StoreError::Write { path, source }
        })
    }

    fn replace(&self, temporary: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
        match std::fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // 0600 from the first moment: create_new never opens what somebody else put there.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(temporary, path)?;
        File::open(&self.folder)?.sync_all()
    }
}

/// Whether a folder is on a file system that has no disk: `TMPFS_MAGIC`, `RAMFS_MAGIC` of `linux/magic.h`.
fn in_memory(folder: &Path) -> io::Result<bool> {
    let found = rustix::fs::statfs(folder)?;
    // The field's width and sign differ between architectures; the magic numbers have 32 bits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a magic number has 32 bits")]
    let kind = found.f_type as u32;
    Ok(matches!(kind, 0x0102_1994 | 0x8584_58f6))
}

/// Refuses a file or folder that others own or have rights to.
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
    /// The folder could not be made or looked at.
    #[error("open the key folder {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The folder is on a disk, and nothing protects the keys there.
    #[error(
        "key folder {} is on a disk: expected a tmpfs; mount one there, or set key-storage to sealed with a sealing-key",
        folder.display()
    )]
    OnDisk {
        /// The folder.
        folder: PathBuf,
    },
    /// The file is sealed, and there is no key to open it with.
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
    /// Something else stands where the folder should be.
    #[error("key folder {} is a link or a file: expected a folder of mode 0700", folder.display())]
    NotAFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The key file is a link or no regular file.
    #[error("key file {} is a link or not a regular file: remove it if you did not put it there", path.display())]
    Link {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else owns the file or folder.
    #[error("{} belongs to user {found}: expected user {expected}", path.display())]
    Owner {
        /// The file or folder.
        path: PathBuf,
        /// Its owner.
        found: u32,
        /// The process's user.
        expected: u32,
    },
    /// The file or folder is open to others.
    #[error("{} has mode {found:04o}: expected {expected:04o}; if others may have read it, remove it so that new keys are made", path.display())]
    Mode {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        found: u32,
        /// The mode that it must have.
        expected: u32,
    },
    /// The file is far longer than any key file.
    #[error("key file {} is longer than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Reading failed.
    #[error("read the key file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Writing failed; the former file stands.
    #[error("write the key file {}; the former one stands", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The contents are not a whole key file.
    #[error("key file {} is damaged; no new keys are made while it is there: restore it, or remove it to give this node a new identity", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
}

#[cfg(test)]
mod tests;
