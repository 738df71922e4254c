//! The leases of a relay on disk, so that ports and addresses stay over a restart.

use std::path::{Path, PathBuf};

use relay::SavedLease;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::file::{self, FileError};

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "relay.json";
/// The version that this code writes and reads.
const VERSION: u32 = 1;
/// Longest file that is read: every port leased, and 250 bytes a lease.
const MAX_LEN: u64 = 8 << 20;

#[derive(Serialize, Deserialize)]
struct Document {
    v: u32,
    checksum: String,
    /// The leases as text, so that the checksum covers exact bytes.
    leases: String,
}

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
            source @ (RelayFileError::Damaged { .. } | RelayFileError::File(FileError::TooLong { .. })) => {
                match file::set_aside(&self.path) {
                    Ok(kept) => RelayFileError::SetAside { kept, source: Box::new(source) },
                    Err(_) => source,
                }
            }
            source => source,
        })
    }

    fn read(&self) -> Result<Vec<SavedLease>, RelayFileError> {
        let Some(text) = file::read(&self.path, MAX_LEN)? else { return Ok(Vec::new()) };
        let damaged = || RelayFileError::Damaged { path: self.path.clone() };
        let document: Document = serde_json::from_slice(&text).map_err(|_| damaged())?;
        if document.v != VERSION || document.checksum != checksum(&document.leases) {
            return Err(damaged());
        }
        serde_json::from_str(&document.leases).map_err(|_| damaged())
    }

    /// Writes the leases if they differ from what was written last; returns whether it wrote.
    pub(super) fn save(&mut self, leases: Vec<SavedLease>) -> Result<bool, RelayFileError> {
        if self.saved.as_ref() == Some(&leases) {
            return Ok(false);
        }
        let render = |source| RelayFileError::Render { source };
        let text = serde_json::to_string(&leases).map_err(render)?;
        let document = Document { v: VERSION, checksum: checksum(&text), leases: text };
        let written = file::replace(&self.path, &serde_json::to_vec(&document).map_err(render)?, 0o600)?;
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

fn checksum(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
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
