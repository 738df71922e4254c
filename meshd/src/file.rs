//! Files that are there whole or not at all, and written only when they differ.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Puts `text` into `path` unless it is there already; says whether it wrote. Readers see the old text or
/// the new one, never a part. `mode` counts for a new file only.
pub(crate) fn replace(path: &Path, text: &[u8], mode: u32) -> Result<bool, FileError> {
    match std::fs::read(path) {
        Ok(found) if found == text => return Ok(false),
        _ => {}
    }
    write(path, text, mode).map_err(|source| FileError::Write { path: path.to_owned(), source })?;
    Ok(true)
}

fn write(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::create_dir_all(folder)?;
    // A leading dot and a foreign ending keep container runtimes from reading a half-written file.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = folder.join(name);
    remove(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written =
        file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        remove(&temporary)?;
        return written;
    }
    File::open(folder)?.sync_all()
}

/// Reads a file of at most `limit` bytes. `None` if there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
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

/// Removes a file; says whether there was one.
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
    /// The file is longer than anything that we write there.
    #[error("{} is longer than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// Writing failed; what was there stands.
    #[error("write {}; what was there stands", path.display())]
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/x.json");
        assert!(replace(&path, b"one", 0o600).unwrap());
        assert!(!replace(&path, b"one", 0o600).unwrap());
        assert!(replace(&path, b"two", 0o600).unwrap());
        assert_eq!(read(&path, 100).unwrap().as_deref(), Some(b"two".as_slice()));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_failed_write_leaves_the_old_text_and_no_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(replace(&path, b"one", 0o600), Err(FileError::Write { .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_long_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        replace(&path, &[0; 11], 0o600).unwrap();
        assert!(matches!(read(&path, 10), Err(FileError::TooLong { .. })));
        assert!(read(&folder.path().join("none"), 10).unwrap().is_none());
    }
}
