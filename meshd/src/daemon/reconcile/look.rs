//! The second in which nothing has happened: looks at what changes without a notice, and says whether to take a turn.
//!
//! A turn costs time for each peer, whatever has changed. After one that found nothing to do, only the devices are read,
//! once a second, with the few settings, links and rules that there are whatever the size of the mesh. Routes and nft
//! tables change with a notice. A turn is taken at the latest after some time, and what it then finds to do is counted:
//! nothing had told of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use keyring::rotation::Rotation;
use keyring::{PerSlot, PublicKey, Slot};
use linux::sysctl;
use plan::admission::{Admission, Member};
use plan::look::{Moved, moved};
use plan::network::Network;
use plan::node::NodeUid;
use plan::turn::Turn;
use tokio::time::Instant;
use tracing::warn;
use wireguard::DeviceState;

use super::Reconciler;
use crate::daemon::devices::peer_state;
use crate::daemon::observe::ObserveError;

/// How long no turn compares everything at most, and how long with many peers.
const TURN_PERIOD: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(1));
/// How many peers are many.
const MANY: usize = 1000;
/// Fewest endpoints whose path MTU is asked for in a look, and in how many looks each is.
const MTU_QUESTIONS: (usize, usize) = (16, 120);

/// Endpoints that were set for peers, and whether the peers are followed since.
pub(super) type Aims = BTreeMap<(Slot, PublicKey), (SocketAddr, bool)>;

/// What looks need to know.
#[derive(Debug)]
pub(super) struct Looks {
    /// What the last turn left behind if it found nothing to do.
    settled: Option<Settled>,
    /// What the devices said before the last turn was decided.
    pub(super) seen: PerSlot<Option<DeviceState>>,
    /// Whether this turn is taken only because the last one is long ago.
    pub(super) periodic: bool,
    /// When everything was observed and compared last.
    pub(super) compared_all: Option<Duration>,
    /// When all Nodes were admitted last.
    pub(super) admitted_all: Option<Duration>,
    /// Whether a look is wanted because a step of a path is due, or tables of nft have changed.
    pub(super) wanted: bool,
    /// Whether tables of nft have changed since the last turn or look.
    pub(super) filters_changed: bool,
    /// When the next step of a path is due, as of the last step.
    pub(super) next_step: Option<Duration>,
    /// When probes were looked after last, and when that is wanted next.
    pub(super) probed: (Option<Instant>, Option<Instant>),
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            settled: None,
            seen: PerSlot::from_fn(|_| None),
            periodic: false,
            compared_all: None,
            admitted_all: None,
            wanted: false,
            filters_changed: false,
            next_step: None,
            probed: (None, None),
        }
    }
}

/// What a turn left behind that found nothing to do: a look compares with it.
#[derive(Debug)]
pub(super) struct Settled {
    /// When to take a turn at the latest.
    until: Duration,
    /// Whether nothing is known to change by then.
    periodic: bool,
    /// The network without peers and routes.
    network: Network,
    /// The slot to send to each peer on.
    steer: BTreeMap<NodeUid, Slot>,
    /// What the devices said at the turn or the last look.
    states: PerSlot<Option<DeviceState>>,
    /// Endpoints that looks have set since the turn.
    aimed: Aims,
    connected: bool,
}

/// How long not everything is compared at most.
fn turn_period(admission: &Admission) -> Duration {
    if admission.world.peers.len() > MANY { TURN_PERIOD.1 } else { TURN_PERIOD.0 }
}

impl Reconciler {
    /// Takes what a turn leaves behind, unless it has left something to do or to wait for. `states` is what the devices said
    /// before it decided.
    pub(super) fn settle(&mut self, now: Duration, turn: &Turn) {
        self.count_missed(turn);
        if !turn.is_part() {
            self.looks.compared_all = Some(now);
        }
        let rotating = self.keys.rotation().is_none_or(Rotation::busy);
        let settled = turn.is_settled(&self.backoff)
            && self.outcome.failures.is_empty()
            && !rotating
            && self.cluster.is_listed()
            && self.outcome.stripped.is_empty()
            && self.held_changes.is_none();
        let states = std::mem::replace(&mut self.looks.seen, PerSlot::from_fn(|_| None));
        self.looks.settled = settled.then(|| {
            let network = turn.desired.without_peers();
            let until = self.looks.compared_all.unwrap_or(now) + turn_period(&turn.admission);
            let sooner = self.cluster.changes_at().filter(|at| *at < until);
            let steer = turn.setup.steer.clone();
            let periodic = sooner.is_none();
            let until = sooner.unwrap_or(until);
            Settled {
                until,
                periodic,
                network,
                steer,
                states,
                aimed: BTreeMap::new(),
                connected: self.is_connected(),
            }
        });
    }

    /// Counts steps of a turn that was taken only because it was time.
    fn count_missed(&mut self, turn: &Turn) {
        if !std::mem::take(&mut self.looks.periodic) || turn.due.is_empty() {
            return;
        }
        self.outcome.counters.missed_changes += u64::try_from(turn.due.len()).unwrap_or(u64::MAX);
        let steps: Vec<String> = turn.due.iter().take(5).map(ToString::to_string).collect();
        warn!(
            event = "ChangesMissed",
            count = turn.due.len(),
            steps = steps.join("; "),
            "a periodic turn found changes of which no notice had told; repairing them"
        );
    }

    /// Whether a turn has to look at everything because the last one that did is long ago.
    pub(super) fn is_time_for_all(&self, now: Duration) -> bool {
        let period = turn_period(self.outcome.admission());
        self.looks.compared_all.is_none_or(|last| now >= last + period)
    }

    /// Has the next look take a turn.
    pub(super) fn unsettle(&mut self) {
        self.looks.settled = None;
    }

    /// Whether changes of Nodes would be noticed.
    pub(super) const fn is_connected(&self) -> bool {
        self.cluster.is_listed() && self.outcome.api_error.is_none()
    }

    /// Looks whether anything wants a turn. What does not is done here: paths are watched, messages are written down, files
    /// and host ports are kept in place.
    pub(in crate::daemon) async fn look(&mut self) -> bool {
        let now = self.started.elapsed();
        let Some(mut settled) = self.looks.settled.take() else { return true };
        if now >= settled.until {
            self.looks.periodic = settled.periodic;
            return true;
        }
        // What can't be observed is reported by the turn.
        let wanted = self.wants_turn(now, &mut settled).await.unwrap_or(true);
        if !wanted {
            self.outcome.counters.reconciles += 1;
            self.looks.filters_changed = false;
            self.looks.settled = Some(settled);
        }
        wanted
    }

    async fn wants_turn(&mut self, now: Duration, settled: &mut Settled) -> Result<bool, ObserveError> {
        if self.kernel_changed
            || settled.connected != self.is_connected()
            || self.host_checks.are_due(now, self.looks.filters_changed)
            || !self.outcome.failures.is_empty()
        {
            return Ok(true);
        }
        self.question_api_server(now);
        if !self.is_connected() {
            // What changes meanwhile is not noticed, so no annotation stands for as long as it seems.
            self.cluster.settle(now, false);
        }
        self.start_tests(now, &self.outcome.shared_admission());
        if self.tests.differ(now, &self.policy.evidence, &self.policy.waited_for) {
            return Ok(true);
        }
        if self.filters_differ(now, &settled.network)? || self.host_differs(&settled.network).await? {
            return Ok(true);
        }
        let admission = self.outcome.shared_admission();
        if self.place_differs(&admission).await? || self.path_mtus_differ().await? {
            return Ok(true);
        }
        if self.devices_want_turn(now, settled, &admission) {
            return Ok(true);
        }
        let world = &admission.world;
        if world.own.as_ref().is_some_and(|own| own.relay) || world.peers.values().any(|peer| peer.relay) {
            self.update_relays(&admission, &settled.states);
        }
        self.observations.retain(now, |_| true);
        self.tell_in_look(now, &admission, &settled.states);
        self.publish();
        self.update_channel(now, &settled.network).await;
        self.write_audit();
        self.write_cni_files(now);
        Ok(!self.outcome.failures.is_empty() || self.policy.heard != *self.whereabouts.heard())
    }

    /// Whether the guard or what iptables accepts is not as it was.
    fn filters_differ(&mut self, now: Duration, network: &Network) -> Result<bool, ObserveError> {
        self.filters.begin_turn(now);
        if let Some(guard) = &network.guard
            && !self.guard_owner.stays_in_place(self.filters.state, guard)?
        {
            return Ok(true);
        }
        match &network.accepts {
            Some(accepts) => Ok(!self.filters.accepts_stand(accepts)?),
            None => Ok(false),
        }
    }

    /// Whether settings, links or rules are not as they were.
    async fn host_differs(&self, network: &Network) -> Result<bool, ObserveError> {
        for (name, value) in &network.sysctls {
            if sysctl::read(name)?.as_ref() != Some(value) {
                return Ok(true);
            }
        }
        for device in network.devices.values() {
            let Some(found) = self.host.link(&device.link).await? else { return Ok(true) };
            if (found.mtu, found.up, &found.addresses) != (device.mtu, device.up, &device.addresses) {
                return Ok(true);
            }
        }
        Ok(self.host.rules().await? != network.rules)
    }

    /// Whether this node seems to be elsewhere.
    async fn place_differs(&mut self, admission: &Admission) -> Result<bool, ObserveError> {
        let addresses = self.own_addresses().await?;
        let differs = self.policy.own_addresses.as_ref() != Some(&addresses);
        Ok(differs || self.surroundings(&admission.world) != *self.paths.surroundings())
    }

    /// Whether the kernel has learnt another path MTU. It says so to nobody: some endpoints are asked for each time.
    async fn path_mtus_differ(&mut self) -> Result<bool, ObserveError> {
        let fixed = self.config.mtu.map(|mtu| mtu + plan::desired::OVERHEAD);
        let mut differs = false;
        for (address, former) in self.path_mtus.oldest(MTU_QUESTIONS) {
            let path = self.host.underlay(address).await?;
            let mtu = path.map(|path| fixed.unwrap_or(path.mtu));
            differs |= mtu != former;
            self.path_mtus.learn(address, mtu);
        }
        Ok(differs)
    }

    /// Reads the devices and takes steps with the paths that want one; returns whether there is more to do than that.
    fn devices_want_turn(&mut self, now: Duration, settled: &mut Settled, admission: &Admission) -> bool {
        let states = PerSlot::from_fn(|slot| self.devices.state(slot).map(|(_, state)| state));
        let found: PerSlot<Moved> = PerSlot::from_fn(|slot| {
            let aimed = |key: &PublicKey| settled.aimed.get(&(slot, *key)).copied();
            moved(settled.states.get(slot).as_ref(), states.get(slot).as_ref(), aimed)
        });
        let outdated = Slot::ALL.into_iter().any(|slot| self.devices.is_outdated(slot));
        settled.states = states;
        if outdated || found.iter().any(|(_, found)| found.otherwise) {
            return true;
        }
        let due = self.paths.due_peers(now);
        let wants_step = |member: &&Member| {
            let has_moved = |slot| found.get(slot).peers.contains(&member.state.slots.get(slot).key);
            due.contains(&member.uid) || Slot::ALL.into_iter().any(has_moved)
        };
        let members: Vec<&Member> = admission.world.peers.values().filter(wants_step).collect();
        for member in &members {
            let of_slot = |slot| peer_state(&settled.states, member, slot);
            let traffic = PerSlot::from_fn(|slot| of_slot(slot).map(|peer| (peer.sent, peer.received)));
            self.peer_channel.set_traffic(&member.uid.peer_id(), traffic);
        }
        let changed = self.step_with(now, admission, &members, (&settled.states, &mut settled.aimed));
        changed || members.iter().any(|member| self.steers_otherwise(now, member, settled))
    }

    fn steers_otherwise(&self, now: Duration, member: &Member, settled: &Settled) -> bool {
        let Some(own) = self.keys.stance() else { return true };
        let slot = self.steer_member(now, &own, &settled.states, member);
        settled.steer.get(&member.uid) != Some(&slot)
    }

    /// Tells peers what they are to be told soon; what can wait is told by turns.
    fn tell_in_look(&mut self, now: Duration, admission: &Admission, states: &PerSlot<Option<DeviceState>>) {
        if self.is_telling_due(now) {
            self.tell_peers(now, admission, states);
        }
        self.tell_whereabouts_in_look(admission);
    }
}
