//! One turn of the loop: from what is known and observed to what is done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use keyring::audit::NodeRef;
use keyring::pq::Entry;
use keyring::rotation::{Cause, Input, PeerId, slot_for};
use keyring::{PerSlot, PublicKey, Slot};
use linux::sysctl::Sysctls;
use linux::{Handle, HostError, guard};
use plan::admission::{Admission, Member, Policy};
use plan::check::{Violation, check};
use plan::desired::{Setup, Underlay};
use plan::network::Network;
use plan::node::{NodeName, NodeUid};
use plan::op::Op;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};
use tunnel::InterfaceState;

use super::audit::Audit;
use super::cluster::Cluster;
use super::devices::Devices;
use super::keys::Keys;
use super::outcome::Outcome;
use super::pq::{self, Pairs};
use super::talk::{Heed, Said, Talk, heed};
use super::{observe, perform, publication};
use crate::api::events::Telling;
use crate::api::fence::{self, Fence};
use crate::api::nodes::{self, Change};
use crate::api::publish::Publication;
use crate::api::servers;
use crate::cache::{Cache, Memory};
use crate::chain::Chain;
use crate::channel::Heard;
use crate::config::Config;
use crate::control::Request;
use crate::fault;
use crate::status::{PlanReport, Status};

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
        ways: Ways,
    ) -> Self {
        let Ways { wanted, heard, tellings } = ways;
        let cache = Cache::in_folder(&config.state_dir);
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
            devices: Devices::new(config.wireguard_dir.clone()),
            talk: Talk::new(config.control_port, heard),
            pairs: Pairs::new(config.pq),
            audit,
            tellings,
            cluster: Cluster::remembered(own, ledger, uid),
            outcome: Outcome::default(),
            started: Instant::now(),
            asked: None,
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

    /// Asks for each missing Node by name, a few at a time.
    async fn confirm_gone(&self, missing: BTreeSet<NodeName>) -> BTreeSet<NodeName> {
        use futures::StreamExt as _;
        let questions = futures::stream::iter(missing).map(|name| async {
            let answer = tokio::time::timeout(PATIENCE, nodes::find(&self.client, &name)).await;
            matches!(answer, Ok(Ok(None))).then_some(name)
        });
        questions.buffer_unordered(8).filter_map(std::future::ready).collect().await
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
            self.pairs.settle(&turn.carried, &mut self.keys);
            self.keys.tell(Input::Applied(turn.generation));
        }
        self.publish().await;
        self.converse(&turn.desired).await;
        self.account(&turn.admission);
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
    async fn prepare(&mut self) -> Result<Turn, HostError> {
        self.policy.own_keys = self.keys.journal().keys().collect();
        let admission = self.cluster.admit(&self.policy);
        self.meet(&admission);
        let underlay = self.underlay(&admission).await?;
        let setup = self.setup(&admission);
        let desired = plan::desired(&admission.world, &setup, &underlay);
        let observed = observe::observe(&self.host, &mut self.devices, &desired).await?;
        let ops = plan::diff(&desired, &observed);
        let violations = check(&desired, &admission.world);
        let (heeded, carried) = (heed(&admission, &setup), pq::carried(&admission, &setup));
        let generation = self.keys.journal().generation;
        Ok(Turn { admission, underlay, desired, observed, ops, violations, heeded, carried, generation })
    }

    /// Tells the rotation and the control channel who is there and what they announce.
    fn meet(&mut self, admission: &Admission) {
        if let Some(own) = self.cluster.own_record() {
            self.keys.speak_for(&own.uid);
        }
        self.keys.renew(admission.world.own.as_ref().and_then(|own| own.renewal));
        self.talk.learn(admission);
        self.pairs.meet(admission, self.keys.stance(), &mut self.keys);
        self.keys.see(admission.world.peers.values().map(publication::stance));
        // Without a trail nothing is done that would have to stand in it.
        let connected = self.cluster.is_listed() && self.outcome.api_error.is_none();
        self.keys.tell(Input::Connected(connected && self.audit.is_kept()));
    }

    /// The slot to send to each peer on, by what both announce and by which keys have been heard from.
    fn steer(&mut self, admission: &Admission) -> BTreeMap<NodeUid, Slot> {
        let Some(own) = self.keys.stance() else { return BTreeMap::new() };
        let states = PerSlot::from_fn(|slot| self.devices.state(slot).map(|(_, state)| state));
        self.show(admission, &states);
        let members = admission.world.peers.values();
        let slot = |member: &Member| {
            let answers = PerSlot::from_fn(|slot| {
                let state = states.get(slot).as_ref();
                let peer = state.and_then(|state| state.peers.get(&member.state.slots.get(slot).key));
                peer.is_some_and(|peer| peer.since_handshake.is_some())
            });
            let wanted = slot_for(&own, &publication::stance(member), answers);
            (member.uid.clone(), self.pairs.steer(&PeerId::new(member.uid.as_str()), wanted))
        };
        members.map(slot).collect()
    }

    /// Shows the machines of preshared keys what the devices have.
    fn show(&mut self, admission: &Admission, states: &PerSlot<Option<InterfaceState>>) {
        let shown = |slot: Slot, own: &PublicKey, peer: &PublicKey| {
            let state = states.get(slot).as_ref().filter(|state| state.public_key == Some(*own))?;
            let peer = state.peers.get(peer)?;
            Some(Entry { preshared: peer.preshared, handshake: peer.since_handshake.is_some() })
        };
        let entries = pq::entries(admission, &self.keys.public(), shown);
        self.pairs.observe(&entries, &mut self.keys);
    }

    /// Keeps the control channel in place, and tells the rotation on which slots packets arrive.
    async fn converse(&mut self, desired: &Network) {
        match self.talk.settle(&self.host, desired).await {
            Ok(busy) => busy.into_iter().for_each(|slot| self.keys.tell(Input::Received(slot))),
            Err(error) => warn!(cause = %Chain(&error), "the control channel can't be put in place"),
        }
        self.tick();
    }

    /// Takes a message from a peer.
    pub(super) fn hear(&mut self, heard: &Heard) {
        match self.talk.hear(heard) {
            Some(Said::OfKeys(input)) => {
                let input = self.weigh(input);
                self.keys.tell(input);
                self.talk.ask(self.keys.take_asks());
            }
            Some(Said::Preshared(peer, over, message)) => {
                self.pairs.hear(&peer, over, message, &mut self.keys);
                self.talk.pair(self.pairs.take_messages());
            }
            Some(Said::OfTrail(peer, end)) => self.audit.hear_head(&peer, &end),
            None => {}
        }
    }

    /// An answer to the rotation says that a peer has left a slot, or answers over it. It counts only when this node has
    /// left the slot as well, and when the slot is as protected as it is meant to be.
    fn weigh(&self, input: Input) -> Input {
        let Input::Answer { peer, nonce, seen, tx, over, .. } = input else { return input };
        let drained = self.keys.journal().drain();
        if drained.is_some() && self.talk.tx(&peer) == drained {
            return Input::Heard(peer);
        }
        let protected = self.pairs.protects(&peer, over);
        Input::Answer { peer, nonce, seen, tx, over, protected }
    }

    /// Writes down what happened to keys, and lets peers and the API server know where the trail ends.
    fn account(&mut self, admission: &Admission) {
        self.audit.own(&self.keys.take_notes(), self.keys.journal().generation);
        self.audit.witness(admission);
        let Some(own) = self.cluster.own_record() else { return };
        let (uid, name) = (own.uid.clone(), own.name.to_string());
        self.audit.write(&NodeRef { uid: PeerId::new(uid.as_str()), name });
        if let Some(head) = self.audit.take_tell() {
            self.talk.tell_head(&head);
        }
        if let Some(head) = self.audit.take_anchor() {
            let message = format!(
                "generation {}; the audit trail ends at line {} with {head}",
                self.keys.journal().generation,
                head.seq
            );
            let blocked = self.keys.rotation().is_some_and(|rotation| rotation.blocked().is_some());
            let reason = if blocked { "RotationBlocked" } else { "KeysRotated" };
            // Full while the API server is away: an Event is not worth waiting for.
            let _ = self.tellings.try_send(Telling { uid, warning: blocked, reason, message });
        }
    }

    /// Lets the rotation know that time has passed.
    pub(super) fn tick(&mut self) {
        self.keys.tell(Input::Tick);
        self.talk.ask(self.keys.take_asks());
        self.pairs.tick(&mut self.keys);
        self.talk.pair(self.pairs.take_messages());
    }

    /// When the machines want to be told that time has passed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.keys.due().into_iter().chain(self.pairs.due()).min()
    }

    /// Whether the loop should turn now; asked once.
    pub(super) const fn take_turn(&mut self) -> bool {
        let (keys, pairs) = (self.keys.take_turn(), self.pairs.take_turn());
        keys || pairs
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
        let memory = Memory {
            node: NodeName::new(self.config.node_name.clone()),
            uid: self.cluster.own_record().map(|record| record.uid.clone()),
            ledger: admission.ledger.clone(),
        };
        // Before the first list the memory is what the file says.
        if self.cluster.is_listed()
            && let Err(error) = self.cache.save(&memory)
        {
            warn!(cause = %Chain(&error), "the last known peers are not kept");
            return false;
        }
        true
    }

    /// Hands the publisher what our Node should say, if it says something else.
    async fn publish(&mut self) {
        let Some(record) = self.cluster.own_record().cloned() else {
            self.outcome.published = false;
            return;
        };
        if let Some(seen) = publication::foreign_generation(&record, &self.keys) {
            self.keys.tell(Input::Foreign(seen));
        }
        // Not before the node is as it says.
        if !self.keys.announced() {
            self.outcome.published = false;
            return;
        }
        let endpoints = self.endpoints(&record).await;
        let publication = publication::wanted(&record, &self.keys, &self.config, endpoints);
        self.outcome.published = publication::stands(&record, &publication);
        if self.outcome.published {
            self.keys.tell(Input::Published(self.keys.journal().generation));
        }
        let wanted = (!self.outcome.published).then_some(publication);
        self.wanted.send_if_modified(|standing| {
            let modified = *standing != wanted;
            *standing = wanted;
            modified
        });
    }

    /// Where peers reach us: as configured, else our Node's addresses that are really ours.
    async fn endpoints(&self, record: &plan::node::NodeRecord) -> Vec<IpAddr> {
        if !self.config.endpoints.is_empty() {
            return self.config.endpoints.clone();
        }
        let local = self.host.local_addresses().await.unwrap_or_default();
        let listed = record.addresses.iter().filter_map(|text| text.parse().ok());
        listed.filter(|address| local.contains(address)).collect()
    }

    /// Asks now and then what the API server's addresses are and whether its policy stands.
    async fn ask_api_server(&mut self) {
        let due = self.asked.is_none_or(|asked| asked.elapsed() >= ASK);
        if !due || !self.cluster.is_listed() || self.outcome.api_error.is_some() {
            return;
        }
        self.asked = Some(Instant::now());
        match tokio::time::timeout(PATIENCE, servers::addresses(&self.client)).await {
            Ok(Ok(addresses)) => self.policy.api_servers.extend(addresses),
            Ok(Err(error)) => warn!(cause = %Chain(&error), "the API server does not name its own addresses"),
            Err(_) => warn!("the API server does not answer in time"),
        }
        let Some(other) = self.cluster.any_other() else {
            self.asked = None;
            return;
        };
        match tokio::time::timeout(PATIENCE, fence::test(&self.client, other)).await {
            Ok(Ok(fence)) => {
                if fence == Fence::Missing {
                    warn!(
                        "TrustPolicyMissing: the API server lets this daemon change other Nodes; apply deploy/base/admission-policy.yaml"
                    );
                }
                self.outcome.fence = fence;
            }
            Ok(Err(error)) => warn!(cause = %Chain(&error), "the trust policy could not be tested"),
            Err(_) => warn!("the API server does not answer in time"),
        }
    }

    /// Answers a question from the control socket.
    pub(super) async fn answer(&mut self, request: Request) -> String {
        let text = match request {
            Request::Status => serde_json::to_string_pretty(&self.status()),
            Request::Plan => serde_json::to_string_pretty(&self.plan().await),
            Request::Rotate => self.rotate(Cause::Request),
            Request::RotateNow => self.rotate(Cause::Emergency),
        };
        text.map(|text| text + "\n").unwrap_or_default()
    }

    fn rotate(&mut self, cause: Cause) -> serde_json::Result<String> {
        self.keys.tell(Input::Rotate(cause));
        self.talk.ask(self.keys.take_asks());
        serde_json::to_string_pretty(&self.status().rotation)
    }

    async fn plan(&mut self) -> PlanReport {
        match self.prepare().await {
            Ok(turn) => PlanReport {
                steps: turn.ops.iter().map(ToString::to_string).collect(),
                ops: turn.ops.iter().filter_map(|op| serde_json::to_value(op).ok()).collect(),
                violations: turn.violations.iter().map(ToString::to_string).collect(),
            },
            Err(error) => PlanReport { violations: vec![Chain(&error).to_string()], ..PlanReport::default() },
        }
    }

    /// The status as of now.
    pub(super) fn status(&mut self) -> Status {
        let status =
            self.outcome.status(&self.config, &self.keys, &self.pairs, &self.cluster, &mut self.devices);
        Status { control: self.talk.counts(), ..status }
    }
}
