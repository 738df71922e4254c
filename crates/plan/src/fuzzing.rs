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
        assert_eq!(State::parse(&state.render()), Ok(state));
    }
    if let Ok(endpoints) = Endpoints::parse(&text) {
        assert_eq!(Endpoints::parse(&endpoints.render()), Ok(endpoints));
    }
}
