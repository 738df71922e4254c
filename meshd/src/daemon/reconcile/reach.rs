//! Reports of peers that are no longer reached, and of a node that reaches none.

use plan::node::NodeName;
use tracing::{info, warn};

use super::Reconciler;
use crate::daemon::unreached::Change;
use status::reach::{Reach, ReachCounts};

impl Reconciler {
    /// Logs which peers are no longer reached and which are again, and creates an Event when none is. Takes the state of each
    /// peer, in the order of the world.
    pub(super) fn report_unreached(&mut self, reaches: &[Reach]) {
        let mut unreached = std::mem::take(&mut self.outcome.unreached);
        let names = self.outcome.admission().world.peers.keys().map(NodeName::as_str);
        let changes = unreached.update(self.started.elapsed(), names.zip(reaches.iter().copied()));
        self.outcome.unreached = unreached;
        for change in changes {
            match change {
                Change::Lost(node) => {
                    warn!(event = "PeerUnreachable", node, "a peer does not answer");
                }
                Change::Found(node) => info!(event = "PeerReachable", node, "a peer answers again"),
                Change::NobodyReached => {
                    let message = format!(
                        "none of {} peers answers; check this node's network, and that both UDP ports ({} and {}) are \
                         open",
                        reaches.len(),
                        self.config.ports.a,
                        self.config.ports.b
                    );
                    warn!(event = "NoPeerReachable", error = message, "no peer answers");
                    self.send_event(true, "NoPeerReachable", message);
                }
                Change::SomebodyReached => {
                    let message = format!("peers: {}", reaches.iter().copied().collect::<ReachCounts>());
                    info!(event = "PeersReachable", "peers answer again");
                    self.send_event(false, "PeersReachable", message);
                }
            }
        }
    }
}
