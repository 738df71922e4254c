//! The report as one HTML page for readers who don't know the suite: the verdict first, then what failed, the grid, and
//! everything else. It needs no script and nothing from elsewhere. Pure.
//!
//! What nodes, pods and the API server say is foreign: the template escapes it, and [`visible`] shows what would change how
//! the rest is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use chrono::{DateTime, FixedOffset};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::{Cell, Report, Seen, Traffic, Uplinks, Verdict};

/// The row that is about what the uplinks carry.
const UPLINKS_ROW: &str = "E1";
/// How the page looks.
const STYLE: &str = include_str!("style.css");
/// So many failures are shown in full at the top; the others are with their rows.
const SHOWN_FIRST: usize = 12;
/// Longer outputs are cut off; the JSON report has them whole.
const OUTPUT_SHOWN: usize = 2_000;

/// Writes it.
pub fn html(report: &Report) -> String {
    let title = format!("End-to-end run: {}", word(report.verdict));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (verdict(report))
                (failures(report))
                (cluster(report))
                @if let Some(uplinks) = &report.uplinks { (on_the_uplinks(uplinks)) }
                (grid(report))
                (skips(report))
                (details(report))
                (legend())
            }
        }
    };
    page.into_string()
}

/// A time in seconds since 1970; nothing if there is no such date.
pub(crate) fn time(seconds: u64) -> Option<DateTime<FixedOffset>> {
    let time = DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)?;
    Some(time.fixed_offset())
}

fn verdict(report: &Report) -> Markup {
    let count = |verdict| report.count(verdict);
    let (passed, failed) = (count(Verdict::Pass), count(Verdict::Fail));
    let (unknown, skipped) = (count(Verdict::NotDetermined), count(Verdict::Skipped));
    let tried = report.cases.len() - skipped;
    let mut said = if tried == 0 {
        "Nothing was tried, which shows nothing.".to_owned()
    } else if passed == tried {
        format!("All {tried} checks passed.")
    } else {
        format!("Of {tried} checks {passed} passed and {failed} failed.")
    };
    if unknown > 0 {
        let _infallible = write!(said, " {unknown} could not be determined.");
    }
    if skipped > 0 {
        let _infallible =
            write!(said, " {skipped} could not be tried here and were skipped, for the reasons given.");
    }
    html! {
        header {
            h1 { "Kubernetes network, end to end" }
            div.verdict.(class(report.verdict)) {
                strong { (sentence(report.verdict)) }
                p { (said) }
                p.quiet { (when(report)) }
            }
        }
    }
}

fn when(report: &Report) -> String {
    let lasted = match report.seconds {
        seconds @ 0..120 => format!("{seconds}\u{a0}s"),
        seconds => format!("{}\u{a0}min {}\u{a0}s", seconds / 60, seconds % 60),
    };
    match time(report.started) {
        Some(time) => format!("Began {}, took {lasted}.", time.format("%Y-%m-%d %H:%M UTC")),
        None => format!("Took {lasted}."),
    }
}

fn failures(report: &Report) -> Markup {
    let bad: Vec<&Seen> = [Verdict::Fail, Verdict::NotDetermined]
        .iter()
        .flat_map(|&verdict| report.cases.iter().filter(move |case| case.verdict == verdict))
        .collect();
    let more = bad.len().saturating_sub(SHOWN_FIRST);
    html! {
        @if !bad.is_empty() {
            section {
                h2 { "What did not pass" }
                @for case in bad.iter().take(SHOWN_FIRST) { (case_in_full(report, case, true)) }
                @if more > 0 { p { (more) " more are with their rows below." } }
            }
        }
    }
}

fn cluster(report: &Report) -> Markup {
    let cluster = &report.cluster;
    let versions = &cluster.versions;
    let list =
        |texts: &BTreeSet<String>| texts.iter().map(|text| visible(text)).collect::<Vec<_>>().join("; ");
    let families: Vec<&str> = cluster.families.iter().map(|family| family_name(family)).collect();
    let proxy = if cluster.proxy_mode.is_empty() {
        "mode not known".to_owned()
    } else {
        visible(&cluster.proxy_mode)
    };
    let facts = [
        ("Kubernetes", list(&versions.kubernetes)),
        ("Nodes", format!("{}, kubelet {}", cluster.nodes, list(&versions.kubelets))),
        ("IP versions", families.join(" and ")),
        ("kube-proxy", proxy),
        ("On every node", list(&versions.daemons)),
        ("Runtime", list(&versions.runtimes)),
        ("Kernel", list(&versions.kernels)),
        ("System", list(&versions.systems)),
    ];
    html! {
        section {
            h2 { "The cluster" }
            dl {
                @for (name, value) in facts {
                    @if !value.is_empty() { dt { (name) } dd { (value) } }
                }
            }
        }
    }
}

fn on_the_uplinks(uplinks: &Uplinks) -> Markup {
    html! {
        section {
            h2 { "On the nodes' uplinks" }
            p {
                "A capture on the uplink of every node, from before the first daemon on. A frame that goes from node to "
                "node is seen on two uplinks."
            }
            table {
                thead { tr { th { "Frames" } th.number { "in this run" } th.number { "since the cluster began" } } }
                tbody {
                    tr {
                        td { "with a pod's address, in the clear" }
                        td.number { (thousands(uplinks.in_this_run.clear)) }
                        td.number { (thousands(uplinks.since_the_beginning.clear)) }
                    }
                    tr {
                        td { "of tunnels, encrypted" }
                        td.number { (thousands(uplinks.in_this_run.tunnel)) }
                        td.number { (thousands(uplinks.since_the_beginning.tunnel)) }
                    }
                    tr { td { "missed by the capture" } td {} td.number { (thousands(uplinks.missed)) } }
                }
            }
            @if !uplinks.files.is_empty() { p { "The first packets in the clear: " (captures(uplinks)) } }
            @if !uplinks.controls.is_empty() {
                p { "Packets that were sent in the clear on purpose, which are not counted above:" }
                table {
                    thead { tr { th { "Sent" } th { "Capture" } th { "Guard" } } }
                    tbody {
                        @for control in &uplinks.controls {
                            tr {
                                td { (visible(&control.sent)) }
                                td { (outcome(control.seen, "right", "wrong")) }
                                td { (outcome(control.dropped, "right", "let it through")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Links to what was in the clear on each uplink.
fn captures(uplinks: &Uplinks) -> Markup {
    html! {
        @for (place, file) in uplinks.files.iter().enumerate() {
            @if place > 0 { ", " }
            a href=(file.name) { (visible(&file.host)) " (" (file.packets) ", pcap)" }
        }
    }
}

fn outcome(good: bool, yes: &str, no: &str) -> Markup {
    let verdict = if good { Verdict::Pass } else { Verdict::Fail };
    html! { span.tag.(class(verdict)) { (sign(verdict)) "\u{a0}" (if good { yes } else { no }) } }
}

fn grid(report: &Report) -> Markup {
    let families = &report.cluster.families;
    let mode = &report.cluster.proxy_mode;
    html! {
        section {
            h2 { "Rows" }
            table.grid {
                thead {
                    tr {
                        th { "Row" }
                        th { "What is claimed" }
                        @for family in families {
                            th.cell {
                                (family_name(family))
                                @if !mode.is_empty() { br; small { (visible(mode)) } }
                            }
                        }
                    }
                }
                tbody {
                    @for row in report.rows() {
                        tr {
                            th { (visible(row)) }
                            td { ul { @for claim in claims(report, row) { li { (visible(claim)) } } } }
                            @if let Some(cell) = cell(report, row, "") {
                                td.cell.(class(cell.verdict)) colspan=(families.len().max(1)) { (in_grid(report, cell)) }
                            } @else {
                                @for family in families {
                                    @if let Some(cell) = cell(report, row, family) {
                                        td.cell.(class(cell.verdict)) { (in_grid(report, cell)) }
                                    } @else {
                                        td.cell {}
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn in_grid(report: &Report, cell: &Cell) -> Markup {
    let mut reasons: Vec<&str> = of_cell(report, cell).filter_map(|case| case.reason.as_deref()).collect();
    reasons.dedup();
    html! {
        a href={ "#" (anchor(cell)) } title=(visible(&reasons.join("; "))) {
            (sign(cell.verdict)) " " (word(cell.verdict))
            @if cell.tried > 0 { small { (cell.passed) " of " (cell.tried) } }
            @if cell.skipped > 0 && cell.tried > 0 { small { (cell.skipped) " skipped" } }
        }
    }
}

/// What was skipped, by reason.
fn skips(report: &Report) -> Markup {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for case in report.cases.iter().filter(|case| case.verdict == Verdict::Skipped) {
        let parts = [&*case.row, family_name(case.family), &case.about];
        let what: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        reasons.entry(case.reason.as_deref().unwrap_or_default()).or_default().push(what.join(" "));
    }
    html! {
        @if !reasons.is_empty() {
            section {
                h2 { "What was skipped" }
                dl.reasons {
                    @for (reason, what) in reasons { dt { (visible(&what.join(", "))) } dd { (visible(reason)) } }
                }
            }
        }
    }
}

fn details(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Every check" }
            @for cell in report.rows().into_iter().flat_map(|row| report.cells.iter().filter(move |cell| cell.row == row)) {
                details {
                    summary {
                        strong { (visible(&cell.row)) } " " (family_name(cell.family))
                        span.tag.(class(cell.verdict)) { (sign(cell.verdict)) " " (word(cell.verdict)) }
                    }
                    // A browser opens what is around the target of a link.
                    div.inside id=(anchor(cell)) {
                        p.quiet { (sums(cell)) }
                        @if let Some(uplinks) = report.uplinks.as_ref().filter(|uplinks| has_files(cell, uplinks)) {
                            p { "Packets in the clear: " (captures(uplinks)) }
                        }
                        @for case in of_cell(report, cell) { (case_in_full(report, case, false)) }
                    }
                }
            }
        }
    }
}

/// Whether packets in the clear were seen while a cell was tried, and kept.
fn has_files(cell: &Cell, uplinks: &Uplinks) -> bool {
    !uplinks.files.is_empty() && cell.frames.is_some_and(|frames| frames.clear > 0)
}

/// What a cell's commands sent and the uplinks carried, as a sentence.
fn sums(cell: &Cell) -> String {
    let mut said = format!("{} of {} passed", cell.passed, cell.tried);
    if cell.skipped > 0 {
        let _infallible = write!(said, ", {} skipped", cell.skipped);
    }
    if cell.traffic.sent > 0 {
        let _infallible = write!(said, "; {}", sent(cell.traffic));
    }
    if let Some(frames) = cell.frames {
        let _infallible = write!(
            said,
            "; on the uplinks meanwhile {} frames in the clear, {} of tunnels",
            thousands(frames.clear),
            thousands(frames.tunnel)
        );
    }
    said.push('.');
    said
}

fn sent(traffic: Traffic) -> String {
    format!("{} sent, {} not answered", thousands(traffic.sent), thousands(traffic.lost))
}

fn case_in_full(report: &Report, case: &Seen, with_row: bool) -> Markup {
    let uplinks =
        report.uplinks.as_ref().filter(|uplinks| case.row == UPLINKS_ROW && !uplinks.files.is_empty());
    let about = if case.about.is_empty() { "all of it" } else { &case.about };
    html! {
        article.case.(class(case.verdict)) {
            h3 {
                @if with_row { (visible(&case.row)) " " (family_name(case.family)) " · " }
                (visible(about))
                " " span.tag.(class(case.verdict)) { (sign(case.verdict)) " " (word(case.verdict)) }
            }
            p { (visible(&case.claim)) }
            dl {
                @if !case.command.is_empty() { dt { "command" } dd { code { (shown(&case.command)) } } }
                @if !case.expected.is_empty() { dt { "expected" } dd { code { (shown(&case.expected)) } } }
                @if !case.seen.is_empty() { dt { "seen" } dd { code { (shown(case.seen.trim())) } } }
                @if let Some(uplinks) = uplinks { dt { "in the clear" } dd { (captures(uplinks)) } }
                @if let Some(reason) = &case.reason { dt { "reason" } dd { (visible(reason)) } }
                @if let Some(traffic) = case.traffic { dt { "traffic" } dd { (sent(traffic)) } }
            }
        }
    }
}

fn legend() -> Markup {
    html! {
        section {
            h2 { "How to read this" }
            dl {
                dt { (outcome(true, word(Verdict::Pass), "")) }
                dd { "Every command printed what it had to print, the source address that the server saw included." }
                dt { (outcome(false, "", word(Verdict::Fail))) }
                dd { "At least one did not. One failure fails the run." }
                dt { span.tag.(class(Verdict::NotDetermined)) { (sign(Verdict::NotDetermined)) " " (word(Verdict::NotDetermined)) } }
                dd { "It was tried, and what was seen shows neither. That is no pass." }
                dt { span.tag.(class(Verdict::Skipped)) { (sign(Verdict::Skipped)) " " (word(Verdict::Skipped)) } }
                dd { "It could not be tried on this cluster, for the reason given." }
            }
        }
    }
}

fn claims<'a>(report: &'a Report, row: &str) -> Vec<&'a str> {
    let mut claims: Vec<&str> = Vec::new();
    for case in report.cases.iter().filter(|case| case.row == row) {
        if !claims.contains(&&*case.claim) {
            claims.push(&case.claim);
        }
    }
    claims
}

fn cell<'a>(report: &'a Report, row: &str, family: &str) -> Option<&'a Cell> {
    report.cells.iter().find(|cell| cell.row == row && cell.family == family)
}

fn of_cell<'a>(report: &'a Report, cell: &'a Cell) -> impl Iterator<Item = &'a Seen> {
    report.cases.iter().filter(|case| case.row == cell.row && case.family == cell.family)
}

fn anchor(cell: &Cell) -> String {
    let name = format!("{}-{}", cell.row, cell.family);
    name.trim_end_matches('-').replace(|letter: char| !letter.is_ascii_alphanumeric(), "-")
}

fn family_name(family: &str) -> &str {
    match family {
        "ipv4" => "IPv4",
        "ipv6" => "IPv6",
        other => other,
    }
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::NotDetermined => "unknown",
        Verdict::Skipped => "skipped",
    }
}

fn sign(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "✓",
        Verdict::Fail => "✗",
        Verdict::NotDetermined => "?",
        Verdict::Skipped => "–",
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::NotDetermined => "not determined",
        Verdict::Skipped => "skipped",
    }
}

fn sentence(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "✓ Passed",
        Verdict::Fail | Verdict::Skipped => "✗ Failed",
        Verdict::NotDetermined => "? Not determined",
    }
}

/// With a narrow space between thousands.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut said = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            said.push('\u{202f}');
        }
        said.push(digit);
    }
    said
}

/// An output, cut off if it is long.
fn shown(text: &str) -> String {
    let all = text.chars().count();
    if all <= OUTPUT_SHOWN {
        return visible(text);
    }
    let start: String = text.chars().take(OUTPUT_SHOWN).collect();
    format!("{} ... ({} more characters are in the JSON report)", visible(&start), all - OUTPUT_SHOWN)
}

/// The text with a name for each character that can't be seen, or that would reorder what is around it.
fn visible(text: &str) -> String {
    let mut said = String::with_capacity(text.len());
    for letter in text.chars() {
        let hidden = matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if hidden || (letter.is_control() && !matches!(letter, '\n' | '\t')) {
            said.extend(letter.escape_unicode());
        } else {
            said.push(letter);
        }
    }
    said
}

#[cfg(test)]
mod tests;
