//! Relays in the loop: this node as one, and its leases at others.

use keyring::rotation::PeerId;
use keyring::{PerSlot, Slot};
use plan::admission::Admission;
use plan::leases::{Answer, Question};
use plan::node::NodeUid;
use wireguard::DeviceState;

use super::Reconciler;

impl Reconciler {
    /// Starts or stops this node's relay, and tells its leases what has changed.
    pub(super) fn update_relays(&mut self, admission: &Admission, states: &PerSlot<Option<DeviceState>>) {
        self.relay.update(admission, states);
        let (channel, paths) = (&self.peer_channel, &self.paths);
        let needs_relay = |uid: &NodeUid, slot| paths.needs_relay(uid, slot);
        let is_up = |uid: &NodeUid, slot| paths.up(uid, slot).is_some();
        self.leases.update(admission, needs_relay, is_up, |uid| channel.path(uid).round_trip);
        self.leases.report(admission);
        self.ask_relays();
    }

    /// Answers a question to this node as a relay.
    pub(super) fn answer_as_relay(&mut self, from: &PeerId, peer: &PeerId, slot: Slot, question: Question) {
        let uid = NodeUid::new(peer.as_str());
        let is_up = Slot::ALL.into_iter().any(|slot| self.paths.up(&uid, slot).is_some());
        // What was measured before the peer was lost says nothing.
        let distance = self.peer_channel.path(&uid).round_trip.filter(|_| is_up);
        let messages = self.relay.answer(from, peer, slot, question, distance);
        self.peer_channel.send_relayed(messages);
    }

    /// Takes what a relay says.
    pub(super) fn take_from_relay(&mut self, relay: &PeerId, peer: &PeerId, slot: Slot, answer: Answer) {
        let is_member = self.outcome.admission().world.name_of(peer.as_str()).is_some();
        if is_member {
            let uid = NodeUid::new(peer.as_str());
            let former = self.leases.address(&uid, slot);
            self.leases.receive(self.started.elapsed(), relay, peer, slot, answer);
            // A port that was leased can be tried.
            self.step_wanted |= self.leases.address(&uid, slot) != former;
            self.ask_relays();
        }
    }

    /// Sends the questions that are due.
    pub(super) fn ask_relays(&mut self) {
        let messages = self.leases.poll(self.started.elapsed());
        self.peer_channel.send_relayed(messages);
    }
}
