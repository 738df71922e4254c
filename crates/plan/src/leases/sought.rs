//! The lease of one pair and slot, from the first question to its release.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    ALONE, ASK_PERIOD, Answer, DISTANCES, DOUBTS, FARTHEST, KEPT, LAST_RESORT, LeasedPort, NEARER, Question,
    RECONSIDER, REFRESH, REST, SILENT, Trouble,
};
use crate::node::NodeUid;

/// Relays that can be used, each with the round trip to it.
type Usable = BTreeMap<NodeUid, Option<Duration>>;

/// A lease that is wanted by either end.
#[derive(Clone, Debug)]
pub(super) struct Sought {
    /// Whether this end leads.
    leads: bool,
    /// When either end wanted it last.
    wanted: Option<Duration>,
    /// When the other end asked at which relay.
    offers: BTreeMap<NodeUid, Duration>,
    /// The round trip from each relay to the peer; none if it does not reach it.
    distances: BTreeMap<NodeUid, Option<Duration>>,
    /// When the distances were asked for last.
    measured: Option<Duration>,
    resting: BTreeMap<NodeUid, Rest>,
    held: Option<Held>,
    trying: Option<Trying>,
    /// Leases that were left, and when to release them.
    leaving: BTreeMap<NodeUid, Duration>,
    trouble: Option<Trouble>,
}

/// A relay that failed.
#[derive(Clone, Copy, Debug)]
struct Rest {
    why: Trouble,
    failures: u32,
    since: Duration,
    until: Duration,
}

/// The lease in use.
#[derive(Clone, Debug)]
struct Held {
    relay: NodeUid,
    port: u16,
    /// When the relay confirmed it last.
    confirmed: Duration,
    asking: Option<Asking>,
    doubted: Option<Duration>,
}

/// A lease that is being asked for.
#[derive(Clone, Debug)]
struct Trying {
    relay: NodeUid,
    /// When the relay answered first.
    answered: Option<Duration>,
    asking: Asking,
}

/// A question that is repeated until it is answered.
#[derive(Clone, Copy, Debug)]
struct Asking {
    since: Duration,
    sent: Option<Duration>,
}

impl Asking {
    const fn new(now: Duration) -> Self {
        Self { since: now, sent: None }
    }

    /// Whether to send it now.
    fn is_due(&mut self, now: Duration) -> bool {
        let due = self.sent.is_none_or(|sent| now.saturating_sub(sent) >= ASK_PERIOD);
        if due {
            self.sent = Some(now);
        }
        due
    }

    fn is_older_than(&self, now: Duration, age: Duration) -> bool {
        now.saturating_sub(self.since) >= age
    }
}

impl Sought {
    pub(super) const fn new(leads: bool) -> Self {
        Self {
            leads,
            wanted: None,
            offers: BTreeMap::new(),
            distances: BTreeMap::new(),
            measured: None,
            resting: BTreeMap::new(),
            held: None,
            trying: None,
            leaving: BTreeMap::new(),
            trouble: None,
        }
    }

    pub(super) fn address(&self) -> Option<LeasedPort> {
        self.held.as_ref().map(|held| LeasedPort { relay: held.relay.clone(), port: held.port })
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble.filter(|_| self.held.is_none())
    }

    /// Whether nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.wanted.is_none() && self.leaving.is_empty()
    }

    pub(super) fn due(&self, now: Duration) -> Duration {
        let waits = self.held.is_none()
            || self.trying.is_some()
            || self.held.as_ref().is_some_and(|held| held.asking.is_some())
            || self.measured.is_some_and(|measured| now.saturating_sub(measured) < DISTANCES * 2);
        if waits {
            return now + ASK_PERIOD / 2;
        }
        let refresh = self.held.as_ref().map(|held| held.confirmed + REFRESH);
        let release = self.leaving.values().min().copied();
        let nearer = self.measured.map(|measured| measured + RECONSIDER);
        let next = [refresh, release, nearer].into_iter().flatten().min();
        // Never at once: what is overdue could not be done.
        next.unwrap_or(now + REFRESH).max(now + ASK_PERIOD / 2)
    }

    pub(super) fn receive(&mut self, now: Duration, relay: &NodeUid, answer: Answer) {
        let bounded = |distance: Option<Duration>| distance.filter(|distance| *distance <= FARTHEST);
        match answer {
            Answer::Distance(distance) => drop(self.distances.insert(relay.clone(), bounded(distance))),
            // No datagram can be sent there.
            Answer::Leased { port: 0, .. } => {}
            Answer::Leased { port, both, distance } => {
                self.distances.insert(relay.clone(), bounded(distance));
                self.leased(now, relay, port, both);
            }
            Answer::Refused(refusal) => {
                if self.uses(relay) {
                    self.fail(now, relay, Trouble::Refused(refusal));
                }
            }
            Answer::Offered { wanted } => self.offered(now, relay, wanted),
        }
    }

    fn leased(&mut self, now: Duration, relay: &NodeUid, port: u16, both: bool) {
        if let Some(held) = self.held.as_mut().filter(|held| held.relay == *relay) {
            if both {
                (held.port, held.confirmed, held.asking) = (port, now, None);
                if held.doubted.is_none_or(|doubted| now.saturating_sub(doubted) > DOUBTS[1]) {
                    self.resting.remove(relay);
                }
            } else {
                // The other end has left, or the relay has forgotten it. It is told again.
                self.held = None;
                self.trying = Some(Trying {
                    relay: relay.clone(),
                    answered: Some(now),
                    asking: Asking { since: now, sent: Some(now) },
                });
            }
            return;
        }
        let Some(trying) = self.trying.as_mut().filter(|trying| trying.relay == *relay) else { return };
        trying.answered.get_or_insert(now);
        if both {
            self.trying = None;
            self.leaving.remove(relay);
            let held = Held { relay: relay.clone(), port, confirmed: now, asking: None, doubted: None };
            if let Some(former) = self.held.replace(held) {
                self.leaving.insert(former.relay, now + KEPT);
            }
            self.trouble = None;
        }
    }

    fn offered(&mut self, now: Duration, relay: &NodeUid, wanted: bool) {
        self.offers.insert(relay.clone(), now);
        if wanted {
            self.wanted = Some(now);
        }
        let rest = self.resting.get(relay).copied();
        if rest.is_some_and(|rest| matches!(rest.why, Trouble::Alone | Trouble::Silent)) {
            // Now it has come, and the relay speaks.
            self.resting.remove(relay);
        }
        if self.uses(relay) {
            // It asks where we are: the answer to the next question says that it is there.
            if let Some(trying) = self.trying.as_mut().filter(|trying| trying.relay == *relay) {
                trying.asking.sent = None;
            }
        } else if !self.leads {
            // A relay over which nothing passed could offer itself for ever.
            let useless =
                |rest: Rest| rest.why == Trouble::NothingPasses && now.saturating_sub(rest.since) < REST[0];
            if !rest.is_some_and(useless) {
                self.try_relay(now, relay.clone());
            }
        } else if let Some(held) = &mut self.held {
            // The other end is elsewhere: our relay tells it again where we are.
            held.asking.get_or_insert_with(|| Asking::new(now));
        }
    }

    pub(super) fn ask(&mut self, now: Duration) {
        if let Some(held) = &mut self.held {
            held.asking.get_or_insert_with(|| Asking::new(now));
        }
    }

    pub(super) fn doubt(&mut self, now: Duration) {
        let Some(held) = &mut self.held else { return };
        let passed = held.doubted.map(|doubted| now.saturating_sub(doubted));
        match passed {
            Some(passed) if passed < DOUBTS[0] => {}
            Some(passed) if passed <= DOUBTS[1] => {
                let relay = held.relay.clone();
                // The relay may say itself that it does not reach the other end.
                let is_away = self.distances.get(&relay).is_some_and(Option::is_none);
                self.fail(now, &relay, if is_away { Trouble::Alone } else { Trouble::NothingPasses });
            }
            _ => {
                held.doubted = Some(now);
                held.asking.get_or_insert_with(|| Asking::new(now));
            }
        }
    }

    pub(super) fn poll(
        &mut self,
        now: Duration,
        wanted: bool,
        usable: &Usable,
        none: bool,
    ) -> Vec<(NodeUid, Question)> {
        let mut out = Vec::new();
        if wanted {
            self.wanted = Some(now);
        }
        self.offers.retain(|relay, heard| now.saturating_sub(*heard) < KEPT && usable.contains_key(relay));
        self.distances.retain(|relay, _| usable.contains_key(relay));
        self.resting.retain(|_, rest| now < rest.until + REST[1]);
        if self.wanted.is_some_and(|wanted| now.saturating_sub(wanted) >= KEPT) {
            self.leave_all(now);
        }
        if self.wanted.is_some() {
            self.keep(now, wanted, usable, &mut out);
            self.reconsider(now, usable, &mut out);
            self.attempt(now, wanted, usable, none, &mut out);
        }
        let over = |(_, at): &(&NodeUid, &Duration)| now >= **at;
        let released: Vec<NodeUid> =
            self.leaving.iter().filter(over).map(|(relay, _)| relay.clone()).collect();
        for relay in released {
            self.leaving.remove(&relay);
            if !self.uses(&relay) {
                out.push((relay, Question::Release));
            }
        }
        out
    }

    /// Asks for the held lease again, or gives it up.
    fn keep(&mut self, now: Duration, wanted: bool, usable: &Usable, out: &mut Vec<(NodeUid, Question)>) {
        let Some(held) = &mut self.held else { return };
        let relay = held.relay.clone();
        if !usable.contains_key(&relay) {
            self.fail(now, &relay, Trouble::Unreachable);
            return;
        }
        if now.saturating_sub(held.confirmed) >= REFRESH {
            held.asking.get_or_insert_with(|| Asking::new(now));
        }
        let Some(asking) = &mut held.asking else { return };
        if asking.is_older_than(now, SILENT) {
            self.fail(now, &relay, Trouble::Silent);
        } else if asking.is_due(now) {
            out.push((relay, Question::Lease { wanted }));
        }
    }

    /// The leading end looks for a relay that is much nearer than the one in use.
    fn reconsider(&mut self, now: Duration, usable: &Usable, out: &mut Vec<(NodeUid, Question)>) {
        let Some(held) = self.held.as_ref().filter(|_| self.leads && self.trying.is_none()) else { return };
        let since = self.measured.map(|measured| now.saturating_sub(measured));
        if usable.len() < 2 {
            return;
        }
        match since {
            Some(since) if since < DISTANCES => {}
            // Once, after the answers are there.
            Some(since) if since < DISTANCES * 2 => {
                let others = usable.keys().filter(|relay| **relay != held.relay && !self.rests(now, relay));
                let sums = others.filter_map(|relay| Some((self.sum(relay, usable)?, relay.clone())));
                let Some(present) = self.sum(&held.relay, usable) else { return };
                if let Some((sum, relay)) = sums.min()
                    && sum + NEARER <= present
                    && sum * 3 <= present * 2
                {
                    self.try_relay(now, relay);
                }
            }
            Some(since) if since < RECONSIDER => {}
            _ => self.measure(now, usable, out),
        }
    }

    /// Chooses a relay if there is none, and asks it.
    fn attempt(
        &mut self,
        now: Duration,
        wanted: bool,
        usable: &Usable,
        none: bool,
        out: &mut Vec<(NodeUid, Question)>,
    ) {
        if let Some(trying) = &self.trying {
            let relay = trying.relay.clone();
            let alone = ALONE[usize::from(!self.leads)];
            let failure = match trying.answered {
                _ if !usable.contains_key(&relay) => Some(Trouble::Unreachable),
                None if trying.asking.is_older_than(now, SILENT) => Some(Trouble::Silent),
                Some(answered) if now.saturating_sub(answered) >= alone => Some(Trouble::Alone),
                _ => None,
            };
            if let Some(failure) = failure {
                self.fail(now, &relay, failure);
            }
        }
        if self.held.is_none() && self.trying.is_none() {
            self.choose(now, usable, none, out);
        }
        if let Some(trying) = &mut self.trying
            && trying.asking.is_due(now)
        {
            out.push((trying.relay.clone(), Question::Lease { wanted }));
        }
    }

    fn choose(&mut self, now: Duration, usable: &Usable, none: bool, out: &mut Vec<(NodeUid, Question)>) {
        if usable.is_empty() {
            self.trouble = Some(if none { Trouble::NoRelay } else { Trouble::Unreachable });
            return;
        }
        let is_free = |relay: &&NodeUid| !self.rests(now, relay);
        // Where the other end was heard last. The leading end looks for the best one and only knows then that this one is
        // reached.
        let offers = self.offers.iter().filter(|(relay, _)| usable.contains_key(*relay) && is_free(relay));
        if let Some((relay, _)) = offers.filter(|_| !self.leads).max_by_key(|(_, heard)| **heard) {
            let relay = relay.clone();
            self.try_relay(now, relay);
            return;
        }
        let since = self.measured.map(|measured| now.saturating_sub(measured));
        if self.leads && usable.len() > 1 {
            if since.is_none_or(|since| since >= RECONSIDER) {
                self.measure(now, usable, out);
                return;
            }
            let complete = usable.keys().filter(is_free).all(|relay| self.distances.contains_key(relay));
            if !complete && since.is_some_and(|since| since < DISTANCES) {
                return;
            }
        }
        let best = usable.keys().filter(is_free).min_by_key(|relay| {
            let reaches = self.distances.get(*relay).map(Option::is_some);
            let reaches = if self.offers.contains_key(*relay) { Some(true) } else { reaches };
            let own = usable.get(*relay).copied().flatten().unwrap_or(Duration::MAX / 4);
            // The end that follows takes its nearest: it can't know more, and is moved by the other one's offer.
            let rank = self.leads.then_some(reaches.map_or(1, |reaches| if reaches { 0 } else { 2 }));
            (rank, self.sum(relay, usable).filter(|_| self.leads).unwrap_or(own * 2), (*relay).clone())
        });
        // All rest: the one that will be rested first.
        let first = || usable.keys().min_by_key(|relay| self.resting.get(*relay).map(|rest| rest.until));
        let again = |rest: &Rest| {
            let may_be_back = matches!(rest.why, Trouble::Alone | Trouble::Silent);
            rest.failures < 3 || (may_be_back && now.saturating_sub(rest.since) >= LAST_RESORT)
        };
        if let Some(relay) = best.cloned() {
            self.try_relay(now, relay);
        } else if let Some(relay) = first().cloned()
            && self.resting.get(&relay).is_some_and(again)
        {
            self.try_relay(now, relay);
        }
    }

    fn measure(&mut self, now: Duration, usable: &Usable, out: &mut Vec<(NodeUid, Question)>) {
        self.measured = Some(now);
        out.extend(usable.keys().map(|relay| (relay.clone(), Question::Distance)));
    }

    /// The sum of both round trips, if both are known.
    fn sum(&self, relay: &NodeUid, usable: &Usable) -> Option<Duration> {
        let far = (*self.distances.get(relay)?)?;
        Some((*usable.get(relay)?)?.saturating_add(far))
    }

    fn try_relay(&mut self, now: Duration, relay: NodeUid) {
        if let Some(former) = self.trying.replace(Trying { relay, answered: None, asking: Asking::new(now) })
        {
            self.leaving.insert(former.relay, now + KEPT);
        }
    }

    fn uses(&self, relay: &NodeUid) -> bool {
        self.held.as_ref().is_some_and(|held| held.relay == *relay)
            || self.trying.as_ref().is_some_and(|trying| trying.relay == *relay)
    }

    fn rests(&self, now: Duration, relay: &NodeUid) -> bool {
        self.resting.get(relay).is_some_and(|rest| now < rest.until)
    }

    /// A relay failed: its lease is left, and it rests.
    fn fail(&mut self, now: Duration, relay: &NodeUid, trouble: Trouble) {
        if self.held.as_ref().is_some_and(|held| held.relay == *relay) {
            self.held = None;
        }
        if self.trying.as_ref().is_some_and(|trying| trying.relay == *relay) {
            self.trying = None;
        }
        self.leaving.insert(relay.clone(), now + KEPT);
        self.offers.remove(relay);
        self.trouble = Some(trouble);
        if trouble == Trouble::Unreachable {
            // It is not chosen until it is reached, and may be the only one then.
            return;
        }
        let failures = self.resting.get(relay).map_or(0, |rest| rest.failures);
        let rest = REST[0].saturating_mul(1 << failures.min(10)).min(REST[1]);
        let rest = Rest { why: trouble, failures: failures + 1, since: now, until: now + rest };
        self.resting.insert(relay.clone(), rest);
    }

    /// Neither end wants it any more.
    fn leave_all(&mut self, now: Duration) {
        self.wanted = None;
        let used = self.held.take().map(|held| held.relay);
        for relay in used.into_iter().chain(self.trying.take().map(|trying| trying.relay)) {
            self.leaving.insert(relay, now);
        }
    }
}
