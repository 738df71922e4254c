//! Audit trails as they are read from files or fetched from nodes: what is wrong with them, and their lines as text. Pure.

mod description;
pub mod fleet;

use std::fmt::Write as _;
use std::path::PathBuf;

use comfy_table::{ContentArrangement, Table, presets};
use keyring::audit::{self, CheckedTrail, Event, Finding, Line, NodeReport, Report};
use serde::Serialize;

use description::Names;

/// A node's own trail, and its witness trail if it is in the same place. A file is one trail.
#[derive(Clone, Debug)]
pub struct NodeTrails {
    own: CheckedTrail,
    witness: Option<CheckedTrail>,
    is_directory: bool,
}

/// What was found of one node's trails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The node.
    pub node: String,
    /// The first line of its own trail.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The last one with its hash.
    pub head: String,
    /// How many other nodes' trails it was compared with.
    pub witnesses: usize,
    /// Whether nothing is wrong.
    pub intact: bool,
    /// What is.
    pub problems: Vec<String>,
    /// What the trail itself says is missing from it.
    pub missing: Vec<String>,
}

/// Which lines are wanted; without any condition all are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those about this node.
    pub node: Option<String>,
    /// Those about the key with this fingerprint.
    pub key: Option<String>,
    /// Those from this time on, in milliseconds since 1970.
    pub since: Option<u64>,
}

impl Selection {
    fn wants(&self, line: &Line) -> bool {
        let of_node =
            |node: &String| line.event.is_about(node) || (line.event.is_own() && line.node.name == **node);
        self.node.as_ref().is_none_or(of_node)
            && self.key.as_ref().is_none_or(|key| line.event.mentions(key))
            && self.since.is_none_or(|since| line.time >= since)
    }
}

impl NodeTrails {
    /// Checks the files of a node's own trail and of its witness trail; `is_directory` says that both would be there if the node
    /// has them, and not one trail alone.
    pub fn new(own: &[(PathBuf, String)], witness: Option<&[(PathBuf, String)]>, is_directory: bool) -> Self {
        let witness = witness.map(audit::verify);
        // It begins with the first peer.
        let witness = witness.filter(|trail| trail.findings != [Finding::Empty]);
        Self { own: audit::verify(own), witness, is_directory }
    }

    /// Its own.
    pub const fn own(&self) -> &CheckedTrail {
        &self.own
    }

    /// Both, its own first.
    pub fn all(&self) -> impl Iterator<Item = &CheckedTrail> {
        std::iter::once(&self.own).chain(&self.witness)
    }

    /// What is wrong with either.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> =
            self.all().flat_map(|trail| &trail.findings).map(ToString::to_string).collect();
        if self.is_directory {
            // A witness trail that is gone is one that ends at its beginning.
            let findings = match &self.witness {
                Some(witness) => audit::against_own(witness, &self.own),
                None => audit::against_own(&CheckedTrail::default(), &self.own),
            };
            problems.extend(findings.iter().map(|finding| format!("witness trail: {finding}")));
        }
        problems
    }

    /// The lines of both in the order of time, each with a letter for the trail that it is in.
    pub fn lines(&self) -> Vec<(&'static str, &Line)> {
        let witness = self.witness.iter().flat_map(|trail| &trail.lines).map(|line| ("w", line));
        let mut lines: Vec<_> = self.own.lines.iter().map(|line| ("", line)).chain(witness).collect();
        lines.sort_by_key(|(_, line)| line.time);
        lines
    }

    /// The lines that are wanted, as [`Self::lines`] has them.
    pub fn chosen(&self, selection: &Selection) -> Vec<(&'static str, &Line)> {
        self.lines().into_iter().filter(|(_, line)| selection.wants(line)).collect()
    }

    /// Everything that is wrong with it, by itself and compared with other nodes' trails, each with a name for messages.
    pub fn verify<'a>(&self, others: impl Iterator<Item = (String, &'a Self)>) -> Verification {
        let trail = &self.own;
        let mut problems = self.problems();
        let mut missing: Vec<String> = trail.gaps();
        missing.extend(
            self.witness.iter().flat_map(CheckedTrail::gaps).map(|gap| format!("witness trail: {gap}")),
        );
        let mut witnesses = 0;
        for (name, witness) in others {
            let findings = witness.problems().into_iter();
            problems.extend(findings.map(|finding| format!("witness {name}: {finding}")));
            problems.extend(witness.contradictions(self));
            witnesses += 1;
        }
        let (first, last) = (trail.lines.first().map_or(0, |line| line.seq), trail.head());
        Verification {
            node: trail.node.as_ref().map(|node| node.name.clone()).unwrap_or_default(),
            first,
            last: last.seq,
            head: last.to_string(),
            witnesses,
            intact: problems.is_empty(),
            problems,
            missing,
        }
    }

    /// What these trails have recorded of another node's own trail that it contradicts.
    pub fn contradictions(&self, of: &Self) -> Vec<String> {
        self.all()
            .flat_map(|witness| audit::against_witness(&of.own, witness))
            .map(|finding| finding.to_string())
            .collect()
    }
}

impl Verification {
    /// As text, the verdict last.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            // Writing into a String can't fail.
            let _ = writeln!(text, "{problem}");
        }
        for gap in &self.missing {
            let _ = writeln!(text, "missing: {gap}");
        }
        let verdict = if self.intact { "intact" } else { "NOT INTACT" };
        let Self { node, first, last, witnesses, head, .. } = self;
        let _ = writeln!(
            text,
            "{verdict}: trail of {node}, lines {first} to {last}, {witnesses} witnesses, head {head}"
        );
        text
    }
}

/// An empty table, which wraps what is wider than `width` columns.
fn table(width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if let Some(width) = width {
        table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// Lines as a table, each with a letter for the trail that it is in, and nodes by the names that `trails` have.
pub fn lines_table<'a>(
    lines: &[(String, &Line)],
    trails: impl IntoIterator<Item = &'a CheckedTrail>,
    width: Option<u16>,
) -> String {
    let mut table = table(width);
    table.set_header(["LINE", "TIME (UTC)", "EVENT", "WHAT"]);
    let names = Names::of(trails.into_iter().flat_map(|trail| &trail.lines));
    for (trail, line) in lines {
        table.add_row([
            format!("{trail}{}", line.seq),
            time(line.time),
            name(&line.event),
            names.describe(&line.event),
        ]);
    }
    format!("{table}\n")
}

/// The report as one page of text.
pub fn page(report: &Report, trails: usize, broken: usize, max_age: u64, width: Option<u16>) -> String {
    let mut table = table(width);
    table.set_header([
        "NODE",
        "KEY",
        "SLOT",
        "SINCE (UTC)",
        "ACTIVE",
        "REPLACED",
        "DESTROYED",
        "VERIFIED BY",
    ]);
    for node in &report.nodes {
        for key in &node.keys {
            let moment = |at: Option<u64>| at.map(minute).unwrap_or_default();
            table.add_row([
                node.node.clone(),
                key.key.clone(),
                key.slot.to_string(),
                minute(key.since),
                moment(key.active.last().copied()),
                moment(key.replaced),
                moment(key.destroyed),
                peers(key.verified_by.len(), node.own_trail),
            ]);
        }
    }
    let mut text = format!("{table}\n\n");
    // Writing into a String can't fail.
    let _ = match &report.oldest {
        Some((node, key, age)) => {
            writeln!(text, "oldest key in use        {key} of {node}, {}", length(*age))
        }
        None => writeln!(text, "oldest key in use        none known"),
    };
    let list = |keys: Vec<String>| if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
    let overdue = report.overdue.iter().map(|(node, key, age)| format!("{key} of {node} ({})", length(*age)));
    let _ = writeln!(text, "older than {:13} {}", length(max_age), list(overdue.collect()));
    let open = report.not_proven_destroyed.iter().map(|(node, key)| format!("{key} of {node}"));
    let _ = writeln!(text, "not proven destroyed     {}", list(open.collect()));
    let sum = |value: &dyn Fn(&NodeReport) -> usize| report.nodes.iter().map(value).sum::<usize>();
    let rolled_back: u64 = report.nodes.iter().map(|node| node.rolled_back).sum();
    let _ = writeln!(
        text,
        "rotations                {} finished, {rolled_back} rolled back",
        sum(&|node| node.rotations.len())
    );
    let passed: Vec<String> = report
        .nodes
        .iter()
        .flat_map(|node| node.passed_over.iter().map(move |(peer, count)| (node, peer, count)))
        .map(|(node, peer, count)| format!("{peer} by {} ({count} times)", node.node))
        .collect();
    let _ = writeln!(text, "not waited for           {}", list(passed));
    let own = sum(&|node| usize::from(node.own_trail));
    let _ = writeln!(
        text,
        "sources                  {trails} trails, {broken} of them not intact; {own} of {} nodes by their own trail",
        report.nodes.len()
    );
    text
}

fn peers(count: usize, own_trail: bool) -> String {
    match (own_trail, count) {
        (false, _) => "seen by a peer".to_owned(),
        (true, 1) => "1 peer".to_owned(),
        (true, count) => format!("{count} peers"),
    }
}

/// The event's name in JSON.
fn name(event: &Event) -> String {
    let value = serde_json::to_value(event).unwrap_or_default();
    value["event"].as_str().unwrap_or_default().to_owned()
}

/// A time to the second, without its zone, which is in the heading.
fn time(millis: u64) -> String {
    moment(millis, "%Y-%m-%d %H:%M:%S")
}

/// A time to the minute: four of them fit in a line.
fn minute(millis: u64) -> String {
    moment(millis, "%Y-%m-%d %H:%M")
}

fn moment(millis: u64, form: &str) -> String {
    let moment =
        i64::try_from(millis / 1000).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    moment.map(|moment| moment.strftime(form).to_string()).unwrap_or_default()
}

fn length(seconds: u64) -> String {
    match seconds {
        0..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
