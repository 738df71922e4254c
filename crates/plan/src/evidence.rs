//! When contested claims are tested, and what the results say. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::admission::{Claim, Evidence};
use crate::node::NodeUid;

/// How often a proven claim is tested again.
pub const PERIOD: Duration = Duration::from_mins(1);
/// How long a proof counts although later tests fail: single tests fail during a restart or a change of keys.
pub const PROOF_TTL: Duration = Duration::from_secs(90);
/// How long a test waits at most for a rotation to end. A node that says that it rotates for ever is tested as well.
pub const MAX_POSTPONED: Duration = Duration::from_secs(20);
/// First and longest time until a claim that failed is tested again.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), PERIOD);
/// Tests at the same time.
const MAX_RUNNING: usize = 16;
/// Results in a row that say nothing because the node has other keys or ports by then. One that changes them for ever would
/// otherwise never be judged.
const MAX_VOID: u32 = 3;
/// How long a node that has proven an address waits for the others that claim it to be tested: a liar can put a test off, and
/// liars who take turns could do so for ever.
pub const MAX_UNDECIDED: Duration = Duration::from_secs(30);
/// A test without a result for so long has failed.
const MAX_RUN: Duration = Duration::from_secs(10);

/// All claims that are contested now.
#[derive(Clone, Debug, Default)]
pub struct Tests {
    claims: BTreeMap<(NodeUid, IpAddr), Tested>,
}

#[derive(Clone, Debug)]
struct Tested {
    claim: Claim,
    /// When a test was started last, and whether it still runs.
    started: Option<Duration>,
    runs: bool,
    due: Duration,
    retry: Duration,
    /// Results since the last one that counted.
    voided: u32,
    /// When it was proven last, and since when it has been.
    proven: Option<Duration>,
    proven_since: Option<Duration>,
    evidence: Option<Evidence>,
}

impl Tested {
    const fn new(now: Duration, claim: Claim) -> Self {
        Self {
            claim,
            started: None,
            runs: false,
            due: now,
            retry: RETRY.0,
            voided: 0,
            proven: None,
            proven_since: None,
            evidence: None,
        }
    }

    fn node(&self) -> NodeUid {
        self.claim.uid.clone()
    }

    fn conclude(&mut self, now: Duration, completed: bool) {
        self.runs = false;
        self.voided = 0;
        if completed {
            self.evidence = Some(Evidence::Proven);
            self.proven = Some(now);
            self.proven_since.get_or_insert(now);
            self.due = now + PERIOD;
            self.retry = RETRY.0;
            return;
        }
        let still_proven = self.proven.is_some_and(|at| now.saturating_sub(at) < PROOF_TTL);
        if still_proven {
            self.due = now + RETRY.0;
        } else {
            self.evidence = Some(Evidence::Unproven);
            self.proven_since = None;
            self.due = now + self.retry;
            self.retry = (self.retry * 2).min(RETRY.1);
        }
    }
}

impl Tests {
    /// Takes what has to be tested; returns what is contested only since now. What is not contested any more is
    /// forgotten.
    pub fn set_claims(&mut self, now: Duration, to_test: &[Claim]) -> Vec<Claim> {
        let mut former = std::mem::take(&mut self.claims);
        let mut added = Vec::new();
        for claim in to_test {
            let place = (claim.uid.clone(), claim.address);
            let mut tested = former.remove(&place).unwrap_or_else(|| {
                added.push(claim.clone());
                Tested::new(now, claim.clone())
            });
            if tested.claim != *claim {
                // The same node with other keys or ports.
                tested.claim = claim.clone();
                tested.due = tested.due.min(now + RETRY.0);
            }
            self.claims.insert(place, tested);
        }
        added
    }

    /// The tests to start now: of each node one at a time, and first those of the nodes that have waited for one the longest,
    /// so that who lists many addresses does not keep others waiting. Those of nodes in a rotation are `postponed` for a while.
    pub fn start(&mut self, now: Duration, postponed: impl Fn(&NodeUid) -> bool) -> Vec<Claim> {
        for tested in self.claims.values_mut() {
            if tested.runs && tested.started.is_some_and(|since| now.saturating_sub(since) > MAX_RUN) {
                tested.conclude(now, false);
            }
        }
        // Each node has one test at a time, so there are as many tests as nodes.
        let mut nodes: BTreeSet<NodeUid> =
            self.claims.values().filter(|tested| tested.runs).map(Tested::node).collect();
        let mut last: BTreeMap<NodeUid, Option<Duration>> = BTreeMap::new();
        for tested in self.claims.values() {
            let of_node = last.entry(tested.node()).or_default();
            *of_node = (*of_node).max(tested.started);
        }
        let mut due: Vec<&mut Tested> =
            self.claims.values_mut().filter(|tested| !tested.runs && tested.due <= now).collect();
        due.sort_by_key(|tested| (last.get(&tested.claim.uid).copied().flatten(), tested.due));
        let mut started = Vec::new();
        for tested in due {
            let waits = now < tested.due + MAX_POSTPONED && postponed(&tested.claim.uid);
            if nodes.len() < MAX_RUNNING && !waits && nodes.insert(tested.node()) {
                (tested.started, tested.runs) = (Some(now), true);
                started.push(tested.claim.clone());
            }
        }
        started
    }

    /// Takes the result of a test; returns the evidence if it is another one now. A result for keys or ports that the
    /// node has replaced says nothing, unless that happens again and again: then it counts as a failure.
    pub fn conclude(&mut self, now: Duration, claim: &Claim, completed: bool) -> Option<Evidence> {
        let tested = self.claims.get_mut(&(claim.uid.clone(), claim.address))?;
        let void = tested.claim != *claim;
        if void {
            tested.runs = false;
            tested.voided += 1;
            if tested.voided < MAX_VOID {
                return None;
            }
        }
        let former = tested.evidence;
        tested.conclude(now, completed && !void);
        tested.evidence.filter(|_| tested.evidence != former)
    }

    /// Whether nothing is to be tested.
    pub fn is_idle(&self) -> bool {
        self.claims.is_empty()
    }

    /// Whether an address of a node is being tested.
    pub fn is_testing(&self, uid: &NodeUid) -> bool {
        self.claims.values().any(|tested| tested.claim.uid == *uid && tested.runs)
    }

    /// What is known.
    pub fn evidence(&self) -> BTreeMap<(NodeUid, IpAddr), Evidence> {
        let known = |(place, tested): (&(NodeUid, IpAddr), &Tested)| Some((place.clone(), tested.evidence?));
        self.claims.iter().filter_map(known).collect()
    }

    /// The addresses for which a node that has proven them has waited long enough at `now`.
    pub fn waited_for(&self, now: Duration) -> BTreeSet<IpAddr> {
        let proven =
            self.claims.values().filter_map(|tested| Some((tested.claim.address, tested.proven_since?)));
        let late = proven.filter(|(_, since)| now.saturating_sub(*since) >= MAX_UNDECIDED);
        late.map(|(address, _)| address).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use keyring::{PerSlot, PublicKey};

    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn claim(node: u8, last: u8) -> Claim {
        let key = |byte| PublicKey::from_bytes(&[byte; 32]).unwrap();
        Claim {
            uid: NodeUid::new(format!("u{node}")),
            address: [192, 0, 2, last].into(),
            keys: PerSlot { a: key(2 * node + 10), b: key(2 * node + 11) },
            ports: PerSlot { a: 51840, b: 51841 },
        }
    }

    fn never(_: &NodeUid) -> bool {
        false
    }

    /// Runs one test of a claim that is due; returns the evidence.
    fn test(tests: &mut Tests, now: Duration, claim: &Claim, completed: bool) -> Option<Evidence> {
        assert_eq!(tests.start(now, never), from_ref(claim), "{now:?}");
        tests.conclude(now, claim, completed);
        tests.evidence().get(&(claim.uid.clone(), claim.address)).copied()
    }

    #[test]
    fn a_claim_is_tested_at_once_and_again_every_minute() {
        let (mut tests, ours) = (Tests::default(), claim(2, 7));
        assert_eq!(tests.set_claims(at(1), from_ref(&ours)), from_ref(&ours));
        assert!(tests.evidence().is_empty());
        assert_eq!(test(&mut tests, at(1), &ours, true), Some(Evidence::Proven));
        assert!(tests.set_claims(at(2), from_ref(&ours)).is_empty(), "known already");
        assert!(tests.start(at(60), never).is_empty());
        assert_eq!(test(&mut tests, at(61), &ours, true), Some(Evidence::Proven));
        tests.set_claims(at(62), &[]);
        assert!(tests.evidence().is_empty(), "not contested any more");
    }

    #[test]
    fn a_node_that_is_gone_has_proven_nothing_after_two_minutes() {
        let (mut tests, ours) = (Tests::default(), claim(2, 7));
        tests.set_claims(at(0), from_ref(&ours));
        test(&mut tests, at(0), &ours, true);
        let mut changed = None;
        for second in 1..200 {
            for started in tests.start(at(second), never) {
                let evidence = tests.conclude(at(second + 3), &started, false);
                changed = changed.or_else(|| evidence.map(|evidence| (evidence, second)));
            }
        }
        let (evidence, second) = changed.unwrap();
        assert_eq!(evidence, Evidence::Unproven);
        assert!((60..120).contains(&second), "{second}");
    }

    #[test]
    fn failed_tests_are_repeated_more_and_more_rarely() {
        let (mut tests, ours) = (Tests::default(), claim(2, 7));
        tests.set_claims(at(0), from_ref(&ours));
        let mut started = Vec::new();
        for second in 0..300 {
            if !tests.start(at(second), never).is_empty() {
                tests.conclude(at(second), &ours, false);
                started.push(second);
            }
        }
        assert_eq!(started, [0, 2, 6, 14, 30, 62, 122, 182, 242]);
    }

    #[test]
    fn one_test_a_node_and_sixteen_in_all_and_none_waits_for_ever() {
        let mut tests = Tests::default();
        let claims: Vec<Claim> = (0..20).flat_map(|node| [claim(node, 7), claim(node, 8)]).collect();
        tests.set_claims(at(0), &claims);
        let first = tests.start(at(0), never);
        assert_eq!(first.len(), 16);
        assert_eq!(first.iter().map(|claim| &claim.uid).collect::<BTreeSet<_>>().len(), 16);
        assert!(tests.start(at(1), never).is_empty() && tests.is_testing(&first[0].uid));
        // No result comes: they have failed, and the others get their turn.
        let mut started: BTreeSet<Claim> = first.into_iter().collect();
        for second in 2..60 {
            started.extend(tests.start(at(second), never));
        }
        assert_eq!(started.len(), claims.len());
    }

    #[test]
    fn a_rotation_postpones_a_test_for_a_while_only() {
        let (mut tests, ours) = (Tests::default(), claim(2, 7));
        tests.set_claims(at(0), from_ref(&ours));
        assert!(tests.start(at(0), |_| true).is_empty());
        assert!(tests.start(at(19), |_| true).is_empty());
        assert_eq!(tests.start(at(20), |_| true), [ours]);
    }

    #[test]
    fn a_node_that_changes_its_ports_for_ever_is_judged_nevertheless() {
        let (mut tests, mut ours) = (Tests::default(), claim(2, 7));
        tests.set_claims(at(0), from_ref(&ours));
        let mut found = None;
        for second in 1..60 {
            let started = tests.start(at(second), never);
            ours.ports.a += 1;
            tests.set_claims(at(second), from_ref(&ours));
            for claim in started {
                if let Some(evidence) = tests.conclude(at(second), &claim, false) {
                    found = found.or(Some((evidence, second)));
                }
            }
        }
        let (evidence, second) = found.unwrap();
        assert_eq!(evidence, Evidence::Unproven);
        assert!(second <= 10, "{second}");
    }

    #[test]
    fn a_node_has_one_test_at_a_time_over_several_turns() {
        let mut tests = Tests::default();
        tests.set_claims(at(0), &[claim(2, 7), claim(2, 8)]);
        assert_eq!(tests.start(at(0), never).len(), 1);
        assert!(tests.start(at(1), never).is_empty());
    }

    #[test]
    fn a_result_for_former_keys_says_nothing() {
        let (mut tests, former) = (Tests::default(), claim(2, 7));
        tests.set_claims(at(0), from_ref(&former));
        tests.start(at(0), never);
        let renewed = Claim { keys: claim(9, 7).keys, ..former.clone() };
        assert!(tests.set_claims(at(1), from_ref(&renewed)).is_empty());
        assert_eq!(tests.conclude(at(1), &former, true), None);
        assert!(tests.evidence().is_empty());
        assert_eq!(test(&mut tests, at(3), &renewed, true), Some(Evidence::Proven));
    }

    #[test]
    fn who_lists_many_addresses_keeps_nobody_waiting() {
        let mut tests = Tests::default();
        let liars = (0..16).flat_map(|node| (1..=16).map(move |last| claim(node, last)));
        let victim = claim(99, 1);
        tests.set_claims(at(0), &liars.chain([victim.clone()]).collect::<Vec<_>>());
        for second in (0..).step_by(3) {
            assert!(second <= 3, "the victim is not tested");
            let started = tests.start(at(second), never);
            if started.contains(&victim) {
                break;
            }
            for claim in started {
                tests.conclude(at(second + 3), &claim, false);
            }
        }
    }

    #[test]
    fn a_node_that_has_proven_an_address_waits_half_a_minute_for_others() {
        let (mut tests, ours, other) = (Tests::default(), claim(2, 7), claim(3, 7));
        tests.set_claims(at(0), &[ours.clone(), other, claim(3, 8)]);
        tests.start(at(0), never);
        tests.conclude(at(1), &ours, true);
        assert!(tests.waited_for(at(30)).is_empty());
        assert_eq!(tests.waited_for(at(31)), [ours.address].into(), "nobody has proven the other one");
        for second in (31..200).step_by(4) {
            tests.start(at(second), never);
            tests.conclude(at(second), &ours, false);
        }
        assert!(tests.waited_for(at(200)).is_empty(), "it is gone");
    }
}
