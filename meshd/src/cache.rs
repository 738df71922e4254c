//! The last known peers on disk, so that a node starts without the API server.

use std::path::PathBuf;

use plan::admission::Ledger;
use plan::node::{NodeName, NodeUid};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::file::{self, FileError};

/// The version that this code writes and reads.
const VERSION: u32 = 1;
/// Longest file that is read: about 1 kB a node for 10,000 nodes.
const MAX_LEN: u64 = 16 << 20;

/// What a node remembers of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The node that remembers: a disk that was cloned to another node is not believed.
    pub node: NodeName,
    /// The UID that its Node had.
    pub uid: Option<NodeUid>,
    /// Last good state and claims of every node.
    pub ledger: Ledger,
}

#[derive(Serialize, Deserialize)]
struct Document {
    v: u32,
    checksum: String,
    /// The memory as text, so that the checksum is over exact bytes.
    memory: String,
}

/// The file that holds the memory.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
}

impl Cache {
    /// A cache in the given state folder.
    pub(crate) fn in_folder(folder: &std::path::Path) -> Self {
        Self { path: folder.join("peers.json") }
    }

    /// Reads the memory. `None` if there is no file. A damaged file is an error: its peers can't be trusted.
    pub(crate) fn load(&self) -> Result<Option<Memory>, CacheError> {
        let Some(text) = file::read(&self.path, MAX_LEN)? else { return Ok(None) };
        let damaged = || CacheError::Damaged { path: self.path.clone() };
        let document: Document = serde_json::from_slice(&text).map_err(|_| damaged())?;
        if document.v != VERSION || document.checksum != checksum(&document.memory) {
            return Err(damaged());
        }
        serde_json::from_str(&document.memory).map(Some).map_err(|_| damaged())
    }

    /// Writes the memory if it differs from what is on disk.
    pub(crate) fn save(&self, memory: &Memory) -> Result<bool, CacheError> {
        let memory = serde_json::to_string(memory).map_err(|source| CacheError::Render { source })?;
        let document = Document { v: VERSION, checksum: checksum(&memory), memory };
        let text = serde_json::to_vec(&document).map_err(|source| CacheError::Render { source })?;
        Ok(file::replace(&self.path, &text, 0o600)?)
    }
}

fn checksum(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

/// Why the memory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    /// The file system refused.
    #[error("keep the last known peers")]
    File(#[from] FileError),
    /// The file is not whole.
    #[error("last known peers in {} are damaged: not used; the file is replaced at the next change", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The memory can't be written as JSON.
    #[error("render the last known peers")]
    Render {
        /// The cause.
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_anywhere_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        assert_eq!(cache.load().unwrap(), None);
        let memory =
            Memory { node: NodeName::new("n1"), uid: Some(NodeUid::new("u1")), ledger: Ledger::default() };
        assert!(cache.save(&memory).unwrap());
        assert!(!cache.save(&memory).unwrap(), "an equal memory is not written again");
        assert_eq!(cache.load().unwrap(), Some(memory));
        let whole = std::fs::read(&cache.path).unwrap();
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 1;
            std::fs::write(&cache.path, &changed).unwrap();
            assert!(matches!(cache.load(), Err(CacheError::Damaged { .. })), "byte {index}");
        }
        std::fs::write(&cache.path, &whole[..whole.len() / 2]).unwrap();
        assert!(matches!(cache.load(), Err(CacheError::Damaged { .. })));
    }
}
