//! Which faults a run has and when, as a function of its seed. Pure, so that a seed names a run for good.

use std::collections::BTreeMap;
use std::time::Duration;

/// Numbers that look random and are the same for the same seed (splitmix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

/// The network that the nodes of a run are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// One network with both IP versions.
    Switch,
    /// Two clouds, a home and an office, each behind a NAT of its own; IPv4 only.
    Sites,
}

/// A fault, with what it is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The daemon is ended with SIGKILL or SIGTERM, and started again when the fault ends.
    DaemonDown { node: u8, kill: bool },
    /// The same, and the file with its peers is damaged meanwhile.
    CacheDamaged { node: u8 },
    /// The API server is killed.
    ApiDown,
    /// The Node object is deleted, and created again when the fault ends.
    NodeDeleted { node: u8 },
    /// Another program writes nonsense into the node's annotation.
    AnnotationDamaged { node: u8 },
    /// A Node without a valid proof lists the node's address.
    AddressClaimed { node: u8 },
    /// The link of a slot is deleted.
    LinkDeleted { node: u8, slot: char },
    /// The link of a slot is set down.
    LinkDown { node: u8, slot: char },
    /// The daemon's routes are removed.
    RoutesRemoved { node: u8 },
    /// The routes to the node's own pods are removed.
    PodRoutesRemoved { node: u8 },
    /// The daemon's policy rules are removed.
    RulesRemoved { node: u8 },
    /// A more specific route leads a half of another node's podCIDR out unencrypted.
    RouteAdded { node: u8, to: u8 },
    /// A firewall drops the UDP port of a slot.
    PortBlocked { node: u8, slot: char },
    /// The node's cable is cut.
    CableCut { node: u8 },
    /// Two sites don't reach each other.
    SitesApart { one: &'static str, other: &'static str },
    /// A site's public address changes.
    SiteRenumbered { site: &'static str },
    /// A site's router forgets all connections.
    RouterFlushed { site: &'static str },
    /// A site's path takes packets of up to 1,400 bytes, and says nothing of larger ones.
    PathNarrow { site: &'static str },
    /// The node's keys are rotated; at once, or with the drain of a scheduled rotation.
    Rotated { node: u8, emergency: bool },
    /// Pods come and go, some by a plugin that is killed.
    PodsChurn { node: u8 },
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Since the start of the run.
    pub(crate) at: Duration,
    /// How long it lasts; nothing for what happens at one moment.
    pub(crate) lasts: Duration,
    pub(crate) fault: Fault,
}

/// Names of the sites with those nodes' numbers, as [`Network::Sites`] has them.
pub(crate) const SITES: [(&str, &[u8]); 4] =
    [("cloud1", &[1, 2]), ("cloud2", &[3]), ("home", &[4, 5]), ("office", &[6])];

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    fn one_of<T: Copy>(&mut self, all: &[T], default: T) -> T {
        let place = usize::try_from(self.below(all.len() as u64)).unwrap_or_default();
        all.get(place).copied().unwrap_or(default)
    }

    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from * 1_000 + self.below((to - from) * 1_000))
    }
}

impl Network {
    /// The network of a seed: both in turn.
    pub(crate) fn of(seed: u64) -> Self {
        if seed.is_multiple_of(2) { Self::Sites } else { Self::Switch }
    }

    /// How many nodes it has.
    pub(crate) fn nodes(self) -> u8 {
        match self {
            Self::Switch => 5,
            Self::Sites => 6,
        }
    }
}

/// The faults of a run of so many seconds, in the order of their times. One begins every 1 to 5 s; two that concern the same
/// thing don't overlap.
pub(crate) fn schedule(seed: u64, time: Duration) -> Vec<Planned> {
    let (network, mut random) = (Network::of(seed), Random::new(seed));
    let mut planned = Vec::new();
    let mut busy: BTreeMap<String, Duration> = BTreeMap::new();
    let mut at = Duration::from_secs(2);
    while at < time {
        let fault = pick(network, &mut random);
        let lasts = fault.lasts(&mut random).min(time.saturating_sub(at));
        let until = busy.entry(fault.subject()).or_default();
        if at >= *until {
            // Time for what was started again to be there.
            *until = at + lasts + Duration::from_secs(5);
            planned.push(Planned { at, lasts, fault });
        }
        at += random.seconds(1, 5);
    }
    planned
}

fn pick(network: Network, random: &mut Random) -> Fault {
    let number =
        |random: &mut Random| u8::try_from(random.below(u64::from(network.nodes()))).unwrap_or_default() + 1;
    let node = number(random);
    let slot = random.one_of(&['a', 'b'], 'a');
    let site = random.one_of(&SITES, SITES[0]).0;
    match (random.below(22), network) {
        (0 | 1, _) => Fault::DaemonDown { node, kill: true },
        (2, _) => Fault::DaemonDown { node, kill: false },
        (3, _) => Fault::CacheDamaged { node },
        (4, _) => Fault::ApiDown,
        (5, _) => Fault::NodeDeleted { node },
        (6, _) => Fault::AnnotationDamaged { node },
        (7, _) => Fault::AddressClaimed { node },
        (8, _) => Fault::LinkDeleted { node, slot },
        (9, _) => Fault::LinkDown { node, slot },
        (10, _) => Fault::RoutesRemoved { node },
        (11, _) => Fault::RulesRemoved { node },
        (12, _) => Fault::RouteAdded { node, to: node % network.nodes() + 1 },
        (13, _) => Fault::PortBlocked { node, slot },
        (14 | 15, _) => Fault::Rotated { node, emergency: random.below(3) == 0 },
        (16, _) => Fault::PodsChurn { node },
        (17, _) => Fault::PodRoutesRemoved { node },
        (_, Network::Switch) => Fault::CableCut { node },
        (18, Network::Sites) => {
            let at = SITES.iter().position(|(name, _)| *name == site).unwrap_or_default();
            Fault::SitesApart { one: site, other: SITES[(at + 1) % SITES.len()].0 }
        }
        (19, Network::Sites) => Fault::SiteRenumbered { site },
        (20, Network::Sites) => Fault::RouterFlushed { site },
        (_, Network::Sites) => Fault::PathNarrow { site },
    }
}

impl Fault {
    /// How long it lasts if nothing ends the run before.
    fn lasts(&self, random: &mut Random) -> Duration {
        match self {
            Self::DaemonDown { .. } | Self::CacheDamaged { .. } => random.seconds(1, 8),
            Self::ApiDown => random.seconds(2, 25),
            Self::NodeDeleted { .. } => random.seconds(1, 6),
            Self::AddressClaimed { .. } | Self::PathNarrow { .. } => random.seconds(10, 30),
            Self::RouteAdded { .. } => random.seconds(2, 10),
            Self::PortBlocked { .. } | Self::CableCut { .. } | Self::SitesApart { .. } => {
                random.seconds(3, 20)
            }
            Self::AnnotationDamaged { .. }
            | Self::LinkDeleted { .. }
            | Self::LinkDown { .. }
            | Self::RoutesRemoved { .. }
            | Self::PodRoutesRemoved { .. }
            | Self::RulesRemoved { .. }
            | Self::SiteRenumbered { .. }
            | Self::RouterFlushed { .. }
            | Self::Rotated { .. }
            | Self::PodsChurn { .. } => Duration::ZERO,
        }
    }

    /// What it is done to; two faults of the same subject exclude each other.
    fn subject(&self) -> String {
        match self {
            Self::DaemonDown { node, .. } | Self::CacheDamaged { node } | Self::Rotated { node, .. } => {
                format!("daemon {node}")
            }
            Self::ApiDown => "API".to_owned(),
            // Both write the Node object.
            Self::NodeDeleted { node } | Self::AnnotationDamaged { node } => format!("object {node}"),
            Self::AddressClaimed { .. } => "liar".to_owned(),
            Self::LinkDeleted { node, slot } | Self::LinkDown { node, slot } => format!("link {node} {slot}"),
            Self::RoutesRemoved { node } | Self::PodRoutesRemoved { node } | Self::RulesRemoved { node } => {
                format!("routes {node}")
            }
            Self::RouteAdded { node, .. } => format!("route {node}"),
            Self::PortBlocked { node, .. } => format!("ports {node}"),
            Self::CableCut { node } => format!("cable {node}"),
            Self::SitesApart { one, other } => format!("sites {one} {other}"),
            Self::SiteRenumbered { site } | Self::RouterFlushed { site } => format!("router {site}"),
            Self::PathNarrow { site } => format!("path {site}"),
            Self::PodsChurn { node } => format!("pods {node}"),
        }
    }

    /// Whether it needs the API server, so that it can't be made while that is down.
    pub(crate) fn needs_api(&self) -> bool {
        matches!(
            self,
            Self::NodeDeleted { .. } | Self::AnnotationDamaged { .. } | Self::AddressClaimed { .. }
        )
    }

    /// Whether it stops a daemon, which is started again when the fault ends.
    pub(crate) fn stops_daemon(&self) -> bool {
        matches!(self, Self::DaemonDown { .. } | Self::CacheDamaged { .. })
    }

    /// Kind of the fault, for counts.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::DaemonDown { kill: true, .. } => "daemon killed",
            Self::DaemonDown { kill: false, .. } => "daemon stopped",
            Self::CacheDamaged { .. } => "peers' file damaged",
            Self::ApiDown => "API server down",
            Self::NodeDeleted { .. } => "Node deleted and created again",
            Self::AnnotationDamaged { .. } => "annotation damaged",
            Self::AddressClaimed { .. } => "address claimed by another Node",
            Self::LinkDeleted { .. } => "link deleted",
            Self::LinkDown { .. } => "link set down",
            Self::RoutesRemoved { .. } => "routes removed",
            Self::PodRoutesRemoved { .. } => "routes to pods removed",
            Self::RulesRemoved { .. } => "rules removed",
            Self::RouteAdded { .. } => "more specific route",
            Self::PortBlocked { .. } => "port blocked",
            Self::CableCut { .. } => "cable cut",
            Self::SitesApart { .. } => "sites apart",
            Self::SiteRenumbered { .. } => "site renumbered",
            Self::RouterFlushed { .. } => "router flushed",
            Self::PathNarrow { .. } => "path narrow",
            Self::Rotated { emergency: false, .. } => "rotation",
            Self::Rotated { emergency: true, .. } => "emergency rotation",
            Self::PodsChurn { .. } => "pods come and go",
        }
    }

    /// Where it happens: nodes or sites.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::ApiDown => "api".to_owned(),
            Self::RouteAdded { node, to } => format!("n{node} to n{to}"),
            Self::LinkDeleted { node, slot }
            | Self::LinkDown { node, slot }
            | Self::PortBlocked { node, slot } => {
                format!("n{node} {slot}")
            }
            Self::SitesApart { one, other } => format!("{one} {other}"),
            Self::SiteRenumbered { site } | Self::RouterFlushed { site } | Self::PathNarrow { site } => {
                (*site).to_owned()
            }
            Self::DaemonDown { node, .. }
            | Self::CacheDamaged { node }
            | Self::NodeDeleted { node }
            | Self::AnnotationDamaged { node }
            | Self::AddressClaimed { node }
            | Self::RoutesRemoved { node }
            | Self::PodRoutesRemoved { node }
            | Self::RulesRemoved { node }
            | Self::CableCut { node }
            | Self::Rotated { node, .. }
            | Self::PodsChurn { node } => format!("n{node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const TIME: Duration = Duration::from_mins(2);

    #[test]
    fn a_seed_is_a_schedule_for_good() {
        assert_eq!(schedule(7, TIME), schedule(7, TIME));
        assert_ne!(schedule(7, TIME), schedule(9, TIME));
    }

    #[test]
    fn faults_are_in_order_end_in_time_and_leave_each_other_alone() {
        for seed in 0..200 {
            let planned = schedule(seed, TIME);
            assert!(planned.len() > 15, "{seed}: {}", planned.len());
            assert!(planned.is_sorted_by_key(|one| one.at));
            for (place, one) in planned.iter().enumerate() {
                assert!(one.at + one.lasts <= TIME, "{seed}: {one:?}");
                let mut others = planned.iter().skip(place + 1);
                let overlaps = |other: &&Planned| {
                    other.fault.subject() == one.fault.subject() && other.at < one.at + one.lasts
                };
                assert_eq!(others.find(overlaps), None, "{seed}: {one:?}");
            }
        }
    }

    #[test]
    fn every_kind_of_fault_comes_up_on_its_network() {
        let kinds = |network: Network| -> BTreeSet<&str> {
            let seeds = (0..100).filter(|seed| Network::of(*seed) == network);
            seeds.flat_map(|seed| schedule(seed, TIME)).map(|one| one.fault.kind()).collect()
        };
        assert_eq!(kinds(Network::Switch).len(), 18);
        assert_eq!(kinds(Network::Sites).len(), 21);
    }
}
