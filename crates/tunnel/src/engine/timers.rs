//! Intervals of the protocol, and what the data path records for them.

use std::time::Duration;

use super::clock::Stamp;

/// Timers (WireGuard paper, section 6.1).
pub(crate) const REKEY_AFTER: Duration = Duration::from_mins(2);
pub(crate) const REJECT_AFTER: Duration = Duration::from_mins(3);
/// `REJECT_AFTER` less `KEEPALIVE` and `REKEY_TIMEOUT`: a session that only receives packets is renewed then.
pub(crate) const RENEW_SILENT: Duration = Duration::from_secs(165);
pub(crate) const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a handshake is begun again with the same endpoint if that is asked for. Whoever looks for a path to a new peer asks
/// again after half a second.
pub(crate) const INITIATE_ANEW: Duration = Duration::from_millis(400);
/// Each retry is put off by up to this much at random (WireGuard paper, section 6.1).
pub(crate) const REKEY_TIMEOUT_JITTER: Duration = Duration::from_millis(333);
/// The shortest time between two answers to one peer: a quarter of the messages per second that the interface works on
/// without asking for cookies. The kernel has the same (`INITIATIONS_PER_SECOND` in `messages.h`).
pub(crate) const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(10);

/// What the data path records for the timers of one peer.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// When an authenticated datagram was last sent or received; unset makes a persistent keepalive due.
    pub(crate) last_activity: Stamp,
    /// Since when data that we sent has not been followed by anything from the peer.
    pub(crate) awaiting_reply_since: Stamp,
    /// Since when data from the peer has not been followed by anything from us.
    pub(crate) keepalive_due_since: Stamp,
}

impl Timers {
    pub(crate) fn clear(&self) {
        self.last_activity.clear();
        self.awaiting_reply_since.clear();
        self.keepalive_due_since.clear();
    }
}
