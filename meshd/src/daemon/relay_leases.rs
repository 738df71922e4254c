//! This node's leases at relays: what the pure part of them needs to know, and what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::PeerId;
use plan::admission::Admission;
use plan::leases::{Answer, LeasedPort, Leases, RelayView, Request, Trouble};
use plan::node::NodeUid;
use tracing::info;

use crate::channel::Message;
use status::LeaseStatus;

/// All leases of this node.
#[derive(Debug, Default)]
pub(super) struct RelayLeases {
    /// None before the UID of the own Node is known.
    leases: Option<Leases>,
    /// What was logged last of each.
    logged: BTreeMap<(NodeUid, Slot), LeasedPort>,
}

impl RelayLeases {
    /// Takes who is in the mesh, which slots of peers need a relay, and which have a path. A session says little about a
    /// relay: it outlives the relay by minutes. `round_trip` is none if the last probe was not answered.
    pub(super) fn update(
        &mut self,
        admission: &Admission,
        needs_relay: impl Fn(&NodeUid, Slot) -> bool,
        is_up: impl Fn(&NodeUid, Slot) -> bool,
        round_trip: impl Fn(&NodeUid) -> Option<Duration>,
    ) {
        let Some(own) = &admission.world.own else { return };
        let leases = self.leases.get_or_insert_with(|| Leases::new(own.uid.clone()));
        let mut relays = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        for member in admission.world.peers.values() {
            if member.relay {
                let round_trip = round_trip(&member.uid);
                let reachable = Slot::ALL.into_iter().any(|slot| is_up(&member.uid, slot));
                relays.insert(member.uid.clone(), RelayView { round_trip, reachable });
            }
            let needed = Slot::ALL.into_iter().filter(|slot| needs_relay(&member.uid, *slot));
            wanted.extend(needed.map(|slot| (member.uid.clone(), slot)));
        }
        if relays.is_empty() {
            wanted.clear();
        }
        leases.set_wanted(wanted);
        leases.set_relays(relays);
        let uids: BTreeSet<&NodeUid> = admission.world.peers.values().map(|member| &member.uid).collect();
        leases.retain(|uid| uids.contains(uid));
    }

    /// The relay and its port that lead to a peer's slot.
    pub(super) fn address(&self, peer: &NodeUid, slot: Slot) -> Option<LeasedPort> {
        self.leases.as_ref()?.address(peer, slot)
    }

    /// The peer does not answer over the relay.
    pub(super) fn doubt(&mut self, now: Duration, peer: &NodeUid, slot: Slot) {
        if let Some(leases) = &mut self.leases {
            leases.doubt(now, peer, slot);
        }
    }

    /// Nothing has come from the peer over the relay for a while.
    pub(super) fn ask(&mut self, now: Duration, peer: &NodeUid, slot: Slot) {
        if let Some(leases) = &mut self.leases {
            leases.ask(now, peer, slot);
        }
    }

    /// Takes what a relay says about a peer.
    pub(super) fn receive(
        &mut self,
        now: Duration,
        relay: &PeerId,
        peer: &PeerId,
        slot: Slot,
        answer: Answer,
    ) {
        if let Some(leases) = &mut self.leases {
            leases.receive(now, &NodeUid::new(relay.as_str()), &NodeUid::new(peer.as_str()), slot, answer);
        }
    }

    /// The messages that are due.
    pub(super) fn poll(&mut self, now: Duration) -> Vec<(PeerId, Message)> {
        let Some(leases) = &mut self.leases else { return Vec::new() };
        let message = |Request { relay, peer, slot, question }: Request| {
            let peer = PeerId::new(peer.as_str());
            (PeerId::new(relay.as_str()), Message::ToRelay { peer, slot, question })
        };
        leases.poll(now).into_iter().map(message).collect()
    }

    /// When the next one is due.
    pub(super) fn due(&self, now: Duration) -> Option<Duration> {
        self.leases.as_ref()?.due(now)
    }

    /// Logs leases that are new.
    pub(super) fn report(&mut self, admission: &Admission) {
        let Some(leases) = &self.leases else { return };
        let name = |uid: &NodeUid| admission.world.name_of(uid.as_str()).cloned();
        let mut found = BTreeMap::new();
        for member in admission.world.peers.values() {
            for slot in Slot::ALL {
                if let Some(port) = leases.address(&member.uid, slot) {
                    found.insert((member.uid.clone(), slot), port);
                }
            }
        }
        for ((uid, slot), leased) in &found {
            if self.logged.get(&(uid.clone(), *slot)) == Some(leased) {
                continue;
            }
            if let (Some(node), Some(relay)) = (name(uid), name(&leased.relay)) {
                info!(event = "Leased", %node, %slot, %relay, port = leased.port, "reachable over a relay");
            }
        }
        self.logged = found;
    }

    /// The leases, and those that are looked for.
    pub(super) fn status(&self, admission: &Admission) -> Vec<LeaseStatus> {
        let Some(leases) = &self.leases else { return Vec::new() };
        let name = |uid: &NodeUid| admission.world.name_of(uid.as_str()).map(ToString::to_string);
        let mut all = Vec::new();
        for (node, member) in &admission.world.peers {
            for slot in Slot::ALL {
                let place = leases.address(&member.uid, slot);
                let trouble = leases.trouble(&member.uid, slot).map(trouble_text);
                if place.is_some() || trouble.is_some() {
                    all.push(LeaseStatus {
                        node: node.to_string(),
                        slot,
                        port: place.as_ref().map(|place| place.port),
                        relay: place.and_then(|place| name(&place.relay)),
                        trouble,
                    });
                }
            }
        }
        all
    }
}

fn trouble_text(trouble: Trouble) -> String {
    use plan::leases::Refusal;
    match trouble {
        Trouble::NoRelay => {
            "no-relay: no member has the label meshd.node-restriction.kubernetes.io/relay=true"
        }
        Trouble::Unreachable => "relay-unreachable: the tunnels to all relays are down",
        Trouble::Silent => "relay-unreachable: the relay does not answer",
        Trouble::Refused(Refusal::Full | Refusal::TooMany) => {
            "relay-full: the relay has no ports left for it"
        }
        Trouble::Refused(Refusal::Off | Refusal::NotAMember) => {
            "relay-refused: the relay does not serve this pair"
        }
        Trouble::Alone => "no-answer: the other node did not come to the relay",
        Trouble::NothingPasses => "relay-unreachable: nothing passes; are the relay's UDP ports open?",
    }
    .to_owned()
}
