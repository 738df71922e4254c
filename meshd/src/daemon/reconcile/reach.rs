//! Reports of peers that are no longer reached, and of a node that reaches none.

use tracing::{info, warn};

use super::Reconciler;
use crate::daemon::unreached::Change;
use crate::status::Status;

impl Reconciler {
    /// Logs which peers are no longer reached and which are again, and creates an Event when none is.
    pub(in crate::daemon) fn report_unreached(&mut self, status: &Status) {
        let peers = status.peers.iter().map(|peer| (peer.node.as_str(), peer.state));
        for change in self.outcome.unreached.update(self.started.elapsed(), peers) {
            match change {
                Change::Lost(node) => {
                    warn!(event = "PeerUnreachable", node, "a peer does not answer");
                }
                Change::Found(node) => info!(event = "PeerReachable", node, "a peer answers again"),
                Change::NobodyReached => {
                    let message = format!(
                        "none of {} peers answers; check this node's network, and that both UDP ports ({} and {}) are \
                         open",
                        status.peers.len(),
                        self.config.ports.a,
                        self.config.ports.b
                    );
                    warn!(event = "NoPeerReachable", error = message, "no peer answers");
                    self.send_event(true, "NoPeerReachable", message);
                }
                Change::SomebodyReached => {
                    let message = format!("peers: {}", status.reach());
                    info!(event = "PeersReachable", "peers answer again");
                    self.send_event(false, "PeersReachable", message);
                }
            }
        }
    }
}
