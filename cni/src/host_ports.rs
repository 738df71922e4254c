//! The node's table of host ports, as the store has them: set by the plugin with each change, held by the daemon.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use ipnetwork::IpNetwork;
use linux::host_ports::{self, HostPorts, Mapping, OwnPorts, conntrack};
use linux::{FilterState, LastAnswer};

use crate::error::CniError;
use crate::node_file::NodeFile;
use crate::store::Store;

/// How long the daemon waits for the store's lock: a call holds it for milliseconds.
const DAEMON_TIMEOUT: Duration = Duration::from_millis(100);

/// Restores the table if it is not as the store has it, as after another program's `nft flush ruleset`; returns whether it
/// was restored. The table is not read again while neither store nor nftables have changed. A call of the plugin that is at
/// work sets it itself. Without a state directory nothing is known, so nothing is changed.
pub fn hold(
    state_dir: &Path,
    services: &[IpNetwork],
    own: &BTreeSet<OwnPorts>,
    (filters, last_seen): (FilterState, &mut LastAnswer<HostPorts, bool>),
) -> Result<bool, CniError> {
    let Some(mappings) = Store::mappings_unlocked(state_dir)? else { return Ok(false) };
    let ports = HostPorts { mappings, services: services.iter().copied().collect(), own: own.clone() };
    if last_seen.get(filters, &ports, || host_ports::is_in_place(&ports))? {
        return Ok(false);
    }
    // A change may have been under way; only under the lock store and table agree.
    let store = match Store::open_existing_within(state_dir, DAEMON_TIMEOUT) {
        Err(CniError::Locked { .. }) | Ok(None) => return Ok(false),
        Ok(Some(store)) => store,
        Err(error) => return Err(error),
    };
    let ports = HostPorts { mappings: store.mappings()?, ..ports };
    if host_ports::is_in_place(&ports)? {
        return Ok(false);
    }
    host_ports::set(&ports)?;
    // What an earlier table led to a pod comes back to the node.
    let _ = conntrack::forget(&ports.overruled());
    Ok(true)
}

/// Sets the table to these mappings, under the store's lock.
pub(crate) fn set(mappings: BTreeSet<Mapping>, node: &NodeFile) -> Result<(), CniError> {
    Ok(host_ports::set(&table(mappings, node))?)
}

/// The table for these mappings on this node.
pub(crate) fn table(mappings: BTreeSet<Mapping>, node: &NodeFile) -> HostPorts {
    HostPorts { mappings, services: node.service_cidrs.clone(), own: node.own_ports.clone() }
}
