//! The corpus of the fuzz target for messages about preshared keys, run as an ordinary test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

#[test]
fn the_corpus_of_messages_about_preshared_keys_passes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/pq_message");
    let mut count = 0;
    let mut read = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        keyring::fuzzing::pq_message(&bytes);
        read += usize::from(keyring::pq::Message::decode(&bytes).is_ok());
        count += 1;
    }
    assert!(count >= 14 && read >= 9, "{count} files, {read} messages: the corpus is missing");
}
