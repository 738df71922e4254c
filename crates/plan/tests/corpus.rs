//! The corpus of the fuzz target for annotations, run as an ordinary test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "the corpus is files; the core that it is fed to has none")]

use std::path::Path;

#[test]
fn the_annotation_corpus_passes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/annotation");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        plan::fuzzing::annotation(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 10, "only {count} files: the corpus is not where it should be");
}
