//! From rows and what the cluster has to single commands with what they have to print. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;

use crate::scenario::{Need, Place, Row, Step};
use crate::services::{ENDPOINTS, Kind, Service};

/// The port that pods serve.
pub const PORT: u16 = 8080;
/// The port that pods serve on localhost alone.
const LOCAL_PORT: u16 = 9090;
/// The port of each node that leads to its pod of [`HOST_PORT_SET`].
pub(crate) const HOST_PORT: u16 = 18_081;
/// The `DaemonSet` whose pods have a host port.
const HOST_PORT_SET: &str = "one";
/// What rows call the machine that the suite runs on.
pub const OUTSIDE: &str = "outside";
/// Why something can't be tried.
const NOT_REACHED: &str = "the machine that the suite runs on does not reach the nodes' addresses";
const TOO_FEW_NODES: &str = "the cluster has too few nodes";
const NOT_ACTING: &str =
    "it adds, removes or reboots nodes, or stops the API server, which needs a cluster of `make cluster`";
const NO_ENFORCER: &str = "nobody is known to enforce NetworkPolicies (--policies)";
const NO_PROTOCOL: &str = "the nodes' kernels lack the protocol";
const NO_ADDRESS: &str = "nodes or services have no address of this IP version";
/// Placeholders that stand for several addresses: those of the node, and these and the pod's own.
const FROM_NODE: &str = "{from-node}";
const FROM_ANY: &str = "{from-any}";

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The addresses of its status, then those that its own pods see its traffic come from.
    pub addresses: Vec<IpAddr>,
    /// Its podCIDRs.
    pub ranges: Vec<IpNetwork>,
}

/// A pod of the suite. So is the machine that the suite runs on, as each node sees it: `node` is then the node that it talks
/// to, or through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The `DaemonSet` that it is of.
    pub set: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The port that it serves.
    pub port: u16,
    /// Whether it is in the node's own network, or in none of the cluster's.
    pub host_network: bool,
}

/// What the cluster has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// The suite's pods.
    pub pods: Vec<Pod>,
    /// The suite's services.
    pub services: BTreeMap<Kind, Service>,
    /// The protocols that the kernels of all nodes have.
    pub protocols: Vec<String>,
    /// Why rows that change something can't be tried, if they can't.
    pub unchanging: Option<&'static str>,
    /// Whether network policies are enforced.
    pub policies: bool,
    /// Whether the cluster carries out verbs.
    pub acting: bool,
    /// The namespace of the suite's pods.
    pub namespace: String,
}

/// One IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What a command has to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One of these texts, and nothing else but white space around it.
    OneOf(Vec<String>),
    /// This text somewhere.
    Contains(String),
    /// It fails.
    Failure,
}

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Which pods and protocol it is about, for the report.
    pub about: String,
    /// IP version.
    pub family: Family,
    /// The pod that it runs in; none if it runs on the machine that the suite runs on.
    pub pod: Option<String>,
    /// The command.
    pub command: Vec<String>,
    /// What it has to print.
    pub expected: Expected,
    /// What is done while it runs.
    pub meanwhile: Vec<Step>,
    /// It goes on until all of that is done, and nobody is connected to it.
    pub detached: bool,
}

/// What of a row can't be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The protocol; nothing if it is the whole row.
    pub about: String,
    /// Why not.
    pub reason: &'static str,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// As in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }

    /// Whether an address is of this version.
    pub fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

impl Expected {
    /// Whether a command did what it should: whether it succeeded, and what it printed.
    pub fn is_met(&self, succeeded: bool, printed: &str) -> bool {
        match self {
            Self::OneOf(texts) => succeeded && texts.iter().any(|text| text.trim() == printed.trim()),
            Self::Contains(text) => succeeded && printed.contains(text),
            Self::Failure => !succeeded && printed.is_empty(),
        }
    }

    /// For the report.
    pub fn describe(&self) -> String {
        match self {
            Self::OneOf(texts) => texts.join(" or "),
            Self::Contains(text) => format!("... {text} ..."),
            Self::Failure => "no answer".to_owned(),
        }
    }
}

impl Inventory {
    /// The IP versions that all pods have.
    pub fn families(&self) -> Vec<Family> {
        let has = |family: Family| {
            let mut pods = self.pods.iter().filter(|pod| !pod.host_network).peekable();
            pods.peek().is_some() && pods.all(|pod| pod.address(family).is_some())
        };
        Family::ALL.into_iter().filter(|&family| has(family)).collect()
    }

    /// All commands of a row for one IP version, and what of it can't be tried here.
    pub fn cases(&self, row: &Row, family: Family) -> (Vec<Case>, Vec<Skip>) {
        let of = |set: &str| -> Vec<&Pod> { self.pods.iter().filter(|pod| pod.set == set).collect() };
        let (from, to) = (of(&row.from), of(&row.to));
        let pairs: Vec<(&Pod, Option<&Pod>)> = match row.place {
            None => Vec::new(),
            Some(Place::EachPod) => from.iter().map(|&pod| (pod, None)).collect(),
            Some(place) => {
                let pairs = from.iter().flat_map(|&from| to.iter().map(move |&to| (from, to)));
                let fits = |(from, to): &(&Pod, &Pod)| match place {
                    Place::Itself => from.name == to.name,
                    Place::SameNode => from.node == to.node,
                    Place::BetweenNodes | Place::OnePair => from.node != to.node,
                    Place::EachPod => false,
                };
                let most = if place == Place::OnePair { 1 } else { usize::MAX };
                pairs.filter(fits).take(most).map(|(from, to)| (from, Some(to))).collect()
            }
        };
        let (mut cases, mut skipped) = (Vec::new(), Vec::new());
        if row.needs.contains(&Need::Policies) && !self.policies {
            return (cases, vec![Skip { about: String::new(), reason: NO_ENFORCER }]);
        }
        let changes = row.needs.contains(&Need::Changes) || !row.meanwhile.is_empty();
        let acts = row.meanwhile.iter().any(|step| matches!(step, Step::Cluster { .. }));
        let not_acting = (acts && !self.acting).then_some(NOT_ACTING);
        if let Some(reason) = self.unchanging.filter(|_| changes).or(not_acting) {
            return (cases, vec![Skip { about: String::new(), reason }]);
        }
        let words = || row.meanwhile.iter().flat_map(Step::words);
        if self.nodes.len() < 3 && words().any(|word| word.contains("{third-")) {
            return (cases, vec![Skip { about: String::new(), reason: TOO_FEW_NODES }]);
        }
        if pairs.is_empty() {
            let not_reached =
                (row.from == OUTSIDE && from.is_empty()) || (row.to == OUTSIDE && to.is_empty());
            let reason = if not_reached { NOT_REACHED } else { TOO_FEW_NODES };
            skipped.push(Skip { about: String::new(), reason });
        }
        let none = [String::new()];
        let protocols = if row.protocols.is_empty() { none.as_slice() } else { &row.protocols };
        for protocol in protocols.iter().filter(|_| !pairs.is_empty()) {
            let skip = |reason| Skip { about: protocol.clone(), reason };
            if !protocol.is_empty() && !self.protocols.contains(protocol) {
                skipped.push(skip(NO_PROTOCOL));
                continue;
            }
            let all = pairs.iter().map(|&(from, to)| self.case(row, family, from, to, protocol));
            match all.collect::<Option<Vec<Case>>>() {
                Some(all) => cases.extend(all),
                None => skipped.push(skip(NO_ADDRESS)),
            }
        }
        (cases, skipped)
    }

    fn case(&self, row: &Row, family: Family, from: &Pod, to: Option<&Pod>, protocol: &str) -> Option<Case> {
        let values = self.values(family, from, to, protocol);
        let fill = |text: &String| {
            let filled = values.iter().fold(text.clone(), |text, (name, value)| text.replace(name, value));
            // What is left stands for nothing here.
            (!filled.contains(['{', '}'])).then_some(filled)
        };
        let node = self.nodes.iter().find(|node| node.name == from.node)?;
        let expected = match (&row.expect, &row.contains, &row.one_of) {
            (Some(text), _, _) => {
                let of_node = node.addresses.iter().filter(|&&address| family.has(address));
                let of_node = of_node.map(ToString::to_string);
                let own = from.address(family).map(|address| address.to_string());
                let texts: Option<Vec<String>> = if text.contains(FROM_NODE) {
                    of_node.map(|source| fill(&text.replace(FROM_NODE, &source))).collect()
                } else if text.contains(FROM_ANY) {
                    own.into_iter()
                        .chain(of_node)
                        .map(|source| fill(&text.replace(FROM_ANY, &source)))
                        .collect()
                } else {
                    fill(text).map(|text| vec![text])
                };
                Expected::OneOf(texts?)
            }
            (None, Some(text), _) => Expected::Contains(fill(text)?),
            (None, None, Some(text)) => {
                Expected::OneOf(fill(text)?.split_whitespace().map(str::to_owned).collect())
            }
            (None, None, None) => Expected::Failure,
        };
        let mut about = format!("{} on {}", from.set, from.node);
        if from.set == OUTSIDE {
            about = format!("{OUTSIDE}, by {}", from.node);
        }
        if let Some(to) = to {
            about = format!("{about}, to {} on {}", to.set, to.node);
        }
        if !protocol.is_empty() {
            about = format!("{about}, {protocol}");
        }
        let command: Option<Vec<String>> = row.run.iter().map(fill).collect();
        let pod = (from.set != OUTSIDE).then(|| from.name.clone());
        let meanwhile: Option<_> = row.meanwhile.iter().map(|step| step.fill(fill)).collect();
        let (meanwhile, detached) = (meanwhile?, row.detached);
        Some(Case { about, family, pod, command: command?, expected, meanwhile, detached })
    }

    /// What placeholders stand for. Those that stand for nothing here are left out.
    fn values(
        &self,
        family: Family,
        from: &Pod,
        to: Option<&Pod>,
        protocol: &str,
    ) -> BTreeMap<&'static str, String> {
        let place = |name: &str| self.nodes.iter().position(|node| node.name == name);
        let node_address = |name: &str| {
            let node = self.nodes.get(place(name)?)?;
            node.addresses.iter().copied().find(|&address| family.has(address))
        };
        let at = |address: Option<IpAddr>, port: u16| {
            Some(SocketAddr::new(address?, port)).map(|address| address.to_string())
        };
        let service = |kind: Kind| self.services.get(&kind);
        let cluster_ip = |kind: Kind| Some(service(kind)?.address(family)?.to_string());
        let endpoints = || self.pods.iter().filter(|pod| pod.set == ENDPOINTS);
        let mut names: Vec<&str> = endpoints().map(|pod| pod.name.as_str()).collect();
        names.sort_unstable();
        // The last one: a node that was added during the run, and that others don't need.
        let third = self.nodes.iter().rev().find(|node| {
            let is = |pod: &Pod| pod.node == node.name;
            !is(from) && !to.is_some_and(is)
        });
        let of_third = third
            .and_then(|third| self.pods.iter().find(|pod| pod.set == from.set && pod.node == third.name));
        let loopback = match family {
            Family::V4 => "127.0.0.1",
            Family::V6 => "[::1]",
        };
        let mut values = vec![
            ("{protocol}", Some(protocol.to_owned())),
            ("{loopback}", Some(loopback.to_owned())),
            ("{from}", from.address(family).map(|address| address.to_string())),
            ("{from-name}", Some(from.name.clone())),
            ("{namespace}", Some(self.namespace.clone())),
            ("{third-host}", third.map(|third| third.name.clone())),
            ("{third-name}", of_third.map(|pod| pod.name.clone())),
            ("{all-service}", cluster_ip(Kind::All)),
            ("{sticky-service}", cluster_ip(Kind::Sticky)),
            ("{all-names}", Some(names.join(" "))),
            // So often that one of them is never chosen with a probability of less than one in a million.
            ("{asks}", Some((names.len() * 20).to_string())),
        ];
        if let Some(to) = to {
            let of_node = |kind: fn(usize) -> Kind| {
                let service = service(kind(place(&to.node)?)).filter(|_| to.set == ENDPOINTS)?;
                at(node_address(&from.node), *service.node_ports.get(protocol)?)
            };
            let own = place(&to.node).filter(|_| to.set == ENDPOINTS);
            values.extend([
                ("{to}", to.address(family).map(|address| address.to_string())),
                ("{to-port}", at(to.address(family), to.port)),
                ("{to-local-port}", at(to.address(family), LOCAL_PORT)),
                ("{to-name}", Some(to.name.clone())),
                ("{to-host}", Some(to.node.clone())),
                ("{to-service}", own.and_then(|place| cluster_ip(Kind::OfNode(place)))),
                ("{to-host-port}", at(node_address(&to.node).filter(|_| to.set == HOST_PORT_SET), HOST_PORT)),
                ("{via-port}", of_node(Kind::OfNode)),
                ("{via-local-port}", of_node(Kind::LocalOfNode)),
            ]);
        }
        values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// What is wrong with the addresses of pods; nothing if each is unique and within a podCIDR of its node.
    pub fn wrong_addresses(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut seen: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for pod in self.pods.iter().filter(|pod| !pod.host_network) {
            let ranges =
                self.nodes.iter().find(|node| node.name == pod.node).map(|node| node.ranges.as_slice());
            if pod.addresses.is_empty() {
                wrong.push(format!("{} has no address", pod.name));
            }
            for &address in &pod.addresses {
                if let Some(other) = seen.insert(address, &pod.name) {
                    wrong.push(format!("{} and {other} both have {address}", pod.name));
                }
                if !ranges.unwrap_or_default().iter().any(|range| range.contains(address)) {
                    wrong.push(format!("{address} of {} is in no podCIDR of {}", pod.name, pod.node));
                }
            }
        }
        wrong
    }
}

impl Pod {
    /// Its first address of an IP version.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|&address| family.has(address))
    }
}

#[cfg(test)]
mod tests;
