//! How many messages a sender may send.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Messages accepted from one sender per second. A rotation needs a few; this bounds what a faulty node can cause.
const MESSAGES_PER_SECOND: u32 = 100;
/// Senders that are counted at once: more than a mesh has nodes.
const MAX_SENDERS: usize = 16_384;

/// Counts each sender's messages within the current second.
#[derive(Debug, Default)]
pub(super) struct RateLimit {
    since: Option<Duration>,
    counts: BTreeMap<(IpAddr, bool), u32>,
}

impl RateLimit {
    /// Counts a message, or a datagram that only serves the session: those have a limit of their own, so that replayed
    /// ones don't keep messages out.
    pub(super) fn allows(&mut self, now: Duration, from: IpAddr, session: bool) -> bool {
        if self.since.is_none_or(|since| now.saturating_sub(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.counts.clear();
        }
        if self.counts.len() >= 2 * MAX_SENDERS && !self.counts.contains_key(&(from, session)) {
            return false;
        }
        let count = self.counts.entry((from, session)).or_default();
        *count += 1;
        *count <= MESSAGES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooding_sender_is_limited_and_does_not_affect_others() {
        let mut rate_limit = RateLimit::default();
        let now = Duration::from_secs(7);
        let [flood, other] = ["10.244.1.1", "10.244.2.1"].map(|text| text.parse().unwrap());
        let taken = (0..1000).filter(|_| rate_limit.allows(now, flood, false)).count();
        assert_eq!(taken, MESSAGES_PER_SECOND as usize);
        assert!(rate_limit.allows(now, other, false));
        assert!(rate_limit.allows(now, flood, true));
        assert!(rate_limit.allows(now + Duration::from_secs(1), flood, false));
    }
}
