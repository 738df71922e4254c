//! Body of the fuzz target for messages about preshared keys, so that its corpus also runs as an ordinary test.

use crate::pq::Message;

/// Reads bytes as a message. What is read must be written the same.
///
/// # Panics
///
/// If that does not hold: that is what a fuzzer looks for.
pub fn pq_message(bytes: &[u8]) {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
}
