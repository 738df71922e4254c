//! GC: releases what belongs to no attachment that the runtime lists.

use std::collections::BTreeSet;
use std::path::PathBuf;

use linux::veth;

use super::del::unmap;
use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::former_portmap::unmap_all;
use crate::store::{AttachLock, Store, Stored};

/// Under the exclusive lock, so that no ADD is between reserving its addresses and creating its link.
pub(super) fn run(conf: &Conf, plugin_dirs: &[PathBuf]) -> Result<(), CniError> {
    // A missing list does not mean that all pods are gone.
    let Some(valid) = &conf.valid else {
        return Err(CniError::Conf {
            option: "cni.dev/valid-attachments",
            expected: "the list of attachments that stay",
        });
    };
    let stay: BTreeSet<String> = valid.iter().map(Attachment::host_link).collect();
    let goes = |stored: &Stored| !stay.contains(&stored.host_link);
    // The list is from before this call, so it says nothing about a pod that is attached while another plugin runs: only
    // what was there before goes.
    let links_before: BTreeSet<String> = veth::host_links()?.into_iter().collect();
    let before = Store::open(&conf.state_dir)?.all()?;
    let former = before.iter().filter(|stored| goes(stored) && stored.former().is_some()).cloned().collect();
    // Before the locks: another plugin may hang.
    let (done, failed) = unmap_all(conf, former, plugin_dirs);
    let _lock = AttachLock::exclusive(&conf.state_dir)?;
    let store = Store::open(&conf.state_dir)?;
    let (leaving, kept): (Vec<Stored>, Vec<Stored>) = store
        .all()?
        .into_iter()
        .partition(|stored| goes(stored) && before.contains(stored) && is_released(stored, &done));
    let kept: BTreeSet<String> = kept.into_iter().map(|stored| stored.host_link).collect();
    let mut failed: Vec<CniError> = failed.into_iter().collect();
    failed.extend(release(conf, &store, &leaving));
    // Links without a reservation: of an ADD whose state was lost.
    let is_lost = |link: &String| links_before.contains(link) && !kept.contains(link) && !stay.contains(link);
    for link in veth::host_links()?.into_iter().filter(is_lost) {
        failed.extend(veth::detach(&link).err().map(CniError::from));
    }
    match (failed.len(), failed.into_iter().next()) {
        (_, None) => Ok(()),
        (1, Some(error)) => Err(error),
        (count, Some(first)) => Err(CniError::Several { count, source: Box::new(first) }),
    }
}

/// Releases what stands for attachments whose pod is gone; returns how many there were.
pub(super) fn reclaim(conf: &Conf, plugin_dirs: &[PathBuf]) -> Result<usize, CniError> {
    let gone = || -> Result<_, CniError> {
        let lock = AttachLock::exclusive(&conf.state_dir)?;
        let store = Store::open(&conf.state_dir)?;
        let gone = store.gone()?;
        Ok((lock, store, gone))
    };
    // The locks are released before another plugin is called.
    let former = gone()?.2.into_iter().filter(|stored| stored.former().is_some()).collect();
    let (done, failed) = unmap_all(conf, former, plugin_dirs);
    let (_lock, store, mut gone) = gone()?;
    gone.retain(|stored| is_released(stored, &done));
    let failed =
        release(conf, &store, &gone).into_iter().next().or_else(|| failed.filter(|_| gone.is_empty()));
    match failed {
        Some(error) => Err(error),
        None => Ok(gone.len()),
    }
}

/// Whether no rule of another plugin leads to the attachment any more. As long as one may, its addresses are not free: the
/// port would lead to another pod.
fn is_released(stored: &Stored, done: &[Stored]) -> bool {
    stored.former().is_none() || done.contains(stored)
}

/// Releases attachments, all that it can; returns the errors.
fn release(conf: &Conf, store: &Store, leaving: &[Stored]) -> Vec<CniError> {
    let mut failed = Vec::new();
    if leaving.iter().any(|stored| stored.has_ports) {
        failed.extend(unmap(conf, store, leaving).err());
    }
    for stored in leaving {
        let detached = veth::detach(&stored.host_link).map_err(CniError::from);
        failed.extend(detached.and_then(|_| store.release(stored)).err());
    }
    failed
}
