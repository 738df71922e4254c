//! All pairs over time as an SVG: one strip for each, coloured by whether its echoes came back, and over which path.

use std::fmt::Write as _;
use std::time::Duration;

use crate::network::is_direct;
use crate::probes::Track;
use crate::run::{Pair, Run};

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 150.0;
const PLOT: f64 = WIDTH - LEFT - 20.0;
/// Where the legend is, and where the strips begin: the labels of events are between them.
const LEGEND: f64 = 58.0;
const TOP: f64 = 190.0;
const STRIP: f64 = 12.0;
/// Space before the strips of the next node.
const GAP: f64 = 8.0;
/// Least distance of two labels.
const LABEL: f64 = 26.0;
const COLOURS: [(&str, &str, &str); 6] = [
    ("direct", "direct", "#2ca02c"),
    ("punched", "direct through NAT, opened from both sides", "#1f77b4"),
    ("relayed", "over a relay", "#ff9f1c"),
    ("answered", "answered, path not known yet", "#a9cfa9"),
    ("lost", "lost", "#d62728"),
    ("not asked", "not asked", "#eeeeee"),
];
/// Time that one piece of a strip stands for.
const PIECE: Duration = Duration::from_millis(500);

/// Draws a run.
pub(crate) fn draw(run: &Run<'_>) -> String {
    let end = run.probes.now();
    let x = |at: Duration| LEFT + PLOT * at.as_secs_f64() / end.as_secs_f64().max(0.1);
    let mut body = String::new();
    let mut top = TOP;
    // Writing into a String can't fail.
    for from in run.mesh.node_names() {
        let site = run.site_of(&from);
        let _ = writeln!(
            body,
            "<text x=\"8\" y=\"{:.0}\" font-weight=\"bold\">{from}</text><text x=\"8\" y=\"{:.0}\">{site}</text>",
            top + 10.0,
            top + 22.0
        );
        for pair in run.pairs().into_iter().filter(|pair| pair.0 == from) {
            let _ = writeln!(
                body,
                "<text x=\"{}\" y=\"{:.0}\" text-anchor=\"end\">to {}</text>",
                LEFT - 6.0,
                top + 9.0,
                pair.1
            );
            strip(&mut body, &pieces(run, &pair, end), x, top);
            top += STRIP;
        }
        top += GAP;
    }
    top -= GAP;
    events(&mut body, run, x, top);
    axis(&mut body, end, x, top);
    legend(&mut body);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {0:.0}\" font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"{WIDTH}\" height=\"{0:.0}\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">Do packets pass between the pods of seven nodes on five networks?</text>\n\
         <text x=\"8\" y=\"38\" font-size=\"11\">Each strip is a pair of nodes: the pod on one asks the pod on the other \
         several times a second. Black lines: what happened to the network. The relay is n1; while its daemon is dead, its own pods reach nobody.</text>\n{body}</svg>\n",
        top + 30.0
    )
}

fn strip(body: &mut String, pieces: &[Piece], x: impl Fn(Duration) -> f64, top: f64) {
    for (from, to, kind) in pieces {
        let colour = COLOURS.iter().find(|(name, ..)| name == kind).map_or("white", |(.., colour)| colour);
        let _ = writeln!(
            body,
            "<rect x=\"{:.1}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
            x(*from),
            x(*to) - x(*from),
            STRIP - 2.0
        );
    }
}

/// Labels of events that follow each other closely stand side by side, each with a line to its moment. The last ones are moved
/// to the left, so that the text stays in the picture.
fn events(body: &mut String, run: &Run<'_>, x: impl Fn(Duration) -> f64, bottom: f64) {
    let mut labels: Vec<f64> = Vec::new();
    for (at, _) in &run.events {
        labels.push(labels.last().map_or(f64::MIN, |last| last + LABEL).max(x(*at)));
    }
    let mut limit = WIDTH - 110.0;
    for label in labels.iter_mut().rev() {
        *label = label.min(limit);
        limit = *label - LABEL;
    }
    for ((at, what), label) in run.events.iter().zip(labels) {
        let _ = writeln!(
            body,
            "<polyline points=\"{label:.1},{2} {0:.1},{1} {0:.1},{bottom:.0}\" fill=\"none\" stroke=\"black\" \
             stroke-width=\"0.6\"/>\n\
             <text x=\"{label:.1}\" y=\"{3}\" transform=\"rotate(-35 {label:.1} {3})\">{what}</text>",
            x(*at),
            TOP - 2.0,
            TOP - 14.0,
            TOP - 16.0
        );
    }
}

fn axis(body: &mut String, end: Duration, x: impl Fn(Duration) -> f64, top: f64) {
    let mut second = 0;
    while Duration::from_secs(second) <= end {
        let at = x(Duration::from_secs(second));
        let _ = writeln!(
            body,
            "<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{second} s</text>",
            top + 16.0
        );
        second += if end > Duration::from_mins(2) { 30 } else { 10 };
    }
}

fn legend(body: &mut String) {
    let mut left = 8.0;
    for (_, text, colour) in COLOURS {
        let _ = writeln!(
            body,
            "<rect x=\"{left:.0}\" y=\"{LEGEND}\" width=\"12\" height=\"12\" fill=\"{colour}\" stroke=\"#888\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\">{text}</text>",
            left + 17.0,
            LEGEND + 10.0
        );
        // About 5.5 for each character at this size.
        left += 40.0 + 5.5 * f64::from(u32::try_from(text.len()).unwrap_or_default());
    }
}

/// A piece of a strip: from, to, kind.
type Piece = (Duration, Duration, &'static str);

/// The pieces of a pair's strip, joined while they are of one kind.
fn pieces(run: &Run<'_>, pair: &Pair, end: Duration) -> Vec<Piece> {
    let track = run.probes.track(&pair.0, &pair.1, Duration::ZERO);
    let echoes = track.as_ref().map(Track::echoes).unwrap_or_default();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut from = Duration::ZERO;
    while from < end {
        let to = from + PIECE;
        let first = echoes.partition_point(|echo| echo.sent < from);
        let last = echoes.partition_point(|echo| echo.sent < to);
        let within = echoes.get(first..last).unwrap_or_default();
        let kind = if within.is_empty() {
            "not asked"
        } else if within.iter().any(|echo| echo.is_lost(end)) {
            "lost"
        } else {
            kind_of(path_at(run, pair, from))
        };
        match pieces.last_mut() {
            Some((_, until, known)) if *known == kind => *until = to.min(end),
            _ => pieces.push((from, to.min(end), kind)),
        }
        from = to;
    }
    pieces
}

fn path_at<'a>(run: &'a Run<'_>, pair: &Pair, at: Duration) -> Option<&'a str> {
    let mut changes = run.paths.changes.iter().filter(|(when, of, _)| of == pair && *when <= at + PIECE);
    changes.next_back().map(|(_, _, path)| path.as_str())
}

fn kind_of(path: Option<&str>) -> &'static str {
    match path {
        Some("punched") => "punched",
        Some(path) if is_direct(path) => "direct",
        Some(path) if path.starts_with("relayed") => "relayed",
        _ => "answered",
    }
}
