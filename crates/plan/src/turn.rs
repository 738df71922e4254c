//! One turn of the loop as a function: from what is known and observed to what is to be done about it.
//!
//! The shell gathers (Nodes, MTUs, the kernel's state), performs the steps that are due and reports what failed. What it
//! asks of the API server comes back as an input of a later turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use keyring::{PublicKey, Slot};

use crate::admission::{Admission, AdmissionPart, Member, World};
use crate::backoff::Backoff;
use crate::check::{Violation, check, check_part};
use crate::desired::{Setup, Underlay, desired};
use crate::diff;
use crate::network::Network;
use crate::node::NodeName;
use crate::op::Op;
use crate::part::{Inputs, Pending, Shares, changed_shares, keeps_devices};

/// How often the API server is asked for its own addresses, and whether its admission policy is in place.
pub const API_PERIOD: Duration = Duration::from_mins(10);

/// How soon it is asked for its own addresses again while they are not known.
pub const API_RETRY: Duration = Duration::from_secs(30);

/// Least time between two replacements of keys that are made only to replace a device of another backend.
pub const BACKEND_PERIOD: Duration = Duration::from_mins(10);

/// What a turn is decided by, apart from the node's present state.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who is in the mesh.
    pub admission: Arc<Admission>,
    /// This node's own part.
    pub setup: Setup,
    /// The MTUs of the node's own network.
    pub underlay: Underlay,
    /// Own generation that the setup's keys belong to.
    pub generation: u64,
    /// What has failed before.
    pub backoff: Backoff,
    /// The network that follows from all this.
    desired: Network,
    /// What of it is another one than before, unless that is all, and where.
    changed: Option<(Shares, Pending)>,
}

/// What an earlier turn was decided by that has left the network as it wanted it.
#[derive(Debug)]
pub struct Former<'a> {
    /// What its network was computed from; the part is what was decided then about the Nodes that are considered now.
    pub inputs: Inputs<'a>,
    /// Its network.
    pub desired: Network,
    /// What is decided about these Nodes now.
    pub part: &'a AdmissionPart,
}

/// The node's present state.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its network.
    pub network: Network,
    /// The peers that are not on the devices as desired, if the network has those alone of the peers.
    pub other_peers: Option<BTreeSet<(Slot, PublicKey)>>,
    /// Slots whose device is of another backend than new ones.
    pub outdated: BTreeSet<Slot>,
    /// Whether the kernel has reported a change since the last turn.
    pub changed: bool,
}

/// What a turn wants, sees and does.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Who is in the mesh.
    pub admission: Arc<Admission>,
    /// This node's own part.
    pub setup: Setup,
    /// The MTUs of the node's own network.
    pub underlay: Underlay,
    /// The network that the node should have.
    pub desired: Network,
    /// The network that it has, without devices that are to be replaced.
    pub observed: Network,
    /// Steps to perform now.
    pub due: Vec<Op>,
    /// Steps that failed and wait, and all steps of a plan that is refused.
    pub waiting: Vec<Op>,
    /// Why the plan is refused.
    pub violations: Vec<Violation>,
    /// What has failed before, without what is no longer planned.
    pub backoff: Backoff,
    /// This node and the peers that have another share of the network than before, as they are now, if only what is new and the
    /// devices were compared: nothing is known of other routes then.
    pub others: Option<World>,
    generation: u64,
}

impl Known {
    /// Computes the network that is desired.
    pub fn new(
        admission: impl Into<Arc<Admission>>,
        setup: Setup,
        underlay: Underlay,
        generation: u64,
        backoff: Backoff,
    ) -> Self {
        let admission = admission.into();
        let desired = desired(&admission.world, &setup, &underlay);
        Self { admission, setup, underlay, generation, backoff, desired, changed: None }
    }

    /// The same, starting from the network of an earlier turn: only the shares of peers that are others since are computed, unless
    /// more than that is.
    pub fn following(
        former: Former<'_>,
        admission: Arc<Admission>,
        setup: Setup,
        underlay: Underlay,
        generation: u64,
        backoff: Backoff,
    ) -> Self {
        let Former { inputs, mut desired, part } = former;
        let now = Inputs { setup: &setup, underlay: &underlay, part };
        let replaced = changed_shares(&admission.world, inputs, now).and_then(|shares| {
            let pending = desired.replace_share(&shares.before, &shares.after)?;
            Some((shares, pending))
        });
        match replaced {
            Some(changed) => {
                Self { admission, setup, underlay, generation, backoff, desired, changed: Some(changed) }
            }
            None => Self::new(admission, setup, underlay, generation, backoff),
        }
    }

    /// Whether the node's routes have to be read: otherwise they are as the earlier turn left them.
    pub fn needs_routes(&self, observed: &Network) -> bool {
        self.changed.is_none() || !keeps_devices(&self.desired, observed)
    }

    /// The network that is desired: what of the node has to be observed.
    pub const fn desired(&self) -> &Network {
        &self.desired
    }
}

/// Decides what to do. Where the routes don't have to be read, only what is new and the devices are compared, and only what is
/// new is checked. `now` is a monotonic time since any fixed moment.
pub fn decide(known: Known, observed: Observed, now: Duration) -> Turn {
    let has_routes = known.needs_routes(&observed.network);
    let Known { admission, setup, underlay, generation, mut backoff, desired, changed: part } = known;
    let Observed { mut network, other_peers, outdated, changed } = observed;
    let part = part.filter(|_| !has_routes);
    // A device of another backend is used while it keeps its key. When the key is replaced no peer sends to the slot any
    // more, and the device is replaced as well.
    network.devices.retain(|slot, found| {
        let wanted = desired.devices.get(slot);
        !(outdated.contains(slot) && wanted.is_some_and(|wanted| wanted.key != found.key))
    });
    let (ops, violations, others) = match part {
        Some((shares, mut pending)) => {
            let violations = check_part(&desired, &shares);
            network.routes = shares.before.routes;
            match other_peers {
                Some(others) => {
                    as_desired(&mut network, &desired, pending.peers.difference(&others));
                    pending.peers.extend(others);
                }
                None => pending.add_peers(&desired, &network),
            }
            pending.rest = true;
            (pending.steps(&desired, &network), violations, Some(shares.world))
        }
        None => (diff(&desired, &network), check(&desired, &admission.world), None),
    };
    let (planned, refused) = if violations.is_empty() {
        (ops, Vec::new())
    } else {
        // The guard comes from the configuration and this node's own podCIDRs, so no violation by a peer holds it up.
        let is_guard = |op: &Op| matches!(op, Op::SetGuard(guard) if !guard.cluster.is_empty());
        ops.into_iter().partition(is_guard)
    };
    let (due, mut waiting) = backoff.split(now, planned, changed);
    waiting.extend(refused);
    Turn {
        admission,
        setup,
        underlay,
        desired,
        observed: network,
        due,
        waiting,
        violations,
        backoff,
        others,
        generation,
    }
}

/// Adds peers that are on the devices as desired to what was observed.
fn as_desired<'a>(
    network: &mut Network,
    desired: &Network,
    peers: impl Iterator<Item = &'a (Slot, PublicKey)>,
) {
    for (slot, key) in peers {
        let wanted = desired.devices.get(slot).and_then(|device| device.peers.get(key));
        if let (Some(wanted), Some(found)) = (wanted, network.devices.get_mut(slot)) {
            found.peers.insert(*key, wanted.clone());
        }
    }
}

impl Turn {
    /// Whether only what is new and the devices were compared.
    pub const fn is_part(&self) -> bool {
        self.others.is_some()
    }

    /// The peers that may have another share of the network than before; all if all of it was computed.
    pub fn peers(&self) -> &BTreeMap<NodeName, Member> {
        &self.others.as_ref().unwrap_or(&self.admission.world).peers
    }

    /// Whether it leaves nothing to be done or waited for, so that the next one decides the same while nothing changes.
    pub fn is_settled(&self, backoff: &Backoff) -> bool {
        self.due.is_empty() && self.waiting.is_empty() && self.applied(backoff).is_some()
    }

    /// The own generation that is in place if nothing fails or waits in `backoff`: that of the plan, whatever has become of
    /// the keys since.
    pub fn applied(&self, backoff: &Backoff) -> Option<u64> {
        (self.violations.is_empty() && backoff.is_empty()).then_some(self.generation)
    }
}

/// What is known of the API server.
#[derive(Clone, Debug, Default)]
pub struct ApiServer {
    /// Whether a complete list has been seen and the watch goes on.
    pub connected: bool,
    /// Whether it has named its own addresses.
    pub addresses_known: bool,
    /// When it was last asked for them.
    pub addresses_asked: Option<Duration>,
    /// When its admission policy was last tested.
    pub fence_tested: Option<Duration>,
    /// A Node of another node's, to test the policy with.
    pub other: Option<NodeName>,
}

/// What to ask of the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// Its own addresses.
    pub addresses: bool,
    /// Whether its admission policy refuses a change of this Node.
    pub fence: Option<NodeName>,
}

/// Which questions are due.
pub fn questions(api: &ApiServer, now: Duration) -> Questions {
    let due =
        |asked: Option<Duration>, period| api.connected && asked.is_none_or(|asked| now >= asked + period);
    let addresses_period = if api.addresses_known { API_PERIOD } else { API_RETRY };
    Questions {
        addresses: due(api.addresses_asked, addresses_period),
        fence: api.other.clone().filter(|_| due(api.fence_tested, API_PERIOD)),
    }
}

/// Whether to replace this node's keys in order to replace devices of another backend: not while a rotation goes on,
/// something fails, or the last such replacement is recent.
pub fn renew_for_backend(
    outdated: bool,
    rotating: bool,
    failing: bool,
    last: Option<Duration>,
    now: Duration,
) -> bool {
    outdated && !rotating && !failing && last.is_none_or(|last| now >= last + BACKEND_PERIOD)
}

/// Whether a peer's answer to the rotation, that it has left a slot or answers over it, counts: only when this node has
/// left the slot as well. It has not while it sends on the slot that it `drains`. Such an answer shows only that the peer
/// is alive.
pub fn answer_counts(drains: Option<Slot>, sends_on: Option<Slot>) -> bool {
    drains.is_none() || sends_on != drains
}
