//! The trails of all nodes, compared with each other. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use keyring::audit::{self, CheckedTrail, Line, Report};
use serde::Serialize;

use super::{NodeTrails, Selection, Verification, lines_table, page, table};
use crate::mesh::silent::Silent;
use crate::mesh::text::{WIDTH, wrapped};
use crate::mesh::{API_VERSION, Verdict};

/// How wide the labels below the table of a report are.
const LABEL: usize = 25;

/// What a node's trails were, in the order in which they were fetched: a node may record another one's head at any time, so its
/// records have to be older than the trail that they are compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Its own trail.
    pub before: String,
    /// After that, its witness trail; none if it could not be read.
    pub witness: Option<String>,
    /// Its own trail, once the witness trails of all nodes had been fetched.
    pub after: String,
}

/// The trails of all nodes.
#[derive(Debug)]
pub struct Fleet {
    nodes: BTreeMap<String, Node>,
    silent: Silent,
}

#[derive(Debug)]
struct Node {
    records: NodeTrails,
    own: NodeTrails,
}

/// What was found of all trails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshAudit {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// `MeshAudit`.
    pub kind: &'static str,
    /// Each node's, by its name.
    pub nodes: Vec<Verification>,
    /// Nodes whose trail could not be fetched, and why.
    pub silent: Silent,
}

impl Fleet {
    /// Reads what was fetched.
    pub fn new(fetched: &BTreeMap<String, Fetched>, silent: Silent) -> Self {
        let node = |(node, fetched): (&String, &Fetched)| {
            let file = |name: &str, text: &String| vec![(PathBuf::from(node).join(name), text.clone())];
            let witness = fetched.witness.as_ref().map(|text| file(audit::WITNESS_DIRECTORY, text));
            let trails = Node {
                records: NodeTrails::new(&file("trail", &fetched.before), witness.as_deref(), true),
                own: NodeTrails::new(&file("trail", &fetched.after), None, false),
            };
            (node.clone(), trails)
        };
        Self { nodes: fetched.iter().map(node).collect(), silent }
    }

    /// Everything that is wrong with each.
    pub fn verify(&self) -> MeshAudit {
        let nodes = self.nodes.iter().map(|(name, node)| {
            let mut found = node.own.verify(std::iter::empty());
            if found.node != *name && !found.node.is_empty() {
                found.problems.push(format!("the trail is of {}", found.node));
            }
            found.node.clone_from(name);
            found.missing = node.records.verify(std::iter::empty()).missing;
            let others = self.nodes.iter().filter(|(other, _)| *other != name);
            let contradictions = others.flat_map(|(_, other)| other.records.contradictions(&node.own));
            for problem in node.records.problems().into_iter().chain(contradictions) {
                if !found.problems.contains(&problem) {
                    found.problems.push(problem);
                }
            }
            found.witnesses = self.nodes.len() - 1;
            found.intact = found.problems.is_empty();
            found
        });
        MeshAudit {
            api_version: API_VERSION,
            kind: "MeshAudit",
            nodes: nodes.collect(),
            silent: self.silent.clone(),
        }
    }

    fn trails(&self) -> impl Iterator<Item = &CheckedTrail> {
        // Whole but for what was added while the trails were fetched.
        self.nodes.values().flat_map(|node| node.records.all())
    }

    /// The lines that are wanted, in the order of time, with the node whose trail has each and a letter for its witness trail.
    pub fn chosen(&self, selection: &Selection) -> Vec<(String, &Line)> {
        let mut lines: Vec<(String, &Line)> = Vec::new();
        for (name, node) in &self.nodes {
            let chosen = node.records.chosen(selection).into_iter();
            lines.extend(chosen.map(|(trail, line)| (format!("{name}:{trail}"), line)));
        }
        lines.sort_by_key(|(_, line)| line.time);
        lines
    }

    /// These lines as a table of 80 columns.
    pub fn lines_text(&self, selection: &Selection) -> String {
        lines_table(&self.chosen(selection), self.trails(), Some(WIDTH))
    }

    /// The page for an auditor; times in milliseconds since 1970 and in seconds.
    pub fn report(&self, now: u64, max_age: u64) -> Report {
        let lines: Vec<&[Line]> = self.trails().map(|trail| trail.lines.as_slice()).collect();
        audit::report(&lines, now, max_age)
    }

    /// The same as text.
    pub fn report_text(&self, now: u64, max_age: u64) -> String {
        let broken = self.verify().nodes.iter().filter(|node| !node.intact).count();
        let page = page(&self.report(now, max_age), self.nodes.len(), broken, max_age, Some(WIDTH));
        let mut text = String::new();
        for line in page.lines() {
            match line.split_at_checked(LABEL) {
                Some((label, rest)) if line.chars().count() > WIDTH.into() => {
                    // Writing into a String can't fail.
                    let _ = wrapped(&mut text, label, rest);
                }
                _ => {
                    let _ = writeln!(text, "{line}");
                }
            }
        }
        text
    }

    /// Unknown if a trail could not be fetched.
    pub fn completeness(&self) -> Verdict {
        if self.silent.is_empty() { Verdict::Good } else { Verdict::Unknown }
    }
}

impl MeshAudit {
    /// Failed if a trail is not intact; unknown if one could not be fetched.
    pub fn verdict(&self) -> Verdict {
        if self.nodes.iter().any(|node| !node.intact) {
            Verdict::Failed
        } else if self.silent.is_empty() && !self.nodes.is_empty() {
            Verdict::Good
        } else {
            Verdict::Unknown
        }
    }

    /// As text, what is wrong first.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut table = table(Some(WIDTH));
        table.set_header(["NODE", "TRAIL", "LINES", "WITNESSES", "HEAD"]);
        for node in &self.nodes {
            // Writing into a String can't fail.
            for problem in &node.problems {
                let _ = wrapped(&mut text, "", &format!("{}: {problem}", node.node));
            }
            table.add_row([
                node.node.clone(),
                if node.intact { "intact" } else { "NOT INTACT" }.to_owned(),
                format!("{} to {}", node.first, node.last),
                node.witnesses.to_string(),
                node.head.chars().take(16).collect(),
            ]);
        }
        for node in &self.nodes {
            for missing in &node.missing {
                let _ = wrapped(&mut text, "", &format!("{}: missing: {missing}", node.node));
            }
        }
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{gap}{}", table.trim_fmt());
        let _ = self.silent.write(&mut text);
        let intact = self.nodes.iter().filter(|node| node.intact).count();
        let _ = writeln!(text, "\n{intact} of {} trails intact", self.nodes.len());
        text
    }
}

#[cfg(test)]
mod tests {
    use keyring::audit::{Event, NodeRef, Trail};
    use keyring::rotation::PeerId;

    use super::*;

    /// A trail with these events, as text.
    fn trail(node: &str, events: &[Event]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let (mut trail, _) = Trail::open(directory.path(), 1 << 20, 2).unwrap();
        let node = NodeRef { name: node.to_owned(), uid: PeerId::new(format!("uid-{node}")) };
        trail.append(1_764_000_000_000, "boot", &node, events).unwrap();
        let files = audit::read(directory.path()).unwrap();
        files.into_iter().map(|(_, text)| text).collect()
    }

    fn finished(milliseconds: u64) -> Event {
        Event::Finished { milliseconds }
    }

    fn head(text: &str) -> audit::Head {
        audit::verify(&[(PathBuf::new(), text.to_owned())]).head()
    }

    /// n1 and n2, where n2 has recorded the head of n1's trail, and n1 that of its own witness trail.
    fn fetched(own: &str, witnessed: &str) -> BTreeMap<String, Fetched> {
        let records = trail("n2", &[Event::head_of(PeerId::new("uid-n1"), &head(witnessed))]);
        let two = trail("n2", &[Event::witness_head(&head(&records)), finished(2)]);
        let n1 = Fetched { before: own.to_owned(), witness: None, after: own.to_owned() };
        let n2 = Fetched { before: two.clone(), witness: Some(records), after: two };
        [("n1".to_owned(), n1), ("n2".to_owned(), n2)].into()
    }

    fn problems(fetched: &BTreeMap<String, Fetched>) -> Vec<(String, String)> {
        let found = Fleet::new(fetched, Silent::default()).verify();
        assert_eq!(found.verdict() == Verdict::Good, found.nodes.iter().all(|node| node.intact));
        let text = found.text();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let of = |node: &Verification| -> Vec<(String, String)> {
            node.problems.iter().map(|problem| (node.node.clone(), problem.clone())).collect()
        };
        found.nodes.iter().flat_map(of).collect()
    }

    #[test]
    fn trails_that_agree_are_intact_also_if_one_has_grown_meanwhile() {
        let own = trail("n1", &[finished(1)]);
        let mut all = fetched(&own, &own);
        assert_eq!(problems(&all), []);
        let longer = trail("n1", &[finished(1), finished(2)]);
        let n1 = all.get_mut("n1").unwrap();
        n1.after.clone_from(&longer);
        assert_eq!(problems(&all), []);
        let mut all = fetched(&own, &longer);
        all.get_mut("n1").unwrap().after = longer;
        assert_eq!(problems(&all), [], "the record is of a line that came after the first fetch");
    }

    #[test]
    fn a_trail_that_was_cut_or_rewritten_or_is_another_s_is_named_with_its_witness() {
        let (own, longer) = (trail("n1", &[finished(1)]), trail("n1", &[finished(1), finished(2)]));
        let one = |all: &BTreeMap<String, Fetched>| {
            let found = problems(all);
            assert_eq!(found.len(), 1, "{found:?}");
            found.into_iter().next().unwrap()
        };
        let (node, problem) = one(&fetched(&own, &longer));
        assert!(node == "n1" && problem.contains("n2 has recorded line 2"), "{problem}");
        let (node, problem) = one(&fetched(&trail("n1", &[finished(7)]), &own));
        assert!(node == "n1" && problem.contains("n2 has recorded another line 1"), "{problem}");
        let (node, problem) = one(&fetched(&own.replace("\"milliseconds\":1", "\"milliseconds\":3"), ""));
        assert!(node == "n1" && problem.contains("n1/trail:1"), "{problem}");
        let (node, problem) = one(&fetched(&trail("n9", &[finished(1)]), ""));
        assert!(node == "n1" && problem == "the trail is of n9", "{problem}");
        let mut gone = fetched(&own, &own);
        gone.get_mut("n2").unwrap().witness = None;
        let (node, problem) = one(&gone);
        assert!(node == "n2" && problem.contains("its end is missing"), "{problem}");
    }

    #[test]
    fn lines_of_all_nodes_are_in_one_table_of_80_columns() {
        let own = trail("n1", &[finished(1500)]);
        let fleet = Fleet::new(&fetched(&own, &own), Silent::default());
        let text = fleet.lines_text(&Selection::default());
        for part in ["n1:1", "n2:w1", "n2:2", "after 1.5 s", "n1: line 1"] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let of_n2 = Selection { node: Some("n2".to_owned()), ..Selection::default() };
        assert_eq!(fleet.chosen(&of_n2).len(), 1);
        let page = fleet.report_text(1_764_000_100_000, 60);
        assert!(page.contains("2 trails, 0 of them not intact"), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    }
}
