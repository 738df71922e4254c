//! How each node is connected: what it publishes of itself, what peers see, and which paths that gives. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use keyring::PerSlot;
use plan::annotation::{Endpoints, Mapping};
use serde::Serialize;

use super::graph::Path;
use super::silent::{Silent, said};
use super::text::wrapped;
use super::{API_VERSION, Answer, Verdict};
use crate::{FindingStatus, Status};

/// How all nodes are connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshNetCheck {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// `MeshNetCheck`.
    pub kind: &'static str,
    /// Each node that answered.
    pub nodes: Vec<NodeNetCheck>,
    /// Nodes that did not answer, and why.
    pub silent: Silent,
}

/// How a node is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetCheck {
    /// Its name.
    pub node: String,
    /// Addresses on its links that it publishes; none if it has published nothing that can be read.
    pub addresses: Option<Vec<IpAddr>>,
    /// Others that it publishes as leading to it.
    pub external: Vec<IpAddr>,
    /// Where peers see its datagrams come from, if that is none of its own addresses.
    pub observed: PerSlot<Vec<SocketAddr>>,
    /// The families of all of these.
    pub families: Vec<&'static str>,
    /// How a NAT in front of it maps its addresses.
    pub nat: Mapping,
    /// Peers by the path to them.
    pub paths: BTreeMap<Path, u64>,
    /// Whether it forwards for others, and for how many pairs and slots.
    pub relay: Option<usize>,
    /// What the checks of its host found.
    pub findings: Vec<FindingStatus>,
}

impl MeshNetCheck {
    /// Makes it of what each node says, with all of its peers, and of the annotation `meshd.dev/endpoints` of each.
    pub fn new(answers: &BTreeMap<String, Answer>, published: &BTreeMap<String, String>) -> Self {
        let (said, silent) = said(answers);
        let read = |node: &String| Endpoints::parse(published.get(node)?).ok();
        let nodes = said.into_iter().map(|(node, status)| NodeNetCheck::new(node, status, read(node)));
        Self { api_version: API_VERSION, kind: "MeshNetCheck", nodes: nodes.collect(), silent }
    }

    /// Failed if a node has published no address, or with `strict` if a check of a host found something; unknown if a node did not
    /// answer.
    pub fn verdict(&self, strict: bool) -> Verdict {
        let fails = |node: &NodeNetCheck| {
            node.addresses.as_ref().is_none_or(Vec::is_empty) || (strict && !node.findings.is_empty())
        };
        if self.nodes.iter().any(fails) {
            Verdict::Failed
        } else if self.silent.is_empty() {
            Verdict::Good
        } else {
            Verdict::Unknown
        }
    }

    /// As text of 80 columns, some lines a node.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            // Writing into a String can't fail.
            let _ = node.write(&mut text);
        }
        let _ = self.silent.write(&mut text);
        text
    }
}

impl NodeNetCheck {
    fn new(node: &str, status: &Status, published: Option<Endpoints>) -> Self {
        let mut paths = BTreeMap::new();
        for peer in &status.peers {
            *paths.entry(Path::of(peer)).or_default() += 1;
        }
        let has_list = published.is_some();
        let Endpoints { addresses, external, observed, .. } = published.unwrap_or_default();
        let seen = observed.iter().flat_map(|(_, seen)| seen).map(SocketAddr::ip);
        let all: Vec<IpAddr> = addresses.iter().chain(&external).copied().chain(seen).collect();
        let family = |name, ipv4| all.iter().any(|address| address.is_ipv4() == ipv4).then_some(name);
        Self {
            node: node.to_owned(),
            families: [family("IPv4", true), family("IPv6", false)].into_iter().flatten().collect(),
            addresses: has_list.then_some(addresses),
            external,
            observed,
            nat: status.nat,
            paths,
            relay: status.relay.as_ref().map(|relay| relay.leases),
            findings: status.findings.clone(),
        }
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let gap = if text.is_empty() { "" } else { "\n" };
        writeln!(text, "{gap}{}", self.node)?;
        let none = || "none".to_owned();
        let list = |items: Vec<String>| if items.is_empty() { none() } else { items.join(", ") };
        let addresses = |items: &[IpAddr]| list(items.iter().map(ToString::to_string).collect());
        let published = self
            .addresses
            .as_deref()
            .map_or_else(|| "nothing that can be read: peers can't find the node".to_owned(), addresses);
        wrapped(text, "  published  ", &published)?;
        if !self.external.is_empty() {
            wrapped(text, "  external   ", &addresses(&self.external))?;
        }
        let observed = self
            .observed
            .iter()
            .flat_map(|(slot, seen)| seen.iter().map(move |address| format!("{address} (slot {slot})")));
        wrapped(text, "  observed   ", &list(observed.collect()))?;
        let nat = match self.nat {
            Mapping::Unknown => "unknown: too few peers have reported",
            Mapping::None => "none: peers see the node's own address and port",
            Mapping::Easy => "easy: the same mapping for every destination",
            Mapping::Hard => "hard: another mapping for each destination; pairs of such nodes need a relay",
        };
        wrapped(text, "  NAT        ", nat)?;
        wrapped(text, "  families   ", &list(self.families.iter().map(ToString::to_string).collect()))?;
        let paths = self.paths.iter().map(|(path, count)| format!("{count} {}", path.as_str()));
        wrapped(text, "  paths      ", &list(paths.collect()))?;
        if let Some(leases) = self.relay {
            wrapped(text, "  relay      ", &format!("for other nodes, with {leases} leases"))?;
        }
        if self.findings.is_empty() {
            writeln!(text, "  host       nothing was found")?;
        }
        for found in &self.findings {
            wrapped(text, "  host       ", &format!("{}: {}", found.code, found.sentence))?;
            wrapped(text, "    do:      ", &found.fix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mesh, node};
    use super::*;

    const THREE: [&str; 3] = ["n1", "n2", "n3"];

    fn published() -> BTreeMap<String, String> {
        let endpoints = Endpoints {
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            observed: PerSlot { a: vec!["203.0.113.9:4711".parse().unwrap()], b: Vec::new() },
            mapping: Mapping::Hard,
            nat: true,
            ..Endpoints::default()
        };
        let ipv4 = Endpoints { addresses: vec!["192.0.2.2".parse().unwrap()], ..Endpoints::default() };
        [("n1".to_owned(), endpoints.render()), ("n2".to_owned(), ipv4.render())].into()
    }

    #[test]
    fn each_node_says_what_it_publishes_and_what_is_in_its_way() {
        let mut n1 = node("n1", &THREE, &["n3"]);
        n1.nat = Mapping::Hard;
        n1.findings = vec![FindingStatus {
            code: "no-forwarding".to_owned(),
            sentence: "packets are not forwarded".to_owned(),
            fix: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        }];
        let answers = mesh(vec![n1, node("n2", &THREE, &[])]);
        let check = MeshNetCheck::new(&answers, &published());
        assert_eq!((check.verdict(false), check.verdict(true)), (Verdict::Good, Verdict::Failed));
        assert_eq!(check.nodes[0].paths, [(Path::Unknown, 1), (Path::Down, 1)].into());
        let text = check.text();
        for part in [
            "n1\n  published  192.0.2.1, 2001:db8::1\n",
            "  observed   203.0.113.9:4711 (slot a)\n  NAT        hard: ",
            "  families   IPv4, IPv6\n  paths      1 unknown, 1 down\n",
            "  host       no-forwarding: packets are not forwarded\n    do:      sysctl",
            "\nn2\n  published  192.0.2.2\n  observed   none\n  NAT        unknown",
            "  host       nothing was found\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_node_that_publishes_nothing_fails_and_one_that_is_silent_is_not_known() {
        let mut answers = mesh(vec![node("n1", &THREE, &[]), node("n2", &THREE, &[])]);
        answers.insert("n3".to_owned(), Answer::Silent("late".to_owned()));
        let mut published = published();
        assert_eq!(MeshNetCheck::new(&answers, &published).verdict(false), Verdict::Unknown);
        published.insert("n2".to_owned(), "{".to_owned());
        let check = MeshNetCheck::new(&answers, &published);
        assert_eq!(check.verdict(false), Verdict::Failed);
        assert!(check.text().contains("n2\n  published  nothing that can be read"), "{}", check.text());
    }
}
