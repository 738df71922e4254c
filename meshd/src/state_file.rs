//! A file of the daemon's state that holds one value: written when the value changes, kept under another name if it is damaged.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::document;
use crate::file::{self, FileError};

/// What a file is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// Its name in the state directory.
    pub name: &'static str,
    /// The version that is written and read.
    pub version: u32,
    /// The name of the value in it.
    pub field: &'static str,
    /// Longest file that is read, in bytes.
    pub max_len: u64,
}

/// The file.
#[derive(Debug)]
pub(crate) struct StateFile<T> {
    path: PathBuf,
    format: Format,
    /// What it holds, as far as this process has read or written it.
    held: Option<T>,
}

impl<T: Clone + PartialEq + Serialize + DeserializeOwned> StateFile<T> {
    pub(crate) fn in_directory(directory: &Path, format: Format) -> Self {
        Self { path: directory.join(format.name), format, held: None }
    }

    /// Reads the value; none without a file. A damaged file is an error, and is kept under another name.
    pub(crate) fn load(&mut self) -> Result<Option<T>, StateFileError> {
        self.held = load(&self.path, self.format)?;
        Ok(self.held.clone())
    }

    /// What the file holds, as far as this process has read or written it.
    pub(crate) const fn held(&self) -> Option<&T> {
        self.held.as_ref()
    }

    /// Writes the value if it differs from what the file holds; returns whether it wrote.
    pub(crate) fn save(&mut self, value: T) -> Result<bool, StateFileError> {
        if self.held.as_ref() == Some(&value) {
            return Ok(false);
        }
        let written = write(&self.path, self.format, &value)?;
        self.held = Some(value);
        Ok(written)
    }

    /// Removes the file, if it is there.
    pub(crate) fn remove(&mut self) -> Result<(), StateFileError> {
        self.held = None;
        let failed = |source| FileError::Write { path: self.path.clone(), source };
        file::remove(&self.path).map_err(failed)?;
        Ok(())
    }
}

/// Reads what a file holds; none without a file. A damaged file is an error, and is kept under another name.
pub(crate) fn load<T: DeserializeOwned>(path: &Path, format: Format) -> Result<Option<T>, StateFileError> {
    let damage = match file::read(path, format.max_len) {
        Ok(None) => return Ok(None),
        Ok(Some(text)) => match document::read(&text, format.version) {
            Some(value) => return Ok(Some(value)),
            None => StateFileError::Damaged { path: path.to_owned() },
        },
        Err(source @ FileError::TooLong { .. }) => source.into(),
        Err(source) => return Err(source.into()),
    };
    // If it can't be renamed, the error stays as it is.
    Err(match file::set_aside(path) {
        Ok(kept) => StateFileError::SetAside { kept, source: Box::new(damage) },
        Err(_) => damage,
    })
}

/// Writes a value; returns whether the file was another one before.
pub(crate) fn write(path: &Path, format: Format, value: &impl Serialize) -> Result<bool, StateFileError> {
    Ok(file::replace(path, &render(path, format, value)?, 0o600)?)
}

/// The text of a file with a value.
pub(crate) fn render(path: &Path, format: Format, value: &impl Serialize) -> Result<Vec<u8>, StateFileError> {
    document::render(value, format.version, format.field)
        .map_err(|source| StateFileError::Render { path: path.to_owned(), source })
}

/// Why a value could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateFileError {
    /// The file system refused.
    #[error("keep the daemon's state")]
    File(#[from] FileError),
    /// The file is truncated or was changed.
    #[error("{} is damaged: not used", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, and was renamed.
    #[error("kept a damaged file as {}", kept.display())]
    SetAside {
        /// Its new name.
        kept: PathBuf,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// The value can't be serialized as JSON.
    #[error("serialize what is kept in {}", path.display())]
    Render {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: Format = Format { name: "value.json", version: 1, field: "paths", max_len: 1 << 10 };

    #[test]
    fn a_damaged_file_is_not_used_and_kept_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = StateFile::in_directory(directory.path(), FORMAT);
        let value = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(file.load().unwrap(), None);
        assert!(file.save(value.clone()).unwrap());
        assert!(!file.save(value.clone()).unwrap(), "only a change is written");
        assert_eq!(file.load().unwrap().as_ref(), Some(&value));
        let whole = std::fs::read(&file.path).unwrap();
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 1;
            for bytes in [&changed[..], &whole[..index]] {
                std::fs::write(&file.path, bytes).unwrap();
                let Err(StateFileError::SetAside { kept, .. }) = file.load() else {
                    panic!("damaged at byte {index}, and used")
                };
                assert_eq!(std::fs::read(kept).unwrap(), bytes);
                assert_eq!(file.load().unwrap(), None, "the start goes on without it");
            }
        }
        std::fs::File::create(&file.path).unwrap().set_len(FORMAT.max_len + 1).unwrap();
        assert!(matches!(file.load(), Err(StateFileError::SetAside { .. })), "it is too long");
        file.remove().unwrap();
        assert!(file.save(value).unwrap());
    }

    #[test]
    fn what_was_read_is_not_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = StateFile::in_directory(directory.path(), FORMAT);
        file.save(7_u32).unwrap();
        let mut restarted = StateFile::in_directory(directory.path(), FORMAT);
        assert_eq!(restarted.load().unwrap(), Some(7));
        assert!(!restarted.save(7).unwrap());
        assert!(restarted.save(8).unwrap());
    }
}
