//! The whole mesh as text that fits 80 columns: a head, a table of nodes, problems.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Table, presets};

use super::{Code, Mesh, Node, Problem, Severity, Verdict};
use crate::rotation::age;
use crate::table::names;

/// With more nodes than these only those with a problem are shown.
const FEW: usize = 25;
/// How many problems of one kind are shown.
const EACH: usize = 5;
/// How wide text is.
pub(crate) const WIDTH: u16 = 80;

/// Whether text has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// By the codes of ECMA-48, section 8.3.117 (select graphic rendition).
    Colours,
    /// Plain.
    None,
}

/// What is shown of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The head, nodes and problems; of a large mesh the nodes with a problem.
    Usual,
    /// The same with all nodes and all problems.
    All,
    /// Problems alone.
    Problems,
}

impl Paint {
    pub(super) fn severity(self, severity: Severity) -> String {
        let (word, code) = match severity {
            Severity::Error => ("ERROR", 31),
            Severity::Unknown => ("UNKNOWN", 35),
            Severity::Warning => ("WARNING", 33),
        };
        self.with(code, word)
    }

    pub(crate) fn with(self, code: u8, text: &str) -> String {
        match self {
            Self::Colours => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::None => text.to_owned(),
        }
    }
}

/// Renders a mesh.
pub fn render(mesh: &Mesh, shown: Shown, paint: Paint) -> String {
    let mut text = String::new();
    // Writing into a String can't fail.
    if shown != Shown::Problems {
        let _ = head(&mut text, mesh, paint);
        let _ = nodes(&mut text, mesh, shown);
    }
    let _ = problems(&mut text, &mesh.problems, shown, paint);
    text
}

fn head(text: &mut String, mesh: &Mesh, paint: Paint) -> std::fmt::Result {
    let totals = &mesh.totals;
    let verdict = match mesh.verdict(false) {
        Verdict::Good => paint.with(32, "OK"),
        Verdict::Failed => paint.with(31, "PROBLEMS"),
        Verdict::Unknown => paint.with(35, "UNKNOWN"),
    };
    let (nodes, answered) = (totals.nodes, totals.answered);
    let silent = match nodes.saturating_sub(answered) {
        0 => String::new(),
        silent => format!("; {silent} did not answer"),
    };
    writeln!(
        text,
        "mesh      {verdict}: {} of {nodes} nodes ready, {} of {} pairs reached{silent}",
        totals.ready, totals.reached, totals.pairs
    )?;
    writeln!(
        text,
        "guard     in place on {} of {answered} nodes; trust policy on {} of {answered}",
        totals.guarded, totals.fenced
    )?;
    let oldest = totals.oldest_key_seconds.map_or_else(|| "of unknown age".to_owned(), age);
    writeln!(text, "keys      the oldest: {oldest}; {} nodes replace theirs now", totals.rotating)?;
    writeln!(text, "PQ        preshared keys proven on {} of {} slots", totals.proven, totals.slots)?;
    writeln!(text, "versions  {}", counted(&totals.versions))?;
    writeln!(text, "backends  {}", counted(&totals.backends))
}

fn counted(counts: &BTreeMap<String, u64>) -> String {
    let each: Vec<String> = counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    if each.is_empty() { "unknown".to_owned() } else { each.join(", ") }
}

fn nodes(text: &mut String, mesh: &Mesh, shown: Shown) -> std::fmt::Result {
    let all = shown == Shown::All || mesh.nodes.len() <= FEW;
    let rows: Vec<&Node> = mesh.nodes.iter().filter(|node| all || !node.problems.is_empty()).collect();
    let hidden = mesh.nodes.len() - rows.len();
    if !rows.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["NODE", "STATE", "PEERS", "PQ", "GUARD", "KEY AGE", "BACKEND", "VERSION"]);
        for row in rows {
            table.add_row(cells(row));
        }
        writeln!(text, "\n{}", table.trim_fmt())?;
    }
    if hidden > 0 {
        writeln!(text, "\n{hidden} nodes have no problem: --all shows them")?;
    }
    Ok(())
}

fn cells(node: &Node) -> [String; 8] {
    let state = match (node.answered, node.ready) {
        (false, _) => "no answer",
        (true, true) => "ready",
        (true, false) => "NOT READY",
    };
    let [mut peers, mut proven, mut guard, mut key] = [(); 4].map(|()| "-".to_owned());
    if node.answered {
        peers = format!("{}/{}", node.reached, node.peers);
        proven = format!("{}/{}", node.proven, 2 * node.peers);
        (if node.guard { "in place" } else { "MISSING" }).clone_into(&mut guard);
        key = node.key_age_seconds.map_or(key, age);
    }
    [
        node.node.clone(),
        state.to_owned(),
        peers,
        proven,
        guard,
        key,
        node.backend.clone(),
        node.version.clone(),
    ]
}

fn problems(text: &mut String, problems: &[Problem], shown: Shown, paint: Paint) -> std::fmt::Result {
    let most = if shown == Shown::All { usize::MAX } else { EACH };
    // They are sorted by code.
    for group in problems.chunk_by(|one, other| one.code == other.code) {
        let Some(Problem { code, severity, .. }) = group.first() else { continue };
        writeln!(text, "\n{} {}", paint.severity(*severity), code.as_str())?;
        // What many nodes say is said once.
        let mut said: Vec<(&Problem, Vec<&str>)> = Vec::new();
        for problem in group {
            match said.iter_mut().find(|(known, _)| known.what == problem.what) {
                Some((_, nodes)) => nodes.push(&problem.node),
                None => said.push((problem, vec![&problem.node])),
            }
        }
        for (problem, nodes) in said.iter().take(most) {
            wrapped(text, "  ", &format!("{}: {}", names(nodes, most), problem.what))?;
            if *code == Code::Host {
                wrapped(text, "    do: ", &problem.advice)?;
            }
        }
        if said.len() > most {
            writeln!(text, "  and {} more: --all shows them", said.len() - most)?;
        }
        if *code != Code::Host {
            wrapped(text, "  do: ", code.advice())?;
        }
    }
    Ok(())
}

/// Words after `first`, in lines of 80 columns that continue below its end.
pub fn wrapped_text(first: &str, words: &str) -> String {
    let mut text = String::new();
    // Writing into a String can't fail.
    let _ = wrapped(&mut text, first, words);
    text
}

/// Writes words after `first`, and continues below its end where a line would be too long.
pub(crate) fn wrapped(text: &mut String, first: &str, words: &str) -> std::fmt::Result {
    let width = usize::from(WIDTH);
    let indent = first.chars().count().min(width / 2);
    let mut column = first.chars().count();
    text.push_str(first);
    let mut empty = true;
    for word in words.split_whitespace() {
        let len = word.chars().count();
        if !empty && column + 1 + len > width {
            write!(text, "\n{:indent$}", "")?;
            (column, empty) = (indent, true);
        }
        if !empty {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        (column, empty) = (column + len, false);
    }
    writeln!(text)
}
