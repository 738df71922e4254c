//! The mesh as a graph: nodes, and for each pair how both ends see the path between them. Pure.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Answer;
use crate::PeerStatus;
use crate::reach::Reach;

/// What one end says of the path to the other one, or both together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Datagrams go from node to node.
    Direct,
    /// They go over a relay.
    Relayed,
    /// Nobody says.
    Unknown,
    /// The other end is not reached.
    Down,
}

/// A pair of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The node whose name comes first.
    pub a: String,
    /// The other one.
    pub b: String,
    /// What `a` says.
    pub from_a: Path,
    /// What `b` says.
    pub from_b: Path,
}

/// A mesh as nodes and pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Graph {
    /// [`super::API_VERSION`].
    pub api_version: String,
    /// `MeshGraph`.
    pub kind: String,
    /// Each node, and whether pods can be attached there.
    pub nodes: BTreeMap<String, bool>,
    /// Each pair of them once.
    pub edges: Vec<Edge>,
}

impl Path {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Unknown => "unknown",
            Self::Down => "down",
        }
    }

    /// What a node says of the path to a peer.
    pub(super) fn of(peer: &PeerStatus) -> Self {
        if peer.state == Reach::Down {
            return Self::Down;
        }
        let active = peer.active.and_then(|slot| peer.slots.get(slot).as_ref());
        match active.and_then(|slot| slot.path.as_deref()) {
            Some(path) if path.starts_with("relayed") => Self::Relayed,
            Some(_) => Self::Direct,
            None => Self::Unknown,
        }
    }

    const fn colour(self) -> &'static str {
        // Distinguishable also to those who see red and green alike (Okabe and Ito); line styles differ as well.
        match self {
            Self::Direct => "#009e73",
            Self::Relayed => "#e69f00",
            Self::Unknown => "#999999",
            Self::Down => "#d55e00",
        }
    }

    const fn dashes(self) -> Option<&'static str> {
        match self {
            Self::Direct => None,
            Self::Relayed => Some("8 4"),
            Self::Unknown => Some("1 4"),
            Self::Down => Some("2 2"),
        }
    }
}

impl Edge {
    /// The worse of what both ends say.
    pub fn path(&self) -> Path {
        self.from_a.max(self.from_b)
    }
}

impl Graph {
    /// Makes it of what each node says; the answers have to list all peers.
    pub fn new(answers: &BTreeMap<String, Answer>) -> Self {
        let says = |from: &str, to: &str| match answers.get(from) {
            Some(Answer::Said(status)) => {
                status.peers.iter().find(|peer| peer.node == to).map_or(Path::Down, Path::of)
            }
            _ => Path::Unknown,
        };
        let ready = |answer: &Answer| matches!(answer, Answer::Said(status) if status.ready);
        let names: Vec<&String> = answers.keys().collect();
        let pairs =
            names.iter().enumerate().flat_map(|(at, a)| names.iter().skip(at + 1).map(move |b| (*a, *b)));
        let edges =
            pairs.map(|(a, b)| Edge { a: a.clone(), b: b.clone(), from_a: says(a, b), from_b: says(b, a) });
        Self {
            api_version: super::API_VERSION.to_owned(),
            kind: "MeshGraph".to_owned(),
            edges: edges.collect(),
            nodes: answers.iter().map(|(name, answer)| (name.clone(), ready(answer))).collect(),
        }
    }

    /// The same with groups of nodes, by the name of each node's group: a group is ready if all of its nodes are, and two groups are
    /// as far apart as the pair of their nodes that is worst off.
    #[must_use]
    pub fn grouped(&self, groups: &BTreeMap<String, String>) -> Self {
        let group =
            |node: &String| groups.get(node).filter(|group| !group.is_empty()).unwrap_or(node).clone();
        let mut nodes = BTreeMap::new();
        for (node, ready) in &self.nodes {
            *nodes.entry(group(node)).or_insert(true) &= ready;
        }
        let mut edges: BTreeMap<(String, String), (Path, Path)> = BTreeMap::new();
        for edge in &self.edges {
            let (a, b) = (group(&edge.a), group(&edge.b));
            let (between, said) = if a <= b {
                ((a, b), (edge.from_a, edge.from_b))
            } else {
                ((b, a), (edge.from_b, edge.from_a))
            };
            if between.0 != between.1 {
                let worst = edges.entry(between).or_insert(said);
                *worst = (worst.0.max(said.0), worst.1.max(said.1));
            }
        }
        let edges = edges.into_iter().map(|((a, b), (from_a, from_b))| Edge { a, b, from_a, from_b });
        Self { nodes, edges: edges.collect(), ..self.clone() }
    }

    /// For Graphviz: `dot -Tsvg -Kcirco`.
    pub fn dot(&self) -> String {
        let mut text = "graph mesh {\n  node [shape=box, style=rounded];\n".to_owned();
        // Writing into a String can't fail.
        for (node, ready) in &self.nodes {
            let colour = if *ready { "" } else { ", color=\"#d55e00\", fontcolor=\"#d55e00\"" };
            let _ = writeln!(text, "  \"{0}\" [label=\"{0}\"{colour}];", quoted(node));
        }
        for edge in &self.edges {
            let path = edge.path();
            let style = if path == Path::Direct { "solid" } else { "dashed" };
            let (a, b) = (quoted(&edge.a), quoted(&edge.b));
            let _ = writeln!(
                text,
                "  \"{a}\" -- \"{b}\" [color=\"{}\", style={style}, tooltip=\"{}\"];",
                path.colour(),
                sentence(edge)
            );
        }
        text.push_str("}\n");
        text
    }

    /// For Mermaid, as in Markdown on code forges.
    pub fn mermaid(&self) -> String {
        let mut text = "graph LR\n".to_owned();
        let number: BTreeMap<&String, usize> = self.nodes.keys().zip(0..).collect();
        for (node, ready) in &self.nodes {
            let mark = if *ready { "" } else { " (not ready)" };
            // Entities of HTML, which Mermaid reads.
            let name = node.replace('"', "&quot;");
            let _ = writeln!(text, "  n{}[\"{name}{mark}\"]", number.get(node).copied().unwrap_or_default());
        }
        for edge in &self.edges {
            let at = |node: &String| number.get(node).copied().unwrap_or_default();
            let line = match edge.path() {
                Path::Direct => "---".to_owned(),
                other => format!("-. {} .-", other.as_str()),
            };
            let _ = writeln!(text, "  n{} {line} n{}", at(&edge.a), at(&edge.b));
        }
        text
    }

    /// A picture that shows each pair's sentence where the pointer is; light or dark as the viewer wants it.
    pub fn svg(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand nodes")]
        let count = self.nodes.len().max(1) as f64;
        // 28 units of the circle for each name.
        let radius = (count * 28.0 / TAU).max(120.0);
        let (middle, size) = (radius + 110.0, 2.0 * radius + 220.0);
        let place: BTreeMap<&String, (f64, f64, f64)> = self
            .nodes
            .keys()
            .zip(0..)
            .map(|(node, number)| {
                let angle = f64::from(number) / count * TAU - TAU / 4.0;
                (node, (middle + radius * angle.cos(), middle + radius * angle.sin(), angle))
            })
            .collect();
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {size:.0} {:.0}\" role=\"img\" \
             font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<title>{}</title>\n<style>text{{fill:#222}}\
             .bg{{fill:#fff}}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}.bg{{fill:#161616}}}}</style>\n\
             <rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n",
            size + 30.0,
            self.counts()
        );
        // What is wrong is drawn last, on top.
        let mut edges: Vec<&Edge> = self.edges.iter().collect();
        edges.sort_by_key(|edge| edge.path());
        for edge in edges {
            let Some(((ax, ay, _), (bx, by, _))) = place.get(&edge.a).zip(place.get(&edge.b)) else {
                continue;
            };
            let path = edge.path();
            let dashes =
                path.dashes().map(|dashes| format!(" stroke-dasharray=\"{dashes}\"")).unwrap_or_default();
            let _ = writeln!(
                text,
                "<line x1=\"{ax:.1}\" y1=\"{ay:.1}\" x2=\"{bx:.1}\" y2=\"{by:.1}\" stroke=\"{}\" \
                 stroke-width=\"1.5\"{dashes}><title>{}</title></line>",
                path.colour(),
                escaped(&sentence(edge))
            );
        }
        for (node, ready) in &self.nodes {
            let Some((x, y, angle)) = place.get(node) else { continue };
            let (fill, mark) = if *ready { ("#0072b2", "") } else { ("#d55e00", " (not ready)") };
            let (anchor, beside) = match angle.cos() {
                right if right > 0.1 => ("start", 10.0),
                left if left < -0.1 => ("end", -10.0),
                _ => ("middle", 0.0),
            };
            let below = if beside == 0.0 { 20.0 * angle.sin() } else { 0.0 };
            let _ = writeln!(
                text,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\" fill=\"{fill}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"{anchor}\">{}{mark}</text>",
                x + beside,
                y + below + 4.0,
                escaped(node)
            );
        }
        let _ = writeln!(
            text,
            "<text x=\"{middle:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>\n</svg>",
            size + 10.0,
            self.counts()
        );
        text
    }

    /// How many pairs there are of each kind.
    pub fn counts(&self) -> String {
        let count = |path| self.edges.iter().filter(|edge| edge.path() == path).count();
        let each: Vec<String> = [Path::Direct, Path::Relayed, Path::Down, Path::Unknown]
            .into_iter()
            .map(|path| (path, count(path)))
            .filter(|(_, count)| *count > 0)
            .map(|(path, count)| format!("{count} {}", path.as_str()))
            .collect();
        format!("{} nodes, {} pairs: {}", self.nodes.len(), self.edges.len(), each.join(", "))
    }
}

fn sentence(edge: &Edge) -> String {
    let Edge { a, b, from_a, from_b } = edge;
    if from_a == from_b {
        format!("{a} and {b}: {}", from_a.as_str())
    } else {
        format!("{a} says {}, {b} says {}", from_a.as_str(), from_b.as_str())
    }
}

/// For a string of DOT.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// For text of XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{mesh, node};
    use super::*;
    use crate::Status;

    const THREE: [&str; 3] = ["n1", "n2", "n3"];

    /// What a node says of the path to each peer, over slot a.
    fn with_paths(mut status: Status, paths: &[(&str, &str)]) -> Status {
        for peer in &mut status.peers {
            let Some((_, path)) = paths.iter().find(|(node, _)| *node == peer.node) else { continue };
            let slot = serde_json::json!({
                "key": keyring::PublicKey::from_bytes(&[1; 32]).unwrap(), "endpoint": null, "path": path,
                "handshake_age": 1, "received": 0, "sent": 0, "endpoint_drifts": 0,
            });
            peer.slots.a = Some(serde_json::from_value(slot).unwrap());
            peer.active = Some(keyring::Slot::A);
        }
        status
    }

    fn graph() -> Graph {
        let mut answers = mesh(vec![
            with_paths(node("n1", &THREE, &[]), &[("n2", "external"), ("n3", "punched")]),
            with_paths(node("n2", &THREE, &["n3"]), &[("n1", "relayed via n3")]),
        ]);
        answers.insert("n3".to_owned(), Answer::Silent("late".to_owned()));
        Graph::new(&answers)
    }

    #[test]
    fn a_pair_is_as_good_as_the_worse_of_what_both_ends_say() {
        let graph = graph();
        let edges: Vec<_> = graph.edges.iter().map(|edge| (edge.from_a, edge.from_b, edge.path())).collect();
        assert_eq!(
            edges,
            [
                (Path::Direct, Path::Relayed, Path::Relayed),
                (Path::Direct, Path::Unknown, Path::Unknown),
                (Path::Down, Path::Unknown, Path::Down),
            ]
        );
        assert_eq!(graph.counts(), "3 nodes, 3 pairs: 1 relayed, 1 down, 1 unknown");
        assert!(!graph.nodes["n3"]);
    }

    #[test]
    fn each_format_has_all_nodes_and_pairs() {
        let graph = graph();
        let (dot, mermaid, svg) = (graph.dot(), graph.mermaid(), graph.svg());
        assert!(dot.starts_with("graph mesh {") && dot.matches(" -- ").count() == 3, "{dot}");
        assert!(dot.contains("tooltip=\"n1 says direct, n2 says relayed\""), "{dot}");
        assert!(
            mermaid.contains("n0 -. relayed .- n1") && mermaid.contains("n2[\"n3 (not ready)\"]"),
            "{mermaid}"
        );
        assert_eq!((svg.matches("<line").count(), svg.matches("<circle").count()), (3, 3), "{svg}");
        assert!(svg.contains("<title>n1 says direct, n2 says relayed</title>"), "{svg}");
        assert_eq!(serde_json::to_value(&graph).unwrap()["edges"][2]["from_a"], "down");
    }

    #[test]
    fn groups_are_as_far_apart_as_their_worst_pair() {
        let groups = [("n1", "west"), ("n2", "east"), ("n3", "east")];
        let groups = groups.map(|(node, group)| (node.to_owned(), group.to_owned())).into();
        let graph = graph().grouped(&groups);
        assert_eq!(graph.nodes, [("east".to_owned(), false), ("west".to_owned(), true)].into());
        let (a, b) = ("east".to_owned(), "west".to_owned());
        assert_eq!(graph.edges, [Edge { a, b, from_a: Path::Unknown, from_b: Path::Direct }]);
        assert_eq!(graph.grouped(&BTreeMap::new()), graph, "without a group a node stands for itself");
    }

    #[test]
    fn names_are_text_in_each_format() {
        let hostile = "a\"]<b>&\\";
        let graph = Graph::new(&mesh(vec![node(hostile, &[hostile], &[])]));
        assert!(graph.svg().contains("a&quot;]&lt;b&gt;&amp;\\</text>"), "{}", graph.svg());
        assert!(graph.dot().contains("\"a\\\"]<b>&\\\\\""), "{}", graph.dot());
        assert!(graph.mermaid().contains("[\"a&quot;]<b>&\\\"]"), "{}", graph.mermaid());
    }
}
