//! The state of all peers at one moment: at intervals that grow with the mesh for the log and for metrics, and for who asks.

use std::time::Duration;

use keyring::{PerSlot, Slot};
use linux::guard;
use plan::admission::Member;
use plan::host::Finding;
use plan::node::NodeName;
use wireguard::{DeviceState, PeerState};

use super::Reconciler;
use crate::daemon::outcome::unix_seconds;
use crate::daemon::probes::PathStats;
use status::pq::{PairStatus, PqSlotStatus};
use status::reach::Reach;
use status::summary::{Facts, Summary, Trouble};
use status::totals::Totals;
use status::{PeerSlotStatus, PeerStatus, Status};

/// The shortest time between two surveys: a little less than the turns' period, so that each of those in a small mesh has one.
const LEAST_INTERVAL: Duration = Duration::from_millis(900);
/// A survey asks each peer's state from several machines; with so much time for each it stays below one percent of a CPU.
const INTERVAL_PER_PEER: Duration = Duration::from_millis(1);
/// In a mesh of so many peers a short status has all of them.
const FEW: usize = 25;
/// Otherwise it has those that are not well, at most so many.
const UNWELL: usize = 50;

/// Which peers a status has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// All.
    All,
    /// Those that are not well, the worst first; all if they are few.
    Unwell,
    /// None.
    None,
}

/// The last survey, and what is summed up from one to the next.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    at: Option<Duration>,
    waiting_for: Vec<String>,
    findings: Vec<Finding>,
    totals: Totals,
}

/// What is known of a peer, in part read from the devices.
struct Known<'a> {
    name: &'a NodeName,
    member: &'a Member,
    facts: Facts<'a>,
    path: PathStats,
    pair: PairStatus,
    preshared: PerSlot<PqSlotStatus>,
    live: PerSlot<Option<&'a PeerState>>,
}

impl Reconciler {
    /// Reports what has changed about peers, and returns the status for metrics, if that is due, or if readiness or a finding about the
    /// host has changed.
    pub(in crate::daemon) fn survey(&mut self) -> Option<Status> {
        let now = self.started.elapsed();
        let count = self.outcome.admission().world.peers.len();
        let interval = INTERVAL_PER_PEER.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        let due = self.surveys.at.is_none_or(|at| now.saturating_sub(at) >= interval.max(LEAST_INTERVAL));
        let waiting_for = self.outcome.not_ready_because();
        let unchanged =
            waiting_for == self.surveys.waiting_for && self.outcome.findings == self.surveys.findings;
        if !due && unchanged {
            return None;
        }
        self.surveys.findings.clone_from(&self.outcome.findings);
        (self.surveys.at, self.surveys.waiting_for) = (Some(now), waiting_for);
        let devices = self.device_states();
        let detail = if self.config.metrics_per_peer { Detail::All } else { Detail::None };
        let mut reaches = Vec::with_capacity(count);
        let status = self.status_from(&devices, detail, &mut reaches);
        self.report_unreached(&reaches);
        self.report_forged(&devices);
        Some(status)
    }

    /// The status as of now.
    pub(in crate::daemon) fn status(&mut self) -> Status {
        self.asked(Detail::All)
    }

    /// The same without peers that are well, unless there are few.
    pub(super) fn short_status(&mut self) -> Status {
        self.asked(Detail::Unwell)
    }

    fn asked(&mut self, detail: Detail) -> Status {
        let devices = self.device_states();
        let mut status = self.status_from(&devices, detail, &mut Vec::new());
        let drops = guard::drops().unwrap_or_default();
        status.guard.dropped_out = drops.outgoing;
        status.guard.dropped_in = drops.incoming;
        status.guard.dropped_spoofed = drops.spoofed;
        status.guard.dropped_closed = drops.closed;
        status
    }

    fn device_states(&mut self) -> PerSlot<Option<DeviceState>> {
        PerSlot::from_fn(|slot| self.devices.state(slot).map(|(_, state)| state))
    }

    /// The status, and whether each peer is reached, in the order of the world.
    fn status_from(
        &mut self,
        devices: &PerSlot<Option<DeviceState>>,
        detail: Detail,
        reaches: &mut Vec<Reach>,
    ) -> Status {
        self.surveys.totals.update(devices);
        let mut summary = Summary::default();
        let mut unwell: Vec<(Trouble, Known<'_>)> = Vec::new();
        let mut peers = Vec::new();
        let all = match detail {
            Detail::All => true,
            Detail::Unwell => self.outcome.admission().world.peers.len() <= FEW,
            Detail::None => false,
        };
        for peer in self.known(devices) {
            summary.add(&peer.facts);
            reaches.push(peer.facts.state);
            if all {
                peers.push(self.peer_status(&peer));
            } else if detail == Detail::Unwell
                && let Some(trouble) = peer.facts.trouble()
            {
                unwell.push((trouble, peer));
            }
        }
        // Stable: by name among equals.
        unwell.sort_by_key(|(trouble, _)| *trouble);
        peers.extend(unwell.iter().take(UNWELL).map(|(_, peer)| self.peer_status(peer)));
        let base = self.outcome.status(&self.config, &self.keys, &self.cluster, (&self.devices, devices));
        Status {
            nat: self.mapping(),
            control: self.peer_channel.status(),
            relay: self.relay.status(),
            leases: self.leases.status(self.outcome.admission()),
            names: self.name_statuses(),
            round_trips: self.peer_channel.round_trips(),
            totals: self.surveys.totals.sum(),
            preshared_refused: self.pairs.refused(),
            stretched_pq_interval: self.pairs.stretched_interval().as_ref().map(Duration::as_secs),
            summary,
            peers,
            ..base
        }
    }

    /// What is known of each peer.
    fn known<'a>(
        &'a self,
        devices: &'a PerSlot<Option<DeviceState>>,
    ) -> impl Iterator<Item = Known<'a>> + use<'a> {
        let now = self.started.elapsed();
        self.outcome.admission().world.peers.iter().map(move |(name, member)| {
            let id = member.uid.peer_id();
            let live = PerSlot::from_fn(|slot| {
                devices.get(slot).as_ref()?.peers.get(&member.state.slots.get(slot).key)
            });
            let since_handshake = live.iter().filter_map(|(_, live)| live.as_ref()?.since_handshake).min();
            let (mut pair, preshared) = self.pairs.status(&id).unwrap_or_default();
            pair.stripped_seconds = self.outcome.stripped.lasted(now, &id).as_ref().map(Duration::as_secs);
            let path = self.peer_channel.path(&member.uid);
            let facts = Facts {
                node: name.as_str(),
                state: Reach::of(since_handshake, self.peer_channel.probe_record(&id)),
                blocked: pair.blocked,
                stripped: pair.stripped_seconds.is_some(),
                full_size_passes: path.full_size,
                mtu: self.outcome.peer_mtu(member),
                protection: preshared.map(|slot| slot.protection),
            };
            Known { name, member, facts, path, pair, preshared, live }
        })
    }

    fn peer_status(&self, peer: &Known<'_>) -> PeerStatus {
        let Known { name, member, facts, path, pair, preshared, live } = peer;
        PeerStatus {
            node: name.to_string(),
            state: facts.state,
            pod_cidrs: member.pod_cidrs.clone(),
            addresses: member.addresses.clone(),
            active: self.outcome.carrying_slot(member),
            mtu: Some(facts.mtu),
            generation: member.state.generation,
            proven: member.is_proven(),
            round_trip_microseconds: path
                .round_trip
                .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            mtu_source: path.source.as_str().to_owned(),
            full_size_passes: facts.full_size_passes,
            pq: *pair,
            slots: PerSlot::from_fn(|slot| {
                let live = *live.get(slot);
                Some(PeerSlotStatus {
                    key: member.state.slots.get(slot).key,
                    endpoint: live
                        .map_or_else(|| self.outcome.endpoint(member, slot), |live| live.config.endpoint),
                    path: self
                        .paths
                        .up(&member.uid, slot)
                        .map(|kind| self.path_text(&member.uid, slot, kind)),
                    handshake_age: live.and_then(|live| live.since_handshake).as_ref().map(Duration::as_secs),
                    last_handshake: live.and_then(|live| live.last_handshake).and_then(unix_seconds),
                    received: live.map_or(0, |live| live.received),
                    sent: live.map_or(0, |live| live.sent),
                    endpoint_drifts: live.map_or(0, |live| live.endpoint_drifts),
                    forged: live.map_or(0, |live| live.forged),
                    pq: *preshared.get(slot),
                })
            }),
        }
    }

    /// The datagrams of each peer's slots that did not authenticate.
    pub(super) fn forged_counters<'a>(
        &'a self,
        devices: &'a PerSlot<Option<DeviceState>>,
    ) -> impl Iterator<Item = (&'a str, Slot, u64)> + use<'a> {
        self.outcome.admission().world.peers.iter().flat_map(move |(name, member)| {
            let forged = |slot: Slot| {
                let live = devices.get(slot).as_ref()?.peers.get(&member.state.slots.get(slot).key)?;
                Some((name.as_str(), slot, live.forged))
            };
            Slot::ALL.into_iter().filter_map(forged)
        })
    }
}
