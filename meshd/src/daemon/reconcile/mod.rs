//! One turn of the loop: from what is known and observed to what is done about it.

mod answer;
mod api_server;
mod rotation;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use keyring::Slot;
use keyring::rotation::{Input, PeerId};
use linux::sysctl::Sysctls;
use linux::{Handle, HostError, guard};
use plan::admission::{Admission, Policy};
use plan::check::{Violation, check};
use plan::desired::{Setup, Underlay};
use plan::network::Network;
use plan::node::NodeName;
use plan::op::Op;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::audit::Audit;
use super::cluster::Cluster;
use super::devices::Devices;
use super::keys::Keys;
use super::observe::ObserveError;
use super::outcome::Outcome;
use super::pq::{self, Pairs};
use super::talk::{Heed, Talk, heed};
use super::{observe, perform};
use crate::api::events::Telling;
use crate::api::nodes::Change;
use crate::api::publish::Publication;
use crate::cache::Cache;
use crate::chain::Chain;
use crate::channel::Heard;
use crate::config::Config;
use crate::device::Chosen;
use crate::fault;

/// How often the API server is asked what its own addresses are, and whether its policy still stands.
const ASK: Duration = Duration::from_mins(10);
/// How long such a question may take: the loop must not wait for an API server that hangs.
const PATIENCE: Duration = Duration::from_secs(3);
/// MTU where the kernel names none: Ethernet's.
const USUAL_MTU: u32 = 1500;

/// Everything that the loop knows and drives.
pub(super) struct Reconciler {
    pub(super) config: Config,
    pub(super) keys: Keys,
    pairs: Pairs,
    host: Handle,
    devices: Devices,
    talk: Talk,
    audit: Audit,
    tellings: mpsc::Sender<Telling>,
    cluster: Cluster,
    cache: Cache,
    client: kube::Client,
    policy: Policy,
    wanted: watch::Sender<Option<Publication>>,
    started: Instant,
    asked: Option<Instant>,
    /// When keys were last replaced for the sake of their devices.
    renewed: Option<Instant>,
    pub(super) outcome: Outcome,
}

/// Where the loop's results go.
pub(super) struct Ways {
    /// What our Node should say.
    pub(super) wanted: watch::Sender<Option<Publication>>,
    /// What the control channel hears, on its way back to the loop.
    pub(super) heard: mpsc::Sender<Heard>,
    /// What becomes an Event.
    pub(super) tellings: mpsc::Sender<Telling>,
}

/// What one turn wants, sees and would do.
struct Turn {
    admission: Admission,
    underlay: Underlay,
    desired: Network,
    observed: Network,
    ops: Vec<Op>,
    violations: Vec<Violation>,
    /// What the node does about each peer when the plan has been performed.
    heeded: BTreeMap<PeerId, Heed>,
    /// The slot that pods' packets to each peer then take.
    carried: BTreeMap<PeerId, Option<Slot>>,
    /// The own generation that the plan is for.
    generation: u64,
}

/// Puts a guard in place that knows the cluster's ranges only. One that stands already, from a daemon that
/// ran before, is left alone: it knows more.
pub(super) fn close(config: &Config) -> Result<(), HostError> {
    if guard::exists()? {
        return Ok(());
    }
    let cluster = config.cluster_cidrs.iter().copied().collect();
    let services = config.service_cidrs.iter().copied().collect();
    guard::set(&plan::network::Guard::closed(cluster, services, &config.links))
}

impl Reconciler {
    /// Starts from what was remembered. `server` is the API server's address, if the client knows it.
    pub(super) fn new(
        config: Config,
        (keys, audit): (Keys, Audit),
        host: Handle,
        (client, server): (kube::Client, Option<IpAddr>),
        chosen: Chosen,
        ways: Ways,
    ) -> Self {
        let Ways { wanted, heard, tellings } = ways;
        let cache = Cache::in_directory(&config.state_dir);
        let own = NodeName::new(config.node_name.clone());
        let memory = match cache.load() {
            Ok(memory) => memory.filter(|memory| memory.node == own),
            Err(error) => {
                error!(cause = %Chain(&error), "start without the last known peers");
                None
            }
        };
        let (ledger, uid) = memory.map_or_else(Default::default, |memory| (memory.ledger, memory.uid));
        let policy = Policy {
            cluster_cidrs: config.cluster_cidrs.clone(),
            service_cidrs: config.service_cidrs.clone(),
            node_cidrs: config.node_cidrs.clone(),
            api_servers: config.api_servers.iter().copied().chain(server).collect(),
            own_keys: keys.public().iter().map(|(_, key)| *key).collect(),
            ipv4: true,
            ipv6: true,
        };
        Self {
            devices: Devices::adopt(
                chosen.backend,
                config.threaded_napi,
                config.wireguard_dir.clone(),
                &config.links,
            ),
            talk: Talk::new(&config, keys.jitter_seed(), heard),
            pairs: Pairs::new(config.pq),
            audit,
            tellings,
            cluster: Cluster::remembered(own, ledger, uid),
            outcome: Outcome::new(chosen),
            started: Instant::now(),
            asked: None,
            renewed: None,
            config,
            keys,
            host,
            cache,
            client,
            policy,
            wanted,
        }
    }

    /// Takes what the API server said; says whether the loop should act on it.
    pub(super) async fn learn(&mut self, change: Change) -> bool {
        match change {
            Change::Failed(error) => {
                warn!(cause = %Chain(&error), "the API server is away; the mesh stays as it is");
                self.outcome.api_error = Some(Chain(&error).to_string());
                return false;
            }
            Change::Applied(record) => self.cluster.apply(self.started.elapsed(), record),
            Change::Deleted(name, uid) => self.cluster.delete(&name, &uid),
            Change::Listed(list) => {
                let missing = self.cluster.missing_from(&list);
                let gone = self.confirm_gone(missing).await;
                self.cluster.relist(self.started.elapsed(), list, &gone);
            }
        }
        self.outcome.api_error = None;
        true
    }

    /// One turn; says whether another one should follow soon because something failed.
    pub(super) async fn reconcile(&mut self) -> bool {
        self.ask_api_server().await;
        self.cluster.release(self.started.elapsed());
        self.outcome.counters.reconciles += 1;
        let turn = match self.prepare().await {
            Ok(turn) => turn,
            Err(error) => {
                error!(cause = %Chain(&error), "the node's network can't be observed; nothing is changed");
                self.outcome.failures = vec![Chain(&error).to_string()];
                return true;
            }
        };
        self.outcome.failures = if turn.violations.is_empty() {
            self.perform(&turn.ops).await
        } else {
            turn.violations.iter().map(|violation| format!("plan refused: {violation}")).collect()
        };
        let remembered = self.remember(&turn.admission);
        if self.outcome.failures.is_empty() && remembered {
            self.talk.heed(turn.heeded.clone());
            self.pairs.set_carrying_slots(&turn.carried, &mut self.keys);
            self.keys.handle(Input::Applied(turn.generation));
        }
        self.publish().await;
        self.converse(&turn.desired).await;
        self.account(&turn.admission);
        self.settle_backend();
        self.outcome.look(&turn.admission, &turn.underlay, &turn.desired, &turn.observed, &mut self.devices);
        if let Err(error) =
            self.outcome.tell_cni(&self.config, &turn.admission, &turn.underlay, &turn.desired)
        {
            warn!(cause = %Chain(&error), "the CNI side is not up to date");
            self.outcome.failures.push(Chain(&error).to_string());
        }
        !self.outcome.failures.is_empty()
    }

    /// Computes a turn without changing anything.
    async fn prepare(&mut self) -> Result<Turn, ObserveError> {
        self.policy.own_keys = self.keys.journal().keys().collect();
        let admission = self.cluster.admit(&self.policy);
        self.meet(&admission);
        let underlay = self.underlay(&admission).await?;
        let setup = self.setup(&admission);
        let desired = plan::desired(&admission.world, &setup, &underlay);
        let observed = observe::observe(&self.host, &mut self.devices, &desired).await?;
        let ops = plan::diff(&desired, &observed);
        let violations = check(&desired, &admission.world);
        let (heeded, carried) = (heed(&admission, &setup, &underlay), pq::carried(&admission, &setup));
        let generation = self.keys.journal().generation;
        Ok(Turn { admission, underlay, desired, observed, ops, violations, heeded, carried, generation })
    }

    fn setup(&mut self, admission: &Admission) -> Setup {
        let steer = self.steer(admission);
        let mut setup = Setup {
            cluster_cidrs: self.config.cluster_cidrs.iter().copied().collect(),
            service_cidrs: self.config.service_cidrs.iter().copied().collect(),
            keys: self.keys.public(),
            ports: self.config.ports,
            links: self.config.links.clone(),
            table: self.config.table,
            rule_priority: self.config.rule_priority,
            nat: self.config.nat,
            steer,
            preshared: BTreeMap::new(),
            barred: BTreeSet::new(),
        };
        self.pairs.protect(admission, &mut setup);
        setup
    }

    /// The MTU of the way to each endpoint, by the route that its datagrams really take.
    async fn underlay(&self, admission: &Admission) -> Result<Underlay, HostError> {
        let fixed = self.config.mtu.map(|mtu| mtu + plan::desired::OVERHEAD);
        let mut mtu_to = BTreeMap::new();
        let endpoints = admission.world.peers.values().filter_map(|member| member.endpoint);
        for endpoint in endpoints {
            if let Some(way) = self.host.underlay(endpoint.address).await? {
                mtu_to.insert(endpoint.address, fixed.unwrap_or(way.mtu));
            }
        }
        let own = admission.world.own.as_ref().map(|own| own.addresses.as_slice()).unwrap_or_default();
        let mtu = match fixed {
            Some(mtu) => mtu,
            None => {
                self.host.mtu_at(own).await?.or_else(|| mtu_to.values().copied().max()).unwrap_or(USUAL_MTU)
            }
        };
        Ok(Underlay { mtu, mtu_to })
    }

    async fn perform(&mut self, ops: &[Op]) -> Vec<String> {
        let sysctls = Sysctls::at(&self.config.sysctl_dir);
        let mut failures = Vec::new();
        for op in ops {
            fault::point("step.before");
            match perform::perform(op, &self.host, &sysctls, &mut self.devices, &self.keys).await {
                Ok(()) => {
                    info!(step = %op, "done");
                    self.outcome.counters.steps += 1;
                }
                Err(error) => {
                    warn!(step = %op, cause = %Chain(&error), "failed; will try again");
                    self.outcome.counters.failed_steps += 1;
                    failures.push(format!("{op}: {}", Chain(&error)));
                }
            }
        }
        for (slot, key) in perform::to_greet(ops) {
            self.devices.greet(slot, key);
        }
        failures
    }

    /// Keeps what the cluster looks like; says whether it is kept.
    fn remember(&mut self, admission: &Admission) -> bool {
        self.cluster.ledger = admission.ledger.clone();
        let node = NodeName::new(self.config.node_name.clone());
        // Before the first list the memory is what the file says.
        if self.cluster.is_listed()
            && let Err(error) = self.cache.save(&node, self.cluster.own_uid(), &admission.ledger)
        {
            warn!(cause = %Chain(&error), "the last known peers are not kept");
            return false;
        }
        true
    }
}
