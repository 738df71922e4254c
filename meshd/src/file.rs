//! Files that are replaced atomically, and written only when they differ.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Replaces the contents of `path` with `text` unless they are equal; returns whether it wrote. Readers see the old text
/// or the new one, never a part. `mode` is that of the new file.
pub(crate) fn replace(path: &Path, text: &[u8], mode: u32) -> Result<bool, FileError> {
    // A file of another length differs; it may be longer than what fits into memory.
    let same_length =
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == text.len() as u64);
    if same_length && std::fs::read(path).is_ok_and(|found| found == text) {
        return Ok(false);
    }
    write(path, text, mode).map_err(|source| FileError::Write { path: path.to_owned(), source })?;
    Ok(true)
}

fn write(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let temporary = temporary(path);
    remove(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written =
        file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        remove(&temporary)?;
        return written;
    }
    File::open(directory)?.sync_all()
}

/// The name under which a file is written before it replaces the present one; it may be left behind by a crash.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    // A leading dot and a foreign extension keep container runtimes from reading a half-written file.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

/// Which file a path leads to, and in which version: differs once the file is replaced, removed or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    /// The identity of the file at `path`. `None` if it can't be determined.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        let modified = (found.mtime(), found.mtime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), len: found.len(), modified })
    }
}

/// Reads a file of at most `limit` bytes. `None` if it does not exist.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    // A FIFO in the file's place must not keep the daemon waiting.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, limit + 1), &mut text).map_err(failed)?;
    if text.len() as u64 > limit {
        Err(FileError::TooLong { path: path.to_owned(), limit })
    } else {
        Ok(Some(text))
    }
}

/// Damaged files of one name that are kept at most.
const DAMAGED_LIMIT: u8 = 4;

/// The names under which damaged versions of a file are kept.
pub(crate) fn damaged(path: &Path) -> impl Iterator<Item = PathBuf> {
    let name = path.file_name().unwrap_or_default().to_owned();
    (1..=DAMAGED_LIMIT).map(move |number| {
        let mut name = name.clone();
        name.push(format!(".damaged.{number}"));
        path.with_file_name(name)
    })
}

/// Keeps a damaged file under another name, which is returned. Of those kept before, the last is replaced when there are
/// too many: the first shows how it began.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let is_free = |name: &PathBuf| name.symlink_metadata().is_err();
    let name = damaged(path).find(is_free).or_else(|| damaged(path).last());
    let name = name.unwrap_or_else(|| temporary(path));
    std::fs::rename(path, &name)?;
    Ok(name)
}

/// Removes a file; returns whether it existed.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// Reading failed.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is longer than anything that meshd writes there.
    #[error("{} is longer than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Writing failed; the file is unchanged.
    #[error("write {}; it is unchanged", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_file_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/er/x.json");
        assert!(replace(&path, b"one", 0o600).unwrap());
        assert!(!replace(&path, b"one", 0o600).unwrap());
        assert!(replace(&path, b"two", 0o600).unwrap());
        assert_eq!(read(&path, 100).unwrap().as_deref(), Some(b"two".as_slice()));
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(replace(&path, b"one", 0o600), Err(FileError::Write { .. })));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn damaged_files_are_kept_under_other_names_and_their_number_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        for number in 1..=10 {
            std::fs::write(&path, number.to_string()).unwrap();
            let kept = set_aside(&path).unwrap();
            assert!(!path.exists());
            assert_eq!(std::fs::read_to_string(kept).unwrap(), number.to_string());
        }
        let kept: Vec<String> = damaged(&path).map(|path| std::fs::read_to_string(path).unwrap()).collect();
        assert_eq!(kept, ["1", "2", "3", "10"]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_long_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        replace(&path, &[0; 11], 0o600).unwrap();
        assert!(matches!(read(&path, 10), Err(FileError::TooLong { .. })));
        assert!(read(&directory.path().join("none"), 10).unwrap().is_none());
    }
}
