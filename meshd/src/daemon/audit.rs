//! The node's audit trail: turns what happens into lines, and tells peers where the trail ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, SystemTime};

use keyring::audit::{Event, Head, Line, NodeRef, Trail, TrailError, files, not_destroyed, read};
use keyring::rotation::{Note, PeerId};
use plan::admission::Admission;
use plan::node::NodeName;
use tokio::time::Instant;
use tracing::{error, warn};

use super::keys::Keys;
use crate::chain::Chain;
use plan::publication::stance;

/// Size at which a file is put aside, and how many of those stay: 128 MiB, some years of a small cluster.
const FILE_BYTES: u64 = 8 << 20;
const FILES: usize = 16;
/// Events that wait while the disk refuses them. Beyond that a rotation has long stopped.
const WAITING: usize = 10_000;
/// How long until peers are told again where the trail ended after a rotation: a datagram may be lost, and a peer that was
/// away is to know too. The last one goes on.
const TELL: [Duration; 3] = [Duration::from_secs(5), Duration::from_mins(1), Duration::from_hours(1)];

/// The trail and what it has yet to tell.
#[derive(Debug)]
pub(super) struct Audit {
    trail: Trail,
    boot: String,
    waiting: VecDeque<Event>,
    failed: bool,
    /// What each peer announced when it was last written down.
    peers: BTreeMap<PeerId, (NodeName, u64)>,
    refused: BTreeSet<(String, String)>,
    /// The last head of each peer that was written down.
    heads: BTreeMap<PeerId, u64>,
    /// Where the trail ended at the start or after the last rotation, for peers to remember.
    tell: Option<Tell>,
    /// The end of the trail to put into a Kubernetes Event.
    anchor: Option<Head>,
    /// What the trail said of this machine's keys when the daemon started, until that has been gone through.
    former: Vec<Line>,
}

/// Peers are told the same each time, so that who has written it down need not do so again.
#[derive(Debug)]
struct Tell {
    /// None until the lines are on disk.
    head: Option<Head>,
    due: Instant,
    pauses: std::slice::Iter<'static, Duration>,
}

impl Tell {
    fn new() -> Self {
        Self { head: None, due: Instant::now(), pauses: TELL.iter() }
    }
}

impl Audit {
    /// Opens the trail in a folder below the state folder, and writes down which keys were found.
    pub(super) fn open(state_dir: &Path, keys: &Keys) -> Result<Self, TrailError> {
        let folder = state_dir.join("audit");
        let (trail, torn) = Trail::open(&folder, FILE_BYTES, FILES)?;
        let former = lives(&folder)?;
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
            heads: BTreeMap::new(),
            // Whoever cuts the trail while the daemon is down should be found out.
            tell: Some(Tell::new()),
            anchor: None,
            former,
        })
    }

    /// Whether everything that happened is on disk.
    pub(super) const fn is_kept(&self) -> bool {
        !self.failed
    }

    /// Takes what happened to our own keys.
    pub(super) fn own(&mut self, notes: &[Note], generation: u64) {
        for note in notes {
            if matches!(note, Note::Finished(_) | Note::RolledBack(..)) {
                self.tell = Some(Tell::new());
                self.anchor = Some(Head::default());
            }
            self.push(Event::of(note, generation));
        }
    }

    /// Accounts for keys that were lost and not destroyed in due order, because the daemon died between the two or the
    /// node went down with a key store that does not outlive it. Called when devices are as the journal says: from then
    /// on what the journal does not name is in no file, no device and no memory of this node.
    pub(super) fn account(&mut self, node: &PeerId, keys: &Keys) {
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

    /// Takes what peers announce, as a witness.
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

    /// Takes where a peer says that its trail ends.
    pub(super) fn hear_head(&mut self, peer: &PeerId, head: &Head) {
        // An older one was late on its way; the same one was said again. One that went back is for `verify` to find.
        if self.heads.insert(peer.clone(), head.seq) != Some(head.seq) {
            self.push(Event::head_of(peer.clone(), head));
        }
    }

    /// Writes what is waiting, in the name of our Node.
    pub(super) fn write(&mut self, node: &NodeRef) {
        if self.waiting.is_empty() {
            return;
        }
        let events: Vec<Event> = self.waiting.iter().cloned().collect();
        match self.trail.append(unix_millis(), &self.boot, node, &events) {
            Ok(head) => {
                self.waiting.clear();
                if self.failed {
                    warn!("the audit trail can be written again; nothing of it was lost");
                }
                self.failed = false;
                if let Some(anchor) = &mut self.anchor {
                    *anchor = head;
                }
            }
            Err(error) => {
                if !self.failed {
                    error!(cause = %Chain(&error), "no key is replaced until the audit trail can be written again");
                }
                self.failed = true;
            }
        }
    }

    /// Where the trail ended, if peers are to be told now.
    pub(super) fn take_tell(&mut self) -> Option<Head> {
        let now = Instant::now();
        let tell = self.tell.as_mut().filter(|tell| tell.due <= now && self.waiting.is_empty())?;
        let [.., last] = &TELL;
        tell.due = now + *tell.pauses.next().unwrap_or(last);
        Some(*tell.head.get_or_insert_with(|| self.trail.head()))
    }

    /// Where the trail ends, if that is to be put into a Kubernetes Event now.
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

/// The lines of a trail that speak of the node's own keys. File by file: all of a trail may be more than a daemon should
/// hold.
fn lives(folder: &Path) -> Result<Vec<Line>, TrailError> {
    let mut lines = Vec::new();
    for file in files(folder)? {
        for (_, text) in read(&file)? {
            let parsed = text.lines().filter_map(|line| Line::parse(line).ok());
            lines.extend(parsed.filter(|line| line.event.is_of_own_keys()));
        }
    }
    Ok(lines)
}

/// Which start of the machine this is (proc(5)); empty where the kernel does not say.
fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
