//! What a turn does to the node: its steps, the guard when nothing else can be seen, and files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use cni::host_ports::{self, Change};
use keyring::PublicKey;
use linux::sysctl::Sysctls;
use plan::admission::{Admission, AdmissionPart};
use plan::backoff::Attempt;
use plan::node::NodeName;
use plan::op::Op;
use tracing::{error, info, warn};

use super::super::{NODE_FILE, perform};
use super::{Answer, CACHE, CNI, HOST_PORTS, POD_ROUTES, Reconciler, close};
use crate::chain::Chain;
use crate::fault;

impl Reconciler {
    /// Puts the guard in place although the rest of the node can't be observed; returns whether it is.
    pub(super) fn hold_guard(&mut self) -> bool {
        let held = match &self.guard {
            Some(guard) => match self.guard_owner.is_in_place(guard) {
                Ok(false) => self.guard_owner.set(guard),
                checked => checked.map(drop),
            },
            None => close(&self.config, &mut self.guard_owner, Duration::ZERO),
        };
        match held {
            Ok(()) => true,
            Err(error) => {
                error!(event = "GuardNotSet", error = %Chain(&error), "the guard can't be put in place");
                false
            }
        }
    }

    /// Holds the node's table of host ports to what the store and the node say.
    fn hold_host_ports(&mut self, now: Duration) {
        let own = self.outcome.own_ports(&self.config);
        let sources = host_ports::Sources {
            state_dir: Path::new(cni::STATE_DIR),
            node_file: &self.config.run_dir.join(NODE_FILE),
            services: &self.config.service_cidrs,
            own: &own,
        };
        match host_ports::hold(sources, (self.filters.state, &mut self.filters.host_ports)) {
            Ok(held) => {
                match held.change {
                    Change::None => {}
                    Change::Adapted => info!(
                        event = "HostPortsAdapted",
                        "nft table inet meshd-ports set anew: the ports of this node, or the services, are others now"
                    ),
                    Change::Restored => warn!(
                        event = "HostPortsRestored",
                        "nft table inet meshd-ports restored: another program changed it"
                    ),
                }
                for mapping in held.overruled.difference(&self.filters.overruled) {
                    warn!(
                        event = "HostPortOverruled",
                        protocol = mapping.protocol.as_str(),
                        port = mapping.host_port,
                        pod = %mapping.pod_address,
                        "this node listens on the host port itself, so it does not lead to the pod"
                    );
                }
                self.filters.overruled = held.overruled;
                self.side_tasks.succeeded(&HOST_PORTS);
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(now, HOST_PORTS, cause.clone()) {
                    warn!(event = "HostPortsNotSet", error = cause, "host ports of pods may not work");
                }
                self.outcome.failures.push(cause);
            }
        }
    }

    /// Sets routes to this node's own pods that somebody has removed. Only a turn does: the kernel tells of each removal.
    pub(super) fn hold_pod_routes(&mut self, now: Duration) {
        match cni::pod_routes::hold(Path::new(cni::STATE_DIR), self.outcome.pod_source()) {
            Ok(restored) => {
                if let Some(first) = restored.first() {
                    warn!(
                        event = "PodRoutesRestored",
                        count = restored.len(),
                        pod = %first,
                        "routes to pods of this node restored: another program removed them, or the node's address has changed"
                    );
                }
                self.side_tasks.succeeded(&POD_ROUTES);
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(now, POD_ROUTES, cause.clone()) {
                    warn!(
                        event = "PodRoutesNotHeld",
                        error = cause,
                        "routes to pods of this node may be missing"
                    );
                }
                self.outcome.failures.push(cause);
            }
        }
    }

    pub(super) fn write_cni_files(&mut self, now: Duration) {
        self.hold_host_ports(now);
        self.probe_chained_plugins();
        match self.outcome.write_cni_files(&self.config) {
            Ok(()) => drop(self.side_tasks.succeeded(&CNI)),
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(now, CNI, cause.clone()) {
                    warn!(
                        event = "CniFilesNotWritten",
                        error = cause,
                        "the files for the CNI plugin are not up to date"
                    );
                }
                self.outcome.failures.push(cause);
            }
        }
    }

    /// Probes chained plugins that were installed or replaced, beside the loop; the answer is an input of a later turn.
    fn probe_chained_plugins(&mut self) {
        if let Some(probe) =
            self.outcome.chained.start_probe(&self.config.cni_bin_dir, self.started.elapsed())
        {
            drop(self.api.ask(async move { Some(Answer::ChainedPlugins(probe.run().await)) }));
        }
    }

    pub(super) async fn perform(&mut self, now: Duration, ops: &[Op], admission: &Admission) {
        let sysctls = Sysctls::at(&self.config.sysctl_dir);
        let clocks = self.clocks_of_added(ops, admission);
        let mut still_there = Vec::new();
        for op in ops {
            // A peer that was to be removed to end its session must not get its new settings: the session would go on.
            if matches!(op, Op::AddPeer { slot, key, .. } if still_there.contains(&(*slot, *key))) {
                continue;
            }
            fault::point("step.before");
            let performed = perform::perform(
                op,
                (&self.host, &mut self.guard_owner),
                &sysctls,
                &mut self.devices,
                perform::Known { keys: &self.keys, ports: self.config.ports, clocks: &clocks },
            )
            .await;
            let subject = Attempt::step(op);
            self.outcome.counters.retried_steps += u64::from(self.backoff.is_failing(&subject));
            match performed {
                Ok(()) => {
                    self.outcome.counters.steps += 1;
                    match self.backoff.succeeded(&subject) {
                        None => info!(event = "StepDone", step = %op, "step done"),
                        Some(failures) => {
                            info!(event = "StepDone", step = %op, failures, "step done after failures");
                        }
                    }
                }
                Err(error) => {
                    if let Op::RemovePeer { slot, key } = op {
                        still_there.push((*slot, *key));
                    }
                    self.outcome.counters.failed_steps += 1;
                    let message = format!("{op}: {}", Chain(&error));
                    if self.backoff.failed(now, subject, message) {
                        warn!(
                            event = "StepFailed", step = %op, error = %Chain(&error),
                            "step failed; retrying with backoff"
                        );
                    }
                }
            }
        }
        for (slot, key) in perform::to_handshake_with(ops) {
            self.devices.initiate_handshake(slot, key);
        }
    }

    /// The clocks of the peers that a plan adds, by the keys that it adds, as far as they have told.
    fn clocks_of_added(&self, ops: &[Op], admission: &Admission) -> BTreeMap<PublicKey, SystemTime> {
        let added: BTreeSet<&PublicKey> = perform::to_handshake_with(ops).map(|(_, key)| key).collect();
        let mut clocks = BTreeMap::new();
        if added.is_empty() {
            return clocks;
        }
        for member in admission.world.peers.values() {
            let Some(clock) = self.peer_clocks.get(&member.uid.peer_id()) else { continue };
            let keys = member.state.slots.iter().map(|(_, slot)| slot.key);
            clocks.extend(keys.filter(|key| added.contains(key)).map(|key| (key, *clock)));
        }
        clocks
    }

    /// Writes the ledger to disk; returns whether it is there. `part` is what the turn has decided of the admission, unless
    /// that is all.
    pub(super) fn remember(
        &mut self,
        now: Duration,
        admission: &Admission,
        part: Option<&AdmissionPart>,
    ) -> bool {
        match part {
            Some(part) => self.cluster.remember_part(part),
            None => self.cluster.remember(&self.policy, &admission.ledger),
        };
        // Before the first list the ledger is the one that was read from the file.
        if !self.cluster.is_listed() {
            return true;
        }
        let node = NodeName::new(self.config.node_name.clone());
        match self.cache.save(&node, self.cluster.own_uid(), &admission.ledger, part) {
            Ok(_) => {
                self.side_tasks.succeeded(&CACHE);
                true
            }
            Err(error) => {
                let cause = Chain(&error).to_string();
                if self.side_tasks.failed(now, CACHE, cause.clone()) {
                    warn!(event = "PeersNotStored", error = cause, "the last known peers are not saved");
                }
                false
            }
        }
    }
}
