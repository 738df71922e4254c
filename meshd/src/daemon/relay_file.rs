//! The leases of a relay on disk, so that ports and addresses stay over a restart.

use std::path::{Path, PathBuf};

use relay::SavedLease;

use crate::document;
use crate::file::{self, FileError};

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "relay.json";
/// The version that this code writes and reads.
const VERSION: u32 = 1;
/// Longest file that is read: every port leased, and 250 bytes a lease.
const MAX_LEN: u64 = 8 << 20;

/// The file that holds the leases.
#[derive(Debug)]
pub(super) struct RelayFile {
    path: PathBuf,
    saved: Option<Vec<SavedLease>>,
}

impl RelayFile {
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(FILE), saved: None }
    }

    /// Reads the leases; none without a file. A damaged file is an error, and is kept under another name.
    pub(super) fn load(&self) -> Result<Vec<SavedLease>, RelayFileError> {
        self.read().map_err(|source| match source {
            damage @ (RelayFileError::Damaged { .. } | RelayFileError::File(FileError::TooLong { .. })) => {
                let kept = |kept, source| RelayFileError::SetAside { kept, source };
                document::set_aside(&self.path, damage, kept)
            }
            source => source,
        })
    }

    fn read(&self) -> Result<Vec<SavedLease>, RelayFileError> {
        let Some(text) = file::read(&self.path, MAX_LEN)? else { return Ok(Vec::new()) };
        document::read(&text, VERSION).ok_or_else(|| RelayFileError::Damaged { path: self.path.clone() })
    }

    /// Writes the leases if they differ from what was written last; returns whether it wrote.
    pub(super) fn save(&mut self, leases: Vec<SavedLease>) -> Result<bool, RelayFileError> {
        if self.saved.as_ref() == Some(&leases) {
            return Ok(false);
        }
        let text = document::render(&leases, VERSION, "leases")
            .map_err(|source| RelayFileError::Render { source })?;
        let written = file::replace(&self.path, &text, 0o600)?;
        self.saved = Some(leases);
        Ok(written)
    }

    /// Removes the file, if it is there.
    pub(super) fn remove(&mut self) -> Result<(), RelayFileError> {
        self.saved = None;
        let failed = |source| FileError::Write { path: self.path.clone(), source };
        file::remove(&self.path).map_err(failed)?;
        Ok(())
    }
}

/// Why the leases could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayFileError {
    /// The file system refused.
    #[error("keep the relay's leases")]
    File(#[from] FileError),
    /// The file is truncated or was changed.
    #[error("the relay's leases {} are damaged: not used", path.display())]
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
    /// The leases can't be serialized as JSON.
    #[error("serialize the relay's leases")]
    Render {
        /// The cause.
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keyring::Slot;
    use keyring::rotation::PeerId;
    use relay::{Limits, Relay};

    use super::*;

    fn leases() -> Vec<SavedLease> {
        let limits = Limits { ports: 24_000..=24_009, bytes_per_second: 1, pair_bytes_per_second: 1 };
        let mut relay = Relay::new(Duration::ZERO, limits);
        let [one, two] = ["u1", "u2"].map(PeerId::new);
        let seen = Some("[2001:db8::1]:51840".parse().unwrap());
        relay.ask(Duration::ZERO, &one, &two, Slot::B, seen).unwrap();
        relay.saved()
    }

    #[test]
    fn a_damaged_file_is_not_used_and_kept_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RelayFile::in_directory(directory.path());
        assert_eq!(file.load().unwrap(), []);
        assert!(file.save(leases()).unwrap());
        assert!(!file.save(leases()).unwrap(), "only a change is written");
        assert_eq!(file.load().unwrap(), leases());
        let whole = std::fs::read(&file.path).unwrap();
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 1;
            for bytes in [&changed[..], &whole[..index]] {
                std::fs::write(&file.path, bytes).unwrap();
                let Err(RelayFileError::SetAside { kept, .. }) = file.load() else {
                    panic!("damaged at byte {index}, and used")
                };
                assert_eq!(std::fs::read(kept).unwrap(), bytes);
                assert_eq!(file.load().unwrap(), []);
            }
        }
        file.remove().unwrap();
    }
}
