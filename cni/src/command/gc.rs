//! GC: releases what belongs to no attachment that the runtime lists.

use std::collections::BTreeSet;

use linux::veth;

use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::store::{AttachLock, Store};

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
    let mut failed = Vec::new();
    let mut kept = BTreeSet::new();
    for stored in store.all()? {
        if stay.contains(&stored.host_link) {
            kept.insert(stored.host_link);
            continue;
        }
        let released =
            veth::detach(&stored.host_link).map_err(CniError::from).and_then(|_| store.release(&stored));
        failed.extend(released.err());
    }
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
