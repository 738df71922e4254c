//! The node's audit trail: records events, and announces the trail's head to peers.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use keyring::audit::{
    self, Decision, Event, Head, Line, NodeRef, Quota, TrailError, files, not_destroyed, read,
};
use keyring::rotation::{Note, PeerId};
use plan::admission::Admission;
use tokio::time::Instant;
use tracing::{error, warn};

use super::changes::Changes;
use super::keys::Keys;
use super::trail_writer::{TrailWriter, Written, unix_millis};
use super::witness::{PeerHeads, Witness};
use crate::chain::Chain;

/// Lines at once about generations that somebody else wrote to the own Node, and how long until one more: a stolen token
/// must not be able to fill the trail.
const OUTGROWN: (u32, Duration) = (64, Duration::from_mins(10));
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
    trail: TrailWriter,
    boot: String,
    witness: Witness,
    outgrown_quota: Quota,
    started: Instant,
    /// Lines that were left out because of a quota.
    omitted: u64,
    /// Files that were found damaged at the start.
    damaged: Vec<String>,
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

impl Audit {
    /// Opens the trails in their directories below the state directory, and records which keys were found.
    pub(super) fn open(state_dir: &Path, keys: &Keys) -> Result<Self, TrailError> {
        let directory = state_dir.join(audit::DIRECTORY);
        let mut trail = TrailWriter::open(&directory, WAITING)?;
        let witness_directory = directory.join(audit::WITNESS_DIRECTORY);
        // Version 0.1 recorded heads in the own trail.
        let Recorded { own_keys, heads, mut damaged } = Recorded::read(PeerHeads::default(), &directory);
        let (witness, damaged_there) = Witness::open(&witness_directory, heads)?;
        damaged.extend(damaged_there);
        let journal = keys.journal();
        if let Some(event) = of_witness(&witness) {
            trail.push(event);
        }
        trail.push(Event::Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation: journal.generation,
            keys: journal.slots.map(|record| record.key.fingerprint()),
            created: journal.slots.map(|record| record.created),
            prefer: journal.prefer,
        });
        Ok(Self {
            trail,
            boot: boot(),
            witness,
            outgrown_quota: Quota::new(OUTGROWN.0, OUTGROWN.1),
            started: Instant::now(),
            omitted: 0,
            damaged,
            // So that lines cut off while the daemon was down are missed by its peers.
            announcement: HeadAnnouncement::new(Instant::now()),
            anchor: None,
            former: own_keys,
        })
    }

    /// Whether all events are on disk.
    pub(super) const fn is_kept(&self) -> bool {
        !self.trail.has_failed()
    }

    /// Records what happened to the node's own keys.
    pub(super) fn record_own(&mut self, notes: &[Note], generation: u64) {
        for note in notes {
            if matches!(note, Note::Outgrown(_)) {
                match self.outgrown_quota.take("outgrown", self.started.elapsed()) {
                    Decision::Record { omitted: 0 } => {}
                    Decision::Record { omitted } => {
                        self.trail.push(Event::Omitted { subject: "outgrown".to_owned(), lines: omitted });
                    }
                    Decision::Omit { .. } => {
                        self.omitted += 1;
                        continue;
                    }
                }
            }
            let ended = matches!(note, Note::Finished(_) | Note::RolledBack(..));
            if ended {
                // Before the event, which version 0.1 can read: it would take an unknown last line for none.
                if let Some(event) = of_witness(&self.witness) {
                    self.trail.push(event);
                }
            }
            self.trail.push(Event::of(note, generation));
            if ended {
                self.announcement = HeadAnnouncement::new(Instant::now());
                self.anchor = Some(Head::default());
            }
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
                self.trail.push(Event::Destroyed { slot: life.slot, key, age });
            }
        }
    }

    /// Records what peers announce, as a witness: those of `changes`, if all others announce the same as at the last time.
    pub(super) fn witness(&mut self, admission: &Admission, changes: Option<&Changes<'_>>) {
        self.witness.record(self.started.elapsed(), admission, changes);
    }

    /// Records the head that a peer announces for its trail.
    pub(super) fn record_peer_head(&mut self, peer: &PeerId, head: &Head) {
        self.witness.record_head(self.started.elapsed(), peer, head);
    }

    /// Lines that were left out because of a quota, and events that could not be written.
    pub(super) const fn missing(&self) -> (u64, u64) {
        let (omitted, lost) = self.witness.missing();
        (self.omitted + omitted, self.trail.lost() + lost)
    }

    /// Files that were found damaged at the start.
    pub(super) fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// Writes buffered events, in the name of the own Node.
    pub(super) fn write(&mut self, node: &NodeRef) {
        self.witness.write(&self.boot, node);
        match self.trail.write(&self.boot, node) {
            Written::All { head, recovered } => {
                if let Some(lost) = recovered {
                    warn!(event = "AuditTrailRecovered", lost, "the audit trail can be written again");
                }
                if let Some(anchor) = &mut self.anchor {
                    *anchor = head;
                }
            }
            Written::Failed(Some(error)) => error!(
                event = "AuditTrailFailed", error = %Chain(&error),
                "the audit trail can't be written; no key is replaced until it can"
            ),
            Written::Nothing | Written::Failed(None) => {}
        }
    }

    /// The head of the trail, if it is to be announced to peers now.
    pub(super) fn take_announcement(&mut self) -> Option<Head> {
        if !self.trail.waiting.is_empty() {
            return None;
        }
        self.announcement.take(Instant::now(), self.trail.head())
    }

    /// The head of the trail, if it is to be written to a Kubernetes Event now.
    pub(super) fn take_anchor(&mut self) -> Option<Head> {
        let head = self.anchor.take_if(|head| head.seq > 0)?;
        self.trail.push(Event::Anchored { line: head.seq, head: head.to_string() });
        Some(head)
    }
}

/// What is recorded about where the witness trail ends, if it has begun.
fn of_witness(witness: &Witness) -> Option<Event> {
    let head = witness.head();
    (head.seq > 0).then(|| Event::witness_head(&head))
}

/// What a trail holds that the daemon must know when it starts.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    /// The lines about the node's own keys.
    own_keys: Vec<Line>,
    /// The last head of each peer.
    pub(super) heads: PeerHeads,
    /// What can't be read, a file each.
    pub(super) damaged: Vec<String>,
}

impl Recorded {
    /// Reads file by file, since a whole trail may be more than a daemon should keep in memory. What can't be read is
    /// reported: it is for `meshd audit verify` to judge. `heads` are those that are recorded elsewhere.
    pub(super) fn read(heads: PeerHeads, directory: &Path) -> Self {
        let mut recorded = Self { heads, ..Self::default() };
        for file in files(directory).unwrap_or_default() {
            let mut unreadable = 0_u64;
            match read(&file) {
                Ok(texts) => {
                    for line in texts.iter().flat_map(|(_, text)| text.lines()) {
                        match Line::parse(line) {
                            Ok(line) => recorded.take(line),
                            Err(_) => unreadable += 1,
                        }
                    }
                    if unreadable > 0 {
                        recorded.report(&file, &format!("{unreadable} lines can't be read"));
                    }
                }
                Err(error) if file.exists() => recorded.report(&file, &Chain(&error).to_string()),
                // There is no trail yet.
                Err(_) => {}
            }
        }
        recorded
    }

    fn take(&mut self, line: Line) {
        self.heads.read(&line.event);
        if line.event.is_of_own_keys() {
            self.own_keys.push(line);
        }
    }

    fn report(&mut self, file: &Path, error: &str) {
        warn!(event = "FileDamaged", file = %file.display(), error, "a damaged file is kept");
        self.damaged.push(format!("{}: {error}", file.display()));
    }
}

/// The kernel's boot ID (proc(5)); empty if it is not available.
fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
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
}
