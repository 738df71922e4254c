//! Tells peers where this node is and takes where they are, over the control channel; asks neighbours about lost peers.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::PeerId;
use plan::admission::{Admission, Member};
use plan::annotation::{Endpoints, MAX_OBSERVED};
use plan::node::NodeUid;
use plan::paths::Kind;
use tracing::{debug, info};

use super::Reconciler;
use crate::channel::Message;

/// After how long a list is told again that is not published yet: at first because a message may be lost.
const TELL_AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_mins(10)];

/// The list that a peer was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToldHere {
    sequence: u64,
    times: usize,
    next: Duration,
}

impl Reconciler {
    /// Tells peers this node's list as long as its Node does not show it, and asks neighbours about peers without a path.
    pub(super) fn tell_whereabouts(&mut self, admission: &Admission) {
        let now = self.started.elapsed();
        let members = &admission.world.peers;
        let published: BTreeMap<&NodeUid, u64> =
            members.values().map(|member| (&member.uid, member.published)).collect();
        self.whereabouts.retain(now, |uid| published.get(uid).copied());
        let Some(list) = self.own_list.clone() else { return };
        let text = list.render();
        let is_shown = self
            .cluster
            .own_record()
            .is_some_and(|record| record.endpoints.as_deref() == Some(text.as_str()));
        let mut former = std::mem::take(&mut self.told_here);
        // A daemon of version 0.1 does not know the message.
        for member in members.values().filter(|member| member.is_proven() && !is_shown) {
            let Some(over) = self.slot_to(&member.uid) else { continue };
            let told = former.remove(&member.uid).filter(|told| told.sequence == list.sequence);
            let times = match told {
                Some(told) if now < told.next => {
                    self.told_here.insert(member.uid.clone(), told);
                    continue;
                }
                Some(told) => told.times + 1,
                None => 0,
            };
            let peer = member.uid.peer_id();
            self.peer_channel.send(&peer, over, &Message::Here(text.clone()));
            let next = now + TELL_AGAIN[times.min(TELL_AGAIN.len() - 1)];
            self.told_here.insert(member.uid.clone(), ToldHere { sequence: list.sequence, times, next });
        }
        self.ask_neighbours(now, admission, &text);
    }

    /// The same between turns, if there is a list to tell or a peer without a path.
    pub(super) fn tell_whereabouts_in_look(&mut self, admission: &Admission) {
        let is_lost = |member: &Member| self.slot_to(&member.uid).is_none();
        let is_telling = self.told_here.values().any(|told| told.times + 1 < TELL_AGAIN.len());
        if is_telling || admission.world.peers.values().any(is_lost) || !self.whereabouts.heard().is_empty() {
            self.tell_whereabouts(admission);
        }
    }

    fn ask_neighbours(&mut self, now: Duration, admission: &Admission, list: &str) {
        let members = &admission.world.peers;
        let is_lost = |member: &&Member| self.slot_to(&member.uid).is_none();
        let ranked = if members.values().any(|member| is_lost(&member)) {
            let mut neighbours: Vec<&Member> = members
                .values()
                .filter(|member| member.is_proven() && self.slot_to(&member.uid).is_some())
                .collect();
            // Those without NAT are most likely to reach the peer; of these not the same ones for every node.
            let own = admission.world.own.as_ref().map(|own| &own.uid);
            let spread = BuildHasherDefault::<DefaultHasher>::default();
            neighbours.sort_by_cached_key(|member| {
                (member.nat || member.reach.mapping.is_mapped(), spread.hash_one((own, &member.uid)))
            });
            let best = neighbours.into_iter().take(plan::whereabouts::ASKED + 1);
            best.map(|member| member.uid.clone()).collect()
        } else {
            Vec::new()
        };
        let proven = members.values().filter(|member| member.is_proven());
        let peers: Vec<(&NodeUid, bool)> =
            proven.map(|member| (&member.uid, self.slot_to(&member.uid).is_some())).collect();
        for (neighbour, peer) in self.whereabouts.ask(now, peers.into_iter(), &ranked) {
            let Some(over) = self.slot_to(&neighbour) else { continue };
            let question = Message::Locate { peer: PeerId::new(peer.as_str()), list: list.to_owned() };
            self.peer_channel.send(&PeerId::new(neighbour.as_str()), over, &question);
        }
    }

    /// A slot with a path to a peer, a direct one if there is one.
    fn slot_to(&self, uid: &NodeUid) -> Option<Slot> {
        let with_path = Slot::ALL.into_iter().filter(|slot| self.paths.up(uid, *slot).is_some());
        with_path.min_by_key(|slot| !self.paths.up(uid, *slot).is_some_and(Kind::is_direct))
    }

    /// The member with this UID, as of the last turn.
    fn member(&self, uid: &NodeUid) -> Option<&Member> {
        self.outcome.admission().world.peers.values().find(|member| member.uid == *uid)
    }

    /// A peer says where it is.
    pub(super) fn take_here(&mut self, peer: &PeerId, list: &str) {
        let uid = NodeUid::new(peer.as_str());
        let Some(published) = self.member(&uid).map(|member| member.published) else { return };
        let now = self.started.elapsed();
        let taken = Endpoints::parse(list).map_err(|error| error.to_string()).and_then(|list| {
            self.whereabouts.here(now, &uid, list, published).map_err(|refused| format!("{refused:?}"))
        });
        match taken {
            Ok(()) => {
                self.step_wanted = true;
                info!(event = "EndpointsTold", peer_uid = %uid, "a peer has told other endpoints than it publishes");
            }
            Err(error) => {
                debug!(event = "EndpointsRefused", peer_uid = %uid, error, "a list of endpoints is refused");
            }
        }
    }

    /// A node has no path to a peer: tells each of them where the other one is.
    pub(super) fn answer_locate(&mut self, from: &PeerId, about: &PeerId, list: &str) {
        self.take_here(from, list);
        let now = self.started.elapsed();
        let (asker, peer) = (NodeUid::new(from.as_str()), NodeUid::new(about.as_str()));
        let is_member = self.member(&peer).is_some_and(Member::is_proven);
        let Some(over) = self.slot_to(&peer).filter(|_| is_member) else { return };
        let Ok(list) = Endpoints::parse(list) else { return };
        if !self.whereabouts.answers(now, &asker, &peer) {
            return;
        }
        // Its path to the peer may have been lost as well, without notice.
        self.paths.meet(now, &peer);
        self.step_wanted = true;
        let told = self.whereabouts.told(&peer).cloned().unwrap_or_default();
        let of_asker = self.as_seen(&asker, list).render();
        self.peer_channel.send(about, over, &Message::Meet { peer: from.clone(), list: of_asker });
        if let Some(over) = self.slot_to(&asker) {
            let of_peer = self.as_seen(&peer, told).render();
            self.peer_channel.send(from, over, &Message::Meet { peer: about.clone(), list: of_peer });
        }
    }

    /// What a peer says of where it is, with where this node sees its datagrams come from: that is authenticated.
    fn as_seen(&self, uid: &NodeUid, mut list: Endpoints) -> Endpoints {
        for slot in Slot::ALL {
            let is_direct = self.paths.up(uid, slot).is_some_and(Kind::is_direct);
            let seen = self.paths.endpoint(uid, slot).filter(|_| is_direct);
            let observed = list.observed.get_mut(slot);
            observed.retain(|socket| Some(*socket) != seen);
            observed.splice(0..0, seen);
            observed.truncate(MAX_OBSERVED);
        }
        list
    }

    /// A neighbour says that a peer looks for this node.
    pub(super) fn take_meet(&mut self, peer: &PeerId, list: &str) {
        let uid = NodeUid::new(peer.as_str());
        if self.member(&uid).is_none() {
            return;
        }
        let now = self.started.elapsed();
        let list = Endpoints::parse(list).unwrap_or_default();
        if self.whereabouts.meet(now, &uid, list) {
            debug!(event = "PeerLooksForUs", peer_uid = %uid, "a neighbour says that a peer has no path to this node");
            self.paths.meet(now, &uid);
            self.step_wanted = true;
        }
    }
}
