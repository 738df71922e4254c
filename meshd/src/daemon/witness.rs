//! What this node records about its peers, in a trail of its own with a quota for each: however much a peer announces, the
//! node's own trail and what is recorded about other peers stay.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use keyring::audit::{Decision, Event, Head, NodeRef, Quota, TrailError};
use keyring::rotation::{PeerId, Stance};
use keyring::{Fingerprint, PerSlot};
use plan::admission::{Admission, Member};
use plan::node::NodeName;
use plan::publication::stance;
use tracing::{error, warn};

use super::audit::Recorded;
use super::changes::Changes;
use super::trail_writer::{TrailWriter, Written};
use crate::chain::Chain;

/// Lines about what a peer announces, at once: a rotation takes about seven. Then one in [`REFILL`].
const ANNOUNCEMENTS: u32 = 64;
/// Heads of a peer's trail at once: there is one after each rotation and start. Then one in [`REFILL`].
const HEADS: u32 = 16;
const REFILL: Duration = Duration::from_mins(10);
/// How many events are buffered while they can't be written.
const WAITING: usize = 4_096;

/// The witness trail, and what is still to be written.
#[derive(Debug)]
pub(super) struct Witness {
    trail: TrailWriter,
    peers: BTreeMap<PeerId, Seen>,
    /// Members whose last announcement is not in the trail yet.
    waiting: BTreeSet<NodeName>,
    refused: BTreeSet<(String, String)>,
    heads: PeerHeads,
    announcement_quota: Quota,
    head_quota: Quota,
    /// Lines that were left out because of a quota.
    omitted: u64,
}

/// The last announcement of a peer.
#[derive(Debug)]
struct Seen {
    name: NodeName,
    generation: u64,
    /// Whether it is in the trail; if not, it is recorded once the quota allows it.
    recorded: bool,
}

/// The last head of each peer that is in the trail.
#[derive(Debug, Default)]
pub(super) struct PeerHeads(BTreeMap<PeerId, (u64, String)>);

impl PeerHeads {
    /// Reads an event of a trail, in order.
    pub(super) fn read(&mut self, event: &Event) {
        if let Event::PeerHead { peer, line, head } = event {
            self.0.insert(peer.clone(), (*line, head.clone()));
        }
    }

    /// Whether a head says more than the last one of its peer. One with a lower number does not: the higher one already
    /// proves that the trail was longer. The same number with another hash does: the trail was rewritten.
    fn is_news(&self, peer: &PeerId, head: &Head) -> bool {
        let known = self.0.get(peer);
        known.is_none_or(|(line, hash)| head.seq > *line || (head.seq == *line && *hash != head.to_string()))
    }
}

impl Witness {
    /// Opens the trail. `heads` are those that are recorded elsewhere. Also returns what was found damaged.
    pub(super) fn open(directory: &Path, heads: PeerHeads) -> Result<(Self, Vec<String>), TrailError> {
        let trail = TrailWriter::open(directory, WAITING)?;
        let Recorded { heads, damaged, .. } = Recorded::read(heads, directory);
        let witness = Self {
            trail,
            peers: BTreeMap::new(),
            waiting: BTreeSet::new(),
            refused: BTreeSet::new(),
            heads,
            announcement_quota: Quota::new(ANNOUNCEMENTS, REFILL),
            head_quota: Quota::new(HEADS, REFILL),
            omitted: 0,
        };
        Ok((witness, damaged))
    }

    /// Records what peers announce: those of `changes`, if all others announce the same as at the last time. `now` is the time
    /// since any fixed moment.
    pub(super) fn record(&mut self, now: Duration, admission: &Admission, changes: Option<&Changes<'_>>) {
        let peers = &admission.world.peers;
        if let Some(changes) = changes {
            let waiting = self.waiting.iter().filter_map(|name| peers.get_key_value(name));
            let waiting: Vec<_> = waiting.collect();
            // Each is recorded once, in the order of all.
            let due: BTreeMap<_, _> = changes.members.iter().copied().chain(waiting).collect();
            for (name, member) in due {
                self.record_member(now, name, member);
            }
            self.forget(now, changes.gone.iter().cloned().collect());
        } else {
            let present: BTreeSet<&str> = peers.values().map(|member| member.uid.as_str()).collect();
            let gone = self.peers.keys().filter(|id| !present.contains(id.as_str())).cloned().collect();
            for (name, member) in peers {
                self.record_member(now, name, member);
            }
            self.forget(now, gone);
        }
        self.waiting.retain(|name| peers.contains_key(name));
        let refused: BTreeSet<(String, String)> = admission
            .rejected
            .iter()
            .map(|rejected| (rejected.node.to_string(), rejected.reason.code().to_owned()))
            .collect();
        let new: Vec<_> = refused.difference(&self.refused).cloned().collect();
        for (node, reason) in new {
            let decision = self.announcement_quota.take(&node, now);
            self.keep(decision, &node.clone(), 0, Event::PeerRefused { refused: node, reason });
        }
        self.refused = refused;
    }

    fn record_member(&mut self, now: Duration, name: &NodeName, member: &Member) {
        let keys = || member.state.slots.map(|slot| slot.key.fingerprint());
        self.record_announcement(now, name, &stance(member), keys);
    }

    /// Records that peers are gone.
    fn forget(&mut self, now: Duration, gone: BTreeSet<PeerId>) {
        for id in gone {
            if let Some(Seen { name, .. }) = self.peers.remove(&id) {
                let decision = self.announcement_quota.take(id.as_str(), now);
                let event = Event::PeerGone { peer: NodeRef { uid: id.clone(), name: name.to_string() } };
                self.keep(decision, id.as_str(), 0, event);
            }
        }
    }

    /// Records what a peer announces, unless it was recorded before or its quota does not allow it yet.
    fn record_announcement(
        &mut self,
        now: Duration,
        name: &NodeName,
        stance: &Stance,
        keys: impl FnOnce() -> PerSlot<Fingerprint>,
    ) {
        let subject = stance.id.as_str();
        let seen = self.peers.get(&stance.id).filter(|seen| seen.generation == stance.generation);
        let late = match seen {
            Some(seen) if seen.recorded => return,
            Some(_) if !self.announcement_quota.allows(subject, now) => return,
            Some(_) => 1,
            None => 0,
        };
        let event = Event::announced(name.as_str(), stance, keys());
        let decision = self.announcement_quota.take(subject, now);
        let recorded = self.keep(decision, subject, late, event);
        if recorded {
            self.waiting.remove(name);
        } else {
            self.waiting.insert(name.clone());
        }
        let seen = Seen { name: name.clone(), generation: stance.generation, recorded };
        self.peers.insert(stance.id.clone(), seen);
    }

    /// Records the head that a peer announces for its trail.
    pub(super) fn record_head(&mut self, now: Duration, peer: &PeerId, head: &Head) {
        if !self.heads.is_news(peer, head) {
            return;
        }
        let event = Event::head_of(peer.clone(), head);
        let decision = self.head_quota.take(peer.as_str(), now);
        if self.keep(decision, peer.as_str(), 0, event.clone()) {
            self.heads.read(&event);
        }
    }

    /// Does what the quota says; returns whether the event is recorded. `late` of the omitted lines are recorded now.
    fn keep(&mut self, decision: Decision, subject: &str, late: u64, event: Event) -> bool {
        match decision {
            Decision::Record { omitted } => {
                let lines = omitted.saturating_sub(late);
                if lines > 0 {
                    self.trail.push(Event::Omitted { subject: subject.to_owned(), lines });
                }
                self.trail.push(event);
                true
            }
            Decision::Omit { first } => {
                self.omitted += 1;
                if first {
                    warn!(
                        event = "AuditQuotaExceeded",
                        subject, "a node announces more than is recorded about one; the rest is counted"
                    );
                }
                false
            }
        }
    }

    /// Writes buffered events, in the name of the own Node.
    pub(super) fn write(&mut self, boot: &str, node: &NodeRef) {
        match self.trail.write(boot, node) {
            Written::All { recovered: Some(lost), .. } => {
                warn!(event = "WitnessTrailRecovered", lost, "the witness trail can be written again");
            }
            Written::Failed(Some(error)) => {
                error!(
                    event = "WitnessTrailFailed", error = %Chain(&error),
                    "the witness trail can't be written"
                );
            }
            Written::Nothing | Written::All { recovered: None, .. } | Written::Failed(None) => {}
        }
    }

    /// What is to be written.
    #[cfg(test)]
    pub(super) fn waiting_events(&self) -> String {
        format!("{:?}", self.trail.waiting)
    }

    /// Where the trail ends.
    pub(super) const fn head(&self) -> Head {
        self.trail.head()
    }

    /// Lines that were left out because of a quota, and events that could not be written.
    pub(super) const fn missing(&self) -> (u64, u64) {
        (self.omitted, self.trail.lost())
    }
}

#[cfg(test)]
mod tests {
    use keyring::audit::{Line, read, verify};
    use plan::admission::{Reason, Rejected};

    use super::*;

    fn node() -> NodeRef {
        NodeRef { uid: PeerId::new("uid-n1"), name: "n1".to_owned() }
    }

    fn lines(directory: &Path) -> Vec<Line> {
        let verdict = verify(&read(directory).unwrap());
        assert_eq!(verdict.findings, []);
        verdict.lines
    }

    const fn head(seq: u64, byte: u8) -> Head {
        Head { seq, hash: [byte; 32] }
    }

    #[test]
    fn a_head_is_recorded_once_and_never_one_that_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let (mut witness, _) = Witness::open(directory.path(), PeerHeads::default()).unwrap();
        let now = Duration::ZERO;
        let (n2, n3) = (PeerId::new("uid-n2"), PeerId::new("uid-n3"));
        for (peer, head, recorded) in [
            (&n2, head(3, 1), true),
            (&n2, head(3, 1), false),
            (&n3, head(3, 1), true),
            (&n2, head(4, 2), true),
            (&n2, head(3, 1), false),
            (&n2, head(2, 9), false),
            // The same line with another hash: a forged trail.
            (&n2, head(4, 3), true),
            (&n2, head(4, 3), false),
        ] {
            let before = witness.trail.waiting.len();
            witness.record_head(now, peer, &head);
            assert_eq!(witness.trail.waiting.len() > before, recorded, "{peer} {head:?}");
        }
        witness.write("boot", &node());
        drop(witness);
        assert_eq!(lines(directory.path()).len(), 4);
        let (mut witness, damaged) = Witness::open(directory.path(), PeerHeads::default()).unwrap();
        assert_eq!(damaged, [] as [String; 0]);
        for (peer, head, recorded) in
            [(&n2, head(4, 3), false), (&n3, head(3, 1), false), (&n3, head(4, 1), true)]
        {
            let before = witness.trail.waiting.len();
            witness.record_head(now, peer, &head);
            assert_eq!(witness.trail.waiting.len() > before, recorded, "after a restart: {peer} {head:?}");
        }
    }

    /// A minute in which a peer announces a head a millisecond and flips its annotation in every turn of the loop.
    #[test]
    fn a_flood_of_a_minute_adds_no_more_than_the_quota_and_verify_says_what_was_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let (mut witness, _) = Witness::open(directory.path(), PeerHeads::default()).unwrap();
        let flooder = PeerId::new("uid-n2");
        let mut seq = 0;
        let mut now = Duration::ZERO;
        let flip = |witness: &mut Witness, now: Duration, on: bool| {
            let mut admission = Admission::default();
            if on {
                admission.rejected.push(Rejected {
                    node: NodeName::new("n2"),
                    uid: plan::node::NodeUid::new("uid-n2"),
                    reason: Reason::ForeignUid,
                    stays: false,
                });
            }
            witness.record(now, &admission, None);
        };
        for turn in 0..1_200 {
            for _ in 0..50 {
                seq += 1;
                let hash = u8::try_from(seq % 251).unwrap();
                witness.record_head(now, &flooder, &head(seq, hash));
            }
            flip(&mut witness, now, turn % 2 == 0);
            witness.write("boot", &node());
            now += Duration::from_millis(50);
        }
        let found = lines(directory.path());
        assert_eq!(found.len(), usize::try_from(HEADS + ANNOUNCEMENTS).unwrap());
        let (omitted, lost) = witness.missing();
        assert_eq!((omitted, lost), (seq + 600 - found.len() as u64, 0));
        // Another peer is recorded as if nothing had happened.
        witness.record_head(now, &PeerId::new("uid-n3"), &head(1, 1));
        // When the flood is over, the last head is recorded, with what was left out before it.
        now += REFILL;
        witness.record_head(now, &flooder, &head(seq, 1));
        flip(&mut witness, now, false);
        flip(&mut witness, now, true);
        witness.write("boot", &node());
        let verdict = verify(&read(directory.path()).unwrap());
        assert_eq!(verdict.lines.len(), found.len() + 5);
        let gaps = verdict.gaps();
        let left_out = [("uid-n2", seq - u64::from(HEADS)), ("n2", 600 - u64::from(ANNOUNCEMENTS))];
        for (subject, count) in left_out {
            let expected = format!("{count} lines about {subject} were left out: it exceeded its quota");
            assert!(gaps.contains(&expected), "{gaps:?}");
        }
    }

    #[test]
    fn of_a_flood_of_announcements_the_last_one_is_recorded_once_the_quota_allows_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut witness, _) = Witness::open(directory.path(), PeerHeads::default()).unwrap();
        let key = keyring::PrivateKey::generate().unwrap().public().fingerprint();
        let mut announce = |now: Duration, generation: u64| {
            let stance = Stance {
                id: PeerId::new("uid-n2"),
                generation,
                prefer: keyring::Slot::A,
                drain: None,
                installed: false,
            };
            let keys = || PerSlot { a: key, b: key };
            witness.record_announcement(now, &NodeName::new("n2"), &stance, keys);
        };
        for generation in 1..=1_000 {
            announce(Duration::ZERO, generation);
        }
        for seconds in 1..=REFILL.as_secs() {
            announce(Duration::from_secs(seconds), 1_000);
        }
        witness.write("boot", &node());
        let found = lines(directory.path());
        let burst = usize::try_from(ANNOUNCEMENTS).unwrap();
        assert_eq!(found.len(), burst + 2);
        let left_out = Event::Omitted { subject: "uid-n2".to_owned(), lines: 999 - u64::from(ANNOUNCEMENTS) };
        assert_eq!(found[burst].event, left_out);
        assert!(matches!(found[burst + 1].event, Event::PeerAnnounced { generation: 1_000, .. }));
    }

    #[test]
    fn what_does_not_fit_into_memory_is_counted_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let (mut witness, _) = Witness::open(directory.path(), PeerHeads::default()).unwrap();
        for number in 0..WAITING + 5 {
            witness.record_head(Duration::ZERO, &PeerId::new(format!("uid-{number}")), &head(1, 1));
        }
        assert_eq!(witness.missing(), (0, 5));
        witness.write("boot", &node());
        let verdict = verify(&read(directory.path()).unwrap());
        assert_eq!(verdict.lines.last().unwrap().event, Event::Lost { events: 5 });
        assert!(verdict.gaps()[0].starts_with("5 events before line "), "{:?}", verdict.gaps());
    }
}
