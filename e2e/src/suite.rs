//! What a run needs before it tries rows: pods and services in the cluster, and again after a row that has changed nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use e2e::acting::Acting;
use e2e::capture::Capture;
use e2e::cases::{Inventory, Pod};
use e2e::change::NOT_ASKED_FOR;
use e2e::kubectl::{self, Kubectl, KubectlError};
use e2e::outside::Outside;
use e2e::ports;
use e2e::services::{self, ENDPOINTS, NODE_LABEL};

use crate::{Failure, OWN, say};

/// Images may have to be pulled.
const PODS_WITHIN: Duration = Duration::from_mins(10);
/// After a change of nodes, which have the images already.
const SETTLED_WITHIN: Duration = Duration::from_mins(4);
/// What is still missing is said so often.
const SAID_EVERY: Duration = Duration::from_secs(20);
/// kube-proxy has to know the services on all nodes.
const SERVICES_WITHIN: Duration = Duration::from_mins(2);
/// The `DaemonSet` whose pods ask others.
const CLIENTS: &str = "one";
/// The `DaemonSet` whose pods a policy lets some others reach alone.
const GUARDED: &str = "guarded";
/// The `DaemonSet` of pods in the nodes' own network.
pub(crate) const AGENTS: &str = "agent";
const NO_MESHD: &str = "the cluster has no DaemonSet meshd in namespace meshd";

/// A run: where its pods are, and the machine that it runs on.
pub(crate) struct Suite<'a> {
    pub(crate) kubectl: &'a Kubectl,
    pub(crate) namespace: &'a str,
    pub(crate) outside: &'a Outside,
    pub(crate) capture: Option<&'a Capture>,
    pub(crate) acting: Option<&'a Acting>,
    pub(crate) disturb: bool,
    pub(crate) policies: bool,
}

impl Suite<'_> {
    /// Creates the suite's pods and services, and waits for them; or finds them, as a run before has left them.
    pub(crate) fn prepare(&self, image: &str, again: bool) -> Result<Inventory, Failure> {
        if !again {
            ports::check(self.kubectl)?;
            let manifest = std::fs::read_to_string(Path::new(OWN).join("pods.yaml"))?;
            let manifest = manifest.replace("NAMESPACE", self.namespace).replace("IMAGE", image);
            say(&format!("==> creating pods on all nodes, in namespace {}", self.namespace));
            self.kubectl.run(&["apply", "-f", "-"], &manifest)?;
            self.wait_for_pods(PODS_WITHIN)?;
        }
        let mut inventory = self.inventory()?;
        inventory.protocols = self.protocols(&inventory)?;
        inventory.unchanging = self.unchanging()?;
        if !again {
            self.wait_for_answers(&inventory, SERVICES_WITHIN)?;
        }
        self.enforce_policies()?;
        Ok(inventory)
    }

    /// Has a cluster that carries out verbs enforce the policies that there are now. Others do by themselves, or not at all.
    pub(crate) fn enforce_policies(&self) -> Result<(), Failure> {
        let verb = ["enforce-policies".to_owned()];
        Ok(self.acting.map_or(Ok(()), |acting| acting.act(&verb))?)
    }

    /// What the cluster has after a row that has changed nodes: waits until all pods run and answer. Whatever does not in time is
    /// for other rows to show.
    pub(crate) fn settle(&self, former: &Inventory) -> Result<Inventory, Failure> {
        let since = Instant::now();
        loop {
            let ready = self.wait_for_pods(SETTLED_WITHIN.saturating_sub(since.elapsed()));
            if let Err(error) = &ready {
                say(&format!("==> {error}"));
            }
            // Read anew each time: a pod that is started again has another address.
            let inventory = self.inventory()?;
            let inventory =
                Inventory { protocols: former.protocols.clone(), unchanging: former.unchanging, ..inventory };
            // A pod that is being started has no address. Without an IP version no row would be tried.
            let addressed = inventory.families() == former.families();
            let answers = addressed && self.wait_for_answers(&inventory, SAID_EVERY)?;
            if !addressed && since.elapsed() >= SETTLED_WITHIN {
                return Err(
                    "after a row that has changed nodes, pods lack addresses: look at their events".into()
                );
            }
            if answers || since.elapsed() >= SETTLED_WITHIN {
                say(&format!(
                    "==> {} nodes and {} pods, after {} s",
                    inventory.nodes.len(),
                    inventory.pods.len(),
                    since.elapsed().as_secs()
                ));
                return Ok(inventory);
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Nodes and pods as they are now, with services for each.
    fn inventory(&self) -> Result<Inventory, Failure> {
        let mut inventory = self.kubectl.inventory(self.namespace)?;
        self.create_services(&mut inventory)?;
        inventory.acting = self.acting.is_some();
        inventory.policies = self.policies || inventory.acting;
        for agent in &agents(&inventory) {
            let node = inventory.nodes.iter().find(|node| node.name == agent.node);
            let seen = node.and_then(|node| self.outside.towards(node, agent.port));
            inventory.pods.extend(seen);
        }
        Ok(inventory)
    }

    /// Waits for the pods, and says now and then what is missing.
    fn wait_for_pods(&self, within: Duration) -> Result<(), KubectlError> {
        let since = Instant::now();
        loop {
            match self.kubectl.wait_ready(self.namespace, SAID_EVERY) {
                Err(KubectlError::NotReady { said, .. }) if since.elapsed() < within => {
                    say(&format!("==> {} s: pods are not ready yet: {said}", since.elapsed().as_secs()));
                }
                done => return done,
            }
        }
    }

    fn create_services(&self, inventory: &mut Inventory) -> Result<(), KubectlError> {
        for (place, node) in inventory.nodes.iter().enumerate() {
            for pod in inventory.pods.iter().filter(|pod| pod.set == ENDPOINTS && pod.node == node.name) {
                let label = format!("{NODE_LABEL}={place}");
                self.kubectl
                    .run(&["-n", self.namespace, "label", "--overwrite", "pod", &pod.name, &label], "")?;
            }
        }
        let count = inventory.nodes.len();
        let manifest = services::manifest(self.namespace, count).to_string();
        self.kubectl.run(&["apply", "-f", "-"], &manifest)?;
        inventory.services = services::read(&self.kubectl.list(&["services", "-n", self.namespace])?, count);
        Ok(())
    }

    /// Why nothing may be changed, or can be.
    fn unchanging(&self) -> Result<Option<&'static str>, KubectlError> {
        if !self.disturb {
            return Ok(Some(NOT_ASKED_FOR));
        }
        let meshd = self.kubectl.output(&["-n", "meshd", "get", "daemonset", "meshd"], "")?;
        Ok((!meshd.status.success()).then_some(NO_MESHD))
    }

    /// The protocols that the kernels of all nodes have.
    fn protocols(&self, inventory: &Inventory) -> Result<Vec<String>, KubectlError> {
        let mut common: Option<BTreeSet<String>> = None;
        for agent in agents(inventory) {
            let said = self.kubectl.run(&self.exec(&agent.name, &["e2e-pod", "protocols"]), "")?;
            let own: BTreeSet<String> = said.split_whitespace().map(str::to_owned).collect();
            common = Some(common.map_or_else(|| own.clone(), |common| &common & &own));
        }
        Ok(common.unwrap_or_default().into_iter().collect())
    }

    /// Waits until every node reaches every pod and forwards to every service, or time is up: then the rows show what is missing.
    fn wait_for_answers(&self, inventory: &Inventory, within: Duration) -> Result<bool, KubectlError> {
        let (since, agents) = (Instant::now(), agents(inventory));
        for family in inventory.families() {
            let services = inventory.services.values().filter_map(|service| service.address(family));
            let pods = inventory.pods.iter().filter(|pod| !pod.host_network && pod.set != GUARDED);
            let pods = pods.filter_map(|pod| Some(SocketAddr::new(pod.address(family)?, pod.port)));
            let servers: Vec<String> = services.chain(pods).map(|server| server.to_string()).collect();
            // First by pods: what a node's own network sends to an address that a pod has no more is answered in the clear.
            let clients = inventory.pods.iter().filter(|pod| pod.set == CLIENTS).chain(&agents);
            for client in clients {
                for server in &servers {
                    let ask = self.exec(&client.name, &["e2e-pod", "ask", "tcp", server, "2"]);
                    while !self.kubectl.output(&ask, "")?.status.success() {
                        if since.elapsed() >= within {
                            say(&format!("==> {server} does not answer {} on {}", client.set, client.node));
                            return Ok(false);
                        }
                        thread::sleep(Duration::from_millis(500));
                    }
                }
            }
        }
        Ok(true)
    }

    pub(crate) fn exec<'a>(&'a self, pod: &'a str, command: &[&'a str]) -> Vec<&'a str> {
        kubectl::exec(self.namespace, pod, command)
    }
}

/// The pods in the nodes' own network.
pub(crate) fn agents(inventory: &Inventory) -> Vec<Pod> {
    inventory.pods.iter().filter(|pod| pod.set == AGENTS).cloned().collect()
}
