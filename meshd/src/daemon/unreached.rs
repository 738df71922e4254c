//! Peers that this node does not reach, and whether it reaches any: what is logged, and the Events on its Node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use status::reach::Reach;

/// How long a peer is down before it is logged. A node that joins or restarts is reached within seconds.
const PEER_AFTER: Duration = Duration::from_secs(30);
/// How long all peers are down before it is reported.
const ALL_AFTER: Duration = Duration::from_mins(1);

/// Since when which peers are down, and what was reported.
#[derive(Debug, Default)]
pub(super) struct Unreached {
    since: BTreeMap<String, Duration>,
    reported: BTreeSet<String>,
    /// Since when all are.
    all_since: Option<Duration>,
    all_reported: bool,
}

/// A change to be reported. Peers are named by their Nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A peer has been down for long enough.
    Lost(String),
    /// It is reached again.
    Found(String),
    /// All peers have been down for long enough.
    NobodyReached,
    /// At least one is reached again, or there are none any more.
    SomebodyReached,
}

impl Unreached {
    /// Takes the state of every peer; returns what is to be reported.
    pub(super) fn update<'a>(
        &mut self,
        now: Duration,
        peers: impl Iterator<Item = (&'a str, Reach)>,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let (mut since, mut reported) = (BTreeMap::new(), BTreeSet::new());
        let mut nobody = None;
        for (peer, reach) in peers {
            let down = reach == Reach::Down;
            nobody = Some(nobody.unwrap_or(true) && down);
            let was_reported = self.reported.contains(peer);
            if !down {
                changes.extend(was_reported.then(|| Change::Found(peer.to_owned())));
                continue;
            }
            let down_since = self.since.get(peer).copied().unwrap_or(now);
            let due = now.saturating_sub(down_since) >= PEER_AFTER;
            if due && !was_reported {
                changes.push(Change::Lost(peer.to_owned()));
            }
            if due || was_reported {
                reported.insert(peer.to_owned());
            }
            since.insert(peer.to_owned(), down_since);
        }
        (self.since, self.reported) = (since, reported);
        if nobody != Some(true) {
            self.all_since = None;
            changes.extend(std::mem::take(&mut self.all_reported).then_some(Change::SomebodyReached));
        } else if now.saturating_sub(*self.all_since.get_or_insert(now)) >= ALL_AFTER && !self.all_reported {
            self.all_reported = true;
            changes.push(Change::NobodyReached);
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What is reported over these seconds in which all the named peers are in one state, with the second.
    fn play(
        unreached: &mut Unreached,
        seconds: std::ops::Range<u32>,
        peers: &[(&str, Reach)],
    ) -> Vec<(u32, Change)> {
        let at = |second: u32| {
            let changes = unreached.update(second * SECOND, peers.iter().copied());
            changes.into_iter().map(move |change| (second, change))
        };
        seconds.flat_map(at).collect()
    }

    #[test]
    fn a_peer_that_stays_down_is_reported_once_and_so_is_its_return() {
        let mut unreached = Unreached::default();
        let (lost, found) = (Change::Lost("n2".to_owned()), Change::Found("n2".to_owned()));
        assert_eq!(
            play(&mut unreached, 0..90, &[("n2", Reach::Down), ("n3", Reach::Up)]),
            [(30, lost.clone())]
        );
        assert_eq!(play(&mut unreached, 90..95, &[("n2", Reach::Idle), ("n3", Reach::Up)]), [(90, found)]);
        // Starts anew.
        assert_eq!(play(&mut unreached, 95..200, &[("n2", Reach::Down), ("n3", Reach::Up)]), [(125, lost)]);
        // One that left the mesh is not said to be reached.
        assert_eq!(play(&mut unreached, 200..210, &[("n3", Reach::Up)]), []);
    }

    #[test]
    fn that_nobody_is_reached_is_reported_after_a_minute_and_so_is_its_end() {
        let mut unreached = Unreached::default();
        let all_down = [("n2", Reach::Down), ("n3", Reach::Down)];
        let lost = |second| ["n2", "n3"].map(|peer| (second, Change::Lost(peer.to_owned())));
        let mut expected = lost(30).to_vec();
        expected.push((60, Change::NobodyReached));
        assert_eq!(play(&mut unreached, 0..300, &all_down), expected);
        let one_up = [("n2", Reach::Up), ("n3", Reach::Down)];
        let found = Change::Found("n2".to_owned());
        assert_eq!(play(&mut unreached, 300..310, &one_up), [(300, found), (300, Change::SomebodyReached)]);
    }

    #[test]
    fn a_node_without_peers_lacks_none_and_short_interruptions_are_not_reported() {
        let mut unreached = Unreached::default();
        assert_eq!(play(&mut unreached, 0..300, &[]), []);
        for start in (300..600).step_by(30) {
            assert_eq!(play(&mut unreached, start..start + 29, &[("n2", Reach::Down)]), []);
            assert_eq!(play(&mut unreached, start + 29..start + 30, &[("n2", Reach::Up)]), []);
        }
    }
}
