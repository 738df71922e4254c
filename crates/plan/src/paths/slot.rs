//! The path to one slot of a peer: found by trying one endpoint after the other, kept while the peer answers over it.
//!
//! Only an authenticated answer shows that a path works: a handshake that was completed, or the echo of a probe. What is
//! counted as sent and received only says when to ask for one.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidate::{Candidate, Kind};

/// How long one endpoint is tried. The kernel sends one initiation every 5 s to a peer (`REKEY_TIMEOUT` in
/// `drivers/net/wireguard/messages.h`), however often it is asked.
const TRY: Duration = Duration::from_secs(1);
const TRY_SLOWLY: Duration = Duration::from_millis(5_500);
/// How long a mapped address is tried: the other end has to try ours at the same time.
const PUNCH: Duration = Duration::from_secs(4);
/// How long a relay is tried.
const TRY_RELAY: Duration = Duration::from_secs(2);
/// Between two handshakes that are begun with the same endpoint.
const AGAIN: Duration = Duration::from_secs(1);
/// First and longest pause after all endpoints have failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// Rounds without success after which the pauses are the longest.
const LONG: (u32, Duration) = (40, Duration::from_mins(1));
/// How long a peer may be sent to without an answer before it is probed.
const SUSPECT_AFTER: Duration = Duration::from_secs(2);
/// Between two probes of a path that may be broken, and how many have to be lost until it is.
const PROBE: Duration = Duration::from_secs(1);
const PROBES: u32 = 2;
/// How long a peer may receive without sending anything, and some time for it to arrive (`KEEPALIVE_TIMEOUT` of the
/// WireGuard paper, section 6.1, is 10 s).
const PASSIVE: Duration = Duration::from_secs(12);
/// How long a peer may send from elsewhere after it has answered, until it is asked again.
const CHECK_DRIFT: Duration = Duration::from_secs(30);
/// First and longest time between two trials of a direct path while a relay is used.
const TRIAL: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(15));
/// How long an invitation is good: the peer tries a mapped address for [`PUNCH`], and the slot may have to be left first.
const INVITATION: Duration = Duration::from_secs(3);
/// A session is not used for longer (`REJECT_AFTER_TIME` of the WireGuard paper, section 6.1).
const SESSION: Duration = Duration::from_mins(3);

/// What a device says of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Where datagrams go now.
    pub endpoint: Option<SocketAddr>,
    /// How long ago the last handshake was completed.
    pub handshake: Option<Duration>,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// How often it has sent from another address than the endpoint, while it is not followed.
    pub drifts: u64,
}

/// What to do about a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send to this endpoint from now on, and begin a handshake.
    Aim {
        /// The endpoint.
        to: SocketAddr,
        /// Whether the peer is followed to wherever it sends from.
        follow: bool,
    },
    /// Begin a handshake with the present endpoint.
    Initiate,
    /// Ask the peer for an echo of this number over this slot.
    Probe(u64),
    /// Say that nothing passes over the relay that is leased.
    Doubt,
    /// Ask the peer, over the other slot, to leave this one to a direct path, and to send to our mapped address now.
    Invite,
}

/// What is tried, and what has happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A path was found.
    Found(Kind),
    /// The peer no longer answers over the path.
    Lost(Kind),
    /// All endpoints were tried in vain; only the first such round in a row is reported.
    Unreachable,
}

/// What else a step depends on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The endpoints to try, the best first.
    pub candidates: &'a [Candidate],
    /// Whether this node sends pods' packets on the slot: then nothing is tried on it by choice.
    pub carries: bool,
    /// Whether the device begins a handshake only every 5 s.
    pub limited: bool,
    /// How long to wait before a direct path is tried. The two ends don't try at the same time: what one of them tries has
    /// to be answered along the path that it comes by.
    pub trial_after: Duration,
    /// Whether the device's present endpoint is a relay's.
    pub at_relay: bool,
    /// Number of the probe that this step may send.
    pub nonce: u64,
}

/// The path to one slot of a peer.
#[derive(Clone, Debug)]
pub struct SlotPath {
    state: State,
    /// The last probe, and when it was sent.
    probe: Option<(u64, Duration)>,
    /// When the last probe was sent that the peer has echoed.
    echoed: Option<Duration>,
    /// When the next trial is due, and the pause after it.
    trial: Option<(Duration, Duration)>,
    /// Until when an invitation to send to the peer's mapped address is good.
    invited: Option<Duration>,
    /// Whether a neighbour has said that the peer looks for us.
    met: bool,
    /// Whether the device has no such peer: nothing is due then.
    absent: bool,
}

#[derive(Clone, Debug)]
enum State {
    Searching(Search),
    Up(Up),
}

#[derive(Clone, Debug)]
struct Search {
    started: Duration,
    /// The candidate that is tried, since when, and when a handshake was begun last.
    at: Option<Attempt>,
    /// Number of the candidate to try next.
    next: usize,
    rounds: u32,
    paused_until: Duration,
    /// The path that was given up; tried last.
    former: Option<SocketAddr>,
    /// The path to go back to if no better one is found.
    fallback: Option<Up>,
    /// Whether the peer has asked for what is tried next, so that it need not be asked.
    invited: bool,
}

#[derive(Clone, Copy, Debug)]
struct Attempt {
    candidate: Candidate,
    since: Duration,
    begun: Duration,
    /// How long it is tried.
    lasts: Duration,
    /// Whether it was said that the relay forwards nothing.
    doubted: bool,
}

impl Attempt {
    const fn new(now: Duration, candidate: Candidate, limited: bool) -> Self {
        Self { candidate, since: now, begun: now, lasts: lasting(candidate.kind, limited), doubted: false }
    }
}

#[derive(Clone, Copy, Debug)]
struct Up {
    kind: Kind,
    to: SocketAddr,
    /// Whether the peer is followed to wherever it sends from.
    follow: bool,
    received: u64,
    sent: u64,
    drifts: u64,
    /// When the peer answered although it sends from elsewhere.
    checked: Option<Duration>,
    /// What has not been answered.
    unanswered: Option<Unanswered>,
}

#[derive(Clone, Copy, Debug)]
struct Unanswered {
    since: Duration,
    /// When the next probe is due.
    probe: Duration,
    /// How many probes have been sent.
    probes: u32,
    /// Whether the peer is no longer said to be there.
    gone: bool,
    /// Whether it has sent from elsewhere since then: a handshake may be one that it began there.
    drifted: bool,
}

impl Up {
    /// The path along which a peer has answered.
    fn at(to: SocketAddr, view: &View, context: Context<'_>) -> Self {
        let known = context.candidates.iter().find(|candidate| candidate.to == to);
        // After a restart a relay's port is known before it is leased again.
        let unknown = if context.at_relay { Kind::Relayed } else { Kind::Punched };
        let kind = known.map_or(unknown, |candidate| candidate.kind);
        // What comes around a relay has found a better path.
        let prescribed = context.candidates.first().is_some_and(|one| one.kind == Kind::Prescribed);
        let follow = matches!(kind, Kind::Punched | Kind::Relayed) && !prescribed;
        let View { received, sent, drifts, .. } = *view;
        Self { kind, to, follow, received, sent, drifts, checked: None, unanswered: None }
    }

    /// Whether the peer is no longer said to be there.
    fn is_gone(&self, candidates: &[Candidate]) -> bool {
        let is_named = || candidates.iter().any(|one| one.to == self.to);
        !matches!(self.kind, Kind::Punched | Kind::Relayed) && !is_named()
    }

    /// Whether another path has to be taken whether this one works or not: an operator prescribes one, or another port of a
    /// relay is leased.
    fn is_replaced(&self, candidates: &[Candidate]) -> bool {
        let elsewhere = |kind: Kind| {
            let mut of_kind = candidates.iter().filter(|one| one.kind == kind).peekable();
            of_kind.peek().is_some() && !of_kind.any(|one| one.to == self.to)
        };
        elsewhere(Kind::Prescribed) || (self.kind == Kind::Relayed && elsewhere(Kind::Relayed))
    }
}

impl SlotPath {
    /// Nothing is known yet.
    pub const fn new(now: Duration) -> Self {
        Self {
            state: State::Searching(Search::new(now)),
            probe: None,
            echoed: None,
            trial: None,
            invited: None,
            met: false,
            absent: false,
        }
    }

    /// The endpoint that datagrams go to, and whether the peer is followed.
    pub fn endpoint(&self) -> (Option<SocketAddr>, bool) {
        match &self.state {
            State::Searching(search) => (search.at.map(|attempt| attempt.candidate.to), search.follows()),
            State::Up(up) => (Some(up.to), up.follow),
        }
    }

    /// What kind of path there is; none while it is searched for.
    pub const fn up(&self) -> Option<Kind> {
        match &self.state {
            State::Up(up) => Some(up.kind),
            State::Searching(search) => match &search.fallback {
                Some(up) => Some(up.kind),
                None => None,
            },
        }
    }

    /// Whether a better path is tried instead of the one that there is.
    pub const fn is_trying(&self) -> bool {
        matches!(&self.state, State::Searching(Search { fallback: Some(_), .. }))
    }

    /// Whether all endpoints have been tried in vain at least once.
    pub const fn has_failed(&self) -> bool {
        matches!(&self.state, State::Searching(Search { rounds: 1.., fallback: None, .. }))
    }

    /// The peer has echoed a probe over this slot; one that is not the last says nothing.
    pub fn echo(&mut self, nonce: u64) {
        if let Some((_, sent)) = self.probe.take_if(|(last, _)| *last == nonce) {
            self.echoed = Some(sent);
        }
    }

    /// The candidates are others: what failed may work now, and what works may be gone. A round that goes on is not cut
    /// short, or who changes the candidates all the time would keep it from its end.
    pub fn retry(&mut self, now: Duration, candidates: &[Candidate]) {
        match &mut self.state {
            State::Searching(search) if search.paused_until > now => {
                (search.rounds, search.next, search.paused_until) = (0, 0, now);
            }
            State::Searching(_) => {}
            State::Up(up) => {
                self.trial = None;
                // It may work nevertheless: one probe tells.
                if up.is_gone(candidates) && up.unanswered.is_none_or(|found| found.probes == 0) {
                    up.unanswered = Some(Unanswered {
                        since: now,
                        probe: now,
                        probes: PROBES - 1,
                        gone: true,
                        drifted: false,
                    });
                }
            }
        }
    }

    /// Another port of a relay leads to the peer: that is not waited for.
    pub const fn relay_offered(&mut self, now: Duration) {
        if let State::Searching(search) = &mut self.state
            && search.paused_until.as_nanos() > now.as_nanos()
        {
            search.paused_until = now;
        }
    }

    /// The peer or this node is elsewhere: what works may not work any more.
    pub const fn suspect(&mut self, now: Duration) {
        if let State::Up(up) = &mut self.state {
            up.unanswered =
                Some(Unanswered { since: now, probe: now, probes: 0, gone: false, drifted: false });
        }
    }

    /// The peer sends to our mapped address now. Returns whether that is news.
    pub fn invite(&mut self, now: Duration) -> bool {
        let news = self.invited.is_none_or(|until| now >= until);
        if news {
            self.invited = Some(now + INVITATION);
        }
        news
    }

    /// A neighbour says that the peer looks for us.
    pub fn meet(&mut self, now: Duration) {
        match &self.state {
            State::Searching(search) => self.met = search.fallback.is_none(),
            State::Up(up) if up.unanswered.is_none() => self.suspect(now),
            State::Up(_) => {}
        }
    }

    /// Whether the peer waits for us to leave the slot to a direct path.
    pub fn is_invited(&self, now: Duration) -> bool {
        let relayed = matches!(&self.state, State::Up(up) if !up.kind.is_direct());
        relayed && self.invited.is_some_and(|until| now < until)
    }

    /// Takes a step; `view` is what the device says, none if it has no such peer.
    pub fn step(
        &mut self,
        now: Duration,
        view: Option<&View>,
        context: Context<'_>,
    ) -> (Vec<Action>, Option<Event>) {
        // A peer that is removed to get another key comes back with the same path.
        self.absent = view.is_none();
        let Some(view) = view else { return (Vec::new(), None) };
        let (actions, event) = self.go_on(now, view, context);
        if actions.iter().any(|action| matches!(action, Action::Probe(_))) {
            self.probe = Some((context.nonce, now));
        }
        (actions, event)
    }

    fn go_on(&mut self, now: Duration, view: &View, context: Context<'_>) -> (Vec<Action>, Option<Event>) {
        match &mut self.state {
            State::Searching(search) => {
                if let Some(up) = search.found(now, view, self.echoed, context) {
                    let better = search.fallback.is_none_or(|former| former.kind != up.kind);
                    self.state = State::Up(up);
                    return (Vec::new(), better.then_some(Event::Found(up.kind)));
                }
                if self.invited.take().is_some_and(|until| now < until) {
                    search.punch(now, context);
                }
                if std::mem::take(&mut self.met) {
                    search.punch_first(now, context);
                }
                // Packets take this slot because the other one has been lost: nothing is tried on it any more.
                let needed = context.carries && search.fallback.is_some();
                let (actions, over) =
                    if needed { (Vec::new(), true) } else { search.go_on(now, view, context) };
                if over && let Some(up) = search.fallback {
                    let View { received, sent, drifts, .. } = *view;
                    let up = Up { received, sent, drifts, unanswered: None, ..up };
                    self.state = State::Up(up);
                    return (vec![Action::Aim { to: up.to, follow: up.follow }], None);
                }
                let first = over && search.rounds == 1;
                (actions, first.then_some(Event::Unreachable))
            }
            State::Up(up) => {
                let moved = view.endpoint.filter(|endpoint| up.follow && *endpoint != up.to);
                if let Some(endpoint) = moved {
                    *up = Up::at(endpoint, view, context);
                }
                let is_gone = up.is_replaced(context.candidates);
                let former = *up;
                let (actions, lost) = up.watch(now, view, self.echoed, (context.nonce, context.limited));
                if is_gone || lost {
                    let mut search = Search { former: Some(former.to), ..Search::new(now) };
                    let (actions, _) = search.go_on(now, view, context);
                    self.state = State::Searching(search);
                    return (actions, Some(Event::Lost(former.kind)));
                }
                if let Some(mut search) = self.trial(now, former, context) {
                    let (actions, _) = search.go_on(now, view, context);
                    self.state = State::Searching(search);
                    return (actions, None);
                }
                (actions, None)
            }
        }
    }

    /// A search for a direct path while a relay is used, if one is due and the slot is free for it.
    fn trial(&mut self, now: Duration, up: Up, context: Context<'_>) -> Option<Search> {
        if up.kind.is_direct() {
            self.trial = None;
            return None;
        }
        let (due, pause) = *self.trial.get_or_insert((now + context.trial_after, TRIAL.0));
        let possible = context.candidates.iter().any(|candidate| candidate.kind.is_direct());
        let invited = self.invited.is_some_and(|until| now < until);
        if (now < due && !invited) || context.carries || !possible {
            return None;
        }
        let mut search = Search { fallback: Some(up), ..Search::new(now) };
        if invited {
            self.invited = None;
            search.punch(now, context);
        } else {
            self.trial = Some((now + pause, (pause * 2).min(TRIAL.1)));
        }
        Some(search)
    }

    /// When the next step is due, if one is.
    pub fn due(&self) -> Option<Duration> {
        match &self.state {
            _ if self.absent => None,
            State::Searching(Search { at: Some(attempt), paused_until, .. }) => {
                let over = attempt.since + attempt.lasts;
                Some(over.min(attempt.begun + AGAIN).max(*paused_until))
            }
            State::Searching(search) => Some(search.paused_until),
            State::Up(up) => up.unanswered.map(|unanswered| unanswered.probe),
        }
    }
}

impl Search {
    const fn new(now: Duration) -> Self {
        Self {
            started: now,
            at: None,
            next: 0,
            rounds: 0,
            paused_until: Duration::ZERO,
            former: None,
            fallback: None,
            invited: false,
        }
    }

    /// The path that an authenticated answer has shown to work.
    fn found(
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
        let up = || Up::at(endpoint, view, context);
        let since = match (self.at, self.fallback) {
            // The endpoint is the one that is tried: what was answered before was answered over another one.
            (Some(attempt), _) if attempt.candidate.to == endpoint => attempt.since,
            // The peer has moved it, with something that it authenticated.
            (Some(_), None) => self.started,
            (_, Some(_)) => return None,
            // A device that was there before this daemon: its endpoint with a session is what works.
            (None, None) => return handshake.map(|_| up()),
        };
        (answered? >= since).then(up)
    }

    /// Whether the peer is followed to wherever it sends from: not while there is a path, since the peer's packets along that
    /// one would end the trial of another; and not away from what an operator prescribes.
    fn follows(&self) -> bool {
        let prescribed = self.at.is_some_and(|attempt| attempt.candidate.kind == Kind::Prescribed);
        self.fallback.is_none() && !prescribed
    }

    /// Tries the peer's mapped addresses at once: it tries ours.
    fn punch(&mut self, now: Duration, context: Context<'_>) {
        let is_punched = |one: &Candidate| one.kind == Kind::Punched;
        if !self.at.is_some_and(|attempt| is_punched(&attempt.candidate)) {
            self.punch_first(now, context);
        }
    }

    /// Tries the first of the peer's mapped addresses at once, unless it is being tried.
    fn punch_first(&mut self, now: Duration, context: Context<'_>) {
        let order = self.order(context);
        let first = order.iter().enumerate().find(|(_, one)| one.kind == Kind::Punched);
        let Some((next, candidate)) = first else { return };
        if self.at.is_none_or(|attempt| attempt.candidate != *candidate) {
            (self.next, self.at, self.paused_until, self.invited) = (next, None, now, true);
        }
    }

    /// The candidates in the order in which they are tried: the path that was given up comes last.
    fn order(&self, context: Context<'_>) -> Vec<Candidate> {
        let direct_only = self.fallback.is_some();
        let usable = context.candidates.iter().filter(|one| !direct_only || one.kind.is_direct());
        let (former, mut others): (Vec<Candidate>, Vec<Candidate>) =
            usable.copied().partition(|one| self.former == Some(one.to));
        others.extend(former);
        others
    }

    /// Goes on searching; the second value says that a round is over without success.
    fn go_on(&mut self, now: Duration, view: &View, context: Context<'_>) -> (Vec<Action>, bool) {
        if now < self.paused_until {
            return (Vec::new(), false);
        }
        if let Some(attempt) = &mut self.at {
            // Where the peer sends from is as good as anything that it names.
            let follows = self.fallback.is_none() && attempt.candidate.kind != Kind::Prescribed;
            let moved = view.endpoint.filter(|endpoint| follows && *endpoint != attempt.candidate.to);
            if let Some(moved) = moved {
                let candidate = Candidate { kind: Kind::Punched, to: moved };
                *attempt = Attempt::new(now, candidate, context.limited);
                return (vec![Action::Initiate, Action::Probe(context.nonce)], false);
            }
            if now < attempt.since + attempt.lasts {
                if now < attempt.begun + AGAIN {
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
            self.next += 1;
            self.at = Some(Attempt::new(now, candidate, context.limited));
            let aim = Action::Aim { to: candidate.to, follow: self.follows() };
            actions.extend([aim, Action::Probe(context.nonce)]);
            if (candidate.kind == Kind::Punched || self.fallback.is_some()) && !self.invited {
                actions.push(Action::Invite);
            }
            return (actions, false);
        }
        self.rounds = self.rounds.saturating_add(1);
        let doubled = PAUSE.0 * 2_u32.saturating_pow(self.rounds.min(8) - 1);
        let pause = if self.rounds > LONG.0 { LONG.1 } else { doubled.min(PAUSE.1) };
        (self.next, self.paused_until) = (0, now + pause);
        (actions, true)
    }
}

impl Up {
    /// Watches a path; the second value says that it is lost.
    fn watch(
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
        let heard = (view.received > self.received && !drifting) || shaken;
        (self.received, self.drifts) = (view.received, view.drifts);
        if heard || restarted || echoed {
            (self.sent, self.unanswered) = (view.sent, None);
            self.checked = if echoed { Some(now) } else { self.checked };
            return (Vec::new(), false);
        }
        let is_checked = self.checked.is_some_and(|checked| now < checked + CHECK_DRIFT);
        if drifting && !is_checked && self.unanswered.is_none() {
            self.unanswered =
                Some(Unanswered { since: now, probe: now, probes: 0, gone: false, drifted: false });
        }
        if view.sent > self.sent && self.unanswered.is_none() {
            self.unanswered = Some(Unanswered {
                since: now,
                probe: now + SUSPECT_AFTER,
                probes: 0,
                gone: false,
                drifted: false,
            });
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
                unanswered.probes = unanswered.probes.saturating_add(1);
                unanswered.probe = now + PROBE;
                let mut actions = vec![Action::Probe(nonce)];
                if !limited {
                    actions.push(Action::Initiate);
                }
                (actions, false)
            }
            _ => (Vec::new(), false),
        }
    }
}

const fn lasting(kind: Kind, limited: bool) -> Duration {
    match (kind, limited) {
        (Kind::Punched, false) => PUNCH,
        (Kind::Relayed, false) => TRY_RELAY,
        (_, false) => TRY,
        (Kind::Punched, true) => Duration::from_secs(12),
        (_, true) => TRY_SLOWLY,
    }
}
