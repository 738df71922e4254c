//! What was found in nftables, and whether it still counts: nothing there is read twice while it does not change.

use std::collections::BTreeSet;
use std::time::Duration;

use linux::guard::iptables;
use linux::host_ports::{HostPorts, Mapping};
use linux::{FilterState, HostError, LastAnswer};
use plan::network::Accepts;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Filters {
    /// nftables at the beginning of this turn.
    pub(super) state: FilterState,
    accepts: LastAnswer<Accepts, bool>,
    /// Whether the table of host ports was as the store has it.
    pub(super) host_ports: LastAnswer<HostPorts, bool>,
    /// Host ports on which the node itself listens.
    pub(super) overruled: BTreeSet<Mapping>,
}

impl Filters {
    /// Begins a turn. `now` is monotonic.
    pub(super) fn begin_turn(&mut self, now: Duration) {
        self.state = FilterState::read(now);
    }

    /// Whether every chain of iptables that drops packets accepts these.
    pub(super) fn accepts_stand(&mut self, wanted: &Accepts) -> Result<bool, HostError> {
        self.accepts.get(self.state, wanted, || iptables::stand(wanted))
    }
}
