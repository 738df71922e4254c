//! The results of the last turn: the status, and the files for the CNI plugin.

mod comparison;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use cni::node_file::NodeFile;
use keyring::rotation::{KeyRecord, Now, PeerId, Rotation, Step};
use keyring::{PerSlot, PublicKey, Slot};
use linux::host_ports::OwnPorts;
use plan::admission::{Admission, AdmissionPart, Member, Rejected};
use plan::cluster::Cluster;
use plan::desired::{Setup, Underlay, peer_mtu, pod_mtu};
use plan::host::Finding;
use plan::network::Network;
use plan::node::{NodeName, NodeUid};
use plan::part::Inputs;
use plan::prefix;
use plan::turn::Turn;
use wireguard::{DeviceState, OffloadStatus};

use super::changes::Changes;
use super::cni_files::{self, ChainedPlugins, CniFilesError};
use super::devices::Devices;
use super::forged::ForgedReports;
use super::keys::Keys;
use super::own_ports::own_ports;
use super::stripped::Stripped;
use super::unreached::Unreached;
use crate::config::Config;
use crate::device::SelectedBackend;
use status::rotation::{KeyStatus, PeerStep, RotationStatus};
use status::{
    ApiStatus, Counters, Fence, FindingStatus, GuardStatus, OffloadUse, RejectedStatus, SlotStatus, Status,
};

/// Whom the guard's table belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TableOwner {
    /// Anybody can change it.
    #[default]
    Nobody,
    /// This process alone can.
    Daemon,
}

/// What a turn has decided about some Nodes, and what was decided about them before.
#[derive(Debug)]
pub(super) struct Spliced {
    pub(super) part: AdmissionPart,
    pub(super) former: AdmissionPart,
}

impl Spliced {
    /// What is other about the members.
    pub(super) fn changes(&self) -> Changes<'_> {
        Changes::between(&self.former.admission().world, &self.part.admission().world)
    }
}

/// The parts of the status that a turn leaves behind.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) api_error: Option<String>,
    pub(super) published: bool,
    /// The state annotation that the own Node showed at the last publication.
    pub(super) shown_state: Option<String>,
    pub(super) fence: Fence,
    pub(super) failures: Vec<String>,
    /// What keeps the mesh from working on this host.
    pub(super) findings: Vec<Finding>,
    /// Pods that another network plugin attached.
    pub(super) pods_outside: usize,
    pub(super) counters: Counters,
    /// Events that found no place in the queue for the API server.
    pub(super) events_dropped: AtomicU64,
    pub(super) missing_protections: Vec<String>,
    damaged_files: Vec<String>,
    /// Backend of new devices.
    chosen: Option<SelectedBackend>,
    /// The same for an Event, until it is sent.
    unsent: Option<String>,
    guard_in_place: bool,
    guard_owner: TableOwner,
    /// How many addresses of Nodes the guard closes.
    closed_addresses: usize,
    /// Addresses on this node's links that are not published because there are too many.
    pub(super) unpublished_addresses: usize,
    /// MTU of each slot's link.
    mtus: PerSlot<u32>,
    admission: Arc<Admission>,
    /// The setup and the paths' MTUs of the last turn: what each peer has of them is computed when asked for.
    computed_with: Option<(Setup, Underlay)>,
    /// The network that follows from them, if the last turn has left the node as it is wanted: the next one can go on from it.
    pub(super) in_place: Option<Network>,
    mtu: u32,
    installed: bool,
    pub(super) chained: ChainedPlugins,
    pub(super) stripped: Stripped,
    pub(super) unreached: Unreached,
    pub(super) forged: ForgedReports,
}

impl Outcome {
    /// No turn has been taken yet.
    pub(super) fn new(chosen: SelectedBackend, damaged_files: Vec<String>) -> Self {
        let unsent = Some(format!("{} selected: {}", chosen.backend, chosen.reason));
        Self { chosen: Some(chosen), unsent, damaged_files, ..Self::default() }
    }

    /// The selected backend and the reason, for an Event; the first time only.
    pub(super) const fn take_choice(&mut self) -> Option<String> {
        self.unsent.take()
    }

    /// Takes the results of a turn, with the part of the admission that it has decided, unless that is all. What was performed
    /// without an error is as desired; `done` says whether that is everything.
    pub(super) fn conclude(&mut self, turn: Turn, done: bool, spliced: Option<&Spliced>, devices: &Devices) {
        let Turn { admission, setup, underlay, desired, observed, .. } = turn;
        self.guard_in_place =
            observed.guard.is_some() || (desired.guard.is_some() && self.failures.is_empty());
        self.closed_addresses = desired.guard.as_ref().map_or(0, |guard| guard.closed.len());
        match spliced {
            Some(Spliced { part, former }) => report_admitted(former.admission(), part.admission()),
            None => report_admitted(&self.admission, &admission),
        }
        self.mtu = pod_mtu(&underlay);
        let mtu = |slot| desired.devices.get(&slot).map(|device| device.mtu).unwrap_or_default();
        self.mtus = PerSlot::from_fn(mtu);
        self.counters.device_restarts = devices.restarts();
        self.computed_with = Some((setup, underlay));
        self.in_place = done.then_some(desired);
        self.admission = admission;
    }

    /// What the network of the last turn was computed from.
    pub(super) fn inputs<'a>(&'a self, part: &'a AdmissionPart) -> Option<Inputs<'a>> {
        let (setup, underlay) = self.computed_with.as_ref()?;
        Some(Inputs { setup, underlay, part })
    }

    /// Who is in the mesh since the last turn.
    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// What the last turn was decided with.
    pub(super) fn setup(&self) -> Option<&Setup> {
        Some(&self.computed_with.as_ref()?.0)
    }

    /// The MTU of the routes to a peer.
    pub(super) fn peer_mtu(&self, member: &Member) -> u32 {
        let computed_with = self.computed_with.as_ref();
        computed_with.map_or(0, |(setup, underlay)| peer_mtu(member, setup, underlay))
    }

    /// The slot that carries pods' packets to a peer.
    pub(super) fn carrying_slot(&self, member: &Member) -> Option<Slot> {
        self.computed_with.as_ref()?.0.carrying_slot(member)
    }

    /// Where datagrams to a peer's slot should go.
    pub(super) fn endpoint(&self, member: &Member, slot: Slot) -> Option<SocketAddr> {
        self.computed_with.as_ref()?.0.path(member, slot).endpoint
    }

    /// Takes what was decided about some Nodes, before the turn has done anything about it: no copy of the rest is made.
    pub(super) fn splice(&mut self, part: AdmissionPart) -> Spliced {
        let former = Arc::make_mut(&mut self.admission).splice(&part);
        Spliced { part, former }
    }

    /// Takes that back, because the turn has come to nothing.
    pub(super) fn undo(&mut self, spliced: &Spliced) {
        Arc::make_mut(&mut self.admission).splice(&spliced.former);
    }

    /// The same, to be held while this changes.
    pub(super) fn shared_admission(&self) -> Arc<Admission> {
        Arc::clone(&self.admission)
    }

    /// The UID of a peer by its node's name.
    pub(super) fn uid(&self, node: &str) -> Option<&NodeUid> {
        self.admission.world.peers.get(&NodeName::new(node)).map(|member| &member.uid)
    }

    /// The name of a peer's node and its public key on a slot.
    pub(super) fn peer_key(&self, id: &PeerId, slot: Slot) -> Option<(String, PublicKey)> {
        let mut peers = self.admission.world.peers.iter();
        let (name, member) = peers.find(|(_, member)| member.uid.as_str() == id.as_str())?;
        Some((name.to_string(), member.state.slots.get(slot).key))
    }

    /// Writes the node file, and once pods can be attached the plugin and its configuration.
    pub(super) fn write_cni_files(&mut self, config: &Config) -> Result<(), CniFilesError> {
        let own = self.admission.world.own.as_ref();
        let waiting = self.waiting_for();
        let pod_cidrs = own.map(|own| own.pod_cidrs.clone()).unwrap_or_default();
        let node = NodeFile {
            ready: waiting.is_empty(),
            reason: (!waiting.is_empty()).then(|| waiting.join("; ")),
            guard: self.guard_in_place,
            cluster_cidrs: config.cluster_cidrs.iter().copied().collect(),
            service_cidrs: config.service_cidrs.iter().copied().collect(),
            own_ports: self.own_ports(config),
            mesh_links: config.links.iter().map(|(_, link)| link.clone()).collect(),
            mesh_addresses: pod_cidrs.iter().map(|pod_cidr| prefix::first_usable(*pod_cidr)).collect(),
            source: self.pod_source(),
            pod_cidrs,
            mtu: self.mtu,
        };
        cni_files::write_node_file(config, &node)?;
        let in_place = self.installed && cni_files::are_there(config) && !self.chained.have_changed();
        // The list names the plugins that are probed; until they are, a former list stays.
        if waiting.is_empty() && !in_place && self.chained.are_probed(&config.cni_bin_dir) {
            let changed = cni_files::install(config, &mut self.chained)?;
            if changed || !self.installed {
                tracing::info!(event = "PodsCanBeAttached", "pods can be attached");
            }
            self.installed = true;
        }
        Ok(())
    }

    /// The address that this node prefers towards its own pods over IPv6.
    pub(super) fn pod_source(&self) -> Option<Ipv6Addr> {
        match self.admission.world.own.as_ref()?.address(false)? {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }
    }

    /// The ports on which this node listens for the mesh.
    pub(super) fn own_ports(&self, config: &Config) -> BTreeSet<OwnPorts> {
        own_ports(config, self.admission.world.own.as_ref().is_some_and(|own| own.relay))
    }

    /// Takes whether the guard is in place where a turn could not observe it.
    pub(super) const fn set_guard_owned(&mut self, owned: bool) {
        self.guard_owner = if owned { TableOwner::Daemon } else { TableOwner::Nobody };
    }

    pub(super) const fn set_guard_in_place(&mut self, in_place: bool) {
        self.guard_in_place = in_place;
    }

    /// What is missing before pods can be attached.
    fn waiting_for(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        if !self.guard_in_place {
            waiting.push("the guard is not in place".to_owned());
        }
        if self.admission.world.own.is_none() {
            waiting.push("no podCIDR has been accepted for this node".to_owned());
        }
        if !self.failures.is_empty() {
            waiting.push("steps failed".to_owned());
        }
        waiting
    }

    /// Why the node is not ready: that, and what keeps the runtime from calling the plugin. Who calls it nevertheless, another
    /// plugin that delegates to it for instance, is served.
    pub(super) fn not_ready_because(&self) -> Vec<String> {
        let preventing = self.findings.iter().filter(|found| found.code.prevents_ready());
        self.waiting_for().into_iter().chain(preventing.map(|found| found.sentence.clone())).collect()
    }

    /// The backend of new devices.
    pub(super) fn backend(&self) -> Option<wireguard::Backend> {
        self.chosen.as_ref().map(|chosen| chosen.backend)
    }

    /// The state of the rotation, with peers by the names of their nodes.
    pub(super) fn rotation(&self, config: &Config, keys: &Keys, now: Now) -> RotationStatus {
        let journal = keys.journal();
        let tally = keys.tally();
        let name = |id: &PeerId| name_or_uid(&self.admission, id);
        let names = |ids: &[PeerId]| ids.iter().map(name).collect();
        let rotation = keys.rotation();
        let key = |slot, record: KeyRecord, state: &str| KeyStatus {
            slot,
            key: record.key,
            state: state.to_owned(),
            generation: record.generation,
            age_seconds: now.unix.saturating_sub(record.created),
        };
        let standby = journal.standby();
        let mut held = vec![
            key(journal.prefer, *journal.slots.get(journal.prefer), "active"),
            key(standby, *journal.slots.get(standby), "standby"),
        ];
        let step = match journal.step {
            Step::Steady => "steady",
            Step::Between => "between",
            Step::Restoring => "restoring",
            Step::Draining { staged, .. } => {
                held.push(key(standby, staged, "new"));
                "draining"
            }
            Step::Verifying { former, .. } => {
                held.extend(former.map(|former| key(standby, former, "former")));
                "verifying"
            }
        };
        RotationStatus {
            node: config.node_name.clone(),
            generation: journal.generation,
            step: step.to_owned(),
            slot: journal.drain(),
            busy: rotation.is_some_and(Rotation::busy),
            waits_for: rotation.map(|rotation| names(&rotation.waits_for())).unwrap_or_default(),
            peers: rotation
                .iter()
                .flat_map(|rotation| rotation.progress())
                .map(|(id, progress)| PeerStep { node: name(id), progress })
                .collect(),
            blocked_by: rotation
                .and_then(Rotation::blocked)
                .map(|(_, peers)| names(peers))
                .unwrap_or_default(),
            finished: tally.finished,
            rolled_back: tally.rolled_back,
            last_milliseconds: tally.last.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            due_in_seconds: rotation
                .and_then(Rotation::due_at)
                .map(|due| due.saturating_sub(now.elapsed).as_secs()),
            keys: held,
        }
    }

    fn guard_status(&self, config: &Config) -> GuardStatus {
        GuardStatus {
            in_place: self.guard_in_place,
            owned: self.guard_in_place && self.guard_owner == TableOwner::Daemon,
            closed_addresses: self.closed_addresses,
            open_node_cidrs: config.open_node_cidrs.clone(),
            ..GuardStatus::default()
        }
    }

    /// The status of this node without its peers.
    pub(super) fn status(
        &self,
        config: &Config,
        keys: &Keys,
        cluster: &Cluster,
        (devices, states): (&Devices, &PerSlot<Option<DeviceState>>),
    ) -> Status {
        let waiting_for = self.not_ready_because();
        // Read once: ages are computed from the same moment that they are shown with.
        let now = keys.now();
        Status {
            node: config.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            taken_at: now.unix,
            backend: self.chosen.as_ref().map(|chosen| chosen.backend.to_string()).unwrap_or_default(),
            backend_reason: self.chosen.as_ref().map(|chosen| chosen.reason.clone()).unwrap_or_default(),
            ready: waiting_for.is_empty(),
            waiting_for,
            generation: keys.journal().generation,
            rotation: self.rotation(config, keys, now),
            slots: PerSlot::from_fn(|slot| {
                let state = states.get(slot).as_ref()?;
                Some(SlotStatus {
                    link: config.links.get(slot).to_string(),
                    key: state.key?,
                    port: state.port,
                    mtu: *self.mtus.get(slot),
                    backend: devices.backend(slot)?.to_string(),
                    offload: devices.offload(slot).map(|OffloadStatus { udp, tun, refused }| OffloadUse {
                        udp,
                        tun,
                        refused,
                    }),
                })
            }),
            pod_cidrs: self.admission.world.own.as_ref().map(|own| own.pod_cidrs.clone()).unwrap_or_default(),
            guard: self.guard_status(config),
            api: ApiStatus {
                listed: cluster.is_listed(),
                error: self.api_error.clone(),
                published: self.published,
                trust_policy: self.fence,
            },
            cni_limited_by: self.chained.limited_by(),
            pending: self.admission.pending.iter().map(ToString::to_string).collect(),
            rejected: self.admission.rejected.iter().map(rejected_status).collect(),
            kept: cluster.kept().map(ToString::to_string).collect(),
            failures: self.failures.clone(),
            pods_outside: self.pods_outside,
            findings: self.findings.iter().map(finding_status).collect(),
            missing_protections: self.missing_protections.clone(),
            damaged_files: self.damaged_files.clone(),
            tunnel_dropped: devices.dropped(),
            counters: Counters {
                brakes: cluster.brakes(),
                events_dropped: self.events_dropped.load(Ordering::Relaxed),
                ..self.counters
            },
            // The peers, the relay's part and the control channel are added by who has them.
            ..Status::default()
        }
    }
}

/// Logs who was refused, has joined and has left since a former admission of the same Nodes.
fn report_admitted(former: &Admission, admission: &Admission) {
    for rejected in &admission.rejected {
        if !former.rejected.contains(rejected) {
            let (node, code, stays) = (&rejected.node, rejected.reason.code(), rejected.stays);
            tracing::warn!(
                event = "NodeRejected", %node, reason = code, stays, error = %rejected.reason,
                "rejected"
            );
        }
    }
    let peers = &admission.world.peers;
    for (name, member) in peers {
        if former.world.peers.get(name).is_none_or(|former| former.uid != member.uid) {
            tracing::info!(event = "PeerJoined", node = %name, peer_uid = %member.uid, "joined the mesh");
        }
    }
    for name in former.world.peers.keys().filter(|name| !peers.contains_key(*name)) {
        tracing::info!(event = "PeerLeft", node = %name, "left the mesh");
    }
}

/// The name of a peer's node; its UID if it is no longer a peer.
pub(super) fn name_or_uid(admission: &Admission, id: &PeerId) -> String {
    admission.world.name_of(id.as_str()).map_or_else(|| id.to_string(), ToString::to_string)
}

fn finding_status(found: &Finding) -> FindingStatus {
    FindingStatus {
        code: found.code.as_str().to_owned(),
        sentence: found.sentence.clone(),
        fix: found.fix.clone(),
    }
}

fn rejected_status(rejected: &Rejected) -> RejectedStatus {
    RejectedStatus {
        node: rejected.node.to_string(),
        code: rejected.reason.code().to_owned(),
        reason: rejected.reason.to_string(),
        stays: rejected.stays,
    }
}

pub(super) fn unix_seconds(at: SystemTime) -> Option<u64> {
    at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use plan::admission::{AdmissionPolicy, Ledger};
    use plan::node::NodeRecord;

    use super::*;

    fn record(name: &str) -> NodeRecord {
        NodeRecord { name: NodeName::new(name), uid: NodeUid::new(name), ..NodeRecord::default() }
    }

    #[test]
    fn a_part_is_taken_and_taken_back_without_a_copy_of_the_rest() {
        let now = std::time::Duration::ZERO;
        let policy = AdmissionPolicy::default();
        let mut cluster = Cluster::remembered(NodeName::new("n1"), Ledger::default(), None);
        let list = ["n1", "n2"].map(|name| (NodeName::new(name), record(name)));
        assert_eq!(cluster.relist(now, list.into()), None);
        let former = cluster.admit(&policy);
        assert!(!cluster.remember(&policy, &former.ledger));
        let mut outcome = Outcome { admission: Arc::new(former.clone()), ..Outcome::default() };
        let place = Arc::as_ptr(&outcome.admission);
        assert!(cluster.apply(now, record("n3")));
        let spliced = outcome.splice(cluster.admit_changed(&policy).unwrap());
        assert_eq!(*outcome.admission(), cluster.admit(&policy));
        assert_ne!(*outcome.admission(), former);
        outcome.undo(&spliced);
        assert_eq!(*outcome.admission(), former);
        assert_eq!(Arc::as_ptr(&outcome.admission), place);
    }
}
