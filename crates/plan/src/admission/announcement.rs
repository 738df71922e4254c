//! A Node's state annotation: read and its proofs verified once for each change, not once for each turn.

use std::time::Duration;

use super::ledger::Ledger;
use super::reason::Reason;
use crate::annotation::State;
use crate::node::NodeRecord;

/// How long an annotation whose generation does not follow the last accepted one must stand unchanged to be accepted
/// nevertheless. A living daemon overwrites what is not its own within moments; one that is gone leaves nobody stuck.
pub const SETTLE: Duration = Duration::from_secs(12);

/// A Node's state annotation as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    text: Option<String>,
    state: Result<State, Reason>,
    /// Since when it stands.
    since: Duration,
    settled: bool,
}

impl Announcement {
    /// Reads an annotation that was first seen at `now`. What the ledger has under the same text was verified then.
    pub(crate) fn read(record: &NodeRecord, ledger: &Ledger, now: Duration) -> Self {
        let known = ledger.entry(&record.uid).filter(|entry| entry.record().state == record.state);
        let state = known.and_then(|entry| entry.state()).cloned().map_or_else(|| verified(record), Ok);
        Self { text: record.state.clone(), state, since: now, settled: false }
    }

    /// Whether it is the annotation on this Node.
    pub(crate) fn is_of(&self, record: &NodeRecord) -> bool {
        self.text == record.state
    }

    /// Whether it has stood for long enough to be accepted in spite of its generation.
    pub(crate) const fn is_settled(&self) -> bool {
        self.settled
    }

    /// When it will have stood for long enough, if it has not yet.
    pub(crate) fn settles_at(&self) -> Option<Duration> {
        (!self.settled).then(|| self.since + SETTLE)
    }

    /// Lets time pass. While the API server is away the annotation may have changed without notice: that time does not
    /// count.
    pub(crate) fn settle(&mut self, now: Duration, connected: bool) {
        if !connected {
            self.since = now;
        }
        self.settled |= now.saturating_sub(self.since) >= SETTLE;
    }

    /// The state, with proofs that are valid or with none.
    pub(super) const fn state(&self) -> Result<&State, &Reason> {
        self.state.as_ref()
    }

    /// Whether the node proves its keys.
    pub(super) fn is_proven(&self) -> bool {
        self.state.as_ref().is_ok_and(|state| state.proofs.is_some())
    }
}

fn verified(record: &NodeRecord) -> Result<State, Reason> {
    let state = State::parse(record.state.as_deref().unwrap_or_default()).map_err(Reason::State)?;
    if state.uid != record.uid {
        return Err(Reason::ForeignUid);
    }
    match state.invalid_proof() {
        Some(slot) => Err(Reason::ProofInvalid { slot }),
        None => Ok(state),
    }
}
