//! A report as text that fits 80 columns: what was found, the worst first, then the verdict.

use std::fmt::Write as _;

use super::{Finding, Report, Verdict, Weight};
use crate::mesh::Paint;
use crate::mesh::text::wrapped;
use crate::rotation::age;
use crate::table::names;

/// How many findings of one kind are shown unless all are wanted.
const EACH: usize = 5;

/// Renders a report; of findings of one kind no more than five unless `all` are wanted.
pub fn render(report: &Report, all: bool, paint: Paint) -> String {
    let mut text = String::new();
    // Writing into a String can't fail.
    let _ = findings(&mut text, &report.findings, if all { usize::MAX } else { EACH }, paint);
    let _ = verdict(&mut text, report, paint);
    text
}

fn findings(text: &mut String, findings: &[Finding], most: usize, paint: Paint) -> std::fmt::Result {
    // They are sorted by weight and code. One code may have two weights.
    let same = |one: &Finding, other: &Finding| (one.weight, one.code) == (other.weight, other.code);
    for group in findings.chunk_by(same) {
        let Some(Finding { weight, code, .. }) = group.first() else { continue };
        let word = match weight {
            Weight::Leak => paint.with(31, "LEAK"),
            Weight::Failed => paint.with(31, "FAILED"),
            Weight::Unknown => paint.with(35, "UNKNOWN"),
            Weight::Warning => paint.with(33, "WARNING"),
        };
        writeln!(text, "{word} {}", code.as_str())?;
        // What is said of many pairs is said once.
        let mut said: Vec<(&Finding, Vec<String>)> = Vec::new();
        for finding in group {
            match said.iter_mut().find(|(known, _)| known.what == finding.what) {
                Some((_, places)) => places.push(place(finding)),
                None => said.push((finding, vec![place(finding)])),
            }
        }
        for (finding, places) in said.iter().take(most) {
            wrapped(text, "  ", &format!("{}: {}", names(places, most), finding.what))?;
        }
        if said.len() > most {
            writeln!(text, "  and {} more: --all shows them", said.len() - most)?;
        }
        wrapped(text, "  do: ", code.advice())?;
        writeln!(text)?;
    }
    Ok(())
}

/// Where it was found: a node, or the two of a pair with the slot.
fn place(finding: &Finding) -> String {
    let slot = finding.slot.map(|slot| format!(" ({slot})")).unwrap_or_default();
    match &finding.peer {
        Some(peer) => format!("{} -> {peer}{slot}", finding.node),
        None => finding.node.clone(),
    }
}

/// The verdict in one line, without colours.
pub fn verdict_line(report: &Report) -> String {
    let totals = &report.totals;
    let mut line = format!("{} {}/{} pairs", report.verdict.as_str(), totals.proven, totals.pairs);
    let silent = totals.nodes.saturating_sub(totals.answered);
    // Writing into a String can't fail.
    let _ = match silent {
        0 => write!(line, ", {} nodes", totals.nodes),
        silent => write!(line, ", {} nodes of which {silent} gave no evidence", totals.nodes),
    };
    let _ = write!(line, ", PQ {}/{} slots", totals.preshared, totals.slots);
    line
}

fn verdict(text: &mut String, report: &Report, paint: Paint) -> std::fmt::Result {
    let (word, colour) = match report.verdict {
        Verdict::Encrypted => ("ENCRYPTED", 32),
        Verdict::Leak => ("LEAK", 31),
        Verdict::NotProven => ("NOT PROVEN", 35),
    };
    let line = verdict_line(report);
    let rest = line.strip_prefix(word).unwrap_or(&line);
    writeln!(text, "{}{rest}", paint.with(colour, word))?;
    if report.verdict == Verdict::Encrypted
        && let Some(seconds) = report.totals.clear_seconds
    {
        let what = format!(
            "no pod address left a node in the clear for {}, and packets that were sent so on purpose were caught on each",
            age(seconds)
        );
        wrapped(text, "  ", &what)?;
    }
    Ok(())
}
