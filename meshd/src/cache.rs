//! The last known peers on disk, so that a node starts without the API server.

use std::path::{Path, PathBuf};

use plan::admission::Ledger;
use plan::node::{NodeName, NodeUid};
use serde::{Deserialize, Serialize};

use crate::file::FileIdentity;
use crate::state_file::{self, Format, StateFileError};

/// The cache in the state directory: about 1 kB a node for 10,000 nodes.
pub(crate) const FORMAT: Format =
    Format { name: "peers.json", version: 1, field: "memory", max_len: 16 << 20 };

/// What a node remembers of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Memory {
    /// The node that wrote it: the cache of another node, on a cloned disk for instance, is not used.
    pub node: NodeName,
    /// The UID that its Node had.
    pub uid: Option<NodeUid>,
    /// Last good state and claims of every node.
    pub ledger: Ledger,
}

/// The same, borrowed, with its fields in the same order.
#[derive(Serialize)]
struct MemoryRef<'a> {
    node: &'a NodeName,
    uid: Option<&'a NodeUid>,
    ledger: &'a Ledger,
}

/// The file that holds the memory.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    /// What the file holds, if this process has read or written it.
    saved: Option<Saved>,
}

#[derive(Debug)]
struct Saved {
    memory: Memory,
    identity: FileIdentity,
}

impl Cache {
    /// A cache in the given state directory.
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(FORMAT.name), saved: None }
    }

    /// Reads the memory. `None` if there is no file. A damaged file is an error: its peers can't be trusted. It is kept
    /// under another name.
    pub(crate) fn load(&self) -> Result<Option<Memory>, StateFileError> {
        state_file::load(&self.path, FORMAT)
    }

    /// Writes the memory if it differs from what is on disk; returns whether it wrote.
    ///
    /// Called on every turn of the reconcile loop, so an unchanged ledger costs a comparison and a `stat`: it is neither
    /// serialized nor copied. A file that was removed or replaced by hand is written again.
    pub(crate) fn save(
        &mut self,
        node: &NodeName,
        uid: Option<&NodeUid>,
        ledger: &Ledger,
    ) -> Result<bool, StateFileError> {
        let same = |saved: &Saved| {
            let Memory { node: saved_node, uid: saved_uid, ledger: saved_ledger } = &saved.memory;
            (saved_node, saved_uid.as_ref(), saved_ledger) == (node, uid, ledger)
                && FileIdentity::of(&self.path).is_some_and(|found| found == saved.identity)
        };
        if self.saved.as_ref().is_some_and(same) {
            return Ok(false);
        }
        self.saved = None;
        let written = state_file::write(&self.path, FORMAT, &MemoryRef { node, uid, ledger })?;
        self.saved = FileIdentity::of(&self.path).map(|identity| {
            let memory = Memory { node: node.clone(), uid: uid.cloned(), ledger: ledger.clone() };
            Saved { memory, identity }
        });
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::FileError;

    fn n1() -> (NodeName, NodeUid) {
        (NodeName::new("n1"), NodeUid::new("u1"))
    }

    #[test]
    fn a_file_that_is_damaged_at_any_byte_is_not_used_and_kept_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        assert_eq!(cache.load().unwrap(), None);
        let ((node, uid), ledger) = (n1(), Ledger::default());
        assert!(cache.save(&node, Some(&uid), &ledger).unwrap());
        assert_eq!(cache.load().unwrap(), Some(Memory { node, uid: Some(uid), ledger }));
        let whole = std::fs::read(&cache.path).unwrap();
        let damaged = |bytes: &[u8], what: String| {
            std::fs::write(&cache.path, bytes).unwrap();
            let Err(StateFileError::SetAside { kept, source }) = cache.load() else {
                panic!("{what} is used")
            };
            assert!(matches!(*source, StateFileError::Damaged { .. }), "{what}");
            assert_eq!(std::fs::read(kept).unwrap(), bytes, "{what}");
            assert_eq!(cache.load().unwrap(), None, "{what}: the start goes on without it");
        };
        for index in 0..whole.len() {
            for byte in [whole[index] ^ 1, 0xff] {
                let mut changed = whole.clone();
                changed[index] = byte;
                damaged(&changed, format!("byte {index} as {byte}"));
            }
            damaged(&whole[..index], format!("cut at {index}"));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 4, "a bounded number is kept");
        let file = std::fs::File::create(&cache.path).unwrap();
        file.set_len(FORMAT.max_len + 1).unwrap();
        let Err(StateFileError::SetAside { source, .. }) = cache.load() else {
            panic!("a long file is used")
        };
        assert!(matches!(*source, StateFileError::File(FileError::TooLong { .. })));
    }

    #[test]
    fn only_a_change_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        let ((node, uid), ledger) = (n1(), Ledger::default());
        assert!(cache.save(&node, None, &ledger).unwrap());
        let written = FileIdentity::of(&cache.path);
        assert!(!cache.save(&node, None, &ledger).unwrap());
        assert_eq!(FileIdentity::of(&cache.path), written);
        assert!(cache.save(&node, Some(&uid), &ledger).unwrap(), "another UID");
        // A daemon that has just started compares with the file itself.
        let mut restarted = Cache::in_directory(directory.path());
        assert!(!restarted.save(&node, Some(&uid), &ledger).unwrap());
    }

    #[test]
    fn a_file_that_was_changed_by_hand_is_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        let ((node, uid), ledger) = (n1(), Ledger::default());
        assert!(cache.save(&node, Some(&uid), &ledger).unwrap());
        std::fs::write(&cache.path, "not a cache").unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger).unwrap());
        std::fs::remove_file(&cache.path).unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger).unwrap());
        assert!(cache.load().unwrap().is_some());
    }

    #[test]
    fn a_failed_write_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        let ((node, uid), ledger) = (n1(), Ledger::default());
        std::fs::create_dir(&cache.path).unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger).is_err());
        std::fs::remove_dir(&cache.path).unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger).unwrap());
    }
}
