//! From rows and what the cluster has to single commands with what they have to print. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::scenario::{Place, Row};

/// The port that pods serve.
const PORT: u16 = 8080;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The addresses of its status, and those that its own pods see its traffic come from.
    pub addresses: Vec<IpAddr>,
    /// Its podCIDRs.
    pub ranges: Vec<IpNetwork>,
}

/// A pod of the suite.
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
    /// Whether it is in the node's own network.
    pub host_network: bool,
}

/// What the cluster has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// The suite's pods.
    pub pods: Vec<Pod>,
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
}

/// One command in one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Which pods and protocol it is about, for the report.
    pub about: String,
    /// IP version.
    pub family: Family,
    /// The pod that it runs in.
    pub pod: String,
    /// The command.
    pub command: Vec<String>,
    /// What it has to print.
    pub expected: Expected,
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

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

impl Expected {
    /// Whether a command printed it.
    pub fn is_met(&self, printed: &str) -> bool {
        match self {
            Self::OneOf(texts) => texts.iter().any(|text| text.trim() == printed.trim()),
            Self::Contains(text) => printed.contains(text),
        }
    }

    /// For the report.
    pub fn describe(&self) -> String {
        match self {
            Self::OneOf(texts) => texts.join(" or "),
            Self::Contains(text) => format!("... {text} ..."),
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

    /// All commands of a row for one IP version.
    pub fn cases(&self, row: &Row, family: Family) -> Vec<Case> {
        let of = |set: &str| -> Vec<&Pod> { self.pods.iter().filter(|pod| pod.set == set).collect() };
        let (from, to) = (of(&row.from), of(&row.to));
        let pairs: Vec<(&Pod, Option<&Pod>)> = match row.place {
            None => Vec::new(),
            Some(Place::EachPod) => from.into_iter().map(|pod| (pod, None)).collect(),
            Some(place) => {
                let pairs = from.iter().flat_map(|&from| to.iter().map(move |&to| (from, to)));
                let fits = |(from, to): &(&Pod, &Pod)| (from.node == to.node) == (place == Place::SameNode);
                pairs.filter(fits).map(|(from, to)| (from, Some(to))).collect()
            }
        };
        let none = [String::new()];
        let protocols = if row.protocols.is_empty() { none.as_slice() } else { &row.protocols };
        let all = pairs.into_iter().flat_map(|pair| protocols.iter().map(move |protocol| (pair, protocol)));
        all.filter_map(|((from, to), protocol)| self.case(row, family, from, to, protocol)).collect()
    }

    fn case(&self, row: &Row, family: Family, from: &Pod, to: Option<&Pod>, protocol: &str) -> Option<Case> {
        let mut values = BTreeMap::from([
            ("{protocol}", protocol.to_owned()),
            ("{from}", from.address(family)?.to_string()),
            ("{from-name}", from.name.clone()),
        ]);
        let mut about = format!("{} on {}", from.set, from.node);
        if let Some(to) = to {
            let address = to.address(family)?;
            values.insert("{to}", address.to_string());
            values.insert("{to-port}", std::net::SocketAddr::new(address, PORT).to_string());
            values.insert("{to-name}", to.name.clone());
            about = format!("{about} to {} on {}", to.set, to.node);
        }
        if !protocol.is_empty() {
            about = format!("{about}, {protocol}");
        }
        let fill =
            |text: &String| values.iter().fold(text.clone(), |text, (name, value)| text.replace(name, value));
        let node = self.nodes.iter().find(|node| node.name == from.node)?;
        let addresses = node.addresses.iter().filter(|&&address| family.has(address));
        let expected = match (&row.expect, &row.contains) {
            (Some(text), _) if text.contains("{from-node}") => Expected::OneOf(
                addresses.map(|address| fill(text).replace("{from-node}", &address.to_string())).collect(),
            ),
            (Some(text), _) => Expected::OneOf(vec![fill(text)]),
            (None, text) => Expected::Contains(fill(text.as_ref()?)),
        };
        let command = row.run.iter().map(fill).collect();
        Some(Case { about, family, pod: from.name.clone(), command, expected })
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
    fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|&address| family.has(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> Inventory {
        let node = |number: u8| Node {
            name: format!("n{number}"),
            addresses: vec![IpAddr::from([198, 18, 0, number])],
            ranges: vec![format!("10.244.{number}.0/24").parse().unwrap()],
        };
        let pod = |set: &str, number: u8, last: u8| Pod {
            name: format!("{set}-{number}"),
            set: set.to_owned(),
            node: format!("n{number}"),
            addresses: vec![IpAddr::from([10, 244, number, last])],
            host_network: false,
        };
        Inventory {
            nodes: (1..=3).map(node).collect(),
            pods: (1..=3).flat_map(|number| [pod("one", number, 2), pod("other", number, 3)]).collect(),
        }
    }

    fn row(place: Place) -> Row {
        Row {
            place: Some(place),
            from: "one".into(),
            to: "other".into(),
            protocols: vec!["tcp".into(), "udp".into()],
            run: vec!["ask".into(), "{protocol}".into(), "{to-port}".into()],
            expect: Some("{to-name} {from}".into()),
            ..Row::default()
        }
    }

    #[test]
    fn a_row_between_nodes_is_tried_for_every_ordered_pair_and_protocol() {
        let cases = inventory().cases(&row(Place::BetweenNodes), Family::V4);
        assert_eq!(cases.len(), 3 * 2 * 2);
        let case = cases.iter().find(|case| case.about == "one on n1 to other on n3, udp").unwrap();
        assert_eq!(case.pod, "one-1");
        assert_eq!(case.command, ["ask", "udp", "10.244.3.3:8080"]);
        assert!(case.expected.is_met("other-3 10.244.1.2\n"));
        assert!(!case.expected.is_met("other-3 10.244.1.1\n"));
    }

    #[test]
    fn on_one_node_there_are_no_others() {
        let cases = inventory().cases(&row(Place::SameNode), Family::V4);
        assert_eq!(cases.len(), 3 * 2);
        assert!(cases.iter().all(|case| case.about.matches("n1").count() != 1), "{cases:?}");
    }

    #[test]
    fn a_node_may_use_any_of_its_addresses() {
        let mut inventory = inventory();
        inventory.nodes[0].addresses.push("10.244.1.1".parse().unwrap());
        let row = Row { expect: Some("{to-name} {from-node}".into()), ..row(Place::SameNode) };
        let case = inventory.cases(&row, Family::V4).remove(0);
        assert!(case.expected.is_met("other-1 198.18.0.1") && case.expected.is_met("other-1 10.244.1.1"));
        assert!(!case.expected.is_met("other-1 198.18.0.2"));
    }

    #[test]
    fn a_cluster_has_the_ip_versions_that_all_its_pods_have() {
        let mut inventory = inventory();
        assert_eq!(inventory.families(), [Family::V4]);
        for pod in &mut inventory.pods {
            pod.addresses.push("fd00::1".parse().unwrap());
        }
        assert_eq!(inventory.families(), Family::ALL);
        inventory.pods[2].addresses.pop();
        assert_eq!(inventory.families(), [Family::V4]);
        assert_eq!(Inventory::default().families(), []);
        assert!(inventory.cases(&row(Place::SameNode), Family::V6).len() < 6);
    }

    #[test]
    fn addresses_that_are_shared_or_elsewhere_are_wrong() {
        let mut inventory = inventory();
        assert_eq!(inventory.wrong_addresses(), Vec::<String>::new());
        inventory.pods[0].addresses = vec![IpAddr::from([10, 244, 2, 2])];
        inventory.pods[1].addresses.clear();
        let wrong = inventory.wrong_addresses();
        assert_eq!(wrong.len(), 3, "{wrong:?}");
    }
}
