//! The search for a path: one endpoint after the other is tried, until the peer answers.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidate::{Candidate, Kind};
use super::slot::{Action, Context, View};
use super::watch::Up;

/// How long one endpoint is tried. The kernel sends one initiation every 5 s to a peer (`REKEY_TIMEOUT` in
/// `drivers/net/wireguard/messages.h`), however often it is asked.
const TRY: Duration = Duration::from_secs(1);
const TRY_SLOWLY: Duration = Duration::from_millis(5_500);
/// How long a mapped address is tried: the other end has to try ours at the same time.
const PUNCH: Duration = Duration::from_secs(4);
/// How long a relay is tried.
const TRY_RELAY: Duration = Duration::from_secs(2);
/// Between two handshakes that are begun with the same endpoint.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// The same with a peer that may only just learn of this node.
const AGAIN_SOON: Duration = Duration::from_millis(500);
/// First and longest pause after all endpoints have failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// Rounds without success after which the pauses are the longest.
const LONG: (u32, Duration) = (40, Duration::from_mins(1));
/// A session is not used for longer (`REJECT_AFTER_TIME` of the WireGuard paper, section 6.1).
const SESSION: Duration = Duration::from_mins(3);

#[derive(Clone, Debug)]
pub(super) struct Search {
    pub(super) started: Duration,
    /// The candidate that is tried, since when, and when a handshake was begun last.
    pub(super) at: Option<Attempt>,
    /// Number of the candidate to try next.
    pub(super) next: usize,
    pub(super) rounds: u32,
    pub(super) paused_until: Duration,
    /// The path that was given up; tried last. After a relayed one, which had been taken because no direct one was found,
    /// another relay comes first.
    pub(super) former: Option<(SocketAddr, Kind)>,
    /// The path that worked last, before this daemon started: tried first, in the first round.
    pub(super) last: Option<Candidate>,
    /// The path to go back to if no better one is found.
    pub(super) fallback: Option<Up>,
    /// Whether the peer may only just learn of this node: then it answers to the second handshake.
    pub(super) fresh: bool,
    /// Whether the peer has asked for what is tried next, so that it need not be asked. It is told of what follows.
    pub(super) invited: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) candidate: Candidate,
    pub(super) since: Duration,
    pub(super) begun: Duration,
    /// How long it is tried.
    pub(super) lasts: Duration,
    /// Between two handshakes.
    pub(super) again: Duration,
    /// Whether it was said that the relay forwards nothing.
    pub(super) doubted: bool,
}

impl Attempt {
    pub(super) const fn new(now: Duration, candidate: Candidate, limited: bool) -> Self {
        let lasts = lasting(candidate.kind, limited);
        Self { candidate, since: now, begun: now, lasts, again: AGAIN, doubted: false }
    }
}

impl Search {
    pub(super) const fn new(now: Duration) -> Self {
        Self {
            started: now,
            at: None,
            next: 0,
            rounds: 0,
            paused_until: Duration::ZERO,
            former: None,
            last: None,
            fallback: None,
            fresh: false,
            invited: false,
        }
    }

    /// The path that an authenticated answer has shown to work.
    pub(super) fn found(
        &self,
        now: Duration,
        view: &View,
        echoed: Option<Duration>,
        context: Context<'_>,
    ) -> Option<Up> {
        let endpoint = view.endpoint?;
        let handshake = view.handshake.filter(|age| *age < SESSION).map(|age| now.saturating_sub(age));
        // While the peer is not followed, a handshake may be one that it began along another path. What it echoes has
        // arrived at the endpoint.
        let answered = if self.follows() { handshake.max(echoed) } else { echoed };
        let tried = self.at.map(|attempt| attempt.candidate);
        let up = || Up::at(endpoint, view, tried, context);
        let since = match (self.at, self.fallback) {
            // The endpoint is the one that is tried: what was answered before was answered over another one.
            (Some(attempt), _) if attempt.candidate.to == endpoint => attempt.since,
            // The peer has moved it, with something that it authenticated.
            (Some(_), None) => self.started,
            // A device that was there before this daemon: its endpoint with a session is what works.
            (None, None) if self.fresh => return handshake.map(|_| up()),
            // Without an attempt another candidate is about to be tried: the session is one along a path that was lost.
            (_, Some(_)) | (None, None) => return None,
        };
        (answered? >= since).then(up)
    }

    /// Whether the peer is followed to wherever it sends from: not while there is a path, since the peer's packets along that
    /// one would end the trial of another; and not away from what an operator prescribes.
    pub(super) fn follows(&self) -> bool {
        let prescribed = self.at.is_some_and(|attempt| attempt.candidate.kind.is_prescribed());
        self.fallback.is_none() && !prescribed
    }

    /// Tries the peer's mapped addresses at once: it tries ours.
    pub(super) fn punch(&mut self, now: Duration, context: Context<'_>) {
        let is_punched = |one: &Candidate| one.kind == Kind::Punched;
        if !self.at.is_some_and(|attempt| is_punched(&attempt.candidate)) {
            self.punch_first(now, context);
        }
    }

    /// Tries the first of the peer's mapped addresses at once, unless it is being tried.
    pub(super) fn punch_first(&mut self, now: Duration, context: Context<'_>) {
        if self.last.take().is_some() {
            self.next = self.next.saturating_sub(1);
        }
        let order = self.order(context);
        let first = order.iter().enumerate().find(|(_, one)| one.kind == Kind::Punched);
        let Some((next, candidate)) = first else { return };
        if self.at.is_none_or(|attempt| attempt.candidate != *candidate) {
            (self.next, self.at, self.paused_until, self.invited) = (next, None, now, true);
        }
    }

    /// The candidates in the order in which they are tried: the path that was given up comes last.
    pub(super) fn order(&self, context: Context<'_>) -> Vec<Candidate> {
        let direct_only = self.fallback.is_some();
        let usable = context.candidates.iter().filter(|one| !direct_only || one.kind.is_direct());
        let (former, mut others): (Vec<Candidate>, Vec<Candidate>) =
            usable.copied().partition(|one| self.former.is_some_and(|(to, _)| to == one.to));
        if self.prefers_relays() {
            others.sort_by_key(|one| one.kind.is_direct());
        }
        others.extend(former);
        let is_allowed = |last: &Candidate| {
            let prescribed = others.first().is_some_and(|one| one.kind.is_prescribed());
            !prescribed || others.iter().any(|one| one.to == last.to)
        };
        if let Some(last) = self.last.filter(is_allowed) {
            let named = others.iter().find(|one| one.to == last.to).copied();
            others.insert(0, named.unwrap_or(last));
        }
        others
    }

    /// Whether a candidate is tried only because it worked before this daemon started.
    fn is_remembered(&self, candidate: &Candidate) -> bool {
        self.next == 0 && self.last.is_some_and(|last| last.to == candidate.to)
    }

    /// Whether a relay comes before direct endpoints: those were tried in vain before the relay was taken.
    pub(super) fn prefers_relays(&self) -> bool {
        self.former.is_some_and(|(_, kind)| !kind.is_direct())
    }

    /// A relay's port leads to the peer: no pause is waited for; if relays come first, the round begins anew with it.
    pub(super) fn relay_offered(&mut self, now: Duration, first: bool) {
        self.paused_until = self.paused_until.min(now);
        let at_relay = self.at.is_some_and(|attempt| !attempt.candidate.kind.is_direct());
        if (first || self.prefers_relays()) && !at_relay {
            (self.next, self.at) = (0, None);
        }
    }

    /// Goes on searching; the second value says that a round is over without success.
    pub(super) fn go_on(&mut self, now: Duration, view: &View, context: Context<'_>) -> (Vec<Action>, bool) {
        if now < self.paused_until {
            return (Vec::new(), false);
        }
        let follows = self.follows();
        if let Some(attempt) = &mut self.at {
            // Where the peer sends from is as good as anything that it names.
            let moved = view.endpoint.filter(|endpoint| follows && *endpoint != attempt.candidate.to);
            if let Some(moved) = moved {
                let candidate = Candidate { kind: Kind::Punched, to: moved };
                *attempt = Attempt::new(now, candidate, context.limited);
                return (vec![Action::Initiate, Action::Probe(context.nonce)], false);
            }
            if now < attempt.since + attempt.lasts {
                if now < attempt.begun + attempt.again {
                    return (Vec::new(), false);
                }
                attempt.begun = now;
                return (vec![Action::Initiate, Action::Probe(context.nonce)], false);
            }
        }
        let mut actions = Vec::new();
        if let Some(attempt) = &mut self.at
            && attempt.candidate.kind == Kind::Relayed
            && !std::mem::replace(&mut attempt.doubted, true)
        {
            actions.push(Action::Doubt);
        }
        if let Some(candidate) = self.order(context).get(self.next).copied() {
            let mut attempt = Attempt::new(now, candidate, context.limited);
            if self.is_remembered(&candidate) {
                // Without the peer's help, which does not know of it: that comes in its turn.
                attempt.lasts = lasting(Kind::External, context.limited);
            }
            self.next += 1;
            if std::mem::take(&mut self.fresh) && attempt.lasts == TRY {
                attempt.again = AGAIN_SOON;
            }
            self.at = Some(attempt);
            let aim = Action::Aim { to: candidate.to, follow: self.follows() };
            actions.extend([aim, Action::Probe(context.nonce)]);
            let invited = std::mem::take(&mut self.invited);
            if (candidate.kind == Kind::Punched || self.fallback.is_some()) && !invited {
                actions.push(Action::Invite);
            }
            return (actions, false);
        }
        (self.rounds, self.last) = (self.rounds.saturating_add(1), None);
        let doubled = PAUSE.0 * 2_u32.saturating_pow(self.rounds.min(8) - 1);
        let pause = if self.rounds > LONG.0 { LONG.1 } else { doubled.min(PAUSE.1) };
        (self.next, self.paused_until) = (0, now + pause);
        (actions, true)
    }
}

/// How long an endpoint of a kind is tried.
pub(super) const fn lasting(kind: Kind, limited: bool) -> Duration {
    match (kind, limited) {
        (Kind::Punched, false) => PUNCH,
        (Kind::Relayed, false) => TRY_RELAY,
        (_, false) => TRY,
        (Kind::Punched, true) => Duration::from_secs(12),
        (_, true) => TRY_SLOWLY,
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::{Event, OtherSlot, SlotPath};
    use super::*;

    fn candidate(kind: Kind, to: &str) -> Candidate {
        Candidate { kind, to: to.parse().unwrap() }
    }

    /// Takes a step; returns the endpoint that is tried from then on.
    fn tried(
        path: &mut SlotPath,
        millis: u64,
        view: &View,
        candidates: &[Candidate],
    ) -> (Option<SocketAddr>, Option<Event>) {
        let context = Context {
            candidates,
            carries: false,
            limited: false,
            trial_after: Duration::ZERO,
            at_relay: false,
            other: OtherSlot::Rests,
            nonce: millis,
        };
        let (_, event) = path.step(Duration::from_millis(millis), Some(view), context);
        (path.endpoint().0, event)
    }

    #[test]
    fn after_a_start_the_path_that_worked_last_is_tried_first_and_for_a_moment() {
        let named =
            [candidate(Kind::Global, "192.0.2.1:51840"), candidate(Kind::External, "192.0.2.2:51840")];
        let last = candidate(Kind::Punched, "198.51.100.1:4000");
        let mut path = SlotPath::remembered(Duration::ZERO, last);
        for (millis, expected) in [(0, last), (900, last), (1_000, named[0]), (2_000, named[1])] {
            let (at, _) = tried(&mut path, millis, &View::default(), &named);
            assert_eq!(at, Some(expected.to), "after {millis} ms");
        }
        // The round after that is without it.
        assert_eq!(tried(&mut path, 3_000, &View::default(), &named).1, Some(Event::Unreachable));
        assert_eq!(tried(&mut path, 4_000, &View::default(), &named).0, Some(named[0].to));
        assert_eq!(path.worked(), Some(last), "until another one works");
        let answered =
            View { endpoint: Some(named[0].to), handshake: Some(Duration::ZERO), ..View::default() };
        assert_eq!(tried(&mut path, 4_100, &answered, &named).1, Some(Event::Found(Kind::Global)));
        assert_eq!(path.worked(), Some(named[0]));
    }

    #[test]
    fn an_old_session_shows_no_path_when_a_relay_is_offered_meanwhile() {
        let private = candidate(Kind::Private, "10.0.0.5:51840");
        let relay = candidate(Kind::Relayed, "203.0.113.7:24000");
        let mut path = SlotPath::new(Duration::from_secs(200));
        let age = Some(Duration::from_secs(100));
        tried(&mut path, 200_000, &View::default(), &[private]);
        let view = View { endpoint: Some(private.to), handshake: age, ..View::default() };
        assert_eq!(tried(&mut path, 200_200, &view, &[private]), (Some(private.to), None));
        path.relay_offered(Duration::from_millis(200_300), true);
        assert_eq!(tried(&mut path, 200_300, &view, &[relay, private]), (Some(relay.to), None));
    }

    #[test]
    fn a_remembered_relay_is_one_also_before_it_is_leased_again() {
        let last = candidate(Kind::Relayed, "203.0.113.7:24000");
        let mut path = SlotPath::remembered(Duration::ZERO, last);
        tried(&mut path, 0, &View::default(), &[]);
        let answered = View { endpoint: Some(last.to), handshake: Some(Duration::ZERO), ..View::default() };
        assert_eq!(tried(&mut path, 100, &answered, &[]).1, Some(Event::Found(Kind::Relayed)));
    }

    #[test]
    fn what_an_operator_prescribes_comes_before_what_worked_last() {
        let prescribed =
            [candidate(Kind::Named, "192.0.2.1:51840"), candidate(Kind::Named, "192.0.2.2:51840")];
        let elsewhere = candidate(Kind::External, "198.51.100.1:51840");
        let mut path = SlotPath::remembered(Duration::ZERO, elsewhere);
        assert_eq!(tried(&mut path, 0, &View::default(), &prescribed).0, Some(prescribed[0].to));
        let mut path = SlotPath::remembered(Duration::ZERO, prescribed[1]);
        assert_eq!(tried(&mut path, 0, &View::default(), &prescribed).0, Some(prescribed[1].to));
    }

    #[test]
    fn what_a_name_stood_for_is_kept_while_it_works_and_a_name_replaces_other_endpoints() {
        let [former, now] = ["192.0.2.1:51840", "192.0.2.2:51840"].map(|to| candidate(Kind::Named, to));
        let at = |to: Candidate, bytes| {
            let (endpoint, handshake) = (Some(to.to), Some(Duration::ZERO));
            View { endpoint, handshake, received: bytes, sent: bytes, drifts: 0 }
        };
        let mut path = SlotPath::new(Duration::ZERO);
        tried(&mut path, 0, &View::default(), &[former]);
        // The peer is not followed, so a handshake alone shows nothing.
        path.echo(0);
        assert_eq!(tried(&mut path, 100, &at(former, 1), &[former]).1, Some(Event::Found(Kind::Named)));
        path.retry(Duration::from_secs(1), &[now]);
        for second in 1..20 {
            // It answers the probe.
            path.echo(1_000);
            let (endpoint, event) = tried(&mut path, second * 1_000, &at(former, second), &[now]);
            assert_eq!((endpoint, event), (Some(former.to), None), "after {second} s");
        }
        // An address that the operator does not prescribe gives way at once.
        let mut path = SlotPath::new(Duration::ZERO);
        let other = candidate(Kind::External, "198.51.100.1:51840");
        tried(&mut path, 0, &View::default(), &[other]);
        tried(&mut path, 100, &at(other, 1), &[other]);
        assert_eq!(tried(&mut path, 200, &at(other, 1), &[now]).0, Some(now.to));
    }
}
