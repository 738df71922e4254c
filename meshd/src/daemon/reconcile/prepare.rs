//! A turn before anything is done about it: who is in the mesh, what is desired, what is observed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plan::admission::Admission;
use plan::desired::Setup;
use plan::turn::{Known, Turn, decide};

use super::Reconciler;
use crate::daemon::observe::{self, ObserveError};
use crate::daemon::outcome::Spliced;

impl Reconciler {
    /// Computes a turn, and the part of the admission that it decides if it does not decide it all. It changes nothing on the
    /// node but what finding paths and relays takes.
    pub(super) async fn prepare(&mut self) -> Result<(Turn, Option<Spliced>), ObserveError> {
        self.policy.own_keys = self.keys.journal().keys().collect();
        self.policy.evidence = self.tests.evidence();
        self.policy.waited_for = self.tests.waited_for(self.started.elapsed());
        self.policy.own_addresses = Some(self.own_addresses().await?);
        self.policy.heard.clone_from(self.whereabouts.heard());
        let (admission, spliced) = self.admit(self.started.elapsed());
        let turn = self.prepare_with(admission).await;
        if let (Err(_), Some(spliced)) = (&turn, &spliced) {
            self.outcome.undo(spliced);
        }
        Ok((turn?, spliced))
    }

    async fn prepare_with(&mut self, admission: Arc<Admission>) -> Result<Turn, ObserveError> {
        self.set_peers(&admission);
        let setup = self.setup(&admission);
        let underlay = self.underlay(&admission, &setup).await?;
        let generation = self.keys.journal().generation;
        let known = Known::new(admission, setup, underlay, generation, self.backoff.clone());
        let desired = known.desired();
        let observed = observe::observe(
            &self.host,
            (&mut self.guard_owner, &mut self.filters),
            &mut self.devices,
            desired,
            self.kernel_changed || self.looks.filters_changed,
        )
        .await?;
        Ok(decide(known, observed, self.started.elapsed()))
    }

    fn setup(&mut self, admission: &Admission) -> Setup {
        let steer = self.steer(admission);
        let mut setup = Setup {
            cluster_cidrs: self.config.cluster_cidrs.iter().copied().collect(),
            service_cidrs: self.config.service_cidrs.iter().copied().collect(),
            open_node_cidrs: self.config.open_node_cidrs.iter().copied().collect(),
            keys: self.keys.public(),
            ports: self.config.ports,
            links: self.config.links.clone(),
            table: self.config.table,
            rule_priority: self.config.rule_priority,
            router_links: self.host_checks.router_links(),
            input: self.config.mesh_input(),
            nat: self.is_behind_nat(),
            paths: self.paths.paths(),
            steer,
            preshared: BTreeMap::new(),
            barred: BTreeSet::new(),
        };
        self.pairs.protect(admission, &mut setup);
        setup
    }
}
