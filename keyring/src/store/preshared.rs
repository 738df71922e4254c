//! The preshared keys of all peers on disk, beside the key file, which had them up to version 0.1.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::preshared_log::{self as log, Contents, Place};
use super::{FileStore, Protection, SealingKey, StoreError};
use crate::NodeKeys;
use crate::rotation::PeerId;

/// Its name in the directory of the key file.
const FILE: &str = "preshared.log";
/// Name under which the next one is written before it replaces the current one.
const TEMPORARY: &str = "preshared.log.new";
/// Name of one that was found damaged.
const DAMAGED: &str = "preshared.log.damaged";
/// Names of all files that this store writes besides the key file.
pub const PRESHARED_FILES: [&str; 3] = [FILE, TEMPORARY, DAMAGED];
/// Up to so many peers the file is replaced as a whole, which takes no longer than to append: then it never has a key that is
/// no longer in use.
const REPLACED_UP_TO: usize = 256;
/// How long a file may have keys that are no longer in use.
const ERASED_WITHIN: Duration = Duration::from_mins(1);

/// The open file.
#[derive(Debug)]
pub(super) struct PresharedLog {
    file: File,
    len: u64,
    next: Place,
    /// Since when it has records that are superseded.
    superseded: Option<Duration>,
    /// After a failed write that could not be undone: it must be replaced.
    is_broken: bool,
}

/// A file of preshared keys that was found damaged. The keys with the peers concerned are agreed on anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} had {records} damaged records of preshared keys; it is kept as {}, the {whole} whole ones are in use, and the others are agreed on anew",
    path.display(), kept.display()
)]
pub struct DamagedPreshared {
    /// The file.
    path: PathBuf,
    /// Where it is kept.
    kept: PathBuf,
    /// How many records can't be read.
    records: usize,
    /// How many can.
    whole: usize,
}

#[cfg(test)]
impl PresharedLog {
    pub(super) fn set_file(&mut self, file: File) {
        self.file = file;
    }
}

impl FileStore {
    /// Reads the preshared keys into `keys`, which are those that [`FileStore::load`] has read or new ones. Those in a key file
    /// of version 0.1 are taken over. A damaged file is kept aside; what is whole of it is used. Fails only where the file
    /// can't be read or is not private.
    pub fn load_preshared(&mut self, keys: &mut NodeKeys) -> Result<Option<DamagedPreshared>, StoreError> {
        let path = self.directory.join(FILE);
        let text = super::read_private(&path)?;
        // A version that writes key files with preshared keys has run since: its state is the newer one.
        let from_key_file = !keys.preshared_stored().is_empty();
        let Some(text) = text.filter(|_| !from_key_file) else {
            // Without room for it they stay where they are, until the next time that one changes.
            let _ = self.replace_log(keys, from_key_file);
            return Ok(None);
        };
        let Contents { kept, is_cut, damaged, whole, next } = log::parse(&text, self.sealing());
        let peers = kept.len();
        for (peer, kept) in kept {
            keys.store_preshared(peer, kept);
        }
        if damaged == 0 && !is_cut && whole == peers {
            let file = OpenOptions::new().write(true).open(&path);
            let file = file.map_err(|source| StoreError::Read { path, source })?;
            let len = text.len() as u64;
            self.log = Some(PresharedLog { file, len, next, superseded: None, is_broken: false });
            return Ok(None);
        }
        let aside = self.directory.join(DAMAGED);
        let damage = (damaged > 0).then(|| DamagedPreshared {
            path: path.clone(),
            kept: aside.clone(),
            records: damaged,
            whole,
        });
        if damage.is_some() {
            std::fs::rename(&path, &aside).map_err(|source| StoreError::Write { path, source })?;
        }
        let _ = self.replace_log(keys, false);
        Ok(damage)
    }

    /// Writes the state of these peers, as `keys` has it. It is on disk when this returns; if it fails, the former state is.
    /// `now` is the time since any fixed moment.
    pub fn store_preshared(
        &mut self,
        keys: &NodeKeys,
        peers: &[PeerId],
        now: Duration,
    ) -> Result<(), StoreError> {
        let all = keys.preshared_peers().count();
        let replaced_up_to = self.replaced_up_to.unwrap_or(REPLACED_UP_TO);
        match &mut self.log {
            Some(log) if !log.is_broken && all > replaced_up_to => {
                let half = log.next.index() >= 2 * all as u64;
                let erase = log.superseded.is_some_and(|since| now >= since + ERASED_WITHIN);
                if half || erase { self.replace_log(keys, false) } else { self.append(keys, peers, now) }
            }
            log => {
                let moves_in = log.is_none();
                self.replace_log(keys, moves_in)
            }
        }
    }

    /// Replaces the file if it has had keys that are no longer in use for a minute.
    pub fn erase_superseded(&mut self, keys: &NodeKeys, now: Duration) -> Result<(), StoreError> {
        let superseded = self.log.as_ref().and_then(|log| log.superseded);
        match superseded {
            Some(since) if now >= since + ERASED_WITHIN => self.replace_log(keys, false),
            _ => Ok(()),
        }
    }

    fn append(&mut self, keys: &NodeKeys, peers: &[PeerId], now: Duration) -> Result<(), StoreError> {
        let path = self.directory.join(FILE);
        let sealing = sealing(&self.protection);
        let Some(log) = &mut self.log else { return Ok(()) };
        let mut next = log.next;
        let records: Vec<_> = peers.iter().map(|peer| (peer, keys.preshared_stored_of(peer))).collect();
        let text = log::render(&records, &mut next, sealing)
            .map_err(|source| StoreError::Seal { path: path.clone(), source })?;
        let written = log.file.write_all_at(&text, log.len).and_then(|()| log.file.sync_data());
        if let Err(source) = written {
            // What is left of it would be taken for a record, and what comes after it for damage.
            log.is_broken = log.file.set_len(log.len).is_err();
            return Err(StoreError::Write { path, source });
        }
        log.len += text.len() as u64;
        log.next = next;
        log.superseded.get_or_insert(now);
        Ok(())
    }

    /// Writes a new file with what is in use. If the preshared keys have been in the key file, they are removed from it.
    fn replace_log(&mut self, keys: &NodeKeys, moves_in: bool) -> Result<(), StoreError> {
        let (path, temporary) = (self.directory.join(FILE), self.directory.join(TEMPORARY));
        let sealing = sealing(&self.protection);
        let sealed = |source| StoreError::Seal { path: path.clone(), source };
        let mut place = Place::first().map_err(sealed)?;
        let header = log::header(&place, sealing.is_some());
        let peers = keys.preshared_peers().map(|peer| (peer, keys.preshared_stored_of(peer)));
        let records: Vec<_> = peers.filter(|(_, kept)| kept.is_some()).collect();
        let records = log::render(&records, &mut place, sealing).map_err(sealed)?;
        let parts: [&[u8]; 2] = [&header, &records];
        let failed = |source| StoreError::Write { path: path.clone(), source };
        let replaced = super::replace(&self.directory, &temporary, &path, &parts);
        let file = match replaced {
            Ok(file) => file,
            Err(source) => {
                let _ = std::fs::remove_file(&temporary);
                return Err(failed(source));
            }
        };
        let len = (header.len() + records.len()) as u64;
        self.log = Some(PresharedLog { file, len, next: place, superseded: None, is_broken: false });
        if moves_in && let Err(error) = self.save(keys) {
            // The key file still has them, and it is the one that is read.
            self.log = None;
            return Err(error);
        }
        Ok(())
    }

    const fn sealing(&self) -> Option<&SealingKey> {
        sealing(&self.protection)
    }
}

const fn sealing(protection: &Protection) -> Option<&SealingKey> {
    match protection {
        Protection::Sealed(key) => Some(key),
        Protection::Tmpfs | Protection::PlainOnDisk => None,
    }
}
