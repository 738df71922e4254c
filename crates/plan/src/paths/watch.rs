//! A path that works, and how it is noticed that it no longer does.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidate::{Candidate, Kind};
use super::slot::{Action, Context, View};

/// How long a peer may be sent to without an answer before it is probed.
const SUSPECT_AFTER: Duration = Duration::from_secs(2);
/// Between two probes of a path that may be broken, and how many have to be lost until it is.
const PROBE: Duration = Duration::from_secs(1);
pub(super) const PROBES: u32 = 2;
/// How long a peer may receive without sending anything, and some time for it to arrive (`KEEPALIVE_TIMEOUT` of the
/// WireGuard paper, section 6.1, is 10 s).
const PASSIVE: Duration = Duration::from_secs(12);
/// How long a path that replaced a relay's is kept although packets still come over the relay: longer than they are on their
/// way, and no longer than it takes to notice that the path is broken.
const HOLD: Duration = Duration::from_secs(3);
/// How long a peer may send from elsewhere after it has answered, until it is asked again.
const CHECK_DRIFT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub(super) struct Up {
    pub(super) kind: Kind,
    pub(super) to: SocketAddr,
    /// Whether the peer is followed to wherever it sends from.
    pub(super) follow: bool,
    /// Until when it is not although its kind of path is: it has just left a relay.
    pub(super) held: Option<Duration>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) drifts: u64,
    /// When the peer answered although it sends from elsewhere.
    pub(super) checked: Option<Duration>,
    /// What has not been answered.
    pub(super) unanswered: Option<Unanswered>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Unanswered {
    pub(super) since: Duration,
    /// When the next probe is due.
    pub(super) probe: Duration,
    /// How many probes have been sent.
    pub(super) probes: u32,
    /// Whether the peer is no longer said to be there.
    pub(super) gone: bool,
    /// Whether it has sent from elsewhere since then: a handshake may be one that it began there.
    pub(super) drifted: bool,
    /// Whether this path is only probed because the peer did not answer over its other slot.
    pub(super) along: bool,
}

impl Unanswered {
    /// A path that may be broken since now, and when it is probed first.
    pub(super) const fn since(now: Duration, probe: Duration) -> Self {
        Self { since: now, probe, probes: 0, gone: false, drifted: false, along: false }
    }
}

impl Up {
    /// The path along which a peer has answered; `tried` is what was tried then, if anything.
    pub(super) fn at(to: SocketAddr, view: &View, tried: Option<Candidate>, context: Context<'_>) -> Self {
        let known = context.candidates.iter().find(|candidate| candidate.to == to);
        // After a restart a relay's port is known before it is leased again.
        let relay = Candidate { kind: Kind::Relayed, to };
        let unknown = if context.at_relay || tried == Some(relay) { Kind::Relayed } else { Kind::Punched };
        let kind = known.map_or(unknown, |candidate| candidate.kind);
        // What comes around a relay has found a better path.
        let prescribed = context.candidates.first().is_some_and(|one| one.kind.is_prescribed());
        let follow = follows(kind) && !prescribed;
        let View { received, sent, drifts, .. } = *view;
        Self { kind, to, follow, held: None, received, sent, drifts, checked: None, unanswered: None }
    }

    /// A relay was left for this path. The peer may still send over the relay what it follows back there, while it is followed
    /// to here: two ends that both take the endpoint of the last packet could change places with each one in flight.
    pub(super) fn hold(&mut self, now: Duration) {
        if std::mem::take(&mut self.follow) {
            self.held = Some(now + HOLD);
        }
    }

    /// Follows the peer again once that is over.
    pub(super) fn release(&mut self, now: Duration) {
        if self.held.is_some_and(|until| now >= until) {
            (self.follow, self.held) = (follows(self.kind), None);
        }
    }

    /// An endpoint that was found before anybody named it may be one of those that are named now.
    pub(super) fn rename(&mut self, candidates: &[Candidate]) {
        if let Some(named) = candidates.iter().find(|one| one.to == self.to) {
            self.kind = named.kind;
            self.follow &= follows(named.kind);
        }
    }

    /// Whether the peer is no longer said to be there.
    pub(super) fn is_gone(&self, candidates: &[Candidate]) -> bool {
        let is_named = || candidates.iter().any(|one| one.to == self.to);
        !matches!(self.kind, Kind::Punched | Kind::Relayed) && !is_named()
    }

    /// The peer is no longer said to be there. It may be nevertheless: one probe tells, which may be on its way.
    pub(super) fn is_said_to_be_gone(&mut self, now: Duration) {
        match &mut self.unanswered {
            Some(found) if found.probes > 0 => (found.gone, found.probes) = (true, found.probes.max(PROBES)),
            _ => {
                let found = Unanswered::since(now, now);
                self.unanswered = Some(Unanswered { probes: PROBES - 1, gone: true, ..found });
            }
        }
    }

    /// Whether another path has to be taken whether this one works or not: an operator prescribes one, or another port of a
    /// relay is leased. A name is no reason to leave what it once stood for: its DNS server may err.
    pub(super) fn is_replaced(&self, candidates: &[Candidate]) -> bool {
        let elsewhere = |kind: Kind| {
            let mut of_kind = candidates.iter().filter(|one| one.kind == kind).peekable();
            of_kind.peek().is_some() && !of_kind.any(|one| one.to == self.to)
        };
        let named = self.kind != Kind::Named && elsewhere(Kind::Named);
        named || elsewhere(Kind::Prescribed) || (self.kind == Kind::Relayed && elsewhere(Kind::Relayed))
    }
}

/// Whether a peer is followed to wherever it sends from: where only its packets tell where it is.
const fn follows(kind: Kind) -> bool {
    matches!(kind, Kind::Punched | Kind::Relayed)
}

impl Up {
    /// Watches a path; the second value says that it is lost.
    pub(super) fn watch(
        &mut self,
        now: Duration,
        view: &View,
        echoed: Option<Duration>,
        (nonce, limited): (u64, bool),
    ) -> (Vec<Action>, bool) {
        let echoed = self.unanswered.is_some_and(|unanswered| echoed >= Some(unanswered.since));
        // A peer that was removed and added counts from zero.
        let restarted = view.received < self.received || view.sent < self.sent;
        // What comes from elsewhere says nothing about this path. The peer may have moved.
        let drifting = view.drifts > self.drifts;
        let handshake = view.handshake.map(|age| now.saturating_sub(age));
        if let Some(unanswered) = &mut self.unanswered {
            unanswered.drifted |= drifting;
        }
        let shaken = self
            .unanswered
            .is_some_and(|unanswered| !unanswered.drifted && handshake >= Some(unanswered.since));
        // What came before a path was said to be gone shows nothing. After it, a device of our own answers at once if it
        // is there; initiations count as received bytes, too, and may come from where the peer is now.
        let gone = self.unanswered.filter(|unanswered| unanswered.gone);
        let counts = gone.is_none_or(|gone| limited && gone.probes >= PROBES && !gone.drifted);
        let heard = (view.received > self.received && !drifting && counts) || shaken;
        (self.received, self.drifts) = (view.received, view.drifts);
        if heard || restarted || echoed {
            (self.sent, self.unanswered) = (view.sent, None);
            self.checked = if echoed { Some(now) } else { self.checked };
            return (Vec::new(), false);
        }
        let is_checked = self.checked.is_some_and(|checked| now < checked + CHECK_DRIFT);
        if drifting && !is_checked && self.unanswered.is_none() {
            self.unanswered = Some(Unanswered::since(now, now));
        }
        if view.sent > self.sent && self.unanswered.is_none() {
            self.unanswered = Some(Unanswered::since(now, now + SUSPECT_AFTER));
        }
        self.sent = view.sent;
        match &mut self.unanswered {
            Some(unanswered) if now >= unanswered.probe => {
                // A daemon that is down answers no probe, but its kernel's WireGuard goes on: it answers a handshake, which
                // the engine can begin at any time, and what it receives, after 10 s.
                let silent = !limited || unanswered.gone || now >= unanswered.since + PASSIVE;
                if unanswered.probes >= PROBES && silent {
                    return (Vec::new(), true);
                }
                let first = unanswered.probes == 0;
                unanswered.probes = unanswered.probes.saturating_add(1);
                unanswered.probe = now + PROBE;
                let mut actions = vec![Action::Probe(nonce)];
                if first && self.kind == Kind::Relayed {
                    actions.push(Action::AskRelay);
                }
                if !limited {
                    actions.push(Action::Initiate);
                }
                (actions, false)
            }
            _ => (Vec::new(), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::{Event, OtherSlot, SlotPath};
    use super::*;

    const FORMER: &str = "198.51.100.1:51840";

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn external(to: &str) -> Candidate {
        Candidate { kind: Kind::External, to: to.parse().unwrap() }
    }

    fn view(now: Duration, received: u64, sent: u64) -> View {
        let endpoint = Some(FORMER.parse().unwrap());
        View { endpoint, handshake: Some(now), received, sent, drifts: 0 }
    }

    fn step(path: &mut SlotPath, now: Duration, view: &View, candidates: &[Candidate]) -> Option<Event> {
        act(path, now, view, candidates).1
    }

    fn act(
        path: &mut SlotPath,
        now: Duration,
        view: &View,
        candidates: &[Candidate],
    ) -> (Vec<Action>, Option<Event>) {
        let context = Context {
            candidates,
            carries: true,
            limited: false,
            trial_after: Duration::ZERO,
            at_relay: false,
            other: OtherSlot::Rests,
            nonce: u64::try_from(now.as_millis()).unwrap(),
        };
        path.step(now, Some(view), context)
    }

    /// A path with packets on it; 50 ms after the last ones its endpoint is no longer named.
    fn unnamed(others: &[Candidate]) -> SlotPath {
        let mut path = SlotPath::new(at(0));
        assert_eq!(
            step(&mut path, at(100), &view(at(100), 100, 100), &[external(FORMER)]),
            Some(Event::Found(Kind::External))
        );
        step(&mut path, at(1_000), &view(at(1_000), 1_000, 1_000), &[external(FORMER)]);
        path.retry(at(2_000), others);
        path
    }

    #[test]
    fn a_path_that_is_no_longer_named_is_left_at_the_first_missing_answer() {
        let others = [external("198.51.100.2:51840")];
        let mut path = unnamed(&others);
        // What had arrived since the step before.
        assert_eq!(step(&mut path, at(2_000), &view(at(1_000), 1_900, 1_900), &others), None);
        assert_eq!(path.due(), Some(at(3_000)));
        // Initiations from elsewhere count as bytes.
        let lost = step(&mut path, at(3_000), &view(at(2_000), 2_048, 2_100), &others);
        assert_eq!(lost, Some(Event::Lost(Kind::External)));
        assert_eq!(path.endpoint().0, Some(others[0].to));
    }

    #[test]
    fn a_path_that_is_no_longer_named_is_kept_if_it_answers_or_there_is_no_other() {
        let others = [external("198.51.100.2:51840")];
        let mut path = unnamed(&others);
        step(&mut path, at(2_000), &view(at(1_000), 1_900, 1_900), &others);
        path.echo(2_000);
        for second in 3..20 {
            let bytes = second * 1_000;
            assert_eq!(step(&mut path, at(bytes), &view(at(bytes), bytes, bytes), &others), None);
        }
        let mut alone = unnamed(&[]);
        assert_eq!(step(&mut alone, at(2_000), &view(at(1_000), 1_900, 1_900), &[]), None);
        assert_eq!(step(&mut alone, at(3_000), &view(at(1_000), 2_800, 2_800), &[]), None);
        assert_eq!(alone.up(), Some(Kind::External));
    }

    #[test]
    fn a_path_has_the_name_of_its_endpoint_once_that_is_named() {
        let mut path = SlotPath::new(at(0));
        assert_eq!(
            step(&mut path, at(100), &view(at(100), 100, 100), &[]),
            Some(Event::Found(Kind::Punched))
        );
        assert_eq!(path.endpoint(), (Some(FORMER.parse().unwrap()), true));
        let named = [external("198.51.100.2:51840"), Candidate { kind: Kind::Named, ..external(FORMER) }];
        assert_eq!(step(&mut path, at(200), &view(at(200), 200, 200), &named), None);
        assert_eq!(path.up(), Some(Kind::Named));
        assert_eq!(path.endpoint(), (Some(FORMER.parse().unwrap()), false));
    }

    #[test]
    fn packets_on_their_way_over_the_relay_do_not_lead_back_to_it() {
        let [relay, direct] = ["203.0.113.7:24000", "198.51.100.2:4000"].map(|to| to.parse().unwrap());
        let named = [Candidate { kind: Kind::Relayed, to: relay }];
        let from = |endpoint, millis| {
            let received = millis;
            View { endpoint: Some(endpoint), handshake: Some(Duration::ZERO), received, sent: 0, drifts: 0 }
        };
        let mut path = SlotPath::new(at(0));
        assert_eq!(step(&mut path, at(100), &from(relay, 100), &named), Some(Event::Found(Kind::Relayed)));
        assert_eq!(path.endpoint(), (Some(relay), true));
        // The peer has found the way around the relay, and some of what it sent before is late.
        step(&mut path, at(200), &from(direct, 200), &named);
        assert_eq!((path.up(), path.endpoint()), (Some(Kind::Punched), (Some(direct), false)));
        assert_eq!(path.due(), Some(at(3_200)), "the peer is followed again without another cause");
        step(&mut path, at(300), &from(relay, 300), &named);
        step(&mut path, at(3_199), &from(relay, 3_199), &named);
        assert_eq!((path.up(), path.endpoint()), (Some(Kind::Punched), (Some(direct), false)));
        step(&mut path, at(3_200), &from(direct, 3_200), &named);
        assert_eq!(path.endpoint(), (Some(direct), true));
        assert_eq!(path.due(), None);
        // Back to the relay it is followed at once.
        step(&mut path, at(3_300), &from(relay, 3_300), &named);
        assert_eq!((path.up(), path.endpoint()), (Some(Kind::Relayed), (Some(relay), true)));
    }

    #[test]
    fn a_silent_relay_is_asked_at_the_first_probe_and_another_one_is_tried_before_direct_endpoints() {
        let relay = |to: &str| Candidate { kind: Kind::Relayed, to: to.parse().unwrap() };
        let candidates = [external("198.51.100.2:51840"), relay(FORMER)];
        let mut path = SlotPath::new(at(0));
        step(&mut path, at(100), &view(at(100), 100, 100), &candidates);
        assert_eq!(path.up(), Some(Kind::Relayed));
        step(&mut path, at(1_000), &view(at(900), 100, 200), &candidates);
        let (actions, _) = act(&mut path, at(3_000), &view(at(2_900), 100, 300), &candidates);
        assert!(actions.contains(&Action::AskRelay), "{actions:?}");
        // Its lease has ended before the path is lost, and there is another one.
        let candidates = [candidates[0], relay("198.51.100.9:24000")];
        let lost = step(&mut path, at(4_000), &view(at(3_900), 100, 400), &candidates);
        assert_eq!(lost, Some(Event::Lost(Kind::Relayed)));
        assert_eq!(path.endpoint().0, Some(candidates[1].to));
    }
}
