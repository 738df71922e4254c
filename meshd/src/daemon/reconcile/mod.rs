//! The shell around a turn: gathers what it is decided by, performs it and publishes the results.

mod admit;
mod answer;
mod api_server;
mod contests;
mod effects;
mod forged;
mod host;
mod look;
mod names;
mod path_mtu;
mod paths;
mod prepare;
mod reach;
mod relays;
mod rotation;
mod survey;
mod verify;
mod whereabouts;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use keyring::Slot;
use keyring::rotation::{Input, PeerId};
use linux::guard::GuardOwner;
use linux::{Handle, HostError};
use plan::admission::{AdmissionPolicy, Ledger};
use plan::annotation::Endpoints;
use plan::backoff::{self, Attempt, Backoff};
use plan::check::Violation;
use plan::cluster::Cluster;
use plan::evidence::Tests;
use plan::names::Names;
use plan::network::LinkAddress;
use plan::node::{NodeName, NodeUid};
use plan::path_mtu::PathMtus;
use plan::path_mtu::search::Source;
use plan::paths::{Observations, Paths, Standing};
use plan::turn::Turn;
use plan::whereabouts::Whereabouts;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, warn};
use tunnel::UserspaceOptions;

use super::audit::Audit;
use super::devices::Devices;
use super::filters::Filters;
use super::host::HostChecks;
use super::keys::Keys;
use super::outcome::{Outcome, Spliced};
use super::paths_file::PathsFile;
use super::peer_channel::{PeerChannel, peer_views};
use super::pq::{self, Pairs};
use super::relay::RelayServer;
use super::relay_leases::RelayLeases;
use super::verify::Verification;
use crate::api::events::NodeEvent;
use crate::api::nodes::Change;
use crate::api::publish::Publication;
use crate::cache::Cache;
use crate::chain::Chain;
use crate::channel::ReceivedMessage;
use crate::config::Config;
use crate::device::SelectedBackend;
pub(super) use api_server::Answer;
use api_server::ApiQuestions;
use look::Looks;
use paths::Told;
use rotation::SetWith;
use survey::Surveys;
use whereabouts::ToldHere;

const OBSERVE: Attempt = Attempt::Task("observe");
const PLAN: Attempt = Attempt::Task("plan");
const CACHE: Attempt = Attempt::Task("cache");
const PATHS: Attempt = Attempt::Task("paths");
const CNI: Attempt = Attempt::Task("cni");
const HOST: Attempt = Attempt::Task("host");
const HOST_PORTS: Attempt = Attempt::Task("host-ports");
const POD_ROUTES: Attempt = Attempt::Task("pod-routes");
const CHANNEL: Attempt = Attempt::Task("control-channel");

/// Everything that the loop knows and controls.
pub(super) struct Reconciler {
    pub(super) config: Config,
    pub(super) keys: Keys,
    pairs: Pairs,
    host: Handle,
    /// Writes the guard, and owns it.
    guard_owner: GuardOwner,
    filters: Filters,
    devices: Devices,
    peer_channel: PeerChannel,
    /// This node as a relay.
    pub(super) relay: RelayServer,
    /// Its leases at other relays.
    pub(super) leases: RelayLeases,
    audit: Audit,
    node_events: mpsc::Sender<NodeEvent>,
    cluster: Cluster,
    cache: Cache,
    api: ApiQuestions,
    policy: AdmissionPolicy,
    /// Contested addresses, and what tests of them say.
    tests: Tests,
    path_mtus: PathMtus,
    /// Bytes sent to and received from each peer's slot.
    traffic: BTreeMap<(NodeUid, Slot), (u64, u64)>,
    /// The MTU of the routes to each peer since the last turn, and what it comes from.
    peer_mtus: BTreeMap<NodeUid, (u32, Source)>,
    paths: Paths,
    /// Those that worked last, on disk, and when they were written.
    paths_file: PathsFile,
    paths_saved: Option<Duration>,
    observations: Observations,
    /// Names that stand for endpoints.
    names: Names,
    /// The time that each peer has told with the last message about a preshared key.
    peer_clocks: BTreeMap<PeerId, SystemTime>,
    /// What each peer was told of where its datagrams come from.
    told: BTreeMap<(NodeUid, Slot), Told>,
    /// Where peers say that they are, and whom to ask.
    whereabouts: Whereabouts,
    /// This node's own list of endpoints, as of the last turn.
    own_list: Option<Endpoints>,
    /// The one that was told last before this daemon started.
    last_list: Option<Endpoints>,
    /// Which of its own lists each peer was told.
    told_here: BTreeMap<NodeUid, ToldHere>,
    /// The addresses on the node's links, unless they may have changed.
    link_addresses: Option<Vec<LinkAddress>>,
    /// Those that stay, as of the last turn.
    standing: Standing,
    standing_links: Vec<LinkAddress>,
    /// The slot that carries pods' packets to each peer since the last turn.
    carrying: BTreeMap<NodeUid, Slot>,
    /// Whether a turn is wanted because a step of a path is due.
    step_wanted: bool,
    looks: Looks,
    /// What the peers were set with last; none if that may not be the peers of the last turn.
    set_with: Option<SetWith>,
    host_checks: HostChecks,
    /// Whether the kernel has reported a change since the last turn.
    kernel_changed: bool,
    /// The guard of the last turn, kept in place while nothing else can be observed.
    guard: Option<plan::network::Guard>,
    /// Changes from the API server until its own addresses are known, which only its Nodes may claim.
    held_changes: Option<Vec<Change>>,
    /// Steps, observations and plans that fail.
    backoff: Backoff,
    /// What else fails; nothing waits for it.
    side_tasks: Backoff,
    wanted: watch::Sender<Option<Publication>>,
    started: Instant,
    /// When keys were last replaced for the sake of their devices.
    renewed: Option<Duration>,
    pub(super) outcome: Outcome,
    surveys: Surveys,
    /// The verification that runs.
    verification: Option<Verification>,
}

/// The files that were found damaged when they were opened.
fn damaged_files(audit: &Audit, keys: &Keys) -> Vec<String> {
    audit.damaged().iter().cloned().chain(keys.damaged().map(ToOwned::to_owned)).collect()
}

fn engine_options(config: &Config) -> UserspaceOptions {
    UserspaceOptions {
        uapi_dir: config.wireguard_dir.clone(),
        udp_offload: config.udp_offload,
        tun_offload: config.tun_offload,
    }
}

/// Where the loop's results go.
pub(super) struct Outputs {
    /// The annotations that our Node should have.
    pub(super) wanted: watch::Sender<Option<Publication>>,
    /// Messages from the control channel, back to the loop.
    pub(super) received: mpsc::Sender<ReceivedMessage>,
    /// Events to be created.
    pub(super) node_events: mpsc::Sender<NodeEvent>,
    /// Answers of the API server, back to the loop.
    pub(super) answers: mpsc::Sender<Answer>,
}

/// Sets a guard with the cluster's ranges only. What an earlier daemon left is kept if every rule of that guard stands in
/// the kernel: it has more. Another one that a former daemon still owns is waited for so long.
pub(super) fn close(
    config: &Config,
    guard_owner: &mut GuardOwner,
    patience: Duration,
) -> Result<(), HostError> {
    let cluster = config.cluster_cidrs.iter().copied().collect();
    let services = config.service_cidrs.iter().copied().collect();
    let closed = plan::network::Guard::closed(cluster, services, &config.links);
    guard_owner.keep_or_set(&closed, patience)
}

/// The ledger and the UID of this node from before the daemon started.
fn last_known(cache: &Cache, own: &NodeName, damaged: &mut Vec<String>) -> (Ledger, Option<NodeUid>) {
    match cache.load() {
        Ok(memory) => {
            let memory = memory.filter(|memory| memory.node == *own);
            memory.map_or_else(Default::default, |memory| (memory.ledger, memory.uid))
        }
        Err(error) => {
            let error = Chain(&error).to_string();
            error!(event = "PeersNotRestored", error, "starting without the last known peers");
            damaged.push(error);
            Default::default()
        }
    }
}

impl Reconciler {
    /// Starts from the saved ledger. `server` is the API server's address, if the client knows it.
    pub(super) fn new(
        config: Config,
        (keys, audit): (Keys, Audit),
        (host, guard_owner): (Handle, GuardOwner),
        (client, server): (kube::Client, Option<IpAddr>),
        chosen: SelectedBackend,
        outputs: Outputs,
    ) -> Self {
        let Outputs { wanted, received, node_events, answers } = outputs;
        let cache = Cache::in_directory(&config.state_dir);
        let own = NodeName::new(config.node_name.clone());
        let mut damaged_files = damaged_files(&audit, &keys);
        let (ledger, uid) = last_known(&cache, &own, &mut damaged_files);
        let (paths_file, remembered, last_list) = paths::last_known(&config, &own, &mut damaged_files);
        let policy = AdmissionPolicy {
            cluster_cidrs: config.cluster_cidrs.clone(),
            service_cidrs: config.service_cidrs.clone(),
            node_cidrs: config.node_cidrs.clone(),
            close_external: config.close_external_ips,
            api_servers: config.api_servers.iter().copied().chain(server).collect(),
            own_keys: keys.public().iter().map(|(_, key)| *key).collect(),
            accept_unproven: config.accept_unproven,
            ipv4: true,
            ipv6: true,
            ..AdmissionPolicy::default()
        };
        Self {
            devices: Devices::adopt(
                chosen.backend,
                config.threaded_napi,
                engine_options(&config),
                &config.links,
            ),
            peer_channel: PeerChannel::new(&config, keys.jitter_seed(), received),
            pairs: Pairs::new(config.pq),
            relay: RelayServer::new(&config),
            leases: RelayLeases::default(),
            audit,
            node_events,
            cluster: Cluster::remembered(own, ledger, uid),
            outcome: Outcome::new(chosen, damaged_files),
            surveys: Surveys::default(),
            verification: None,
            started: Instant::now(),
            renewed: None,
            api: ApiQuestions::new(client, answers),
            tests: Tests::default(),
            path_mtus: PathMtus::default(),
            traffic: BTreeMap::new(),
            peer_mtus: BTreeMap::new(),
            paths: Paths::remembering(keys.jitter_seed(), remembered),
            paths_file,
            paths_saved: None,
            observations: Observations::default(),
            names: Names::default(),
            peer_clocks: BTreeMap::new(),
            told: BTreeMap::new(),
            whereabouts: Whereabouts::default(),
            own_list: None,
            last_list,
            told_here: BTreeMap::new(),
            link_addresses: None,
            standing: Standing::default(),
            standing_links: Vec::new(),
            carrying: BTreeMap::new(),
            step_wanted: false,
            looks: Looks::default(),
            set_with: None,
            host_checks: HostChecks::default(),
            kernel_changed: false,
            guard: None,
            held_changes: Some(Vec::new()),
            backoff: Backoff::default(),
            side_tasks: Backoff::default(),
            config,
            keys,
            host,
            guard_owner,
            filters: Filters::default(),
            cache,
            policy,
            wanted,
        }
    }

    /// Takes a change from the API server; returns whether the loop should act on it. Changes before the server's own
    /// addresses are known are held: otherwise any Node could claim such an address until then.
    pub(super) fn take_change(&mut self, change: Change) -> bool {
        if let (Some(held), false) = (&mut self.held_changes, matches!(change, Change::Failed(_))) {
            if matches!(change, Change::Listed(_)) {
                self.api.ask_addresses(self.started.elapsed());
            }
            held.push(change);
            return false;
        }
        self.apply_change(change)
    }

    /// Applies the changes that were held; returns whether the loop should act on one of them.
    fn apply_held_changes(&mut self) -> bool {
        let held = self.held_changes.take().unwrap_or_default();
        let mut acts = false;
        for change in held {
            acts |= self.apply_change(change);
        }
        acts
    }

    fn apply_change(&mut self, change: Change) -> bool {
        let now = self.started.elapsed();
        let changed = match change {
            Change::Failed(error) => {
                warn!(
                    event = "ApiServerUnreachable", error = %Chain(&error),
                    "the API server is unreachable; keeping the current mesh"
                );
                self.outcome.api_error = Some(Chain(&error).to_string());
                return false;
            }
            Change::Applied(record) => self.cluster.apply(now, *record),
            Change::Deleted(name, uid) => self.cluster.delete(&name, &uid),
            Change::Listed(list) => {
                if let Some(lookup) = self.cluster.relist(now, list) {
                    self.api.look_up(lookup);
                }
                true
            }
        };
        let reconnected = self.outcome.api_error.take().is_some();
        changed || reconnected
    }

    /// Takes a notice from the kernel: links, addresses or routes may be others now.
    pub(super) fn kernel_changed(&mut self) {
        self.path_mtus.clear();
        self.link_addresses = None;
        self.kernel_changed = true;
    }

    /// Takes a notice that tables of nft have changed. Many programs change theirs all the time; a look sees whether ours are
    /// as they were.
    pub(super) const fn filters_changed(&mut self) {
        (self.looks.wanted, self.looks.filters_changed) = (true, true);
    }

    /// One turn; returns how soon to take another because something failed.
    pub(super) async fn reconcile(&mut self) -> Option<Duration> {
        let now = self.started.elapsed();
        self.question_api_server(now);
        self.unsettle();
        self.cluster.release(now);
        self.cluster.settle(now, self.outcome.api_error.is_none());
        self.outcome.counters.reconciles += 1;
        self.filters.begin_turn(now);
        self.read_host(now).await;
        let (mut turn, spliced) = match self.prepare().await {
            Ok(prepared) => prepared,
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.backoff.failed(now, OBSERVE, cause.clone()) {
                    error!(
                        event = "ObservationFailed",
                        error = cause,
                        "the node's network can't be observed; nothing but the guard is repaired"
                    );
                }
                let guarded = self.hold_guard();
                self.outcome.failures = self.backoff.failures().map(ToOwned::to_owned).collect();
                self.outcome.set_guard_in_place(guarded);
                self.write_cni_files(now);
                return self.retry_in(now);
            }
        };
        (self.kernel_changed, self.looks.filters_changed) = (false, false);
        let is_part = turn.is_part();
        let changes = spliced.as_ref().map(Spliced::changes);
        self.outcome.counters.full_reconciles += u64::from(!is_part);
        self.guard.clone_from(&turn.desired.guard);
        self.backoff = std::mem::take(&mut turn.backoff);
        self.backoff.succeeded(&OBSERVE);
        self.refuse(now, &turn.violations);
        self.host_checks.note_steps(now, &turn.due);
        self.perform(now, &turn.due, &turn.admission).await;
        self.outcome.failures = self.backoff.failures().map(ToOwned::to_owned).collect();
        let remembered = self.remember(now, &turn.admission, spliced.as_ref().map(|spliced| &spliced.part));
        let gone = changes.as_ref().map_or(&[][..], |changes| changes.gone.as_slice());
        if let Some(generation) = turn.applied(&self.backoff).filter(|_| remembered) {
            self.peer_channel.set_views(is_part.then_some(gone), peer_views(turn.peers(), &turn.setup));
            self.pairs.set_carrying_slots(&pq::carried(turn.peers(), &turn.setup), &mut self.keys);
            self.keys.handle(Input::Applied(generation));
        }
        self.set_carrying(&turn, gone);
        self.report_mtus(&turn, gone);
        self.contest_addresses(now, &turn);
        self.publish();
        self.keep_paths(now);
        self.update_channel(now, &turn.desired).await;
        self.record_audit(&turn.admission, changes.as_ref());
        self.settle_backend(now);
        self.report_stripped(now, &turn.admission, &turn.setup);
        self.judge_host(now, &turn.admission);
        self.settle(now, &turn);
        let done = turn.applied(&self.backoff).is_some();
        self.outcome.conclude(turn, done, spliced.as_ref(), &self.devices);
        self.start_tests(now, &self.outcome.shared_admission());
        self.look_up_names();
        self.outcome.set_guard_owned(self.guard_owner.owning());
        if !is_part {
            self.hold_pod_routes(now);
        }
        self.write_cni_files(now);
        if !self.outcome.failures.is_empty() || !remembered {
            // The next turn looks at everything.
            self.outcome.in_place = None;
        }
        self.retry_in(now)
    }

    /// Takes the slot that carries pods' packets to each peer after a turn, but to those that are `gone`.
    fn set_carrying(&mut self, turn: &Turn, gone: &[PeerId]) {
        if !turn.is_part() {
            self.carrying.clear();
        }
        for peer in gone {
            self.carrying.remove(&NodeUid::new(peer.as_str()));
        }
        for member in turn.peers().values() {
            match turn.setup.carrying_slot(member) {
                Some(slot) => drop(self.carrying.insert(member.uid.clone(), slot)),
                None => drop(self.carrying.remove(&member.uid)),
            }
        }
    }

    /// Time until the first failed step is due. What a turn does anyway is tried again at the next one.
    fn retry_in(&self, now: Duration) -> Option<Duration> {
        // Never at once: what is overdue may not have been tried in this turn.
        self.backoff.retry_at().map(|at| at.saturating_sub(now).max(backoff::FIRST))
    }

    /// Logs why a plan is refused, once.
    fn refuse(&mut self, now: Duration, violations: &[Violation]) {
        if violations.is_empty() {
            self.backoff.succeeded(&PLAN);
            return;
        }
        let causes: Vec<String> = violations.iter().map(ToString::to_string).collect();
        let cause = causes.join("; ");
        if self.backoff.failed(now, PLAN, cause.clone()) {
            error!(event = "PlanRefused", error = cause, "plan refused; nothing but the guard is repaired");
        }
    }
}
