//! When to try again what failed, and when to log it.
//!
//! Each step backs off by itself, from [`FIRST`] to [`LONGEST`]; the guard never waits longer than [`LONGEST_GUARD`], and
//! what takes a key or a peer out of use no longer than [`LONGEST_REVOCATION`]. After
//! a change of the plan or a notice from the kernel a step may work: then it is tried at once, but no sooner than
//! [`NUDGED`] after the last try, because a failing step can itself cause a notice. A failure is logged when it is new or
//! its cause changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::{PublicKey, Slot};

use crate::op::Op;

/// Time from the first failure to the next try.
pub const FIRST: Duration = Duration::from_millis(500);
/// Longest time between two tries.
pub const LONGEST: Duration = Duration::from_secs(30);
/// Longest time between two tries to set the guard: without it pods' packets may leave unencrypted.
pub const LONGEST_GUARD: Duration = Duration::from_secs(1);
/// Longest time between two tries to remove a peer or device or to replace a key: until then a revoked key is in use.
pub const LONGEST_REVOCATION: Duration = Duration::from_secs(2);
/// Least time between two tries while the plan or the kernel changes.
pub const NUDGED: Duration = Duration::from_secs(1);

/// What fails, with the time of the next try. Times are monotonic since any fixed moment.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failing: BTreeMap<Attempt, Failing>,
    planned: BTreeSet<Attempt>,
}

/// What can fail.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attempt {
    /// The guard, whatever its contents.
    Guard,
    /// A step that takes a key or a peer out of use, with all of its arguments.
    Revocation(String),
    /// Any other step, with all of its arguments.
    Step(String),
    /// Something that every turn does.
    Task(&'static str),
}

#[derive(Clone, Debug)]
struct Failing {
    failures: u32,
    tried: Duration,
    retry_at: Duration,
    message: String,
}

impl Attempt {
    /// A step. Another argument makes another attempt, which has not failed yet.
    pub fn step(op: &Op) -> Self {
        match op {
            Op::SetGuard(_) => Self::Guard,
            Op::RemovePeer { .. } | Op::RemoveDevice { .. } | Op::SetKey { .. } => {
                Self::Revocation(format!("{op:?}"))
            }
            other => Self::Step(format!("{other:?}")),
        }
    }

    const fn longest(&self) -> Duration {
        match self {
            Self::Guard => LONGEST_GUARD,
            Self::Revocation(_) => LONGEST_REVOCATION,
            Self::Step(_) | Self::Task(_) => LONGEST,
        }
    }
}

impl Backoff {
    /// Splits the steps of a plan into those to try now and those that wait. Steps that are no longer planned are
    /// forgotten. With `changed` the kernel has changed since the last plan.
    pub fn split(&mut self, now: Duration, ops: Vec<Op>, changed: bool) -> (Vec<Op>, Vec<Op>) {
        let is_task = |attempt: &Attempt| matches!(attempt, Attempt::Task(_));
        if self.failing.keys().all(is_task) {
            self.planned.clear();
            return (ops, Vec::new());
        }
        let steps: Vec<(Attempt, Op)> = ops.into_iter().map(|op| (Attempt::step(&op), op)).collect();
        let planned: BTreeSet<Attempt> = steps.iter().map(|(attempt, _)| attempt.clone()).collect();
        let nudged = changed || planned != self.planned;
        self.failing.retain(|attempt, _| is_task(attempt) || planned.contains(attempt));
        self.planned = planned;
        if nudged {
            for failing in self.failing.values_mut() {
                failing.retry_at = failing.retry_at.min(failing.tried + NUDGED);
            }
        }
        let is_due =
            |attempt: &Attempt| self.failing.get(attempt).is_none_or(|failing| failing.retry_at <= now);
        // A peer that is removed to end its session must not be added again before: the session would go on.
        let kept: Vec<(Slot, PublicKey)> = steps
            .iter()
            .filter(|(attempt, _)| !is_due(attempt))
            .filter_map(|(_, op)| match op {
                Op::RemovePeer { slot, key } => Some((*slot, *key)),
                _ => None,
            })
            .collect();
        let waits_for_removal =
            |op: &Op| matches!(op, Op::AddPeer { slot, key, .. } if kept.contains(&(*slot, *key)));
        let (due, waiting): (Vec<_>, Vec<_>) =
            steps.into_iter().partition(|(attempt, op)| is_due(attempt) && !waits_for_removal(op));
        let ops = |steps: Vec<(Attempt, Op)>| steps.into_iter().map(|(_, op)| op).collect();
        (ops(due), ops(waiting))
    }

    /// Takes a failure. Says whether to log it: it is new, or its cause is another one than the last time.
    pub fn failed(&mut self, now: Duration, attempt: Attempt, message: String) -> bool {
        let former = self.failing.remove(&attempt);
        let failures = former.as_ref().map_or(0, |former| former.failures);
        let is_news = former.is_none_or(|former| former.message != message);
        let pause =
            FIRST.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(attempt.longest());
        if !matches!(attempt, Attempt::Task(_)) {
            self.planned.insert(attempt.clone());
        }
        let failing = Failing {
            failures: failures.saturating_add(1),
            tried: now,
            retry_at: now.saturating_add(pause),
            message,
        };
        self.failing.insert(attempt, failing);
        is_news
    }

    /// Takes a success. Says how often it had failed, if it had.
    pub fn succeeded(&mut self, attempt: &Attempt) -> Option<u32> {
        self.failing.remove(attempt).map(|failing| failing.failures)
    }

    /// Whether this failed when it was last tried.
    pub fn is_failing(&self, attempt: &Attempt) -> bool {
        self.failing.contains_key(attempt)
    }

    /// What fails now, tried in the last turn or not.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.failing.values().map(|failing| failing.message.as_str())
    }

    /// Whether nothing fails.
    pub fn is_empty(&self) -> bool {
        self.failing.is_empty()
    }

    /// When the next try is due.
    pub fn retry_at(&self) -> Option<Duration> {
        self.failing.values().map(|failing| failing.retry_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> Op {
        Op::SetSysctl { name: name.to_owned(), value: "1".to_owned() }
    }

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Plans `ops` and fails `failing` of those that are due; gives those that were tried.
    fn turn(backoff: &mut Backoff, now: Duration, ops: &[Op], changed: bool, failing: &Op) -> Vec<Op> {
        let (tried, _) = backoff.split(now, ops.to_vec(), changed);
        for op in &tried {
            if op == failing {
                backoff.failed(now, Attempt::step(op), "refused".to_owned());
            } else {
                backoff.succeeded(&Attempt::step(op));
            }
        }
        tried
    }

    #[test]
    fn a_peer_is_not_added_while_its_removal_waits() {
        let key = PublicKey::from_bytes(&[9; 32]).unwrap();
        let remove = Op::RemovePeer { slot: Slot::A, key };
        let add = |slot, endpoint: &str| Op::AddPeer {
            slot,
            key,
            peer: crate::network::Peer { endpoint: endpoint.parse().ok(), ..Default::default() },
        };
        let mut backoff = Backoff::default();
        let first = [remove.clone(), add(Slot::A, "192.0.2.1:1"), add(Slot::B, "192.0.2.1:1")];
        assert_eq!(turn(&mut backoff, ms(0), &first, false, &remove), first);
        // Another endpoint makes another step, which has not failed; the other slot's peer is not concerned.
        let second = [remove.clone(), add(Slot::A, "192.0.2.2:1"), add(Slot::B, "192.0.2.2:1")];
        assert_eq!(turn(&mut backoff, ms(100), &second, false, &remove), [second[2].clone()]);
        assert_eq!(turn(&mut backoff, ms(600), &second, false, &remove), second);
    }

    #[test]
    fn a_revocation_is_tried_every_two_seconds_at_least() {
        let bad = Op::RemovePeer { slot: Slot::A, key: PublicKey::from_bytes(&[9; 32]).unwrap() };
        let mut backoff = Backoff::default();
        let tried = (0..20_000)
            .step_by(100)
            .filter(|at| !turn(&mut backoff, ms(*at), std::slice::from_ref(&bad), false, &bad).is_empty())
            .collect::<Vec<_>>();
        assert_eq!(tried[..5], [0, 500, 1_500, 3_500, 5_500]);
    }

    #[test]
    fn a_failing_step_is_tried_at_growing_intervals_up_to_the_longest() {
        let (mut backoff, bad) = (Backoff::default(), set("bad"));
        let mut tried = Vec::new();
        for at in (0..120_000).step_by(100) {
            if !turn(&mut backoff, ms(at), std::slice::from_ref(&bad), false, &bad).is_empty() {
                tried.push(at);
            }
        }
        assert_eq!(tried, [0, 500, 1_500, 3_500, 7_500, 15_500, 31_500, 61_500, 91_500]);
        assert_eq!(backoff.retry_at(), Some(ms(121_500)));
    }

    #[test]
    fn the_guard_is_tried_every_second() {
        let (mut backoff, guard) = (Backoff::default(), Op::SetGuard(crate::network::Guard::default()));
        let mut tried = Vec::new();
        for at in (0..5_000).step_by(100) {
            if !turn(&mut backoff, ms(at), std::slice::from_ref(&guard), false, &guard).is_empty() {
                tried.push(at);
            }
        }
        assert_eq!(tried, [0, 500, 1_500, 2_500, 3_500, 4_500]);
    }

    #[test]
    fn other_steps_do_not_wait_for_it() {
        let (mut backoff, bad, good) = (Backoff::default(), set("bad"), set("good"));
        turn(&mut backoff, ms(0), &[bad.clone(), good.clone()], false, &bad);
        turn(&mut backoff, ms(600), std::slice::from_ref(&bad), false, &bad);
        turn(&mut backoff, ms(1_700), std::slice::from_ref(&bad), false, &bad);
        assert_eq!(turn(&mut backoff, ms(1_800), &[bad.clone(), good.clone()], false, &bad), [good]);
    }

    #[test]
    fn a_notice_or_another_plan_brings_the_next_try_forward_but_not_at_once() {
        let (bad, good) = (set("bad"), set("good"));
        let waiting = || {
            let mut backoff = Backoff::default();
            for at in [0, 500, 1_500, 3_500, 7_500] {
                assert_eq!(turn(&mut backoff, ms(at), std::slice::from_ref(&bad), false, &bad).len(), 1);
            }
            backoff
        };
        let with = [bad.clone(), good];
        for (at, ops, changed, tried) in [
            (9_000, &with[..1], false, false),
            (9_000, &with[..1], true, true),
            (8_400, &with[..1], true, false),
            (9_000, &with[..], false, true),
        ] {
            let tried_now = turn(&mut waiting(), ms(at), ops, changed, &bad).contains(&bad);
            assert_eq!(tried_now, tried, "at {at}, {} steps, changed: {changed}", ops.len());
        }
    }

    #[test]
    fn a_nudged_step_keeps_backing_off() {
        let (mut backoff, bad) = (Backoff::default(), set("bad"));
        let mut tried = 0;
        // Each try causes a notice.
        for at in (0..60_000).step_by(50) {
            tried += turn(&mut backoff, ms(at), std::slice::from_ref(&bad), true, &bad).len();
        }
        assert_eq!(tried, 61, "no more than once a second after the first retry");
    }

    #[test]
    fn a_step_that_is_no_longer_planned_starts_afresh() {
        let (mut backoff, bad) = (Backoff::default(), set("bad"));
        for at in [0, 500, 1_500] {
            turn(&mut backoff, ms(at), std::slice::from_ref(&bad), false, &bad);
        }
        turn(&mut backoff, ms(1_600), &[], false, &bad);
        assert!(backoff.is_empty());
        assert_eq!(turn(&mut backoff, ms(1_700), std::slice::from_ref(&bad), false, &bad).len(), 1);
        assert_eq!(backoff.retry_at(), Some(ms(2_200)));
    }

    #[test]
    fn a_failure_is_news_once_and_when_its_cause_changes() {
        let mut backoff = Backoff::default();
        let mut fail = |cause: &str| backoff.failed(ms(0), Attempt::Task("observe"), cause.to_owned());
        assert_eq!(["a", "a", "b", "b", "a"].map(&mut fail), [true, false, true, false, true]);
        assert_eq!(backoff.succeeded(&Attempt::Task("observe")), Some(5));
        assert_eq!(backoff.succeeded(&Attempt::Task("observe")), None);
        assert!(backoff.failed(ms(0), Attempt::Task("observe"), "a".to_owned()));
    }
}
