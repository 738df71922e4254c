//! Body of the fuzz target for annotations, so that its corpus also runs as an ordinary test.

use crate::annotation::{Endpoints, State};

/// Reads bytes as either annotation. What is read must be written and read again the same.
///
/// # Panics
///
/// If that does not hold: that is what a fuzzer looks for.
pub fn annotation(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(state) = State::parse(&text) {
        assert!(state.unproven().invalid_proof().is_none());
        let invalid = state.invalid_proof();
        let read = State::parse(&state.render());
        assert_eq!(read.as_ref().map(State::invalid_proof), Ok(invalid));
        assert_eq!(read, Ok(state));
    }
    if let Ok(endpoints) = Endpoints::parse(&text) {
        assert_eq!(Endpoints::parse(&endpoints.render()), Ok(endpoints));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the corpus is files; the core that it is fed to has none")]
    fn the_annotation_corpus_passes() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/annotation");
        let mut count = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            super::annotation(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 10, "only {count} files in the corpus");
    }

    /// The proofs in the corpus were made by another implementation, over a statement written by hand.
    #[test]
    fn the_proofs_in_the_corpus_are_valid_where_they_should_be() {
        for (text, valid) in [
            (include_str!("../../../fuzz/corpus/annotation/proofs"), true),
            (include_str!("../../../fuzz/corpus/annotation/proofs-swapped"), false),
        ] {
            let state = crate::annotation::State::parse(text).unwrap();
            assert!(state.proofs.is_some());
            assert_eq!(state.invalid_proof().is_none(), valid);
        }
    }
}
