//! Whether what was decided in parts is what follows from all: a whole turn compares them now and then.

use plan::diff;
use plan::network::Network;
use plan::turn::Known;
use tracing::warn;

use super::{Outcome, Spliced};

impl Outcome {
    /// Counts it if changes one after the other have led to another network than all together.
    pub(in crate::daemon) fn compare_networks(
        &mut self,
        network: &Network,
        known: &Known,
        spliced: Option<&Spliced>,
    ) {
        if network == known.desired() || !self.is_decided_by(known, spliced) {
            return;
        }
        let steps = diff(known.desired(), network);
        warn!(
            event = "NetworkDiffered",
            count = steps.len(),
            steps = steps.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join("; "),
            "changes one after the other have led to another network than all together; that is taken now"
        );
        self.counters.missed_changes += u64::try_from(steps.len().max(1)).unwrap_or(u64::MAX);
    }

    /// Whether the last turn was decided by the same as this one.
    fn is_decided_by(&self, known: &Known, spliced: Option<&Spliced>) -> bool {
        let computed_with = self.computed_with.as_ref();
        let world = &self.admission.world;
        let same_world = match spliced {
            Some(Spliced { part, former }) => {
                let (part, former) = (&part.admission().world, &former.admission().world);
                (&former.peers, &former.closed, &former.own) == (&part.peers, &part.closed, &world.own)
            }
            None => *world == known.admission.world,
        };
        same_world
            && computed_with
                .is_some_and(|(setup, underlay)| (setup, underlay) == (&known.setup, &known.underlay))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use keyring::{PerSlot, PublicKey};
    use plan::admission::Admission;
    use plan::backoff::Backoff;
    use plan::desired::{MAIN_TABLE, Setup, Underlay};
    use plan::network::{MeshInput, Route, Via};

    use super::*;

    fn setup() -> Setup {
        let key = |byte| PublicKey::from_bytes(&[byte; 32]).unwrap();
        Setup {
            cluster_cidrs: ["10.244.0.0/16".parse().unwrap()].into(),
            service_cidrs: BTreeSet::new(),
            open_node_cidrs: BTreeSet::new(),
            keys: PerSlot { a: key(2), b: key(3) },
            ports: PerSlot { a: 51840, b: 51841 },
            links: PerSlot { a: "mesh-a".parse().unwrap(), b: "mesh-b".parse().unwrap() },
            table: 5184,
            rule_priority: 5184,
            router_links: BTreeSet::new(),
            input: MeshInput::Everything,
            nat: false,
            paths: BTreeMap::new(),
            steer: BTreeMap::new(),
            preshared: BTreeMap::new(),
            barred: BTreeSet::new(),
        }
    }

    fn underlay(mtu: u32) -> Underlay {
        Underlay { mtu, mtu_to: BTreeMap::new(), passes: BTreeMap::new() }
    }

    /// What changes one after the other would have left behind, had they gone wrong.
    fn differing(known: &Known) -> Network {
        let mut network = known.desired().clone();
        let destination = "10.244.9.0/24".parse().unwrap();
        network.routes.insert(Route { table: MAIN_TABLE, destination, metric: 84, via: Via::Unreachable });
        network.rules.clear();
        network
    }

    #[test]
    fn a_network_that_is_not_what_follows_from_all_is_counted() {
        let known = Known::new(Admission::default(), setup(), underlay(1500), 1, Backoff::default());
        let mut outcome = Outcome { computed_with: Some((setup(), underlay(1500))), ..Outcome::default() };
        outcome.compare_networks(known.desired(), &known, None);
        assert_eq!(outcome.counters.missed_changes, 0, "it is");
        outcome.compare_networks(&differing(&known), &known, None);
        assert_eq!(outcome.counters.missed_changes, 2, "a route too many, and a rule that is missing");
    }

    #[test]
    fn where_something_else_is_known_now_another_network_is_none_of_the_changes_fault() {
        let known = Known::new(Admission::default(), setup(), underlay(1500), 1, Backoff::default());
        for (setup, underlay) in [(Setup { nat: true, ..setup() }, underlay(1500)), (setup(), underlay(1400))]
        {
            let mut outcome = Outcome { computed_with: Some((setup, underlay)), ..Outcome::default() };
            outcome.compare_networks(&differing(&known), &known, None);
            assert_eq!(outcome.counters.missed_changes, 0);
        }
        let mut outcome = Outcome::default();
        outcome.compare_networks(&differing(&known), &known, None);
        assert_eq!(outcome.counters.missed_changes, 0, "there was no turn before");
    }
}
