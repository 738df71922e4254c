//! Bodies of the fuzz targets, so that their corpora also run as ordinary tests.

use std::time::Duration;

use relay::{Limits, Relay, SavedLease};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::Memory;
pub use crate::channel::fuzzing::channel;
use crate::document;

/// Reads bytes as the files that the daemon keeps: the last known peers, and the leases of a relay. They are read as the whole
/// file, and as what is in a file whose checksum is right.
///
/// # Panics
///
/// If what was read is not written and read again the same, or leases are restored that the relay can't have: that is what a
/// fuzzer looks for.
pub fn state_file(bytes: &[u8]) {
    if let Some(memory) = read::<Memory>(bytes, "memory") {
        let Memory { node, uid, ledger } = memory;
        let kept = (node, uid, ledger);
        let again = write(&kept, "memory").and_then(|text| document::read(&text, 1));
        assert_eq!(again, Some(kept));
    }
    if let Some(leases) = read::<Vec<SavedLease>>(bytes, "leases") {
        let limits = Limits { ports: 24_000..=24_009, bytes_per_second: 1, pair_bytes_per_second: 1 };
        let mut relay = Relay::new(Duration::ZERO, limits);
        relay.restore(Duration::ZERO, leases);
        let saved = relay.saved();
        assert!(saved.len() <= 5, "two ports each");
        let again = write(&saved, "leases").and_then(|text| document::read::<Vec<SavedLease>>(&text, 1));
        assert_eq!(again.as_ref(), Some(&saved));
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8], field: &'static str) -> Option<T> {
    let value: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let sealed = value.and_then(|value| write(&value, field)).and_then(|text| document::read(&text, 1));
    document::read(bytes, 1).or(sealed)
}

fn write(value: &impl Serialize, field: &'static str) -> Option<Vec<u8>> {
    document::render(value, 1, field).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_state_files_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/state_file");
        let (mut memories, mut leases) = (0, 0);
        for entry in std::fs::read_dir(dir).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            state_file(&bytes);
            memories += u32::from(read::<Memory>(&bytes, "memory").is_some());
            leases += u32::from(read::<Vec<SavedLease>>(&bytes, "leases").is_some());
        }
        assert!(
            memories >= 2 && leases >= 2,
            "{memories} files of peers and {leases} of leases in the corpus"
        );
    }
}
