//! An audit trail with the events that are still to be written to it: no more of them than fit into memory.

use std::collections::VecDeque;
use std::path::Path;
use std::time::SystemTime;

use keyring::audit::{Event, Head, NodeRef, Opening, Trail, TrailError};

/// Size at which a file is archived, and how many archived files are kept: 128 MiB, some years of a small cluster.
const FILE_BYTES: u64 = 8 << 20;
const FILES: usize = 16;

/// The trail, and what waits for it.
#[derive(Debug)]
pub(super) struct TrailWriter {
    trail: Trail,
    pub(super) waiting: VecDeque<Event>,
    /// How many events may wait.
    limit: usize,
    failed: bool,
    /// Events that were lost because they could not be written; of these `lost_before` are in the trail.
    lost: u64,
    lost_before: u64,
}

/// What became of the events that were waiting.
#[derive(Debug)]
pub(super) enum Written {
    /// There were none.
    Nothing,
    /// They are on disk.
    All {
        /// The head of the trail.
        head: Head,
        /// If the trail could not be written before, how many events were lost meanwhile.
        recovered: Option<u64>,
    },
    /// They still wait. The cause, unless the trail could not be written before either.
    Failed(Option<TrailError>),
}

impl TrailWriter {
    /// Opens the trail in a directory. At most `limit` events wait for it.
    pub(super) fn open(directory: &Path, limit: usize) -> Result<Self, TrailError> {
        let (trail, opening) = Trail::open(directory, FILE_BYTES, FILES)?;
        let waiting = of_opening(opening).collect();
        Ok(Self { trail, waiting, limit, failed: false, lost: 0, lost_before: 0 })
    }

    /// Adds an event. It is lost if too many wait.
    pub(super) fn push(&mut self, event: Event) {
        if self.waiting.len() < self.limit {
            self.waiting.push_back(event);
        } else {
            self.lost += 1;
        }
    }

    /// Writes what waits, in the name of the own Node. What was lost is recorded behind what was not, which is older.
    pub(super) fn write(&mut self, boot: &str, node: &NodeRef) -> Written {
        if self.waiting.is_empty() {
            return Written::Nothing;
        }
        let lost = self.lost - self.lost_before;
        let of_lost = (lost > 0).then_some(Event::Lost { events: lost });
        let events: Vec<Event> = self.waiting.iter().cloned().chain(of_lost).collect();
        match self.trail.append(unix_millis(), boot, node, &events) {
            Ok(head) => {
                self.waiting.clear();
                self.lost_before = self.lost;
                let recovered = std::mem::take(&mut self.failed).then_some(lost);
                Written::All { head, recovered }
            }
            Err(error) => {
                let before = std::mem::replace(&mut self.failed, true);
                Written::Failed(Some(error).filter(|_| !before))
            }
        }
    }

    /// Whether the last write failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Events that could not be written.
    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Where the trail ends.
    pub(super) const fn head(&self) -> Head {
        self.trail.head()
    }
}

/// What is recorded about the state in which a trail was found.
fn of_opening(Opening { torn, damaged }: Opening) -> impl Iterator<Item = Event> {
    let damaged = damaged.map(|(file, lines)| Event::Damaged { file, lines });
    let torn = (torn > 0).then_some(Event::Repaired { bytes: torn });
    damaged.into_iter().chain(torn)
}

/// Milliseconds since 1970; zero if the clock is before that.
pub(super) fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
