//! Timestamps of handshake initiations.

use std::time::SystemTime;

use parking_lot::Mutex;

/// A TAI64N timestamp: greater than all earlier ones of the same initiator, or the initiation is a replay.
pub(crate) type Timestamp = [u8; 12];

/// Seconds between the epochs of TAI64 and Unix time, with the 10 leap seconds of 1970 that WireGuard counts.
const TAI64_UNIX: u64 = (1 << 62) + 10;

/// The timestamps that one static key has sent, to any peer: a peer that is removed and added again must not take the
/// next one for a replay.
#[derive(Debug, Default)]
pub(crate) struct Timestamps {
    last: Mutex<Timestamp>,
}

impl Timestamps {
    /// The time as a timestamp, greater than the last. Cut to about 17 ms, as the kernel does, so that handshakes reveal
    /// nothing finer about this machine's clock.
    pub(crate) fn next(&self, wall: SystemTime) -> Timestamp {
        let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut next = [0; 12];
        next[..8].copy_from_slice(&(since.as_secs() + TAI64_UNIX).to_be_bytes());
        next[8..].copy_from_slice(&(since.subsec_nanos() & !0x00ff_ffff).to_be_bytes());
        let mut last = self.last.lock();
        if next <= *last {
            // Another within the same 17 ms, or a clock that was set back: one more than the last.
            let mut wide = [0; 16];
            wide[4..].copy_from_slice(&*last);
            let bytes = u128::from_be_bytes(wide).saturating_add(1).to_be_bytes();
            next.copy_from_slice(&bytes[4..]);
        }
        *last = next;
        next
    }
}
