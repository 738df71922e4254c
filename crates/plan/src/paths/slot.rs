//! The path to one slot of a peer: found by trying one endpoint after the other, kept while the peer answers over it.
//!
//! Only an authenticated answer shows that a path works: a handshake that was completed, or the echo of a probe. What is
//! counted as sent and received only says when to ask for one.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidate::{Candidate, Kind};
use super::search::{AGAIN, Search, lasting};
use super::watch::{Unanswered, Up};

/// First and longest time between two trials of a direct path while a relay is used.
const TRIAL: (Duration, Duration) = (Duration::from_mins(1), Duration::from_mins(15));
/// How long an invitation is good: the peer tries a mapped address for 4 s, and the slot may have to be left first.
const INVITATION: Duration = Duration::from_secs(3);
/// What is due so long after a step is due in the next one.
const NEXT_STEP: Duration = Duration::from_millis(1);
/// How long after an invitation the peer says, for each endpoint, that it tries it.
const ANSWERED: Duration = Duration::from_secs(10);

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
    /// Ask the relay whether the lease still stands: nothing has come over it for a while.
    AskRelay,
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

/// Whether a direct path is tried on a pair's other slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherSlot {
    /// It is not.
    Rests,
    /// By either end.
    Tried,
    /// By the peer, which goes first: this node leaves off.
    TriedFirst,
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
    /// Whether the other slot is tried: one slot at a time.
    pub other: OtherSlot,
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
    /// When the peer began last to try an endpoint on this slot while a relay is used, or was invited to.
    tried_by_peer: Option<Duration>,
    /// When the peer was invited last.
    inviting: Option<Duration>,
    /// Whether a neighbour has said that the peer looks for us.
    met: bool,
    /// The path that worked last.
    worked: Option<Candidate>,
    /// Whether the device has no such peer: nothing is due then.
    absent: bool,
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are two for each peer, and each was a search once")]
enum State {
    Searching(Search),
    Up(Up),
}

impl SlotPath {
    /// Nothing is known yet.
    pub const fn new(now: Duration) -> Self {
        Self {
            state: State::Searching(Search { fresh: true, ..Search::new(now) }),
            probe: None,
            echoed: None,
            trial: None,
            invited: None,
            tried_by_peer: None,
            inviting: None,
            met: false,
            worked: None,
            absent: false,
        }
    }

    /// Nothing is known yet but what worked before this daemon started.
    pub fn remembered(now: Duration, last: Candidate) -> Self {
        let mut path = Self::new(now);
        if let State::Searching(search) = &mut path.state {
            search.last = Some(last);
        }
        path.worked = Some(last);
        path
    }

    /// The path that worked last.
    pub const fn worked(&self) -> Option<Candidate> {
        self.worked
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
    /// Returns whether the next step may change something.
    pub fn echo(&mut self, nonce: u64) -> bool {
        let Some((_, sent)) = self.probe.take_if(|(last, _)| *last == nonce) else { return false };
        self.echoed = Some(sent);
        matches!(self.state, State::Searching(_))
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
                // Without any other endpoint there is nothing to leave it for.
                if up.is_gone(candidates) && !candidates.is_empty() {
                    up.is_said_to_be_gone(now);
                }
            }
        }
    }

    /// Another port of a relay leads to the peer: that is not waited for. Where relays come first, nor is the end of what is
    /// being tried.
    pub fn relay_offered(&mut self, now: Duration, first: bool) {
        if let State::Searching(search) = &mut self.state
            && search.fallback.is_none()
        {
            search.relay_offered(now, first);
        }
    }

    /// The peer or this node is elsewhere: what works may not work any more.
    pub const fn suspect(&mut self, now: Duration) {
        if let State::Up(up) = &mut self.state {
            up.unanswered = Some(Unanswered::since(now, now));
        }
    }

    /// The peer does not answer over its other slot, whose path may have ended in the same way: this one is probed at once, or a
    /// path that carries nothing would only be missed once packets have been moved there.
    pub const fn suspect_too(&mut self, now: Duration) {
        if let State::Up(Up { unanswered: unanswered @ None, .. }) = &mut self.state {
            // Not in the step that goes on, in which this slot may have had its turn.
            let probe = now.saturating_add(NEXT_STEP);
            *unanswered = Some(Unanswered { along: true, ..Unanswered::since(now, probe) });
        }
    }

    /// Whether the first probe of a path that may be broken has been sent, and nothing has been heard since. Not if it is probed
    /// because of the other slot: that has been probed, and where answers come at once it would be probed again for nothing.
    pub const fn is_doubted(&self) -> bool {
        matches!(
            &self.state,
            State::Up(Up { unanswered: Some(Unanswered { probes: 1, along: false, .. }), .. })
        )
    }

    /// The peer sends to our mapped address now. Returns whether that is news: not if it was invited itself, and only says
    /// that it still tries.
    pub fn invite(&mut self, now: Duration) -> bool {
        self.tried_by_peer = Some(now);
        if self.inviting.is_some_and(|since| now < since + ANSWERED) {
            return false;
        }
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

    /// Whether the peer tries a direct path on this slot, as far as it has said. It says so for each endpoint that it tries.
    pub fn is_tried_by_peer(&self, now: Duration, limited: bool) -> bool {
        self.tried_by_peer.is_some_and(|since| now < since + lasting(Kind::Punched, limited) + AGAIN)
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
        if let State::Up(Up { kind, to, .. }) = self.state {
            self.worked = Some(Candidate { kind, to });
        }
        if actions.iter().any(|action| matches!(action, Action::Probe(_))) {
            self.probe = Some((context.nonce, now));
        }
        if actions.contains(&Action::Invite) {
            (self.inviting, self.tried_by_peer) = (Some(now), Some(now));
        }
        (actions, event)
    }

    fn go_on(&mut self, now: Duration, view: &View, context: Context<'_>) -> (Vec<Action>, Option<Event>) {
        match &mut self.state {
            State::Searching(search) => {
                if let Some(mut up) = search.found(now, view, self.echoed, context) {
                    let better = search.fallback.is_none_or(|former| former.kind != up.kind);
                    if search.fallback.is_some() && up.kind.is_direct() {
                        up.hold(now);
                    }
                    self.state = State::Up(up);
                    return (Vec::new(), better.then_some(Event::Found(up.kind)));
                }
                if self.invited.take().is_some_and(|until| now < until) {
                    search.punch(now, context);
                }
                if std::mem::take(&mut self.met) {
                    search.punch_first(now, context);
                }
                // Packets take this slot because the other one has been lost, or the peer tries that one: nothing is tried on
                // this one any more.
                let needed =
                    (context.carries || context.other == OtherSlot::TriedFirst) && search.fallback.is_some();
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
                up.release(now);
                let moved = view.endpoint.filter(|endpoint| up.follow && *endpoint != up.to);
                if let Some(endpoint) = moved {
                    let at_relay = !up.kind.is_direct();
                    *up = Up::at(endpoint, view, None, context);
                    if at_relay && up.kind.is_direct() {
                        up.hold(now);
                    }
                }
                up.rename(context.candidates);
                let is_gone = up.is_replaced(context.candidates);
                let former = *up;
                let (actions, lost) = up.watch(now, view, self.echoed, (context.nonce, context.limited));
                if is_gone || lost {
                    let kind = former.kind;
                    let mut search = Search { former: Some((former.to, kind)), ..Search::new(now) };
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
        if (now < due && !invited) || context.carries || context.other != OtherSlot::Rests || !possible {
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
                Some(over.min(attempt.begun + attempt.again).max(*paused_until))
            }
            State::Searching(search) => Some(search.paused_until),
            State::Up(up) => {
                up.unanswered.map(|unanswered| unanswered.probe).into_iter().chain(up.held).min()
            }
        }
    }
}
