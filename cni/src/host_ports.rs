//! The node's table of host ports, as the store has them: set by the plugin with each change, held by the daemon.

use std::collections::BTreeSet;
use std::path::Path;

use ipnetwork::IpNetwork;
use linux::host_ports::{self, HostPorts, Mapping, OwnPorts, conntrack};
use linux::{FilterState, LastAnswer};

use crate::error::CniError;
use crate::node_file::NodeFile;
use crate::store::{DAEMON_TIMEOUT, Store, Stored};

/// What the daemon holds the table to.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The plugin's state directory, with the mappings of all pods.
    pub state_dir: &'a Path,
    /// The node file that the plugin has read so far.
    pub node_file: &'a Path,
    /// The ranges of services.
    pub services: &'a [IpNetwork],
    /// Ports on which the node itself listens.
    pub own: &'a BTreeSet<OwnPorts>,
}

/// What became of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Whether it was set, and why.
    pub change: Change,
    /// Mappings without effect, because the node itself listens on the port.
    pub overruled: BTreeSet<Mapping>,
}

/// Why the table was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change {
    /// It was not: it is as it should be.
    #[default]
    None,
    /// The node's own ports or its services have changed since the plugin set it.
    Adapted,
    /// Another program had changed it, as by `nft flush ruleset`.
    Restored,
}

/// Sets the table if it is not as the store and the node have it. It is not read again while neither these nor nftables
/// have changed. A call of the plugin that is at work sets it itself. Without a state directory nothing is known, so nothing
/// is changed.
pub fn hold(
    sources: Sources<'_>,
    (filters, last_seen): (FilterState, &mut LastAnswer<HostPorts, bool>),
) -> Result<Held, CniError> {
    let Sources { state_dir, node_file, services, own } = sources;
    let Some(stored) = Store::all_unlocked(state_dir)? else { return Ok(Held::default()) };
    let mappings = stored.iter().flat_map(Stored::mappings).collect();
    let ports = HostPorts { mappings, services: services.iter().copied().collect(), own: own.clone() };
    let unchanged = Held { change: Change::None, overruled: ports.overruled() };
    if last_seen.get(filters, &ports, || host_ports::is_in_place(&ports))? {
        return Ok(unchanged);
    }
    // A change may have been under way; only under the lock store and table agree.
    let store = match Store::open_existing_within(state_dir, DAEMON_TIMEOUT) {
        Err(CniError::Locked { .. }) | Ok(None) => return Ok(unchanged),
        Ok(Some(store)) => store,
        Err(error) => return Err(error),
    };
    let ports = HostPorts { mappings: store.mappings()?, ..ports };
    let overruled = ports.overruled();
    if host_ports::is_in_place(&ports)? {
        return Ok(Held { change: Change::None, overruled });
    }
    let as_plugin_set = match NodeFile::read(node_file) {
        Ok(node) => host_ports::is_in_place(&table(ports.mappings.clone(), &node))?,
        Err(_) => false,
    };
    host_ports::set(&ports)?;
    // What an earlier table led to a pod comes back to the node.
    let _ = conntrack::forget(&overruled);
    Ok(Held { change: if as_plugin_set { Change::Adapted } else { Change::Restored }, overruled })
}

/// Sets the table to these mappings, under the store's lock.
pub(crate) fn set(mappings: BTreeSet<Mapping>, node: &NodeFile) -> Result<(), CniError> {
    Ok(host_ports::set(&table(mappings, node))?)
}

/// The table for these mappings on this node.
pub(crate) fn table(mappings: BTreeSet<Mapping>, node: &NodeFile) -> HostPorts {
    HostPorts { mappings, services: node.service_cidrs.clone(), own: node.own_ports.clone() }
}
