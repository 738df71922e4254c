//! Has contested addresses tested; what the tests say is an input of later turns.

use std::net::SocketAddr;
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::Rotation;
use plan::admission::{Admission, Claim, Evidence, Member};
use plan::turn::Turn;
use tracing::{info, warn};
use tunnel::Initiator;

use super::{Answer, Reconciler};
use crate::daemon::evidence;

impl Reconciler {
    /// Takes what is contested since a turn.
    pub(super) fn contest_addresses(&mut self, now: Duration, turn: &Turn) {
        for claim in self.tests.set_claims(now, &turn.admission.to_test) {
            warn!(
                event = "AddressContested", peer_uid = %claim.uid, address = %claim.address,
                "several Nodes list an address; testing whether this one is there"
            );
        }
    }

    /// Starts the tests that are due. That takes no turn: one liar would have a node compare everything all the time.
    pub(super) fn start_tests(&mut self, now: Duration, admission: &Admission) {
        let members = &admission.world.peers;
        let member = |claim: &Claim| members.values().find(|member| member.uid == claim.uid);
        let busy = self.keys.rotation().is_none_or(Rotation::busy);
        let rotating = |uid: &_| members.values().any(|one| one.uid == *uid && evidence::is_rotating(one));
        for claim in self.tests.start(now, |uid| busy || rotating(uid)) {
            let started = member(&claim).and_then(|member| self.initiator(member));
            let Some((slot, initiator)) = started else {
                self.tests.conclude(now, &claim, false);
                continue;
            };
            let to = SocketAddr::new(claim.address, *claim.ports.get(slot));
            drop(self.api.ask(async move {
                let completed = evidence::is_there(initiator, to, evidence::WAIT).await;
                Some(Answer::AddressTested { claim, slot, completed })
            }));
        }
    }

    /// What a member is tested with: the keys that the device has for it on a slot.
    fn initiator(&self, member: &Member) -> Option<(Slot, Box<Initiator>)> {
        let slot = evidence::slot_to_test(&self.keys, member)?;
        let setup = self.outcome.setup()?;
        let own = self.keys.private(setup.keys.get(slot))?.duplicate();
        let id = setup.preshared.get(&(member.uid.clone(), slot));
        let preshared = id.and_then(|id| self.keys.ring().preshared(id));
        let peer = member.state.slots.get(slot).key;
        Some((slot, Box::new(Initiator::new(own, &peer, preshared))))
    }

    /// Takes the result of a test; returns whether it is news.
    pub(super) fn take_test(&mut self, now: Duration, claim: &Claim, slot: Slot, completed: bool) -> bool {
        let news = self.tests.conclude(now, claim, completed);
        if !self.tests.is_testing(&claim.uid) {
            // The peer may answer to the test's socket until the device sends.
            self.devices.initiate_handshake(slot, claim.keys.get(slot));
        }
        match news {
            Some(Evidence::Proven) => info!(
                event = "AddressProven", peer_uid = %claim.uid, address = %claim.address,
                "a node answers at a contested address"
            ),
            Some(Evidence::Unproven) => warn!(
                event = "AddressUnproven", peer_uid = %claim.uid, address = %claim.address,
                "a node does not answer at a contested address"
            ),
            None => {}
        }
        news.is_some()
    }
}
