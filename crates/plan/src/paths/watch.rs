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
/// How long a peer may send from elsewhere after it has answered, until it is asked again.
const CHECK_DRIFT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub(super) struct Up {
    pub(super) kind: Kind,
    pub(super) to: SocketAddr,
    /// Whether the peer is followed to wherever it sends from.
    pub(super) follow: bool,
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
}

impl Up {
    /// The path along which a peer has answered.
    pub(super) fn at(to: SocketAddr, view: &View, context: Context<'_>) -> Self {
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
    pub(super) fn is_gone(&self, candidates: &[Candidate]) -> bool {
        let is_named = || candidates.iter().any(|one| one.to == self.to);
        !matches!(self.kind, Kind::Punched | Kind::Relayed) && !is_named()
    }

    /// Whether another path has to be taken whether this one works or not: an operator prescribes one, or another port of a
    /// relay is leased.
    pub(super) fn is_replaced(&self, candidates: &[Candidate]) -> bool {
        let elsewhere = |kind: Kind| {
            let mut of_kind = candidates.iter().filter(|one| one.kind == kind).peekable();
            of_kind.peek().is_some() && !of_kind.any(|one| one.to == self.to)
        };
        elsewhere(Kind::Prescribed) || (self.kind == Kind::Relayed && elsewhere(Kind::Relayed))
    }
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
