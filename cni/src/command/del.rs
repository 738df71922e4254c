//! DEL: succeeds when nothing is left, even if there was nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use linux::host_ports::{Mapping, conntrack};
use linux::veth;

use crate::attachment::Attachment;
use crate::conf::Conf;
use crate::error::CniError;
use crate::node_file::NodeFile;
use crate::store::{Store, Stored};
use crate::{former_portmap, host_ports};

/// The link is removed first: as long as it exists its addresses must not be reused. Host ports are unmapped before the
/// addresses are free, so that they never lead to another pod.
pub(super) fn run(conf: &Conf, attachment: &Attachment, plugin_dirs: &[PathBuf]) -> Result<(), CniError> {
    veth::detach(&attachment.host_link())?;
    let find = |store: &Store| store.find(attachment);
    let Some(found) = Store::open_existing(&conf.state_dir)?.as_ref().map(find).transpose()? else {
        return Ok(());
    };
    // The store is not locked meanwhile.
    if found.iter().any(|stored| stored.former().is_some()) && conf.names_ports() {
        former_portmap::unmap(conf, attachment, plugin_dirs)?;
    }
    let Some(store) = Store::open_existing(&conf.state_dir)? else { return Ok(()) };
    // What an ADD has reserved meanwhile for the same attachment is not this call's.
    for stored in store.find(attachment)?.into_iter().filter(|stored| found.contains(stored)) {
        if stored.has_ports {
            unmap(conf, &store, std::slice::from_ref(&stored))?;
        }
        store.release(&stored)?;
    }
    Ok(())
}

/// Takes the host ports of attachments out of the node's table. Without the node file there is no daemon, or one of
/// another version, which sets the table itself; after a reboot there is no table.
pub(super) fn unmap(conf: &Conf, store: &Store, leaving: &[Stored]) -> Result<(), CniError> {
    let Ok(node) = NodeFile::read(&conf.node_file) else { return Ok(()) };
    let left: BTreeSet<Mapping> = leaving.iter().flat_map(Stored::mappings).collect();
    let mut mappings = store.mappings()?;
    mappings.retain(|mapping| !left.contains(mapping));
    host_ports::set(mappings, &node)?;
    // What stays would delay a client of the pod that is gone, no more.
    let _ = conntrack::forget(&left);
    Ok(())
}
