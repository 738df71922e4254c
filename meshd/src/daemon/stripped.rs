//! Peers to which pods' packets pass without a preshared key although both ends want one: what somebody on the path
//! achieves by blocking one of the two UDP ports where `pq` is `prefer`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::rotation::PeerId;

/// How long it has to last before it is reported. Two nodes that join agree within seconds, and a rotation waits 15 s.
pub(super) const REPORTED_AFTER: Duration = Duration::from_secs(30);
/// The shortest time between two Events, however often a path is blocked and opened again.
const EVENT_INTERVAL: Duration = Duration::from_mins(1);

/// Since when, and what was reported.
#[derive(Debug, Default)]
pub(super) struct Stripped {
    since: BTreeMap<PeerId, Duration>,
    reported: BTreeSet<PeerId>,
    /// The peers of the last Event, and when it was created.
    announced: (BTreeSet<PeerId>, Option<Duration>),
}

/// A change to be logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It has lasted long enough to be reported.
    Stripped(PeerId),
    /// There is a key again, or the peer is gone.
    Restored(PeerId),
}

impl Stripped {
    /// Takes the peers that it applies to now; returns what has changed.
    pub(super) fn update(&mut self, now: Duration, peers: &BTreeSet<PeerId>) -> Vec<Change> {
        self.since.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            self.since.entry(peer.clone()).or_insert(now);
        }
        let restored: Vec<PeerId> =
            self.reported.iter().filter(|peer| !peers.contains(*peer)).cloned().collect();
        let long = |since: &Duration| now.saturating_sub(*since) >= REPORTED_AFTER;
        let due = self.since.iter().filter(|(peer, since)| long(since) && !self.reported.contains(*peer));
        let stripped: Vec<PeerId> = due.map(|(peer, _)| peer.clone()).collect();
        self.reported.retain(|peer| peers.contains(peer));
        self.reported.extend(stripped.iter().cloned());
        let changes = stripped.into_iter().map(Change::Stripped);
        changes.chain(restored.into_iter().map(Change::Restored)).collect()
    }

    /// Whether it applies to no peer, and everybody knows.
    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty() && self.announced.0 == self.reported
    }

    /// For how long it has applied to a peer, if that is reported.
    pub(super) fn lasted(&self, now: Duration, peer: &PeerId) -> Option<Duration> {
        let since = self.since.get(peer).filter(|_| self.reported.contains(peer))?;
        Some(now.saturating_sub(*since))
    }

    /// The reported peers, if they are others than at the last Event and that is long enough ago.
    pub(super) fn take_announcement(&mut self, now: Duration) -> Option<&BTreeSet<PeerId>> {
        let (announced, at) = &self.announced;
        let soon = at.is_some_and(|at| now.saturating_sub(at) < EVENT_INTERVAL);
        if *announced == self.reported || soon {
            return None;
        }
        self.announced = (self.reported.clone(), Some(now));
        Some(&self.reported)
    }
}

/// The message of the Event: at most five names, so that the API server accepts it.
pub(super) fn message(nodes: &[String]) -> String {
    const NAMED: usize = 5;
    if nodes.is_empty() {
        return "all peers that want preshared keys have them again".to_owned();
    }
    let names = nodes.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let others = match nodes.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "packets between the pods here and those on {names}{others} pass without a preshared key, although both nodes \
         want one; check that both UDP ports are open between them"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn peers(names: &[&str]) -> BTreeSet<PeerId> {
        names.iter().map(|name| PeerId::new(*name)).collect()
    }

    #[test]
    fn what_lasts_is_reported_once_and_so_is_its_end() {
        let mut stripped = Stripped::default();
        let blocked = peers(&["n2"]);
        assert_eq!(stripped.update(SECOND, &blocked), []);
        assert_eq!(stripped.update(30 * SECOND, &blocked), []);
        assert_eq!(stripped.lasted(30 * SECOND, &PeerId::new("n2")), None);
        assert_eq!(stripped.update(31 * SECOND, &blocked), [Change::Stripped(PeerId::new("n2"))]);
        assert_eq!(stripped.update(32 * SECOND, &blocked), []);
        assert_eq!(stripped.lasted(32 * SECOND, &PeerId::new("n2")), Some(31 * SECOND));
        assert_eq!(stripped.update(33 * SECOND, &peers(&[])), [Change::Restored(PeerId::new("n2"))]);
        assert_eq!(stripped.update(34 * SECOND, &peers(&[])), []);
        assert_eq!(stripped.lasted(34 * SECOND, &PeerId::new("n2")), None);
    }

    #[test]
    fn an_interruption_starts_the_time_anew() {
        let mut stripped = Stripped::default();
        for second in 0..300 {
            let now = if second % 25 == 0 { peers(&[]) } else { peers(&["n2"]) };
            assert_eq!(stripped.update(second * SECOND, &now), [], "{second}");
        }
    }

    #[test]
    fn events_name_all_peers_and_come_once_a_minute_at_most() {
        let mut stripped = Stripped::default();
        let mut announced = Vec::new();
        // A path that is open every other 40 s, and another one that is blocked for good.
        for second in 0..400 {
            let flapping = second % 80 < 40;
            let now = if flapping { peers(&["n2", "n3"]) } else { peers(&["n3"]) };
            stripped.update(second * SECOND, &now);
            if let Some(reported) = stripped.take_announcement(second * SECOND) {
                announced.push((second, reported.len()));
            }
        }
        assert_eq!(announced[0], (30, 2));
        assert!(announced.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 60), "{announced:?}");
        assert!(announced.len() > 2, "{announced:?}");
        // The last Event says what holds in the end.
        for second in 400..600 {
            stripped.update(second * SECOND, &peers(&[]));
            if let Some(reported) = stripped.take_announcement(second * SECOND) {
                announced.push((second, reported.len()));
            }
        }
        assert_eq!(announced.last().unwrap().1, 0);
    }

    #[test]
    fn a_message_names_five_nodes_at_most() {
        let nodes: Vec<String> = (1..=7).map(|number| format!("n{number}")).collect();
        assert!(message(&nodes).contains("on n1, n2, n3, n4, n5 and 2 more pass"));
        assert!(message(&nodes[..1]).contains("on n1 pass"));
    }
}
