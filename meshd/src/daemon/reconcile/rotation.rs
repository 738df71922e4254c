//! The inputs of the rotation and the audit trail, and what the loop does for them.

use std::collections::BTreeMap;
use std::time::Duration;

use keyring::audit::NodeRef;
use keyring::pq::Entry;
use keyring::rotation::{Cause, Input, PeerId, Rotation, Stance, drained_between, slot_for};
use keyring::{PerSlot, PublicKey, Slot};
use plan::admission::{Admission, Member, Own};
use plan::backoff::Attempt;
use plan::desired::Setup;
use plan::network::Network;
use plan::node::NodeUid;
use plan::publication;
use plan::turn::{answer_counts, renew_for_backend};
use tokio::time::Instant;
use tracing::{info, warn};
use wireguard::DeviceState;

use super::{CHANNEL, Reconciler};
use crate::chain::Chain;
use crate::channel::{ReceivedMessage, SocketError};
use crate::daemon::changes::Changes;
use crate::daemon::devices::peer_state;
use crate::daemon::outcome::{Spliced, name_or_uid};
use crate::daemon::peer_channel::PeerMessage;
use crate::daemon::pq;
use crate::daemon::stripped::{self, Change};

/// After how long without a handshake no packet passes to a peer: a session ends after 180 s, and a hello of the preshared
/// keys starts a new one within a minute.
const SESSION_ENDED_AFTER: Duration = Duration::from_mins(4);

/// What the peers were given with to who keeps something about them: with anything else all are given again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SetWith {
    own: Option<Own>,
    stance: Option<Stance>,
    keys: PerSlot<PublicKey>,
}

impl Reconciler {
    /// Gives the rotation, the preshared keys and the control channel the present peers and what they announce: those that are
    /// others than at the last time, if that is known and nothing else is another.
    pub(super) fn set_peers(&mut self, admission: &Admission, spliced: Option<&Spliced>) {
        if let Some(uid) = self.cluster.own_uid() {
            self.keys.set_identity(uid);
        }
        self.keys.set_renewal(admission.world.own.as_ref().and_then(|own| own.renewal));
        let stance = self.keys.stance();
        let set_with =
            SetWith { own: admission.world.own.clone(), stance: stance.clone(), keys: self.keys.public() };
        let former = self.set_with.replace(set_with);
        if let Some(changes) = spliced.filter(|_| former == self.set_with).map(Spliced::changes) {
            self.peer_channel.set_changed(&changes);
            for peer in changes.ids() {
                if !self.peer_channel.is_peer(&peer) {
                    self.peer_clocks.remove(&peer);
                }
            }
            self.pairs.set_changed(&changes, stance, &mut self.keys);
            let stances = changes.members.iter().map(|(_, member)| publication::stance(member));
            self.keys.set_changed_stances(&changes.gone, stances);
        } else {
            self.peer_channel.set_members(admission, &self.keys);
            self.peer_clocks.retain(|peer, _| self.peer_channel.is_peer(peer));
            self.pairs.set_peers(admission, stance, &mut self.keys);
            self.keys.set_stances(admission.world.peers.values().map(publication::stance));
        }
        // Without an audit trail nothing is done that would have to be recorded in it.
        self.keys.handle(Input::Connected(self.is_connected() && self.audit.is_kept()));
    }

    /// The slot to send to each peer on, by what both announce, which slots have a session, and which paths there are.
    pub(super) fn steer(&mut self, admission: &Admission) -> BTreeMap<NodeUid, Slot> {
        let Some(own) = self.keys.stance() else { return BTreeMap::new() };
        let states = PerSlot::from_fn(|slot| self.devices.state(slot).map(|(_, state)| state));
        self.show(admission, &states);
        self.find_paths(admission, &states);
        self.tell_whereabouts(admission);
        self.update_relays(admission, &states);
        self.note_traffic(admission, &states);
        let now = self.started.elapsed();
        let members = admission.world.peers.values();
        let slot = |member: &Member| (member.uid.clone(), self.steer_member(now, &own, &states, member));
        let steer = members.map(slot).collect();
        self.looks.seen = states;
        steer
    }

    /// The slot to send to a peer on.
    pub(super) fn steer_member(
        &self,
        now: Duration,
        own: &Stance,
        states: &PerSlot<Option<DeviceState>>,
        member: &Member,
    ) -> Slot {
        let answers = PerSlot::from_fn(|slot| {
            peer_state(states, member, slot).is_some_and(|peer| peer.since_handshake.is_some())
        });
        let wanted = slot_for(own, &publication::stance(member), answers);
        // A slot that one end drains is not used, whatever its path.
        let drained = drained_between(own, &publication::stance(member)).is_some();
        let wanted = if drained { wanted } else { self.paths.steer(now, &member.uid, wanted) };
        self.pairs.steer(&member.uid.peer_id(), wanted)
    }

    /// Shows the state machines of preshared keys what the devices have.
    fn show(&mut self, admission: &Admission, states: &PerSlot<Option<DeviceState>>) {
        let shown = |slot: Slot, own: &PublicKey, peer: &PublicKey| {
            let state = states.get(slot).as_ref().filter(|state| state.key == Some(*own))?;
            let peer = state.peers.get(peer)?;
            Some(Entry { preshared: peer.config.preshared, handshake: peer.since_handshake.is_some() })
        };
        let own = self.keys.public();
        self.pairs.observe(pq::entries(admission, &own, shown), &mut self.keys);
    }

    /// Keeps the control channel's sockets in place, and tells the rotation on which slots packets arrive.
    pub(super) async fn update_channel(&mut self, now: Duration, desired: &Network) {
        match self.peer_channel.update_sockets(&self.host, desired).await {
            Ok((busy, bound)) => {
                self.side_tasks.succeeded(&CHANNEL);
                for slot in busy {
                    self.keys.handle(Input::SlotTraffic(slot));
                }
                for (slot, outcome) in bound.iter() {
                    self.report_socket(now, slot, outcome.as_ref().err());
                }
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(now, CHANNEL, cause.clone()) {
                    warn!(
                        event = "ControlChannelUnavailable",
                        error = cause,
                        "the control channel can't be opened"
                    );
                }
            }
        }
        self.tick();
    }

    /// Logs once why a slot has no control channel.
    fn report_socket(&mut self, now: Duration, slot: Slot, error: Option<&SocketError>) {
        let subject = Attempt::Task(match slot {
            Slot::A => "control-channel-a",
            Slot::B => "control-channel-b",
        });
        let Some(error) = error else {
            self.side_tasks.succeeded(&subject);
            return;
        };
        let cause = Chain(error).to_string();
        if self.side_tasks.failed(now, subject, cause.clone()) {
            warn!(
                event = "ControlChannelUnavailable", %slot, error = cause,
                "control channel not available on this slot; retrying"
            );
        }
    }

    /// Takes a message from a peer.
    pub(in crate::daemon) fn receive(&mut self, received: &ReceivedMessage) {
        match self.peer_channel.receive(received) {
            Some(PeerMessage::Rotation(input)) => {
                let input = self.qualify(input);
                self.keys.handle(input);
                self.peer_channel.send_asks(self.keys.take_asks());
            }
            Some(PeerMessage::Preshared(peer, over, message)) => {
                self.pairs.receive(&peer, over, message, &mut self.keys);
                self.peer_channel.send_preshared(self.pairs.take_messages());
            }
            Some(PeerMessage::Clock(peer, time)) => drop(self.peer_clocks.insert(peer, time)),
            Some(PeerMessage::Forged(peer, slot, count)) => self.take_forged(&peer, slot, count),
            Some(PeerMessage::ToRelay(from, peer, slot, question)) => {
                self.answer_as_relay(&from, &peer, slot, question);
            }
            Some(PeerMessage::FromRelay(from, peer, slot, answer)) => {
                self.take_from_relay(&from, &peer, slot, answer);
            }
            Some(PeerMessage::Here(peer, list)) => self.take_here(&peer, &list),
            Some(PeerMessage::Locate(from, peer, list)) => self.answer_locate(&from, &peer, &list),
            Some(PeerMessage::Meet(peer, list)) => self.take_meet(&peer, &list),
            Some(PeerMessage::AuditHead(peer, end)) => self.audit.record_peer_head(&peer, &end),
            Some(PeerMessage::Echo(peer, over, nonce, mtu)) => {
                self.take_verified_echo(&peer, over, nonce, received.from);
                // Its round may end sooner for it.
                self.looks.probed.1 =
                    self.peer_channel.probes_due_after(&peer).into_iter().chain(self.looks.probed.1).min();
                self.step_wanted |= self.paths.echo(&NodeUid::new(peer.as_str()), over, nonce) || mtu;
            }
            Some(PeerMessage::Seen(peer, over, endpoint)) => self.take_seen(&peer, over, endpoint),
            Some(PeerMessage::Invitation(peer, slot)) => {
                self.step_wanted |=
                    self.paths.invite(self.started.elapsed(), &NodeUid::new(peer.as_str()), slot);
            }
            None => {}
        }
    }

    /// An answer to the rotation counts only when this node has left the slot as well, and says whether the slot is as
    /// protected as configured.
    fn qualify(&self, input: Input) -> Input {
        let Input::Answer { peer, nonce, seen, tx, over, .. } = input else { return input };
        if !answer_counts(self.keys.journal().drain(), self.peer_channel.tx(&peer)) {
            return Input::PeerAlive(peer);
        }
        let protected = self.pairs.protects(&peer, over);
        Input::Answer { peer, nonce, seen, tx, over, protected }
    }

    /// Reports once which backend was selected. Devices of another backend are replaced as keys are: slot by slot, and never
    /// one that traffic is on.
    pub(super) fn settle_backend(&mut self, now: Duration) {
        if self.cluster.own_record().is_none() {
            return;
        }
        if let Some(message) = self.outcome.take_choice() {
            self.send_event(false, "BackendSelected", message);
        }
        let outdated = Slot::ALL.into_iter().any(|slot| self.devices.is_outdated(slot));
        let rotating = self.keys.rotation().is_none_or(Rotation::busy);
        if renew_for_backend(outdated, rotating, !self.outcome.failures.is_empty(), self.renewed, now) {
            info!(
                event = "BackendOutdated",
                "a device runs on another backend than the selected one; rotating its slot to recreate it"
            );
            self.renewed = Some(now);
            self.keys.handle(Input::Rotate(Cause::Request));
        }
    }

    /// Reports to which peers pods' packets pass without a preshared key although both ends want one.
    pub(super) fn report_stripped(&mut self, now: Duration, admission: &Admission, setup: &Setup) {
        let peers = &admission.world.peers;
        let without_key = |member: &&Member| {
            let carrying = setup.carrying_slot(member);
            carrying.is_some_and(|slot| self.pairs.lacks_key(&member.uid.peer_id(), slot))
        };
        let without_key: Vec<&Member> = peers.values().filter(without_key).collect();
        // The devices are read only if there is such a peer: with many peers that takes long.
        let states = if without_key.is_empty() {
            PerSlot::from_fn(|_| None)
        } else {
            PerSlot::from_fn(|slot| self.devices.state(slot).map(|(_, state)| state))
        };
        let has_session = |member: &Member| {
            let slot = setup.carrying_slot(member)?;
            let peer = peer_state(&states, member, slot)?;
            Some(peer.since_handshake? < SESSION_ENDED_AFTER)
        };
        let passing = without_key.into_iter().filter(|member| has_session(member).unwrap_or(false));
        let stripped = passing.map(|member| member.uid.peer_id()).collect();
        let name = |peer: &PeerId| name_or_uid(admission, peer);
        for change in self.outcome.stripped.update(now, &stripped) {
            match change {
                Change::Stripped(peer) => warn!(
                    event = "PresharedKeyStripped", node = name(&peer), peer_uid = %peer,
                    "pods' packets pass without a preshared key although both nodes want one; is a UDP port blocked?"
                ),
                Change::Restored(peer) => info!(
                    event = "PresharedKeyRestored", node = name(&peer), peer_uid = %peer,
                    "preshared key: pods' packets no longer pass without one"
                ),
            }
        }
        if self.cluster.own_record().is_none() {
            return;
        }
        let Some(announced) = self.outcome.stripped.take_announcement(now) else { return };
        let names: Vec<String> = announced.iter().map(name).collect();
        let warning = !names.is_empty();
        let reason = if warning { "PresharedKeysStripped" } else { "PresharedKeysRestored" };
        self.send_event(warning, reason, stripped::message(&names));
    }

    /// Writes what happened to keys to the audit trail, and its head to peers and the API server.
    pub(super) fn record_audit(&mut self, admission: &Admission, changes: Option<&Changes<'_>>) {
        self.audit.witness(admission, changes);
        self.write_audit();
    }

    /// Writes what is not written yet.
    pub(super) fn write_audit(&mut self) {
        self.audit.record_own(&self.keys.take_notes(), self.keys.journal().generation);
        let Some(own) = self.cluster.own_record() else { return };
        let node = NodeRef { uid: own.uid.peer_id(), name: own.name.to_string() };
        self.audit.account_for_lost_keys(&node.uid, &self.keys);
        self.audit.write(&node);
        (self.outcome.counters.audit_omitted, self.outcome.counters.audit_lost) = self.audit.missing();
        if let Some(head) = self.audit.take_announcement() {
            self.peer_channel.send_head(&head);
        }
        if let Some(head) = self.audit.take_anchor() {
            let message = format!(
                "generation {}; the audit trail ends at line {} with {head}",
                self.keys.journal().generation,
                head.seq
            );
            let blocked = self.keys.rotation().is_some_and(|rotation| rotation.blocked().is_some());
            let reason = if blocked { "RotationBlocked" } else { "KeysRotated" };
            self.send_event(blocked, reason, message);
        }
    }

    /// Runs what is due in the rotation and the preshared keys.
    pub(in crate::daemon) fn tick(&mut self) {
        self.keys.handle(Input::Tick);
        self.peer_channel.send_asks(self.keys.take_asks());
        self.pairs.tick(&mut self.keys);
        self.peer_channel.send_preshared(self.pairs.take_messages());
        self.looks.wanted |= self.paths_due().is_some_and(|due| due <= Instant::now());
        self.ask_relays();
        self.probe();
        self.step_verification();
    }

    /// Sends the probes that are due. With many peers that takes long, so that it is done for all that is due in a while at once.
    fn probe(&mut self) {
        let now = Instant::now();
        if self.looks.probed.0.is_some_and(|at| now < at + self.between_probes()) {
            return;
        }
        self.step_wanted |= self.peer_channel.send_probes();
        self.looks.probed = (Some(now), self.peer_channel.probes_due());
    }

    /// How often the probes are looked after at most.
    fn between_probes(&self) -> Duration {
        const FOR_MANY: Duration = Duration::from_millis(100);
        const MANY: usize = 256;
        if self.outcome.admission().world.peers.len() > MANY { FOR_MANY } else { Duration::ZERO }
    }

    /// When the probes want to be looked after.
    fn probes_due(&self) -> Option<Instant> {
        let (last, next) = self.looks.probed;
        Some(next?.max(last? + self.between_probes()))
    }

    /// When the next of that is due.
    pub(in crate::daemon) fn due(&self) -> Option<Instant> {
        let leases = self.leases.due(self.started.elapsed()).map(|at| self.started + at);
        // What is due already is asked for by `take_turn`.
        let paths = self.paths_due().filter(|at| *at > Instant::now());
        let verification = self.verification_due();
        let further = leases.into_iter().chain(paths).chain(self.probes_due()).chain(verification);
        self.keys.due().into_iter().chain(self.pairs.due()).chain(further).min()
    }

    /// Whether a look is wanted now, if no turn is; the request is cleared.
    pub(in crate::daemon) const fn take_look(&mut self) -> bool {
        std::mem::replace(&mut self.looks.wanted, false)
    }

    /// Whether a turn is wanted now; the request is cleared.
    pub(in crate::daemon) fn take_turn(&mut self) -> bool {
        let (keys, pairs) = (self.keys.take_turn(), self.pairs.take_turn());
        // A step may have become due while the loop was busy with something else.
        self.step_wanted |= self.paths_due().is_some_and(|due| due <= Instant::now());
        keys || pairs || std::mem::replace(&mut self.step_wanted, false)
    }
}
