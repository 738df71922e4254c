//! Datagrams that do not authenticate: the sender is told, and sends one by one from then on.

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};
use tracing::warn;
use wireguard::DeviceState;

use super::Reconciler;
use crate::chain::Chain;

impl Reconciler {
    /// Tells peers that many of their datagrams do not authenticate here.
    pub(super) fn report_forged(&mut self, devices: &PerSlot<Option<DeviceState>>) {
        let mut forged = std::mem::take(&mut self.outcome.forged);
        let told = forged.update(self.started.elapsed(), self.forged_counters(devices));
        self.outcome.forged = forged;
        for (node, slot, count) in told {
            if let Some(uid) = self.outcome.uid(&node) {
                self.peer_channel.send_forged(&uid.peer_id(), slot, count);
            }
        }
    }

    /// Sends to a peer one by one, because many datagrams of this node did not authenticate there. A peer that lies slows
    /// down what is sent to itself, and nothing else.
    pub(super) fn take_forged(&mut self, peer: &PeerId, slot: Slot, count: u64) {
        let Some((node, key)) = self.outcome.peer_key(peer, slot) else { return };
        match self.devices.send_singly(slot, key) {
            Ok(true) => warn!(
                event = "UdpOffloadOffForPeer", node, %slot, lost = count,
                "datagrams do not authenticate at a peer; sending them to it one by one, which is slower"
            ),
            Ok(false) => {}
            Err(error) => warn!(
                event = "UdpOffloadOffForPeer", node, %slot, error = %Chain(&error),
                "datagrams do not authenticate at a peer, and can't be sent to it one by one"
            ),
        }
    }
}
