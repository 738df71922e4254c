//! Turns that go on from the last one beside turns that compute and compare everything: both decide the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use keyring::Slot;
use plan::backoff::{Attempt, Backoff};
use plan::desired::{Setup, Underlay};
use plan::network::Network;
use plan::part::{Inputs, Pending};
use plan::turn::{Former, Known, Observed, Turn, decide};

use crate::Follower;
use crate::network::{disturb, know_otherwise, setup, underlay};
use crate::world::{Draft, Event, policy};

/// What a turn has left behind that may be gone on from.
struct Last {
    setup: Setup,
    underlay: Underlay,
    desired: Network,
}

/// A node whose turns go on from each other.
struct Node {
    network: Network,
    backoff: Backoff,
    last: Option<Last>,
    /// How many turns compared only what was new.
    parts: usize,
}

impl Node {
    /// Takes a turn of both kinds, and performs what both have decided, but every third step if `failing` says which.
    fn turn(&mut self, now: Duration, cluster: &Follower, (draw, outdated, failing): (u8, bool, u8)) {
        let admission = Arc::new(cluster.admission.clone());
        let (mut setup, mut underlay) = (setup(&admission), underlay());
        know_otherwise(draw, &admission, &mut setup, &mut underlay);
        let whole = Known::new(Arc::clone(&admission), setup, underlay, 1, self.backoff.clone());
        let (setup, underlay) = (whole.setup.clone(), whole.underlay.clone());
        let last = self.last.take();
        let known = match (&cluster.spliced, last) {
            (Some((before, part)), Some(Last { setup: former, underlay: wide, desired })) => {
                let inputs = Inputs { setup: &former, underlay: &wide, part: before };
                let former = Former { inputs, desired, part };
                Known::following(former, admission, setup, underlay, 1, self.backoff.clone())
            }
            _ => whole.clone(),
        };
        assert_eq!(known.desired(), whole.desired());
        let outdated: BTreeSet<Slot> = outdated.then_some(Slot::B).into_iter().collect();
        let all =
            Observed { network: self.network.clone(), outdated: outdated.clone(), ..Observed::default() };
        let mut seen = Observed { network: self.network.clone(), outdated, ..Observed::default() };
        seen.network.routes.clear();
        if known.needs_routes(&seen.network) {
            seen.network.routes.clone_from(&self.network.routes);
        } else {
            // Of the peers those alone that are not as desired.
            let mut pending = Pending::default();
            pending.add_peers(known.desired(), &seen.network);
            for (slot, device) in &mut seen.network.devices {
                device.peers.retain(|key, _| pending.peers.contains(&(*slot, *key)));
            }
            seen.other_peers = Some(pending.peers);
        }
        let (all, turn) = (decide(whole, all, now), decide(known, seen, now));
        self.parts += usize::from(turn.is_part());
        assert_eq!(turn.desired, all.desired);
        assert_eq!(turn.due, all.due, "what is done");
        assert_eq!(turn.waiting, all.waiting, "what waits or is refused");
        assert_eq!(turn.violations.is_empty(), all.violations.is_empty());
        assert_eq!(turn.backoff.failures().collect::<Vec<_>>(), all.backoff.failures().collect::<Vec<_>>());
        self.perform(now, turn, failing);
    }

    fn perform(&mut self, now: Duration, turn: Turn, failing: u8) {
        self.backoff = turn.backoff.clone();
        for (number, step) in turn.due.iter().enumerate() {
            // What follows from a step that failed fails as well.
            if number % 3 == usize::from(failing) || self.network.apply(step).is_err() {
                self.backoff.failed(now, Attempt::step(step), "refused".to_owned());
            } else {
                self.backoff.succeeded(&Attempt::step(step));
            }
        }
        let done = turn.applied(&self.backoff).is_some();
        let Turn { setup, underlay, desired, .. } = turn;
        self.last = done.then_some(Last { setup, underlay, desired });
    }
}

/// Runs a history with changes by hand and failing steps; returns how many turns compared only what was new.
pub(crate) fn turns(first: &[Draft], events: &[(Event, u8, u8)]) -> usize {
    let mut cluster = Follower::new();
    let mut node = Node { network: Network::default(), backoff: Backoff::default(), last: None, parts: 0 };
    let start = (Event::Listed(first.to_vec()), 9, 3);
    for (second, (event, hand, draw)) in std::iter::once(&start).chain(events).enumerate() {
        let now = Duration::from_secs(40 * second as u64);
        cluster.happens(now, event);
        if !cluster.admit_part(&policy(1)) {
            break;
        }
        let routes = node.network.routes.clone();
        let links: Vec<_> = node.network.devices.values().map(|device| device.link.clone()).collect();
        disturb(&mut node.network, *hand);
        let kept =
            |network: &Network| network.devices.values().map(|device| device.link.clone()).eq(links.clone());
        // The kernel tells of routes, but for those that go with a link.
        if kept(&node.network) && node.network.routes != routes {
            node.last = None;
        }
        let knows = hand.wrapping_mul(5).wrapping_add(*draw);
        node.turn(now, &cluster, (knows, draw.is_multiple_of(5), draw / 7 % 8));
    }
    node.parts
}
