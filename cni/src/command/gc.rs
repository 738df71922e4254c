//! GC: releases what belongs to no attachment that the runtime lists.

use std::collections::BTreeSet;

use linux::veth;

use super::del::unmap;
use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::store::{AttachLock, Store, Stored};

/// Under the exclusive lock, so that no ADD is between reserving its addresses and creating its link.
pub(super) fn run(conf: &Conf) -> Result<(), CniError> {
    // A missing list does not mean that all pods are gone.
    let Some(valid) = &conf.valid else {
        return Err(CniError::Conf {
            option: "cni.dev/valid-attachments",
            expected: "the list of attachments that stay",
        });
    };
    let stay: BTreeSet<String> = valid.iter().map(Attachment::host_link).collect();
    let _lock = AttachLock::exclusive(&conf.state_dir)?;
    let store = Store::open(&conf.state_dir)?;
    let (kept, leaving): (Vec<Stored>, Vec<Stored>) =
        store.all()?.into_iter().partition(|stored| stay.contains(&stored.host_link));
    let kept: BTreeSet<String> = kept.into_iter().map(|stored| stored.host_link).collect();
    let mut failed = release(conf, &store, &leaving);
    // Links without a reservation: of an ADD whose state was lost.
    for link in veth::host_links()?.into_iter().filter(|link| !kept.contains(link) && !stay.contains(link)) {
        failed.extend(veth::detach(&link).err().map(CniError::from));
    }
    match (failed.len(), failed.into_iter().next()) {
        (_, None) => Ok(()),
        (1, Some(error)) => Err(error),
        (count, Some(first)) => Err(CniError::Several { count, source: Box::new(first) }),
    }
}

/// Releases what stands for attachments whose pod is gone; returns how many there were.
pub(super) fn reclaim(conf: &Conf) -> Result<usize, CniError> {
    let _lock = AttachLock::exclusive(&conf.state_dir)?;
    let store = Store::open(&conf.state_dir)?;
    let gone = store.gone()?;
    match release(conf, &store, &gone).into_iter().next() {
        Some(error) => Err(error),
        None => Ok(gone.len()),
    }
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
