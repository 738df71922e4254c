//! `meshd verify`: begins a verification, looks after it, and gives its evidence to who has asked.

use std::net::IpAddr;
use std::time::{Duration, Instant as Moment};

use keyring::audit;
use keyring::rotation::{PeerId, Rotation};
use keyring::{PerSlot, PublicKey, Slot};
use plan::annotation::State;
use plan::node::{NodeName, NodeRecord};
use status::PeerStatus;
use status::verify::Progress;
use status::verify::evidence::{
    Control, Evidence, FenceEvidence, GuardEvidence, LARGEST_PROBED, OwnKey, PeerEvidence, SlotEvidence,
    TrailEvidence,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use wireguard::DeviceState;

use super::{Answer, Reconciler};
use crate::chain::Chain;
use crate::daemon::outcome::unix_seconds;
use crate::daemon::verify::{Rounds, Tried, Verification, Wanted, control, trail_evidence};

impl Reconciler {
    /// Begins a verification, or waits for the one that runs.
    pub(super) async fn begin_verification(&mut self, reply: oneshot::Sender<String>) {
        if let Some(running) = &mut self.verification {
            running.replies.push(reply);
            return;
        }
        let now = self.started.elapsed();
        // First: what has been changed may be put back soon.
        let (in_place, error) = self.guard_stands();
        let controls = self.controls().await;
        let escaped = |control: &Control| control.seen.saturating_sub(control.dropped);
        self.guard_owner.leave_out(controls.iter().map(escaped).sum());
        let members = self.outcome.admission().world.peers.values();
        let peers = members.map(|member| {
            let size = self.outcome.peer_mtu(member).min(LARGEST_PROBED);
            (PeerId::new(member.uid.as_str()), size)
        });
        // Numbered apart from other probes, whose answers say nothing here.
        let rounds = Rounds::new(self.keys.jitter_seed() ^ (3 << 62), now, peers);
        let directory = self.config.state_dir.join(audit::DIRECTORY);
        drop(self.api.ask(async move {
            let read = tokio::task::spawn_blocking(move || trail_evidence(&directory)).await;
            Some(Answer::TrailRead(read.unwrap_or_else(|error| TrailEvidence {
                error: Some(error.to_string()),
                ..TrailEvidence::default()
            })))
        }));
        let other = self.cluster.any_other().cloned();
        // With no other Node there is nothing to be forged.
        let fence = other.is_none().then(FenceEvidence::default);
        if let Some(other) = other {
            self.api.try_forgeries(other);
        }
        self.verification = Some(Verification {
            began: now,
            rounds,
            before: PerSlot::from_fn(|slot| self.devices.state(slot).map(|(_, state)| state)),
            guard: GuardEvidence { in_place, error, controls, ..GuardEvidence::default() },
            fence,
            trail: None,
            replies: vec![reply],
        });
        self.step_verification();
    }

    /// Whether the guard is as it should be, read from the kernel, or why that can't be known.
    fn guard_stands(&self) -> (Option<bool>, Option<String>) {
        match self.guard.as_ref().map(|guard| self.guard_owner.is_in_place(guard)) {
            Some(Ok(stands)) => (Some(stands), None),
            Some(Err(error)) => (None, Some(Chain(&error).to_string())),
            None => (None, Some("what it should be is not computed yet".to_owned())),
        }
    }

    /// Tries to send unencrypted packets, for each pod range.
    async fn controls(&self) -> Vec<Control> {
        let own = self.outcome.admission().world.own.as_ref();
        let (addresses, pods) = own.map_or((&[][..], &[][..]), |own| (&own.addresses, &own.pod_cidrs));
        let link = match self.host.link_at(addresses).await {
            Ok(link) => link.ok_or_else(|| "no link has an address of the Node".to_owned()),
            Err(error) => Err(Chain(&error).to_string()),
        };
        let of_range = |range| match &link {
            Ok(link) => control(range, pods, link),
            Err(error) => {
                let (link, error) = ("no link".to_owned(), Some(error.clone()));
                Control { range, link, sent: 0, seen: 0, dropped: 0, error }
            }
        };
        self.config.cluster_cidrs.iter().copied().map(of_range).collect()
    }

    /// Takes the answer to a probe, if it is one of the verification.
    pub(super) fn take_verified_echo(&mut self, peer: &PeerId, over: Slot, nonce: u64, from: IpAddr) {
        let now = self.started.elapsed();
        if let Some(running) = &mut self.verification {
            running.rounds.echo(now, peer, over, nonce, from);
        }
    }

    /// Takes what a task has found for the verification. The loop has nothing to act on.
    pub(super) fn take_verified(&mut self, take: impl FnOnce(&mut Verification)) -> bool {
        if let Some(running) = &mut self.verification {
            take(running);
        }
        false
    }

    /// When the verification wants to be looked after.
    pub(super) fn verification_due(&self) -> Option<Instant> {
        self.verification.as_ref().map(|running| self.started + running.due(self.started.elapsed()))
    }

    /// How far the verification has come.
    pub(super) fn verification_progress(&self) -> Option<Progress> {
        let running = self.verification.as_ref()?;
        let now = self.started.elapsed();
        let (done, of) = running.rounds.progress(now);
        Some(Progress { done, of, seconds: now.saturating_sub(running.began).as_secs() })
    }

    /// Sends the probes that are due, and answers if all is over.
    pub(super) fn step_verification(&mut self) {
        let now = self.started.elapsed();
        let Some(running) = &mut self.verification else { return };
        for Wanted { peer, over, nonce, size } in running.rounds.wanted(now) {
            match size {
                Some(size) => self.peer_channel.send_sized_probe(&peer, over, nonce, size),
                None => self.peer_channel.send_probe(&peer, over, nonce),
            }
        }
        if !running.is_over(now) {
            return;
        }
        if let Some(ended) = self.verification.take() {
            let (evidence, replies) = self.conclude_verification(now, ended);
            let text = serde_json::to_string(&evidence).map(|text| text + "\n").unwrap_or_default();
            for reply in replies {
                // The client may have gone away.
                let _ = reply.send(text.clone());
            }
        }
    }

    fn conclude_verification(
        &mut self,
        now: Duration,
        ended: Verification,
    ) -> (Evidence, Vec<oneshot::Sender<String>>) {
        let Verification { began, rounds, before, guard, fence, trail, replies } = ended;
        let status = self.status();
        let devices = PerSlot::from_fn(|slot| self.devices.state(slot).map(|(_, state)| state));
        let own = announced(self.cluster.own_record());
        let evidence = Evidence {
            node: status.node.clone(),
            uid: self.cluster.own_uid().map(ToString::to_string).unwrap_or_default(),
            version: status.version.clone(),
            taken_at: unix_seconds(std::time::SystemTime::now()).unwrap_or_default(),
            took_milliseconds: u64::try_from(now.saturating_sub(began).as_millis()).unwrap_or(u64::MAX),
            running_seconds: now.as_secs(),
            rotating: self.keys.rotation().is_none_or(Rotation::busy),
            keys: PerSlot::from_fn(|slot| OwnKey {
                announced: own.map(|keys| *keys.get(slot)),
                held: devices.get(slot).as_ref().and_then(|device| device.key),
            }),
            guard: self.guard_evidence(guard),
            fence: fence.unwrap_or_else(|| FenceEvidence {
                other: self.cluster.any_other().map(ToString::to_string),
                ..FenceEvidence::default()
            }),
            trail: trail.unwrap_or_else(|| TrailEvidence {
                error: Some("the audit trail could not be read in time".to_owned()),
                ..TrailEvidence::default()
            }),
            peers: status
                .peers
                .iter()
                .filter_map(|peer| self.peer_evidence(peer, &rounds, (&before, &devices)))
                .collect(),
        };
        (evidence, replies)
    }

    /// The guard at the end. It counts as in place if it was so at the start as well.
    fn guard_evidence(&self, at_start: GuardEvidence) -> GuardEvidence {
        let (mut in_place, mut error) = (at_start.in_place, at_start.error.clone());
        if in_place == Some(true) {
            (in_place, error) = self.guard_stands();
        }
        let owned = self.guard_owner.owning();
        let (record, drops, escaped) = match self.guard_owner.account() {
            Ok(account) => account,
            Err(failed) => {
                let error = Some(Chain(&failed).to_string());
                return GuardEvidence { in_place: None, error, owned, ..at_start };
            }
        };
        let ago = record.repaired.map(|at| Moment::now().saturating_duration_since(at).as_secs());
        GuardEvidence {
            in_place,
            error,
            owned,
            repairs: record.repairs,
            repaired_seconds_ago: ago,
            seen: drops.seen,
            dropped: drops.outgoing,
            escaped,
            arrived: drops.incoming,
            ..at_start
        }
    }

    fn peer_evidence(
        &self,
        peer: &PeerStatus,
        rounds: &Rounds,
        (before, after): (&PerSlot<Option<DeviceState>>, &PerSlot<Option<DeviceState>>),
    ) -> Option<PeerEvidence> {
        let name = NodeName::new(&peer.node);
        let member = self.outcome.admission().world.peers.get(&name)?;
        let id = PeerId::new(member.uid.as_str());
        let shown = announced(self.cluster.record(&name));
        let tried = rounds.of(&id);
        let mtu = peer.mtu.unwrap_or_default();
        let slot = |slot: Slot| {
            let found = peer.slots.get(slot).as_ref();
            let key = member.state.slots.get(slot).key;
            let on = |devices: &PerSlot<Option<DeviceState>>| {
                let peer = devices.get(slot).as_ref()?.peers.get(&key)?;
                Some((peer.sent, peer.received))
            };
            let (then, now) = (on(before), on(after));
            let grown = |of: fn((u64, u64)) -> u64| of(now?).checked_sub(of(then?));
            let Tried { tries, echo, full_size, answered_bytes, .. } = tried.get(slot);
            SlotEvidence {
                announced: shown.map(|keys| *keys.get(slot)),
                held: now.map(|_| key),
                handshake_age: found.and_then(|found| found.handshake_age),
                tries: *tries,
                echo_microseconds: echo.map(|(took, _)| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                echo_from: echo.map(|(_, from)| from),
                full_size_passes: *full_size,
                larger_refused: echo
                    .filter(|_| mtu < LARGEST_PROBED)
                    .and_then(|_| self.peer_channel.refuses(&id, slot, 0, mtu + 1)),
                probed: *answered_bytes,
                sent: grown(|(sent, _)| sent),
                received: grown(|(_, received)| received),
                pq: found.map(|found| found.pq).unwrap_or_default(),
            }
        };
        Some(PeerEvidence {
            node: peer.node.clone(),
            uid: member.uid.to_string(),
            address: self.peer_channel.address(&id),
            active: peer.active,
            mtu,
            pq: peer.pq,
            slots: PerSlot::from_fn(slot),
        })
    }
}

/// The keys that a Node announces.
fn announced(record: Option<&NodeRecord>) -> Option<PerSlot<PublicKey>> {
    let state = State::parse(record?.state.as_deref()?).ok()?;
    Some(state.slots.map(|slot| slot.key))
}
