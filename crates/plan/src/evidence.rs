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
/// Other keys or ports bring a test forward, but not closer than this to the former one.
const CHANGE_APART: Duration = Duration::from_secs(15);
/// Claims that are not contested any more and are remembered: those of 64 nodes with 64 addresses each.
const MAX_SETTLED: usize = 4096;

/// A node, and an address that it lists.
type Place = (NodeUid, IpAddr);

/// All claims that are contested now.
///
/// A claim that is not contested any more is remembered for as long as its last test counts: who lists an address again and
/// again has nobody tested more often than who lists it all the time.
#[derive(Clone, Debug, Default)]
pub struct Tests {
    claims: BTreeMap<Place, Tested>,
    settled: BTreeMap<Place, Tested>,
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

    /// Until when it is remembered although nobody else lists the address any more: longer than anything waits for a test.
    fn remembered_until(&self) -> Duration {
        self.due.max(self.started.unwrap_or_default()) + PERIOD
    }

    /// Takes other keys or ports of the node.
    fn change(&mut self, now: Duration, claim: &Claim) {
        self.claim = claim.clone();
        let apart = self.started.map_or(Duration::ZERO, |started| started + CHANGE_APART);
        self.due = self.due.min(apart.max(now + RETRY.0));
    }

    /// Is contested again. What is due is tested as if for the first time, and others have as long as then to prove that the
    /// address is theirs; only the pauses go on.
    fn resume(&mut self, now: Duration) {
        if !self.is_proven(now) {
            (self.proven, self.proven_since) = (None, None);
            self.evidence = self.evidence.filter(|_| now < self.due);
        }
        self.proven_since = self.proven_since.map(|_| now);
    }

    /// Whether the last test began so long ago that it has failed.
    fn is_overdue(&self, now: Duration) -> bool {
        self.started.is_some_and(|since| now.saturating_sub(since) > MAX_RUN)
    }

    fn is_proven(&self, now: Duration) -> bool {
        self.proven.is_some_and(|at| now.saturating_sub(at) < PROOF_TTL)
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
        if self.is_proven(now) {
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
    /// Takes what has to be tested; returns what is contested only since now.
    pub fn set_claims(&mut self, now: Duration, to_test: &[Claim]) -> Vec<Claim> {
        let mut former = std::mem::take(&mut self.claims);
        let mut added = Vec::new();
        for claim in to_test {
            let place = (claim.uid.clone(), claim.address);
            let known = former.remove(&place).or_else(|| self.take_settled(now, &place));
            let mut tested = known.unwrap_or_else(|| {
                added.push(claim.clone());
                Tested::new(now, claim.clone())
            });
            if tested.claim != *claim {
                tested.change(now, claim);
            }
            self.claims.insert(place, tested);
        }
        // One that never began has nothing to be remembered.
        self.settled.extend(former.into_iter().filter(|(_, tested)| tested.started.is_some()));
        self.forget_settled(now);
        added
    }

    /// What is remembered of a claim that is contested again.
    fn take_settled(&mut self, now: Duration, place: &Place) -> Option<Tested> {
        let mut tested = self.settled.remove(place).filter(|tested| now < tested.remembered_until())?;
        tested.resume(now);
        Some(tested)
    }

    /// Forgets what is too old, and the oldest if there is too much.
    fn forget_settled(&mut self, now: Duration) {
        self.settled.retain(|_, tested| now < tested.remembered_until());
        let excess = self.settled.len().saturating_sub(MAX_SETTLED);
        if excess == 0 {
            return;
        }
        let end = |(place, tested): (&Place, &Tested)| (tested.remembered_until(), place.clone());
        let mut ends: Vec<_> = self.settled.iter().map(end).collect();
        ends.sort_unstable();
        for (_, place) in ends.into_iter().take(excess) {
            self.settled.remove(&place);
        }
    }

    /// The tests to start now: of each node one at a time, and first those of the nodes that have waited for one the longest,
    /// so that who lists many addresses does not keep others waiting. Those of nodes in a rotation are `postponed` for a while.
    pub fn start(&mut self, now: Duration, postponed: impl Fn(&NodeUid) -> bool) -> Vec<Claim> {
        for tested in self.claims.values_mut() {
            if tested.runs && tested.is_overdue(now) {
                tested.conclude(now, false);
            }
        }
        // Each node has one test at a time, so there are as many tests as nodes.
        let mut nodes: BTreeSet<NodeUid> =
            self.all().filter(|tested| tested.runs && !tested.is_overdue(now)).map(Tested::node).collect();
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
        let place = (claim.uid.clone(), claim.address);
        let tested = match self.claims.get_mut(&place) {
            Some(tested) => tested,
            None => self.settled.get_mut(&place)?,
        };
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

    /// Whether more or less is known than what addresses were decided by, so that they have to be decided anew.
    pub fn differ(
        &self,
        now: Duration,
        evidence: &BTreeMap<Place, Evidence>,
        waited_for: &BTreeSet<IpAddr>,
    ) -> bool {
        self.evidence() != *evidence || self.waited_for(now) != *waited_for
    }

    /// Whether an address of a node is being tested.
    pub fn is_testing(&self, uid: &NodeUid) -> bool {
        self.all().any(|tested| tested.claim.uid == *uid && tested.runs)
    }

    /// Claims that are contested, and those that are remembered.
    fn all(&self) -> impl Iterator<Item = &Tested> {
        self.claims.values().chain(self.settled.values())
    }

    /// What is known.
    pub fn evidence(&self) -> BTreeMap<Place, Evidence> {
        let known = |(place, tested): (&Place, &Tested)| Some((place.clone(), tested.evidence?));
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

    /// Has a claim contested every other `period` for ten minutes; returns how often it was tested.
    fn tests_of(period: u64, answers: bool, changes: bool) -> usize {
        let (mut tests, mut ours, mut begun) = (Tests::default(), claim(2, 7), 0);
        for second in 0..600 {
            let contested = (second / period).is_multiple_of(2);
            if changes {
                ours.ports.a = u16::try_from(1000 + second).unwrap();
            }
            tests.set_claims(at(second), if contested { from_ref(&ours) } else { &[] });
            for started in tests.start(at(second), never) {
                begun += 1;
                tests.conclude(at(second), &started, answers);
            }
            let known = tests.evidence().len();
            assert_eq!(known, usize::from(contested), "known at once and from then on, at {second} s");
        }
        begun
    }

    #[test]
    fn who_lists_an_address_again_and_again_has_nobody_tested_more_often() {
        for period in [1, 2, 5, 30, 59] {
            assert!(tests_of(period, true, false) <= 11, "{period} s, one that answers");
            assert!(tests_of(period, false, false) <= 15, "{period} s, one that does not");
            assert!(
                tests_of(period, true, true) <= 600 / 15 + 1,
                "{period} s, one that answers and changes its ports"
            );
            assert!(tests_of(period, false, true) <= 600 / 15 + 5, "{period} s, one that changes its ports");
        }
    }

    #[test]
    fn what_is_contested_again_is_proven_for_as_long_as_it_was_and_waits_for_others_anew() {
        let (mut tests, ours) = (Tests::default(), claim(2, 7));
        tests.set_claims(at(0), from_ref(&ours));
        test(&mut tests, at(0), &ours, true);
        tests.set_claims(at(10), &[]);
        assert!(tests.set_claims(at(50), from_ref(&ours)).is_empty(), "known");
        assert_eq!(tests.evidence().len(), 1);
        assert!(tests.waited_for(at(79)).is_empty() && !tests.waited_for(at(80)).is_empty());
        tests.set_claims(at(81), &[]);
        tests.set_claims(at(95), from_ref(&ours));
        assert!(tests.evidence().is_empty(), "too long ago");
        assert_eq!(test(&mut tests, at(95), &ours, false), Some(Evidence::Unproven));
    }

    #[test]
    fn a_result_that_comes_when_nobody_contests_the_claim_counts_when_somebody_does() {
        let (mut tests, ours) = (Tests::default(), claim(2, 7));
        tests.set_claims(at(0), from_ref(&ours));
        tests.start(at(0), never);
        tests.set_claims(at(1), &[]);
        assert!(tests.is_testing(&ours.uid));
        tests.conclude(at(2), &ours, true);
        tests.set_claims(at(3), from_ref(&ours));
        assert!(tests.start(at(3), never).is_empty() && tests.evidence().len() == 1);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_is_forgotten_first() {
        let mut tests = Tests::default();
        for last in 0..=255 {
            let second = u64::from(last) / 8;
            let claims: Vec<Claim> = (0..20).map(|node| claim(node, last)).collect();
            tests.set_claims(at(second), &claims);
            // Sixteen, and the rest.
            for _ in 0..2 {
                for started in tests.start(at(second), never) {
                    tests.conclude(at(second), &started, false);
                }
            }
        }
        tests.set_claims(at(32), &[]);
        assert_eq!(tests.settled.len(), MAX_SETTLED);
        assert!(tests.settled.keys().all(|(_, address)| *address > IpAddr::from([192, 0, 2, 47])));
        tests.set_claims(at(200), &[]);
        assert!(tests.settled.is_empty());
    }

    #[test]
    fn addresses_are_decided_anew_only_when_more_or_less_is_known() {
        let (mut tests, ours, other) = (Tests::default(), claim(2, 7), claim(3, 7));
        let known = |tests: &Tests, second| (tests.evidence(), tests.waited_for(at(second)));
        let differ = |tests: &Tests, second, (evidence, late): &_| tests.differ(at(second), evidence, late);
        tests.set_claims(at(0), &[ours.clone(), other.clone()]);
        let before = known(&tests, 0);
        tests.start(at(0), never);
        assert!(!differ(&tests, 1, &before), "tests run");
        tests.conclude(at(1), &ours, true);
        assert!(differ(&tests, 1, &before), "one is proven");
        let one = known(&tests, 1);
        assert!(!differ(&tests, 30, &one) && differ(&tests, 31, &one), "it has waited for the other");
        tests.conclude(at(3), &other, false);
        assert!(differ(&tests, 3, &one), "both are known");
        let both = known(&tests, 31);
        for second in 31..59 {
            for started in tests.start(at(second), never) {
                tests.conclude(at(second), &started, started == ours);
            }
            assert!(!differ(&tests, second, &both), "tests that say the same, at {second} s");
        }
        tests.set_claims(at(59), from_ref(&ours));
        assert!(differ(&tests, 59, &both), "less is contested");
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
