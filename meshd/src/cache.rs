//! The last known peers on disk, so that a node starts without the API server.
//!
//! A file has them all. A change of some is appended to a log beside it, so that it costs the same however many there are:
//!
//! ```text
//!  peers.json   everything, as of its last writing
//!  peers.log    a line for each change since, each a document of its own that names what it follows
//! ```
//!
//! What a change follows is the file, or the change before it, by a digest of the text. So a log of a former file is none of
//! this one's, and no line is missing in between. The file is written anew before the log is longer than half of it.

use std::fs::OpenOptions;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use plan::admission::{AdmissionPart, Ledger, LedgerChange};
use plan::node::{NodeName, NodeUid};
use serde::{Deserialize, Serialize};

use crate::document::{self, checksum};
use crate::file::{self, FileError, FileIdentity};
use crate::state_file::{self, Format, StateFileError};

/// The cache in the state directory: about 1 kB a node for 10,000 nodes.
pub(crate) const FORMAT: Format =
    Format { name: "peers.json", version: 1, field: "memory", max_len: 16 << 20 };
/// The log of changes, beside it. It is never as long as half the file, but for a small one.
pub(crate) const LOG: Format = Format { name: "peers.log", version: 1, field: "memory", max_len: 16 << 20 };
/// Up to so many bytes the log may always have.
const SHORT_LOG: u64 = 64 << 10;

/// What a node remembers of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Memory {
    /// The node that wrote it: the cache of another node, on a cloned disk for instance, is not used.
    pub node: NodeName,
    /// The UID that its Node had.
    pub uid: Option<NodeUid>,
    /// Last good state and claims of every node.
    pub ledger: Ledger,
}

/// The same, borrowed, with its fields in the same order.
#[derive(Serialize)]
struct MemoryRef<'a> {
    node: &'a NodeName,
    uid: Option<&'a NodeUid>,
    ledger: &'a Ledger,
}

/// A line of the log.
#[derive(Debug, Deserialize, Serialize)]
struct Logged {
    /// Digest of what it follows.
    after: String,
    change: LedgerChange,
}

/// The file that holds the memory, and its log.
#[derive(Debug)]
pub(crate) struct Cache {
    path: PathBuf,
    log: PathBuf,
    /// What is on disk, if this process has written it.
    saved: Option<Saved>,
}

#[derive(Debug)]
struct Saved {
    memory: Memory,
    /// Of the file, and of the log if there is one.
    identities: (FileIdentity, Option<FileIdentity>),
    /// Bytes that both have.
    lens: (u64, u64),
    /// Digest of what the next change follows.
    last: String,
}

impl Cache {
    /// A cache in the given state directory.
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(FORMAT.name), log: directory.join(LOG.name), saved: None }
    }

    /// Reads the memory. `None` if there is no file. A damaged file is an error: its peers can't be trusted. It is kept
    /// under another name, and so is a log with a damaged line, together with the file. Of a last line that is not whole only the
    /// line is left out: the daemon or the host ended while it was written, so nobody relies on it.
    pub(crate) fn load(&self) -> Result<Option<Memory>, StateFileError> {
        let Some(mut memory) = state_file::load::<Memory>(&self.path, FORMAT)? else { return Ok(None) };
        let whole = match file::read(&self.log, LOG.max_len) {
            Ok(None) => return Ok(Some(memory)),
            Ok(Some(log)) => {
                let text = file::read(&self.path, FORMAT.max_len)?.unwrap_or_default();
                replay(&mut memory.ledger, checksum(text), &log)
            }
            Err(FileError::TooLong { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if whole {
            return Ok(Some(memory));
        }
        let damage = Box::new(StateFileError::Damaged { path: self.log.clone() });
        // The file alone would be the state of an earlier moment.
        let kept = file::set_aside(&self.path).and_then(|_| file::set_aside(&self.log));
        Err(match kept {
            Ok(kept) => StateFileError::SetAside { kept, source: damage },
            Err(_) => *damage,
        })
    }

    /// Writes the memory if it differs from what is on disk; returns whether it wrote. `part` is what was decided anew since the
    /// last call, if that is not all.
    ///
    /// Called on every turn of the reconcile loop, so an unchanged ledger costs a comparison and two `stat`: it is neither
    /// serialized nor copied. Files that were removed or replaced by hand are written again.
    pub(crate) fn save(
        &mut self,
        node: &NodeName,
        uid: Option<&NodeUid>,
        ledger: &Ledger,
        part: Option<&AdmissionPart>,
    ) -> Result<bool, StateFileError> {
        let is_there = |saved: &Saved| {
            let found = (FileIdentity::of(&self.path), FileIdentity::of(&self.log));
            (&saved.memory.node, saved.memory.uid.as_ref()) == (node, uid)
                && found == (Some(saved.identities.0), saved.identities.1)
        };
        // Whatever fails below, the next call writes everything.
        if let Some(mut saved) = self.saved.take().filter(is_there) {
            let Some(part) = part else {
                if saved.memory.ledger == *ledger {
                    self.saved = Some(saved);
                    return Ok(false);
                }
                return self.write(node, uid, ledger);
            };
            let change = part.ledger_change();
            if !change.apply(&mut saved.memory.ledger) {
                self.saved = Some(saved);
                return Ok(false);
            }
            let logged = Logged { after: saved.last.clone(), change };
            let mut line = state_file::render(&self.log, LOG, &logged)?;
            let last = checksum(&line);
            line.push(b'\n');
            let (of_file, of_log) = saved.lens;
            let grown = of_log + line.len() as u64;
            if grown <= SHORT_LOG.max(of_file / 2) {
                let failed = |source| FileError::Write { path: self.log.clone(), source };
                append(&self.log, of_log, &line).map_err(failed)?;
                let identities = (saved.identities.0, FileIdentity::of(&self.log));
                self.saved = Some(Saved { identities, lens: (of_file, grown), last, ..saved });
                return Ok(true);
            }
        }
        self.write(node, uid, ledger)
    }

    /// Writes everything. The log is removed afterwards: until then it is one of another file.
    fn write(
        &mut self,
        node: &NodeName,
        uid: Option<&NodeUid>,
        ledger: &Ledger,
    ) -> Result<bool, StateFileError> {
        self.saved = None;
        let text = state_file::render(&self.path, FORMAT, &MemoryRef { node, uid, ledger })?;
        let written = file::replace(&self.path, &text, 0o600)?;
        let failed = |source| FileError::Write { path: self.log.clone(), source };
        let removed = file::remove(&self.log).map_err(failed)?;
        self.saved = FileIdentity::of(&self.path).map(|identity| {
            let memory = Memory { node: node.clone(), uid: uid.cloned(), ledger: ledger.clone() };
            Saved { memory, identities: (identity, None), lens: (text.len() as u64, 0), last: checksum(text) }
        });
        Ok(written || removed)
    }
}

/// Appends a line to a log of this length. One that begins anew replaces what is there.
fn append(log: &Path, len: u64, line: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(log)?;
    file.set_len(len)?;
    file.seek(std::io::SeekFrom::Start(len))?;
    file.write_all(line)?;
    file.sync_all()?;
    if len == 0 {
        std::fs::File::open(log.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()?;
    }
    Ok(())
}

/// Makes the changes of a log to the ledger of the file with the digest `last`; false if a line is damaged.
fn replay(ledger: &mut Ledger, mut last: String, log: &[u8]) -> bool {
    let mut lines = log.split_inclusive(|byte| *byte == b'\n').peekable();
    let mut is_first = true;
    while let Some(line) = lines.next() {
        let text = line.strip_suffix(b"\n");
        match text.and_then(|text| document::read::<Logged>(text, LOG.version)) {
            Some(Logged { after, change }) if after == last => drop(change.apply(ledger)),
            // The log of a former file: this one was written, and the daemon ended before it had removed the log.
            Some(_) => return is_first,
            None => return lines.peek().is_none(),
        }
        last = text.map(checksum).unwrap_or_default();
        is_first = false;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use keyring::{PerSlot, PublicKey, Slot};
    use plan::admission::{Admission, AdmissionPolicy};
    use plan::annotation::{Phase, SlotState, State};
    use plan::cluster::Cluster;
    use plan::node::NodeRecord;

    use super::*;

    fn n1() -> (NodeName, NodeUid) {
        (NodeName::new("n1"), NodeUid::new("u1"))
    }

    #[test]
    fn a_file_that_is_damaged_at_any_byte_is_not_used_and_kept_under_another_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        assert_eq!(cache.load().unwrap(), None);
        let ((node, uid), ledger) = (n1(), Ledger::default());
        assert!(cache.save(&node, Some(&uid), &ledger, None).unwrap());
        assert_eq!(cache.load().unwrap(), Some(Memory { node, uid: Some(uid), ledger }));
        let whole = std::fs::read(&cache.path).unwrap();
        let damaged = |bytes: &[u8], what: String| {
            std::fs::write(&cache.path, bytes).unwrap();
            let Err(StateFileError::SetAside { kept, source }) = cache.load() else {
                panic!("{what} is used")
            };
            assert!(matches!(*source, StateFileError::Damaged { .. }), "{what}");
            assert_eq!(std::fs::read(kept).unwrap(), bytes, "{what}");
            assert_eq!(cache.load().unwrap(), None, "{what}: the start goes on without it");
        };
        for index in 0..whole.len() {
            for byte in [whole[index] ^ 1, 0xff] {
                let mut changed = whole.clone();
                changed[index] = byte;
                damaged(&changed, format!("byte {index} as {byte}"));
            }
            damaged(&whole[..index], format!("cut at {index}"));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 4, "a bounded number is kept");
        let file = std::fs::File::create(&cache.path).unwrap();
        file.set_len(FORMAT.max_len + 1).unwrap();
        let Err(StateFileError::SetAside { source, .. }) = cache.load() else {
            panic!("a long file is used")
        };
        assert!(matches!(*source, StateFileError::File(FileError::TooLong { .. })));
    }

    #[test]
    fn only_a_change_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        let ((node, uid), ledger) = (n1(), Ledger::default());
        assert!(cache.save(&node, None, &ledger, None).unwrap());
        let written = FileIdentity::of(&cache.path);
        assert!(!cache.save(&node, None, &ledger, None).unwrap());
        assert_eq!(FileIdentity::of(&cache.path), written);
        assert!(cache.save(&node, Some(&uid), &ledger, None).unwrap(), "another UID");
        // A daemon that has just started compares with the file itself.
        let mut restarted = Cache::in_directory(directory.path());
        assert!(!restarted.save(&node, Some(&uid), &ledger, None).unwrap());
    }

    #[test]
    fn a_file_that_was_changed_by_hand_is_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        let ((node, uid), ledger) = (n1(), Ledger::default());
        assert!(cache.save(&node, Some(&uid), &ledger, None).unwrap());
        std::fs::write(&cache.path, "not a cache").unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger, None).unwrap());
        std::fs::remove_file(&cache.path).unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger, None).unwrap());
        assert!(cache.load().unwrap().is_some());
    }

    #[test]
    fn a_failed_write_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::in_directory(directory.path());
        let ((node, uid), ledger) = (n1(), Ledger::default());
        std::fs::create_dir(&cache.path).unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger, None).is_err());
        std::fs::remove_dir(&cache.path).unwrap();
        assert!(cache.save(&node, Some(&uid), &ledger, None).unwrap());
    }

    fn record(name: &str, addresses: &[&str]) -> NodeRecord {
        let (uid, number) = (NodeUid::new(format!("uid-{name}")), u8::try_from(name.len()).unwrap());
        let slot = |byte, port| {
            let key = PublicKey::from_bytes(&[byte; 32]).unwrap();
            SlotState { key, generation: 1, port }
        };
        let state = State {
            uid: uid.clone(),
            generation: 1,
            slots: PerSlot { a: slot(10 + number, 51840), b: slot(20 + number, 51841) },
            prefer: Slot::A,
            drain: None,
            phase: Phase::Steady,
            proofs: None,
        };
        NodeRecord {
            name: NodeName::new(name),
            uid,
            created: "2026-01-01T00:00:00Z".to_owned(),
            pod_cidrs: vec![format!("10.244.{number}.0/24")],
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            state: Some(state.render()),
            ..NodeRecord::default()
        }
    }

    /// A cluster whose changes are decided one after the other, with a cache of it.
    struct Kept {
        cluster: Cluster,
        policy: AdmissionPolicy,
        admission: Admission,
        cache: Cache,
        directory: tempfile::TempDir,
    }

    impl Kept {
        fn new() -> Self {
            let mut cluster = Cluster::remembered(NodeName::new("n1"), Ledger::default(), None);
            let nodes = [("n1", "192.0.2.1"), ("n22", "192.0.2.2"), ("n333", "192.0.2.3")];
            let list = nodes.map(|(name, address)| (NodeName::new(name), record(name, &[address])));
            assert_eq!(cluster.relist(Duration::ZERO, list.into()), None);
            let policy = AdmissionPolicy {
                cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                accept_unproven: true,
                ipv4: true,
                ..AdmissionPolicy::default()
            };
            let mut admission = cluster.admit(&policy);
            while cluster.remember(&policy, &admission.ledger) {
                admission = cluster.admit(&policy);
            }
            assert_eq!(admission.world.peers.len(), 2);
            let directory = tempfile::tempdir().unwrap();
            let cache = Cache::in_directory(directory.path());
            let mut kept = Self { cluster, policy, admission, cache, directory };
            assert!(kept.save(None).unwrap());
            kept
        }

        fn save(&mut self, part: Option<&AdmissionPart>) -> Result<bool, StateFileError> {
            let ((node, uid), ledger) = (n1(), &self.admission.ledger);
            self.cache.save(&node, Some(&uid), ledger, part)
        }

        /// One Node changes; returns whether that was written.
        fn change(&mut self, name: &str, addresses: &[&str]) -> Result<bool, StateFileError> {
            self.cluster.apply(Duration::ZERO, record(name, addresses));
            let part = self.cluster.admit_changed(&self.policy).unwrap();
            self.admission.splice(&part);
            self.cluster.remember_part(&part);
            self.save(Some(&part))
        }

        /// What a daemon that starts now finds.
        fn found(&self) -> Result<Option<Ledger>, StateFileError> {
            let found = Cache::in_directory(self.directory.path()).load()?;
            Ok(found.map(|memory| memory.ledger))
        }

        fn log(&self) -> Vec<u8> {
            std::fs::read(&self.cache.log).unwrap_or_default()
        }
    }

    #[test]
    fn a_change_is_appended_and_read_back() {
        let mut kept = Kept::new();
        let file = FileIdentity::of(&kept.cache.path);
        for (number, last) in (12..30).enumerate() {
            let address = format!("192.0.2.{last}");
            assert!(kept.change("n22", &[&address]).unwrap());
            assert!(!kept.change("n22", &[&address]).unwrap(), "the same again");
            assert_eq!(kept.log().split_inclusive(|byte| *byte == b'\n').count(), number + 1);
            assert_eq!(kept.found().unwrap().as_ref(), Some(&kept.admission.ledger));
        }
        assert_eq!(FileIdentity::of(&kept.cache.path), file, "the file stays as it was");
        // All of them at once, as after a list: nothing is new.
        assert!(!kept.save(None).unwrap());
        // A daemon that has just started writes everything.
        kept.cache = Cache::in_directory(kept.directory.path());
        assert!(kept.save(None).unwrap());
        assert!(kept.log().is_empty());
        assert_eq!(kept.found().unwrap(), Some(kept.admission.ledger));
    }

    #[test]
    fn after_a_crash_at_any_byte_the_last_change_is_there_or_not() {
        let mut kept = Kept::new();
        kept.change("n22", &["192.0.2.7"]).unwrap();
        let (former, before) = (kept.admission.ledger.clone(), kept.log().len());
        kept.change("n22", &["192.0.2.8"]).unwrap();
        let log = kept.log();
        for len in before..log.len() {
            std::fs::write(&kept.cache.log, &log[..len]).unwrap();
            assert_eq!(kept.found().unwrap().as_ref(), Some(&former), "cut at {len}");
            // Blocks of the line that did not get to the disk.
            let zeros = [&log[..len], vec![0; log.len() - len].as_slice()].concat();
            std::fs::write(&kept.cache.log, zeros).unwrap();
            assert_eq!(kept.found().unwrap().as_ref(), Some(&former), "zeros from {len}");
        }
        // A log that was cut is written anew with the file.
        assert!(kept.change("n333", &["192.0.2.9"]).unwrap());
        assert_eq!(kept.found().unwrap(), Some(kept.admission.ledger));
    }

    #[test]
    fn a_damaged_line_is_an_error_and_both_files_are_kept_under_other_names() {
        let mut kept = Kept::new();
        kept.change("n22", &["192.0.2.7"]).unwrap();
        let first = kept.log().len();
        kept.change("n22", &["192.0.2.8"]).unwrap();
        let (file, log) = (std::fs::read(&kept.cache.path).unwrap(), kept.log());
        let without_the_first = log[first..].to_vec();
        let twice = [&log[..first], &log[..first], &log[first..]].concat();
        let changed = (0..first - 1).step_by(7).map(|index| {
            let mut changed = log.clone();
            changed[index] ^= 1;
            changed
        });
        for damaged in changed.chain([twice]) {
            std::fs::write(&kept.cache.path, &file).unwrap();
            std::fs::write(&kept.cache.log, &damaged).unwrap();
            assert!(matches!(kept.found(), Err(StateFileError::SetAside { .. })));
            assert_eq!(kept.found().unwrap(), None, "the start goes on without them");
            assert!(!kept.cache.log.exists());
        }
        // As if it were of another file.
        std::fs::write(&kept.cache.path, &file).unwrap();
        std::fs::write(&kept.cache.log, without_the_first).unwrap();
        assert!(kept.found().unwrap().is_some_and(|found| found != kept.admission.ledger));
    }

    #[test]
    fn a_log_of_a_former_file_counts_for_nothing() {
        let mut kept = Kept::new();
        kept.change("n22", &["192.0.2.7"]).unwrap();
        let log = kept.log();
        kept.change("n22", &["192.0.2.8"]).unwrap();
        kept.cache = Cache::in_directory(kept.directory.path());
        kept.save(None).unwrap();
        // The daemon ended before it removed the log.
        std::fs::write(&kept.cache.log, log).unwrap();
        assert_eq!(kept.found().unwrap().as_ref(), Some(&kept.admission.ledger));
        assert!(kept.change("n22", &["192.0.2.9"]).unwrap());
        assert_eq!(kept.found().unwrap(), Some(kept.admission.ledger));
    }

    #[test]
    fn the_log_is_bounded() {
        let mut kept = Kept::new();
        let mut longest = 0;
        for number in 0..600 {
            kept.change("n22", &[&format!("192.0.{}.{}", 3 + number / 250, 1 + number % 250)]).unwrap();
            longest = longest.max(kept.log().len());
        }
        assert_eq!(kept.found().unwrap().as_ref(), Some(&kept.admission.ledger));
        let file = std::fs::metadata(&kept.cache.path).unwrap().len();
        assert!(longest as u64 <= SHORT_LOG.max(file / 2), "{longest}");
        assert!(longest as u64 > SHORT_LOG / 2, "{longest}");
    }
}
