//! A turn before anything is done about it: who is in the mesh, what is desired, what is observed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use linux::RouteNotice;
use plan::admission::Admission;
use plan::desired::{Setup, Underlay};
use plan::turn::{Former, Known, Turn, decide};

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
        let turn = self.prepare_with(admission, spliced.as_ref()).await;
        if turn.is_err() {
            // What was set is of no turn that was taken.
            self.set_with = None;
            if let Some(spliced) = &spliced {
                self.outcome.undo(spliced);
            }
        }
        Ok((turn?, spliced))
    }

    async fn prepare_with(
        &mut self,
        admission: Arc<Admission>,
        spliced: Option<&Spliced>,
    ) -> Result<Turn, ObserveError> {
        self.set_peers(&admission, spliced);
        let setup = self.setup(&admission);
        let underlay = self.underlay(&admission, &setup).await?;
        let known = self.want(admission, setup, underlay, spliced);
        let observed = observe::observe(
            &self.host,
            (&mut self.guard_owner, &mut self.filters),
            &mut self.devices,
            &known,
            self.kernel_changed || self.looks.filters_changed,
        )
        .await?;
        Ok(decide(known, observed, self.started.elapsed()))
    }

    /// Computes what is desired: only what is new since the last turn, if that has left everything as it was wanted, the kernel has
    /// told of no change since, and it is not time to look at everything.
    fn want(
        &mut self,
        admission: Arc<Admission>,
        setup: Setup,
        underlay: Underlay,
        spliced: Option<&Spliced>,
    ) -> Known {
        let (generation, backoff) = (self.keys.journal().generation, self.backoff.clone());
        let in_place = self.outcome.in_place.take();
        let may_follow = !self.kernel_changed && !self.is_time_for_all(self.started.elapsed());
        let former = spliced.filter(|_| may_follow).and_then(|Spliced { part, former }| {
            let inputs = self.outcome.inputs(former)?;
            Some((inputs, part))
        });
        match (former, in_place) {
            (Some((inputs, part)), Some(desired)) => {
                let former = Former { inputs, desired, part };
                Known::following(former, admission, setup, underlay, generation, backoff)
            }
            (_, in_place) => {
                let known = Known::new(admission, setup, underlay, generation, backoff);
                if let Some(network) = in_place {
                    self.outcome.compare_networks(&network, &known, spliced);
                }
                known
            }
        }
    }

    /// Whether a route is as the last turn has left it, as after what this node itself does.
    pub(in crate::daemon) fn is_as_wanted(&self, notice: &RouteNotice) -> bool {
        self.outcome.in_place.as_ref().is_some_and(|network| match notice {
            RouteNotice::Set(route) => network.routes.contains(route),
            RouteNotice::Removed(route) => !network.routes.contains(route),
        })
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
