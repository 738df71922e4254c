//! The node's audit trail: records events, and announces the trail's head to peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, SystemTime};

use keyring::audit::{self, Event, Head, Line, NodeRef, Trail, TrailError, files, not_destroyed, read};
use keyring::rotation::{Note, PeerId};
use plan::admission::Admission;
use plan::node::NodeName;
use tokio::time::Instant;
use tracing::{error, warn};

use super::keys::Keys;
use crate::chain::Chain;
use plan::publication::stance;

/// Size at which a file is archived, and how many archived files are kept: 128 MiB, some years of a small
/// cluster.
const FILE_BYTES: u64 = 8 << 20;
const FILES: usize = 16;
/// How many events are buffered while they can't be written. Rotations stop long before that.
const WAITING: usize = 10_000;
/// How long until the same head is announced again: a datagram may be lost, and a peer that was away must learn of it too.
/// The delay doubles from the first to the last, so that a peer records the head soon after its tunnel is up, and the
/// trails of a cluster at rest do not grow.
const FIRST_REPEAT: Duration = Duration::from_secs(1);
const LAST_REPEAT: Duration = Duration::from_hours(1);

/// The trail, and what is still to be written or announced.
#[derive(Debug)]
pub(super) struct Audit {
    trail: Trail,
    boot: String,
    waiting: VecDeque<Event>,
    failed: bool,
    /// The last announcement of each peer that was recorded.
    peers: BTreeMap<PeerId, (NodeName, u64)>,
    refused: BTreeSet<(String, String)>,
    peer_heads: PeerHeads,
    /// The head of the trail at the start or after the last rotation, for peers to record.
    announcement: HeadAnnouncement,
    /// The head of the trail to write to a Kubernetes Event; its number is zero until the lines are on disk.
    anchor: Option<Head>,
    /// The lines about the node's own keys that were in the trail at the start, until they have been
    /// processed.
    former: Vec<Line>,
}

/// When the head of the trail is announced to peers. Every repeat has the same head: peers that have recorded it need not
/// do so again.
#[derive(Debug)]
struct HeadAnnouncement {
    /// None until the lines are on disk.
    head: Option<Head>,
    due: Instant,
    delay: Duration,
}

impl HeadAnnouncement {
    const fn new(now: Instant) -> Self {
        Self { head: None, due: now, delay: FIRST_REPEAT }
    }

    /// The head to announce at `now`, if it is due; `current` is where the trail ends.
    fn take(&mut self, now: Instant, current: Head) -> Option<Head> {
        if now < self.due {
            return None;
        }
        self.due = now + self.delay;
        self.delay = (self.delay * 2).min(LAST_REPEAT);
        Some(*self.head.get_or_insert(current))
    }
}

/// The last head of each peer that is in the trail.
#[derive(Debug, Default)]
struct PeerHeads(BTreeMap<PeerId, Event>);

impl PeerHeads {
    /// Reads an event of the trail, in order.
    fn read(&mut self, event: &Event) {
        if let Event::PeerHead { peer, .. } = event {
            self.0.insert(peer.clone(), event.clone());
        }
    }

    /// The event to record, unless the same head was recorded last. One with a lower number is recorded too: whether a
    /// datagram was late or the peer's trail was cut off is for `verify` to find out.
    fn record(&mut self, peer: &PeerId, head: &Head) -> Option<Event> {
        let event = Event::head_of(peer.clone(), head);
        if self.0.get(peer) == Some(&event) {
            return None;
        }
        self.0.insert(peer.clone(), event.clone());
        Some(event)
    }
}

impl Audit {
    /// Opens the trail in its directory below the state directory, and records which keys were found.
    pub(super) fn open(state_dir: &Path, keys: &Keys) -> Result<Self, TrailError> {
        let directory = state_dir.join(audit::DIRECTORY);
        let (trail, torn) = Trail::open(&directory, FILE_BYTES, FILES)?;
        let (former, peer_heads) = recorded(&directory)?;
        let journal = keys.journal();
        let mut waiting = VecDeque::new();
        if torn > 0 {
            waiting.push_back(Event::Repaired { bytes: torn });
        }
        waiting.push_back(Event::Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: journal.generation,
            keys: journal.slots.map(|record| record.key.fingerprint()),
            created: journal.slots.map(|record| record.created),
            prefer: journal.prefer,
        });
        Ok(Self {
            trail,
            boot: boot(),
            waiting,
            failed: false,
            peers: BTreeMap::new(),
            refused: BTreeSet::new(),
            peer_heads,
            // So that lines cut off while the daemon was down are missed by its peers.
            announcement: HeadAnnouncement::new(Instant::now()),
            anchor: None,
            former,
        })
    }

    /// Whether all events are on disk.
    pub(super) const fn is_kept(&self) -> bool {
        !self.failed
    }

    /// Records what happened to the node's own keys.
    pub(super) fn record_own(&mut self, notes: &[Note], generation: u64) {
        for note in notes {
            if matches!(note, Note::Finished(_) | Note::RolledBack(..)) {
                self.announcement = HeadAnnouncement::new(Instant::now());
                self.anchor = Some(Head::default());
            }
            self.push(Event::of(note, generation));
        }
    }

    /// Records the destruction of keys that were lost without it, because the daemon was killed or the node
    /// rebooted with a key store in memory. Called when devices match the journal: from then on a key that is
    /// not in the journal is in no file, in no device and not in memory.
    pub(super) fn account_for_lost_keys(&mut self, node: &PeerId, keys: &Keys) {
        if !keys.announced() || self.former.is_empty() {
            return;
        }
        let journal = keys.journal();
        let named: BTreeSet<String> = journal.keys().map(|key| key.fingerprint().to_string()).collect();
        let now = unix_millis();
        for life in not_destroyed(&std::mem::take(&mut self.former), node) {
            let gone = Some(&life.key).filter(|key| !named.contains(*key));
            if let Some(key) = gone.and_then(|key| key.parse().ok()) {
                let age = now.saturating_sub(life.since) / 1000;
                self.push(Event::Destroyed { slot: life.slot, key, age });
            }
        }
    }

    /// Records what peers announce, as a witness.
    pub(super) fn witness(&mut self, admission: &Admission) {
        let mut present = BTreeSet::new();
        for (name, member) in &admission.world.peers {
            let stance = stance(member);
            present.insert(stance.id.clone());
            let known = self.peers.get(&stance.id).is_some_and(|(_, seen)| *seen == stance.generation);
            if !known {
                let keys = member.state.slots.map(|slot| slot.key.fingerprint());
                self.peers.insert(stance.id.clone(), (name.clone(), stance.generation));
                self.push(Event::announced(name.as_str(), &stance, keys));
            }
        }
        let gone: Vec<PeerId> = self.peers.keys().filter(|id| !present.contains(*id)).cloned().collect();
        for id in gone {
            if let Some((name, _)) = self.peers.remove(&id) {
                self.push(Event::PeerGone { peer: NodeRef { uid: id, name: name.to_string() } });
            }
        }
        let refused: BTreeSet<(String, String)> = admission
            .rejected
            .iter()
            .map(|rejected| (rejected.node.to_string(), rejected.reason.code().to_owned()))
            .collect();
        let new: Vec<_> = refused.difference(&self.refused).cloned().collect();
        for (node, reason) in new {
            self.push(Event::PeerRefused { refused: node, reason });
        }
        self.refused = refused;
    }

    /// Records the head that a peer announces for its trail.
    pub(super) fn record_peer_head(&mut self, peer: &PeerId, head: &Head) {
        if let Some(event) = self.peer_heads.record(peer, head) {
            self.push(event);
        }
    }

    /// Writes buffered events, in the name of the own Node.
    pub(super) fn write(&mut self, node: &NodeRef) {
        if self.waiting.is_empty() {
            return;
        }
        let events: Vec<Event> = self.waiting.iter().cloned().collect();
        match self.trail.append(unix_millis(), &self.boot, node, &events) {
            Ok(head) => {
                self.waiting.clear();
                if self.failed {
                    warn!(
                        event = "AuditTrailRecovered",
                        "the audit trail can be written again; no event was lost"
                    );
                }
                self.failed = false;
                if let Some(anchor) = &mut self.anchor {
                    *anchor = head;
                }
            }
            Err(error) => {
                if !self.failed {
                    error!(
                        event = "AuditTrailFailed", error = %Chain(&error),
                        "the audit trail can't be written; no key is replaced until it can"
                    );
                }
                self.failed = true;
            }
        }
    }

    /// The head of the trail, if it is to be announced to peers now.
    pub(super) fn take_announcement(&mut self) -> Option<Head> {
        if !self.waiting.is_empty() {
            return None;
        }
        self.announcement.take(Instant::now(), self.trail.head())
    }

    /// The head of the trail, if it is to be written to a Kubernetes Event now.
    pub(super) fn take_anchor(&mut self) -> Option<Head> {
        let head = self.anchor.take_if(|head| head.seq > 0)?;
        self.push(Event::Anchored { line: head.seq, head: head.to_string() });
        Some(head)
    }

    fn push(&mut self, event: Event) {
        if self.waiting.len() < WAITING {
            self.waiting.push_back(event);
        }
    }
}

/// What a trail holds that the daemon must know when it starts: the lines about the node's own keys, and the last head of
/// each peer. Read file by file, since a whole trail may be more than a daemon should keep in memory.
fn recorded(directory: &Path) -> Result<(Vec<Line>, PeerHeads), TrailError> {
    let (mut own_keys, mut heads) = (Vec::new(), PeerHeads::default());
    for file in files(directory)? {
        for (_, text) in read(&file)? {
            for line in text.lines().filter_map(|line| Line::parse(line).ok()) {
                heads.read(&line.event);
                if line.event.is_of_own_keys() {
                    own_keys.push(line);
                }
            }
        }
    }
    Ok((own_keys, heads))
}

/// The kernel's boot ID (proc(5)); empty if it is not available.
fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn head(seq: u64, byte: u8) -> Head {
        Head { seq, hash: [byte; 32] }
    }

    #[test]
    fn the_same_head_is_announced_again_ever_more_seldom() {
        let start = Instant::now();
        let mut announcement = HeadAnnouncement::new(start);
        let mut announced = Vec::new();
        for second in 0..20_000 {
            // The trail continues; the announced head stays.
            let taken = announcement.take(start + Duration::from_secs(second), head(7 + second, 1));
            if let Some(taken) = taken {
                assert_eq!(taken, head(7, 1));
                announced.push(second);
            }
        }
        assert_eq!(announced[..8], [0, 1, 3, 7, 15, 31, 63, 127]);
        let delays: Vec<u64> = announced.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(delays.last(), Some(&3600));
        assert!(delays.iter().all(|delay| *delay <= 3600), "{delays:?}");
    }

    #[test]
    fn a_head_is_recorded_once_and_not_again_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (mut trail, _) = Trail::open(directory.path(), 1 << 20, 2).unwrap();
        let (n2, n3) = (PeerId::new("uid-n2"), PeerId::new("uid-n3"));
        let node = NodeRef { uid: PeerId::new("uid-n1"), name: "n1".to_owned() };
        let mut heads = PeerHeads::default();
        for (peer, head, recorded) in [
            (&n2, head(3, 1), true),
            (&n2, head(3, 1), false),
            (&n3, head(3, 1), true),
            (&n2, head(4, 2), true),
            // The same line with another hash: a forged trail.
            (&n2, head(4, 3), true),
            (&n2, head(4, 3), false),
        ] {
            let event = heads.record(peer, &head);
            assert_eq!(event.is_some(), recorded, "{peer} {head:?}");
            trail.append(1, "boot", &node, &event.into_iter().collect::<Vec<_>>()).unwrap();
        }
        drop(trail);
        let (_, mut heads) = recorded(directory.path()).unwrap();
        assert_eq!(heads.record(&n2, &head(4, 3)), None);
        assert_eq!(heads.record(&n3, &head(3, 1)), None);
        assert!(heads.record(&n3, &head(4, 1)).is_some());
    }
}
