//! Both slots of one peer.

use super::*;
use crate::admission::Ledger;
use crate::admission::tests::{admitted, node};

struct Seen {
    /// What the devices say, but for the endpoint, which is the one that is published.
    views: PerSlot<View>,
    carrying: Slot,
    measured: bool,
}

impl Seen {
    /// A peer that has just completed handshakes on these slots.
    fn answering(answering: PerSlot<bool>, carrying: Slot, measured: bool) -> Self {
        let view = |answers: bool| View { handshake: answers.then_some(Duration::ZERO), ..View::default() };
        Self { views: answering.map(view), carrying, measured }
    }

    /// A peer that is sent packets on one slot, and from which no more has come than `received`.
    fn silent(now: Duration, carrying: Slot, received: PerSlot<u64>) -> Self {
        let views = PerSlot::from_fn(|slot| {
            let sent = if slot == carrying { u64::try_from(now.as_millis()).unwrap() } else { 7 };
            View { handshake: Some(now), sent, received: *received.get(slot), ..View::default() }
        });
        Self { views, carrying, measured: true }
    }
}

impl Outlook for Seen {
    fn view(&self, member: &Member, slot: Slot) -> Option<View> {
        Some(View { endpoint: member.socket(slot), ..*self.views.get(slot) })
    }

    fn relayed(&self, _: &NodeUid, _: Slot) -> Option<SocketAddr> {
        None
    }

    fn is_relay(&self, _: SocketAddr) -> bool {
        false
    }

    fn carrying(&self, _: &NodeUid) -> Option<Slot> {
        Some(self.carrying)
    }

    fn is_limited(&self, _: Slot) -> bool {
        false
    }

    fn is_measured(&self, _: &NodeUid, _: Slot, _: SocketAddr) -> bool {
        self.measured
    }
}

#[test]
fn packets_are_moved_by_choice_only_where_those_of_the_present_size_were_answered() {
    let world = admitted(&[node(1), node(2)], &Ledger::default()).world;
    let uid = &world.peers[&crate::node::NodeName::new("n2")].uid;
    let mut paths = Paths::new(0);
    let mut seen = Seen::answering(PerSlot { a: true, b: true }, Slot::A, false);
    let mut steered = |millis: u64, seen: &Seen, wanted| {
        let now = Duration::from_millis(millis);
        paths.step(now, &world, Surroundings::default(), seen);
        paths.steer(now, uid, wanted)
    };
    steered(0, &seen, Slot::B);
    assert_eq!(steered(100, &seen, Slot::B), Slot::A, "not before it is known");
    seen.measured = true;
    assert_eq!(steered(200, &seen, Slot::B), Slot::B);
    // It is on that one now, and stays while that one is asked again.
    (seen.measured, seen.carrying) = (false, Slot::B);
    assert_eq!(steered(300, &seen, Slot::B), Slot::B);
    // Without a choice there is nothing to wait for.
    let mut paths = Paths::new(0);
    seen = Seen::answering(PerSlot { a: false, b: true }, Slot::A, false);
    for millis in [0, 100] {
        paths.step(Duration::from_millis(millis), &world, Surroundings::default(), &seen);
    }
    assert_eq!(paths.steer(Duration::from_millis(100), uid, Slot::A), Slot::B);
}

#[test]
fn both_slots_of_a_peer_that_is_gone_are_lost_at_the_same_time_although_one_carries_nothing() {
    let world = admitted(&[node(1), node(2)], &Ledger::default()).world;
    for carrying in Slot::ALL {
        let mut paths = Paths::new(0);
        let mut lost = BTreeMap::new();
        for millis in (0..10_000).step_by(10) {
            let now = Duration::from_millis(millis);
            let gone = Seen::silent(now, carrying, PerSlot::default());
            for step in paths.step(now, &world, Surroundings::default(), &gone) {
                if let Some(Event::Lost(_)) = step.event {
                    lost.entry(step.slot).or_insert(now);
                }
            }
        }
        let [first, second] = [carrying, carrying.other()].map(|slot| lost[&slot]);
        assert!(first < Duration::from_secs(5), "{lost:?}");
        assert!(second < first + Duration::from_millis(100), "{lost:?}");
    }
}

#[test]
fn a_slot_that_is_probed_because_of_the_other_one_does_not_have_that_probed() {
    let world = admitted(&[node(1), node(2)], &Ledger::default()).world;
    let mut paths = Paths::new(0);
    let mut answered = PerSlot::<u64>::default();
    for millis in 0..20_000 {
        let now = Duration::from_millis(millis);
        // It has nothing to send, but has answered each probe before the next step.
        let near = Seen::silent(now, Slot::A, answered);
        for step in paths.step(now, &world, Surroundings::default(), &near) {
            let probes = step.actions.iter().filter(|action| matches!(action, Action::Probe(_)));
            *answered.get_mut(step.slot) += u64::try_from(probes.count()).unwrap();
        }
    }
    // Each time that nothing has come for 2 s.
    assert!((8..=11).contains(&answered.a), "{answered:?}");
    assert!((8..=11).contains(&answered.b), "{answered:?}");
}

#[test]
fn what_is_due_is_said_until_a_step_is_taken_and_not_again() {
    let world = admitted(&[node(1), node(2)], &Ledger::default()).world;
    let silent = Seen::answering(PerSlot::default(), Slot::A, false);
    let mut paths = Paths::new(0);
    paths.step(Duration::ZERO, &world, Surroundings::default(), &silent);
    let due = paths.due().unwrap();
    assert!(due > Duration::ZERO);
    paths.step(due, &world, Surroundings::default(), &silent);
    assert!(paths.due().unwrap() > due);
}
